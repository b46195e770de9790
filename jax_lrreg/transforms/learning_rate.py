"""The learning rate applied in float32, whatever the dtype of the updates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_lrreg.schedules.base import as_schedule


def scale_by_learning_rate(learning_rate: Any) -> optax.GradientTransformation:
    """Turns updates downhill and scales them by the learning rate, rounding once.

        update <- round(-learning_rate(count) update)

    The product is taken in float32 and then rounded to the dtype of the update. Optax's transformation of
    this name rounds the learning rate first: in bfloat16 a cosine then falls in stairs of up to 0.4 %, and
    in float16 the first steps of a warmup are 0. In float32 the two are the same.

    Args:
        learning_rate: a number, a schedule, or any function of the number of updates made so far.

    Returns:
        An Optax transformation; its state is the same whether the rate is constant or scheduled.

    Example:
        >>> tx = scale_by_learning_rate(1.01)
        >>> update = {"kernel": jnp.array([190.0], jnp.bfloat16)}  # 191.9; bfloat16 has no 1.01
        >>> print(tx.update(update, tx.init(update))[0]["kernel"])
        [-192]
    """
    schedule = as_schedule(learning_rate, "learning_rate")

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        rate = schedule(state.count)

        def scaled(u: jax.Array) -> jax.Array:
            return (-rate * u).astype(u.dtype)

        return jax.tree.map(scaled, updates), optax.ScaleByScheduleState(
            count=optax.safe_increment(state.count)
        )

    return optax.GradientTransformation(init, update)
