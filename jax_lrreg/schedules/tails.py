"""Decays without an end of their own: exponential, inverse time, inverse square root, power law."""

from dataclasses import KW_ONLY

import chex
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_durations, require_positive, require_values
from jax_lrreg.schedules.digits import exact, exp2, log2


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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    decay_rate: chex.Numeric

    def __post_init__(self):
        require_values(self, init_value=self.init_value)
        require_positive(self, steps=self.steps, decay_rate=self.decay_rate)

    def value_at(self, clock):
        # With all digits, since an error of the exponent is one of the value, as large in units of
        # the value as the exponent is long: in float32 it is up to 71 ulp off within 100 halvings,
        # here 1.
        per_step = log2(exact(self.decay_rate)) * clock.unit / exact(self.steps)
        return clock.number(self.init_value) * exp2(clock.time * per_step)


@pytree
class HalfLife(Schedule):
    """Half the value after each duration.

        value(step) = init_value 2^(-step / steps)     for step >= 0

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: the half-life; positive.

    Example:
        >>> print(HalfLife(0.1, steps=100)(200))
        0.025
    """

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric

    def __post_init__(self):
        require_values(self, init_value=self.init_value)
        require_positive(self, steps=self.steps)

    def value_at(self, clock):
        # Not through `Exponential`: the logarithm of 1/2 is -1, and needs no digits of its own.
        return clock.number(self.init_value) * exp2(clock.time * (-clock.unit / exact(self.steps)))


@pytree
class InverseTime(Schedule):
    """A hyperbola: its reciprocal grows on a straight line.

        value(step) = init_value / (1 + decay_rate step / steps)     for step >= 0

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: unit of time; positive.
        decay_rate: how fast the reciprocal grows; not negative.

    Reference:
        Robbins and Monro, A stochastic approximation method, 1951.

    Example:
        >>> print(InverseTime(0.1, steps=100)(300))
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
        # A float32 is enough here: the reciprocal of a sum of positive numbers magnifies no error.
        slope = clock.number(exact(self.decay_rate) / exact(self.steps))
        return clock.number(self.init_value) / (1 + clock.position() * slope)


@pytree
class InverseSqrt(Schedule):
    """The inverse square root of the time, from its peak on.

        value(step) = peak_value / sqrt(1 + step / timescale)     for step >= 0

    The conventions in use are this curve after different beginnings. They have constructors of
    their own: `fairseq`, `t5`, `shifted`, and the function `schedules.noam`.

    Attributes:
        peak_value: value at step 0 and before; not negative.
        timescale: after how many steps the value is 1 / sqrt(2) of the peak; positive.

    Example:
        >>> print(InverseSqrt(0.1, timescale=100)(300))
        0.05
    """

    peak_value: chex.Numeric
    _: KW_ONLY
    timescale: chex.Numeric

    def __post_init__(self):
        require_values(self, peak_value=self.peak_value)
        require_positive(self, timescale=self.timescale)

    def value_at(self, clock):
        # In this order: of 1 / sqrt(x) XLA makes an rsqrt, which is off by 1.5 ulp, this by 0.8.
        grown = 1 + clock.position() * clock.number(1 / exact(self.timescale))
        return clock.number(self.peak_value) * jnp.sqrt(1 / grown)

    @classmethod
    def fairseq(
        cls, peak_value: chex.Numeric, *, warmup_steps: chex.Numeric, init_value: chex.Numeric = 0.0
    ) -> Schedule:
        """A straight line up, then the inverse square root of the step counted from 0.

            value(step) = init_value + (peak_value - init_value) step / warmup_steps   at first
                        = peak_value sqrt(warmup_steps / step)       from step = warmup_steps on

        Example:
            >>> InverseSqrt.fairseq(0.1, warmup_steps=10)
            InverseSqrt(0.1, timescale=10).warmup(10)
        """
        owner = "InverseSqrt.fairseq"
        require_values(owner, peak_value=peak_value, init_value=init_value)
        require_positive(owner, warmup_steps=warmup_steps)
        # From the end of the warmup on, sqrt(warmup_steps / step) is 1 / sqrt(1 + done /
        # warmup_steps).
        return cls(peak_value, timescale=warmup_steps).warmup(warmup_steps, init_value=init_value)

    @classmethod
    def t5(cls, factor: chex.Numeric = 1.0, *, warmup_steps: chex.Numeric) -> Schedule:
        """A constant, then the inverse square root of the step, not normalised.

            value(step) = factor / sqrt(max(step, warmup_steps))

        Reference:
            Raffel et al., Exploring the limits of transfer learning, 2020, sec. 3.1.2
            (arXiv:1910.10683).

        Example:
            >>> InverseSqrt.t5(warmup_steps=10_000)
            InverseSqrt(0.01, timescale=10000).shift(10000)
        """
        require_values("InverseSqrt.t5", factor=factor)
        require_positive("InverseSqrt.t5", warmup_steps=warmup_steps)
        # A shifted schedule holds its first value until it begins: that is the `max` of the
        # formula.
        return cls(factor * inverse_root(warmup_steps), timescale=warmup_steps).shift(warmup_steps)

    @classmethod
    def shifted(
        cls,
        peak_value: chex.Numeric,
        *,
        warmup_steps: chex.Numeric,
        timescale: chex.Numeric,
        shift: chex.Numeric = 0,
        init_value: chex.Numeric = 0.0,
    ) -> Schedule:
        """A straight line up, then an inverse square root with a time scale of its own.

            value(step) = peak_value / sqrt(1 + (step - warmup_steps + shift) / timescale)

        and a straight line from `init_value` to that before.

        Reference:
            Zhai et al., Scaling vision transformers, 2022, sec. 3.5 (arXiv:2106.04560).

        Example:
            >>> InverseSqrt.shifted(0.1, warmup_steps=10, timescale=1000)
            InverseSqrt(0.1, timescale=1000).warmup(10)
        """
        owner = "InverseSqrt.shifted"
        require_values(owner, peak_value=peak_value, init_value=init_value)
        require_durations(owner, warmup_steps=warmup_steps, shift=shift)
        require_positive(owner, timescale=timescale)
        if known(shift) and np.all(np.asarray(shift) == 0):
            tail = cls(peak_value, timescale=timescale)
        else:
            # 1 + (t + shift) / k = (1 + shift / k) (1 + t / (k + shift)): a lower peak, a longer
            # scale.
            peak = peak_value * inverse_root(1 + shift / timescale)
            tail = cls(peak, timescale=timescale + shift)
        return tail.warmup(warmup_steps, init_value=init_value)


@pytree
class PowerLaw(Schedule):
    """A power of the time.

        value(step) = init_value (1 + step / timescale)^-exponent     for step >= 0

    Attributes:
        init_value: value at step 0 and before; not negative.
        timescale: after how many steps the time has doubled; positive.
        exponent: positive. 1 is `InverseTime`, 1/2 is `InverseSqrt`.

    Example:
        >>> print(PowerLaw(0.1, timescale=100, exponent=2.0)(100))
        0.025
    """

    init_value: chex.Numeric
    _: KW_ONLY
    timescale: chex.Numeric
    exponent: chex.Numeric

    def __post_init__(self):
        require_values(self, init_value=self.init_value)
        require_positive(self, timescale=self.timescale, exponent=self.exponent)

    def value_at(self, clock):
        # The exponent multiplies the error of the logarithm: at 5, float32 is off by 7 ulp, this by
        # 1.
        grown = 1 + clock.time * (clock.unit / exact(self.timescale))
        return clock.number(self.init_value) * exp2(-log2(grown) * exact(self.exponent))


def inverse_root(x: chex.Numeric) -> chex.Numeric:
    """1 / sqrt(x), in double precision and as a Python number where x is one."""
    if not known(x):
        return x**-0.5
    # A Python number prints as its shortest text, and reads back as the same number.
    root = np.asarray(x, np.float64) ** -0.5
    return root if np.ndim(root) else float(root)
