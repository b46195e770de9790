"""Schedules made of others by moving them in time: joined, shifted, stretched, repeated, ..."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text, pytree
from jax_lrreg.schedules import algebra
from jax_lrreg.schedules.base import (
    Schedule,
    ScheduleLike,
    after,
    as_schedule,
    latest,
    phases_until,
    require_durations,
    require_positive,
    require_schedules,
)
from jax_lrreg.schedules.digits import exact


@pytree
class Joined(Schedule):
    """Schedules one after the other, written `join([(piece, length), ..., (last, None)])`.

    A piece counts its steps from its own beginning. While it is idle it stands still at its nearer
    end, so what it would do elsewhere never reaches the value or the gradient.

    Attributes:
        pieces: the schedules.
        lengths: the duration of each but the last; 0 leaves a piece out.

    Example:
        >>> from jax_lrreg.schedules import Constant
        >>> join([(Constant(0.1), 10), (Constant(0.01), None)])
        join([(Constant(0.1), 10), (Constant(0.01), None)])
    """

    pieces: tuple[Schedule, ...]
    _: KW_ONLY
    lengths: tuple[chex.Numeric, ...]

    def __post_init__(self):
        for name, value in (("pieces", self.pieces), ("lengths", self.lengths)):
            listed = isinstance(value, tuple | list)
            require(listed, "join", name, value, "a tuple or a list", error=TypeError)
        count = len(self.pieces) - 1
        require(count >= 1, "join", "pieces", len(self.pieces), "at least two")
        allowed = f"one per piece but the last, {count}"
        require(len(self.lengths) == count, "join", "lengths", len(self.lengths), allowed)
        for piece in self.pieces:
            require_schedules("join", pieces=piece)
        for length in self.lengths:
            require_durations("join", length=length)

    @property
    def horizon(self):
        return after(sum(self.lengths), self.pieces[-1].horizon)

    @property
    def phases(self):
        found, begin = [], 0.0
        for piece, length in zip(self.pieces, (*self.lengths, 0), strict=True):
            found += [(begin + at, name) for at, name in piece.phases]
            begin += float(np.asarray(length))
        return found

    def value_at(self, clock):
        clock = clock.started()  # before its beginning, a piece of length 0 is over all the same
        value = self.pieces[0].value_at(clock.upto(self.lengths[0]))
        ends = (*self.lengths[1:], None)
        for piece, length, end in zip(self.pieces[1:], self.lengths, ends, strict=True):
            # One length after the other, never their sum: whole and fractional lengths stay exact.
            clock = clock.after(length)
            own = piece.value_at(clock if end is None else clock.upto(end))
            value = jnp.where(clock.begun, own, value)
        return value

    def __repr__(self):
        pairs = zip(self.pieces, (*self.lengths, None), strict=True)
        texts = [f"({piece!r}, {number_text(length)})" for piece, length in pairs]
        return f"join([{', '.join(texts)}])"


def join(pieces: Sequence[tuple[ScheduleLike, chex.Numeric | None]]) -> Joined:
    """Schedules one after the other: `[(piece, length), ..., (last, None)]`; see `Joined`."""
    allowed = "a list of pairs (piece, length)"
    require(isinstance(pieces, list | tuple), "join", "pieces", pieces, allowed, error=TypeError)
    pairs = list(pieces)
    require(len(pairs) >= 2, "join", "pieces", pairs, "at least two pairs (piece, length)")
    for pair in pairs:
        fits = isinstance(pair, list | tuple) and len(pair) == 2
        require(fits, "join", "pieces", pair, "pairs (piece, length)")
    last = pairs[-1][1]
    require(last is None, "join", "length", last, "None for the last piece, which has no end")
    schedules = tuple(as_schedule(piece, "piece") for piece, _ in pairs)
    lengths: Any = tuple(length for _, length in pairs[:-1])
    return Joined(schedules, lengths=lengths)


@pytree
class Extended(Schedule):
    """A schedule whose end is moved while it runs, written `schedule.extend(at=, total_steps=)`.

        value(step) = schedule(step)                                                  for step <= at
                    = schedule(at + (step - at) (horizon - at) / (total_steps - at))  from then on

    where `horizon` is the end of the schedule. What was left of it is stretched or shrunk, so
    nothing jumps.

    Attributes:
        schedule: what is running; it must have an end.
        at: the step at which the end is moved; not negative, before both ends.
        total_steps: the new end.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> lr = Linear(0.1, steps=100).extend(at=50, total_steps=250)
        >>> print(lr(50), lr(150), lr(250))
        0.05 0.025 0.0
    """

    schedule: Schedule
    _: KW_ONLY
    at: chex.Numeric
    total_steps: chex.Numeric

    def __post_init__(self):
        require_schedules("extend", schedule=self.schedule)
        require_durations("extend", at=self.at)
        require_positive("extend", total_steps=self.total_steps)
        horizon = self.schedule.horizon
        allowed = "one with an end of its own"
        require(horizon is not None, "extend", "schedule", self.schedule, allowed)
        if known(horizon, self.at):
            at, end = (np.asarray(x, np.float64) for x in (self.at, horizon))
            allowed = f"before the end of the schedule, {horizon}"
            require_number("extend", "at", self.at, allowed, lambda x: x < end)
            allowed = f"above at={self.at}"
            require_number("extend", "total_steps", self.total_steps, allowed, lambda x: x > at)

    @property
    def horizon(self):
        return self.total_steps

    @property
    def phases(self):
        return phases_until(self.at, self.schedule, "extended")

    def value_at(self, clock):
        at = exact(self.at)
        # The rest runs in other units from `at` on, and is set forward to where it stopped: counted
        # so, both ends are hit exactly, which at + (step - at) * speed in floats would miss.
        speed = (exact(self.schedule.horizon) - at) / (exact(self.total_steps) - at)
        late = clock.after(self.at).started().in_units(speed).after(-at)
        early, reached = clock.upto(self.at), clock.reached(self.at)
        return jnp.where(reached, self.schedule.value_at(late), self.schedule.value_at(early))

    def __repr__(self):
        return algebra.method_text(self, "extend")


@pytree
class Shifted(Schedule):
    """A schedule that begins later, written `schedule.shift(steps)`, or in the middle, if negative.

        value(step) = schedule(step - steps)     for step >= 0

    Attributes:
        schedule: what is moved. Until it begins, it holds its first value.
        steps: by how much; of any sign.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> lr = Linear(0.1, steps=100)
        >>> print(lr.shift(20)(10), lr.shift(20)(70), lr.shift(-20)(30))
        0.1 0.05 0.05
    """

    schedule: Schedule
    _: KW_ONLY
    steps: chex.Numeric

    def __post_init__(self):
        require_schedules("shift", schedule=self.schedule)
        require_number("shift", "steps", self.steps, "a number", np.isfinite)

    @property
    def horizon(self):
        return latest(0, after(self.steps, self.schedule.horizon))

    @property
    def phases(self):
        moved = float(np.asarray(self.steps))
        return [(max(at + moved, 0.0), name) for at, name in self.schedule.phases]

    def value_at(self, clock):
        # Started first: a negative shift would else reach steps before 0.
        return self.schedule.value_at(clock.started().after(self.steps))

    def __repr__(self):
        return algebra.method_text(self, "shift")


@pytree
class Stretched(Schedule):
    """A schedule in slow motion, written `schedule.stretch(factor)`.

        value(step) = schedule(step / factor)

    Attributes:
        schedule: what is stretched, warmup and all.
        factor: how many times longer it takes; positive, below 1 it is faster.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> print(Linear(0.1, steps=100).stretch(3)(150))
        0.05
    """

    schedule: Schedule
    _: KW_ONLY
    factor: chex.Numeric

    def __post_init__(self):
        require_schedules("stretch", schedule=self.schedule)
        require_positive("stretch", factor=self.factor)

    @property
    def horizon(self):
        return None if self.schedule.horizon is None else self.schedule.horizon * self.factor

    @property
    def phases(self):
        return [(at * float(np.asarray(self.factor)), name) for at, name in self.schedule.phases]

    def value_at(self, clock):
        return self.schedule.value_at(clock.in_units(1 / exact(self.factor)))

    def __repr__(self):
        return algebra.method_text(self, "stretch")


@pytree
class Repeated(Schedule):
    """The beginning of a schedule over and over, written `schedule.repeat(steps)`.

        value(step) = schedule(step mod steps)

    Attributes:
        schedule: what is repeated.
        steps: the period; positive.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> print(Linear(0.1, steps=10).repeat(10)(25))
        0.05
    """

    schedule: Schedule
    _: KW_ONLY
    steps: chex.Numeric

    def __post_init__(self):
        require_schedules("repeat", schedule=self.schedule)
        require_positive("repeat", steps=self.steps)

    @property
    def phases(self):
        return self.schedule.phases

    def value_at(self, clock):
        # By an integer remainder: a float32 one is wrong from 2^24 steps on.
        return self.schedule.value_at(clock.cycle(self.steps)[1])

    def __repr__(self):
        return algebra.method_text(self, "repeat")


@pytree
class InUnits(Schedule):
    """A schedule written in other units than steps, as `schedule.in_units(per_step=...)`.

        value(step) = schedule(step per_step)

    but computed in whole steps, so that a horizon of 10^13 tokens ends as exactly as one of 10
    steps.

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
    per_step: chex.Numeric

    def __post_init__(self):
        require_schedules("in_units", schedule=self.schedule)
        require_positive("in_units", per_step=self.per_step)

    @property
    def horizon(self):
        return None if self.schedule.horizon is None else self.schedule.horizon / self.per_step

    @property
    def phases(self):
        return [(at / float(np.asarray(self.per_step)), name) for at, name in self.schedule.phases]

    def value_at(self, clock):
        # The durations are divided, once and while tracing, instead of the step multiplied: a step
        # times 2^20 tokens has more digits than a float32 or an int32 holds.
        return self.schedule.value_at(clock.in_units(self.per_step))

    def __repr__(self):
        return algebra.method_text(self, "in_units")
