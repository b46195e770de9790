"""Decays: from one value to another, once."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import pytree, require_number
from jax_lrreg.schedules.base import Schedule, interpolate
from jax_lrreg.schedules.clock import exp2_product


def _require_fields(obj: Schedule, *positive: str) -> None:
    """Checks the fields that decays share, and that those named are positive."""
    for name in ("init_value", "end_value"):
        if hasattr(obj, name):
            require_number(obj, name, getattr(obj, name), "a number >= 0", lambda x: x >= 0)
    for name in ("steps", *positive):
        require_number(obj, name, getattr(obj, name), "a positive number", lambda x: x > 0)


@pytree
class Linear(Schedule):
    """A straight line.

        value(step) = init_value + (end_value - init_value) step / steps     for 0 <= step <= steps

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative. It may be the larger one.

    Example:
        >>> print(Linear(0.1, steps=100)(75))
        0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0

    def __post_init__(self):
        _require_fields(self)

    def at(self, clock):
        return interpolate(self.init_value, self.end_value, clock.left(self.steps), clock.done(self.steps))


@pytree
class Polynomial(Schedule):
    """A power of the remaining time.

        value(step) = end_value + (init_value - end_value) (1 - step / steps)^power     for 0 <= step <= steps

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        power: exponent; positive. 1 is `Linear`.
        end_value: value from `steps` on; not negative.

    Example:
        >>> print(Polynomial(0.1, steps=100, power=2.0)(50))
        0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    power: Any = 1.0
    end_value: Any = 0.0

    def __post_init__(self):
        _require_fields(self, "power")

    def at(self, clock):
        fall, rise = power(clock.left(self.steps), clock.done(self.steps), self.power)
        return interpolate(self.init_value, self.end_value, fall, rise)


@pytree
class Cosine(Schedule):
    """Half a cosine wave.

        value(step) = end_value + (init_value - end_value) ((1 + cos(pi step / steps)) / 2)^exponent

    for 0 <= step <= steps.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative.
        exponent: applied to the half wave; positive.

    Reference:
        Loshchilov and Hutter, SGDR, 2017, eq. 5, one cycle (arXiv:1608.03983).

    Example:
        >>> print(Cosine(0.1, steps=100)(50))
        0.05
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0
    exponent: Any = 1.0

    def __post_init__(self):
        _require_fields(self, "exponent")

    def at(self, clock):
        left, done = clock.left(self.steps), clock.done(self.steps)
        fall, rise = (jnp.where(x >= 1, 1, jnp.sin(jnp.pi / 2 * x) ** 2) for x in (left, done))
        return interpolate(self.init_value, self.end_value, *power(fall, rise, self.exponent))


@pytree
class Exponential(Schedule):
    """A constant factor per duration.

        value(step) = init_value decay_rate^(step / steps)     for step >= 0

    It has no end of its own: see `Schedule.clip`.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: in how many steps the value is multiplied by `decay_rate`; positive.
        decay_rate: positive; above 1 the value grows.

    Example:
        >>> print(Exponential(0.1, steps=100, decay_rate=0.5)(200))
        0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    decay_rate: Any

    def __post_init__(self):
        _require_fields(self, "decay_rate")

    def at(self, clock):
        return self.init_value * exp2_product(clock, _log2(self.decay_rate) * clock.unit / self.steps)


@pytree
class Step(Schedule):
    """A staircase: a constant factor after each duration.

        value(step) = init_value decay_rate^floor(step / steps)     for step >= 0

    Attributes:
        init_value: value of the first stair; not negative.
        steps: duration of a stair; positive.
        decay_rate: factor from one stair to the next; positive.

    Example:
        >>> print(Step(0.1, steps=30)(29), Step(0.1, steps=30)(30))
        0.1 0.01
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    decay_rate: Any = 0.1

    def __post_init__(self):
        _require_fields(self, "decay_rate")

    def at(self, clock):
        stairs, _ = clock.cycle(self.steps)
        return self.init_value * exp2_product(clock._replace(step=stairs, part=0), _log2(self.decay_rate))


def power(fall: jax.Array, rise: jax.Array, exponent: Any) -> tuple[jax.Array, jax.Array]:
    """`fall^exponent` and one minus it, given `rise = 1 - fall`, both with all their digits."""
    if isinstance(exponent, int | float) and exponent == 1:
        return fall, rise
    inside = (fall > 0) & (rise > 0)  # the ends have no finite logarithm
    logarithm = jnp.log1p(-jnp.where(inside & (rise < 0.5), rise, 0.25))
    logarithm = jnp.where(rise < 0.5, logarithm, jnp.log(jnp.where(inside, fall, 0.5)))
    falls = jnp.power(jnp.where(inside, fall, 0.5), exponent)
    rises = -jnp.expm1(exponent * logarithm)
    return jnp.where(inside, falls, fall), jnp.where(inside, rises, rise)


def _log2(x: Any) -> Any:
    return jnp.log2(x) if isinstance(x, jax.core.Tracer) else np.log2(np.asarray(x, np.float64))
