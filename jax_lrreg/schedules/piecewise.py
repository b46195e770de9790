"""Curves through given points."""

from dataclasses import KW_ONLY
from typing import Any

import jax

from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_values
from jax_lrreg.schedules.clock import Clock, pick, stack
from jax_lrreg.schedules.curves import half_wave, interpolate
from jax_lrreg.schedules.stairs import as_boundaries, as_values


@pytree
class PiecewiseLinear(Schedule):
    """Straight lines through the points (0, init_value), (boundaries[0], values[0]), (boundaries[1], values[1]), ...

    It holds the last value after the last boundary.

    Attributes:
        init_value: value at step 0 and before; not negative.
        boundaries: the steps of the other points; positive and rising.
        values: their values; not negative, as many as boundaries.

    Example:
        >>> lr = PiecewiseLinear(0.0, boundaries=(10, 30), values=(0.1, 0.05))
        >>> print(lr(5), lr(10), lr(20), lr(30))
        0.05 0.1 0.075 0.05
    """

    init_value: Any
    _: KW_ONLY
    boundaries: tuple[Any, ...]
    values: tuple[Any, ...]

    def __post_init__(self):
        object.__setattr__(self, "boundaries", as_boundaries(self, self.boundaries))
        object.__setattr__(self, "values", as_values(self, self.values, len(self.boundaries)))
        require_values(self, init_value=self.init_value)

    @property
    def horizon(self):
        return self.boundaries[-1]

    def value_at(self, clock):
        begin, end, left, done = _segment(self, clock)
        return interpolate(begin, end, left, done)


@pytree
class PiecewiseCosine(Schedule):
    """Half cosine waves through the points (0, init_value), (boundaries[0], values[0]), ...

    Between two points it goes as (1 - cos(pi x)) / 2 of the way, x from 0 to 1: level at every point. It
    holds the last value after the last boundary.

    Attributes:
        init_value: value at step 0 and before; not negative.
        boundaries: the steps of the other points; positive and rising.
        values: their values; not negative, as many as boundaries.

    Example:
        >>> lr = PiecewiseCosine(0.0, boundaries=(10, 30), values=(0.1, 0.05))
        >>> print(f"{lr(5):.3f} {lr(10):.3f} {lr(20):.3f} {lr(30):.3f}")
        0.050 0.100 0.075 0.050
    """

    init_value: Any
    _: KW_ONLY
    boundaries: tuple[Any, ...]
    values: tuple[Any, ...]

    def __post_init__(self):
        object.__setattr__(self, "boundaries", as_boundaries(self, self.boundaries))
        object.__setattr__(self, "values", as_values(self, self.values, len(self.boundaries)))
        require_values(self, init_value=self.init_value)

    @property
    def horizon(self):
        return self.boundaries[-1]

    def value_at(self, clock):
        begin, end, left, done = _segment(self, clock)
        return interpolate(begin, end, *half_wave(left, done))


def _segment(schedule: PiecewiseLinear | PiecewiseCosine, clock: Clock) -> tuple[jax.Array, ...]:
    """The values at both ends of the current segment, and the fractions of it that are left and done."""
    index, own, duration = clock.interval(schedule.boundaries)
    values = stack([schedule.init_value, *schedule.values])
    begin, end = pick(values[..., :-1], index), pick(values[..., 1:], index)
    return begin, end, own.left(duration), own.done(duration)
