"""Exact time. Where a schedule stands is counted in integers and becomes a fraction only at the end.

A float32 holds integers up to 2^24 only, and `1 - step / steps` loses all its digits near the end.
So a `Clock` keeps whole steps as an integer and what is left over as a fraction below one, and
computes what remains before it divides: the result is right to a few units in the last place at
every step up to 2^31 - 1, and exactly 0 and 1 at the ends.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require
from jax_lrreg.schedules.digits import digits_of, exp2_sum

LARGEST = 2**31 - 128  # the last float32 that an int32 can hold


class Steps(NamedTuple):
    """A duration in steps: whole ones and a rest. `Clock` takes it wherever it takes a number."""

    whole: Any
    part: Any


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
        if (
            isinstance(step, int | float) and not isinstance(step, bool) and step == step
        ):  # a NaN stays one
            whole = math.floor(min(max(step, -1), LAST_STEP))
            part = 0 if isinstance(step, int) or not -1 <= step < LAST_STEP else step - whole
            return cls(
                jnp.int32(whole), part if part else 0, dtype=jnp.result_type(jnp.float32, step)
            )
        step = _as_array(step)
        if jnp.issubdtype(step.dtype, jnp.integer):
            if (
                step.dtype.itemsize >= 4 and step.dtype != jnp.int32
            ):  # uint32 and 64 bits do not fit
                step = jnp.minimum(step, LAST_STEP)
            return cls(jnp.maximum(step.astype(jnp.int32), -1))
        dtype = jnp.promote_types(step.dtype, jnp.float32)
        step = jnp.clip(step.astype(dtype), -1, LAST_STEP)
        whole = jnp.floor(step)
        return cls(whole.astype(jnp.int32), step - whole, dtype=dtype)

    def steps_of(self, duration: Any) -> Steps:
        """A duration in units of the piece as whole steps and a rest in [0, 1)."""
        if isinstance(duration, Steps):
            return duration
        if not known(duration, self.unit):
            return self.split(duration if self._plain else duration / self.unit)
        steps = np.asarray(duration, np.float64) / np.float64(self.unit)
        nearest = np.rint(steps)
        steps = np.where(
            np.abs(steps - nearest) <= 4e-16 * np.abs(nearest), nearest, steps
        )  # 5 / (1/390)
        if np.any(steps >= LAST_STEP + 1):
            raise ValueError(
                f"a duration of {duration} is {float(np.max(steps)):.6g} steps, beyond 2^31 - 1; write a longer "
                "horizon in larger units with `in_units(per_step=...)`"
            )
        return self.split(steps)

    def split(self, steps: Any) -> Steps:
        """A number of steps as whole ones and a rest, which is large where an int32 is not enough."""
        if known(steps):
            whole = np.minimum(np.floor(steps), LAST_STEP)
            part = np.asarray(steps - whole, np.float64)
            return Steps(np.asarray(whole, np.int32), part if np.any(part) else 0)
        if jnp.issubdtype(jnp.result_type(steps), jnp.integer):
            return Steps(jnp.asarray(steps, jnp.int32), 0)
        whole = jnp.floor(jnp.minimum(jax.lax.stop_gradient(steps), LARGEST))
        return Steps(whole.astype(jnp.int32), steps - whole)

    def left(self, duration: Any) -> jax.Array:
        """The fraction of `duration` that remains: 1 up to the beginning, exactly 0 from the end on."""
        whole, part, total, late = self._span(duration)
        remaining = self.number(whole - jnp.clip(self.step, 0, late))
        rest = part - self._started_part()
        if not isinstance(rest, int):
            remaining = remaining + rest
            remaining = jnp.where(remaining <= self._slack(part), 0, remaining)
        fraction = jnp.clip(remaining, 0, total) / jnp.where(total > 0, total, 1)
        return jnp.where(remaining >= total, jnp.where(remaining > 0, self.number(1), 0), fraction)

    def done(self, duration: Any) -> jax.Array:
        """The fraction of `duration` that has passed: 0 up to the beginning, exactly 1 from the end on."""
        _, part, total, late = self._span(duration)
        elapsed = self._added(self.number(jnp.clip(self.step, 0, late)), self._started_part())
        return jnp.where(
            elapsed >= total - self._slack(part),
            self.number(1),
            elapsed / jnp.where(total > 0, total, 1),
        )

    def reached(self, duration: Any) -> jax.Array:
        """Whether `duration` has passed."""
        whole, part = self.steps_of(duration)
        if isinstance(part, int) and isinstance(self.part, int):
            return self.step >= whole
        ahead = self.part - part + self._slack(part)
        return (
            (self.step > whole)
            | ((self.step == whole) & (ahead >= 0))
            | ((self.step == whole - 1) & (ahead >= 1))
        )

    def after(self, duration: Any) -> "Clock":
        """The clock of a piece that begins when `duration` has passed; it began earlier if that is negative."""
        whole, part = self.steps_of(duration)
        if not isinstance(whole, jax.Array) and np.all(whole >= 0):
            step, rest = self.step, self.part
        else:
            step, rest = jnp.minimum(self.step, LAST_STEP + jnp.minimum(whole, 0)), self.part
        if not isinstance(part, int):
            step, rest = self._settled(step, rest - part, self._slack(part))
        return self._replace(step=jnp.maximum(jnp.maximum(step, -1) - whole, -1), part=rest)

    def started(self) -> "Clock":
        """This clock, standing at 0 before the beginning."""
        return self._replace(step=jnp.maximum(self.step, 0), part=self._started_part())

    def interval(self, boundaries: Sequence[Any]) -> tuple[jax.Array, "Clock", Steps]:
        """Which interval between 0 and rising boundaries this is, the clock in it, and its duration.

        After the last boundary it is still the last interval, whose duration has then passed.
        """
        pairs = [Steps(0, 0), *(self.steps_of(boundary) for boundary in boundaries)]
        whole = stack([pair.whole for pair in pairs])
        part = (
            0
            if all(isinstance(pair.part, int) for pair in pairs)
            else stack([pair.part for pair in pairs])
        )
        rank = max(jnp.ndim(self.step) + 1, np.ndim(whole))
        step, rest = (
            x if isinstance(x, int) else _align(x[..., None], rank) for x in (self.step, self.part)
        )
        inner = Steps(
            *(x if isinstance(x, int) else _align(x[..., 1:-1], rank) for x in (whole, part))
        )
        now = self._replace(step=step, part=rest)
        index = jnp.sum(now.reached(inner), axis=-1, dtype=jnp.int32)
        longer, more = whole[..., 1:] - whole[..., :-1], 0
        if not isinstance(part, int):
            more = part[..., 1:] - part[..., :-1]
            borrow = more < 0
            longer, more = longer - borrow, more + borrow
        start, length = (
            Steps(*(x if isinstance(x, int) else pick(x, index) for x in pair))
            for pair in ((whole, part), (longer, more))
        )
        return index, self.after(start), length

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
        step, rest = jnp.maximum(self.step, 0), self._started_part()
        if isinstance(part, int):
            whole = jnp.maximum(whole, 1)
            return step // whole, self._replace(step=step % whole, part=rest)
        total = self.number(whole + part)
        count = jnp.int32(self._added(self.number(step), rest) / total)
        for _ in range(
            3
        ):  # the quotient was rounded, and is many periods wrong where there are very many
            more, fraction = self._times(count, part)
            within, fraction = step - count * whole - more, rest - fraction
            wrong = jnp.floor(jax.lax.stop_gradient(self.number(within) + fraction) / total)
            ended = self.number(whole - within) + (part - fraction) <= self._slack(part)
            started = self.number(within) + fraction >= 0
            wrong = jnp.where(ended, jnp.maximum(wrong, 1), jnp.where(started, 0, wrong))
            count = count + wrong.astype(jnp.int32)
        more, fraction = self._times(count, part)
        within, fraction = self._settled(
            step - count * whole - more, rest - fraction, self._slack(part)
        )
        return count, self._replace(step=jnp.maximum(within, 0), part=fraction)

    def _times(self, count: jax.Array, part: Any) -> tuple[jax.Array, jax.Array]:
        """`count * part` as a whole number and a rest, without the error of a large product."""
        if self.dtype != jnp.float32:
            digits, pieces = [part], [count.astype(self.dtype)]
        else:
            digits, pieces = (
                digits_of(part, 4),
                [((count >> shift) & 2047) * 2.0**shift for shift in (22, 11, 0)],
            )
        whole, rest = jnp.int32(0), self.number(0)
        for digit in digits:
            for piece in pieces:
                product = self.number(piece) * self.number(digit)
                floor = jnp.floor(jax.lax.stop_gradient(product))
                whole, rest = whole + floor.astype(jnp.int32), rest + (product - floor)
        return whole, rest

    def position(self) -> jax.Array:
        """The position in units of the piece, from 0, as one floating-point number."""
        steps = self._added(self.number(jnp.maximum(self.step, 0)), self._started_part())
        return steps if self._plain else steps * self.number(self.unit)

    def moment(self) -> Any:
        """The position as other functions take it: a whole number of steps where it is one."""
        return (
            jnp.maximum(self.step, 0)
            if isinstance(self.part, int) and self._plain
            else self.position()
        )

    @property
    def begun(self) -> jax.Array:
        """Whether the piece has begun."""
        return self.step >= 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the step."""
        return jnp.shape(self.step)

    def at_step(self, step: jax.Array) -> "Clock":
        """The clock that shows a whole number of steps."""
        return self._replace(step=step, part=0)

    def number(self, value: Any) -> Any:
        """A number in the floating-point type of this clock; a known one as a constant."""
        return (
            jnp.asarray(value, self.dtype)
            if isinstance(value, jax.Array)
            else np.asarray(value, self.dtype)
        )

    def in_units(self, per_step: Any) -> "Clock":
        """The same moment for a piece written in units of which one step covers `per_step`."""
        return self._replace(unit=self.unit * per_step)

    @property
    def _plain(self) -> bool:
        return isinstance(self.unit, int) and self.unit == 1

    def _span(self, duration: Any) -> tuple[Any, Any, Any, Any]:
        """A duration as whole steps, their rest and the sum, and the step by which it has passed."""
        whole, part = self.steps_of(duration)
        library = jnp if isinstance(whole, jax.Array) else np
        return whole, part, self.number(whole + part), library.minimum(whole, LAST_STEP - 1) + 1

    def _added(self, steps: jax.Array, part: Any) -> jax.Array:
        return steps if isinstance(part, int) else steps + part

    def _settled(self, step: jax.Array, rest: jax.Array, slack: Any) -> tuple[jax.Array, jax.Array]:
        """A step and any rest as a step and a rest in [0, 1), where what is nearly a whole step is one."""
        nearest = jax.lax.stop_gradient(jnp.round(rest))
        rest = jnp.where(
            jnp.abs(rest - nearest) <= slack, rest - jax.lax.stop_gradient(rest - nearest), rest
        )
        carry = jnp.clip(jnp.floor(jax.lax.stop_gradient(rest)), -64, 1)
        step = jnp.where(carry > 0, jnp.minimum(step, LAST_STEP - 1), step) + carry.astype(
            jnp.int32
        )
        return step, rest - carry

    def _slack(self, part: Any) -> Any:
        """How late a time may be in steps and count as on time: what the rounding of a few fractions adds up to."""
        return (
            0
            if isinstance(part, int) and isinstance(self.part, int)
            else 4 * jnp.finfo(self.dtype).eps
        )

    def _started_part(self) -> Any:
        return self.part if isinstance(self.part, int) else jnp.where(self.begun, self.part, 0)


def _as_array(step: Any) -> jax.Array:
    """`step` as an array of integers or of floats; nothing else is one."""
    if isinstance(step, np.ndarray | np.generic) and step.dtype in (
        np.int64,
        np.uint64,
    ):  # JAX would cut off 32 bits
        step = np.maximum(np.minimum(step, LAST_STEP).astype(np.int64), -1).astype(np.int32)
    try:
        array = jnp.asarray(step)
    except (TypeError, ValueError, OverflowError):
        array = jnp.asarray(False)
    real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    require(
        real and step is not None,
        "Schedule",
        "step",
        step,
        "a real number or an array of them",
        error=TypeError,
    )
    return array


def pick(table: Any, index: jax.Array) -> jax.Array:
    """The entries of `table`, whose last axis `index` counts; any other axes of it go with those of `index`."""
    if jnp.ndim(table) == 1:
        return jnp.asarray(table)[index]
    table = jnp.broadcast_to(table, (*index.shape, table.shape[-1]))
    return jnp.take_along_axis(table, index[..., None], axis=-1)[..., 0]


def exp2_product(clock: Clock, factor: Any) -> jax.Array:
    """2^(t factor) for the position t of `clock` in steps, right to a few units in the last place.

    The exponent needs more digits than a float32 has: its whole part may be -100 while its fraction
    decides the value. So t is cut into digits of 11 bits and `factor` to 12 bits plus a remainder; each
    product is then exact, and its whole part is taken off before anything is added up.
    """
    count, part = jnp.maximum(clock.step, 0), clock._started_part()
    if clock.dtype != jnp.float32:
        return jnp.exp2(clock._added(count.astype(clock.dtype), part) * clock.number(factor))
    coarse, fine = digits_of(factor, 2)
    pieces = [((count >> shift) & 2047) * np.float32(2.0**shift) for shift in (22, 11, 0)]
    rest = count.astype(jnp.float32) * clock.number(fine)
    if not isinstance(part, int):
        rest = rest + part * clock.number(factor)
    return exp2_sum([piece * clock.number(coarse) for piece in pieces], rest)


def stack(values: Sequence[Any]) -> Any:
    """Numbers, or arrays that broadcast, side by side on a new last axis."""
    library = jnp if any(isinstance(value, jax.Array) for value in values) else np
    shape = np.broadcast_shapes(*map(np.shape, values))
    return library.stack([library.broadcast_to(value, shape) for value in values], axis=-1)


def _align(table: Any, rank: int) -> Any:
    """`table` with leading axes of length 1 until it has `rank` axes."""
    return table.reshape((1,) * (rank - np.ndim(table)) + table.shape)
