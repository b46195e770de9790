"""Decays with an end: from one value to another, once."""

from dataclasses import KW_ONLY

import chex
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.curves import (
    between,
    exact_half_wave,
    exact_power,
    half_wave,
    is_one,
    power,
)
from jax_lrreg.schedules.digits import LOG2_E, exact, exp2


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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    end_value: chex.Numeric = 0.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        left, done = clock.left(self.steps), clock.done(self.steps)
        return between(self.init_value, self.end_value, left, done)


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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    power: chex.Numeric = 1.0
    end_value: chex.Numeric = 0.0
    k_decay: chex.Numeric = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, power=self.power, k_decay=self.k_decay)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        left, done = clock.share(self.steps)
        done, left = exact_power(done, left, self.k_decay)
        return between(self.init_value, self.end_value, *power(left, done, self.power))


@pytree
class Cosine(Schedule):
    """Half a cosine wave.

        value(step) = end_value + (init_value - end_value) ((1 + cos(pi (step / steps)^k_decay)) /
        2)^exponent

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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    end_value: chex.Numeric = 0.0
    exponent: chex.Numeric = 1.0
    k_decay: chex.Numeric = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, exponent=self.exponent, k_decay=self.k_decay)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        # The usual cosine in plain float32; powers of it, which would magnify its error, with all
        # digits.
        if is_one(self.k_decay) and is_one(self.exponent):
            curve = half_wave(clock.left(self.steps), clock.done(self.steps))
        else:
            left, done = clock.share(self.steps)
            done, left = exact_power(done, left, self.k_decay)
            curve = power(*exact_half_wave(left, done), self.exponent)
        return between(self.init_value, self.end_value, *curve)


@pytree
class Rex(Schedule):
    """Reflected exponential: slow at first, then ever faster.

        value(step) = end_value + (init_value - end_value) (1 - x) / (1 - x / 2),  x = step / steps

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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    end_value: chex.Numeric = 0.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        left, done = clock.left(self.steps), clock.done(self.steps)
        # (1 - x) / (1 - x / 2) in what is left, 1 - x: nothing cancels, and done / (1 + left) is
        # one minus it.
        fall, rise = 2 * left / (1 + left), done / (1 + left)
        return between(self.init_value, self.end_value, fall, rise)


@pytree
class Tanh(Schedule):
    """Hyperbolic tangent: a plateau, a fall, a plateau.

        value(step) = end_value + (init_value - end_value) (1 - tanh(lower + (upper - lower) step /
        steps)) / 2

    for 0 <= step < steps, then `end_value`. The curve itself comes near both values without
    reaching either: it begins (1 + tanh(lower)) / 2 of the way down, and jumps over the last (1 -
    tanh(upper)) / 2 of it.

    Attributes:
        init_value: the value that the first plateau is near to; not negative.
        steps: duration; positive.
        end_value: value from `steps` on; not negative.
        lower: argument of the tangent at the beginning.
        upper: argument of the tangent at the end; above `lower`.

    Reference:
        Hsueh, Li and Wu, Stochastic gradient descent with hyperbolic-tangent decay, 2019
        (arXiv:1806.01593).

    Example:
        >>> print(Tanh(0.2, steps=100, lower=-5.0, upper=5.0)(50))
        0.1
    """

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    end_value: chex.Numeric = 0.0
    lower: chex.Numeric = -7.0
    upper: chex.Numeric = 3.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)
        for name in ("lower", "upper"):
            allowed = "a number from -40 to 40"
            require_number(self, name, getattr(self, name), allowed, lambda x: abs(x) <= 40)
        if known(self.lower, self.upper):
            allowed = f"above lower={self.lower}"
            require(np.all(np.less(self.lower, self.upper)), self, "upper", self.upper, allowed)

    @property
    def horizon(self):
        return self.steps

    def value_at(self, clock):
        # e^(2 x) for the argument x of the tangent, which has too many digits for a float32: it
        # runs from -80 to 80, where one unit in its last place is 1e-5 of the exponential.
        lower, upper = exact(self.lower), exact(self.upper)
        slope = (upper - lower) * clock.unit / exact(self.steps)
        odds = exp2((clock.upto(self.steps).time * slope + lower) * (2 * LOG2_E))
        ended = clock.reached(self.steps)
        fall, rise = jnp.where(ended, 0, 1 / (1 + odds)), jnp.where(ended, 1, odds / (1 + odds))
        return between(self.init_value, self.end_value, fall, rise)
