"""Constraints as penalties: 0 where they hold, infinite elsewhere, and the prox is the projection."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from optax import projections

from jax_lrreg._arrays import widened
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree
from jax_lrreg.penalties.base import Penalty
from jax_lrreg.penalties.norms import norm
from jax_lrreg.penalties.separable import require_real


class Constraint(Penalty):
    """A set that parameters must stay in. Its value is 0 there and infinite elsewhere; its prox is the projection.

        shrink(w, step_size) = argmin over z in the set of sum |z - w|^2 / step_size

    The size of a scalar step does not matter, so that 0 projects too, and a multiple of a constraint is refused.
    A subclass writes `shrink`, `excess(w)`, which is how far outside `w` is relative to the set's own size, and
    `distance(w, gradient)`, that of `-gradient` to the normal cone at a `w` in the set.
    The value allows an excess of one unit in the last place of the parameter's dtype and the rounding of long
    sums in float32 (or float64): the value of a projection is exactly 0 in every dtype.
    """

    def excess(self, w: jax.Array) -> jax.Array:
        """How far outside the set each entry or group of `w` is, relative to the set's size; 0 or less within."""
        raise NotImplementedError

    def value(self, w):
        return self.cost(w, 1)

    def cost(self, w, multiplier):  # noqa: ARG002 - a multiple of infinity is infinity, and 0 times it not NaN
        return jnp.where(jnp.all(self.excess(widened(w)) <= rounding(w)), 0.0, jnp.inf)

    def residual(self, w, gradient):
        return self.distance(widened(w), gradient) + self.value(w)

    def __mul__(self, factor):
        name = type(self).__name__
        raise TypeError(
            f"{name}: a constraint has no strength, so it cannot be multiplied by {factor!r}"
        )

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

    def fits(self, leaf):
        require_real(self, leaf)

    def excess(self, w):
        return jnp.where(w < 0, jnp.inf, 0.0)

    def shrink(self, w, step_size):  # noqa: ARG002 - the same for every step size
        return projections.projection_non_negative(w)

    def distance(self, w, gradient):
        return norm(jnp.where(w == 0, jnp.maximum(-gradient, 0), gradient))


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

    min: Any = None
    _: KW_ONLY
    max: Any = None

    def __post_init__(self):
        allowed = "a number, or None beside a `max`"
        require(self.min is not None or self.max is not None, self, "min", self.min, allowed)
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                require_number(self, name, getattr(self, name), "a number or None", lambda _: True)
        if self.min is not None and self.max is not None and not isinstance(self.min, Tracer):
            lowest = np.asarray(self.min, np.float64)
            require_number(self, "max", self.max, f"at least min={self.min}", lambda x: x >= lowest)

    def fits(self, leaf):
        require_real(self, leaf)
        super().fits(leaf)

    def excess(self, w):
        lower, upper = self._bounds()
        return jnp.maximum(lower - w, w - upper) / jnp.maximum(jnp.abs(w), jnp.finfo(w.dtype).tiny)

    def shrink(self, w, step_size):  # noqa: ARG002 - the same for every step size
        lower, upper = (
            jnp.broadcast_to(jnp.asarray(bound, w.dtype), w.shape) for bound in self._bounds()
        )
        return projections.projection_box(w, lower, upper)

    def distance(self, w, gradient):
        lower, upper = self._bounds()
        rest = jnp.where(w <= lower, jnp.maximum(-gradient, 0), gradient)
        rest = jnp.where(w >= upper, jnp.where(w <= lower, 0, jnp.maximum(gradient, 0)), rest)
        return norm(rest)

    def _bounds(self) -> tuple[Any, Any]:
        return (-np.inf if self.min is None else self.min), (
            np.inf if self.max is None else self.max
        )


def rounding(w: Any) -> float:
    """The relative excess that comes from rounding: of one number in its dtype, and of sums in a wide one."""
    own, accurate = jnp.finfo(jnp.result_type(w)).eps, jnp.finfo(widened(w).dtype).eps
    return float(own) + 4 * float(accurate) * max(np.size(w), 1) ** 0.5
