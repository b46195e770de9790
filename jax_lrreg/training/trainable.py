"""Which of the parameters are trained, and how more of them begin to be in the middle of a run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import Leaf, Parameters, leaves, widened
from jax_lrreg._check import require
from jax_lrreg._optax_state import CENTERED, memories, with_memories
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
        why = "only NNX has types of variables"
        if owner == "thaw":
            why = "types of variables are for init, which has the module"
        require(paths is not None, owner, "trainable", spec, f"a selection: {why}")
        flags = tuple(leaf.path in (paths or ()) for leaf in items)
    else:
        try:
            rules = selection(spec)
            rules.check(items.paths)
            flags = tuple(bool(rules.multiplier(*leaf)) for leaf in items)
        except (TypeError, ValueError) as error:
            told = str(error).removeprefix("on: ").removeprefix("`pattern` ")
            colon = "" if told.startswith("must") else ":"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{owner}: `trainable`{colon} {told}") from error
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
    opt_state: optax.OptState,
    count: jax.Array,
    params: optax.Params,
    extra: Mapping[str, object],
) -> optax.Updates:
    """The updates, those of thawed parameters as if their optimizer began with the thaw.

        update <- update r(k) / r(c),    r(n) = sqrt(1 - b2^n) / (1 - b1^n)

    for the k-th update of a parameter and the c-th of the optimizer. Adam corrects its means, which
    start from 0, by the number of all updates: r(c) is near 1 when a new mean is nothing yet, and
    the update is 3 times the rate. What has no such means, as in a group of SGD, stays as it is.

    Args:
        updates: of the trained parameters.
        begun: for each of them, the number of updates before its first.
        tx: the optimizer.
        opt_state: what it holds before this update.
        count: of the updates that it has made before this one.
        params: the trained parameters.
        extra: the other arguments of the update.
    """
    decays = _decays(tx, opt_state, params, extra)

    def one(leaf: Leaf, since: jax.Array) -> Any:
        if leaf.path not in decays:
            return leaf.value
        own, all_ = (jnp.asarray(n, jnp.float32) for n in (count - since + 1, count + 1))

        def share(decay: jax.Array) -> jax.Array:
            """(1 - b^k) / (1 - b^c); Yogi keeps all of a mean, where the limit is k / c."""
            kept = jnp.where(decay < 1, decay, 0)
            return jnp.where(decay < 1, (1 - kept**own) / (1 - kept**all_), own / all_)

        b1, b2 = decays[leaf.path]
        return (leaf.value * (jnp.sqrt(share(b2)) / share(b1))).astype(leaf.value.dtype)

    pairs = zip(leaves(updates), jax.tree.leaves(begun), strict=True)
    return jax.tree.unflatten(jax.tree.structure(updates), [one(*pair) for pair in pairs])


def _one_a_layer(p: jax.Array) -> jax.Array:
    return jnp.zeros(p.shape[:1] + (1,) * (p.ndim - 1), p.dtype)


def _decays(
    tx: optax.GradientTransformationExtraArgs,
    opt_state: optax.OptState,
    params: optax.Params,
    extra: Mapping[str, object],
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By path, what one update without a gradient leaves of means that are 1: b1 and b2."""
    if not any(hasattr(node, "nu") for node in memories(opt_state)):
        return {}  # nothing is divided by the root of a mean

    def updated(few: optax.Params) -> list[Any]:
        # The counters are those of now: within a window of `optax.MultiSteps` no mean decays.
        fresh = jax.tree.map(lambda x, y: x if jnp.ndim(y) else y, tx.init(few), opt_state)
        ones = [
            node._replace(
                **{
                    name: jax.tree.map(jnp.ones_like, getattr(node, name))
                    for name in ("mu", "nu")
                    if hasattr(node, name)
                }
            )
            for node in memories(fresh)
        ]
        # A line search would ask the loss for its value at these few parameters.
        own = {"grad": few, "value_fn": lambda *_, **__: jnp.zeros(())}
        return memories(tx.update(few, with_memories(fresh, ones), few, **{**extra, **own})[1])

    # A number for each layer where some are stacked, since rules have as many. Where that does not
    # do, as for the reference of a penalty, the shapes are the parameters' own.
    few = jax.tree.map(_one_a_layer, params)
    try:
        jax.eval_shape(updated, few)
    except Exception:  # from any function of the user's
        few = jax.tree.map(jnp.zeros_like, params)
    found = {}
    for node in updated(few):
        # From the second moment of these the mean's square is subtracted: no mean is corrected.
        mean = {} if type(node).__name__ in CENTERED else dict(leaves(getattr(node, "mu", ())))
        for path, left in leaves(getattr(node, "nu", ())):
            pair = (mean.get(path, jnp.zeros(())), left)
            found[path] = tuple(jnp.real(widened(x)).ravel()[0] for x in pair)
    return found
