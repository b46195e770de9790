"""A penalty as an Optax gradient transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg.penalties import Penalty
from jax_lrreg.select import is_parameter


class AddPenaltyState(NamedTuple):
    """How many updates have been made; always there, so that a strength may become a schedule later."""

    count: jax.Array


def add_penalty(penalty: Penalty) -> optax.GradientTransformation:
    """Adds the gradient of a penalty to the updates.

        update <- update + gradient of penalty(params)

    Before the preconditioner it is coupled, as in torch's `Adam(weight_decay)`; after it and before the
    learning rate it is decoupled, as in AdamW.

    Args:
        penalty: its strengths may be schedules of the number of updates made so far.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> tx = optax.chain(add_penalty(L2(0.1)), optax.sgd(1.0))
        >>> params = {"kernel": jnp.array([2.0])}
        >>> print(tx.update({"kernel": jnp.array([0.5])}, tx.init(params), params)[0]["kernel"])
        [-0.7]
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"add_penalty: `penalty` must be a Penalty, got {penalty!r}")

    def init(params: Any) -> AddPenaltyState:
        del params
        return AddPenaltyState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AddPenaltyState]:
        if params is None:
            raise ValueError("add_penalty: `params` must be given to `update`, got None")
        gradient = penalty.gradient(params, state.count)

        def add(update: jax.Array, term: jax.Array) -> jax.Array:
            return update + term.astype(update.dtype) if is_parameter(update) else update

        return jax.tree.map(add, updates, gradient), AddPenaltyState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(init, update)
