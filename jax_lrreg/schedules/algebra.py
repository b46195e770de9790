"""Sums, products and bounds of schedules, and how they and the methods of a schedule are written as text."""

from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require_number
from jax_lrreg._struct import arguments_text, number_text, pytree
from jax_lrreg.schedules.base import Constant, Schedule, latest, require_schedules


@pytree
class _Pair(Schedule):
    """Two schedules at once."""

    first: Schedule
    second: Schedule

    def __post_init__(self):
        require_schedules(self, "first", "second")

    @property
    def horizon(self):
        return latest(self.first.horizon, self.second.horizon)


@pytree
class Product(_Pair):
    """The product of two schedules, written `a * b`.

    Example:
        >>> 0.5 * Constant(0.1)
        0.5 * Constant(0.1)
    """

    def value_at(self, clock):
        return self.first.value_at(clock) * self.second.value_at(clock)

    def __repr__(self):
        return f"{_operand(self.first, Sum, number=True)} * {_operand(self.second, Sum | Product)}"


@pytree
class Sum(_Pair):
    """The sum of two schedules, written `a + b`.

    Example:
        >>> Constant(0.1) + 0.01
        Constant(0.1) + 0.01
    """

    def value_at(self, clock):
        return self.first.value_at(clock) + self.second.value_at(clock)

    def __repr__(self):
        return f"{self.first!r} + {_operand(self.second, Sum, number=True)}"


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
        require_schedules(self, "schedule")
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                require_number(
                    "clip", name, getattr(self, name), "a number >= 0 or None", lambda x: x >= 0
                )
        if self.min is not None and self.max is not None and known(self.min):
            lowest = np.asarray(self.min, np.float64)
            require_number(
                "clip", "max", self.max, f"at least min={self.min}", lambda x: x >= lowest
            )

    @property
    def horizon(self):
        return self.schedule.horizon

    def value_at(self, clock):
        value = self.schedule.value_at(clock)
        if self.min is not None:
            value = jnp.where(value < self.min, self.min, value)
        if self.max is not None:
            value = jnp.where(value > self.max, self.max, value)
        return value

    def __repr__(self):
        return method_text(self, "clip")


def _operand(schedule: Schedule, looser: Any, number: bool = False) -> str:
    """The text of an operand: a plain number for `Constant`, brackets around what binds looser."""
    if number and isinstance(schedule, Constant) and isinstance(schedule.value, int | float):
        return number_text(schedule.value)
    return f"({schedule!r})" if isinstance(schedule, looser) else repr(schedule)


def method_text(obj: Any, method: str) -> str:
    """The text of an object that a method of its first field made: `Cosine(...).warmup(5)`.

    The field `steps` is the method's first argument and stands without its name.
    """
    arguments = [text.partition("=") for text in arguments_text(obj, skip=1)]
    texts = [value if name == "steps" else f"{name}={value}" for name, _, value in arguments]
    return f"{_operand(obj.schedule, Sum | Product)}.{method}({', '.join(texts)})"
