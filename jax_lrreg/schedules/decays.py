"""Decays with an end: from one value to another, once."""

from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.clock import exp2_product
from jax_lrreg.schedules.curves import LOG2_E, half_wave, interpolate, power
from jax_lrreg.schedules.digits import exact


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
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        return interpolate(
            self.init_value, self.end_value, clock.left(self.steps), clock.done(self.steps)
        )


@pytree
class Polynomial(Schedule):
    """A power of the remaining time.

        value(step) = end_value + (init_value - end_value) (1 - (step / steps)^k_decay)^power

    for 0 <= step <= steps.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        power: exponent; positive. 1 is `Linear`.
        end_value: value from `steps` on; not negative.
        k_decay: exponent of the time; positive. Above 1 the decay comes later.

    Reference:
        Zhang and Li, k-decay, 2020 (arXiv:2004.05909).

    Example:
        >>> print(Polynomial(0.1, steps=100, power=2.0)(50))
        0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    power: Any = 1.0
    end_value: Any = 0.0
    k_decay: Any = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, power=self.power, k_decay=self.k_decay)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        done, left = power(clock.done(self.steps), clock.left(self.steps), self.k_decay)
        return interpolate(self.init_value, self.end_value, *power(left, done, self.power))


@pytree
class Cosine(Schedule):
    """Half a cosine wave.

        value(step) = end_value + (init_value - end_value) ((1 + cos(pi (step / steps)^k_decay)) / 2)^exponent

    for 0 <= step <= steps.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative.
        exponent: applied to the half wave; positive.
        k_decay: exponent of the time; positive. Above 1 the decay comes later.

    Reference:
        Loshchilov and Hutter, SGDR, 2017, eq. 5, one cycle (arXiv:1608.03983).
        Zhang and Li, k-decay, 2020 (arXiv:2004.05909).

    Example:
        >>> print(f"{Cosine(0.1, steps=100)(50):.3f}")
        0.050
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0
    exponent: Any = 1.0
    k_decay: Any = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, exponent=self.exponent, k_decay=self.k_decay)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        done, left = power(clock.done(self.steps), clock.left(self.steps), self.k_decay)
        fall, rise = half_wave(left, done)
        return interpolate(self.init_value, self.end_value, *power(fall, rise, self.exponent))


@pytree
class Rex(Schedule):
    """Reflected exponential: slow at first, then ever faster.

        value(step) = end_value + (init_value - end_value) (1 - x) / (1 - x / 2)     with x = step / steps

    for 0 <= step <= steps.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative.

    Reference:
        Chen, Wolfe and Kyrillidis, REX, 2021 (arXiv:2107.04197).

    Example:
        >>> print(f"{Rex(0.3, steps=100)(50):.3f}")
        0.200
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        left, done = clock.left(self.steps), clock.done(self.steps)
        return interpolate(
            self.init_value, self.end_value, 2 * left / (1 + left), done / (1 + left)
        )


@pytree
class Tanh(Schedule):
    """Hyperbolic tangent: a plateau, a fall, a plateau.

        value(step) = end_value + (init_value - end_value) (1 - tanh(lower + (upper - lower) step / steps)) / 2

    for 0 <= step < steps, then `end_value`. The curve itself comes near both values without reaching either:
    it begins (1 + tanh(lower)) / 2 of the way down, and jumps over the last (1 - tanh(upper)) / 2 of it.

    Attributes:
        init_value: the value that the first plateau is near to; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative.
        lower: argument of the tangent at the beginning.
        upper: argument of the tangent at the end; above `lower`.

    Reference:
        Hsueh, Li and Wu, Stochastic gradient descent with hyperbolic-tangent decay, 2019 (arXiv:1806.01593).

    Example:
        >>> print(Tanh(0.2, steps=100, lower=-5.0, upper=5.0)(50))
        0.1
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0
    lower: Any = -7.0
    upper: Any = 3.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)
        require_number(self, "lower", self.lower, "a number from -40 to 40", lambda x: abs(x) <= 40)
        require_number(self, "upper", self.upper, "a number from -40 to 40", lambda x: abs(x) <= 40)
        if known(self.lower, self.upper):
            lower, upper = exact(self.lower), exact(self.upper)
            require((lower < upper).all(), self, "upper", self.upper, f"above lower={self.lower}")

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        # e^(2 x) for the argument x of the tangent, whose exponent has too many digits for a float32
        lower, upper = exact(self.lower), exact(self.upper)
        growth = exp2_product(
            clock.upto(self.steps), 2 * LOG2_E * (upper - lower) * clock.unit / exact(self.steps)
        )
        odds = clock.number(jnp.exp(2 * lower)) * growth
        ended = clock.reached(self.steps)
        fall, rise = jnp.where(ended, 0, 1 / (1 + odds)), jnp.where(ended, 1, odds / (1 + odds))
        return interpolate(self.init_value, self.end_value, fall, rise)
