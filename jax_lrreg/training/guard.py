"""What becomes of an update that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg.training.control import is_control
from jax_lrreg.training.state import State

COUNTERS = ("count", "step_count", "mini_step", "gradient_step")  # Optax's names


def is_sound(updates: Any, opt_state: Any, before: Any) -> jax.Array:
    """Whether no number of the optimizer has become NaN, and the updates are finite.

    The numbers are the scalars of its state, such as the step size that D-Adaptation estimates: they never
    recover. An optimizer without any, as Adam is, makes finite updates of finite gradients; it is not
    looked at, since reading its updates once more costs a tenth of a step where memory is the limit.
    """
    numbers = [
        (new, old)
        for new, old in zip(_own(opt_state), _own(before), strict=True)
        if jnp.ndim(new) == 0 and _is_real(new)
    ]
    sound = jnp.array(True)
    for new, old in numbers:
        sound &= ~jnp.isnan(new) | jnp.isnan(old)
    for update in jax.tree.leaves(updates) if numbers else []:
        if _is_real(update):
            sound &= jnp.all(jnp.isfinite(update))
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


def _own(opt_state: Any) -> list[Any]:
    """The leaves of an optimizer's state, without its controllers, which are never NaN."""
    return jax.tree.leaves(jax.tree.map(lambda node: None if is_control(node) else node, opt_state, is_leaf=is_control))


def _is_real(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)
