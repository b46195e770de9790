"""`Schedule`, and the algebra that makes new schedules of given ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.schedules.clock import Clock


class Schedule:
    """A hyperparameter as a function of the step: `schedule(step) -> value`.

    `step` is the index of the update, from 0: a Python number or an array of any integer or float
    dtype and any shape. The value is float32 (float64 where the step is float64), of the step's shape.
    A schedule goes wherever Optax takes a learning rate, and serves any other hyperparameter as well.

    It is data: it prints as the expression that makes it, compares by value, and every number in it
    may be traced, batched or differentiated. A duration written as an int is counted exactly; written
    as a float it is a real number and has a gradient.

    To add a shape, subclass with `@pytree` and write `value_at(clock)` from the clock's `left`, `done` and
    `position`; see `Linear`.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def value_at(self, clock: Clock) -> jax.Array:
        """The value at the time that `clock` shows. The one method that a new schedule writes."""
        raise NotImplementedError

    def __call__(self, step: Any) -> jax.Array:
        """The value at `step`."""
        clock = Clock.of(step)
        value = jnp.asarray(self.value_at(clock), clock.dtype)
        return jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, clock.shape))

    @property
    def horizon(self) -> Any:
        """The step from which the value stays as it is; None if there is no such step, or none is known."""
        return None

    # What follows makes schedules whose classes need this one: hence the imports inside.

    def __mul__(self, other: "Schedule | Callable | float") -> "Schedule":
        """The product with a number or with another schedule."""
        from jax_lrreg.schedules.algebra import Product

        return Product(self, as_schedule(other, "*"))

    def __rmul__(self, other: "Callable | float") -> "Schedule":
        from jax_lrreg.schedules.algebra import Product

        return Product(as_schedule(other, "*"), self)

    def __truediv__(self, other: float) -> "Schedule":
        """This schedule divided by a number."""
        require_number("Schedule", "/", other, "a positive number", lambda x: x > 0)
        from jax_lrreg.schedules.algebra import Product

        return Product(Constant(1 / other), self)

    def __add__(self, other: "Schedule | Callable | float") -> "Schedule":
        """The sum with a number or with another schedule."""
        from jax_lrreg.schedules.algebra import Sum

        return Sum(self, as_schedule(other, "+"))

    def __radd__(self, other: "Callable | float") -> "Schedule":
        from jax_lrreg.schedules.algebra import Sum

        return Sum(as_schedule(other, "+"), self)

    def warmup(
        self, steps: Any, init_value: Any = 0.0, shape: str = "linear", power: Any = 2.0
    ) -> "Schedule":
        """A ramp of `steps` before this schedule, which moves back by as much; see `Warmup`."""
        from jax_lrreg.schedules.ramps import Warmup

        return Warmup(self, steps=steps, init_value=init_value, shape=shape, power=power)

    def overlay_warmup(
        self, steps: Any, init_value: Any = 0.0, shape: str = "linear", power: Any = 2.0
    ) -> "Schedule":
        """This schedule, which runs from step 0, times a ramp from `init_value`, a factor, to 1.

        >>> (2 * Constant(0.1)).overlay_warmup(10)
        2 * Constant(0.1) * Constant(1.0).warmup(10)
        """
        return self * Constant(1.0).warmup(steps, init_value=init_value, shape=shape, power=power)

    def cooldown(
        self,
        steps: Any,
        at: Any,
        end_value: Any = 0.0,
        shape: str = "linear",
        power: Any = 2.0,
        rate: Any = 0.1,
    ) -> "Schedule":
        """This schedule until `at`, and from there down to `end_value` within `steps`; see `Cooldown`."""
        from jax_lrreg.schedules.ramps import Cooldown

        return Cooldown(
            self, steps=steps, at=at, end_value=end_value, shape=shape, power=power, rate=rate
        )

    def branch_cooldown(
        self,
        steps: Any,
        at: Any,
        end_value: Any = 0.0,
        shape: str = "linear",
        power: Any = 2.0,
        rate: Any = 0.1,
    ) -> "Schedule":
        """The schedule of a run that leaves this one at `at` to cool down; a cooldown planned for later is dropped.

        >>> planned = Constant(0.1).cooldown(200, at=800)
        >>> planned.branch_cooldown(50, at=400)
        Constant(0.1).cooldown(50, at=400)
        """
        from jax_lrreg.schedules.ramps import branch

        return branch(self, at).cooldown(
            steps, at, end_value=end_value, shape=shape, power=power, rate=rate
        )

    def extend(self, at: Any, total_steps: Any) -> "Schedule":
        """This schedule until `at`, its rest stretched or shrunk to end at `total_steps`; see `Extended`."""
        from jax_lrreg.schedules.timeline import Extended

        return Extended(self, at=at, total_steps=total_steps)

    def shift(self, steps: Any) -> "Schedule":
        """This schedule, later by `steps`, or earlier if that is negative; see `Shifted`."""
        from jax_lrreg.schedules.timeline import Shifted

        return Shifted(self, steps=steps)

    def stretch(self, factor: Any) -> "Schedule":
        """This schedule, slower by `factor`; see `Stretched`."""
        from jax_lrreg.schedules.timeline import Stretched

        return Stretched(self, factor=factor)

    def repeat(self, steps: Any) -> "Schedule":
        """The first `steps` of this schedule, over and over; see `Repeated`."""
        from jax_lrreg.schedules.timeline import Repeated

        return Repeated(self, steps=steps)

    def in_units(self, per_step: Any) -> "Schedule":
        """This schedule, written in units of which one step covers `per_step`; see `InUnits`."""
        from jax_lrreg.schedules.timeline import InUnits

        return InUnits(self, per_step=per_step)

    def area(self, steps: int) -> jax.Array:
        """The sum of the values at the steps 0, ..., steps - 1, without the error of a long sum.

        >>> print(Constant(0.1).area(10**6))
        100000.0
        """
        from jax_lrreg.schedules.area import area

        return area(self, steps)

    def clip(self, min: Any = None, max: Any = None) -> "Schedule":  # noqa: A002 - as in jnp.clip
        """This schedule kept within `min` and `max`; see `Clip`."""
        from jax_lrreg.schedules.algebra import Clip

        return Clip(self, min=min, max=max)


def as_schedule(value: Any, argument: str) -> Schedule:
    """A schedule as it is, a number as `Constant`, any other callable `step -> value` as `Function`."""
    if isinstance(value, Schedule):
        return value
    if (
        callable(value) and not isinstance(value, type) and not hasattr(value, "__mul__")
    ):  # a penalty is no function
        return Function(value)
    require_number(
        "Schedule",
        argument,
        value,
        "a number >= 0, a schedule or a function of the step",
        lambda x: x >= 0,
    )
    return Constant(value)


def require_schedules(obj: Any, *names: str) -> None:
    """Refuses anything but a schedule in the fields named."""
    for name in names:
        value = getattr(obj, name)
        require(isinstance(value, Schedule), obj, name, value, "a schedule", error=TypeError)


def require_values(owner: Any, **values: Any) -> None:
    """Refuses anything but numbers >= 0, the values that a schedule takes."""
    for name, value in values.items():
        require_number(owner, name, value, "a number >= 0", lambda x: x >= 0)


def require_positive(owner: Any, **values: Any) -> None:
    """Refuses anything but positive numbers."""
    for name, value in values.items():
        require_number(owner, name, value, "a positive number", lambda x: x > 0)


def latest(*horizons: Any) -> Any:
    """The last of several horizons; None if one of them is."""
    if any(horizon is None for horizon in horizons):
        return None
    if all(isinstance(horizon, int | float) for horizon in horizons):
        return max(horizons)
    return functools.reduce(jnp.maximum, horizons)


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
        require_values(self, value=self.value)

    @property
    def horizon(self):
        return 0

    def value_at(self, clock):
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
            raise TypeError(
                f"Function: `function` must be a function of the step, got {self.function!r}"
            )

    def value_at(self, clock):
        def one(step):
            return jnp.asarray(self.function(step), clock.dtype)

        function, step = one, clock.moment()
        for _ in clock.shape:  # not every schedule of others takes an array of steps
            function = jax.vmap(function)
        return function(step)
