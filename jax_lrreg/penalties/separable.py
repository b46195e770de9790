"""Penalties that treat each number by itself: value, gradient and prox are elementwise."""

from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._struct import pytree, require_number
from jax_lrreg.penalties.base import Penalty, subgradient_abs
from jax_lrreg.schedules import Schedule


def require_strength(penalty: Penalty, *names: str) -> None:
    """Checks that the named fields are numbers >= 0, trees of them, or schedules."""
    for name in names:
        value = getattr(penalty, name)
        if not isinstance(value, Schedule):
            for number in jax.tree.leaves(value, is_leaf=lambda x: x is None):
                require_number(penalty, name, number, "a number >= 0, a tree of them, or a schedule", lambda x: x >= 0)


@pytree
class L1(Penalty):
    """The lasso.

        value(w) = strength sum |w|
        shrink(w, step_size) = sign(w) max(|w| - step_size strength, 0)

    At 0 the gradient is 0, the subgradient of least norm. |w| is the modulus where w is complex.

    Attributes:
        strength: lambda, not negative; the source's lambda/m is `L1(lam) / m` with m examples in the data set.

    Reference:
        Tibshirani, Regression shrinkage and selection via the lasso, 1996.

    Example:
        >>> print(L1(0.5)({"kernel": jnp.array([1.0, -2.0, 0.0])}))
        1.5
        >>> print(L1(0.5).prox(jnp.array([1.0, -2.0, 0.1]), step_size=1.0))
        [ 0.5 -1.5  0. ]
    """

    strength: Any

    def __post_init__(self):
        require_strength(self, "strength")

    def value(self, w):
        return jnp.sum(self.strength * subgradient_abs(w))

    def shrink(self, w, step_size):
        return soft_threshold(w, step_size * self.strength)


@pytree
class L2(Penalty):
    """Ridge, Tikhonov, coupled weight decay. It has the 1/2, so its gradient is `strength * w`.

        value(w) = strength / 2 sum |w|^2
        shrink(w, step_size) = w / (1 + step_size strength)

    Attributes:
        strength: lambda, not negative. Keras's `L2(c)` is `L2(2 * c)`; PyTorch's `weight_decay=c` is `L2(c)`.

    Reference:
        Hoerl and Kennard, Ridge regression, 1970.

    Example:
        >>> print(L2(0.5)({"kernel": jnp.array([1.0, -2.0, 0.0])}))
        1.25
    """

    strength: Any

    def __post_init__(self):
        require_strength(self, "strength")

    def value(self, w):
        return jnp.sum(self.strength * jnp.real(w * jnp.conj(w))) / 2

    def shrink(self, w, step_size):
        return w / (1 + step_size * self.strength)


@pytree
class ElasticNet(Penalty):
    """The lasso and ridge on the same parameters, with a prox.

        value(w) = l1 sum |w| + l2 / 2 sum |w|^2
        shrink(w, step_size) = sign(w) max(|w| - step_size l1, 0) / (1 + step_size l2)

    Attributes:
        l1: strength of the lasso, not negative.
        l2: strength of ridge, with the 1/2; not negative.

    Reference:
        Zou and Hastie, Regularization and variable selection via the elastic net, 2005.

    Example:
        >>> print(ElasticNet(l1=0.5, l2=1.0)(jnp.array([1.0, -2.0])))
        4.0
    """

    l1: Any
    _: KW_ONLY
    l2: Any

    def __post_init__(self):
        require_strength(self, "l1", "l2")

    @classmethod
    def from_alpha_ratio(cls, alpha: Any, *, l1_ratio: Any) -> "ElasticNet":
        """scikit-learn's parametrisation: `l1 = alpha l1_ratio` and `l2 = alpha (1 - l1_ratio)`."""
        require_number("ElasticNet", "alpha", alpha, "a number >= 0", lambda x: x >= 0)
        require_number("ElasticNet", "l1_ratio", l1_ratio, "a number from 0 to 1", lambda x: (x >= 0) & (x <= 1))
        return cls(alpha * l1_ratio, l2=alpha * (1 - l1_ratio))

    def value(self, w):
        return L1(self.l1).value(w) + L2(self.l2).value(w)

    def shrink(self, w, step_size):
        return soft_threshold(w, step_size * self.l1) / (1 + step_size * self.l2)


def soft_threshold(w: jax.Array, threshold: Any) -> jax.Array:
    """`sign(w) max(|w| - threshold, 0)`, on the modulus where `w` is complex; exactly `w` for a threshold of 0."""
    if jnp.iscomplexobj(w):
        size = jnp.abs(w)
        return w * (jnp.maximum(size - threshold, 0) / jnp.where(size > 0, size, 1))
    return w - jnp.clip(w, -threshold, threshold)
