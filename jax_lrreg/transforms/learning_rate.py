"""The learning rate applied in float32, whatever the dtype of the updates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._check import require, require_number
from jax_lrreg._optax_state import ScaleByLearningRateState, Tree
from jax_lrreg.schedules import Schedule
from jax_lrreg.schedules.base import as_schedule


def scale_by_learning_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Turns updates downhill and scales them by the learning rate, rounding once.

        update <- round(-learning_rate(count) update)

    The product is taken in float32 and then rounded to the dtype of the update. Optax's
    transformation of this name rounds the learning rate first: in bfloat16 a cosine then falls in
    stairs of up to 0.4 %, and in float16 the first steps of a warmup are 0. In float32 the two are
    the same.

    Args:
        learning_rate: a number, a schedule, or any function of the number of updates made so far.

    Returns:
        An Optax transformation. Its state is the same whether the rate is constant or scheduled,
        and holds the rate of the latest update.

    Example:
        >>> tx = scale_by_learning_rate(1.01)
        >>> update = {"kernel": jnp.array([190.0], jnp.bfloat16)}  # 191.9; bfloat16 has no 1.01
        >>> update, state = tx.update(update, tx.init(update))
        >>> print(update["kernel"], state.learning_rate)
        [-192] 1.01
    """
    schedule = schedule_of_one("scale_by_learning_rate", "learning_rate", learning_rate)

    def init(params: Tree) -> ScaleByLearningRateState:
        del params
        # The rate that the first update will have, so that a resumed run and a log agree from the
        # start.
        count = jnp.zeros((), jnp.int32)
        return ScaleByLearningRateState(count, jnp.asarray(schedule(count), jnp.float32))

    def update(
        updates: Tree, state: Tree, params: Tree = None
    ) -> tuple[Tree, ScaleByLearningRateState]:
        del params
        # A strong float32, so that the product is one too: a weak number would take the type of the
        # update, and be rounded to its 8 bits before anything is multiplied.
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        scaled = jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return scaled, ScaleByLearningRateState(count, rate)

    return optax.GradientTransformation(init, update)


def schedule_of_one(owner: str, argument: str, value: optax.ScalarOrSchedule) -> Schedule:
    """`value` as a schedule; refuses arrays, which would be broadcast against updates."""
    allowed = "a number >= 0, a schedule or a function of the step"
    if not callable(value):
        require_number(owner, argument, value, allowed, lambda x: x >= 0)
    number: Any = value
    schedule = as_schedule(number, argument)
    require_one(owner, argument, schedule(0))
    return schedule


def require_one(owner: str, argument: str, value: Any) -> None:
    """Refuses an array of several numbers where one is meant."""
    allowed = "one number, or a schedule of one; several are swept with `vmap`"
    require(jnp.ndim(value) == 0, owner, argument, f"shape {jnp.shape(value)}", allowed)
