"""Parameters of few bits, with a float32 copy of them in the optimizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._optax_state import Tree


class MasterWeightsState(NamedTuple):
    """The float32 copy of each narrower parameter, None beside the others, and `inner`'s state."""

    master: Tree
    inner_state: optax.OptState


def master_weights(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs an optimizer on a float32 copy of the parameters, and makes them the copy, rounded.

        master <- master + update of inner(gradient, master)
        params <- master, rounded to the dtype of params

    A bfloat16 parameter moves by 1/256 of itself at least: without a copy, smaller updates are
    lost. The moments of `inner` are float32 too, and penalties in it see the copy. It is the whole
    optimizer, around clipping, penalties and `optax.MultiSteps`. Parameters of 32 bits or more are
    updated as they are, and a parameter that was set from outside is where its copy goes on from.

    Args:
        inner: an Optax optimizer.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Micikevicius et al., Mixed precision training, 2018, section 3.1 (arXiv:1710.03740).

    Example:
        >>> params, tx = jnp.ones(1, jnp.bfloat16), master_weights(optax.sgd(1e-3))
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.ones(1, jnp.bfloat16), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(state.master, params)  # alone, 1 - 0.001 is 1 in bfloat16
        [0.99600005] [0.996094]
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"master_weights: `inner` must be an Optax transformation, got {inner!r}")
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> MasterWeightsState:
        master = jax.tree.map(lambda p: _wide(p) if _is_narrow(p) else None, params)
        return MasterWeightsState(master, inner.init(_copy(params, master)))

    def update(
        updates: Tree, state: Tree, params: Tree = None, **extra: object
    ) -> tuple[Tree, MasterWeightsState]:
        if params is None:
            raise ValueError("master_weights: `params` must be given to `update`, got None")
        copy = _copy(params, state.master)
        wide = jax.tree.map(_wide, updates)
        if "grad" in extra:
            extra["grad"] = jax.tree.map(_wide, extra["grad"])
        # Widened before the optimizer sees them: the moments take their dtype from gradients, and a
        # bfloat16 second moment with b2 = 0.999 stands still, as 0.1 % of it is less than half a
        # unit.
        steps, inner_state = inner.update(wide, state.inner_state, copy, **extra)
        moved = jax.tree.map(_reachable, params, optax.apply_updates(copy, steps))
        # A float32 difference, though the parameter is narrow: `optax.apply_updates` adds in the
        # wider of the two dtypes and rounds once, which brings the parameter to the rounded copy
        # exactly.
        changes = jax.tree.map(_change, params, moved, steps)
        master = jax.tree.map(lambda p, m: m if _is_narrow(p) else None, params, moved)
        return changes, MasterWeightsState(master, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _copy(params: Tree, master: Tree) -> Tree:
    """The parameters as the inner optimizer sees them: the copy, where it is the parameter's."""

    def one(p: jax.Array, m: jax.Array) -> jax.Array:
        # A parameter that is not its copy, rounded, was set from outside: an average, a checkpoint.
        return jnp.where(m.astype(p.dtype) == p, m, _wide(p)) if _is_narrow(p) else p

    return jax.tree.map(one, params, master)


def _reachable(p: jax.Array, master: jax.Array) -> jax.Array:
    """The copy; but where p + (rounded copy - p) would be another number, that number.

    It is another one only where the parameter falls to less than 2^-16 of itself, and then by less
    than the rounding of the update.
    """
    if not _is_narrow(p):
        return master
    rounded = master.astype(p.dtype)
    reached = (_wide(p) + (_wide(rounded) - _wide(p))).astype(p.dtype)
    return jnp.where(reached == rounded, master, _wide(reached))


def _change(p: jax.Array, master: jax.Array, step: jax.Array) -> jax.Array:
    return _wide(master.astype(p.dtype)) - _wide(p) if _is_narrow(p) else step


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32) if _is_narrow(x) else x


def _is_narrow(x: object) -> bool:
    dtype = getattr(x, "dtype", jnp.int32)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
