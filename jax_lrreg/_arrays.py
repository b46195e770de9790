"""Arrays and trees of them: precision, what is a parameter, its path, what is known in a trace."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

LAST_STEP = 2**31 - 1  # steps are counted in int32, JAX's widest integer unless x64 is switched on
NO_MESH = jax.sharding.Mesh(np.empty((), object), ())  # under it no trace speaks of devices


class Leaf(NamedTuple):
    """One array of a tree, with its path."""

    path: str
    value: chex.Array


class Parameters(list[Leaf]):
    """The parameters of a tree.

    Attributes:
        paths: those that a rule may speak of: theirs, and of what `optax.MaskedNode` hides in the
            tree. A group of an optimizer, or the part of a model that is trained, is given a tree
            with the rest of it masked, and a pattern for the rest is no mistake there.
    """

    def __init__(self, tree: optax.Params):
        super().__init__(leaf for leaf in leaves(tree) if is_parameter(leaf.value))

        def hidden(node: object) -> bool:
            return isinstance(node, optax.MaskedNode)

        every, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=hidden)
        masked = [path_of(keys) for keys, node in every if hidden(node)]
        self.paths = [leaf.path for leaf in self] + masked


def known(*values: object) -> bool:
    """Whether none of the values is traced, so that each has its number already."""
    return not any(isinstance(value, Tracer) for value in values)


def widened(value: ArrayLike) -> jax.Array:
    """`value` in float32 at least, in which losses, gradients, norms and sums are reckoned."""
    value = jnp.asarray(value)
    # JAX promotes no float of 8 bits.
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    return value.astype(jnp.float32 if narrow else jnp.promote_types(value.dtype, jnp.float32))


def is_parameter(value: object) -> bool:
    """Whether `value` holds real or complex numbers, not integers, booleans or PRNG keys."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return isinstance(value, float | complex)
    return jnp.issubdtype(dtype, jnp.inexact)


def is_real_scalar(value: object) -> bool:
    """Whether `value` is one number of Python's, NumPy's or JAX's that a float can tell.

    No complex one, of which only the real part would be left, and no text, date or PRNG key.
    """
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array) or np.ndim(value):
        return False
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype  # object of a huge integer
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))


def is_key(value: object) -> bool:
    """Whether `value` holds typed PRNG keys, which are no numbers and have no zero."""
    return jnp.issubdtype(getattr(value, "dtype", jnp.float32), jax.dtypes.prng_key)


def leaves(params: optax.Params) -> list[Leaf]:
    """The arrays of `params` with their paths, in the order of `jax.tree.leaves`.

    A path is the names joined by `/`, the same for Linen variables, NNX states and modules, and
    plain trees.

    Raises:
        ValueError: an NNX variable stands in two places, as that of a tied layer, and would count
            twice.

    Example:
        >>> params = {"encoder": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
        >>> [leaf.path for leaf in leaves(params)]
        ['encoder/bias', 'encoder/kernel']
    """
    _refuse_shared(params)
    pairs, _ = jax.tree_util.tree_flatten_with_path(params)
    return [Leaf(path_of(keys), value) for keys, value in pairs]


def path_of(keys: Sequence[object]) -> str:
    """JAX's key path as names joined by `/`."""
    # An NNX Variable is a node with the attribute `value`; a dict key of that name is the user's
    # own.
    attribute = len(keys) > 1 and isinstance(keys[-1], jax.tree_util.GetAttrKey)
    if attribute and getattr(keys[-1], "name", "") in ("value", "raw_value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def _refuse_shared(params: optax.Params) -> None:
    nnx = sys.modules.get("flax.nnx")  # whoever has an NNX module has imported it
    if nnx is None:
        return
    found: dict[int, str] = {}
    whole = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    for keys, node in whole:
        path = path_of(keys)
        if isinstance(node, nnx.Variable) and found.setdefault(id(node), path) != path:
            raise ValueError(
                f"`params` must hold each NNX variable once, got the same at {found[id(node)]!r} "
                f"and {path!r}: give nnx.state(module, nnx.Param)"
            )
