"""`Schedule`, and the algebra that makes new schedules of given ones."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, Union

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.schedules.clock import Clock

ScheduleLike: TypeAlias = Union["Schedule", Callable[[jax.Array], chex.Numeric], chex.Numeric]
# chex.Numeric without the bool of NumPy, which has no `-`.
Duration: TypeAlias = jax.Array | np.ndarray | np.number | float | int
LARGEST = float(np.finfo(np.float32).max)


class Schedule:
    """A hyperparameter as a function of the step: `schedule(step) -> value`.

    `step` is the index of the update, from 0: a Python number or an array of any integer or float
    dtype and any shape. The value is float32 (float64 where the step is float64), of the step's
    shape. A schedule goes wherever Optax takes a learning rate, and serves any other
    hyperparameter as well.

    It is data: it prints as the expression that makes it, compares by value, and every number in
    it may be traced, batched or differentiated. A duration written as an int is counted exactly;
    written as a float it is a real number and has a gradient.

    To add a shape, subclass with `@pytree` and write `value_at(clock)` from the clock's `left`,
    `done`, `cycle` and `position`; see `Linear`.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def value_at(self, clock: Clock) -> chex.Numeric:
        """The value at the time that `clock` shows. The one method that a new schedule writes."""
        raise NotImplementedError

    def __call__(self, step: chex.Numeric) -> jax.Array:
        """The value at `step`."""
        # Strong as all the others are, if it was a Python number: a weak type compiles a step anew.
        clock = Clock.of(step)
        value = jnp.asarray(self.value_at(clock), clock.dtype)
        return once(jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, clock.shape)))

    @property
    def horizon(self) -> chex.Numeric | None:
        """The step from which the value stays as it is; None if none is known."""
        return None

    @property
    def phases(self) -> list[tuple[float, str]]:
        """Where its phases begin, in steps, and what they are called, for pictures."""
        return [(0.0, type(self).__name__.lower())]

    def __mul__(self, other: "ScheduleLike") -> "Schedule":
        """The product with a number or with another schedule."""
        return algebra.Product(self, as_schedule(other, "*"))

    def __rmul__(self, other: "ScheduleLike") -> "Schedule":
        return algebra.Product(as_schedule(other, "*"), self)

    def __truediv__(self, other: chex.Numeric) -> "Schedule":
        """This schedule divided by a number."""
        require_positive("Schedule", **{"/": other})
        return algebra.Product(Constant(1 / other), self)

    def __add__(self, other: "ScheduleLike") -> "Schedule":
        """The sum with a number or with another schedule."""
        return algebra.Sum(self, as_schedule(other, "+"))

    def __radd__(self, other: "ScheduleLike") -> "Schedule":
        return algebra.Sum(as_schedule(other, "+"), self)

    def warmup(
        self,
        steps: chex.Numeric,
        init_value: chex.Numeric = 0.0,
        shape: str = "linear",
        power: chex.Numeric = 2.0,
    ) -> "Schedule":
        """A ramp of `steps` before this schedule, which moves back by as much; see `Warmup`."""
        return ramps.Warmup(self, steps=steps, init_value=init_value, shape=shape, power=power)

    def overlay_warmup(
        self,
        steps: chex.Numeric,
        init_value: chex.Numeric = 0.0,
        shape: str = "linear",
        power: chex.Numeric = 2.0,
    ) -> "Schedule":
        """This schedule, from step 0 on, times a factor that rises from `init_value` to 1.

        >>> (2 * Constant(0.1)).overlay_warmup(10)
        2 * Constant(0.1) * Constant(1.0).warmup(10)
        """
        return self * Constant(1.0).warmup(steps, init_value=init_value, shape=shape, power=power)

    def cooldown(
        self,
        steps: chex.Numeric,
        at: chex.Numeric,
        end_value: chex.Numeric = 0.0,
        shape: str = "linear",
        power: chex.Numeric = 2.0,
        rate: chex.Numeric = 0.1,
    ) -> "Schedule":
        """This schedule until `at`, then down to `end_value` within `steps`; see `Cooldown`."""
        options = {"end_value": end_value, "shape": shape, "power": power, "rate": rate}
        return ramps.Cooldown(self, steps=steps, at=at, **options)

    def branch_cooldown(
        self,
        steps: chex.Numeric,
        at: chex.Numeric,
        end_value: chex.Numeric = 0.0,
        shape: str = "linear",
        power: chex.Numeric = 2.0,
        rate: chex.Numeric = 0.1,
    ) -> "Schedule":
        """The schedule of a run that leaves this one at `at` to cool down; see `cooldown`.

        A cooldown that was planned for later is dropped.

        >>> planned = Constant(0.1).cooldown(200, at=800)
        >>> planned.branch_cooldown(50, at=400)
        Constant(0.1).cooldown(50, at=400)
        """
        options = {"end_value": end_value, "shape": shape, "power": power, "rate": rate}
        return ramps.branch(self, at).cooldown(steps, at, **options)

    def extend(self, at: chex.Numeric, total_steps: chex.Numeric) -> "Schedule":
        """This schedule until `at`, its rest stretched to end at `total_steps`; see `Extended`."""
        return timeline.Extended(self, at=at, total_steps=total_steps)

    def shift(self, steps: chex.Numeric) -> "Schedule":
        """This schedule, later by `steps`, or earlier if that is negative; see `Shifted`."""
        return timeline.Shifted(self, steps=steps)

    def stretch(self, factor: chex.Numeric) -> "Schedule":
        """This schedule, slower by `factor`; see `Stretched`."""
        return timeline.Stretched(self, factor=factor)

    def repeat(self, steps: chex.Numeric) -> "Schedule":
        """The first `steps` of this schedule, over and over; see `Repeated`."""
        return timeline.Repeated(self, steps=steps)

    def in_units(self, per_step: chex.Numeric) -> "Schedule":
        """This schedule, written in units of which one step covers `per_step`; see `InUnits`."""
        return timeline.InUnits(self, per_step=per_step)

    def area(self, steps: int) -> jax.Array:
        """The sum of the values at the steps 0, ..., steps - 1, without the error of a long sum.

        >>> print(Constant(0.1).area(10**6))
        100000.0
        """
        return algebra.area(self, steps)

    def clip(
        self,
        min: chex.Numeric | None = None,  # noqa: A002 - as in jnp.clip
        max: chex.Numeric | None = None,  # noqa: A002
    ) -> "Schedule":
        """This schedule kept within `min` and `max`; see `Clip`."""
        return algebra.Clip(self, min=min, max=max)


def once(value: jax.Array) -> jax.Array:
    """`value`, which XLA works out once, and not anew for each number that is scaled by it.

    What is cheap, XLA's CPU compiler writes into every loop that uses it: a schedule into that of
    each array of an update, where a sweep's were 40 % of the time, and half of the compiling. A
    quotient is dear to it. It cannot know that this one changes nothing, not even NaN.
    """
    return value if known(value) else value / jnp.where(jnp.isnan(value), 2, 1)


def as_schedule(value: ScheduleLike, argument: str) -> Schedule:
    """A schedule as it is, a number as `Constant`, any other function of the step as `Function`."""
    if isinstance(value, Schedule):
        return value
    # A penalty and a class can be called, too, but are no functions of the step.
    if callable(value) and not isinstance(value, type) and not hasattr(value, "__mul__"):
        return Function(value)
    allowed = "a number >= 0, a schedule or a function of the step"
    require_number("Schedule", argument, value, allowed, lambda x: x >= 0)
    number: Any = value
    return Constant(number)


def require_schedules(owner: object, **schedules: object) -> None:
    """Refuses anything but schedules."""
    for name, value in schedules.items():
        require(isinstance(value, Schedule), owner, name, value, "a schedule", error=TypeError)


def require_values(owner: object, **values: object) -> None:
    """Refuses anything but numbers >= 0 that a float32 holds, which is what a schedule returns."""
    for name, value in values.items():
        require_number(owner, name, value, "a number >= 0", lambda x: x >= 0)
        require_number(owner, name, value, f"at most {LARGEST:.4g}", lambda x: x <= LARGEST)


def require_durations(owner: object, **durations: object) -> None:
    """Refuses anything but numbers of steps >= 0."""
    for name, value in durations.items():
        require_number(owner, name, value, "a number of steps >= 0", lambda x: x >= 0)


def require_positive(owner: object, **values: object) -> None:
    """Refuses anything but positive numbers."""
    for name, value in values.items():
        require_number(owner, name, value, "a positive number", lambda x: x > 0)


def latest(*horizons: Any) -> Any:
    """The last of several horizons; None if one of them is."""
    if any(horizon is None for horizon in horizons):
        return None
    # Python's `max` keeps an int an int: a duration that is counted exactly.
    if all(isinstance(horizon, int | float) for horizon in horizons):
        return max(horizons)
    return functools.reduce(jnp.maximum, horizons)


def after(duration: chex.Numeric, horizon: chex.Numeric | None) -> chex.Numeric | None:
    """The horizon of what comes after `duration`."""
    return None if horizon is None else duration + horizon


def phases_until(at: chex.Numeric, schedule: Schedule, name: str) -> list[tuple[float, str]]:
    """The phases of a schedule until `at`, from where another one of that name takes over."""
    begin = float(np.asarray(at))
    return [*(phase for phase in schedule.phases if phase[0] < begin), (begin, name)]


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

    value: chex.Numeric

    def __post_init__(self):
        require_values(self, value=self.value)

    @property
    def horizon(self):
        return 0

    def value_at(self, clock):
        return clock.number(self.value)


@pytree
class Function(Schedule):
    """Any function `step -> value`, an Optax schedule or a lambda, as a schedule.

    It is never asked for a step before its own beginning or, in a `join`, past its own end. It
    counts as structure: a new function is traced anew, and it has no text that could be read back.

    Attributes:
        function: takes the step, one number, and returns one number.

    Example:
        >>> print((2 * Function(lambda step: 0.1 / (step + 1)))(1))
        0.1
    """

    function: Callable[[jax.Array], chex.Numeric] = static()

    def __post_init__(self):
        fits = callable(self.function)
        allowed = "a function of the step"
        require(fits, self, "function", self.function, allowed, error=TypeError)

    def value_at(self, clock):
        def one(step):
            return jnp.asarray(self.function(step), clock.dtype)

        function, step = one, clock.moment()
        for _ in clock.shape:  # not every schedule of others takes an array of steps
            function = jax.vmap(function)
        return function(step)


# The operators above make subclasses of `Schedule`, which need it first. Modules and not their
# names, so that it does not matter which of these files Python reads first.
from jax_lrreg.schedules import algebra, ramps, timeline  # noqa: E402
