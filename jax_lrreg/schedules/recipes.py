"""Recipes: the schedules that are known by name, as compositions of the shapes.

They return what they print: `warmup_cosine(...)` is `Cosine(...).warmup(...)`, ready to be changed further.
Durations count from the start of the run: `total_steps` is all of it, the warmup included.
"""

from typing import Any

import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.decays import Cosine, Linear
from jax_lrreg.schedules.piecewise import PiecewiseCosine, PiecewiseLinear
from jax_lrreg.schedules.tails import InverseSqrt


def warmup_cosine(
    peak_value: Any,
    *,
    warmup_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any = 0.0,
    exponent: Any = 1.0,
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
    require_parts("warmup_cosine", total_steps, warmup_steps=warmup_steps)
    decay = Cosine(
        peak_value, steps=total_steps - warmup_steps, end_value=end_value, exponent=exponent
    )
    return after_warmup(decay, warmup_steps, init_value)


def warmup_linear(
    peak_value: Any,
    *,
    warmup_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any = 0.0,
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
    require_parts("warmup_linear", total_steps, warmup_steps=warmup_steps)
    decay = Linear(peak_value, steps=total_steps - warmup_steps, end_value=end_value)
    return after_warmup(decay, warmup_steps, init_value)


def slanted_triangular(
    peak_value: Any, *, warmup_steps: Any, total_steps: Any, ratio: Any = 32.0
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
    require_values("slanted_triangular", peak_value=peak_value)
    require_number("slanted_triangular", "ratio", ratio, "a number >= 1", lambda x: x >= 1)
    foot = peak_value / ratio
    require_parts("slanted_triangular", total_steps, warmup_steps=warmup_steps)
    return warmup_linear(
        peak_value,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        init_value=foot,
        end_value=foot,
    )


def one_cycle(
    peak_value: Any,
    *,
    warmup_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any = 0.0,
    shape: str = "cosine",
) -> Schedule:
    """Up to the peak and down to far below the first value, once. For the momentum that goes with it, exchange them.

    Args:
        peak_value: value at `warmup_steps`; not negative.
        warmup_steps: duration of the way up; positive.
        total_steps: step at which `end_value` is reached; above `warmup_steps`.
        init_value: value at step 0; not negative. The source has a tenth to a thirtieth of the peak.
        end_value: value from `total_steps` on; not negative.
        shape: of both ways: cosine or linear.

    Reference:
        Smith and Topin, Super-convergence, 2018 (arXiv:1708.07120).

    Example:
        >>> one_cycle(0.1, warmup_steps=300, total_steps=1000, init_value=0.004, end_value=4e-7)
        PiecewiseCosine(0.004, boundaries=(300, 1000), values=(0.1, 4e-07))
    """
    require_positive("one_cycle", warmup_steps=warmup_steps)
    require_parts("one_cycle", total_steps, warmup_steps=warmup_steps)
    return _through("one_cycle", shape)(
        init_value, boundaries=(warmup_steps, total_steps), values=(peak_value, end_value)
    )


def one_cycle_three_phases(
    peak_value: Any,
    *,
    warmup_steps: Any,
    down_steps: Any,
    total_steps: Any,
    init_value: Any = 0.0,
    end_value: Any = 0.0,
    shape: str = "cosine",
) -> Schedule:
    """Up to the peak, back to the first value, and down from there.

    Args:
        peak_value: value at `warmup_steps`; not negative.
        warmup_steps: duration of the way up; positive.
        down_steps: duration of the way back to `init_value`; positive.
        total_steps: step at which `end_value` is reached; above `warmup_steps + down_steps`.
        init_value: value at step 0, and again at `warmup_steps + down_steps`; not negative.
        end_value: value from `total_steps` on; not negative.
        shape: of all three ways: cosine or linear.

    Reference:
        Smith and Topin, Super-convergence, 2018 (arXiv:1708.07120).

    Example:
        >>> one_cycle_three_phases(0.1, warmup_steps=300, down_steps=300, total_steps=1000, init_value=0.004)
        PiecewiseCosine(0.004, boundaries=(300, 600, 1000), values=(0.1, 0.004, 0.0))
    """
    owner = "one_cycle_three_phases"
    require_positive(owner, warmup_steps=warmup_steps, down_steps=down_steps)
    require_parts(owner, total_steps, warmup_steps=warmup_steps, down_steps=down_steps)
    boundaries = (warmup_steps, warmup_steps + down_steps, total_steps)
    return _through(owner, shape)(
        init_value, boundaries=boundaries, values=(peak_value, init_value, end_value)
    )


def noam(factor: Any = 1.0, *, model_dim: Any, warmup_steps: Any) -> Schedule:
    """The schedule of the original Transformer; see `InverseSqrt.noam`.

    Example:
        >>> noam(model_dim=256, warmup_steps=4)
        InverseSqrt(0.03125, timescale=4).warmup(3, init_value=0.0078125)
    """
    return InverseSqrt.noam(factor, model_dim=model_dim, warmup_steps=warmup_steps)


def require_parts(
    owner: str, total: Any, name: str = "total_steps", fits: bool = False, **parts: Any
) -> None:
    """Refuses parts that are not durations, or that leave nothing of the whole; with `fits` they may fill it."""
    require_positive(owner, **{name: total})
    for argument, part in parts.items():
        require_number(owner, argument, part, "a number of steps >= 0", lambda x: x >= 0)
    if known(total, *parts.values()):
        whole, used = (
            np.asarray(total, np.float64),
            sum(np.asarray(part, np.float64) for part in parts.values()),
        )
        ok = np.all(used <= whole) if fits else np.all(used < whole)
        longest = max(parts, key=lambda argument: np.max(parts[argument]))
        allowed = f"{'at most' if fits else 'below'} {name}={total}"
        others = [argument for argument in parts if argument != longest]
        if others:
            allowed += f" together with {' and '.join(f'{argument}={parts[argument]}' for argument in others)}"
        require(ok, owner, longest, parts[longest], allowed)


def after_warmup(schedule: Schedule, warmup_steps: Any, init_value: Any) -> Schedule:
    """The schedule after a warmup, or as it is where there is none."""
    require_values("warmup", init_value=init_value)
    none = known(warmup_steps) and np.all(np.asarray(warmup_steps) == 0)
    return schedule if none else schedule.warmup(warmup_steps, init_value=init_value)


def _through(owner: str, shape: str) -> type[PiecewiseCosine] | type[PiecewiseLinear]:
    shapes = {"cosine": PiecewiseCosine, "linear": PiecewiseLinear}
    require(isinstance(shape, str) and shape in shapes, owner, "shape", shape, "cosine or linear")
    return shapes[shape]
