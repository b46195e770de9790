"""The same program on any number of devices: the work divided, the numbers the same."""

import contextlib
import json
import pathlib
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_lrreg import penalties, training, transforms

SCRIPT = pathlib.Path(__file__).parent / "reliability" / "mesh.py"
COUNTS = (1, 2, 4, 8)
TX = optax.adam(0.1)
MESH = jax.sharding.AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def measured():
    started = {
        count: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for count in COUNTS
    }
    found = {}
    for count, process in started.items():
        output, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
        found[count] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("count", COUNTS[1:])
def test_each_device_does_its_part_of_the_work(measured, count):
    alone, many = measured[1]["flops"], measured[count]["flops"]
    for name, flops in many.items():
        pieces = int(name.split()[1]) if name.startswith("accumulate") else 1
        work, optimizer = alone.get(name, alone["list"]), 0
        if pieces > 1:
            # XLA counts the body of a loop once, so that of a micro-batch beside the optimizer,
            # which each device does whole: here every one is counted.
            optimizer = (pieces * work - alone["ArrayData"]) / (pieces - 1)
            flops, work = (pieces * (x - optimizer) + optimizer for x in (flops, work))
        share = flops * count / work
        assert share <= 1.1, (name, share)


REFUSED = {
    "state": "step: `state` must be on the active mesh, {'data': 2, 'model': 1}, got {'data': 2}",
    "evaluated": "make_eval: `state` must be on the active mesh",
    "devices": "scan: `state` must be on the active mesh, of devices [1, 0], got [0, 1]",
    "batch": "step: `batch['x']` must be on the devices of the state, where training.place sends",
    "order": "step: `batch['x']` must be on the devices of the state, where training.place sends "
    "it, or a NumPy array: on [0, 1], got 'one on [1, 0]'",
    "sharding": "init: `sharding` must be on all devices of the active mesh",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_lies_on_other_devices_is_refused_by_name(measured, name):
    assert measured[2]["refused"][name].startswith(REFUSED[name])


def test_data_that_a_mesh_has_seen_are_used_on_others_and_on_one_device(measured):
    assert measured[2]["alone"] == 1


@pytest.mark.parametrize("count", COUNTS)
def test_batches_of_grain_are_cut_too(measured, count):
    found = measured[count]["flops"]
    if "grain" not in found:
        pytest.skip("the extra `parity` is not installed")  # its losses are compared below
    assert found["grain"] == found["list"]


def test_constraints_and_references_cost_no_message_where_groups_stay_whole(measured):
    found = measured[4]["families"]
    assert max(found["differs"].values()) < 1e-5, found["differs"]
    assert len(found["differs"]) == 4
    assert sum(found["plain"]) > 0
    assert all(np.less_equal(found["sent"], found["plain"])), found


@pytest.mark.parametrize("count", COUNTS)
def test_the_losses_are_those_of_one_device(measured, count):
    expected = measured[1]["losses"]["ArrayData"]
    for name, losses in measured[count]["losses"].items():
        np.testing.assert_allclose(losses, expected[-len(losses) :], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(measured[count]["evaluation"], measured[1]["evaluation"], rtol=1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_a_run_compiles_once_and_the_state_stays_where_it_was(measured, count):
    found = measured[count]
    assert all(len(names) <= 1 for names in found["compiled"].values()), found["compiled"]
    assert set(found["devices"]) == {count}
    assert found["kept"]
    assert found["share"] == [1 / count] * 2


def apply(params, x):
    return x @ params["kernel"] + params["bias"][None]


def loss_fn(model, batch):
    return jnp.mean(model(batch["x"]) ** 2)


PARAMS = {"kernel": np.ones((8, 6), np.float32), "bias": np.zeros(6, np.float32)}
SHAPES = jax.eval_shape(
    lambda: training.make_step(apply, loss_fn, TX, ema=0.9).complete(
        training.init(apply, TX, key=jax.random.key(0), params=PARAMS)
    )
)


def specs(rule, state=SHAPES, mesh=MESH):
    found = training.shardings(state, mesh, rule)
    return jax.tree.map(lambda x: tuple(x.spec), found)


def test_what_follows_a_parameter_lies_as_it_does():
    found = specs({"kernel": P("data", "model"), "**": P("model")})
    assert found.params == {"bias": ("model",), "kernel": ("data", "model")}
    assert found.opt_state[0].mu == found.opt_state[0].nu == found.params
    assert found.opt_state[0].count == found.step == found.key == ()
    followers = jax.tree.leaves(found.average, is_leaf=lambda x: isinstance(x, tuple) and not x)
    assert set(followers) >= {"data", "model"}


def test_a_factor_loses_the_axis_it_was_summed_over():
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    make = lambda: training.init(apply, tx, key=jax.random.key(0), params=PARAMS)  # noqa: E731
    found = training.shardings(jax.eval_shape(make), MESH, {"kernel": P("data", "model")})
    assert {P("data"), P("model")} <= {x.spec for x in jax.tree.leaves(found.opt_state)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"least": 49}, ()),
        ({"least": 48}, ("data",)),
        ({"least": 0, "keep_groups": penalties.GroupLasso(1.0, axis=0).on("kernel")}, ()),
        ({"least": 0, "keep_groups": penalties.GroupLasso(1.0, axis=1)}, ("data",)),
        ({"least": 0, "keep_groups": penalties.L1(1.0) + penalties.NuclearNorm(1.0)}, ()),
    ],
)
def test_fsdp_cuts_the_longest_axis_that_divides_and_may(options, expected):
    leaf = jax.ShapeDtypeStruct((8, 6), np.float32)
    assert tuple(training.fsdp("data", **options)("kernel", leaf, MESH)) == expected


def mesh_of(kind=AxisType.Auto, names=("data",)):
    return jax.make_mesh((1,) * len(names), names, axis_types=(kind,) * len(names))


def on(mesh, *names):
    return NamedSharding(mesh, P(*names))


EXPLICIT = (
    r"(?s)`mesh` must have Auto.*make_mesh\(\(1,\), .*AxisType.Auto,\) \* 1\).*set_mesh\(mesh\)"
)
WRONG = {
    "a rule without a mesh": (training.fsdp("data"), None, "without an active mesh"),
    "an axis that is not there": (training.fsdp("date"), mesh_of(), "did you mean 'data'"),
    "a spec of another axis": ({"**": P("model")}, mesh_of(), "(?s)sharding of bias.*model"),
    "an axis twice": ({"kernel": P("data", "data")}, mesh_of(), "names an axis once"),
    "another mesh": (
        on(mesh_of()),
        mesh_of(names=("x",)),
        "on the active mesh, {'x': 1}",
    ),
    "a spec that is too long": ({"**": P(None, "data")}, mesh_of(), "at most 1 entries"),
    "a dead pattern": ({"kernels": P()}, mesh_of(), "pattern 'kernels' matches no parameter"),
    "no spec": ({"**": "data"}, mesh_of(), "must be a PartitionSpec"),
    "another function": (lambda state: state, mesh_of(), "a rule"),
    "explicit axes": (None, mesh_of(AxisType.Explicit), EXPLICIT),
    "a sharding on explicit axes": (on(mesh_of(AxisType.Explicit)), None, EXPLICIT),
    "a sharding that cuts": (on(mesh_of(), "data"), None, "of a whole array.*got P\\('data',\\)"),
}


@pytest.mark.parametrize("why", WRONG)
def test_what_cannot_be_placed_is_refused_by_name(why):
    rule, mesh, message = WRONG[why]
    with (
        contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh),
        pytest.raises((TypeError, ValueError), match=message),
    ):
        training.init(apply, TX, key=jax.random.key(0), params=PARAMS, sharding=rule)


def test_a_state_of_another_mesh_is_refused_and_so_is_what_is_no_mesh():
    step, data = training.make_step(apply, loss_fn, TX), [{"x": np.ones((4, 8), np.float32)}]
    where = on(mesh_of(names=("x", "y")))
    state = training.init(apply, TX, key=jax.random.key(0), params=PARAMS, sharding=where)
    message = r"fit: `state` must be on the active mesh, {'data': 1}, got {'x': 1, 'y': 1}"
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError, match=message):
        training.fit(step, state, data, steps=1)
    with pytest.raises(TypeError, match=r"place: `mesh` must be a .*, got None"):
        training.place(data[0], None)
    odd = {"x": np.ones((4, 8)), "y": np.ones(2)}
    with pytest.raises(ValueError, match=r"place: `batch` must be .* equally many examples"):
        training.place(odd, mesh_of())
    with pytest.raises(TypeError, match=r"place: `batch` must be .* outside `jit`"):
        jax.eval_shape(lambda batch: training.place(batch, mesh_of()), data[0])
    with pytest.raises(ValueError, match="shardings: `rule`: pattern 'w' matches no parameter"):
        training.shardings(SHAPES, MESH, {"w": P()})
    with pytest.raises(TypeError, match="`state` must be a State"):
        training.shardings(PARAMS, MESH, None)


NO_AXIS = [mesh_of(AxisType.Explicit), mesh_of(AxisType.Manual), mesh_of(names=())]


@pytest.mark.parametrize("mesh", NO_AXIS, ids=str)
def test_a_mesh_without_an_axis_for_batches_is_refused(mesh):
    with pytest.raises(ValueError, match="place: `mesh` must"):
        training.place({"x": np.ones((4, 8), np.float32)}, mesh)


def test_explicit_axes_are_refused_wherever_a_batch_is_cut():
    step, batch = training.make_step(apply, loss_fn, TX), {"x": np.ones((4, 8), np.float32)}
    state = training.init(apply, TX, key=jax.random.key(0), params=PARAMS)
    several = (
        training.fit,
        training.scan,
        lambda *args, steps: next(training.steps(*args, steps=steps)),
    )
    uses = [step, step.lower, *(partial(use, step, steps=1) for use in several)]
    for use in uses:
        given = [batch] if isinstance(use, partial) else batch
        with jax.set_mesh(mesh_of(AxisType.Explicit)), pytest.raises(ValueError, match=EXPLICIT):
            use(state, given)


def test_a_batch_that_does_not_divide_is_refused_before_compiling():
    four = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    step = training.make_step(apply, loss_fn, TX, accumulate=2)
    state = jax.eval_shape(lambda: training.init(apply, TX, key=jax.random.key(0), params=PARAMS))
    batch = {"x": jax.ShapeDtypeStruct((12, 8), np.float32)}
    message = "'x'.* a multiple of 4 examples, the mesh's axis 'data', times `accumulate`=2, got 12"
    with jax.sharding.use_abstract_mesh(four), pytest.raises(ValueError, match=message):
        jax.eval_shape(step.body, state, batch)


def test_a_sharding_brings_its_mesh_and_one_device_is_a_mesh_too():
    where = NamedSharding(mesh_of(), P())
    state = training.init(apply, TX, key=jax.random.key(0), params=PARAMS, sharding=where)
    step = training.make_step(apply, loss_fn, TX)
    data = [{"x": np.ones((4, 8), np.float32)}] * 3
    state, history = training.fit(step, state, data, steps=3, log_every=1)
    assert state.params["kernel"].sharding == where
    assert history["loss"][-1] < history["loss"][0]
    assert not state.copy().params["kernel"].is_deleted()


def test_a_reference_that_is_data_of_the_state_lies_as_its_parameter():
    near = lambda point: transforms.proximal(  # noqa: E731
        TX, penalties.L2SP(0.5, reference=point), learning_rate=0.1
    )
    step, found = training.make_step(apply, loss_fn, near), []
    for context in (contextlib.nullcontext, lambda: jax.set_mesh(mesh_of())):
        with context():
            options = {"params": PARAMS, "hyper": PARAMS}
            if found:
                options["sharding"] = {"kernel": P("data")}
            state = training.init(apply, near, key=jax.random.key(0), **options)
            state, _ = step(state, {"x": np.ones((4, 8), np.float32)})
            found.append(state)
    assert found[1].hyper["kernel"].sharding.spec == P("data", None)
    chex.assert_trees_all_close(found[0].params, found[1].params, rtol=1e-6)


def test_a_run_goes_on_over_another_mesh_and_without_one(tmp_path):
    """Adam asks by `jnp.where` whether its count is full: the mesh is part of that program."""
    step = training.make_step(lambda w, x: x @ w, lambda model, x: jnp.mean(model(x) ** 2), TX)

    def run(steps):
        state = training.init(lambda w, x: x @ w, TX, key=jax.random.key(0), params=jnp.ones(2))
        data = training.ArrayData(np.eye(2, dtype=np.float32), 2, shuffle=False)
        return training.fit(step, state, data, until=steps, checkpoint=tmp_path)[1]["step"]

    for steps, axes in enumerate([("data",), ("data", "model")], 1):
        kinds = (AxisType.Auto,) * len(axes)
        with jax.set_mesh(jax.make_mesh((1,) * len(axes), axes, axis_types=kinds)):
            assert run(steps)[-1] == steps
    assert run(3).tolist() == [1, 2, 3]
