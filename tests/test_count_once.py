"""A penalty counts once, on any mesh, in any mode and accumulated; sharded parameters stay so.

The tests read what this file measures, run as a program on eight devices of one CPU.
"""

import functools
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from models import environment_of

DEVICES = (1, 2, 4, 8)
MODES = ("jit", "shard_map")
ACCUMULATIONS = (1, 4)
BATCH = 32
FAMILIES = (
    *("L1", "MCP", "EWC", "SparseGroupLasso", "LInf"),
    *("Orthogonal", "NuclearNorm", "SpectralNorm", "TotalVariation"),
    *("L2", "GroupLasso", "L0", "Huber", "SCAD", "LogSum", "Lq", "L2SP"),
)
PLACES = ("loss", "transform", "proximal")
RATE, STEPS = 0.1, 3


@pytest.fixture(scope="module")
def measured(request):
    here = pathlib.Path(__file__).parent
    environment = environment_of(8, "--xla_backend_optimization_level=0") | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    # What no test looks at is not compiled either: the labels of the tests are those of the runs.
    tests = [item for item in request.session.items if item.module is request.module]
    labels = {item.callspec.id for item in tests if hasattr(item, "callspec")}
    command = [sys.executable, __file__, *sorted(labels)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def families():
    from laws_penalties import PENALTIES

    return {
        type(case.penalty).__name__: case
        for case in PENALTIES
        if type(case.penalty).__name__ in FAMILIES
    }


def separable():
    from laws_penalties import ONE_OF_EACH

    return {
        type(case.penalty).__name__: case
        for case in ONE_OF_EACH
        if case.separable and not case.constraint
    }


def data():
    """Examples and parameters off every kink, one array for each penalty."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 2))
    return x, {name: 0.2 + rng.random((2, 3)) for name in families()}


@pytest.fixture(scope="module")
def expected():
    """The gradients of mean 1/2 |x w|^2 + penalty(w), by differences in float64."""
    x, params = data()
    gradients = {}
    for name, case in families().items():
        w, slopes = params[name], np.zeros((2, 3))
        for index in np.ndindex(2, 3):
            move = np.zeros((2, 3))
            move[index] = 1e-6
            slopes[index] = (case.value(w + move) - case.value(w - move)) / 2e-6
        gradients[name] = x.T @ x @ w / BATCH + slopes
    return gradients


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.sampled(6)
def test_every_penalty_counts_once(measured, expected, devices, mode, accumulation):
    found = measured["gradients"][f"{devices}-{mode}-{accumulation}"]
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=2e-4, atol=2e-5, err_msg=name)


def trained(place):
    """Gradient descent in float64, with 0.5 |a| and 0.5 b^2 / 2 in the loss, or their prox."""
    x, _ = data()
    a, b = start()
    for _ in range(STEPS):
        a, b = (
            a - RATE * x.T @ x @ a / BATCH,
            b - RATE * x.T @ x @ b / BATCH - (0 if place == "proximal" else RATE * 0.5 * b),
        )
        if place == "proximal":
            a, b = np.sign(a) * np.maximum(np.abs(a) - RATE * 0.5, 0), b / (1 + RATE * 0.5)
        else:
            a = a - RATE * 0.5  # it stays positive
    return {"a": a, "b": b}


def start():
    rng = np.random.default_rng(3)
    return 1 + rng.random((2, 3)), 1 + rng.random((2, 3))


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.sampled(9)
def test_it_counts_once_in_a_training_step(measured, devices, place, accumulation):
    found = measured["trained"][f"{devices}-{place}-{accumulation}"]
    for name, w in trained(place).items():
        np.testing.assert_allclose(found[name], w, rtol=1e-5, err_msg=name)


def test_a_proximal_update_of_sharded_parameters_moves_nothing_and_changes_no_number(measured):
    collective = re.compile(r"all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce")
    assert set(measured["proximal"]) == {"L1", "Box"}
    for name, (program, difference) in measured["proximal"].items():
        assert "f32[2,6]" in program, name  # an eighth of the 16 rows
        assert not collective.search(program), name
        assert difference < 1e-6, name


@pytest.mark.parametrize("devices", DEVICES[1:])
def test_sharded_parameters_of_separable_penalties_are_never_gathered(measured, devices):
    moves = re.compile(r"all-gather|all-to-all|collective-permute|reduce-scatter")
    expected = separable() if devices == DEVICES[-1] else {"L1"}
    assert set(measured["programs"][str(devices)]) == set(expected)
    for name, programs in measured["programs"][str(devices)].items():
        for method in ("value", "gradient", "prox"):
            assert not moves.search(programs[method]), f"{name} {method}"
        for method in ("gradient", "prox"):
            assert "all-reduce" not in programs[method], f"{name} {method}"
        reductions = re.findall(r"= (.+) all-reduce(?:-start)?\(", programs["value"])
        assert len(reductions) <= 1, name  # of the sums of both arrays at once
        assert all(set(re.findall(r"\w+\[.*?\]", shapes)) == {"f32[]"} for shapes in reductions), (
            reductions
        )


def test_sharding_changes_no_number(measured):
    assert set(measured["differences"]) == set(separable())
    for name, difference in measured["differences"].items():
        assert difference < 1e-5, name


def train(mesh_of, labels):
    """The trained parameters by number of devices, place of the penalty, and accumulation."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from jax_lrreg import training, transforms
    from jax_lrreg.penalties import L1, L2

    penalty, sgd = L1(0.5).on("a") + L2(0.5).on("b"), optax.sgd(RATE)
    optimizers = {
        "loss": (sgd, penalty),
        "transform": (optax.chain(transforms.add_penalty(penalty), sgd), None),
        "proximal": (transforms.proximal(sgd, penalty, RATE), None),
    }

    def apply(params, x):
        return {name: x @ w for name, w in params.items()}

    def loss_fn(model, batch):
        return sum(jnp.mean(jnp.sum(y**2, axis=1)) / 2 for y in model(batch).values())

    found, x = {}, jnp.float32(data()[0])
    params = dict(zip("ab", map(jnp.float32, start()), strict=True))
    for count, place, accumulation in itertools.product(DEVICES, PLACES, ACCUMULATIONS):
        label = f"{count}-{place}-{accumulation}"
        if label not in labels:
            continue
        tx, term = optimizers[place]
        step = training.make_step(apply, loss_fn, tx, penalty=term, accumulate=accumulation)
        mesh = mesh_of(count)
        state = training.init(apply, tx, key=jax.random.key(0), params=params)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        batch = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        for _ in range(STEPS):
            state, _ = step(state, batch)
        found[label] = {k: np.asarray(w).tolist() for k, w in state.params.items()}
    return found


def proximal_programs(mesh):
    """The compiled update of sharded parameters, and how far it is from that of one device."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from jax_lrreg import penalties, transforms

    rng, found = np.random.default_rng(4), {}
    params, grads = ({"w": jnp.float32(rng.normal(size=(16, 6)))} for _ in range(2))
    for penalty in (penalties.L1(0.5), penalties.Box(-0.5, max=0.5)):
        tx = transforms.proximal(optax.adam(RATE), penalty, RATE)
        alone = (grads, tx.init(params), params)

        def place(leaf):
            spec = PartitionSpec("data") if np.ndim(leaf) else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        program = jax.jit(tx.update).lower(*jax.tree.map(place, alone)).compile()
        near = jnp.abs(
            program(*jax.tree.map(place, alone))[0]["w"] - tx.update(*alone)[0]["w"]
        ).max()
        found[type(penalty).__name__] = program.as_text(), float(near)
    return found


def main(labels):
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    cases = families()
    names = list(cases)
    penalty = cases[names[0]].penalty.on(lambda path, _: path == names[0])
    for name in names[1:]:
        penalty = penalty + cases[name].penalty.on(lambda path, _, name=name: path == name)
    x, params = data()
    x, params = jnp.float32(x), {name: jnp.float32(w) for name, w in params.items()}

    def loss(params, x):
        return sum(jnp.mean(jnp.sum((x @ w) ** 2, axis=1)) / 2 for w in params.values())

    def accumulated(gradient, params, x, accumulation):
        """The mean over micro-batches, each with the penalty in its loss."""

        def add(total, part):
            return jax.tree.map(
                lambda t, g: t + g / accumulation, total, gradient(params, part)
            ), None

        parts = x.reshape(accumulation, -1, x.shape[1])
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)[0]

    def mesh_of(count):
        auto = (jax.sharding.AxisType.Auto,)
        return jax.make_mesh((count,), ("data",), axis_types=auto, devices=jax.devices()[:count])

    gradients = {}
    for count, mode, accumulation in itertools.product(DEVICES, MODES, ACCUMULATIONS):
        label = f"{count}-{mode}-{accumulation}"
        if label not in labels:
            continue
        mesh = mesh_of(count)
        if mode == "jit":

            def run(params, x, accumulation=accumulation):
                gradient = jax.grad(lambda params, x: loss(params, x) + penalty(params))
                return accumulated(gradient, params, x, accumulation)

        else:

            def local(params, x, accumulation=accumulation):
                def total(params, x):  # the penalty is added to what all devices have
                    return jax.lax.pmean(loss(params, x), "data") + penalty(params)

                return accumulated(jax.grad(total), params, x, accumulation)

            specs = (PartitionSpec(), PartitionSpec("data"))
            run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        found = jax.jit(run)(replicated, sharded)
        gradients[label] = {name: np.asarray(g).tolist() for name, g in found.items()}

    programs, differences = {}, {}
    w = jnp.float32(np.random.default_rng(1).random((16, 6)))
    for count, (name, case) in itertools.product(DEVICES[1:], separable().items()):
        if count == DEVICES[-1] or name == "L1":
            place = functools.partial(
                jax.device_put, device=NamedSharding(mesh_of(count), PartitionSpec("data"))
            )

            # Numbers that belong to entries get the parameter's shape, and its sharding.
            big = jax.tree.map(
                lambda leaf, place=place: (
                    place(jnp.tile(jnp.float32(leaf), (8, 2))) if np.ndim(leaf) else leaf
                ),
                case.penalty,
            )
            tree = {"a": place(w), "b": place(2 * w)}
            steps = jax.tree.map(lambda leaf, place=place: place(jnp.abs(leaf) + 0.1), tree)
            made = {
                "value": jax.jit(lambda p, t: p(t)).lower(big, tree).compile(),
                "gradient": jax.jit(lambda p, t: p.gradient(t)).lower(big, tree).compile(),
                "prox": jax.jit(lambda p, t, s: p.prox(t, s)).lower(big, tree, steps).compile(),
            }
            programs.setdefault(str(count), {})[name] = {
                method: program.as_text() for method, program in made.items()
            }
            if count == DEVICES[-1]:
                whole = jax.tree.map(lambda leaf: np.asarray(leaf), (big, tree, steps))
                near = jax.tree.map(
                    jnp.subtract, made["prox"](big, tree, steps), whole[0].prox(*whole[1:])
                )
                relative = abs(made["value"](big, tree) - whole[0](whole[1])) / (
                    1 + abs(whole[0](whole[1]))
                )
                differences[name] = float(
                    max(relative, *(jnp.abs(leaf).max() for leaf in jax.tree.leaves(near)))
                )
    rest = {"trained": train(mesh_of, labels), "proximal": proximal_programs(mesh_of(DEVICES[-1]))}
    print(
        json.dumps(
            {"gradients": gradients, "programs": programs, "differences": differences, **rest}
        )
    )


if __name__ == "__main__":
    main(set(sys.argv[1:]))
