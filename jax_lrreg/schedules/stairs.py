"""Stairs, which stand still and then jump, and curves through given points."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.clock import Clock, pick, stack
from jax_lrreg.schedules.curves import between, half_wave
from jax_lrreg.schedules.digits import Double, exact, exp2, log2


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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    decay_rate: chex.Numeric = 0.1

    def __post_init__(self):
        require_values(self, init_value=self.init_value)
        require_positive(self, steps=self.steps, decay_rate=self.decay_rate)

    def value_at(self, clock):
        # Counted in integers: a float32 quotient rounds up, and each stair of 10^8 steps would end
        # 4 to 32 steps early. The power takes a `Double`, as in `Exponential`.
        stairs, _ = clock.cycle(self.steps)
        exponent = Double.of(stairs, clock.dtype) * log2(exact(self.decay_rate))
        return clock.number(self.init_value) * exp2(exponent)


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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    decay_rate: chex.Numeric = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, decay_rate=self.decay_rate)
        require_positive(self, steps=self.steps)

    def value_at(self, clock):
        stairs, _ = clock.cycle(self.steps)
        slope = clock.number(exact(self.decay_rate))
        return clock.number(self.init_value) / (1 + clock.number(stairs) * slope)


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

    init_value: chex.Numeric
    _: KW_ONLY
    boundaries: tuple[chex.Numeric, ...]
    decay_rate: chex.Numeric = 0.1

    def __post_init__(self):
        object.__setattr__(self, "boundaries", as_boundaries(self, self.boundaries))
        require_values(self, init_value=self.init_value)
        require_positive(self, decay_rate=self.decay_rate)

    @property
    def horizon(self):
        return self.boundaries[-1]

    def value_at(self, clock):
        # One comparison each instead of a binary search: a boundary may be traced, batched,
        # fractional. The step of a boundary has passed it, as in Optax and PyTorch; Keras waits for
        # the next.
        passed = jnp.int32(0)
        for boundary in self.boundaries:
            passed = passed + clock.reached(boundary)
        exponent = Double.of(passed, clock.dtype) * log2(exact(self.decay_rate))
        return clock.number(self.init_value) * exp2(exponent)


@pytree
class _Piecewise(Schedule):
    """A first value, and one more at each boundary."""

    init_value: chex.Numeric
    _: KW_ONLY
    boundaries: tuple[chex.Numeric, ...]
    values: tuple[chex.Numeric, ...]

    def __post_init__(self):
        object.__setattr__(self, "boundaries", as_boundaries(self, self.boundaries))
        object.__setattr__(self, "values", as_values(self, self.values, len(self.boundaries)))
        require_values(self, init_value=self.init_value)

    @property
    def horizon(self):
        return self.boundaries[-1]

    def segment(self, clock: Clock) -> tuple[jax.Array, ...]:
        """The values at both ends of the current segment, what of it is left and what is done."""
        # The ends are looked up first and one curve is computed, where `Joined` computes them all.
        index, own, duration = clock.interval(self.boundaries)
        values = stack([clock.number(x) for x in (self.init_value, *self.values)])
        begin, end = pick(values[:-1], index), pick(values[1:], index)
        return begin, end, own.left(duration), own.done(duration)


@pytree
class PiecewiseConstant(_Piecewise):
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

    def value_at(self, clock):
        # From the first on, so that the last boundary that has passed is the one that counts.
        result = clock.number(self.init_value)
        for boundary, value in zip(self.boundaries, self.values, strict=True):
            result = jnp.where(clock.reached(boundary), clock.number(value), result)
        return result


@pytree
class PiecewiseLinear(_Piecewise):
    """Straight lines through (0, init_value), (boundaries[0], values[0]), (boundaries[1], ...), ...

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

    def value_at(self, clock):
        begin, end, left, done = self.segment(clock)
        return between(begin, end, left, done)


@pytree
class PiecewiseCosine(_Piecewise):
    """Half cosine waves through the points (0, init_value), (boundaries[0], values[0]), ...

    Between two points it goes as (1 - cos(pi x)) / 2 of the way, x from 0 to 1: level at every
    point. It holds the last value after the last boundary.

    Attributes:
        init_value: value at step 0 and before; not negative.
        boundaries: the steps of the other points; positive and rising.
        values: their values; not negative, as many as boundaries.

    Example:
        >>> lr = PiecewiseCosine(0.0, boundaries=(10, 30), values=(0.1, 0.05))
        >>> print(f"{lr(5):.3f} {lr(10):.3f} {lr(20):.3f} {lr(30):.3f}")
        0.050 0.100 0.075 0.050
    """

    def value_at(self, clock):
        begin, end, left, done = self.segment(clock)
        return between(begin, end, *half_wave(left, done))


def as_boundaries(owner: Schedule, boundaries: Sequence[chex.Numeric]) -> tuple[chex.Numeric, ...]:
    """The boundaries as a tuple; refuses what is not positive and rising."""
    boundaries = as_tuple(owner, "boundaries", boundaries)
    require(len(boundaries) > 0, owner, "boundaries", boundaries, "at least one step")
    for boundary in boundaries:
        require_positive(owner, boundaries=boundary)
    for before, boundary in pairwise(boundaries):
        rising = not known(before, boundary) or np.all(np.asarray(before) < np.asarray(boundary))
        require(rising, owner, "boundaries", boundaries, "in rising order, each one once")
    return boundaries


def as_values(
    owner: Schedule, values: Sequence[chex.Numeric], count: int
) -> tuple[chex.Numeric, ...]:
    """The values as a tuple; refuses negative ones, and any number of them but `count`."""
    values = as_tuple(owner, "values", values)
    require(len(values) == count, owner, "values", values, f"as many as `boundaries`, {count}")
    for value in values:
        require_values(owner, values=value)
    return values


def as_tuple(owner: object, argument: str, items: Sequence[chex.Numeric]) -> tuple:
    """Numbers in a list, a tuple or an array of one axis, as a tuple."""
    if isinstance(items, np.ndarray | jax.Array) and np.ndim(items) == 1:
        # Python's numbers, which print at their shortest; traced ones stay arrays.
        return tuple(np.asarray(items).tolist() if known(items) else items)
    fits = isinstance(items, list | tuple | range)
    require(fits, owner, argument, items, "a list of numbers", error=TypeError)
    return tuple(items)
