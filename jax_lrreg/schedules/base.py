"""`Schedule`, and the algebra that makes new schedules of given ones."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import arguments_text, number_text, pytree, require, require_number, static
from jax_lrreg.schedules.clock import Clock


class Schedule:
    """A hyperparameter as a function of the step: `schedule(step) -> value`.

    `step` is the index of the update, from 0: a Python number or an array of any integer or float
    dtype and any shape. The value is float32 (float64 where the step is float64), of the step's shape.
    A schedule goes wherever Optax takes a learning rate, and serves any other hyperparameter as well.

    It is data: it prints as the expression that makes it, compares by value, and every number in it
    may be traced, batched or differentiated. A duration written as an int is counted exactly; written
    as a float it is a real number and has a gradient.

    To add a shape, subclass with `@pytree` and write `at(clock)` from the clock's `left`, `done` and
    `position`; see `Linear`.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def at(self, clock: Clock) -> jax.Array:
        """The value at the time that `clock` shows. The one method that a new schedule writes."""
        raise NotImplementedError

    def __call__(self, step: Any) -> jax.Array:
        """The value at `step`."""
        clock = Clock.of(step)
        value = jnp.asarray(self.at(clock), clock.dtype)
        return jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, clock.shape))

    def __mul__(self, other: "Schedule | Callable | float") -> "Schedule":
        """The product with a number or with another schedule."""
        return Product(self, as_schedule(other, "*"))

    def __rmul__(self, other: "Callable | float") -> "Schedule":
        return Product(as_schedule(other, "*"), self)

    def __add__(self, other: "Schedule | Callable | float") -> "Schedule":
        """The sum with a number or with another schedule."""
        return Sum(self, as_schedule(other, "+"))

    def __radd__(self, other: "Callable | float") -> "Schedule":
        return Sum(as_schedule(other, "+"), self)

    def warmup(self, steps: Any, init_value: Any = 0.0) -> "Schedule":
        """A linear ramp of `steps` before this schedule, which moves back by as much; see `Warmup`."""
        return Warmup(self, steps=steps, init_value=init_value)

    def clip(self, min: Any = None, max: Any = None) -> "Schedule":  # noqa: A002 - as in jnp.clip
        """This schedule kept within `min` and `max`; see `Clip`."""
        return Clip(self, min=min, max=max)

    def in_units(self, per_step: Any) -> "Schedule":
        """This schedule, written in units of which one step covers `per_step`; see `InUnits`."""
        return InUnits(self, per_step=per_step)


def as_schedule(value: Any, argument: str) -> Schedule:
    """A schedule as it is, a number as `Constant`, any other callable `step -> value` as `Function`."""
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return Function(value)
    require_number("Schedule", argument, value, "a number, a schedule or a function of the step", lambda x: x >= 0)
    return Constant(value)


def interpolate(begin: Any, end: Any, fall: jax.Array, rise: jax.Array) -> jax.Array:
    """From `begin` to `end`, given a shape as it falls from 1 to 0 and its mirror image as it rises.

    Both are asked for because a small number must not be computed as one minus a large one. The ends
    are hit exactly, and rounding cannot carry the value past either of them.
    """
    falls = jnp.asarray(begin) >= end
    low, high = jnp.where(falls, end, begin), jnp.where(falls, begin, end)
    value = low + jnp.where(falls, begin - end, end - begin) * jnp.where(falls, fall, rise)
    value = jnp.where(value > high, high, value)
    return jnp.where(rise <= 0, begin, jnp.where(fall <= 0, end, value))


@pytree
class Constant(Schedule):
    """The same value at every step.

        value(step) = value

    Attributes:
        value: not negative.

    Example:
        >>> print(Constant(0.1)(7))
        0.1
    """

    value: Any

    def __post_init__(self):
        require_number(self, "value", self.value, "a number >= 0", lambda x: x >= 0)

    def at(self, clock):
        return self.value + jnp.zeros(clock.shape, clock.dtype)


@pytree
class Function(Schedule):
    """Any function `step -> value`, an Optax schedule or a lambda, as a schedule.

    It is never asked for a step before its own beginning or, in a `join`, past its own end. It counts
    as structure: a new function is traced anew, and it has no text that could be read back.

    Attributes:
        function: takes the step, one number, and returns one number.

    Example:
        >>> print((2 * Function(lambda step: 0.1 / (step + 1)))(1))
        0.1
    """

    function: Callable[[Any], Any] = static()

    def __post_init__(self):
        if not callable(self.function):
            raise TypeError(f"Function: `function` must be a function of the step, got {self.function!r}")

    def at(self, clock):
        def one(step):
            return jnp.asarray(self.function(step), clock.dtype)

        function, step = one, clock.moment()
        for _ in clock.shape:  # not every schedule of others takes an array of steps
            function = jax.vmap(function)
        return function(step)


@pytree
class Product(Schedule):
    """The product of two schedules, written `a * b`.

    Example:
        >>> 0.5 * Constant(0.1)
        0.5 * Constant(0.1)
    """

    first: Schedule
    second: Schedule

    def at(self, clock):
        return self.first.at(clock) * self.second.at(clock)

    def __repr__(self):
        return f"{_operand(self.first, Sum, number=True)} * {_operand(self.second, Sum | Product)}"


@pytree
class Sum(Schedule):
    """The sum of two schedules, written `a + b`.

    Example:
        >>> Constant(0.1) + 0.01
        Constant(0.1) + 0.01
    """

    first: Schedule
    second: Schedule

    def at(self, clock):
        return self.first.at(clock) + self.second.at(clock)

    def __repr__(self):
        return f"{self.first!r} + {_operand(self.second, Sum, number=True)}"


@pytree
class Joined(Schedule):
    """Schedules one after the other, written `join([(piece, length), ..., (last, None)])`.

    A piece counts its steps from its own beginning. While it is idle it stands still at its nearer
    end, so what it would do elsewhere never reaches the value or the gradient.

    Attributes:
        pieces: the schedules.
        lengths: the duration of each but the last, positive.

    Example:
        >>> join([(Constant(0.1), 10), (Constant(0.01), None)])
        join([(Constant(0.1), 10), (Constant(0.01), None)])
    """

    pieces: tuple[Schedule, ...]
    _: KW_ONLY
    lengths: tuple[Any, ...]

    def __post_init__(self):
        for length in self.lengths:
            require_number("join", "length", length, "a positive number of steps", lambda x: x > 0)

    def at(self, clock):
        value = self.pieces[0].at(clock.upto(self.lengths[0]))
        for piece, length, end in zip(self.pieces[1:], self.lengths, (*self.lengths[1:], None), strict=True):
            clock = clock.after(length)
            own = piece.at(clock if end is None else clock.upto(end))
            value = jnp.where(clock.begun, own, value)
        return value

    def __repr__(self):
        pairs = zip(self.pieces, (*self.lengths, None), strict=True)
        return f"join([{', '.join(f'({piece!r}, {number_text(length)})' for piece, length in pairs)}])"


def join(pieces: Sequence[tuple[Schedule | Callable | float, Any]]) -> Joined:
    """Schedules one after the other: `[(piece, length), ..., (last, None)]`; see `Joined`."""
    pairs = list(pieces)
    require(len(pairs) >= 2, "join", "pieces", len(pairs), "at least two pairs (piece, length)")
    for pair in pairs:
        require(isinstance(pair, tuple | list) and len(pair) == 2, "join", "pieces", pair, "pairs (piece, length)")
    require(pairs[-1][1] is None, "join", "length", pairs[-1][1], "None for the last piece, which has no end")
    return Joined(
        tuple(as_schedule(piece, "piece") for piece, _ in pairs), lengths=tuple(length for _, length in pairs[:-1])
    )


@pytree
class Warmup(Schedule):
    """A ramp before a schedule, written `schedule.warmup(steps)`. The schedule moves back by `steps`.

        value(step) = init_value + (first - init_value) step / steps     for step < steps
                    = schedule(step - steps)                             from then on

    where `first` is the schedule's own first value, which is reached at `step == steps`.

    Attributes:
        schedule: what follows the ramp.
        steps: duration of the ramp; positive.
        init_value: value at step 0, not negative.

    Example:
        >>> Constant(0.1).warmup(5)
        Constant(0.1).warmup(5)
        >>> print(Constant(0.1).warmup(5)(1))
        0.02
    """

    schedule: Schedule
    _: KW_ONLY
    steps: Any
    init_value: Any = 0.0

    def __post_init__(self):
        require_number("warmup", "steps", self.steps, "a positive number of steps", lambda x: x > 0)
        require_number("warmup", "init_value", self.init_value, "a number >= 0", lambda x: x >= 0)

    def at(self, clock):
        first = self.schedule.at(clock.upto(0))
        ramp = interpolate(self.init_value, first, clock.left(self.steps), clock.done(self.steps))
        rest = clock.after(self.steps)
        return jnp.where(rest.begun, self.schedule.at(rest), ramp)

    def __repr__(self):
        return _method_text(self, "warmup")


@pytree
class Clip(Schedule):
    """A schedule kept within bounds, written `schedule.clip(min=, max=)`.

        value(step) = min(max(schedule(step), min), max)

    Attributes:
        schedule: what is kept within bounds.
        min: lower bound, not negative, or None.
        max: upper bound, not below `min`, or None.

    Example:
        >>> print(Constant(0.1).clip(max=0.05)(0))
        0.05
    """

    schedule: Schedule
    _: KW_ONLY
    min: Any = None
    max: Any = None

    def __post_init__(self):
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                require_number("clip", name, getattr(self, name), "a number >= 0 or None", lambda x: x >= 0)
        if self.min is not None and self.max is not None and not isinstance(self.min, jax.core.Tracer):
            lowest = np.asarray(self.min)
            require_number("clip", "max", self.max, f"at least min={self.min}", lambda x: x >= lowest)

    def at(self, clock):
        value = self.schedule.at(clock)
        if self.min is not None:
            value = jnp.where(value < self.min, self.min, value)
        if self.max is not None:
            value = jnp.where(value > self.max, self.max, value)
        return value

    def __repr__(self):
        return _method_text(self, "clip")


@pytree
class InUnits(Schedule):
    """A schedule written in other units than steps, as `schedule.in_units(per_step=...)`.

        value(step) = schedule(step per_step)

    but computed in whole steps, so that a horizon of 10^13 tokens ends as exactly as one of 10 steps.

    Attributes:
        schedule: its durations are in epochs, examples, tokens, ...
        per_step: how many of these one step covers; positive. 1/390 of an epoch, 256 examples, ...

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> print(Linear(0.1, steps=90).in_units(per_step=1 / 390)(45 * 390))
        0.05
    """

    schedule: Schedule
    _: KW_ONLY
    per_step: Any

    def __post_init__(self):
        require_number("in_units", "per_step", self.per_step, "a positive number", lambda x: x > 0)

    def at(self, clock):
        return self.schedule.at(clock.in_units(self.per_step))

    def __repr__(self):
        return _method_text(self, "in_units")


def _operand(schedule: Schedule, looser: Any, number: bool = False) -> str:
    """The text of an operand: a plain number for `Constant`, brackets around what binds looser."""
    if number and isinstance(schedule, Constant) and isinstance(schedule.value, int | float):
        return repr(schedule.value)
    return f"({schedule!r})" if isinstance(schedule, looser) else repr(schedule)


def _method_text(obj: Any, method: str) -> str:
    """The text of an object that a method of its first field made: `Cosine(...).warmup(5)`."""
    return f"{_operand(obj.schedule, Sum | Product)}.{method}({', '.join(arguments_text(obj)[1:])})"
