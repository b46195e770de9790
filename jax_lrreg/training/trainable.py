"""Which of the parameters are trained, and how more of them begin to be in the middle of a run."""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import Parameters, widened
from jax_lrreg._check import require
from jax_lrreg._optax_state import memories, with_memories
from jax_lrreg._struct import pytree, static
from jax_lrreg.select import selection
from jax_lrreg.training.modules import Adapter, paths_of_type


@pytree
class Trainable:
    """Which parameters are trained, a flag for each leaf of their tree in its order.

    It is structure of a state: the compiled step has no arithmetic for the others.
    """

    flags: tuple[bool, ...] = static()

    def part(self, params: optax.Params) -> optax.Params:
        """The trained ones; each other is Optax's `MaskedNode`, which has no leaf."""
        values, structure = jax.tree.flatten(params)
        pairs = zip(values, self.flags, strict=True)
        return jax.tree.unflatten(structure, [x if on else optax.MaskedNode() for x, on in pairs])

    def whole(self, trained: optax.Params, params: optax.Params) -> optax.Params:
        """All parameters: the `trained` ones, and the others of `params`."""
        values, structure = jax.tree.flatten(params)
        new = iter(jax.tree.leaves(trained))
        pairs = zip(values, self.flags, strict=True)
        return jax.tree.unflatten(structure, [next(new) if on else x for x, on in pairs])


def chosen(
    owner: str, spec: Any, params: optax.Params, module: Adapter | None = None
) -> Trainable | None:
    """What a selection of parameters, or a type of NNX variable, means; None for all of them."""
    if spec is None:
        return None
    items = Parameters(params)
    if isinstance(spec, type):
        paths = paths_of_type(module, spec)
        require(
            paths is not None,
            owner,
            "trainable",
            spec,
            "a selection: only NNX has types of variables",
        )
        flags = tuple(leaf.path in (paths or ()) for leaf in items)
    else:
        rules = selection(spec)
        try:
            rules.check(items.paths)
        except ValueError as error:
            raise ValueError(f"{owner}: `trainable`: {str(error).removeprefix('on: ')}") from None
        flags = tuple(bool(rules.multiplier(*leaf)) for leaf in items)
    require(any(flags), owner, "trainable", spec, "a selection that leaves something to train")
    return None if all(flags) else Trainable(flags)


def carried_over(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """An optimizer's state for more parameters, with what it had for those it knew."""
    held = {str(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(old)[0]}
    pairs, structure = jax.tree_util.tree_flatten_with_path(new)
    return jax.tree.unflatten(structure, [held.get(str(path), leaf) for path, leaf in pairs])


def eased(
    updates: optax.Updates,
    begun: optax.Params,
    tx: optax.GradientTransformationExtraArgs,
    count: jax.Array,
    params: optax.Params,
    extra: Mapping[str, Any],
) -> optax.Updates:
    """The updates, those of thawed parameters as if their optimizer began with the thaw.

        update <- update r(k) / r(c),    r(n) = sqrt(1 - b2^n) / (1 - b1^n)

    for the k-th update of a parameter and the c-th of the optimizer. Adam corrects its means, which
    start from 0, by the number of all updates: r(c) is near 1 when a new mean is nothing yet, and
    the update is 3 times the rate.

    Args:
        updates: of the trained parameters.
        begun: for each of them, the number of updates before its first.
        tx: the optimizer.
        count: of the updates that it has made before this one.
        params: the trained parameters.
        extra: the other arguments of the update.
    """
    # One number stands for each parameter: only the constants are asked for.
    few = jax.tree.map(lambda p: jnp.zeros((1,) * jnp.ndim(p), jnp.result_type(p)), params)
    fresh = tx.init(few)
    if not any(hasattr(node, "nu") for node in memories(fresh)):
        return updates  # nothing is divided by the root of a mean

    def decay(field: str) -> jax.Array:
        """What one update without a gradient leaves of a mean that is 1."""
        held = [
            node._replace(**{field: jax.tree.map(jnp.ones_like, getattr(node, field))})
            if hasattr(node, field)
            else node
            for node in memories(fresh)
        ]
        nothing = jax.tree.map(jnp.zeros_like, few)
        _, state = tx.update(nothing, with_memories(fresh, held), few, **extra)
        left = [jax.tree.leaves(getattr(node, field, ())) for node in memories(state)]
        means = [jnp.real(widened(leaf)).ravel()[0] for leaves in left for leaf in leaves[:1]]
        return means[0] if means else jnp.zeros(())

    b1, b2 = decay("mu"), decay("nu")

    def correction(n: chex.Numeric) -> jax.Array:
        n = jnp.asarray(n, jnp.float32)
        return jnp.sqrt(1 - b2**n) / (1 - b1**n)

    def one(update: jax.Array, since: jax.Array) -> jax.Array:
        ease = correction(count - since + 1) / correction(count + 1)
        return (update * ease).astype(update.dtype)

    return jax.tree.map(one, updates, begun)
