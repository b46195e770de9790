"""Which axes of an array make up a group or a matrix, the same for every penalty that has such axes."""

from typing import Any

import jax
import numpy as np

from jax_lrreg._check import require

Axis = int | tuple[int, ...] | None


def require_axes(penalty: Any) -> None:
    """Checks the fields `axis` and `stacked`."""
    axis, stacked = penalty.axis, penalty.stacked
    each = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    whole = all(isinstance(a, int | np.integer) and not isinstance(a, bool) for a in each)
    require(whole, penalty, "axis", axis, "a whole number, a tuple of them, or None for all axes")
    require(
        axis is None or len(set(each)) == len(each) > 0,
        penalty,
        "axis",
        axis,
        "one or more different axes",
    )
    count = isinstance(stacked, int) and not isinstance(stacked, bool) and stacked >= 0
    require(count, penalty, "stacked", stacked, "a whole number >= 0")


def group_axes(penalty: Any, ndim: int) -> tuple[int, ...]:
    """The axes of an array of `ndim` axes that the groups of a penalty run over, counted from 0."""
    own = ndim - penalty.stacked
    axis = (
        range(own)
        if penalty.axis is None
        else penalty.axis
        if isinstance(penalty.axis, tuple)
        else (penalty.axis,)
    )
    return tuple(penalty.stacked + a % own for a in axis) if own > 0 else ()


def group_shape(penalty: Any, leaf: Any) -> tuple[int, ...]:
    """The shape of the groups' norms with the axes kept; refuses an array without these axes, by its path."""
    shape = np.shape(leaf.value)
    own = len(shape) - penalty.stacked
    at = f"{leaf.path!r}, which has shape {shape}"
    require(own >= 0, penalty, "stacked", penalty.stacked, f"at most the number of axes of {at}")
    axis = (
        ()
        if penalty.axis is None
        else penalty.axis
        if isinstance(penalty.axis, tuple)
        else (penalty.axis,)
    )
    require(all(-own <= a < own for a in axis), penalty, "axis", penalty.axis, f"axes of {at}")
    axes = group_axes(penalty, len(shape))
    require(len(set(axes)) == len(axes), penalty, "axis", penalty.axis, f"different axes of {at}")
    return tuple(1 if index in axes else length for index, length in enumerate(shape))


def group_size(penalty: Any, w: jax.Array) -> int:
    """How many entries each group of `w` has."""
    return int(np.prod([w.shape[axis] for axis in group_axes(penalty, w.ndim)]))


def require_matrix(penalty: Any, leaf: Any) -> None:
    """Refuses an array that holds no matrices after its stacked axes, by its path."""
    shape = np.shape(leaf.value)
    allowed = f"such that {leaf.path!r}, which has shape {shape}, keeps at least 2 axes"
    require(len(shape) - penalty.stacked >= 2, penalty, "stacked", penalty.stacked, allowed)


def matrices(penalty: Any, w: jax.Array) -> jax.Array:
    """`w` as matrices (everything that goes in, out), after its stacked axes: a convolution becomes one matrix."""
    return w.reshape(*w.shape[: penalty.stacked], -1, w.shape[-1])
