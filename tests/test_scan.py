"""The pure loop makes the steps of `fit`, and transformations go through it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start

from jax_lrreg import averages, penalties, schedules, training, transforms

BATCH = problem()


def data_of(remainder="drop", shuffle=True, batch_size=24):
    key = jax.random.key(7)
    return training.ArrayData(BATCH, batch_size, key, shuffle=shuffle, remainder=remainder)


@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_the_same_traced_and_not(remainder, shuffle):
    data = data_of(remainder, shuffle)
    expected = np.stack([data.indices(step) for step in range(4, 15)])
    np.testing.assert_array_equal(data.order(4, 11), expected)
    np.testing.assert_array_equal(jax.jit(lambda step: data.order(step, 11))(4), expected)


def test_an_epoch_shows_each_example_once_and_no_two_epochs_are_alike():
    data = data_of(batch_size=16)
    epochs = np.asarray(data.order(0, 12)).reshape(3, 64)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(64), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_arrays_that_a_trace_asks_for_first_outlive_it():
    data = data_of()
    state, step = start(optax.sgd(0.1)), training.make_step(apply, loss_fn, optax.sgd(0.1))
    jax.jit(lambda s: training.scan(step, s, data, steps=3))(state)
    training.fit(step, state, data, steps=2)


OPTIMIZERS = {
    "adam": optax.adam(schedules.Cosine(0.1, steps=20).warmup(3)),
    "controlled": optax.chain(
        optax.sgd(0.1), transforms.scale_by_controller(schedules.ReduceOnPlateau(patience=2))
    ),
    "proximal": transforms.proximal(
        optax.adam(0.05), penalties.L1(0.1).on("w"), learning_rate=0.05
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "options", [{"average": averages.EMA(0.9)}, {"accumulate": 2, "on_spike": training.Spike()}]
)
@pytest.mark.sampled(3)
def test_the_steps_are_those_of_fit(name, options):
    tx, data = OPTIMIZERS[name], data_of()
    step = training.make_step(apply, loss_fn, tx, donate=False, **options)
    state, metrics = jax.jit(lambda s: training.scan(step, s, data, steps=17))(start(tx))
    fitted, history = training.fit(step, start(tx), data, steps=17, log_every=1)
    chex.assert_trees_all_close(state.params, fitted.params, rtol=2e-5, atol=1e-6)
    assert int(state.step) == 17
    assert {x.shape for x in metrics.values()} == {(17,)}
    assert set(metrics) == set(history) - {"step", "eval_step", "ended"}
    np.testing.assert_allclose(metrics["loss"], history["loss"], rtol=1e-4, atol=1e-6)


def test_it_goes_on_from_any_step_and_takes_iterables():
    tx, data = optax.adam(0.1), data_of()
    step = training.make_step(apply, loss_fn, tx, donate=False)
    whole, _ = training.scan(step, start(tx), data, steps=9)
    half, _ = training.scan(step, start(tx), data, steps=4)
    rest, _ = training.scan(step, half, data, steps=5)
    chex.assert_trees_all_close(whole.params, rest.params, rtol=1e-5)
    listed, _ = training.scan(step, start(tx), (data(i) for i in range(9)), steps=9)
    chex.assert_trees_all_close(whole.params, listed.params, rtol=1e-5)


@pytest.mark.parametrize("checkpoint", [None, 6, 50])
@pytest.mark.sampled(2)
def test_gradients_go_through_with_and_without_rematerialisation(checkpoint):
    data = data_of()

    def last(strength):
        tx = optax.adam(0.1, eps_root=1e-8)
        step = training.make_step(apply, loss_fn, tx, penalty=penalties.L2(strength))
        state, _ = training.scan(step, start(tx), data, steps=20, checkpoint=checkpoint)
        return loss_fn(lambda x: apply(state.params, x), BATCH)

    slope = jax.jit(jax.grad(last))(0.3)
    forward = jax.jit(jax.jacfwd(last))(0.3)
    near = [jax.jit(last)(0.3 + side) for side in (1e-2, -1e-2)]
    np.testing.assert_allclose(slope, (near[0] - near[1]) / 2e-2, rtol=2e-3)
    np.testing.assert_allclose(slope, forward, rtol=1e-4)


def test_many_runs_at_once_and_each_with_an_order_of_its_own():
    def last(rate, key):
        tx, data = optax.sgd(rate), training.ArrayData(BATCH, 8, key)
        step = training.make_step(apply, loss_fn, tx)
        return training.scan(step, start(tx), data, steps=12)[1]["loss"]

    rates, keys = jnp.array([0.01, 0.1, 0.1]), jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(last))(rates, keys)
    alone = np.stack([last(rate, key) for rate, key in zip(rates, keys, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert not np.allclose(together[1], together[2])


def test_states_of_several_runs_are_refused_with_a_pointer():
    tx, data = optax.sgd(0.1), data_of()
    step = training.make_step(apply, loss_fn, tx)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), start(tx))
    for run in (training.fit, training.scan):
        with pytest.raises(ValueError, match=r"`state`.*sweeps\.run"):
            run(step, many, data, steps=2)
    with pytest.raises(ValueError, match=r"sweeps\.run"):
        step(many, data(0))


@pytest.mark.parametrize(
    ("name", "options"), [("steps", {"steps": 0}), ("checkpoint", {"steps": 2, "checkpoint": 0.5})]
)
def test_bad_arguments_are_refused_by_name(name, options):
    tx = optax.sgd(0.1)
    step = training.make_step(apply, loss_fn, tx)
    with pytest.raises(ValueError, match=f"scan: `{name}`"):
        training.scan(step, start(tx), data_of(), **options)
    with pytest.raises(TypeError, match="scan: `step`"):
        training.scan(lambda *_: _, start(tx), data_of(), steps=2)


KNOWN = {
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "nadamw": optax.nadamw,
    "amsgrad": optax.amsgrad,
    "adabelief": optax.adabelief,
    "rmsprop": lambda rate: optax.rmsprop(rate, momentum=0.9),
    "adagrad": optax.adagrad,
    "partition": lambda rate: optax.partition(
        {"w": optax.adam(rate), "b": optax.sgd(rate)}, {"w": "w", "b": "b"}
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.sampled(3)
def test_a_prox_at_traced_rates_and_strengths_is_that_at_known_ones(name):
    def solve(penalty, batch, rate):
        tx = transforms.proximal(KNOWN[name](rate), penalty.on("w"), learning_rate=rate)
        step = training.make_step(apply, loss_fn, tx)
        data = training.ArrayData(batch, batch_size=64, shuffle=False)
        return training.scan(step, start(tx), data, steps=60)[0].params

    known = solve(penalties.L1(0.3), BATCH, 0.05)
    traced = jax.jit(solve)(penalties.L1(0.3), BATCH, 0.05)
    chex.assert_trees_all_close(known, traced, rtol=1e-4, atol=1e-6)
    strengths = jnp.array([0.3, 100.0])
    many = jax.jit(jax.vmap(solve, in_axes=(0, None, None)))(penalties.L1(strengths), BATCH, 0.05)
    chex.assert_trees_all_close(known, jax.tree.map(lambda x: x[0], many), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(many["w"][1], 0)
