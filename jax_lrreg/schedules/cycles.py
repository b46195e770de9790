"""Cycles: schedules that come back."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import Schedule, require_positive, require_values
from jax_lrreg.schedules.clock import Clock, exp2_product
from jax_lrreg.schedules.curves import half_wave, interpolate, power
from jax_lrreg.schedules.digits import exact_power, log2


@pytree
class Cyclic(Schedule):
    """Straight up and straight down, over and over.

        value(step) = init_value + (peak_value - init_value) cycle_decay^cycle step_decay^step triangle(step)

    where `triangle` rises from 0 to 1 within `up_steps` and falls back within `down_steps`, and `cycle` counts
    the triangles from 0. The named forms have constructors: `triangular`, `triangular2`, `exp_range`. With a peak
    below `init_value` it is the inverse cycle that momentum takes.

    Attributes:
        init_value: value at the foot of the triangle; not negative.
        peak_value: value at its tip, in the first cycle and without decay; not negative.
        up_steps: duration of the way up; positive.
        down_steps: duration of the way down; positive.
        cycle_decay: factor on the height after each cycle; in (0, 1].
        step_decay: factor on the height after each step; in (0, 1].

    Reference:
        Smith, Cyclical learning rates for training neural networks, 2017 (arXiv:1506.01186).

    Example:
        >>> lr = Cyclic(0.0, peak_value=0.1, up_steps=10, down_steps=20)
        >>> print(lr(10), lr(20), lr(35))
        0.1 0.05 0.05
    """

    init_value: Any
    _: KW_ONLY
    peak_value: Any
    up_steps: Any
    down_steps: Any
    cycle_decay: Any = 1.0
    step_decay: Any = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, peak_value=self.peak_value)
        require_positive(self, up_steps=self.up_steps, down_steps=self.down_steps)
        for name in ("cycle_decay", "step_decay"):
            require_number(
                self, name, getattr(self, name), "a number in (0, 1]", lambda x: (x > 0) & (x <= 1)
            )

    def value_at(self, clock):
        cycle, up = clock.cycle(self.up_steps + self.down_steps)
        down = up.after(self.up_steps)
        falling = down.begun
        rise = jnp.where(falling, down.left(self.down_steps), up.done(self.up_steps))
        fall = jnp.where(falling, down.done(self.down_steps), up.left(self.up_steps))
        triangle = interpolate(self.init_value, self.peak_value, fall, rise)
        if all(isinstance(x, int | float) and x == 1 for x in (self.cycle_decay, self.step_decay)):
            return triangle
        height = exp2_product(clock.at_step(cycle), log2(self.cycle_decay))
        height = height * exp2_product(clock, log2(self.step_decay) * clock.unit)
        return (1 - height) * self.init_value + height * triangle

    @classmethod
    def triangular(
        cls, init_value: Any, *, peak_value: Any, up_steps: Any, down_steps: Any
    ) -> "Cyclic":
        """All triangles of the same height."""
        return cls(init_value, peak_value=peak_value, up_steps=up_steps, down_steps=down_steps)

    @classmethod
    def triangular2(
        cls, init_value: Any, *, peak_value: Any, up_steps: Any, down_steps: Any
    ) -> "Cyclic":
        """Each triangle half as high as the one before."""
        return cls(
            init_value,
            peak_value=peak_value,
            up_steps=up_steps,
            down_steps=down_steps,
            cycle_decay=0.5,
        )

    @classmethod
    def exp_range(
        cls, init_value: Any, *, peak_value: Any, up_steps: Any, down_steps: Any, step_decay: Any
    ) -> "Cyclic":
        """The height decays with every step, counted from the start."""
        return cls(
            init_value,
            peak_value=peak_value,
            up_steps=up_steps,
            down_steps=down_steps,
            step_decay=step_decay,
        )


@pytree
class CosineRestarts(Schedule):
    """Half cosine waves one after the other, each from the top again: warm restarts.

        value(step) = end_value + (init_value - end_value) decay^i (1 + cos(pi x)) / 2

    in cycle i = 0, 1, ..., which takes steps * multiplier^i, at the fraction x of it. The end of a cycle is the
    beginning of the next, so `end_value` is reached only after the last one, if there is a `limit`.

    Attributes:
        init_value: value at the beginning of the first cycle; not negative.
        steps: duration of the first cycle; positive.
        end_value: what every cycle falls towards; not negative.
        multiplier: how many times longer each cycle is than the one before; at least 1.
        decay: factor on the height from one cycle to the next; in (0, 1].
        limit: number of cycles, after which it holds `end_value`; None for no limit.

    Reference:
        Loshchilov and Hutter, SGDR, 2017, eq. 5 (arXiv:1608.03983).

    Example:
        >>> lr = CosineRestarts(0.1, steps=10, multiplier=2, decay=0.5)
        >>> print(f"{lr(5):.3f} {lr(10):.3f} {lr(20):.3f} {lr(30):.3f}")
        0.050 0.050 0.025 0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    end_value: Any = 0.0
    multiplier: Any = 1
    decay: Any = 1.0
    limit: Any = None

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)
        require_number(self, "multiplier", self.multiplier, "a number >= 1", lambda x: x >= 1)
        require_number(
            self, "decay", self.decay, "a number in (0, 1]", lambda x: (x > 0) & (x <= 1)
        )
        if self.limit is not None:
            whole = "a whole number >= 1 or None"
            require_number(self, "limit", self.limit, whole, lambda x: (x >= 1) & (x == np.rint(x)))

    @property
    def horizon(self):
        if self.limit is None:
            return None
        total, limit = self.steps * self.limit, self.limit
        if isinstance(self.multiplier, int | float) and self.multiplier == 1:
            return total
        grows = self.multiplier > 1
        longer = (
            jnp.where(grows, self.multiplier, 2) if not known(self.multiplier) else self.multiplier
        )
        grown = self.steps * (longer**limit - 1) / (longer - 1)
        return grown if known(self.multiplier) else jnp.where(grows, grown, total)

    def value_at(self, clock):
        cycle, left, done = self._cycle(clock)
        height = exp2_product(clock.at_step(cycle), log2(self.decay))
        fall, rise = half_wave(left, done)
        top = self.end_value + (self.init_value - self.end_value) * height
        value = interpolate(top, self.end_value, fall, rise)
        return (
            value
            if self.limit is None
            else jnp.where(cycle + 0.5 > self.limit, self.end_value, value)
        )

    def _cycle(self, clock: Clock) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Which cycle it is, and the fractions of it that are left and done."""
        numbers = (self.steps, self.multiplier, clock.unit)
        if not all(isinstance(x, int | float) for x in numbers) or 1 != self.multiplier < 1.01:
            return _count_cycles(clock, self.steps, self.multiplier)
        if self.multiplier == 1:
            cycle, own = clock.cycle(self.steps)
            return cycle, own.left(self.steps), own.done(self.steps)
        ends, length, last = [], self.steps, LAST_STEP * clock.unit
        while not ends or ends[-1] <= last:
            ends.append(length + (ends[-1] if ends else 0))
            length = length * self.multiplier
        cycle, own, duration = clock.interval([clock.split(end / clock.unit) for end in ends])
        return cycle, own.left(duration), own.done(duration)


def _count_cycles(
    clock: Clock, steps: Any, multiplier: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same in closed form, for traced numbers and for too many cycles: a guess, then a look at those around it."""
    first, growth = clock.number(steps), clock.number(multiplier)
    slow, rise = jnp.abs(growth - 1) < 1e-5, growth - 1
    passed = clock.position() / first
    ratio = jnp.where(slow, 2, growth)
    guess = jnp.where(slow, passed, jnp.log1p(passed * (ratio - 1)) / jnp.log(ratio))
    count = jnp.maximum(jnp.floor(jax.lax.stop_gradient(guess)) - 1, 0)
    power = exact_power(ratio, count)
    whole = jnp.round(
        jax.lax.stop_gradient(power)
    )  # what it is for a whole ratio, if that is not too large
    power = jnp.where(
        ratio == jnp.round(ratio), power + jax.lax.stop_gradient(whole - power), power
    )
    begin = jnp.where(slow, count * (1 + (count - 1) / 2 * rise), (power - 1) / (ratio - 1))
    length = first * jnp.where(slow, 1 + count * rise, power)
    own = clock.after(clock.split(first * begin / clock.unit))
    ends = (length, length * (1 + growth), length * (1 + growth + growth**2))
    index, own, duration = own.interval([clock.split(end / clock.unit) for end in ends])
    return count.astype(jnp.int32) + index, own.left(duration), own.done(duration)


@pytree
class PolynomialCycle(Schedule):
    """A polynomial decay whose end moves on by `steps` each time it is reached.

        value(step) = end_value + (init_value - end_value) (1 - step / (steps n))^power

    with n = ceil(step / steps), 1 at step 0. It touches `end_value` at every multiple of `steps`, and rises again
    one step later, each time less.

    Attributes:
        init_value: value at step 0 and before; not negative.
        steps: duration until the first end; positive.
        power: exponent; positive.
        end_value: value at every multiple of `steps`; not negative.

    Example:
        >>> lr = PolynomialCycle(0.1, steps=100)
        >>> print(lr(50), lr(100), lr(150))
        0.05 0.0 0.025
    """

    init_value: Any
    _: KW_ONLY
    steps: Any
    power: Any = 1.0
    end_value: Any = 0.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, power=self.power)

    def value_at(self, clock):
        passed, own = clock.cycle(self.steps)
        left, done = own.left(self.steps), own.done(self.steps)
        ended = (done <= 0) & (passed > 0)
        count = clock.number(passed) + 1
        left = jnp.where(ended, 0, left / count)
        done = jnp.where(ended, 1, (clock.number(passed) + done) / count)
        return interpolate(self.init_value, self.end_value, *power(left, done, self.power))
