"""What makes up a group: the axes its norm runs over, or the numbers of the indices along one."""

import functools
from typing import Protocol, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import Leaf
from jax_lrreg._check import require, require_whole
from jax_lrreg._struct import Array
from jax_lrreg.penalties.lift import replaced

P = TypeVar("P", bound="Numbered")
Axis: TypeAlias = int | tuple[int, ...] | None


class Grouped(Protocol):
    """A penalty with the fields that say which axes make up a group."""

    @property
    def axis(self) -> Axis: ...

    @property
    def stacked(self) -> int: ...


class Numbered(Grouped, Protocol):
    """One whose groups may be numbered along an axis."""

    @property
    def groups(self) -> tuple[int, ...] | None: ...


def require_axes(penalty: Grouped) -> None:
    """Checks the fields `axis` and `stacked`."""
    each = _each_axis(penalty.axis)
    # The default of those whose groups may be numbered instead; it says nothing to who gave none.
    given = "given, such as -2 for a group of each output unit of an (in, out) kernel"
    require(each or penalty.axis is None, penalty, "axis", penalty.axis, given)
    allowed = "a whole number, a tuple of different ones, or None for all axes"
    for axis in each:
        require_whole(penalty, "axis", axis, -32, 32, allowed)  # NumPy's arrays have no more axes
    different = penalty.axis is None or len(set(each)) == len(each)
    require(different, penalty, "axis", penalty.axis, allowed)
    require_whole(penalty, "stacked", penalty.stacked, 0)


def group_axes(penalty: Grouped, ndim: int) -> tuple[int, ...]:
    """The axes of an array of `ndim` axes that the groups of a penalty run over, counted from 0."""
    own = ndim - penalty.stacked
    each = range(own) if penalty.axis is None else _each_axis(penalty.axis)
    return tuple(penalty.stacked + a % own for a in each) if own > 0 else ()


def group_shape(penalty: Grouped, leaf: Leaf) -> tuple[int, ...]:
    """The shape of the groups' norms, axes kept; refuses, by path, an array without these axes."""
    shape = np.shape(leaf.value)
    own, axis, stacked = len(shape) - penalty.stacked, penalty.axis, penalty.stacked
    at = f"{leaf.path!r}, which has shape {shape}"
    require(own >= 0, penalty, "stacked", stacked, f"at most the number of axes of {at}")
    within = all(-own <= a < own for a in _each_axis(axis))
    require(within, penalty, "axis", axis, f"axes of {at}")
    axes = group_axes(penalty, len(shape))
    require(len(set(axes)) == len(axes), penalty, "axis", axis, f"different axes of {at}")
    return tuple(1 if index in axes else length for index, length in enumerate(shape))


def numbered_shape(penalty: Numbered, leaf: Leaf) -> tuple[int, ...]:
    """`group_shape`, with the count of groups along the axis whose indices are numbered."""
    norms, shape = list(group_shape(penalty, leaf)), np.shape(leaf.value)
    if penalty.groups is not None:
        first = group_axes(penalty, len(shape))[:1]  # none where the array is a scalar
        allowed = f"one number for each index of {leaf.path!r}, which has shape {shape}"
        given = f"{len(penalty.groups)} numbers"
        fits = [len(penalty.groups)] == [shape[axis] for axis in first]
        require(fits, penalty, "groups", given, allowed)
        norms[first[0]] = len(set(penalty.groups))
    return tuple(norms)


def group_size(penalty: Grouped, w: jax.Array) -> int:
    """How many entries each group of `w` has, where it is whole axes."""
    return int(np.prod([w.shape[axis] for axis in group_axes(penalty, w.ndim)]))


def group_sizes(penalty: Numbered, w: jax.Array) -> int | np.ndarray:
    """How many entries each group of `w` has, in one number or the shape of the groups' norms."""
    if penalty.groups is None:
        return group_size(penalty, w)
    first = group_axes(penalty, w.ndim)[0]
    counts = np.unique(penalty.groups, return_counts=True)[1]
    each = counts * (group_size(penalty, w) // w.shape[first])
    return each.reshape([-1 if axis == first else 1 for axis in range(w.ndim)])


def settle_groups(penalty: Numbered) -> None:
    """Makes the field `groups` a tuple of Python's integers, and `axis` None beside it."""
    groups, allowed = penalty.groups, "a whole number >= 0 for each index along the axis"
    if groups is None:
        return
    several = isinstance(groups, list | tuple | Array) and np.ndim(groups) == 1 and len(groups) > 0
    require(several, penalty, "groups", groups, allowed)
    whole = tuple(require_whole(penalty, "groups", g, 0, None, allowed) for g in groups)
    object.__setattr__(penalty, "groups", whole)
    if (
        isinstance(penalty.axis, tuple) and not penalty.axis
    ):  # an array is refused by `require_axes`
        object.__setattr__(penalty, "axis", None)


def in_blocks(
    penalty: P, w: jax.Array, other: chex.Numeric = 0.0
) -> tuple[P, jax.Array, jax.Array]:
    """A penalty of whole axes, and arrays with an axis of groups and one of the entries of each.

    Nothing is changed where groups are whole axes already. A number stays one.
    """
    other = jnp.asarray(other)
    if penalty.groups is None:
        return penalty, w, other
    # Groups shorter than the longest are filled with zeros, which no norm sees: so the mathematics
    # of whole axes holds for them, in the memory of groups that are all of that length.
    members, _ = _members(penalty.groups)
    axes = group_axes(penalty, w.ndim)
    first = axes[0]

    def split(x: jax.Array) -> jax.Array:
        return jnp.take(x, members, first, mode="fill", fill_value=0) if x.ndim else x

    def spread(x: jax.Array) -> jax.Array:
        shape = (1,) * (w.ndim - x.ndim) + x.shape
        return jnp.expand_dims(jnp.reshape(x, shape), first + 1) if x.ndim else x

    given = {name: getattr(penalty, name, None) for name in ("strength", "group", "l1")}
    strengths = {name: jnp.asarray(x) for name, x in given.items() if x is not None}
    changes = {name: spread(x) for name, x in strengths.items()}
    if jnp.ndim(changes.get("l1", 0)):  # one for each entry, not for each group
        changes["l1"] = split(jnp.broadcast_to(strengths["l1"], w.shape))
    axis = tuple(a + (a >= first) for a in axes)
    own = replaced(penalty, **changes, axis=axis, stacked=0, groups=None)
    return own, split(w), split(other)


def joined(penalty: Numbered, blocks: jax.Array) -> jax.Array:
    """The array of which `in_blocks` made these."""
    if penalty.groups is None:
        return blocks
    members, place = _members(penalty.groups)
    first = group_axes(penalty, blocks.ndim - 1)[0]
    shape = blocks.shape
    flat = blocks.reshape(*shape[:first], members.size, *shape[first + 2 :])
    return jnp.take(flat, place, axis=first)


@functools.cache
def _members(groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The indices in each group, filled up with one beyond the last; and where each index went."""
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    within = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    # In int32, as the same program may be traced with 64 bits and without.
    members = np.full((len(counts), counts.max()), len(groups), np.int32)
    members[number[order], within] = order
    place = np.empty(len(groups), np.int32)
    place[order] = number[order] * counts.max() + within
    return members, place


def _each_axis(axis: Axis) -> tuple[int, ...]:
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)
