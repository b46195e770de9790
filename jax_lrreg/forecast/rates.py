"""The rates of a run as an array, whatever they were given as."""

from collections.abc import Callable
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require, require_whole
from jax_lrreg.schedules.base import Schedule, as_schedule

# chex.Numeric without the bool of NumPy, which has no `-`.
Number: TypeAlias = jax.Array | np.ndarray | np.number | float | int
Rates: TypeAlias = (
    Schedule | Callable[[jax.Array], chex.Numeric] | Number | list[float] | tuple[float, ...]
)


def rates_of(
    owner: str, schedule: Rates, steps: int | None, argument: str = "schedule"
) -> jax.Array:
    """The rates at the steps 0, ..., steps - 1, float32, of a schedule or of an array of them."""
    if isinstance(schedule, list | tuple) or (
        isinstance(schedule, np.ndarray | jax.Array) and schedule.ndim == 1
    ):
        rates = jnp.asarray(schedule, jnp.float32)
        allowed = f"an array of steps={steps} rates"
        require(steps in (None, rates.size), owner, argument, rates.shape, allowed)
    else:
        count = require_whole(owner, "steps", steps, most=LAST_STEP)
        rates = as_schedule(schedule, argument)(jnp.arange(count, dtype=jnp.int32))
    if known(rates):
        numbers, allowed = np.asarray(rates), "a schedule of rates >= 0, above 0 somewhere"
        fits = numbers.size > 0 and np.all(np.isfinite(numbers)) and np.all(numbers >= 0)
        require(fits and np.any(numbers > 0), owner, argument, schedule, allowed)
    return rates


def as_numbers(values: object) -> np.ndarray:
    """An array of real numbers, of no shape that is allowed where they are none."""
    try:
        array = np.asarray(values)
        return np.empty((0, 0)) if np.iscomplexobj(array) else array.astype(np.float64)
    except (ValueError, TypeError):  # NumPy's own words name no argument
        return np.empty((0, 0))


def short(number: float, digits: int = 8) -> float:
    """The number with as many digits as matter, since it is going to print."""
    return float(f"{float(number):.{digits}g}")
