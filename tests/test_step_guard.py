"""Numbers that are not finite, put in at random; input that is refused, the state intact."""

import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import environment_of, two_layers, two_layers_params

from jax_lrreg import penalties, schedules, training, transforms

STEPS = 60
PLACES = ("loss", "gradient", "micro-batch", "metric")
TIMES = 25  # for each place: a hundred in all


@jax.custom_vjp
def spoiled(x, bad):
    """The identity, whose gradient is `bad` in one entry unless that is 0."""
    return x


def _backward(bad, gradient):
    flat = gradient.ravel()
    return flat.at[0].set(jnp.where(bad == 0, flat[0], bad)).reshape(gradient.shape), jnp.zeros(())


spoiled.defvjp(lambda x, bad: (x, bad), _backward)


def loss_fn(model, batch):
    """A loss into which `batch["loss"]`, `["gradient"]` and `["metric"]` put what they hold."""
    errors = (model(batch["x"]) - batch["y"]) ** 2
    loss = jnp.mean(errors) + jnp.sum(batch["loss"])
    return loss, {"error": jnp.sqrt(jnp.mean(errors)) + jnp.sum(batch["metric"])}


class Spoiled:
    """The model with one leaf whose gradient can be spoiled."""

    def __call__(self, params, x, bad):
        return two_layers({**params, "first": spoiled(params["first"], bad)}, x)


def spoiled_loss(model, batch):
    return loss_fn(lambda x: model(x, jnp.sum(batch["gradient"])), batch)


def batches(seed, place=None, bad_steps=(), value=np.nan):
    rng, data = np.random.default_rng(0), np.random.default_rng(100 + seed)
    slope = rng.normal(size=4).astype(np.float32)
    for index in range(STEPS):
        x = data.normal(size=(16, 4)).astype(np.float32)
        batch = {
            "x": x,
            "y": np.tanh(x @ slope),
            **{name: np.zeros(16, np.float32) for name in PLACES[:2]},
        }
        batch["metric"] = np.zeros(16, np.float32)
        one = data.integers(16)  # it stands in one of the micro-batches only
        if index in bad_steps:
            name = "loss" if place == "micro-batch" else place
            batch[name] = batch[name].copy()
            batch[name][one] = value
        yield batch


def optimizer():
    plateau = transforms.scale_by_controller(schedules.ReduceOnPlateau(0.5, patience=8))
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(schedules.Cosine(0.03, steps=STEPS)), plateau
    )


def start(tx, seed=0):
    key, params = jax.random.key(seed), two_layers_params(seed)
    return training.init(Spoiled(), tx, key=key, params=params)


STEP = {}


def step_for(accumulate):
    if accumulate not in STEP:
        tx = optimizer()
        STEP[accumulate] = (
            tx,
            training.make_step(
                Spoiled(),
                spoiled_loss,
                tx,
                penalty=penalties.L2(1e-4),
                learning_rate=schedules.Cosine(0.03, steps=STEPS),
                accumulate=accumulate,
                ema=0.9,
            ),
        )
    return STEP[accumulate]


def values(state):
    """All that must stand still when an update is skipped."""
    return jax.device_get((state.params, state.opt_state, state.model_state, state.average))


def run(place, seed, bad_steps, value):
    accumulate = 4 if place == "micro-batch" else 1
    tx, step = step_for(accumulate)
    state, losses, skipped = step.complete(start(tx, seed)), [], []
    for index, batch in enumerate(batches(seed, place, bad_steps, value)):
        before = values(state) if index in bad_steps else None
        state, metrics = step(state, batch)
        skipped.append(int(metrics["skipped"]))
        losses.append(float(metrics["data_loss"]))
        if before is not None and place != "metric":
            chex.assert_trees_all_equal(before, values(state))
        assert int(state.step) == index + 1
    return state, np.array(losses), np.array(skipped)


@pytest.mark.parametrize("time", range(TIMES))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.sampled(25)
def test_a_number_that_is_not_finite_is_skipped_counted_and_recovered_from(place, time):
    rng = np.random.default_rng([PLACES.index(place), time])
    bad_steps = set(rng.choice(STEPS - 5, size=rng.integers(1, 6), replace=False).tolist())
    value = np.float32(rng.choice([np.nan, np.inf, -np.inf]))
    state, losses, skipped = run(place, time, bad_steps, value)
    clean, expected, none = run(place, time, (), 0.0)  # on the same data
    assert none.sum() == 0
    if place == "metric":  # what is only reported has no part in the update
        chex.assert_trees_all_equal(values(state), values(clean))
        assert skipped.sum() == 0
        return
    np.testing.assert_array_equal(np.flatnonzero(skipped), sorted(bad_steps))
    assert int(state.opt_state[1][0].count) == STEPS - len(bad_steps)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(state)))
    first, last, clean_last = expected[:5].mean(), losses[-5:].mean(), expected[-5:].mean()
    assert clean_last < 0.5 * first
    assert last - clean_last < 0.1 * (first - clean_last)


def test_a_spoiled_metric_is_seen_in_the_history_of_its_interval_only():
    tx, step = step_for(1)
    data = list(batches(0, "metric", {25}, np.nan))
    _, history = training.fit(step, start(tx), data, steps=STEPS, log_every=20)
    np.testing.assert_array_equal(np.isnan(history["error"]), [False, True, False])
    assert np.isfinite(history["loss"]).all()


def test_a_micro_batch_without_weight_does_not_count_even_if_it_is_not_a_number():
    def masked(model, batch):
        return jnp.sum((model(batch["x"]) - batch["y"]) ** 2 * batch["mask"]) / jnp.sum(
            batch["mask"]
        )

    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(8, 4)),
        "y": rng.normal(size=8),
        "mask": np.array([1.0] * 4 + [0.0] * 4),
    }
    batch = jax.tree.map(np.float32, batch)
    params = {"first": np.ones((4, 2), np.float32), "last": np.ones(2, np.float32)}
    tx, results = optax.sgd(0.1), []
    for accumulate in (1, 2, 4):
        state = training.init(two_layers, tx, key=jax.random.key(0), params=params)
        state, metrics = training.make_step(two_layers, masked, tx, accumulate=accumulate)(
            state, batch
        )
        assert metrics["skipped"] == 0
        results.append(state.params["first"])
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=1e-5)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=False)(x))[:, 0]


class NnxNormed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm, self.last = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(x))[:, 0]


def square(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def data(large=None):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    if large is not None:
        x[0] = large
    return {"x": x, "y": np.ones(8, np.float32)}


def nan_at_3(count):
    return jnp.where(count == 3, jnp.nan, 0.1)


# What poisons an update whose loss and gradient are finite: an optimizer, and hyperparameters.
POISONS = {
    "a rate that is NaN in hyper": (lambda h: optax.sgd(h), np.nan),
    "a rate that is infinite in hyper": (lambda h: optax.adam(h), np.inf),
    "a rate that overflows": (lambda h: optax.sgd(h), 3e38),
    "a rate that overflows with momentum": (lambda h: optax.sgd(h, 0.9), 3e38),
    "a decay that is NaN": (lambda h: optax.adamw(0.1, weight_decay=h), np.nan),
    "a coupled decay that is NaN": (
        lambda h: optax.chain(optax.add_decayed_weights(h), optax.adam(0.1)),
        np.nan,
    ),
    "moments that decay by NaN": (lambda h: optax.adam(0.1, b1=h), np.nan),
}


@pytest.fixture(params=["branches", "selection"])
def guard(request, monkeypatch):
    """Both ways of guarding: that of the CPU, and that of all other devices."""
    if request.param == "selection":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())


@pytest.mark.usefixtures("guard")
class TestWhatAnUpdateWouldLeaveBehind:
    @pytest.mark.parametrize("name", POISONS)
    @pytest.mark.sampled(4)
    def test_a_poison_in_the_optimizer_is_skipped_whole_and_recovered_from(self, name):
        tx, poison = POISONS[name]
        params = {"first": np.ones((4, 8), np.float32), "last": np.zeros(8, np.float32)}
        healthy, batch = 1e-3, {**data(), "y": np.full(8, 100, np.float32)}  # a steep slope
        state = training.init(two_layers, tx, key=jax.random.key(0), params=params, hyper=healthy)
        step = training.make_step(two_layers, square, tx, ema=0.9)
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        before = values(state)
        state, metrics = step(state.replace(hyper=poison), batch)
        assert metrics["skipped"] == 1
        assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
        chex.assert_trees_all_equal(before, values(state))
        state, metrics = step(state.replace(hyper=healthy), batch)
        assert metrics["skipped"] == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(state)))

    @pytest.mark.parametrize(
        ("tx", "dtype", "slope"),
        [
            (optax.adam(1e-3), jnp.float16, 1e4),
            (optax.rmsprop(1e-3), jnp.float16, 1e4),
            (optax.amsgrad(1e-3), jnp.float16, 1e4),
            (optax.adagrad(1e-3), jnp.float32, 1.7e19),
            (optax.partition({"all": optax.adagrad(1e-3)}, "all"), jnp.float16, 1e4),
        ],
    )
    @pytest.mark.sampled(3)
    def test_squares_that_overflow_in_the_optimizer_are_skipped_too(self, tx, dtype, slope):
        # Such an update is 0, and so would be all that follow.
        line = lambda params, x: params * x  # noqa: E731
        state = training.init(line, tx, key=jax.random.key(0), params=jnp.ones((1, 1), dtype))
        step = training.make_step(line, lambda model, x: jnp.sum(model(x)), tx, ema=0.9)
        steps, skipped = [slope] * 3 + [1e-2], []
        for each in steps:
            state, metrics = step(state, np.full((1, 1), each, dtype))
            skipped.append(int(metrics["skipped"]))
            assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(values(state)))
        assert sum(skipped) > 0
        assert skipped[-1] == 0

    @pytest.mark.parametrize("tx", [optax.sgd(nan_at_3), optax.adam(nan_at_3)], ids=["sgd", "adam"])
    @pytest.mark.parametrize("told", [True, False])
    @pytest.mark.sampled(3)
    def test_a_schedule_that_is_nan_once_costs_one_update(self, tx, told):
        start = two_layers_params()
        state = training.init(two_layers, tx, key=jax.random.key(0), params=start)
        rate = {"learning_rate": nan_at_3} if told else {}
        step, skipped = training.make_step(two_layers, square, tx, **rate), []
        for _ in range(6):
            state, metrics = step(state, data())
            skipped.append(int(metrics["skipped"]))
        assert skipped == [0, 0, 0, 1, 0, 0]
        counts = [int(x.count) for x in state.opt_state if "count" in x._fields]
        assert counts == [[6], [5, 6]][len(counts) - 1]  # Adam's moments hold five gradients

    @pytest.mark.parametrize("module", [Normed(), NnxNormed()], ids=["linen", "nnx"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    @pytest.mark.sampled(3)
    def test_a_batch_statistic_that_overflows_leaves_everything_as_it_was(self, module, accumulate):
        tx = optax.adam(schedules.Constant(0.1))
        state = training.init(module, tx, key=jax.random.key(0), example=data()["x"])
        step = training.make_step(module, square, tx, ema=0.9, accumulate=accumulate)
        state, _ = step(state, data())
        before = values(state)
        state, metrics = step(state, data(large=3e19))
        assert metrics["skipped"] == 1
        assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
        chex.assert_trees_all_equal(before, values(state))
        _, metrics = step(state, data())
        assert metrics["skipped"] == 0

    def test_what_was_not_finite_before_does_not_block(self):
        state = training.init(Normed(), SGD, key=jax.random.key(0), example=data()["x"])
        endless = jax.tree.map(lambda x: x.at[1].set(-jnp.inf), state.model_state)
        step = training.make_step(Normed(), square, SGD)
        state, metrics = step(state.replace(model_state=endless), data())
        assert metrics["skipped"] == 0
        _, metrics = step(state, data(large=3e19))
        assert metrics["skipped"] == 1

    def test_numbers_too_large_to_be_added_up_are_finite(self):
        params = {"first": np.full((4, 8), 3e38, np.float32), "last": np.ones(8, np.float32)}
        tx = optax.sgd(0.0)
        state = training.init(two_layers, tx, key=jax.random.key(0), params=params)
        _, metrics = training.make_step(two_layers, square, tx)(state, data())
        assert metrics["skipped"] == 0


SGD = optax.sgd(0.1)


def test_padding_of_weight_0_leaves_the_statistics_alone():
    def masked(model, batch):
        errors = jnp.where(batch["mask"] > 0, (model(batch["x"]) - batch["y"]) ** 2, 0.0)
        return jnp.sum(errors) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    batch = data()
    batch = {name: np.concatenate([x, np.full_like(x, np.nan)]) for name, x in batch.items()}
    batch["mask"] = np.repeat(np.float32([1, 0]), 8)
    step = training.make_step(Normed(), masked, SGD, accumulate=2)
    found = []
    for given in (batch, {**batch, "x": np.nan_to_num(batch["x"])}):
        state = training.init(Normed(), SGD, key=jax.random.key(0), example=data()["x"])
        state, metrics = step(state, given)
        assert metrics["skipped"] == 0
        found.append(state)
    alone = training.make_step(Normed(), square, SGD)(
        training.init(Normed(), SGD, key=jax.random.key(0), example=data()["x"]), data()
    )[0]
    for state in found:
        chex.assert_trees_all_close(state.model_state, alone.model_state, rtol=1e-6)


MESH = r"""
import re, jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jax_lrreg import training
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
def model(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]
def loss(m, b):
    return jnp.mean((m(b["x"]) - b["y"]) ** 2)
x = np.ones((16, 8), np.float32)
batch = jax.device_put({"x": x, "y": x[:, 0]}, NamedSharding(mesh, P("data")))
params = {"a": jnp.ones((8, 16)), "b": jnp.ones(16)}
for cut in (P(), P("data")):
    with jax.set_mesh(mesh):
        state = training.init(model, optax.adam(0.1), key=jax.random.key(0), params=params,
                              sharding={"**": cut})
    for choice in ("keep", "skip"):
        step = training.make_step(model, loss, optax.adam(0.1), on_nonfinite=choice)
        text = step.body.lower(state, batch).compile().as_text()
        reduced = " ".join(re.findall(r"= (.*?) all-(?:reduce|gather)\(", text))
        arrays = re.findall(r"f32\[[0-9,]+\]", reduced)
        print("is-finite" in text, len(arrays), len(re.findall(r"\[\]", reduced)))
"""


def test_keep_looks_at_nothing_and_skip_sends_no_array_over_a_mesh():
    command = [sys.executable, "-c", MESH]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(8))
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 4, done.stderr[-2000:]
    (looks, arrays, numbers), skip, (_, more, _), cut = rows
    assert looks == "False"
    assert int(arrays) == 2  # the gradients are counted
    assert skip == ["True", arrays, numbers]  # where each device holds all parameters, nothing
    assert cut[1] == more  # where it holds its share, no array; numbers are, one for each of them


def linear(params, x):
    return x @ params


GOOD = np.ones((6, 3), np.float32)
WRONG = {
    "a batch that does not divide": (
        ValueError,
        "`accumulate`=4 must divide the batch, got 6",
        {"accumulate": 4},
        0.0,
    ),
    "a batch without examples": (
        ValueError,
        "`accumulate`=2 must divide the batch, got 0",
        {"accumulate": 2},
        0.0,
    ),
    "a loss for each example": (ValueError, "`loss_fn` must be .* a real scalar", {}, lambda y: y),
    "a whole loss": (ValueError, "`loss_fn` must be .* a real scalar", {}, lambda y: jnp.int32(1)),
    "a complex loss": (
        ValueError,
        "`loss_fn` must be .* a real scalar",
        {},
        lambda y: 1j * y.sum(),
    ),
    "no loss": (TypeError, "`loss_fn` must be .* a real scalar", {}, lambda y: None),
    "a dict as loss": (
        TypeError,
        "`loss_fn` must be .* a real scalar",
        {},
        lambda y: {"loss": y.sum()},
    ),
    "metrics in a list": (
        ValueError,
        r"must be \(loss, \{name: scalar\}\)",
        {},
        lambda y: (y.sum(), [1.0]),
    ),
    "a text": (
        TypeError,
        "metric 'm' of `loss_fn` must be an array",
        {},
        lambda y: (y.sum(), {"m": "text"}),
    ),
    "nothing": (
        TypeError,
        "metric 'm' of `loss_fn` must be an array",
        {},
        lambda y: (y.sum(), {"m": None}),
    ),
    "a function": (
        TypeError,
        "metric 'm' of `loss_fn` must be an array",
        {},
        lambda y: (y.sum(), {"m": sum}),
    ),
    "a vector": (ValueError, "`loss_fn: m` must be a scalar", {}, lambda y: (y.sum(), {"m": y})),
    "a complex metric": (
        ValueError,
        "`loss_fn: m` must be a scalar",
        {},
        lambda y: (y.sum(), {"m": 1j * y[0]}),
    ),
    "a name of ours": (ValueError, "other names", {}, lambda y: (y.sum(), {"loss_scale": y[0]})),
    "a name of a monitor": (
        ValueError,
        "other names",
        {},
        lambda y: (y.sum(), {"sparsity/w": y[0]}),
    ),
    "a name that is a number": (ValueError, "other names", {}, lambda y: (y.sum(), {3: y[0]})),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_at_the_first_step_with_the_state_intact(name):
    error, words, options, output = WRONG[name]
    batch = {"x": np.float32(1) if name == "a batch without examples" else GOOD}
    tx = optax.adam(0.1)
    state = training.init(linear, tx, key=jax.random.key(0), params=np.ones(3, np.float32))
    before = values(state)

    def loss(model, batch):
        y = model(batch["x"])
        return output(y) if callable(output) else y.mean()

    step = training.make_step(linear, loss, tx, **options)
    with pytest.raises(error, match=words):
        step(state, batch)
    with pytest.raises(error, match=words):
        training.fit(step, state, [batch] * 3, steps=3)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    chex.assert_trees_all_equal(before, values(state))
    good = training.make_step(linear, lambda model, batch: model(batch["x"]).mean(), tx)
    good(state, {"x": GOOD})
