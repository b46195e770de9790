"""Updates that stand out are skipped whole; what is usual, and a rise that lasts, is not."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start, zeros
from sklearn.datasets import load_digits

from jax_lrreg import text, training

WINDOW = 8
SMALL = training.Spike(sigma=6.0, window=WINDOW)
TX = optax.adam(0.01)


def outlier(batch):
    return jax.tree.map(lambda x: 100 * x, batch)


def source(outliers=(), size=16):
    data = training.ArrayData(problem(), batch_size=size, key=jax.random.key(1))
    return lambda step: outlier(data(step)) if step in outliers else data(step)


def reference(losses, norms, sigma, window, robust, lasting=8):
    """Which steps are spikes, in float64 and plain Python."""
    held, row, spikes = [], 0, []
    for pair in zip(losses, norms, strict=True):
        spike = False
        if len(held) >= window:
            last = np.asarray(held[-window:], np.float64)
            center = np.median(last, 0) if robust else np.mean(last, 0)
            above = (np.quantile(last, 0.9332, axis=0) - center) / 1.5
            spread = above if robust else np.std(last, 0)
            spike = bool(np.any(pair > center + sigma * np.maximum(spread, 1e-3 * abs(center))))
        spikes.append(spike)
        row = row + 1 if spike else 0
        if not spike:
            held.append(pair)
        if row == lasting:
            held, row = [], 0
    return spikes


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("window", [2, 5, 16])
def test_spikes_are_those_of_the_definition(robust, window):
    rng = np.random.default_rng(0)
    losses = np.exp(rng.normal(size=300) * 0.3) * (1 + 9 * (rng.random(300) < 0.05))
    losses[100:140] += 50  # a rise that lasts
    norms = np.exp(rng.normal(size=300) * 0.3) * (1 + 9 * (rng.random(300) < 0.05))
    losses, norms = losses.astype(np.float32), norms.astype(np.float32)
    config = training.Spike(sigma=4.0, window=window, robust=robust)

    def one(state, pair):
        found = dict(zip(("loss", "grad_norm"), pair, strict=True))
        spike = config.judge(state, found)
        return config.update(state, found, spike, ~spike), spike

    _, spikes = jax.lax.scan(one, config.init(), (jnp.asarray(losses), jnp.asarray(norms)))
    expected = reference(losses, norms, 4.0, window, robust)
    assert 5 < sum(expected) < 200
    assert np.asarray(spikes).tolist() == expected


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", ["skip", "raise", "keep"])
@pytest.mark.sampled(6)
def test_an_outlier_leaves_no_trace(chunk, accumulate, mode):
    at = (20, 21, 33)
    batch = source(at)
    options = {"accumulate": accumulate, "on_nonfinite": mode, "ema": 0.9}
    step = training.make_step(apply, loss_fn, TX, on_spike=SMALL, **options)
    batches = [batch(index) for index in range(40)]
    options = {"steps": 40, "chunk": chunk, "log_every": 10}
    state, history = training.fit(step, start(TX), batches, **options)
    assert history["skipped"].tolist() == history["spikes"].tolist() == [0, 0, 2, 1]
    # Apart from the number of steps it is the run without those batches.
    without = [one for index, one in enumerate(batches) if index not in at]
    short, _ = training.fit(step, start(TX), without, steps=37, chunk=chunk)
    for field in ("params", "opt_state", "average"):
        chex.assert_trees_all_equal(getattr(state, field), getattr(short, field))


def test_nothing_is_judged_before_the_window_is_full_and_what_is_not_finite_is_no_spike():
    batch = source((3,))
    step = training.make_step(apply, loss_fn, TX, on_spike=SMALL)
    nan = jax.tree.map(lambda x: x * np.nan, batch(0))
    state, spikes, skipped = start(TX), [], []
    for index in range(14):
        state, metrics = step(state, nan if index in (5, 12) else batch(index))
        spikes.append(int(metrics["spikes"]))
        skipped.append(int(metrics["skipped"]))
    assert sum(spikes) == 0
    assert np.flatnonzero(skipped).tolist() == [5, 12]
    assert np.all(np.isfinite(state.spikes.values))


def test_a_rise_that_lasts_is_no_spike():
    step = training.make_step(apply, loss_fn, TX, on_spike=SMALL)
    batch, state, spikes = source(range(20, 99)), start(TX), []
    for index in range(40):
        state, metrics = step(state, batch(index))
        spikes.append(int(metrics["spikes"]))
    assert np.flatnonzero(spikes).tolist() == list(range(20, 28))


def test_raise_names_the_first_step_that_is_not_finite_whatever_spikes_were_before():
    batch = source((20,))
    batches = [batch(index) for index in range(40)]
    batches[25] = jax.tree.map(lambda x: x * np.nan, batches[25])
    step = training.make_step(apply, loss_fn, TX, on_spike=SMALL, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="the update at step 25 is not finite"):
        training.fit(step, start(TX), batches, steps=40)
    state = start(TX)
    for index in range(25):
        state, _ = step(state, batches[index])
    with pytest.raises(FloatingPointError, match="25"):
        step(state, batches[25])


def test_a_step_without_has_not_one_operation_more_and_one_trace_serves_a_run():
    plain = training.make_step(apply, loss_fn, TX)
    state = start(TX)
    names = {str(eqn.primitive) for eqn in jax.make_jaxpr(plain.body)(state, source()(0)).eqns}
    assert state.spikes is None
    assert "sort" not in names
    traces = []

    def counted(model, batch):
        traces.append(1)
        return loss_fn(model, batch)

    step = training.make_step(apply, counted, TX, on_spike=SMALL)
    state, _ = training.fit(step, state, [source()(i) for i in range(30)], steps=30, chunk=5)
    once = len(traces)
    training.fit(step, state, [source()(i) for i in range(30)], steps=30, chunk=5)
    assert len(traces) == once


class Mlp(nn.Module):
    """For the digits."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


@pytest.mark.parametrize("robust", [False, True])
def test_of_a_hundred_outliers_95_are_skipped_and_1_percent_of_the_rest_at_most(robust):
    x, y = load_digits(return_X_y=True)
    data = training.ArrayData(
        {"x": (x / 16).astype(np.float32), "y": y}, batch_size=64, key=jax.random.key(2)
    )
    rng, steps = np.random.default_rng(3), 2000
    bad = set(rng.choice(np.arange(300, steps), 100, replace=False).tolist())

    def batches(outliers):
        for index in range(steps):
            batch = {name: np.array(value) for name, value in data(index).items()}
            if index in outliers:
                # Images of 100 times the size alone do no harm where all of them are called right:
                # loss and gradient are 0.
                batch["x"] = batch["x"] * (100 if index % 2 else 1)
                batch["y"] = rng.permutation(batch["y"])
            yield batch

    def loss(model, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        return losses.mean()

    tx, skipped, ends = optax.adam(1e-3), [], []
    spike = training.Spike(sigma=6.0, window=128, robust=robust)
    step = training.make_step(Mlp(), loss, tx, on_spike=spike)
    for outliers in (bad, set()):
        state = training.init(Mlp(), tx, key=jax.random.key(0), example=data(0)["x"])
        run = training.fit(step, state, batches(outliers), steps=steps, log_every=1)
        skipped.append(set(np.flatnonzero(run[1]["skipped"]).tolist()))
        ends.append(run[1]["loss"][-500:])
    assert len(skipped[0] & bad) >= 95
    assert len(skipped[0] - bad) <= 0.01 * (steps - 100)
    assert len(skipped[1]) <= 0.01 * steps
    assert abs(np.nanmean(ends[0]) - np.nanmean(ends[1])) < 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": 0}, ValueError, "`sigma`.*got 0"),
        ({"sigma": "6"}, TypeError, "`sigma`.*got '6'"),
        ({"window": 0}, ValueError, "`window`.*got 0"),
        ({"window": 2.5}, ValueError, "`window`.*got 2.5"),
        ({"metrics": ("los",)}, ValueError, "did you mean 'loss'"),
        ({"metrics": "loss"}, TypeError, "`metrics`.*got 'loss'"),
        ({"metrics": ()}, TypeError, "`metrics`"),
        ({"robust": "mad"}, ValueError, "`robust`.*got 'mad'"),
    ],
)
def test_wrong_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        training.Spike(**options)


def test_other_objects_and_other_windows_are_refused():
    with pytest.raises(TypeError, match=r"`on_spike` must be a training.Spike.*got 6"):
        training.make_step(apply, loss_fn, TX, on_spike=6)
    step = training.make_step(apply, loss_fn, TX, on_spike=SMALL)
    state, _ = step(start(TX, zeros()), source()(0))
    other = training.make_step(apply, loss_fn, TX, on_spike=training.Spike(window=9))
    with pytest.raises(ValueError, match=r"`on_spike` must be .*spikes=None.*got '2x8'"):
        other(state, source()(0))
    other(state.replace(spikes=None), source()(0))


def test_several_thresholds_are_for_a_sweep():
    spike = training.Spike(sigma=np.float32([3.0, 4.0]))
    with pytest.raises(
        ValueError, match=r"`on_spike.sigma` must be one number.*got 'shape \(2,\)'"
    ):
        training.make_step(apply, loss_fn, TX, on_spike=spike)


def test_a_spike_prints():
    assert repr(training.Spike(sigma=5.0, robust=True)) == "Spike(sigma=5.0, robust=True)"
    with pytest.raises(ValueError, match="Spike"):
        text.parse("Spike(sigma=5.0)")
