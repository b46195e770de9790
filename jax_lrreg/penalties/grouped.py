"""Penalties on groups of parameters (rows, filters, arrays), and what makes up a group."""

from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.base import ArrayPenalty, require_strength
from jax_lrreg.penalties.groups import (
    Axis,
    group_axes,
    group_sizes,
    in_blocks,
    joined,
    numbered_shape,
    require_axes,
    settle_groups,
)
from jax_lrreg.penalties.lift import Strength, replaced, require_broadcast, require_one
from jax_lrreg.penalties.norms import (
    direction,
    divided,
    magnitude,
    modulus,
    norm,
    secular_root,
    soft_threshold,
    unit_vector,
    water_level,
)


class GroupPenalty(ArrayPenalty):
    """A penalty with one strength for each group. A group is zero when all its entries are."""

    # No fields yet: the subclasses declare them, and so decide their order.
    strength: Strength
    axis: Axis
    stacked: int
    groups: tuple[int, ...] | None = None  # a field of those that can number them

    def __post_init__(self):
        require_strength(self, "strength")
        settle_groups(self)
        require_axes(self)

    def _fits(self, leaf):
        require_broadcast(self, leaf, numbered_shape(self, leaf), "strength")

    def zeros(self, w):
        own, w, _ = in_blocks(self, w)
        return jnp.all(w == 0, axis=group_axes(own, w.ndim))


@pytree
class GroupLasso(GroupPenalty):
    """The lasso on the norms of groups, which become zero as a whole.

        value(w) = strength sum over groups of ||w_g||
        shrink(w, step_size) = w_g max(1 - step_size strength / ||w_g||, 0)

    With a step size for each entry, a group is 0 if ||w_g / step_size|| <= strength, and otherwise
    w_g s / (s + step_size strength) where s is its own norm. A group of zeros has the gradient 0.

    Attributes:
        strength: lambda, not negative.
        axis: the axes the norm runs over, as in `jnp.linalg.norm`: on an (in, out) kernel -2 makes
            a group of each output unit, -1 of each input; on (height, width, in, out) (-4, -3, -2)
            of each filter; None of the array.
        stacked: how many leading axes only stack layers, as `nn.scan` does; `axis` counts without
            them.
        groups: for groups that are no whole axis: the number of the group that each index along the
            (first) `axis` belongs to. Without an `axis`, all else is in the group of its index
            along the first axis: each group of inputs of an (in, out) kernel goes as a whole. An
            array of strengths has one for each group, in the order of their numbers.

    Reference:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
        >>> print(GroupLasso(1.0, axis=-2).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]]), step_size=1.0))
        [[2.4 0. ]
         [3.2 0. ]]
        >>> print(GroupLasso(1.0, groups=[0, 0, 1]).prox(jnp.array([3.0, 4.0, 0.5]), step_size=1.0))
        [2.4 3.2 0. ]
    """

    strength: Strength
    _: KW_ONLY
    axis: Axis = static(default=())
    stacked: int = static(default=0)
    groups: tuple[int, ...] | None = static(default=None)

    def value(self, w):
        own, w, _ = in_blocks(self, w)
        return jnp.sum(own.strength * norm(w, group_axes(own, w.ndim), keepdims=True))

    def shrink(self, w, step_size):
        own, blocks, step_size = in_blocks(self, w, step_size)
        axes = group_axes(own, blocks.ndim)
        return joined(self, shrink_groups(blocks, step_size, own.strength, axes))

    def distance(self, w, gradient):
        own, w, gradient = in_blocks(self, w, gradient)
        axes = group_axes(own, w.ndim)
        size = norm(w, axes, keepdims=True)
        # At 0 the subgradients fill the ball of radius `strength`; elsewhere there is but one.
        elsewhere = norm(gradient + own.strength * unit_vector(w, axes), axes, keepdims=True)
        at_zero = jnp.maximum(norm(gradient, axes, keepdims=True) - own.strength, 0)
        return norm(jnp.where(size > 0, elsewhere, at_zero))

    def threshold(self, gradient):
        require_one(self, "strength")
        own, gradient, _ = in_blocks(self, gradient)
        return jnp.max(norm(gradient, group_axes(own, gradient.ndim)))


@pytree
class SizedGroupLasso(GroupPenalty):
    """The group lasso with larger groups penalised more: different sizes then compete fairly.

        value(w) = strength sum over groups of sqrt(number of entries) ||w_g||

    Attributes:
        strength: lambda, not negative.
        axis: the axes the norm runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.
        groups: the number of the group of each index, as in `GroupLasso`.

    Reference:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
        >>> print(SizedGroupLasso(1.0, axis=None)(jnp.array([0.0, 3.0, 0.0, 4.0])))
        10.0
    """

    strength: Strength
    _: KW_ONLY
    axis: Axis = static(default=())
    stacked: int = static(default=0)
    groups: tuple[int, ...] | None = static(default=None)

    def plain(self, w: jax.Array) -> GroupLasso:
        """The group lasso that this one is on an array like `w`."""
        strength = self.strength * group_sizes(self, w) ** 0.5
        structure = {"axis": self.axis, "stacked": self.stacked, "groups": self.groups}
        return GroupLasso(strength, **structure)

    def value(self, w):
        return self.plain(w).value(w)

    def shrink(self, w, step_size):
        return self.plain(w).shrink(w, step_size)

    def distance(self, w, gradient):
        return self.plain(w).distance(w, gradient)

    def threshold(self, gradient):
        require_one(self, "strength")
        own, blocks, _ = in_blocks(replaced(self, strength=1.0).plain(gradient), gradient)
        return jnp.max(norm(blocks, group_axes(own, blocks.ndim), keepdims=True) / own.strength)


@pytree
class SparseGroupLasso(ArrayPenalty):
    """The lasso and the group lasso on the same parameters: few groups, few parameters in each.

        value(w) = l1 sum |w| + group sum over groups of ||w_g||
        shrink(w, step_size) = that of the group lasso after that of the lasso, for any step size

    Attributes:
        l1: strength of the lasso, not negative.
        group: strength of the group lasso, not negative.
        axis: the axes the norm runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.
        groups: the number of the group of each index, as in `GroupLasso`.

    Reference:
        Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.

    Example:
        >>> penalty = SparseGroupLasso(1.0, group=1.0, axis=0)
        >>> print(penalty.prox(jnp.array([4.0, 0.5, -5.0]), step_size=1.0))
        [ 2.4  0.  -3.2]
    """

    l1: Strength
    _: KW_ONLY
    group: Strength
    axis: Axis = static(default=())
    stacked: int = static(default=0)
    groups: tuple[int, ...] | None = static(default=None)

    def __post_init__(self):
        require_strength(self, "l1", "group")
        settle_groups(self)
        require_axes(self)

    def _fits(self, leaf):
        require_broadcast(self, leaf, jnp.shape(leaf.value), "l1")
        require_broadcast(self, leaf, numbered_shape(self, leaf), "group")

    def value(self, w):
        own, w, _ = in_blocks(self, w)
        norms = norm(w, group_axes(own, w.ndim), keepdims=True)
        return jnp.sum(own.l1 * modulus(w)) + jnp.sum(own.group * norms)

    def shrink(self, w, step_size):
        # One prox after the other is that of the sum, as the second changes no sign: what is a
        # subgradient of |w| before it, is one after it (Yu, On decomposing the proximal map, 2013).
        own, blocks, step_size = in_blocks(self, w, step_size)
        sparse = soft_threshold(blocks, step_size * own.l1)
        axes = group_axes(own, blocks.ndim)
        return joined(self, shrink_groups(sparse, step_size, own.group, axes))

    def distance(self, w, gradient):
        own, w, gradient = in_blocks(self, w, gradient)
        axes = group_axes(own, w.ndim)
        size = norm(w, axes, keepdims=True)
        slope = gradient + own.l1 * direction(w) + own.group * unit_vector(w, axes)
        # In a group of zeros the subgradients are a box plus a ball: the box takes what it can of
        # each entry, the ball of the norm of the rest.
        slope = jnp.where(w == 0, soft_threshold(gradient, own.l1), slope)
        total = norm(slope, axes, keepdims=True)
        return norm(jnp.where(size > 0, total, jnp.maximum(total - own.group, 0)))

    def zeros(self, w):
        return w == 0

    def threshold(self, gradient):
        require_one(self, "group")
        own, gradient, _ = in_blocks(self, gradient)
        return jnp.max(norm(soft_threshold(gradient, own.l1), group_axes(own, gradient.ndim)))


@pytree
class LInf(GroupPenalty):
    """The largest entry of each group: its prox lowers the largest ones to a common level.

        value(w) = strength sum over groups of max |w_g|
        shrink(w, step_size) = w clipped to the level s with
                               sum max(|w_g| - s, 0) / step_size = strength,
                               and 0 if sum |w_g| / step_size <= strength

    Among several largest entries the gradient is shared evenly.

    Attributes:
        strength: lambda, not negative.
        axis: the axes the maximum runs over, as in `GroupLasso`.
        stacked: how many leading axes only stack layers.

    Reference:
        Duchi and Singer, Efficient online and batch learning using forward backward splitting,
        2009, section 5.3.

    Example:
        >>> print(LInf(1.0, axis=0).prox(jnp.array([3.0, -2.5, 1.0]), step_size=0.5))
        [ 2.5 -2.5  1. ]
    """

    strength: Strength
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def value(self, w):
        axes = group_axes(self, w.ndim)
        unit = magnitude(w, axes)
        tops = jnp.max(modulus(divided(w, unit)), axis=axes, keepdims=True)
        return jnp.sum(self.strength * unit * tops)

    def shrink(self, w, step_size):
        axes = group_axes(self, w.ndim)
        unit = magnitude(w, axes)
        size, strength = jnp.abs(divided(w, unit)), self.strength / unit
        steps = jnp.broadcast_to(step_size, w.shape)
        # Relative to the least step above 0, no width exceeds 1; of a tiny step, 1 / step may be
        # infinite.
        least = jnp.min(steps, axis=axes, keepdims=True, where=steps > 0, initial=jnp.inf)
        least = jnp.where(jnp.isfinite(least), least, 1)
        share = jnp.where(steps > 0, least / jnp.where(steps > 0, steps, 1), 0)
        _, level = water_level(size, share, least * strength, axes)
        # What may not move holds the level up.
        fixed = jnp.max(jnp.where(steps > 0, 0, size), axis=axes, keepdims=True)
        level = jnp.maximum(level, fixed)
        # `minimum` would share the derivative of a tie between the two.
        return jnp.where(size < level, w, direction(w) * level * unit)

    def distance(self, w, gradient):
        axes, size = group_axes(self, w.ndim), jnp.abs(w)
        top = jnp.max(size, axis=axes, keepdims=True)
        strength = jnp.broadcast_to(self.strength, top.shape)
        # At 0 the subgradients are the L1 ball; elsewhere they lie on the largest entries only, of
        # one sign.
        inward = jnp.where(top > 0, -jnp.real(gradient * jnp.conj(direction(w))), jnp.abs(gradient))
        # Less the rounding of a complex modulus, without which only one of several largest would be
        # among them.
        among = size >= top * (1 - 8 * jnp.finfo(size.dtype).eps)
        _, level = water_level(inward, among, strength, axes)
        level = jnp.where(top > 0, level, jnp.maximum(level, 0))
        nearest = jnp.where(among, jnp.maximum(inward - level, 0), 0)
        toward = jnp.where(top > 0, -direction(w), direction(gradient))
        return norm(gradient - nearest * toward)

    def threshold(self, gradient):
        require_one(self, "strength")
        return jnp.max(jnp.sum(jnp.abs(gradient), axis=group_axes(self, gradient.ndim)))


def shrink_groups(
    w: jax.Array, step_size: chex.Numeric, strength: chex.Numeric, axes: tuple[int, ...]
) -> jax.Array:
    """The prox of `strength ||w||` over `axes`, for one step size or one for each entry."""
    pull = step_size * strength
    if jnp.ndim(step_size) == 0:
        size = norm(w, axes, keepdims=True)
        left = jnp.where(size > pull, 1 - pull / jnp.where(size > 0, size, 1), 0)
        return w * jnp.where((pull > 0) | (size > 0), left, 1)
    # The root's own squares overflow for large numbers, so that it is found in units of the group.
    unit = magnitude(w, axes)
    v, pull = divided(w, unit), jnp.broadcast_to(pull, w.shape) / unit
    moved = (pull > 0) & (v != 0)
    # What nothing pulls stays, and its group with it. Of the others those go for which
    # ||w / (step_size strength)|| <= 1, where the equation has no root above 0.
    reach = norm(divided(jnp.where(moved, v, 0), jnp.where(moved, pull, 1)), axes, keepdims=True)
    held = jnp.any((pull == 0) & (v != 0), axis=axes, keepdims=True)
    size = norm(v, axes, keepdims=True)
    # Left of the root lie 0, what it would be if all were pulled like the one pulled most, and the
    # least s for which no single term exceeds 1.
    start = jnp.maximum(size - jnp.max(pull, axis=axes, keepdims=True), 0)
    start = jnp.maximum(start, jnp.max(jnp.abs(v) - pull, axis=axes, keepdims=True))
    s = secular_root(v, pull, 1, start, axes)
    kept = (held | (reach > 1)) & (s > 0)
    return jnp.where(kept, w * (s / jnp.where(s + pull > 0, s + pull, 1)), 0)
