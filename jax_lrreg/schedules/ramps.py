"""The ramp before a schedule and the cooldown after it."""

from dataclasses import KW_ONLY
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_choice
from jax_lrreg._struct import pytree, static
from jax_lrreg.schedules import algebra
from jax_lrreg.schedules.base import (
    Schedule,
    after,
    phases_until,
    require_durations,
    require_positive,
    require_schedules,
    require_values,
)
from jax_lrreg.schedules.clock import Clock
from jax_lrreg.schedules.curves import CURVES, EXACT, between, geometric

_COOLDOWNS = ("linear", "cosine", "power", "1-sqrt", "square", "exponential")


@pytree
class Warmup(Schedule):
    """A ramp before a schedule, written `schedule.warmup(steps)`; the rest moves back by `steps`.

        value(step) = init_value + (first - init_value) f(step / steps)     for step < steps
                    = schedule(step - steps)                                from then on

    where `first` is the schedule's own first value, reached at `step == steps`, and f is, by
    `shape`,

        linear       x                        cosine       (1 - cos(pi x)) / 2
        power        x^power                  1-sqrt       1 - sqrt(1 - x)
        square       1 - (1 - x)^2            constant     0, so that it holds `init_value`
        log          log(1 + step) / log(1 + steps)
        exponential  the value is init_value (first / init_value)^x; `init_value` is positive

    Attributes:
        schedule: what follows the ramp.
        steps: duration of the ramp; 0 for none.
        init_value: value at step 0, not negative.
        shape: one of the names above.
        power: exponent of the shape `power`; positive.

    Example:
        >>> from jax_lrreg.schedules import Constant
        >>> Constant(0.1).warmup(5)
        Constant(0.1).warmup(5)
        >>> print(Constant(0.1).warmup(4)(1))
        0.025
    """

    schedule: Schedule
    _: KW_ONLY
    steps: chex.Numeric
    init_value: chex.Numeric = 0.0
    shape: str = static(default="linear")
    power: chex.Numeric = 2.0

    def __post_init__(self):
        require_schedules("warmup", schedule=self.schedule)
        require_durations("warmup", steps=self.steps)
        require_values("warmup", init_value=self.init_value)
        require_choice("warmup", "shape", self.shape, CURVES)
        _require_parameter("warmup", self.shape, "power", self.power, 2.0, "power")
        if self.shape == "exponential":
            require_positive("warmup", init_value=self.init_value)

    @property
    def horizon(self):
        return after(self.steps, self.schedule.horizon)

    @property
    def phases(self):
        begin = float(np.asarray(self.steps))
        return [(0.0, "warmup"), *((begin + at, name) for at, name in self.schedule.phases)]

    def value_at(self, clock):
        clock = clock.started()  # before its beginning, a ramp of no length is over all the same
        # Asked of the schedule itself: its first value need not be its largest, nor a field of it.
        first = self.schedule.value_at(clock.upto(0))
        left, done = _fractions(clock, self.steps, self.shape)
        if self.shape == "exponential":
            ramp = geometric(self.init_value, first, left, done)
        else:
            rise, fall = CURVES[self.shape](done, left, self)
            ramp = between(self.init_value, first, fall, rise)
        # Before it begins, this clock stands at -1 and the schedule holds its first value: the
        # branch that is not taken stays finite, and so does its gradient, which `where` multiplies
        # by 0.
        rest = clock.after(self.steps)
        return jnp.where(rest.begun, self.schedule.value_at(rest), ramp)

    def __repr__(self):
        return algebra.method_text(self, "warmup")


@pytree
class Cooldown(Schedule):
    """A schedule taken over at some step and led to its end: `schedule.cooldown(steps, at=)`.

        value(step) = schedule(step)                                        for step < at
                    = end_value + (schedule(at) - end_value) f(x)           from then on

    where x = (step - at) / steps, kept within [0, 1], and f is, by `shape`,

        linear       1 - x                    cosine       (1 + cos(pi x)) / 2
        power        (1 - x)^power            1-sqrt       1 - sqrt(x)
        square       1 - x^2                  exponential  (rate^x - rate) / (1 - rate)

    The exponential is geometric, schedule(at) rate^x, if `rate` is end_value / schedule(at).

    Attributes:
        schedule: what runs until `at`.
        steps: duration of the cooldown; 0 for a jump to `end_value`.
        at: the step at which it begins; not negative.
        end_value: value from `at + steps` on; not negative.
        shape: one of the names above.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive. The smaller, the steeper it begins.

    Reference:
        Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations,
        2024 (arXiv:2405.18392).

    Example:
        >>> from jax_lrreg.schedules import Constant
        >>> lr = Constant(0.1).cooldown(200, at=800, shape="1-sqrt")
        >>> lr
        Constant(0.1).cooldown(200, at=800, shape='1-sqrt')
        >>> print(lr(800), lr(850), lr(1000))
        0.1 0.05 0.0
    """

    schedule: Schedule
    _: KW_ONLY
    steps: chex.Numeric
    at: chex.Numeric
    end_value: chex.Numeric = 0.0
    shape: str = static(default="linear")
    power: chex.Numeric = 2.0
    rate: chex.Numeric = 0.1

    def __post_init__(self):
        require_schedules("cooldown", schedule=self.schedule)
        require_durations("cooldown", steps=self.steps, at=self.at)
        require_values("cooldown", end_value=self.end_value)
        require_fall("cooldown", self.shape, self.power, self.rate)

    @property
    def horizon(self):
        return self.at + self.steps

    @property
    def phases(self):
        return phases_until(self.at, self.schedule, "cooldown")

    def value_at(self, clock):
        # The schedule is never asked for a step past `at`: what it does there, such as a decay that
        # has ended, cannot reach the value that is led down from.
        own = clock.after(self.at)
        fall, rise = CURVES[self.shape](*_fractions(own, self.steps, self.shape), self)
        return between(self.schedule.value_at(clock.upto(self.at)), self.end_value, fall, rise)

    def __repr__(self):
        return algebra.method_text(self, "cooldown")


def _fractions(clock: Clock, steps: chex.Numeric, shape: str) -> tuple[Any, Any]:
    """What is left of a ramp and what is done, with as many digits as its shape needs."""
    return clock.share(steps) if shape in EXACT else (clock.left(steps), clock.done(steps))


def branch(schedule: Schedule, at: chex.Numeric) -> Schedule:
    """What a run that leaves `schedule` at `at` has followed until then; no later cooldown."""
    require_durations("branch_cooldown", at=at)
    if isinstance(schedule, Cooldown) and known(at, schedule.at):
        return schedule.schedule if np.all(np.less_equal(at, schedule.at)) else schedule
    return schedule


def after_warmup(
    schedule: Schedule, warmup_steps: chex.Numeric, init_value: chex.Numeric
) -> Schedule:
    """The schedule after a warmup, or as it is where there is none."""
    # Left out where it is known to be 0, for the text; a traced one costs nothing but a comparison.
    none = known(warmup_steps) and np.all(np.asarray(warmup_steps) == 0)
    return schedule if none else schedule.warmup(warmup_steps, init_value=init_value)


def require_fall(
    owner: str, shape: str, power: chex.Numeric = 2.0, rate: chex.Numeric = 0.1
) -> None:
    """Refuses what is no shape of a cooldown, or no parameter of it."""
    require_choice(owner, "shape", shape, _COOLDOWNS)
    _require_parameter(owner, shape, "power", power, 2.0, "power")
    _require_parameter(owner, shape, "rate", rate, 0.1, "exponential")


def _require_parameter(
    owner: str, shape: str, name: str, value: chex.Numeric, default: float, only: str
) -> None:
    """Refuses what is not positive, and a number that the shape has no use for."""
    require_positive(owner, **{name: value})
    # A power that is given for a shape without one is a mistake, and would pass unseen.
    idle = shape != only and known(value) and np.any(np.not_equal(value, default))
    require(not idle, owner, name, value, f"left out, as it belongs to shape={only!r}")
