"""What becomes of an update that is not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._arrays import is_parameter
from jax_lrreg._optax_state import is_counter, own_numbers
from jax_lrreg.training.state import State


def guarded(
    finite: jax.Array, make: Callable[[], tuple[State, Any]], size: Callable[[Any], Any], old: State
) -> tuple[State, Any, jax.Array]:
    """What `make` returns, a state and the updates that led to it, if all is finite; else the old state.

    Args:
        finite: whether loss and gradient are.
        make: runs the optimizer.
        size: what is reported of the updates, a scalar or None.
        old: the state before.

    Returns:
        The state, the size of the updates (0 where none were made), and whether they were.
    """

    def made() -> tuple[State, Any, jax.Array]:
        new, updates = make()
        sound = is_sound(updates, new.opt_state, old.opt_state)
        if sound is None:
            return new, size(updates), jnp.array(True)
        return kept(sound, new, old), size(updates), sound

    def skipped() -> tuple[State, Any, jax.Array]:
        return old, jax.tree.map(jnp.zeros_like, size(old.params)), jnp.array(False)

    if jax.default_backend() == "cpu":
        # Here XLA makes one loop for each array, and none may write where another has yet to read the old value
        # for a choice between old and new: the moments would be copied. So the optimizer is not run at all.
        return jax.lax.cond(finite, made, skipped)
    return jax.tree.map(lambda after, before: jnp.where(finite, after, before), made(), skipped())


def is_sound(updates: Any, opt_state: Any, before: Any) -> jax.Array | None:
    """Whether no number of the optimizer has become NaN, and the updates are finite; None if it has no numbers.

    The numbers are the scalars of its state, such as the step size that D-Adaptation estimates: they never
    recover. An optimizer without any, as Adam is, makes finite updates of finite gradients; it is not
    looked at, since reading its updates once more costs a tenth of a step where memory is the limit.
    """
    numbers = [
        pair
        for pair in zip(own_numbers(opt_state), own_numbers(before), strict=True)
        if pair[0] is not None
    ]
    if not numbers:
        return None
    sound = jnp.array(True)
    for new, old in numbers:
        sound &= ~jnp.isnan(new) | jnp.isnan(old)
    for update in jax.tree.leaves(updates):
        if is_parameter(update):
            sound &= jnp.all(jnp.isfinite(update))
    return sound


def kept(sound: jax.Array, new: State, old: State) -> State:
    """The new state where the update is sound, else the old one, but for the optimizer's counters.

    They go on: the gradient was finite, and what divided 0 by 0 is most often a schedule at 0. A counter that stood
    still would keep it there for ever.
    """

    def choice(path: Any, after: jax.Array, before: jax.Array) -> jax.Array:
        return after if is_counter(path, after) else jnp.where(sound, after, before)

    opt_state = jax.tree_util.tree_map_with_path(choice, new.opt_state, old.opt_state)
    rest = jax.tree.map(
        lambda after, before: jnp.where(sound, after, before),
        new.replace(opt_state=None),
        old.replace(opt_state=None),
    )
    return rest.replace(opt_state=opt_state)
