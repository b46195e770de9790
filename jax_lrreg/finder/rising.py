"""The range test: one run along which the learning rate rises."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import widened
from jax_lrreg._check import require_whole
from jax_lrreg.finder.preparation import (
    Batch,
    Loss,
    Preconditioner,
    agreement,
    check_range,
    prepared,
    refuse_ascent,
)
from jax_lrreg.finder.suggestions import Found, suggest
from jax_lrreg.penalties import Penalty
from jax_lrreg.training import ArrayData, State
from jax_lrreg.training.accumulate import is_slow_in_a_loop
from jax_lrreg.training.modules import Module
from jax_lrreg.training.program import platform_of
from jax_lrreg.training.sources import source_of

SMOOTHING = 0.9  # of the losses: some ten steps
DIVERGED = 4.0  # times the best loss


class _Sweep(NamedTuple):
    """What the range test carries from step to step."""

    state: State
    losses: jax.Array
    smoothed: jax.Array
    mean: jax.Array
    best: jax.Array
    made: jax.Array
    stopped: jax.Array


def range_test(
    module: Module,
    loss_fn: Loss,
    preconditioner: Preconditioner,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    low: float = 1e-7,
    high: float = 1.0,
    steps: int = 100,
    penalty: Penalty | None = None,
) -> Found:
    """Trains while the learning rate rises from `low` to `high`, and watches the loss.

        rate(i) = low (high / low)^(i / (steps - 1))
        mean(i) = 0.9 mean(i - 1) + 0.1 loss(i),    smoothed(i) = mean(i) / (1 - 0.9^(i + 1))

    It ends where a loss is not finite, or the smoothed one exceeds its best by 3 |best|. The steps
    are one loop on the device. The state that is given is left as it is.

    Args:
        module: as in `training.init`.
        loss_fn: as in `training.make_step`.
        preconditioner: the optimizer without its learning rate, such as `optax.scale_by_adam()`, or
            `optax.identity()` for SGD; or `hyper ->` one.
        state: where the test begins, from `training.init`; its optimizer's state is not used.
        data: as in `training.fit`; of an iterable, `steps` batches are drawn.
        low: first learning rate, positive.
        high: last learning rate, above `low`.
        steps: how many rates are tried; at least 10.
        penalty: as in `make_step`.

    Returns:
        A `Found`, with these suggestions, the default first; with none where the losses do not fall
        by more than their noise and rounding explain: "halfway": where the smoothed loss has fallen
        by half of what it will; "valley": the middle of the longest stretch along which the
        smoothed loss falls; "steepest": where it falls most per factor of the learning rate;
        "minimum": a tenth of the rate at which it is least.

    Reference:
        Smith, Cyclical learning rates for training neural networks, 2017, section 3.3. "valley" and
        "minimum" are rules of fastai's `lr_find`. "halfway" is the default since it came nearest to
        the best rates of a sweep, and never fell far behind them:
        `benchmarks/finder_against_sweep.py`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> state = training.init(apply, optax.sgd(1.0), key=jax.random.key(0), params=jnp.zeros(4))
        >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1) ** 2)
        >>> data = [np.eye(4, dtype=np.float32)] * 100
        >>> found = range_test(apply, loss_fn, optax.identity(), state, data, high=1e3)
        >>> found.stopped, f"{found.suggestion:.1f}"
        (True, '0.7')
    """
    check_range("range_test", state, low, high)
    steps = require_whole("range_test", "steps", steps, 10)
    rates = np.geomspace(low, high, steps).astype(np.float32)
    table = jnp.asarray(rates)
    step, start = prepared(module, loss_fn, preconditioner, state, penalty, lambda i: table[i])
    source = source_of(data, "range_test")
    first = int(state.step)
    example = source.example(first)
    grace = steps // 10  # the first losses are too few for a mean

    def advance(sweep: _Sweep, batch: Batch) -> _Sweep:
        new, metrics = step.body(sweep.state, batch)
        loss, i = widened(metrics["loss"]), sweep.made
        mean = SMOOTHING * sweep.mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING ** (i + 1.0))
        best = jnp.fmin(sweep.best, smooth)
        diverged = (i >= grace) & (smooth > best + (DIVERGED - 1) * jnp.abs(best))
        losses, smoothed = sweep.losses.at[i].set(loss), sweep.smoothed.at[i].set(smooth)
        stopped = diverged | ~jnp.isfinite(loss)
        return _Sweep(new, losses, smoothed, mean, best, i + 1, stopped)

    def many(sweep: _Sweep, arrays: Batch, rows: Batch, count: jax.Array) -> _Sweep:
        begin = sweep.made

        def goes_on(sweep: _Sweep) -> jax.Array:
            return ~sweep.stopped & (sweep.made < begin + count)

        def one(sweep: _Sweep) -> _Sweep:
            row = jax.tree.map(lambda x: x[sweep.made - begin], rows)
            return advance(sweep, source.gather(arrays, row))

        return jax.lax.while_loop(goes_on, one, sweep)

    def single(sweep: _Sweep, arrays: Batch, rows: Batch, count: jax.Array) -> _Sweep:
        del count
        return advance(sweep, source.gather(arrays, jax.tree.map(lambda x: x[0], rows)))

    # Convolutions are slow in a loop on the CPU: there each step is a call.
    slow = is_slow_in_a_loop(step.body.trace(start, example), platform_of(state))
    size = 1 if slow else min(steps, source.most(example))
    run = jax.jit(many if size > 1 else single)
    nothing, zero = jnp.full(steps, jnp.nan, jnp.float32), jnp.float32(0)
    sweep = _Sweep(
        start, nothing, nothing, zero, jnp.float32(jnp.inf), jnp.int32(0), jnp.array(False)
    )
    made = 0
    while made < steps and not (made and bool(sweep.stopped)):
        count = min(size, steps - made)
        batches = source.payload(first + made, count, size)
        sweep = run(sweep, source.arrays, batches, np.int32(count))
        made += count
    refuse_ascent("range_test", float(agreement(sweep.state)))
    return _result(rates, sweep)


def _result(rates: np.ndarray, sweep: _Sweep) -> Found:
    tried = int(sweep.made)
    losses, smoothed = np.asarray(sweep.losses)[:tried], np.asarray(sweep.smoothed)[:tried]
    rates, good = rates[:tried], np.isfinite(smoothed)
    good[: tried // 10] = False  # the running mean of few losses is noise
    stopped = bool(sweep.stopped)
    diverged = stopped and bool(np.isfinite(losses[-1]))  # one bad batch stops it, too, at any rate
    suggestions = suggest(rates[good], smoothed[good], losses[good], diverged)
    return Found(rates, losses, smoothed, suggestions, stopped)
