"""Penalties on groups of parameters: rows, columns, filters, whole arrays."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.axes import Axis, group_axes, group_shape, group_size, require_axes
from jax_lrreg.penalties.base import Penalty, require_broadcast, require_strength
from jax_lrreg.penalties.norms import (
    direction,
    modulus,
    norm,
    secular_root,
    soft_threshold,
    water_level,
)
from jax_lrreg.penalties.separable import require_one


@pytree
class GroupLasso(Penalty):
    """The lasso on the norms of groups, which become zero as a whole.

        value(w) = strength sum over groups of ||w_g||
        shrink(w, step_size) = w_g max(1 - step_size strength / ||w_g||, 0)

    With a step size for each entry, a group is 0 if ||w_g / step_size|| <= strength, and otherwise
    w_g s / (s + step_size strength) where s is its own norm. A group of zeros has the gradient 0.

    Attributes:
        strength: lambda, not negative.
        axis: the axes the norm runs over, as in `jnp.linalg.norm`: on an (in, out) kernel -2 makes a group of each
            output unit, -1 of each input; on (height, width, in, out) (-4, -3, -2) of each filter; None of the array.
        stacked: how many leading axes only stack layers, as `nn.scan` does; `axis` counts without them.

    Reference:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
        >>> print(GroupLasso(1.0, axis=-2).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]]), step_size=1.0))
        [[2.4 0. ]
         [3.2 0. ]]
    """

    strength: Any
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "strength")

    def value(self, w):
        return jnp.sum(self.strength * norm(w, group_axes(self, w.ndim), keepdims=True))

    def shrink(self, w, step_size):
        return shrink_groups(w, step_size, self.strength, group_axes(self, w.ndim))

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        size = norm(w, axes, keepdims=True)
        elsewhere = norm(
            gradient + self.strength * w / jnp.where(size > 0, size, 1), axes, keepdims=True
        )
        at_zero = jnp.maximum(norm(gradient, axes, keepdims=True) - self.strength, 0)
        return norm(jnp.where(size > 0, elsewhere, at_zero))

    def zeros(self, w):
        return jnp.all(w == 0, axis=group_axes(self, w.ndim))

    def threshold(self, gradient):
        require_one(self, "strength")
        return jnp.max(norm(gradient, group_axes(self, gradient.ndim)))


@pytree
class SizedGroupLasso(Penalty):
    """The group lasso with larger groups penalised more, so that groups of different sizes compete fairly.

        value(w) = strength sum over groups of sqrt(number of entries) ||w_g||

    Attributes:
        strength: lambda, not negative.
        axis: the axes the norm runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.

    Reference:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
        >>> print(SizedGroupLasso(1.0, axis=None)(jnp.array([0.0, 3.0, 0.0, 4.0])))
        10.0
    """

    strength: Any
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "strength")

    def plain(self, w: jax.Array) -> GroupLasso:
        """The group lasso that this one is on an array like `w`."""
        strength = self.strength * group_size(self, w) ** 0.5
        return GroupLasso(strength, axis=self.axis, stacked=self.stacked)

    def value(self, w):
        return self.plain(w).value(w)

    def shrink(self, w, step_size):
        return self.plain(w).shrink(w, step_size)

    def distance(self, w, gradient):
        return self.plain(w).distance(w, gradient)

    def zeros(self, w):
        return jnp.all(w == 0, axis=group_axes(self, w.ndim))

    def threshold(self, gradient):
        return self.plain(gradient).threshold(gradient) / group_size(self, gradient) ** 0.5


@pytree
class SparseGroupLasso(Penalty):
    """The lasso and the group lasso on the same parameters: few groups, and few parameters within them.

        value(w) = l1 sum |w| + group sum over groups of ||w_g||
        shrink(w, step_size) = that of the group lasso after that of the lasso, for any step size

    Attributes:
        l1: strength of the lasso, not negative.
        group: strength of the group lasso, not negative.
        axis: the axes the norm runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.

    Reference:
        Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.

    Example:
        >>> print(SparseGroupLasso(1.0, group=1.0, axis=0).prox(jnp.array([4.0, 0.5, -5.0]), step_size=1.0))
        [ 2.4  0.  -3.2]
    """

    l1: Any
    _: KW_ONLY
    group: Any
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "l1", "group")
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, jnp.shape(leaf.value), "l1")
        require_broadcast(self, leaf, group_shape(self, leaf), "group")

    def value(self, w):
        norms = norm(w, group_axes(self, w.ndim), keepdims=True)
        return jnp.sum(self.l1 * modulus(w)) + jnp.sum(self.group * norms)

    def shrink(self, w, step_size):
        sparse = soft_threshold(w, step_size * self.l1)
        return shrink_groups(sparse, step_size, self.group, group_axes(self, w.ndim))

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        size = norm(w, axes, keepdims=True)
        slope = gradient + self.l1 * direction(w) + self.group * w / jnp.where(size > 0, size, 1)
        slope = jnp.where(w == 0, soft_threshold(gradient, self.l1), slope)
        total = norm(slope, axes, keepdims=True)
        return norm(jnp.where(size > 0, total, jnp.maximum(total - self.group, 0)))

    def zeros(self, w):
        return w == 0

    def threshold(self, gradient):
        require_one(self, "group")
        return jnp.max(norm(soft_threshold(gradient, self.l1), group_axes(self, gradient.ndim)))


@pytree
class LInf(Penalty):
    """The largest entry of each group: its prox lowers the largest ones to a common level.

        value(w) = strength sum over groups of max |w_g|
        shrink(w, step_size) = w clipped to the level s with sum max(|w_g| - s, 0) / step_size = strength,
                               and 0 if sum |w_g| / step_size <= strength

    Among several largest entries the gradient is shared evenly.

    Attributes:
        strength: lambda, not negative.
        axis: the axes the maximum runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.

    Reference:
        Duchi and Singer, Efficient online and batch learning using forward backward splitting, 2009, section 5.3.

    Example:
        >>> print(LInf(1.0, axis=0).prox(jnp.array([3.0, -2.5, 1.0]), step_size=0.5))
        [ 2.5 -2.5  1. ]
    """

    strength: Any
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "strength")

    def value(self, w):
        return jnp.sum(
            self.strength * jnp.max(modulus(w), axis=group_axes(self, w.ndim), keepdims=True)
        )

    def shrink(self, w, step_size):
        axes, size = group_axes(self, w.ndim), jnp.abs(w)
        steps = jnp.broadcast_to(step_size, w.shape)
        least = jnp.min(steps, axis=axes, keepdims=True, where=steps > 0, initial=jnp.inf)
        least = jnp.where(jnp.isfinite(least), least, 1)
        share = jnp.where(steps > 0, least / jnp.where(steps > 0, steps, 1), 0)
        first, rest = water_level(size, share, least * self.strength, axes)
        fixed = jnp.max(
            jnp.where(steps > 0, 0, size), axis=axes, keepdims=True
        )  # what may not move holds the level up
        level = jnp.maximum(first + rest, fixed)
        return direction(w) * jnp.where(
            size < level, size, level
        )  # `minimum` would share a tie's derivative

    def distance(self, w, gradient):
        axes, size = group_axes(self, w.ndim), jnp.abs(w)
        top = jnp.max(size, axis=axes, keepdims=True)
        strength = jnp.broadcast_to(self.strength, top.shape)
        # At 0 the subgradients are the L1 ball; elsewhere they lie on the largest entries only, of one sign.
        inward = jnp.where(top > 0, -jnp.real(gradient * jnp.conj(direction(w))), jnp.abs(gradient))
        among = size >= top * (
            1 - 8 * jnp.finfo(size.dtype).eps
        )  # the rounding of a complex modulus
        first, rest = water_level(inward, among.astype(size.dtype), strength, axes)
        level = jnp.where(top > 0, first + rest, jnp.maximum(first + rest, 0))
        nearest = jnp.where(among, jnp.maximum(inward - level, 0), 0)
        toward = jnp.where(top > 0, -direction(w), direction(gradient))
        return norm(gradient - nearest * toward)

    def zeros(self, w):
        return jnp.all(w == 0, axis=group_axes(self, w.ndim))

    def threshold(self, gradient):
        require_one(self, "strength")
        return jnp.max(jnp.sum(jnp.abs(gradient), axis=group_axes(self, gradient.ndim)))


def shrink_groups(w: jax.Array, step_size: Any, strength: Any, axes: tuple[int, ...]) -> jax.Array:
    """The prox of `strength ||w||` over `axes`, for one step size or one for each entry."""
    size = norm(w, axes, keepdims=True)
    pull = step_size * strength
    if jnp.ndim(step_size) == 0:
        # The squares of tiny numbers are 0: a group whose norm is lost is removed by any pull and left alone by none.
        left = jnp.where(size > pull, 1 - pull / jnp.where(size > 0, size, 1), 0)
        return w * jnp.where((pull > 0) | (size > 0), left, 1)
    pull = jnp.broadcast_to(pull, w.shape)
    moved = (pull > 0) & (w != 0)
    reach = norm(jnp.where(moved, w, 0) / jnp.where(moved, pull, 1), axes, keepdims=True)
    held = jnp.any((pull == 0) & (w != 0), axis=axes, keepdims=True)
    start = jnp.maximum(size - jnp.max(pull, axis=axes, keepdims=True), 0)
    start = jnp.maximum(start, jnp.max(jnp.abs(w) - pull, axis=axes, keepdims=True))
    s = secular_root(w, pull, 1, start, axes)
    kept = (held | (reach > 1)) & (s > 0)
    return jnp.where(kept, w * (s / jnp.where(s + pull > 0, s + pull, 1)), 0)
