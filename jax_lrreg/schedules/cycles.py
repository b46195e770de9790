"""Cycles: schedules that come back."""

from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree
from jax_lrreg.schedules.base import LARGEST, Schedule, require_positive, require_values
from jax_lrreg.schedules.clock import Clock, Interval, split
from jax_lrreg.schedules.curves import between, half_wave, power
from jax_lrreg.schedules.digits import Double, choose, exact, exp2, log2


@pytree
class Cyclic(Schedule):
    """Straight up and straight down, over and over.

        value(step) = init_value + (peak_value - init_value) cycle_decay^cycle step_decay^step
        triangle(step)

    where `triangle` rises from 0 to 1 within `up_steps` and falls back within `down_steps`, and
    `cycle` counts the triangles from 0. The named forms with a decay have constructors of their
    own: `triangular2`, `exp_range`. With a peak below `init_value` it is the inverse cycle that
    momentum takes.

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

    init_value: chex.Numeric
    _: KW_ONLY
    peak_value: chex.Numeric
    up_steps: chex.Numeric
    down_steps: chex.Numeric
    cycle_decay: chex.Numeric = 1.0
    step_decay: chex.Numeric = 1.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, peak_value=self.peak_value)
        require_positive(self, up_steps=self.up_steps, down_steps=self.down_steps)
        for name in ("cycle_decay", "step_decay"):
            allowed, decay = "a number in (0, 1]", getattr(self, name)
            require_number(self, name, decay, allowed, lambda x: (x > 0) & (x <= 1))

    def value_at(self, clock):
        # Both ways count from where the triangle is 0, so that neither loses digits near the foot.
        cycle, up = clock.cycle(self.up_steps + self.down_steps)
        down = up.after(self.up_steps)
        falling = down.begun
        rise = jnp.where(falling, down.left(self.down_steps), up.done(self.up_steps))
        fall = jnp.where(falling, down.done(self.down_steps), up.left(self.up_steps))
        triangle = between(self.init_value, self.peak_value, fall, rise)
        if all(isinstance(x, int | float) and x == 1 for x in (self.cycle_decay, self.step_decay)):
            return triangle
        by_cycle = Double.of(cycle, clock.dtype) * log2(exact(self.cycle_decay))
        by_step = clock.time * (log2(exact(self.step_decay)) * clock.unit)
        # One power of both decays: two of them would round twice, and underflow one before the
        # other.
        height = exp2(by_cycle + by_step)
        return (1 - height) * clock.number(self.init_value) + height * triangle

    @classmethod
    def triangular2(
        cls,
        init_value: chex.Numeric,
        *,
        peak_value: chex.Numeric,
        up_steps: chex.Numeric,
        down_steps: chex.Numeric,
    ) -> "Cyclic":
        """Each triangle half as high as the one before."""
        ways = {"up_steps": up_steps, "down_steps": down_steps}
        return cls(init_value, peak_value=peak_value, **ways, cycle_decay=0.5)

    @classmethod
    def exp_range(
        cls,
        init_value: chex.Numeric,
        *,
        peak_value: chex.Numeric,
        up_steps: chex.Numeric,
        down_steps: chex.Numeric,
        step_decay: chex.Numeric,
    ) -> "Cyclic":
        """The height decays with every step, counted from the start."""
        ways = {"up_steps": up_steps, "down_steps": down_steps}
        return cls(init_value, peak_value=peak_value, **ways, step_decay=step_decay)


@pytree
class CosineRestarts(Schedule):
    """Half cosine waves one after the other, each from the top again: warm restarts.

        value(step) = end_value + (init_value - end_value) decay^i (1 + cos(pi x)) / 2

    in cycle i = 0, 1, ..., which takes steps * multiplier^i, at the fraction x of it. The end of a
    cycle is the beginning of the next, so `end_value` is reached only after the last one, if there
    is a `limit`.

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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    end_value: chex.Numeric = 0.0
    multiplier: chex.Numeric = 1
    decay: chex.Numeric = 1.0
    limit: chex.Numeric | None = None

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps)
        require_positive(self, decay=self.decay)
        require_number(self, "multiplier", self.multiplier, "a number >= 1", lambda x: x >= 1)
        if self.limit is not None:
            whole = "a whole number >= 1 or None"
            require_number(self, "limit", self.limit, whole, lambda x: (x >= 1) & (x == np.rint(x)))

    @property
    def horizon(self):
        if self.limit is None:
            return None
        total, growth = self.steps * self.limit, self.multiplier
        if isinstance(growth, int | float) and growth == 1:
            return total
        longer = growth if known(growth) else jnp.where(growth > 1, growth, 2)
        grown = self.steps * (longer**self.limit - 1) / (longer - 1)
        return grown if known(growth) else jnp.where(growth > 1, grown, total)

    def value_at(self, clock):
        cycle, own, length = self._cycle(clock)
        height = exp2(Double.of(cycle, clock.dtype) * log2(exact(self.decay)))
        end = clock.number(self.end_value)
        # With a decay above 1 it grows without end, but never to where inf - inf would be a NaN.
        top = jnp.minimum(end + (clock.number(self.init_value) - end) * height, LARGEST)
        value = between(top, end, *half_wave(own.left(length), own.done(length)))
        # Half a cycle apart, as a limit that was traced or batched may be a float.
        return value if self.limit is None else jnp.where(cycle + 0.5 > self.limit, end, value)

    def _cycle(self, clock: Clock) -> Interval:
        """Which cycle it is, the clock within it and its length."""
        numbers = (self.steps, self.multiplier, clock.unit)
        if not known(*numbers) or any(isinstance(x, Double) or np.ndim(x) for x in numbers):
            return _counted(clock, self.steps, self.multiplier)
        # Cycles of one length need no table, and there may be 2^31 of them.
        if self.multiplier == 1:
            return Interval(*clock.cycle(self.steps), clock.steps_of(self.steps))
        # All cycles that begin before the last step, 31 for a multiplier of 2: their ends are known
        # while tracing, in double precision, and the step is compared with exact integers.
        ends, length = [], exact(self.steps)
        while not ends or ends[-1] <= LAST_STEP * clock.unit:
            ends.append(length + (ends[-1] if ends else 0))
            length = length * self.multiplier
            if len(ends) > 1000:  # a multiplier near 1
                return _counted(clock, self.steps, self.multiplier)
        return clock.interval(ends)


def _counted(clock: Clock, steps: chex.Numeric, multiplier: chex.Numeric) -> Interval:
    """The same where no table of all cycles can be made: their number is traced, or too large.

    A guess at the cycle from the logarithm, which may be one too high or too low, is followed by a
    look at that cycle and its neighbours.
    """
    first, growth = (Double.of(x, clock.dtype) for x in (exact(steps) / clock.unit, multiplier))
    grows = growth.high - 1 + growth.low
    slow = grows < 1e-5  # the logarithms are 0 / 0 or near to it
    passed = clock.time.high / first.high
    ratio = jnp.where(slow, 1.0, grows)
    guess = jnp.where(slow, passed, jnp.log1p(passed * ratio) / jnp.log1p(ratio))
    count = jnp.maximum(jnp.floor(jax.lax.stop_gradient(guess)) - 1, 0).astype(jnp.int32)
    factor, begun = _powers(growth, count)
    length = first * factor
    ends = [length, length * (1 + growth), length * (1 + growth + growth * growth)]
    near = clock.after(split(first * begun)).interval([split(end) for end in ends])
    return near._replace(index=count + near.index)


def _powers(growth: Double, count: jax.Array) -> tuple[Double, Double]:
    """growth^count and 1 + growth + ... + growth^(count - 1), by squaring.

    The closed form (growth^count - 1) / (growth - 1) has lost half of its digits for a growth of
    1.0001, and all for one of 1.
    """
    one = jnp.ones_like(growth.high * count)
    zero = jnp.zeros_like(one)

    def double(digit: int, pair: tuple[Double, Double]) -> tuple[Double, Double]:
        power, total = pair
        power, total = power * power, total * (power + 1)
        odd = (count >> (30 - digit)) & 1 > 0
        return choose(odd, power * growth, power), choose(odd, total * growth + 1, total)

    return jax.lax.fori_loop(0, 31, double, (Double(one, zero), Double(zero, zero)))


@pytree
class PolynomialCycle(Schedule):
    """A polynomial decay whose end moves on by `steps` each time it is reached.

        value(step) = end_value + (init_value - end_value) (1 - step / (steps n))^power

    with n = ceil(step / steps), 1 at step 0. It touches `end_value` at every multiple of `steps`,
    and rises again one step later, each time less.

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

    init_value: chex.Numeric
    _: KW_ONLY
    steps: chex.Numeric
    power: chex.Numeric = 1.0
    end_value: chex.Numeric = 0.0

    def __post_init__(self):
        require_values(self, init_value=self.init_value, end_value=self.end_value)
        require_positive(self, steps=self.steps, power=self.power)

    def value_at(self, clock):
        # With p periods behind it, n = p + 1: of the p + 1 periods of the whole, p and a share are
        # done. At a multiple of `steps`, n is still p there: the decay has just ended, and 0 is
        # left of it.
        passed, own = clock.cycle(self.steps)
        left, done = own.share(self.steps)
        count, ended = Double.of(passed, clock.dtype), (done.high <= 0) & (passed > 0)
        left, done = left / (count + 1), (count + done) / (count + 1)
        zero, one = (Double.of(x, clock.dtype) for x in (0.0, 1.0))
        curve = power(choose(ended, zero, left), choose(ended, one, done), self.power)
        return between(self.init_value, self.end_value, *curve)
