"""A batch that grows during a run, and the noise scale that says how far it should."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, masked_loss, problem, start

from jax_lrreg import schedules, training

STEPS, MOST, MICRO = 30, 4, 8
GROWING = schedules.PiecewiseConstant(1, boundaries=(10, 20), values=(2, MOST))
DATA = training.ArrayData(problem(n=256), batch_size=MOST * MICRO, key=jax.random.key(1))


def count_at(step):
    return int(GROWING(step))


def used(step):
    """The examples of an update, as a batch of their own."""
    return jax.tree.map(lambda x: x[: count_at(step) * MICRO], DATA(step))


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.sampled(2)
def test_a_growing_batch_is_that_many_micro_batches(chunk):
    tx = optax.adam(schedules.Cosine(0.02, steps=STEPS))
    step = training.make_step(apply, loss_fn, tx, accumulate=GROWING)
    options = {"steps": STEPS, "chunk": chunk, "log_every": 1}
    state, history = training.fit(step, start(tx), DATA, **options)
    assert history["examples"].tolist() == [MICRO * count_at(i) for i in range(STEPS)]
    by_hand, losses = start(tx), []
    for index in range(STEPS):
        one = training.make_step(apply, loss_fn, tx, accumulate=count_at(index))
        by_hand, metrics = one(by_hand, used(index))
        losses.append(float(metrics["loss"]))
    chex.assert_trees_all_close(state.params, by_hand.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_it_is_what_multi_steps_does_with_a_function_of_the_updates():
    inner = optax.adam(schedules.Cosine(0.02, steps=STEPS))
    tx = optax.MultiSteps(inner, lambda update: jnp.round(GROWING(update)).astype(jnp.int32))
    params, state = start(optax.identity()).params, None
    state = tx.init(params)
    gradient = jax.jit(jax.grad(lambda p, batch: loss_fn(lambda x: apply(p, x), batch)))
    update = jax.jit(tx.update)
    for index in range(STEPS):
        for micro in range(count_at(index)):
            at = slice(micro * MICRO, (micro + 1) * MICRO)
            grads = gradient(params, jax.tree.map(lambda x, at=at: x[at], DATA(index)))
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
    step = training.make_step(apply, loss_fn, inner, accumulate=GROWING)
    ours, _ = training.fit(step, start(inner), DATA, steps=STEPS)
    chex.assert_trees_all_close(ours.params, params, rtol=1e-5, atol=1e-6)


def test_one_program_serves_every_number_and_masks_weigh():
    traces = []

    def loss(model, batch):
        traces.append(1)
        return masked_loss(model, batch)

    tx = optax.sgd(0.01)
    step = training.make_step(apply, loss, tx, accumulate=GROWING)
    state = start(tx)
    mask = np.ones(MOST * MICRO, np.float32)
    mask[: MICRO // 2] = 0
    for index in range(STEPS):
        state, metrics = step(state, {**DATA(index), "mask": mask})
        assert metrics["examples"] == MICRO * count_at(index) - MICRO // 2
    # Twice for a call of the step: for the shapes, and in the loop.
    assert len(traces) <= 2


def test_a_rate_in_units_of_examples_goes_on_being_right():
    seen = schedules.PiecewiseLinear(
        0.0, boundaries=(10, 20, 30), values=(10 * MICRO, 30 * MICRO, 70 * MICRO)
    )
    in_examples = schedules.Cosine(0.02, steps=70 * MICRO)
    lr = schedules.Function(lambda step: in_examples(seen(step)))
    tx = optax.sgd(lr)
    step = training.make_step(apply, loss_fn, tx, accumulate=GROWING, learning_rate=lr)
    _, history = training.fit(step, start(tx), DATA, steps=STEPS, log_every=1)
    before = np.concatenate([[0], np.cumsum(history["examples"])[:-1]])
    expected = 0.01 * (1 + np.cos(np.pi * before / (70 * MICRO)))
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [
        (schedules.Linear(1, steps=10, end_value=4), "whole numbers >= 1.*which is 1.3"),
        (schedules.PiecewiseConstant(0, boundaries=(10,), values=(2,)), "which is 0 at one step"),
        (schedules.InverseSqrt(4, timescale=10), "a schedule that ends"),
        (2.0, "a whole number >= 1, or a schedule.*got 2.0"),
        (lambda step: 2, "a whole number >= 1, or a schedule"),
    ],
)
def test_what_is_no_number_of_micro_batches_is_refused(accumulate, message):
    with pytest.raises(ValueError, match=f"make_step: `accumulate` must be .*{message}"):
        training.make_step(apply, loss_fn, optax.sgd(0.1), accumulate=accumulate)


def test_a_batch_that_cannot_be_split_into_the_most_is_refused():
    step = training.make_step(apply, loss_fn, optax.sgd(0.1), accumulate=GROWING)
    with pytest.raises(ValueError, match="`accumulate`=4 must divide the batch, got 30 examples"):
        step(start(optax.sgd(0.1)), jax.tree.map(lambda x: x[:30], DATA(0)))


@pytest.mark.parametrize("accumulate", [4, schedules.Constant(4.0)], ids=["number", "schedule"])
def test_the_noise_scale_is_that_of_the_examples(accumulate):
    # At a rate of 0 the parameters stay: the trace of the covariance by the squared norm.
    data = problem(n=4096, noise=3.0)
    source = training.ArrayData(data, batch_size=64, key=jax.random.key(0))
    tx = optax.sgd(0.0)
    options = {"accumulate": accumulate, "monitors": ("noise_scale",)}
    step = training.make_step(apply, loss_fn, tx, **options)
    _, history = training.fit(step, start(tx), source, steps=640, log_every=640)

    def gradient(x, y):
        return jax.grad(lambda p: (apply(p, x) - y) ** 2)(start(tx).params)

    each = jax.vmap(gradient)(data["x"], data["y"])
    each = np.concatenate([np.reshape(g, (4096, -1)) for g in jax.tree.leaves(each)], 1)
    expected = np.var(each, axis=0).sum() / np.sum(np.mean(each, axis=0) ** 2)
    assert history["noise_scale"][-1] == pytest.approx(expected, rel=0.25)


def test_the_noise_scale_needs_micro_batches_and_costs_nothing_where_it_is_not_asked_for():
    with pytest.raises(ValueError, match="`accumulate` must be at least 2 where `monitors`"):
        training.make_step(apply, loss_fn, optax.sgd(0.1), monitors=("noise_scale",))
    tx = optax.sgd(0.1)
    plain = training.make_step(apply, loss_fn, tx, accumulate=2)
    state, metrics = plain(start(tx), DATA(0))
    assert state.noise is None
    assert "noise_scale" not in metrics
    assert "examples" not in metrics


def test_a_skipped_update_teaches_nothing():
    tx = optax.sgd(0.01)
    step = training.make_step(apply, loss_fn, tx, accumulate=2, monitors=("noise_scale",))
    state, _ = step(start(tx), DATA(0))
    before = jax.tree.map(np.asarray, state.noise)
    state, metrics = step(state, jax.tree.map(lambda x: x * np.nan, DATA(1)))
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(state.noise, before)


def with_64_bits(dtype, **options):
    params = {"w": np.zeros(3, dtype), "b": np.zeros((), dtype)}
    step = training.make_step(apply, loss_fn, optax.sgd(0.1), **options)
    state, metrics = step(start(optax.sgd(0.1), params), DATA(0))
    assert state.params["w"].dtype == dtype
    return state.params["w"], metrics


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "accumulate", [4, schedules.PiecewiseConstant(4, boundaries=(3,), values=(4,))]
)
def test_micro_batches_with_64_bits_switched_on(dtype, accumulate):
    with jax.enable_x64(True):
        whole, _ = with_64_bits(dtype)
        monitors = ("grad_norm", "noise_scale")
        pieces, metrics = with_64_bits(dtype, accumulate=accumulate, monitors=monitors)
        np.testing.assert_allclose(pieces, whole, rtol=1e-5)
        assert np.isfinite(metrics["noise_scale"])


def test_a_run_with_a_growing_batch_goes_on_from_its_checkpoint(tmp_path):
    tx = optax.adam(0.02)

    def run(until, accumulate=GROWING, **options):
        step = training.make_step(apply, loss_fn, tx, accumulate=accumulate)
        return training.fit(step, start(tx), DATA, until=until, **options)[0]

    folder = str(tmp_path / "run")
    run(15, checkpoint=folder)
    chex.assert_trees_all_equal(run(STEPS, checkpoint=folder), run(STEPS))
    with pytest.raises(ValueError, match="`accumulate` must be that of the run in `checkpoint`"):
        run(STEPS, accumulate=MOST, checkpoint=folder)
