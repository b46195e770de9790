"""Stairs: schedules that stand still and then jump."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require
from jax_lrreg._struct import number_text, pytree
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.clock import exp2_product
from jax_lrreg.schedules.digits import exact, log2


@pytree
class Step(Schedule):
    """A staircase: a constant factor after each duration.

        value(step) = init_value decay_rate^floor(step / steps)     for step >= 0

    Attributes:
        init_value: value of the first stair; not negative.
        steps: duration of a stair; positive.
        decay_rate: factor from one stair to the next; positive.

    Example:
        >>> lr = Step(0.1, steps=30)
        >>> print(f"{lr(29):.3f} {lr(30):.3f}")
        0.100 0.010
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    decay_rate: Any = 0.1

    def __post_init__(self):
        require_values(self, init_value=self.init_value)
        require_positive(self, steps=self.steps, decay_rate=self.decay_rate)

    def value_at(self, clock):
        stairs, _ = clock.cycle(self.steps)
        return self.init_value * exp2_product(clock.at_step(stairs), log2(self.decay_rate))


@pytree
class InverseTimeStep(Schedule):
    """The staircase of `InverseTime`.

        value(step) = init_value / (1 + decay_rate floor(step / steps))     for step >= 0

    Attributes:
        init_value: value of the first stair; not negative.
        steps: duration of a stair; positive.
        decay_rate: how fast the reciprocal grows; not negative.

    Example:
        >>> print(InverseTimeStep(0.1, steps=100)(399))
        0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    decay_rate: Any = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, decay_rate=self.decay_rate)
        require_positive(self, steps=self.steps)

    def value_at(self, clock):
        stairs, _ = clock.cycle(self.steps)
        return self.init_value / (1 + clock.number(stairs) * clock.number(exact(self.decay_rate)))


@pytree
class MultiStep(Schedule):
    """A constant factor at each of some steps.

        value(step) = init_value decay_rate^(number of boundaries <= step)

    Attributes:
        init_value: value before the first boundary; not negative.
        boundaries: the steps at which the value is multiplied; positive and rising.
        decay_rate: by what it is multiplied; positive.

    Example:
        >>> lr = MultiStep(0.1, boundaries=(30, 60))
        >>> print(f"{lr(29):.3f} {lr(30):.3f} {lr(60):.3f}")
        0.100 0.010 0.001
    """

    init_value: Any
    _: KW_ONLY
    boundaries: tuple[Any, ...]
    decay_rate: Any = 0.1

    def __post_init__(self):
        object.__setattr__(self, "boundaries", as_boundaries(self, self.boundaries))
        require_values(self, init_value=self.init_value)
        require_positive(self, decay_rate=self.decay_rate)

    @property
    def horizon(self):
        return self.boundaries[-1]

    def value_at(self, clock):
        passed = jnp.int32(0)
        for boundary in self.boundaries:
            passed = passed + clock.reached(boundary)
        return self.init_value * exp2_product(clock.at_step(passed), log2(self.decay_rate))


@pytree
class PiecewiseConstant(Schedule):
    """A value for each interval.

        value(step) = init_value     before boundaries[0]
                    = values[i]      from boundaries[i] on, until the next boundary

    Attributes:
        init_value: value before the first boundary; not negative.
        boundaries: the steps at which the value changes; positive and rising.
        values: the value from each boundary on; not negative, as many as boundaries.

    Example:
        >>> lr = PiecewiseConstant(0.1, boundaries=(30, 60), values=(0.01, 0.05))
        >>> print(lr(29), lr(30), lr(60))
        0.1 0.01 0.05
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
        result = self.init_value
        for boundary, value in zip(self.boundaries, self.values, strict=True):
            result = jnp.where(clock.reached(boundary), value, result)
        return result


def as_boundaries(owner: Schedule, boundaries: Sequence[Any]) -> tuple[Any, ...]:
    """The boundaries as a tuple; refuses what is not positive and rising."""
    boundaries = _as_tuple(owner, "boundaries", boundaries)
    require(len(boundaries) > 0, owner, "boundaries", boundaries, "at least one step")
    for boundary in boundaries:
        require_positive(owner, boundaries=boundary)
    for before, boundary in pairwise(boundaries):
        rising = not known(before, boundary) or np.all(np.asarray(before) < np.asarray(boundary))
        require(rising, owner, "boundaries", boundaries, "in rising order, each one once")
    return boundaries


def as_values(owner: Schedule, values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """The values as a tuple; refuses negative ones, and any number of them but `count`."""
    values = _as_tuple(owner, "values", values)
    require(len(values) == count, owner, "values", values, f"as many as `boundaries`, {count}")
    for value in values:
        require_values(owner, values=value)
    return values


def _as_tuple(owner: Schedule, argument: str, items: Any) -> tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise TypeError(
            f"{type(owner).__name__}: `{argument}` must be a tuple of numbers, got {number_text(items)}"
        )
    return tuple(items)
