"""Recipes with a plateau or a cooldown; like all recipes they return compositions of the shapes."""

from collections.abc import Sequence
from typing import Any

from jax_lrreg._check import require
from jax_lrreg.schedules.base import Constant, Schedule, require_positive
from jax_lrreg.schedules.decays import Cosine
from jax_lrreg.schedules.recipes import after_warmup, require_parts
from jax_lrreg.schedules.timeline import join


def warmup_stable_decay(
    peak_value: Any,
    *,
    warmup_steps: Any,
    decay_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any = 0.0,
    shape: str = "linear",
    power: Any = 2.0,
    rate: Any = 0.1,
) -> Schedule:
    """A straight line up, a plateau, and a cooldown: WSD, or trapezoid; see `Cooldown` for the shapes.

    Args:
        peak_value: value of the plateau; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        decay_steps: duration of the cooldown; positive.
        total_steps: step at which `end_value` is reached; at least `warmup_steps + decay_steps`.
        init_value: value at step 0; not negative.
        end_value: value from `total_steps` on; not negative.
        shape: of the cooldown: linear, cosine, 1-sqrt, square, power or exponential.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive.

    Reference:
        Hu et al., MiniCPM, 2024, sec. 4 (arXiv:2404.06395).

    Example:
        >>> warmup_stable_decay(1e-3, warmup_steps=100, decay_steps=200, total_steps=1000, shape="1-sqrt")
        Constant(0.001).warmup(100).cooldown(200, at=800, shape='1-sqrt')
    """
    owner = "warmup_stable_decay"
    require_positive(owner, decay_steps=decay_steps)
    require_parts(owner, total_steps, fits=True, warmup_steps=warmup_steps, decay_steps=decay_steps)
    stable = after_warmup(Constant(peak_value), warmup_steps, init_value)
    return stable.cooldown(
        decay_steps,
        total_steps - decay_steps,
        end_value=end_value,
        shape=shape,
        power=power,
        rate=rate,
    )


def warmup_stable_decay_periods(
    peak_value: Any,
    *,
    warmup_steps: Any,
    decay_steps: Any,
    period_steps: Sequence[Any],
    init_value: Any = 0.0,
    end_value: Any = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Several plateaus, each cooled down at its end and resumed at the peak: WSD-S.

    Each end of a period is the place for a checkpoint of a model that is ready to use.

    Args:
        peak_value: value of the plateaus; not negative.
        warmup_steps: duration of the warmup, in the first period only; 0 for none.
        decay_steps: duration of each cooldown; positive.
        period_steps: durations of the periods, at least two; the first includes the warmup, and each its cooldown.
        init_value: value at step 0; not negative.
        end_value: value at the end of each period, and from the last end on; not negative.
        shape: of the cooldowns.

    Reference:
        Wen et al., Understanding warmup-stable-decay learning rates, 2024 (arXiv:2410.05192).

    Example:
        >>> lr = warmup_stable_decay_periods(0.1, warmup_steps=10, decay_steps=20, period_steps=(100, 200))
        >>> print(lr(5), lr(90), lr(100), lr(290), lr(300))
        0.05 0.05 0.1 0.05 0.0
    """
    owner = "warmup_stable_decay_periods"
    if not isinstance(period_steps, list | tuple):
        raise TypeError(
            f"{owner}: `period_steps` must be a list of durations, got {period_steps!r}"
        )
    require(len(period_steps) >= 2, owner, "period_steps", period_steps, "at least two durations")
    require_positive(owner, decay_steps=decay_steps)
    require_parts(
        owner,
        period_steps[0],
        "period_steps",
        True,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
    )
    pieces = []
    for index, period in enumerate(period_steps):
        require_parts(owner, period, "period_steps", True, decay_steps=decay_steps)
        stable = after_warmup(Constant(peak_value), 0 if index else warmup_steps, init_value)
        pieces.append(
            stable.cooldown(decay_steps, period - decay_steps, end_value=end_value, shape=shape)
        )
    return join(list(zip(pieces, (*period_steps[:-1], None), strict=True)))


def tri_stage(
    peak_value: Any,
    *,
    warmup_steps: Any,
    hold_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any,
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
    require_positive("tri_stage", peak_value=peak_value, end_value=end_value)
    require_parts("tri_stage", total_steps, warmup_steps=warmup_steps, hold_steps=hold_steps)
    begin = warmup_steps + hold_steps
    stable = after_warmup(Constant(peak_value), warmup_steps, init_value)
    rate = end_value / peak_value
    return stable.cooldown(
        total_steps - begin, begin, end_value=end_value, shape="exponential", rate=rate
    )


def flat_cosine(
    peak_value: Any, *, decay_steps: Any, total_steps: Any, end_value: Any = 0.0
) -> Schedule:
    """A plateau, then half a cosine wave down.

    Args:
        peak_value: value of the plateau; not negative.
        decay_steps: duration of the decay; positive.
        total_steps: step at which `end_value` is reached; above `decay_steps`.
        end_value: value from `total_steps` on; not negative.

    Example:
        >>> flat_cosine(1e-3, decay_steps=250, total_steps=1000)
        Constant(0.001).cooldown(250, at=750, shape='cosine')
    """
    require_positive("flat_cosine", decay_steps=decay_steps)
    require_parts("flat_cosine", total_steps, decay_steps=decay_steps)
    return Constant(peak_value).cooldown(
        decay_steps, total_steps - decay_steps, end_value=end_value, shape="cosine"
    )


def cosine_then_linear(
    peak_value: Any,
    *,
    warmup_steps: Any,
    decay_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    cosine_end_value: Any = 0.0,
    end_value: Any = 0.0,
) -> Schedule:
    """A warmup and a cosine over the whole run, whose tail is replaced by a straight line down.

    Args:
        peak_value: value at the end of the warmup; not negative.
        warmup_steps: duration of the warmup; 0 for none.
        decay_steps: duration of the line at the end; positive.
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
    require_positive(owner, decay_steps=decay_steps)
    require_parts(owner, total_steps, fits=True, warmup_steps=warmup_steps, decay_steps=decay_steps)
    cosine = Cosine(peak_value, steps=total_steps - warmup_steps, end_value=cosine_end_value)
    running = after_warmup(cosine, warmup_steps, init_value)
    return running.cooldown(decay_steps, total_steps - decay_steps, end_value=end_value)
