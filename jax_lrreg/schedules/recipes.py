"""Recipes: the schedules that are known by name, as compositions of the shapes.

They return what they print: `warmup_cosine(...)` is `Cosine(...).warmup(...)`, ready to be changed
further. Durations count from the start of the run: `total_steps` is all of it, the warmup included.
"""

from collections.abc import Sequence

import chex
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_choice, require_number
from jax_lrreg.schedules.base import (
    Constant,
    Duration,
    Schedule,
    require_durations,
    require_positive,
    require_values,
)
from jax_lrreg.schedules.decays import Cosine, Linear
from jax_lrreg.schedules.ramps import after_warmup, require_fall
from jax_lrreg.schedules.stairs import PiecewiseCosine, PiecewiseLinear, as_tuple
from jax_lrreg.schedules.tails import InverseSqrt, inverse_root
from jax_lrreg.schedules.timeline import join


def warmup_cosine(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
    exponent: chex.Numeric = 1.0,
) -> Schedule:
    """A straight line up, then half a cosine wave down; see `Cosine`.

    Args:
        peak_value: value at the end of the warmup; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        total_steps: step at which `end_value` is reached; above `warmup_steps`.
        init_value: value at step 0; not negative.
        end_value: value from `total_steps` on; not negative.
        exponent: applied to the half wave; positive.

    Example:
        >>> warmup_cosine(1e-3, warmup_steps=500, total_steps=10_000)
        Cosine(0.001, steps=9500).warmup(500)
    """
    owner = "warmup_cosine"
    require_parts(owner, total_steps, warmup_steps=warmup_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    require_positive(owner, exponent=exponent)
    # `total_steps` is the whole run, as in Optax; the `decay_steps` of Keras leaves the warmup out.
    steps = total_steps - warmup_steps
    decay = Cosine(peak_value, steps=steps, end_value=end_value, exponent=exponent)
    return after_warmup(decay, warmup_steps, init_value)


def warmup_linear(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
) -> Schedule:
    """A straight line up, then a straight line down.

    Args:
        peak_value: value at the end of the warmup; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        total_steps: step at which `end_value` is reached; above `warmup_steps`.
        init_value: value at step 0; not negative.
        end_value: value from `total_steps` on; not negative.

    Example:
        >>> warmup_linear(1e-3, warmup_steps=500, total_steps=10_000)
        Linear(0.001, steps=9500).warmup(500)
    """
    owner = "warmup_linear"
    require_parts(owner, total_steps, warmup_steps=warmup_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    decay = Linear(peak_value, steps=total_steps - warmup_steps, end_value=end_value)
    return after_warmup(decay, warmup_steps, init_value)


def slanted_triangular(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    total_steps: Duration,
    ratio: chex.Numeric = 32.0,
) -> Schedule:
    """A short straight line up from `peak_value / ratio`, and a long one back down to it.

    Args:
        peak_value: value at the end of the warmup; not negative.
        warmup_steps: duration of the way up; a tenth of `total_steps` in the source.
        total_steps: step at which it is down again; above `warmup_steps`.
        ratio: how many times smaller the first and the last value are; at least 1.

    Reference:
        Howard and Ruder, Universal language model fine-tuning, 2018, eq. 3 (arXiv:1801.06146).

    Example:
        >>> slanted_triangular(0.32, warmup_steps=10, total_steps=100)
        Linear(0.32, steps=90, end_value=0.01).warmup(10, init_value=0.01)
    """
    owner = "slanted_triangular"
    require_parts(owner, total_steps, warmup_steps=warmup_steps)
    require_values(owner, peak_value=peak_value)
    require_number(owner, "ratio", ratio, "a number >= 1", lambda x: x >= 1)
    # The source has lr (1 + p (ratio - 1)) / ratio, p from 0 to 1 and back: lines from lr / ratio.
    foot = peak_value / ratio
    decay = Linear(peak_value, steps=total_steps - warmup_steps, end_value=foot)
    return after_warmup(decay, warmup_steps, foot)


def one_cycle(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
    shape: str = "cosine",
) -> Schedule:
    """Up to the peak and down to far below the first value, once; exchange them for the momentum.

    Args:
        peak_value: value at `warmup_steps`; not negative.
        warmup_steps: duration of the way up; 0 for none.
        total_steps: step at which `end_value` is reached; above `warmup_steps`.
        init_value: value at step 0; not negative. The source has a tenth to a thirtieth of the
            peak.
        end_value: value from `total_steps` on; not negative.
        shape: of both ways: cosine or linear.

    Reference:
        Smith and Topin, Super-convergence, 2018 (arXiv:1708.07120).

    Example:
        >>> one_cycle(0.1, warmup_steps=300, total_steps=1000, init_value=0.004, end_value=4e-7)
        PiecewiseCosine(0.004, boundaries=(300, 1000), values=(0.1, 4e-07))
    """
    owner, boundaries = "one_cycle", (warmup_steps, total_steps)
    require_parts(owner, total_steps, warmup_steps=warmup_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    # The peak is at `warmup_steps` and the end at `total_steps`, as in Optax; PyTorch has both one
    # step earlier. One curve through three points, so that a cosine is level at each of them.
    return _through(owner, shape, init_value, boundaries, (peak_value, end_value))


def one_cycle_three_phases(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    down_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
    shape: str = "cosine",
) -> Schedule:
    """Up to the peak, back to the first value, and down from there.

    Args:
        peak_value: value at `warmup_steps`; not negative.
        warmup_steps: duration of the way up; 0 for none.
        down_steps: duration of the way back to `init_value`; positive.
        total_steps: step at which `end_value` is reached; above `warmup_steps + down_steps`.
        init_value: value at step 0, and again at `warmup_steps + down_steps`; not negative.
        end_value: value from `total_steps` on; not negative.
        shape: of all three ways: cosine or linear.

    Reference:
        Smith and Topin, Super-convergence, 2018 (arXiv:1708.07120).

    Example:
        >>> one_cycle_three_phases(
        ...     0.1, warmup_steps=300, down_steps=300, total_steps=1000, init_value=0.004
        ... )
        PiecewiseCosine(0.004, boundaries=(300, 600, 1000), values=(0.1, 0.004, 0.0))
    """
    owner = "one_cycle_three_phases"
    require_positive(owner, down_steps=down_steps)
    require_parts(owner, total_steps, warmup_steps=warmup_steps, down_steps=down_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    boundaries = (warmup_steps, warmup_steps + down_steps, total_steps)
    return _through(owner, shape, init_value, boundaries, (peak_value, init_value, end_value))


def warmup_stable_decay(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    decay_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
    shape: str = "linear",
    power: chex.Numeric = 2.0,
    rate: chex.Numeric = 0.1,
) -> Schedule:
    """A straight line up, a plateau, and a cooldown: WSD, or trapezoid; shapes as in `Cooldown`.

    Args:
        peak_value: value of the plateau; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        decay_steps: duration of the cooldown; 0 for none.
        total_steps: step at which `end_value` is reached; at least `warmup_steps + decay_steps`.
        init_value: value at step 0; not negative.
        end_value: value from `total_steps` on; not negative.
        shape: of the cooldown: linear, cosine, 1-sqrt, square, power or exponential.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive.

    Reference:
        Hu et al., MiniCPM, 2024, sec. 4 (arXiv:2404.06395).

    Example:
        >>> ends = {"warmup_steps": 100, "decay_steps": 200, "total_steps": 1000}
        >>> warmup_stable_decay(1e-3, **ends, shape="1-sqrt")
        Constant(0.001).warmup(100).cooldown(200, at=800, shape='1-sqrt')
    """
    owner = "warmup_stable_decay"
    require_parts(owner, total_steps, fits=True, warmup_steps=warmup_steps, decay_steps=decay_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    require_fall(owner, shape, power, rate)
    # A cooldown and not a third piece of a `join`: a run may then branch off at any step to cool
    # down.
    stable = after_warmup(Constant(peak_value), warmup_steps, init_value)
    options = {"end_value": end_value, "shape": shape, "power": power, "rate": rate}
    return stable.cooldown(decay_steps, total_steps - decay_steps, **options)


def warmup_stable_decay_periods(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    decay_steps: Duration,
    period_steps: Sequence[Duration],
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Several plateaus, each cooled down at its end and resumed at the peak: WSD-S.

    Each end of a period is the place for a checkpoint of a model that is ready to use.

    Args:
        peak_value: value of the plateaus; not negative.
        warmup_steps: duration of the warmup, in the first period only; 0 for none.
        decay_steps: duration of each cooldown; 0 for none.
        period_steps: durations of the periods, at least two; the first includes the warmup, and
            each its cooldown.
        init_value: value at step 0; not negative.
        end_value: value at the end of each period, and from the last end on; not negative.
        shape: of the cooldowns.

    Reference:
        Wen et al., Understanding warmup-stable-decay learning rates, 2024 (arXiv:2410.05192).

    Example:
        >>> periods = {"decay_steps": 20, "period_steps": (100, 200)}
        >>> lr = warmup_stable_decay_periods(0.1, warmup_steps=10, **periods)
        >>> print(lr(5), lr(90), lr(100), lr(290), lr(300))
        0.05 0.05 0.1 0.05 0.0
    """
    owner = "warmup_stable_decay_periods"
    periods = as_tuple(owner, "period_steps", period_steps)
    require(len(periods) >= 2, owner, "period_steps", periods, "at least two durations")
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    require_fall(owner, shape)
    pieces = []
    # As in the source, only the first period warms up: the others resume at the peak.
    for period, warmup in zip(periods, (warmup_steps, *[0] * len(periods)), strict=False):
        parts = {"warmup_steps": warmup, "decay_steps": decay_steps}
        require_parts(owner, period, "period_steps", fits=True, **parts)
        stable = after_warmup(Constant(peak_value), warmup, init_value)
        at = period - decay_steps
        pieces.append(stable.cooldown(decay_steps, at, end_value=end_value, shape=shape))
    return join(list(zip(pieces, (*periods[:-1], None), strict=True)))


def tri_stage(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    hold_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    end_value: chex.Numeric,
) -> Schedule:
    """A straight line up, a plateau, and a geometric decay to `end_value`.

    Args:
        peak_value: value of the plateau; positive.
        warmup_steps: duration of the warmup; 0 for none.
        hold_steps: duration of the plateau; not negative.
        total_steps: step at which `end_value` is reached; above `warmup_steps + hold_steps`.
        init_value: value at step 0; not negative.
        end_value: value from `total_steps` on; positive.

    Reference:
        Park et al., SpecAugment, 2019, sec. 4.2 (arXiv:1904.08779).

    Example:
        >>> lr = tri_stage(1e-3, warmup_steps=100, hold_steps=400, total_steps=1000, end_value=1e-5)
        >>> print(f"{lr(100):.0e} {lr(500):.0e} {lr(750):.0e} {lr(1000):.0e}")
        1e-03 1e-03 1e-04 1e-05
    """
    owner = "tri_stage"
    require_parts(owner, total_steps, warmup_steps=warmup_steps, hold_steps=hold_steps)
    require_values(owner, peak_value=peak_value, init_value=init_value, end_value=end_value)
    require_positive(owner, peak_value=peak_value, end_value=end_value)
    begin = warmup_steps + hold_steps
    stable = after_warmup(Constant(peak_value), warmup_steps, init_value)
    # With this ratio the curve is peak rate^x, and ends at `end_value` itself.
    options = {"shape": "exponential", "rate": end_value / peak_value}
    return stable.cooldown(total_steps - begin, begin, end_value=end_value, **options)


def flat_cosine(
    peak_value: chex.Numeric,
    *,
    decay_steps: Duration,
    total_steps: Duration,
    end_value: chex.Numeric = 0.0,
) -> Schedule:
    """A plateau, then half a cosine wave down.

    Args:
        peak_value: value of the plateau; not negative.
        decay_steps: duration of the decay; 0 for none.
        total_steps: step at which `end_value` is reached; above `decay_steps`.
        end_value: value from `total_steps` on; not negative.

    Example:
        >>> flat_cosine(1e-3, decay_steps=250, total_steps=1000)
        Constant(0.001).cooldown(250, at=750, shape='cosine')
    """
    owner = "flat_cosine"
    require_parts(owner, total_steps, decay_steps=decay_steps)
    require_values(owner, peak_value=peak_value, end_value=end_value)
    at = total_steps - decay_steps
    return Constant(peak_value).cooldown(decay_steps, at, end_value=end_value, shape="cosine")


def cosine_then_linear(
    peak_value: chex.Numeric,
    *,
    warmup_steps: Duration,
    decay_steps: Duration,
    total_steps: Duration,
    init_value: chex.Numeric = 0.0,
    cosine_end_value: chex.Numeric = 0.0,
    end_value: chex.Numeric = 0.0,
) -> Schedule:
    """A warmup and a cosine over the whole run, whose tail is replaced by a straight line down.

    Args:
        peak_value: value at the end of the warmup; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        decay_steps: duration of the line at the end; 0 for none.
        total_steps: step at which `end_value` is reached; at least `warmup_steps + decay_steps`.
        init_value: value at step 0; not negative.
        cosine_end_value: what the cosine would fall to at `total_steps`; not negative.
        end_value: value from `total_steps` on; not negative.

    Reference:
        OLMo team, 2 OLMo 2 furious, 2024, sec. 2 (arXiv:2501.00656).

    Example:
        >>> cosine_then_linear(1e-3, warmup_steps=100, decay_steps=200, total_steps=1000)
        Cosine(0.001, steps=900).warmup(100).cooldown(200, at=800)
    """
    owner = "cosine_then_linear"
    require_parts(owner, total_steps, warmup_steps=warmup_steps)
    require_parts(owner, total_steps, fits=True, warmup_steps=warmup_steps, decay_steps=decay_steps)
    values = {"cosine_end_value": cosine_end_value, "end_value": end_value}
    require_values(owner, peak_value=peak_value, init_value=init_value, **values)
    # Over the whole run, though its tail is cut off: what it would fall to does not depend on the
    # cut.
    cosine = Cosine(peak_value, steps=total_steps - warmup_steps, end_value=cosine_end_value)
    running = after_warmup(cosine, warmup_steps, init_value)
    return running.cooldown(decay_steps, total_steps - decay_steps, end_value=end_value)


def noam(
    factor: chex.Numeric = 1.0, *, model_dim: chex.Numeric, warmup_steps: Duration
) -> Schedule:
    """The schedule of the original Transformer, whose first update is number 1.

        value(step) = factor model_dim^-0.5 min(n^-0.5, n warmup_steps^-1.5)     with n = step + 1

    Args:
        factor: of the whole; not negative.
        model_dim: width of the model; positive.
        warmup_steps: number of the update with the highest value; at least 1.

    Reference:
        Vaswani et al., Attention is all you need, 2017, eq. 3 (arXiv:1706.03762).

    Example:
        >>> noam(model_dim=256, warmup_steps=4)
        InverseSqrt(0.03125, timescale=4).warmup(3, init_value=0.0078125)
    """
    require_values("noam", factor=factor)
    require_positive("noam", model_dim=model_dim)
    require_number("noam", "warmup_steps", warmup_steps, "a number >= 1", lambda x: x >= 1)
    # Update n = 1 is step 0, so the peak is at step warmup_steps - 1, and the line begins at peak /
    # W.
    peak = factor * inverse_root(model_dim) * inverse_root(warmup_steps)
    tail = InverseSqrt(peak, timescale=warmup_steps)
    return after_warmup(tail, warmup_steps - 1, peak / warmup_steps)


def require_parts(
    owner: str, total: Duration, name: str = "total_steps", fits: bool = False, **parts: Duration
) -> None:
    """Refuses parts that leave nothing of the whole; with `fits` they may fill it."""
    require_positive(owner, **{name: total})
    require_durations(owner, **parts)
    if known(total, *parts.values()):
        whole, *used = (np.asarray(x, np.float64) for x in (total, *parts.values()))
        longest = max(parts, key=lambda part: np.max(parts[part]))
        others = [f"{part}={parts[part]}" for part in parts if part != longest]
        allowed = f"{'at most' if fits else 'below'} {name}={total}"
        allowed += f" together with {' and '.join(others)}" if others else ""
        ok = sum(used) <= whole if fits else sum(used) < whole
        require(np.all(ok), owner, longest, parts[longest], allowed)


def _through(
    owner: str,
    shape: str,
    init_value: chex.Numeric,
    boundaries: tuple[chex.Numeric, ...],
    values: tuple[chex.Numeric, ...],
) -> Schedule:
    """A curve through values; it begins at the first of them where there is no way up to it."""
    require_choice(owner, "shape", shape, ("cosine", "linear"))
    curve = PiecewiseCosine if shape == "cosine" else PiecewiseLinear
    if known(boundaries[0]) and np.all(np.asarray(boundaries[0]) == 0):
        init_value, boundaries, values = values[0], boundaries[1:], values[1:]
    return curve(init_value, boundaries=boundaries, values=values)
