"""What becomes of an update that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg.training.state import State

COUNTERS = ("count", "step_count", "mini_step", "gradient_step")  # Optax's names


def is_sound(updates: Any, opt_state: Any, before: Any) -> jax.Array:
    """Whether the updates are finite and no number of the optimizer has become NaN.

    Of its state only the scalars are read: those, such as the step size that D-Adaptation estimates, never
    recover, and reading the rest would cost as much as another update.
    """
    sound = jnp.array(True)
    for update in jax.tree.leaves(updates):
        if _is_real(update):
            sound &= jnp.all(jnp.isfinite(update))
    for new, old in zip(jax.tree.leaves(opt_state), jax.tree.leaves(before), strict=True):
        if jnp.ndim(new) == 0 and _is_real(new):
            sound &= ~jnp.isnan(new) | jnp.isnan(old)
    return sound


def kept(finite: jax.Array, sound: jax.Array, new: State, old: State) -> State:
    """The new state where the update is sound, else the old one.

    Where the gradient was finite and the update is not, the optimizer's counters go on: what divided 0 by
    0 is most often a schedule at 0, and a counter that stood still would keep it there for ever.
    """

    def counted(path: Any, after: jax.Array, before: jax.Array) -> jax.Array:
        counter = getattr(path[-1], "name", None) in COUNTERS and jnp.ndim(after) == 0
        return jnp.where(finite if counter else sound, after, before)

    opt_state = jax.tree_util.tree_map_with_path(counted, new.opt_state, old.opt_state)
    new = jax.tree.map(
        lambda after, before: jnp.where(sound, after, before),
        new.replace(opt_state=None),
        old.replace(opt_state=None),
    )
    return new.replace(opt_state=opt_state)


def _is_real(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)
