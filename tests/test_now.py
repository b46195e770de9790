"""A `loss_fn` of three arguments: the number of the update, and a key of it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from models import apply, loss_fn, problem, start

from jax_lrreg import finder, schedules, training

TX = optax.sgd(0.01)
DATA = training.ArrayData(problem(), batch_size=16, key=jax.random.key(1))
SMOOTHING = schedules.Linear(1.0, steps=20)


def timed(model, batch, now):
    """A loss whose size is a schedule of the step."""
    drawn = jax.random.uniform(now.key)
    loss = loss_fn(model, batch) * (1 + SMOOTHING(now.step))
    return loss, {"seen": now.step, "drawn": drawn}


def scaled(model, batch):
    return batch["factor"] * loss_fn(model, batch)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_sees_what_the_schedules_see(chunk, accumulate):
    step = training.make_step(apply, timed, TX, accumulate=accumulate)
    state, history = training.fit(step, start(TX), DATA, steps=30, chunk=chunk, log_every=1)
    assert history["seen"].tolist() == list(range(30))
    assert len(set(history["drawn"].tolist())) == 30
    by_hand, one = start(TX), training.make_step(apply, scaled, TX, accumulate=accumulate)
    for index in range(30):
        by_hand, _ = one(by_hand, {**DATA(index), "factor": 1 + SMOOTHING(index)})
    chex.assert_trees_all_close(state.params, by_hand.params, rtol=1e-5)


def test_the_step_is_the_optimizers_own_count():
    tx = optax.chain(optax.sgd(schedules.Constant(0.01)))
    step = training.make_step(apply, timed, tx)
    state, bad = start(tx), jax.tree.map(lambda x: x * np.nan, DATA(0))
    seen = []
    for batch in (DATA(0), bad, DATA(1), DATA(2)):
        state, metrics = step(state, batch)
        seen.append(int(metrics["seen"]))
    assert seen == [0, 1, 1, 2]  # an update that was skipped is none
    assert int(state.step) == 4


def test_micro_batches_have_keys_of_their_own():
    def loss(model, batch, now):
        return loss_fn(model, batch), {"drawn": jax.random.uniform(now.key)}

    drawn = [
        float(training.make_step(apply, loss, TX, accumulate=k)(start(TX), DATA(0))[1]["drawn"])
        for k in (1, 2, 4)
    ]
    assert len(set(drawn)) == 3


def test_one_trace_serves_all_steps():
    traces = []

    def loss(model, batch, now):
        traces.append(1)
        return timed(model, batch, now)

    step, state = training.make_step(apply, loss, TX), start(TX)
    for index in range(5):
        state, _ = step(state, DATA(index))
    assert len(traces) == 1


class Linen(linen.Module):
    """With a stream of its own."""

    @linen.compact
    def __call__(self, x):
        noise = jax.random.normal(self.make_rng("noise"), x.shape)
        return linen.Dense(1)(x + noise)[:, 0]


class Nnx(nnx.Module):
    """A line."""

    def __init__(self):
        self.dense = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dense(x)[:, 0]


@pytest.mark.parametrize("module", [Linen(), Nnx()], ids=["linen", "nnx"])
def test_every_kind_of_module(module):
    state = training.init(module, TX, key=jax.random.key(0), example=DATA(0)["x"])
    step = training.make_step(module, timed, TX)
    for index in range(3):
        state, metrics = step(state, DATA(index))
        assert int(metrics["seen"]) == index


def test_a_partial_and_a_default_are_no_third_argument():
    def with_default(model, batch, weight=2.0):
        return weight * loss_fn(model, batch)

    def with_keyword(model, batch, *, weight):
        return weight * loss_fn(model, batch)

    def any_number(*arguments):
        assert len(arguments) == 2
        return 2.0 * loss_fn(*arguments)

    losses = [
        training.make_step(apply, loss, TX)(start(TX), DATA(0))[1]["loss"]
        for loss in (with_default, functools.partial(with_keyword, weight=2.0), any_number)
    ]
    assert len(set(map(float, losses))) == 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda model: 0.0,
        lambda model, batch, now, more: 0.0,
        lambda model, batch, *, weight: 0.0,
    ],
    ids=["one", "four", "a keyword"],
)
def test_another_number_of_arguments_is_refused_when_the_step_is_made(loss):
    with pytest.raises(TypeError, match=r"`loss_fn` must be a function of \(model, batch\) or"):
        training.make_step(apply, loss, TX)


def test_the_finder_and_a_line_search_take_it_too():
    state = start(optax.identity())
    found = finder.range_test(apply, timed, optax.identity(), state, DATA, high=1e2, steps=30)
    assert len(found.losses) > 5
    tx = optax.lbfgs()
    state, metrics = training.make_step(apply, timed, tx)(start(tx), DATA(0))
    assert jnp.isfinite(metrics["loss"])
