"""Exact time. Where a schedule stands is counted in integers and becomes a fraction only at the end.

A float32 holds integers up to 2^24 only, and `1 - step / steps` loses all its digits near the end.
So a `Clock` keeps whole steps as an integer and what is left over as a fraction below one, and
computes what remains before it divides: the result is right to a few units in the last place at
every step up to 2^31 - 1, and exactly 0 and 1 at the ends.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LAST_STEP = 2**31 - 1


class Clock(NamedTuple):
    """The position of a step in the piece of a schedule that began at step 0 of this clock.

    Attributes:
        step: whole steps since the piece began, an integer array; -1 for any time before it.
        part: the rest, in [0, 1) steps; the Python number 0 where steps are whole.
        unit: units of the piece that one step covers; see `Schedule.in_units`.
        dtype: float32, or float64 where the step was a float64.
    """

    step: jax.Array
    part: Any = 0
    unit: Any = 1
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, step: Any) -> "Clock":
        """The clock that shows `step`: a Python number, or an array of any integer or float dtype."""
        if isinstance(step, int | float):
            whole = int(np.floor(np.clip(step, -1, LAST_STEP)))
            part = 0 if isinstance(step, int) or not -1 <= step < LAST_STEP else step - whole
            return cls(jnp.int32(whole), part if part else 0)
        step = jnp.asarray(step)
        if jnp.issubdtype(step.dtype, jnp.integer):
            if step.dtype.itemsize >= 4 and step.dtype != jnp.int32:  # uint32 and 64 bits do not fit
                step = jnp.minimum(step, LAST_STEP)
            return cls(jnp.maximum(step.astype(jnp.int32), -1))
        if not jnp.issubdtype(step.dtype, jnp.floating):
            raise TypeError(f"a schedule takes a real number as its step, got an array of {step.dtype}")
        dtype = jnp.promote_types(step.dtype, jnp.float32)
        step = jnp.clip(step.astype(dtype), -1, LAST_STEP)
        whole = jnp.floor(step)
        return cls(whole.astype(jnp.int32), step - whole, dtype=dtype)

    def steps_of(self, duration: Any) -> tuple[Any, Any]:
        """A duration in units of the piece as whole steps and a rest in [0, 1)."""
        if isinstance(duration, jax.core.Tracer) or isinstance(self.unit, jax.core.Tracer):
            steps = duration if self._plain else duration / self.unit
            if jnp.issubdtype(jnp.result_type(steps), jnp.integer):
                return jnp.asarray(steps, jnp.int32), 0
            whole = jnp.floor(jax.lax.stop_gradient(steps))
            return whole.astype(jnp.int32), steps - whole
        steps = np.asarray(duration, np.float64) / np.float64(self.unit)
        nearest = np.rint(steps)
        steps = np.where(np.abs(steps - nearest) <= 4e-16 * np.abs(nearest), nearest, steps)  # 5 / (1/390)
        whole = np.floor(steps)
        if np.any(whole > LAST_STEP):
            raise ValueError(
                f"a duration of {duration} is {float(np.max(steps)):.6g} steps, beyond 2^31 - 1; write a longer "
                "horizon in larger units with `in_units(per_step=...)`"
            )
        part = steps - whole
        return np.asarray(whole, np.int32), self._number(part) if np.any(part) else 0

    def left(self, duration: Any) -> jax.Array:
        """The fraction of `duration` that remains: 1 up to the beginning, exactly 0 from the end on."""
        whole, part, total = self._span(duration)
        late = jnp.minimum(whole, LAST_STEP - 1) + 1
        remaining = (whole - jnp.clip(self.step, 0, late)).astype(self.dtype) + (part - self._started_part())
        fraction = jnp.clip(remaining, 0, total) / jnp.where(total > 0, total, 1)
        return jnp.where(remaining >= total, jnp.where(remaining > 0, self._number(1), 0), fraction)

    def done(self, duration: Any) -> jax.Array:
        """The fraction of `duration` that has passed: 0 up to the beginning, exactly 1 from the end on."""
        whole, _, total = self._span(duration)
        late = jnp.minimum(whole, LAST_STEP - 1) + 1
        elapsed = jnp.clip(self.step, 0, late).astype(self.dtype) + self._started_part()
        return jnp.where(elapsed >= total, self._number(1), elapsed / jnp.where(total > 0, total, 1))

    def reached(self, duration: Any) -> jax.Array:
        """Whether `duration` has passed."""
        whole, part = self.steps_of(duration)
        if isinstance(part, int) and isinstance(self.part, int):
            return self.step >= whole
        return (self.step > whole) | ((self.step == whole) & (self.part >= part))

    def after(self, duration: Any) -> "Clock":
        """The clock of a piece that begins when `duration` has passed."""
        whole, part = self.steps_of(duration)
        return self._moved(-whole, self.part - part if not isinstance(part, int) else self.part)

    def before(self, duration: Any) -> "Clock":
        """The clock of a piece that began a `duration` earlier."""
        whole, part = self.steps_of(duration)
        step = jnp.minimum(self.step, LAST_STEP - whole)
        return self._replace(step=step)._moved(whole, self.part + part)

    def upto(self, duration: Any) -> "Clock":
        """This clock, kept within [0, duration]: what a piece sees while it is idle."""
        whole, part = self.steps_of(duration)
        ended = self.reached(duration)
        step = jnp.where(ended, whole, jnp.maximum(self.step, 0))
        if isinstance(part, int) and isinstance(self.part, int):
            return self._replace(step=step)
        return self._replace(step=step, part=jnp.where(ended, part, self._started_part()))

    def cycle(self, period: Any) -> tuple[jax.Array, "Clock"]:
        """How many whole periods have passed, and the clock within the current one."""
        whole, part = self.steps_of(period)
        step = jnp.maximum(self.step, 0)
        if isinstance(part, int):
            whole = jnp.maximum(whole, 1)
            return step // whole, self._replace(step=step % whole, part=self._started_part())
        total = self._number(whole) + part
        count = jnp.floor((step.astype(self.dtype) + self._started_part()) / total).astype(jnp.int32)
        rest = (step - count * whole).astype(self.dtype) + (self._started_part() - count * part)
        wrong = (rest >= total).astype(jnp.int32) - (rest < 0)  # the quotient was rounded
        rest = jnp.clip(rest - wrong * total, 0, total)
        floor = jnp.floor(rest)
        return count + wrong, self._replace(step=floor.astype(jnp.int32), part=rest - floor)

    def position(self) -> jax.Array:
        """The position in units of the piece, from 0, as one floating-point number."""
        steps = jnp.maximum(self.step, 0).astype(self.dtype) + self._started_part()
        return steps if self._plain else steps * self._number(self.unit)

    def moment(self) -> Any:
        """The position as other functions take it: a whole number of steps where it is one."""
        return jnp.maximum(self.step, 0) if isinstance(self.part, int) and self._plain else self.position()

    @property
    def begun(self) -> jax.Array:
        """Whether the piece has begun."""
        return self.step >= 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the step."""
        return jnp.shape(self.step)

    def in_units(self, per_step: Any) -> "Clock":
        """The same moment for a piece written in units of which one step covers `per_step`."""
        return self._replace(unit=self.unit * per_step)

    @property
    def _plain(self) -> bool:
        return isinstance(self.unit, int) and self.unit == 1

    def _moved(self, whole: Any, part: Any) -> "Clock":
        """This clock moved by whole steps, with a new rest in (-1, 2)."""
        if isinstance(part, int):
            return self._replace(step=jnp.maximum(self.step + whole, -1), part=part)
        carry = jnp.floor(jax.lax.stop_gradient(part))
        step = self.step + whole + carry.astype(jnp.int32)
        return self._replace(step=jnp.maximum(step, -1), part=part - carry)

    def _span(self, duration: Any) -> tuple[Any, Any, jax.Array]:
        whole, part = self.steps_of(duration)
        return whole, part, self._number(whole) + part

    def _started_part(self) -> Any:
        return self.part if isinstance(self.part, int) else jnp.where(self.begun, self.part, 0)

    def _number(self, value: Any) -> jax.Array:
        return jnp.asarray(value, self.dtype)


def exp2_product(clock: Clock, factor: Any) -> jax.Array:
    """2^(t factor) for the position t of `clock` in steps, right to a few units in the last place.

    The exponent needs more digits than a float32 has: its whole part may be -100 while its fraction
    decides the value. So t is cut into digits of 11 bits and `factor` to 12 bits plus a remainder; each
    product is then exact, and its whole part is taken off before anything is added up.
    """
    if clock.dtype != jnp.float32:
        return jnp.exp2((jnp.maximum(clock.step, 0) + clock._started_part()) * clock._number(factor))
    if isinstance(factor, jax.core.Tracer):
        coarse = jax.lax.reduce_precision(factor, exponent_bits=8, mantissa_bits=11)
        fine = factor - coarse
    else:
        mantissa, exponent = np.frexp(np.asarray(factor, np.float64))
        coarse = np.ldexp(np.rint(mantissa * 4096), exponent - 12)
        fine = clock._number(factor - coarse)
    count, part = jnp.maximum(clock.step, 0), clock._started_part()
    rest = count.astype(jnp.float32) * fine + part * clock._number(factor)
    whole = jnp.zeros(())
    for shift in (22, 11, 0):
        digit = ((count >> shift) & 2047).astype(jnp.float32)
        product = digit * clock._number(coarse * 2.0**shift)
        nearest = jax.lax.stop_gradient(jnp.round(product))
        whole, rest = whole + nearest, rest + (product - nearest)
    nearest = jax.lax.stop_gradient(jnp.round(rest))
    exponent = jnp.clip(whole + nearest, -127, 127).astype(jnp.int32)  # 2^-127 is flushed to 0 below
    power = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return jnp.exp2(jnp.clip(rest - nearest, -1, 1)) * power
