"""Exact time: a schedule's place is counted in integers and becomes a fraction only at the end.

A float32 holds integers up to 2^24 only, and `1 - step / steps` loses all its digits near the end.
So a `Clock` keeps whole steps as an integer and what is left over as a rest below one, and computes
what remains before it divides: the result is right to a few units in the last place at every step
up to 2^31 - 1, and exactly 0 and 1 at the ends.

What is known while tracing stays known: NumPy computes it in double precision, and it costs nothing
in the compiled program. For whole durations the rest is such a number, 0.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require
from jax_lrreg.schedules.digits import FAR, LARGEST_WHOLE, Double, Number, choose, exact

Known: TypeAlias = np.ndarray | np.generic | float  # no tracer: computed while tracing, by NumPy


class Steps(NamedTuple):
    """A duration in steps: whole ones and a rest. `Clock` takes it wherever it takes a number."""

    whole: Any
    part: Any


class Clock(NamedTuple):
    """The position of a step in the piece of a schedule that began at step 0 of this clock.

    Attributes:
        step: whole steps since the piece began, an integer array; -1 for any time before it.
        part: the rest, in [0, 1) steps; a known number for as long as all durations are known.
        unit: units of the piece that one step covers; see `Schedule.in_units`.
        dtype: float32, or float64 where the step was a float64.
    """

    step: jax.Array
    part: jax.Array | Known = 0.0
    unit: Number = 1.0
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, step: Any) -> "Clock":
        """The clock that shows `step`: a Python number, or an array of ints or floats."""
        step, dtype = _as_real(step)
        library = _library(step)
        if jnp.issubdtype(step.dtype, jnp.integer):
            if step.dtype.itemsize >= 4:  # an unsigned or a 64-bit step may not fit an int32
                step = library.minimum(step, LAST_STEP)
            step = step if library is jnp else np.maximum(step.astype(np.int64), -1)
            return cls(jnp.maximum(jnp.asarray(step.astype(np.int32)), -1), dtype=dtype)
        # Any time before the beginning is alike; past the end a cast to int32 would wrap around.
        step = library.clip(step, -1, LAST_STEP)
        whole = library.floor(step)
        return cls(jnp.asarray(whole.astype(np.int32)), step - whole, dtype=dtype)

    def steps_of(self, duration: Any) -> Steps:
        """A duration in units of the piece as whole steps and a rest in [0, 1)."""
        if isinstance(duration, Steps):
            return duration
        plain = not isinstance(self.unit, Double) and np.all(self.unit == 1)
        if plain and not known(duration) and jnp.issubdtype(duration.dtype, jnp.integer):
            return Steps(duration.astype(jnp.int32), 0.0)
        return split(exact(duration) / self.unit)

    def left(self, duration: chex.Numeric | Steps) -> jax.Array:
        """The fraction of `duration` that remains: 1 at first, exactly 0 from the end on."""
        whole, part = self.steps_of(duration)
        total = self.number(whole + part)
        remaining = self.number(whole - jnp.clip(self.step, 0, _next(whole)))
        if not _is_zero(ahead := self._ahead(part)):
            remaining = remaining - self.number(ahead)
        fraction = jnp.minimum(remaining / _library(total).where(total > 0, total, 1), 1)
        fraction = jnp.where(remaining <= self._slack, 0, fraction)
        return jnp.where(self.begun, fraction, 1)

    def done(self, duration: chex.Numeric | Steps) -> jax.Array:
        """The fraction of `duration` that has passed: 0 at first, exactly 1 from the end on."""
        whole, part = self.steps_of(duration)
        total = self.number(whole + part)
        elapsed = self._elapsed(jnp.clip(self.step, 0, _next(whole)))
        fraction = elapsed / _library(total).where(total > 0, total, 1)
        return jnp.where(elapsed >= total - self._slack, self.number(self.begun), fraction)

    def share(self, duration: chex.Numeric | Steps) -> tuple[Double, Double]:
        """`left` and `done` with all their digits, for a curve that would magnify an error."""
        whole, part = steps = self.steps_of(duration)
        one = Double.of(1.0, self.dtype)
        total = Double.of(whole, self.dtype) + part
        total = choose(total.high > 0, total, one)
        remaining = Double.of(whole - jnp.clip(self.step, 0, _next(whole)), self.dtype)
        left = choose(self.begun, (remaining - self._ahead(part)) / total, one)
        ended = self.reached(steps)
        done = choose(ended, one, self.upto(steps).time / total)
        return choose(ended, Double.of(0.0, self.dtype), left), done

    def reached(self, duration: chex.Numeric | Steps) -> jax.Array:
        """Whether `duration` has passed."""
        whole, part = self.steps_of(duration)
        carry, _ = self._carried(self._ahead(part))
        return self.step > whole - 1 - carry

    def after(self, duration: chex.Numeric | Steps) -> "Clock":
        """The clock of a piece that begins when `duration` has passed; before, if negative."""
        whole, part = self.steps_of(duration)
        carry, rest = self._carried(self._ahead(part, started=False))
        step = jnp.minimum(self.step, LAST_STEP - _library(carry).maximum(carry, 0)) + carry
        if isinstance(whole, jax.Array) or np.any(whole < 0):
            earlier = jnp.maximum(-whole, 0)
            gain = jnp.minimum(earlier, LAST_STEP - jnp.maximum(step, 0))
            step = step + gain
            if isinstance(whole, jax.Array) or np.any(whole < -(2**30)):  # it may not fit an int32
                rest = self.number(rest) + self.number(earlier - gain)
            whole = _library(whole).maximum(whole, 0)
        return self._replace(step=jnp.maximum(step, whole - 1) - whole, part=rest)

    def started(self) -> "Clock":
        """This clock, standing at 0 before the beginning."""
        return self._replace(step=jnp.maximum(self.step, 0), part=self._started_part)

    def upto(self, duration: chex.Numeric | Steps) -> "Clock":
        """This clock, kept within [0, duration]: what a piece sees while it is idle."""
        whole, part = self.steps_of(duration)
        ended = self.reached(Steps(whole, part))
        step = jnp.where(ended, whole, jnp.maximum(self.step, 0))
        return self._replace(step=step, part=self._chosen(ended, part, self._started_part))

    def interval(self, boundaries: Sequence[chex.Numeric | Steps]) -> "Interval":
        """Which interval between 0 and rising boundaries this is.

        After the last boundary it is still the last interval, whose duration has then passed.
        """
        ends = [self.steps_of(boundary) for boundary in boundaries]
        whole, part = (stack([0, *column]) for column in zip(*ends, strict=True))
        reached = jax.vmap(lambda *end: self.reached(Steps(*end)))(whole[1:], part[1:])
        index = jnp.minimum(jnp.sum(reached, axis=0, dtype=jnp.int32), len(ends) - 1)
        more = part[1:] - part[:-1]
        borrow = (more < 0).astype(np.int32)
        length = Steps(pick(whole[1:] - whole[:-1] - borrow, index), pick(more + borrow, index))
        start = Steps(pick(whole[:-1], index), pick(part[:-1], index))
        return Interval(index, self.after(start), length)

    def cycle(self, period: chex.Numeric | Steps) -> tuple[jax.Array, "Clock"]:
        """How many whole periods have passed, and the clock within the current one."""
        whole, part = self.steps_of(period)
        step, rest = jnp.maximum(self.step, 0), self._started_part
        count = step // _library(whole).maximum(whole, 1)
        if _is_zero(part):
            return count, self._replace(step=step - count * whole, part=rest)
        total = self.number(whole + part)
        # The rest of the period was left out, so these are too many by up to 2^31 times the rest.
        # Each round leaves 2^-23 of the error, the last one none.
        for _ in range(3):
            within, fraction = self._without(step, rest, count, whole, part)
            wrong = jnp.floor((self.number(within) + fraction) / total)
            ended = self.number(whole - within) + (self.number(part) - fraction) <= self._slack
            started = self.number(within) + fraction >= 0
            wrong = jnp.where(ended, jnp.maximum(wrong, 1), jnp.where(started, 0, wrong))
            count = count + jnp.minimum(wrong.astype(jnp.int32), LAST_STEP - count)
        within, fraction = self._without(step, rest, count, whole, part)
        carry, fraction = self._carried(fraction)
        return count, self._replace(step=jnp.maximum(within + carry, 0), part=fraction)

    def position(self) -> jax.Array:
        """The position in units of the piece, from 0, as one floating-point number."""
        return self._elapsed(jnp.maximum(self.step, 0)) * self.number(self.unit)

    def moment(self) -> jax.Array:
        """The position as other functions take it: a whole number of steps where it is one."""
        whole = _is_zero(self.part) and self._plain
        return jnp.maximum(self.step, 0) if whole else self.position()

    @property
    def time(self) -> Double:
        """The steps since the piece began, from 0, with all their digits."""
        count = Double.of(jnp.maximum(self.step, 0), self.dtype)
        part = self._started_part
        return count if _is_zero(part) else count + part

    @property
    def begun(self) -> jax.Array:
        """Whether the piece has begun."""
        return self.step >= 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the step."""
        return jnp.shape(self.step)

    def number(self, value: Number | chex.Numeric) -> jax.Array | np.ndarray:
        """A number in the floating-point type of this clock; a known one as a constant."""
        value = value.high if isinstance(value, Double) else value
        library = jnp if isinstance(value, jax.Array) else np
        return library.asarray(value, self.dtype)

    def in_units(self, per_step: chex.Numeric | Number) -> "Clock":
        """The same moment for a piece written in units of which one step covers `per_step`."""
        return self._replace(unit=self.unit * exact(per_step))

    @property
    def _plain(self) -> bool:
        return not isinstance(self.unit, Double) and bool(np.all(self.unit == 1))

    @property
    def _slack(self) -> float:
        """How late a time may be and count as on time: what rounding a few fractions adds up to."""
        return 5e-7 if self.dtype == jnp.float32 else 1e-9

    @property
    def _started_part(self) -> Any:
        return self._chosen(self.begun, self.part, 0.0)

    def _elapsed(self, steps: jax.Array) -> Any:
        part = self._started_part
        return self.number(steps) if _is_zero(part) else self.number(steps) + self.number(part)

    def _chosen(self, condition: jax.Array, x: Any, y: Any) -> jax.Array | Known:
        """`where`, but what is known, and is the same both ways, stays known."""
        if _is_known(x) and _is_known(y) and np.array_equal(x, y):
            return x
        return jnp.where(condition, self.number(x), self.number(y))

    def _ahead(self, part: Any, started: bool = True) -> jax.Array | Known:
        """What the rest of this clock has more than `part`."""
        own = self._started_part if started else self.part
        if _is_known(own) and _is_known(part):
            return own - part
        return self.number(own) - self.number(part)

    def _carried(self, rest: Any) -> tuple[Any, Any]:
        """A rest as -1, 0 or 1 steps and a rest in [0, 1), where almost a whole step is one."""
        library = _library(rest)
        nearest = library.round(rest)
        whole = nearest if library is np else nearest + (rest - jax.lax.stop_gradient(rest))
        rest = library.where(abs(rest - nearest) <= self._slack, whole, rest)
        carry = library.clip(library.floor(rest), -1, 1)
        return carry.astype(np.int32), rest - carry

    def _without(
        self, step: jax.Array, rest: Any, count: jax.Array, whole: Any, part: Any
    ) -> tuple[jax.Array, jax.Array]:
        """What is left of a step and a rest after `count` periods of `whole + part`.

        `count * part` has more digits than a `Double`. But 2^16 parts are split into whole steps
        and a rest, too, and so all that is rounded stays below 2^17.
        """
        many, few = count >> 16, Double.of(count & 0xFFFF, self.dtype)
        block, beyond = split(exact(part) * 2.0**16)
        passed, fraction = split(Double.of(many, self.dtype) * beyond + few * part)
        return step - count * whole - many * block - passed, self.number(rest) - fraction


class Interval(NamedTuple):
    """One of the intervals of `Clock.interval`: its number, the clock within it and its length."""

    index: jax.Array
    clock: Clock
    length: Steps


def split(steps: Number) -> Steps:
    """A number of steps as whole ones and a rest, which is large where an int32 is not enough."""
    if isinstance(steps, Double):
        whole = jnp.floor(jnp.minimum(steps.high, LARGEST_WHOLE))
        return Steps(whole.astype(jnp.int32), (steps.high - whole) + steps.low)
    nearest = np.rint(steps)
    steps = np.where(abs(steps - nearest) <= 4e-16 * abs(nearest), nearest, steps)  # 5 / (1/390)
    steps = np.clip(steps, -FAR, FAR)
    whole = np.clip(np.floor(steps), -LAST_STEP, LAST_STEP)
    return Steps(whole.astype(np.int32), steps - whole)


def stack(values: Sequence[Any]) -> Any:
    """Numbers, or arrays that broadcast, side by side on a new first axis."""
    library = np if all(map(_is_known, values)) else jnp
    shape = np.broadcast_shapes(*map(np.shape, values))
    return library.stack([library.broadcast_to(value, shape) for value in values])


def pick(table: Any, index: jax.Array) -> Any:
    """The entries of `table`, whose first axis `index` counts; others go with its last."""
    if _is_known(table) and np.all(table == table[0]):
        return table[0]
    if np.ndim(table) == 1:
        return jnp.asarray(table)[index]
    rank = index.ndim + 1 - np.ndim(table)
    table = jnp.asarray(table).reshape(len(table), *(1,) * rank, *table.shape[1:])
    table = jnp.broadcast_to(table, (len(table), *index.shape))
    return jnp.take_along_axis(table, index[None], axis=0)[0]


def _is_known(value: object) -> bool:
    """Whether NumPy computes with it: a Python or NumPy number that the step has not touched."""
    return not isinstance(value, jax.Array)


def _is_zero(value: Any) -> bool:
    return _is_known(value) and not np.any(value)


def _library(value: object) -> Any:
    return np if _is_known(value) else jnp


def _next(whole: Any) -> Any:
    return _library(whole).minimum(whole, LAST_STEP - 1) + 1


def _as_real(step: object) -> tuple[Any, Any]:
    """`step` as an array of integers or floats, and the type of what is computed from it."""
    if isinstance(step, int | float) and not isinstance(step, bool) and step == step:
        kept = min(max(step, -1), LAST_STEP)  # an int may be too long for every type
        return np.asarray(kept), jnp.result_type(jnp.float32, step)
    try:
        array = step if isinstance(step, jax.Array) else np.asarray(step)
    except (TypeError, ValueError):
        array = np.asarray(False)
    real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    allowed = "a real number or an array of them"
    require(real, "Schedule", "step", step, allowed, error=TypeError)
    dtype = jnp.result_type(jnp.float32, array)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array, dtype
    if _is_known(array) and not np.any(np.isnan(array)):
        return array.astype(jnp.promote_types(array.dtype, jnp.float32)), dtype
    return jnp.asarray(array, dtype), dtype  # a NaN stays one, and NumPy would warn of it
