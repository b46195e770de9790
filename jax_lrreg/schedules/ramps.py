"""The ramp before a schedule and the cooldown after it."""

from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._struct import pytree, static
from jax_lrreg.schedules.algebra import method_text
from jax_lrreg.schedules.base import Schedule, require_positive, require_schedules, require_values
from jax_lrreg.schedules.curves import CURVES, curve, geometric, interpolate, require_curve
from jax_lrreg.schedules.timeline import after


@pytree
class Warmup(Schedule):
    """A ramp before a schedule, written `schedule.warmup(steps)`. The schedule moves back by `steps`.

        value(step) = init_value + (first - init_value) f(step / steps)     for step < steps
                    = schedule(step - steps)                                from then on

    where `first` is the schedule's own first value, which is reached at `step == steps`, and f is, by `shape`,

        linear       x                        cosine       (1 - cos(pi x)) / 2
        power        x^power                  1-sqrt       1 - sqrt(1 - x)
        square       1 - (1 - x)^2            constant     0, so that it holds `init_value`
        log          log(1 + step) / log(1 + steps)
        exponential  the value itself is init_value (first / init_value)^x; `init_value` is positive

    Attributes:
        schedule: what follows the ramp.
        steps: duration of the ramp; positive.
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
    steps: Any
    init_value: Any = 0.0
    shape: str = static(default="linear")
    power: Any = 2.0

    def __post_init__(self):
        require_schedules(self, "schedule")
        require_positive("warmup", steps=self.steps)
        require_values("warmup", init_value=self.init_value)
        require_curve("warmup", self.shape, CURVES, power=(self.power, "power", 2.0))
        if self.shape == "exponential":
            require_positive("warmup", init_value=self.init_value)

    @property
    def horizon(self):
        return after(self.steps, self.schedule.horizon)

    def value_at(self, clock):
        first = self.schedule.value_at(clock.upto(0))
        left, done = clock.left(self.steps), clock.done(self.steps)
        if self.shape == "exponential":
            ramp = geometric(self.init_value, first, left, done)
        else:
            rise, fall = curve(
                self.shape, done, left, self.steps if self.shape == "log" else self.power
            )
            ramp = interpolate(self.init_value, first, fall, rise)
        rest = clock.after(self.steps)
        return jnp.where(rest.begun, self.schedule.value_at(rest), ramp)

    def __repr__(self):
        return method_text(self, "warmup")


@pytree
class Cooldown(Schedule):
    """A schedule that is taken over at some step and led to its end, written `schedule.cooldown(steps, at=)`.

        value(step) = schedule(step)                                        for step <= at
                    = end_value + (schedule(at) - end_value) f(x)           from then on

    where x = (step - at) / steps, kept within [0, 1], and f is, by `shape`,

        linear       1 - x                    cosine       (1 + cos(pi x)) / 2
        power        (1 - x)^power            1-sqrt       1 - sqrt(x)
        square       1 - x^2                  exponential  (rate^x - rate) / (1 - rate)

    The exponential is the geometric one, value(step) = schedule(at) rate^x, if `rate` is end_value / schedule(at).

    Attributes:
        schedule: what runs until `at`.
        steps: duration of the cooldown; positive.
        at: the step at which it begins; not negative.
        end_value: value from `at + steps` on; not negative.
        shape: one of the names above.
        power: exponent of the shape `power`; positive.
        rate: ratio of the shape `exponential`; positive. The smaller, the steeper it begins.

    Reference:
        Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations, 2024.

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
    steps: Any
    at: Any
    end_value: Any = 0.0
    shape: str = static(default="linear")
    power: Any = 2.0
    rate: Any = 0.1

    def __post_init__(self):
        require_schedules(self, "schedule")
        require_positive("cooldown", steps=self.steps)
        require_values("cooldown", at=self.at, end_value=self.end_value)
        shapes = tuple(shape for shape in CURVES if shape not in ("constant", "log"))
        parameters = {"power": (self.power, "power", 2.0), "rate": (self.rate, "exponential", 0.1)}
        require_curve("cooldown", self.shape, shapes, **parameters)

    @property
    def horizon(self):
        return self.at + self.steps

    def value_at(self, clock):
        own = clock.after(self.at)
        parameter = self.rate if self.shape == "exponential" else self.power
        fall, rise = curve(self.shape, own.left(self.steps), own.done(self.steps), parameter)
        return interpolate(self.schedule.value_at(clock.upto(self.at)), self.end_value, fall, rise)

    def __repr__(self):
        return method_text(self, "cooldown")


def branch(schedule: Schedule, at: Any) -> Schedule:
    """What a run that leaves `schedule` at `at` has followed until then: a cooldown planned for later is dropped."""
    require_values("branch_cooldown", at=at)
    if (
        isinstance(schedule, Cooldown)
        and known(at, schedule.at)
        and np.all(np.less_equal(at, schedule.at))
    ):
        return schedule.schedule
    return schedule
