"""Constraints on groups of parameters: their norm, or their sum."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.axes import Axis, group_axes, group_shape, group_size, require_axes
from jax_lrreg.penalties.base import require_broadcast
from jax_lrreg.penalties.constraints import Constraint, rounding
from jax_lrreg.penalties.norms import direction, norm, secular_root, soft_threshold, water_level
from jax_lrreg.penalties.separable import require_real
from jax_lrreg.penalties.spectral import require_scalar_step

FLOOR = 1e-12  # a step size of 0 among others is that fraction of the largest: the limit, without dividing by 0


@pytree
class MaxNorm(Constraint):
    """A largest Euclidean norm for each group, such as the weights into one unit.

        shrink(w, step_size) = w_g min(1, max_norm / ||w_g||)

    and with a step size for each entry w_g / (1 + s step_size), where s >= 0 makes the norm max_norm.

    Attributes:
        max_norm: positive; one number, or one for each group.
        axis: the axes the norm runs over, as in `jnp.linalg.norm`; None for one group, the array.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014, section 5.1.

    Example:
        >>> print(MaxNorm(1.0, axis=-2).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]]), step_size=1.0))
        [[0.6 0.3]
         [0.8 0.4]]
    """

    max_norm: Any
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "max_norm", self.max_norm, "a positive number", lambda x: x > 0)
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "max_norm")

    def excess(self, w):
        return norm(w, group_axes(self, w.ndim), keepdims=True) / self.max_norm - 1

    def shrink(self, w, step_size):
        axes = group_axes(self, w.ndim)
        size = norm(w, axes, keepdims=True)
        if jnp.ndim(step_size) == 0:
            return w * jnp.minimum(1, self.max_norm / jnp.where(size > 0, size, 1))
        steps = _relative(step_size, w, axes)
        start = jnp.max((jnp.abs(w) / self.max_norm - 1) / steps, axis=axes, keepdims=True)
        start = jnp.maximum(start, size / self.max_norm - 1)
        s = secular_root(w, self.max_norm, self.max_norm * steps, jnp.maximum(start, 0), axes)
        return jnp.where(size > self.max_norm, w / (1 + s * steps), w)

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        inside = self.excess(w) < -rounding(w)
        unit = _unit(w, axes)
        outward = -jnp.sum(jnp.real(gradient * jnp.conj(unit)), axis=axes, keepdims=True)
        return norm(gradient + jnp.where(inside, 0, jnp.maximum(outward, 0)) * unit)


@pytree
class UnitNorm(Constraint):
    """Euclidean norm 1 for each group. A group of zeros goes to equal entries.

        shrink(w, step_size) = w_g / ||w_g||

    The projection is known for one step size only; the set is not convex.

    Attributes:
        axis: the axes the norm runs over, as in `jnp.linalg.norm`; None for one group, the array.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Example:
        >>> print(UnitNorm(axis=-1).prox(jnp.array([[3.0, 4.0], [0.0, 2.0]]), step_size=1.0))
        [[0.6 0.8]
         [0.  1. ]]
    """

    axis: Axis = static(default=None)
    _: KW_ONLY
    stacked: int = static(default=0)

    def __post_init__(self):
        require_axes(self)

    def fits(self, leaf):
        group_shape(self, leaf)

    def excess(self, w):
        return jnp.abs(norm(w, group_axes(self, w.ndim), keepdims=True) - 1)

    def shrink(self, w, step_size):
        require_scalar_step(self, step_size)
        axes = group_axes(self, w.ndim)
        empty = jnp.all(w == 0, axis=axes, keepdims=True)
        return jnp.where(empty, group_size(self, w) ** -0.5, _unit(w, axes)).astype(w.dtype)

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        unit = _unit(w, axes)
        along = jnp.sum(jnp.real(gradient * jnp.conj(unit)), axis=axes, keepdims=True)
        return norm(gradient - along * unit)


@pytree
class Simplex(Constraint):
    """Entries >= 0 with a given sum in each group: probabilities, mixture weights.

        shrink(w, step_size) = max(w_g - s step_size, 0), where s makes the sum `total`

    Attributes:
        total: positive; one number, or one for each group.
        axis: the axes the sum runs over; None for one group, the array.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball, 2008, figure 1.

    Example:
        >>> print(Simplex(axis=-1).prox(jnp.array([1.0, 0.5, -1.0]), step_size=1.0))
        [0.75 0.25 0.  ]
    """

    total: Any = 1.0
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "total", self.total, "a positive number", lambda x: x > 0)
        require_axes(self)

    def fits(self, leaf):
        require_real(self, leaf)
        require_broadcast(self, leaf, group_shape(self, leaf), "total")

    def excess(self, w):
        total = jnp.sum(w, axis=group_axes(self, w.ndim), keepdims=True)
        return jnp.where(w < 0, jnp.inf, jnp.abs(total / self.total - 1))

    def shrink(self, w, step_size):
        axes = group_axes(self, w.ndim)
        return _poured(w, _relative(step_size, w, axes), self.total, axes)

    def distance(self, w, gradient):
        axes, used = group_axes(self, w.ndim), w > 0
        first, rest = water_level(-gradient, 1, 0, axes, always=used)
        beyond = (-gradient - first) - rest
        return norm(jnp.where(used, beyond, jnp.maximum(beyond, 0)))


@pytree
class L1Ball(Constraint):
    """A largest sum of absolute values for each group, the constrained form of the lasso.

        shrink(w, step_size) = soft(w_g, s step_size), where s >= 0 makes the sum of absolute values `radius`

    Attributes:
        radius: positive; one number, or one for each group.
        axis: the axes the sum runs over; None for one group, the array.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball, 2008.

    Example:
        >>> print(L1Ball(1.0).prox(jnp.array([1.5, -1.0, 0.25]), step_size=1.0))
        [ 0.75 -0.25  0.  ]
    """

    radius: Any
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "radius", self.radius, "a positive number", lambda x: x > 0)
        require_axes(self)

    def fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "radius")

    def excess(self, w):
        return jnp.sum(jnp.abs(w), axis=group_axes(self, w.ndim), keepdims=True) / self.radius - 1

    def shrink(self, w, step_size):
        axes, size = group_axes(self, w.ndim), jnp.abs(w)
        inside = jnp.sum(size, axis=axes, keepdims=True) <= self.radius
        return jnp.where(
            inside,
            w,
            direction(w) * _poured(size, _relative(step_size, w, axes), self.radius, axes),
        )

    def distance(self, w, gradient):
        axes, used = group_axes(self, w.ndim), w != 0
        along = jnp.where(used, -jnp.real(gradient * jnp.conj(direction(w))), jnp.abs(gradient))
        first, rest = water_level(along, 1, 0, axes, always=used)
        level = jnp.where(self.excess(w) < -rounding(w), 0, jnp.maximum(first + rest, 0))
        left = jnp.where(
            used, jnp.abs(gradient + level * direction(w)), jnp.abs(soft_threshold(gradient, level))
        )
        return norm(left)


def _relative(step_size: Any, w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The step sizes of each group relative to its largest, not below `FLOOR`; equal ones where all are 0."""
    steps = jnp.broadcast_to(step_size, w.shape)
    largest = jnp.max(steps, axis=axes, keepdims=True)
    return jnp.where(largest > 0, jnp.maximum(steps / jnp.where(largest > 0, largest, 1), FLOOR), 1)


def _poured(size: jax.Array, steps: jax.Array, total: Any, axes: tuple[int, ...]) -> jax.Array:
    """`max(size - s steps, 0)` with the s for which it sums to `total`."""
    height = size / steps
    first, rest = water_level(height, steps, total, axes)
    left = steps * jnp.maximum((height - first) - rest, 0)
    found = jnp.sum(
        left, axis=axes, keepdims=True
    )  # off by rounding, where sizes are large against the total
    return left * jnp.where(found > 0, total / jnp.where(found > 0, found, 1), 1)


def _unit(w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`w` divided by its norm, 0 where that is 0; `w` may be so small that its squares are 0."""
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True)
    scaled = w / jnp.where(largest > 0, largest, 1)
    size = norm(scaled, axes, keepdims=True)
    return scaled / jnp.where(size > 0, size, 1)
