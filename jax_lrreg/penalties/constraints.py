"""Constraints as penalties: 0 where they hold, infinite elsewhere, and the prox is the projection.

At the edge of a set the projection has the derivative of the identity, as within: a parameter that
training has brought exactly there moves on as any other.
"""

import abc
from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known, widened
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.base import ArrayPenalty
from jax_lrreg.penalties.groups import Axis, group_axes, group_shape, group_size, require_axes
from jax_lrreg.penalties.lift import require_broadcast, require_real, require_scalar_step
from jax_lrreg.penalties.norms import (
    direction,
    divided,
    lifted,
    magnitude,
    norm,
    secular_root,
    soft_threshold,
    unit_vector,
    water_level,
)

# A step size of 0 among others is raised to this fraction of the largest: the limit, without
# dividing by 0.
FLOOR = 1e-12
# So much smaller than an array, a set is a point: which entries are not 0 there, no size changes.
# And 1 / 1e-30 is still a float32.
SMALLEST = 1e-30


class Constraint(ArrayPenalty):
    """A set that parameters must stay in.

    Its value is 0 there and infinite elsewhere; its prox is the projection.

        shrink(w, step_size) = argmin over z in the set of sum |z - w|^2 / step_size

    The size of a scalar step does not matter, so that 0 projects too, and a multiple of a
    constraint is refused. A subclass writes `shrink`, `excess(w)`, which is how far outside `w` is
    relative to the set's own size, and `distance(w, gradient)`, that of `-gradient` to the normal
    cone at a `w` in the set. The value allows an excess of one unit in the last place of the
    parameter's dtype and the rounding of long sums in float32 (or float64): the value of a
    projection is exactly 0 in every dtype.
    """

    @abc.abstractmethod
    def excess(self, w: jax.Array) -> jax.Array:
        """How far outside each entry or group is, relative to the set's size; 0 or less within."""

    def value(self, w):
        return self._cost(w, 1)

    def _cost(self, w, multiplier):  # noqa: ARG002 - it stays infinite
        return jnp.where(jnp.all(self.excess(widened(w)) <= rounding(w)), 0.0, jnp.inf)

    def _residual(self, w, gradient):
        return self.distance(widened(w), gradient) + self._cost(w, 1)

    def __mul__(self, factor):
        name = type(self).__name__
        reason = f"a constraint has no strength, so it cannot be multiplied by {factor!r}"
        raise TypeError(f"{name}: {reason}")

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        return self * divisor


@pytree
class NonNegative(Constraint):
    """No entry below 0.

        shrink(w, step_size) = max(w, 0)

    Example:
        >>> print(NonNegative().prox(jnp.array([1.0, -2.0]), step_size=0.1))
        [1. 0.]
    """

    def excess(self, w):
        # Rounding changes no sign, so that none is allowed for.
        return jnp.where(w < 0, jnp.inf, 0.0)

    def shrink(self, w, step_size):  # noqa: ARG002 - the same for every step size
        return jnp.where(w < 0, 0, w)

    def distance(self, w, gradient):
        return norm(jnp.where(w == 0, jnp.maximum(-gradient, 0), gradient))

    def _fits(self, leaf):
        require_real(self, leaf)


@pytree
class Box(Constraint):
    """Every entry between two bounds, or on one side of one.

        shrink(w, step_size) = min(max(w, min), max)

    Attributes:
        min: lower bound, a number or an array of them; None for none.
        max: upper bound, not below `min`; None for none.

    Example:
        >>> print(Box(min=-1.0, max=1.0).prox(jnp.array([0.5, -2.0]), step_size=0.1))
        [ 0.5 -1. ]
    """

    min: chex.Numeric | None = None
    _: KW_ONLY
    max: chex.Numeric | None = None

    def __post_init__(self):
        lower, upper, allowed = self.min, self.max, "a number, or None beside a `max`"
        require(lower is not None or upper is not None, self, "min", lower, allowed)
        for name, bound in (("min", lower), ("max", upper)):
            if bound is not None:
                require_number(self, name, bound, "a number or None", lambda _: True)
        if lower is not None and upper is not None and known(lower):
            lowest = np.asarray(lower, np.float64)
            require_number(self, "max", upper, f"at least min={lower}", lambda x: x >= lowest)

    def excess(self, w):
        lower, upper = self._bounds()
        # Relative to the entry, not to the width: rounded to bfloat16, a projection on 0.1 lies
        # outside by up to half a unit in its own last place.
        return jnp.maximum(lower - w, w - upper) / jnp.maximum(jnp.abs(w), jnp.finfo(w.dtype).tiny)

    def shrink(self, w, step_size):  # noqa: ARG002 - the same for every step size
        lower, upper = self._bounds()
        # `clip` would share the derivative of a tie between w and the bound.
        return jnp.where(w < lower, lower, jnp.where(w > upper, upper, w))

    def distance(self, w, gradient):
        lower, upper = self._bounds()
        rest = jnp.where(w <= lower, jnp.minimum(gradient, 0), gradient)
        return norm(jnp.where(w >= upper, jnp.maximum(rest, 0), rest))

    def _fits(self, leaf):
        require_real(self, leaf)
        super()._fits(leaf)

    def _bounds(self) -> tuple[chex.Numeric, chex.Numeric]:
        lower, upper = self.min, self.max
        return -jnp.inf if lower is None else lower, jnp.inf if upper is None else upper


@pytree
class MaxNorm(Constraint):
    """A largest Euclidean norm for each group, such as the weights into one unit.

        shrink(w, step_size) = w_g min(1, max_norm / ||w_g||)

    and with a step size for each entry w_g / (1 + s step_size), where s >= 0 makes the norm
    max_norm.

    Attributes:
        max_norm: positive; one number, or one for each group.
        axis: the axes the norm runs over, as in `jnp.linalg.norm`; None for one group, the array.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014,
        section 5.1.

    Example:
        >>> print(MaxNorm(1.0, axis=-2).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]]), step_size=1.0))
        [[0.6 0.3]
         [0.8 0.4]]
    """

    max_norm: chex.Numeric
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "max_norm", self.max_norm, "a positive number", lambda x: x > 0)
        require_axes(self)

    def _fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "max_norm")

    def excess(self, w):
        return norm(w, group_axes(self, w.ndim), keepdims=True) / self.max_norm - 1

    def shrink(self, w, step_size):
        axes, z = group_axes(self, w.ndim), w
        if jnp.ndim(step_size):
            unit, steps = magnitude(w, axes), _relative(step_size, w, axes)
            limit = jnp.clip(self.max_norm / unit, SMALLEST, 1 / SMALLEST)
            v = divided(w, unit)
            # Two starts left of the root: what it would be, were every step the largest, which is
            # 1; and the least s for which no single term exceeds 1.
            start = norm(v, axes, keepdims=True) - limit
            alone = jnp.max((jnp.abs(v) - limit) / steps, axis=axes, keepdims=True)
            start = jnp.maximum(jnp.maximum(start, alone), 0)
            z = divided(v, limit + secular_root(v, limit, steps, start, axes) * steps)
        # Within, w itself, to the last digit. Outside, `unit_vector` takes off what Newton left.
        outside = norm(w, axes, keepdims=True) > self.max_norm
        return jnp.where(outside, self.max_norm * unit_vector(z, axes), w)

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        inside = self.excess(w) < -rounding(w)
        unit = unit_vector(w, axes)
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

    def _fits(self, leaf):
        group_shape(self, leaf)

    def excess(self, w):
        return jnp.abs(norm(w, group_axes(self, w.ndim), keepdims=True) - 1)

    def shrink(self, w, step_size):
        require_scalar_step(self, step_size)
        axes = group_axes(self, w.ndim)
        large = lifted(w, axes)
        # To a group of zeros every point of the sphere is as near.
        empty = jnp.all(large == 0, axis=axes, keepdims=True)
        unit = jnp.where(empty, group_size(self, w) ** -0.5, unit_vector(large, axes))
        return unit.astype(w.dtype)

    def distance(self, w, gradient):
        axes = group_axes(self, w.ndim)
        unit = unit_vector(w, axes)
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
        Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball, 2008,
        figure 1.

    Example:
        >>> print(Simplex(axis=-1).prox(jnp.array([1.0, 0.5, -1.0]), step_size=1.0))
        [0.75 0.25 0.  ]
    """

    total: chex.Numeric = 1.0
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "total", self.total, "a positive number", lambda x: x > 0)
        require_axes(self)

    def _fits(self, leaf):
        require_real(self, leaf)
        require_broadcast(self, leaf, group_shape(self, leaf), "total")

    def excess(self, w):
        total = jnp.sum(w, axis=group_axes(self, w.ndim), keepdims=True)
        return jnp.where(w < 0, jnp.inf, jnp.abs(total / self.total - 1))

    def shrink(self, w, step_size):
        axes = group_axes(self, w.ndim)
        # What is low gets nothing, however large its modulus: the top entries and the total set the
        # unit.
        top = jnp.max(w, axis=axes, keepdims=True)
        unit = magnitude(jnp.maximum(jnp.abs(top), self.total))
        steps, share = _relative(step_size, w, axes), jnp.maximum(self.total / unit, SMALLEST)
        return _poured(w / unit, steps, share, axes) * self.total

    def distance(self, w, gradient):
        axes, used = group_axes(self, w.ndim), w > 0
        # A normal has one level c on the entries in use, and anything below c on the others. The
        # nearest has sum over used of (c + gradient) = sum over others of max(-gradient - c, 0): a
        # water level, with those in use as its base column.
        base = _mean(-gradient, used, axes)
        beyond, _ = water_level(-gradient, ~used, 0, axes, base)
        return norm(jnp.where(used, beyond, jnp.maximum(beyond, 0)))


@pytree
class L1Ball(Constraint):
    """A largest sum of absolute values for each group, the constrained form of the lasso.

        shrink(w, step_size) = soft(w_g, s step_size), where s >= 0 makes the sum of |.| `radius`

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

    radius: chex.Numeric
    _: KW_ONLY
    axis: Axis = static(default=None)
    stacked: int = static(default=0)

    def __post_init__(self):
        require_number(self, "radius", self.radius, "a positive number", lambda x: x > 0)
        require_axes(self)

    def _fits(self, leaf):
        require_broadcast(self, leaf, group_shape(self, leaf), "radius")

    def excess(self, w):
        return jnp.sum(jnp.abs(w), axis=group_axes(self, w.ndim), keepdims=True) / self.radius - 1

    def shrink(self, w, step_size):
        axes = group_axes(self, w.ndim)
        unit = magnitude(w, axes)
        size, steps = jnp.abs(divided(w, unit)), _relative(step_size, w, axes)
        left = _poured(size, steps, jnp.clip(self.radius / unit, SMALLEST, 1 / SMALLEST), axes)
        inside = jnp.sum(jnp.abs(w), axis=axes, keepdims=True) <= self.radius
        return jnp.where(inside, w, direction(w) * (self.radius * left))

    def distance(self, w, gradient):
        axes, used = group_axes(self, w.ndim), w != 0
        # As for the simplex, by moduli; and the level is >= 0, as the ball has an inside.
        along = jnp.where(used, -jnp.real(gradient * jnp.conj(direction(w))), jnp.abs(gradient))
        _, level = water_level(along, ~used, 0, axes, _mean(along, used, axes))
        level = jnp.where(self.excess(w) < -rounding(w), 0, jnp.maximum(level, 0))
        slope, rest = gradient + level * direction(w), soft_threshold(gradient, level)
        return norm(jnp.where(used, slope, rest))


def rounding(w: chex.Numeric) -> float:
    """The relative excess from rounding: of a number in its dtype, of sums in a wide one."""
    # The errors of n additions add up to about sqrt(n) of them (Higham, Accuracy and Stability of
    # Numerical Algorithms, 2002, calls it a rule of thumb); 4 is a margin.
    own, accurate = jnp.finfo(jnp.result_type(w)).eps, jnp.finfo(widened(w).dtype).eps
    return float(own) + 4 * float(accurate) * max(np.size(w), 1) ** 0.5


def _relative(step_size: chex.Numeric, w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Each group's step sizes relative to its largest, at least `FLOOR`; 1 where all are 0."""
    # A projection depends on their ratios alone.
    steps = jnp.broadcast_to(step_size, w.shape)
    largest = jnp.max(steps, axis=axes, keepdims=True)
    return jnp.where(largest > 0, jnp.maximum(steps / jnp.where(largest > 0, largest, 1), FLOOR), 1)


def _poured(
    size: jax.Array, steps: jax.Array, total: chex.Numeric, axes: tuple[int, ...]
) -> jax.Array:
    """`max(size - s steps, 0)` with the s for which it sums to `total`, in fractions of that."""
    # It is steps max(size / steps - s, 0): columns as wide as the steps, above a level s.
    above, _ = water_level(size / steps, steps, total, axes)
    # `maximum` would halve the derivative at the level itself.
    left = steps * jnp.where(above < 0, 0, above)
    found = jnp.sum(left, axis=axes, keepdims=True)  # the total but for rounding
    return left / jnp.where(found > 0, found, 1)


def _mean(x: jax.Array, where: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The mean over `axes` of the entries that `where` chooses, 0 of none, and their number."""
    count = jnp.sum(where, axis=axes, keepdims=True, dtype=x.dtype)
    total = jnp.sum(jnp.where(where, x, 0), axis=axes, keepdims=True)
    return total / jnp.maximum(count, 1), count
