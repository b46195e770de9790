"""Sums, products, bounds and areas of schedules, and their text."""

from dataclasses import KW_ONLY
from types import UnionType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require_number, require_whole
from jax_lrreg._struct import arguments_text, number_text, pytree
from jax_lrreg.schedules.base import Constant, Schedule, latest, require_schedules
from jax_lrreg.schedules.digits import two_sum


@pytree
class _Pair(Schedule):
    """Two schedules at once."""

    first: Schedule
    second: Schedule

    def __post_init__(self):
        require_schedules(self, first=self.first, second=self.second)

    @property
    def horizon(self):
        return latest(self.first.horizon, self.second.horizon)

    @property
    def phases(self):
        # A factor or an offset has one phase; the one with more of them is what a picture is about.
        return max(self.first.phases, self.second.phases, key=len)


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
    min: chex.Numeric | None = None
    max: chex.Numeric | None = None

    def __post_init__(self):
        require_schedules(self, schedule=self.schedule)
        lowest = 0.0
        if self.min is not None:
            require_number("clip", "min", self.min, "a number >= 0 or None", lambda x: x >= 0)
            lowest = np.asarray(self.min, np.float64) if known(self.min) else 0.0
        if self.max is not None:
            allowed = "a number >= 0 or None" if self.min is None else f"at least min={self.min}"
            require_number("clip", "max", self.max, allowed, lambda x: x >= lowest)

    @property
    def horizon(self):
        return self.schedule.horizon

    @property
    def phases(self):
        return self.schedule.phases

    def value_at(self, clock):
        value = self.schedule.value_at(clock)
        if self.min is not None:
            low = clock.number(self.min)
            # Not `jnp.clip`, which halves the gradient where the value is the bound itself.
            value = jnp.where(value < low, low, value)
        if self.max is not None:
            high = clock.number(self.max)
            value = jnp.where(value > high, high, value)
        return value

    def __repr__(self):
        return method_text(self, "clip")


def area(schedule: Schedule, steps: int) -> jax.Array:
    """The sum of the values at the steps 0, ..., steps - 1.

    The steps are spread over many partial sums, each of which carries along what rounding took
    from it: a plain float32 sum of 10^6 equal numbers is off by 1 %.
    """
    steps = require_whole("area", "steps", steps, least=0, most=LAST_STEP)
    width = 2 ** min(steps.bit_length(), 14)
    lanes = jnp.arange(width, dtype=jnp.int32)

    def add(row: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, lost = sums
        value = jnp.where(lanes < steps - row * width, schedule(row * width + lanes), 0)
        return two_sum(total, value + lost)

    zeros = jnp.zeros(width, jnp.float32)
    total, lost = jax.lax.fori_loop(0, -(-steps // width), add, (zeros, zeros))
    while len(total) > 1:
        half = len(total) // 2
        total, more = two_sum(total[:half], total[half:])
        lost = lost[:half] + lost[half:] + more
    return total[0] + lost[0]


def _operand(schedule: Schedule, looser: type | UnionType, number: bool = False) -> str:
    """The text of an operand: a plain number for `Constant`, brackets around what binds looser."""
    if number and isinstance(schedule, Constant) and isinstance(schedule.value, int | float):
        return number_text(schedule.value)
    return f"({schedule!r})" if isinstance(schedule, looser) else repr(schedule)


def method_text(obj: Any, method: str) -> str:
    """The text of what a method of its first field made, such as `Cosine(...).warmup(5)`.

    The field `steps` is the method's first argument and stands without its name.
    """
    # The first field is not among the arguments: rendered twice, it would take time 2^depth.
    arguments = [text.partition("=") for text in arguments_text(obj, skip=1)]
    texts = [value if name == "steps" else f"{name}={value}" for name, _, value in arguments]
    return f"{_operand(obj.schedule, Sum | Product)}.{method}({', '.join(texts)})"
