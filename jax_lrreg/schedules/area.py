"""The area under a schedule: how far a run can go in all."""

import jax
import jax.numpy as jnp

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require
from jax_lrreg.schedules.base import Schedule


def area(schedule: Schedule, steps: int) -> jax.Array:
    """The sum of the values at the steps 0, ..., steps - 1.

    The steps are spread over many partial sums, each of which carries along what rounding took from it.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"area: `steps` must be a whole number of steps, got {steps!r}")
    require(0 <= steps <= LAST_STEP, "area", "steps", steps, "a whole number from 0 to 2^31 - 1")
    width = 2 ** min(steps.bit_length(), 14)
    lanes = jnp.arange(width, dtype=jnp.int32)

    def add(row: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, error = sums
        value = jnp.where(lanes < steps - row * width, schedule(row * width + lanes), 0)
        return two_sum(total, value - error)

    zeros = jnp.zeros(width, jnp.float32)
    total, error = jax.lax.fori_loop(0, -(-steps // width), add, (zeros, zeros))
    while len(total) > 1:
        half = len(total) // 2
        left_over = error[:half] + error[half:]
        total, error = two_sum(total[:half], total[half:])
        error = error + left_over
    return total[0] - error[0]


def two_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X + y rounded, and how much too large it is (Knuth, TAOCP 2, 4.2.2)."""
    total = x + y
    from_y = total - x
    return total, (total - from_y - x) + (from_y - y)
