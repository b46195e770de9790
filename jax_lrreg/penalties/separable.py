"""Penalties that treat each number by itself: value, gradient and prox are elementwise."""

import abc
from dataclasses import KW_ONLY
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._arrays import widened
from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree
from jax_lrreg.penalties.base import ArrayPenalty, require_strength
from jax_lrreg.penalties.lift import Strength, require_one, require_real
from jax_lrreg.penalties.norms import divided, half_square, modulus, norm, soft_threshold


@pytree
class L1(ArrayPenalty):
    """The lasso.

        value(w) = strength sum |w|
        shrink(w, step_size) = sign(w) max(|w| - step_size strength, 0)

    At 0 the gradient is 0, the subgradient of least norm. |w| is the modulus where w is complex.

    Attributes:
        strength: lambda, not negative; the source's lambda/m is `L1(lam) / m` with m examples in
            the data set.

    Reference:
        Tibshirani, Regression shrinkage and selection via the lasso, 1996.

    Example:
        >>> print(L1(0.5)({"kernel": jnp.array([1.0, -2.0, 0.0])}))
        1.5
        >>> print(L1(0.5).prox(jnp.array([1.0, -2.0, 0.1]), step_size=1.0))
        [ 0.5 -1.5  0. ]
    """

    strength: Strength

    def __post_init__(self):
        require_strength(self, "strength")

    def value(self, w):
        return jnp.sum(self.strength * modulus(w))

    def shrink(self, w, step_size):
        return soft_threshold(w, step_size * self.strength)

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, self.strength)

    def threshold(self, gradient):
        return largest(self, "strength", gradient)


@pytree
class L2(ArrayPenalty):
    """Ridge, Tikhonov, coupled weight decay. It has the 1/2, so its gradient is `strength * w`.

        value(w) = strength / 2 sum |w|^2
        shrink(w, step_size) = w / (1 + step_size strength)

    Attributes:
        strength: lambda, not negative. Keras's `L2(c)` is `L2(2 * c)`; PyTorch's `weight_decay=c`
            is `L2(c)`.

    Reference:
        Hoerl and Kennard, Ridge regression, 1970.

    Example:
        >>> print(L2(0.5)({"kernel": jnp.array([1.0, -2.0, 0.0])}))
        1.25
    """

    strength: Strength

    def __post_init__(self):
        require_strength(self, "strength")

    @classmethod
    def from_timescale(cls, *, steps: chex.Numeric, learning_rate: chex.Numeric) -> "L2":
        """The decay that forgets within `steps` updates, for AdamW and other decoupled optimizers.

            strength = 1 / (steps learning_rate)

        A weight that is only decayed falls by a factor of e in that time: the parameters are an
        average of the last `steps` updates. It is that time, not the strength, which carries over
        to another rate or length of the run.

        Args:
            steps: number of updates; positive.
            learning_rate: its peak, where it is scheduled; positive.

        Source:
            Wang and Aitchison, How to set AdamW's weight decay as you scale model and dataset size,
            2024.

        Example:
            >>> L2.from_timescale(steps=10_000, learning_rate=1e-3)
            L2(0.1)
        """
        for name, value in (("steps", steps), ("learning_rate", learning_rate)):
            require_number("from_timescale", name, value, "a positive number", lambda x: x > 0)
        return cls(1 / steps / learning_rate)

    def value(self, w):
        return jnp.sum(self.strength * half_square(w))

    def shrink(self, w, step_size):
        return divided(w, 1 + step_size * self.strength)

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


class AlphaRatio:
    """The other way to say the strengths of an elastic net."""

    @classmethod
    def from_alpha_ratio(cls, alpha: chex.Numeric, *, l1_ratio: chex.Numeric) -> Self:
        """scikit-learn's parametrisation: `l1 = alpha l1_ratio` and `l2 = alpha (1 - l1_ratio)`."""
        owner, ratio = cls.__name__, "a number from 0 to 1"
        require_number(owner, "alpha", alpha, "a number >= 0", lambda x: x >= 0)
        require_number(owner, "l1_ratio", l1_ratio, ratio, lambda x: (x >= 0) & (x <= 1))
        make: Any = cls
        return make(alpha * l1_ratio, l2=alpha * (1 - l1_ratio))


@pytree
class ElasticNet(AlphaRatio, ArrayPenalty):
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

    l1: Strength
    _: KW_ONLY
    l2: Strength

    def __post_init__(self):
        require_strength(self, "l1", "l2")

    def value(self, w):
        return L1(self.l1).value(w) + L2(self.l2).value(w)

    def shrink(self, w, step_size):
        return divided(soft_threshold(w, step_size * self.l1), 1 + step_size * self.l2)

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, self.l1)

    def threshold(self, gradient):
        return largest(self, "l1", gradient)


@pytree
class Huber(ArrayPenalty):
    """Ridge for small parameters, the lasso for large ones: smooth, so it makes no zeros.

        value(w) = strength sum (w^2 / 2 where |w| <= delta, delta (|w| - delta / 2) elsewhere)
        shrink(w, step_size) = w / (1 + step_size strength), by step_size strength delta at most

    Attributes:
        strength: lambda, not negative.
        delta: where the one passes into the other; positive.

    Reference:
        Huber, Robust estimation of a location parameter, 1964.

    Example:
        >>> print(Huber(1.0, delta=1.0)(jnp.array([0.5, -3.0])))
        2.625
    """

    strength: Strength
    _: KW_ONLY
    delta: chex.Numeric

    def __post_init__(self):
        require_strength(self, "strength")
        require_number(self, "delta", self.delta, "a positive number", lambda x: x > 0)

    def value(self, w):
        size = modulus(w)
        far = self.delta * (size - self.delta / 2)
        return jnp.sum(self.strength * jnp.where(size <= self.delta, half_square(w), far))

    def shrink(self, w, step_size):
        pull = step_size * self.strength
        # It is the result that must be within delta for the quadratic piece to hold.
        near = jnp.abs(w) <= self.delta * (1 + pull)
        return jnp.where(near, divided(w, 1 + pull), soft_threshold(w, pull * self.delta))

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


class NonNegativePenalty(ArrayPenalty):
    """A penalty on parameters that must not be negative: infinite where one is."""

    def value(self, w):
        return self._cost(w, 1)

    def _fits(self, leaf):
        super()._fits(leaf)
        require_real(self, leaf)

    def _cost(self, w, multiplier):
        # The multiplier stays within, as 0 times infinity is NaN.
        w = widened(w)
        return jnp.sum(jnp.where(w < 0, jnp.inf, multiplier * self._costs(w)))

    @abc.abstractmethod
    def _costs(self, w: jax.Array) -> jax.Array:
        """What each entry costs that is not negative."""

    def _distance(self, w: jax.Array, slope: jax.Array) -> jax.Array:
        """`distance` where the slope of all, from above at 0, is `slope`."""
        # At 0 every slope up to that is a subgradient: only a loss that falls faster than the
        # penalty rises moves the parameter.
        inside = norm(jnp.where(w > 0, slope, jnp.minimum(slope, 0)))
        return jnp.where(jnp.any(w < 0), jnp.inf, inside)


@pytree
class NonNegativeL1(NonNegativePenalty):
    """The lasso on parameters that must not be negative.

        value(w) = strength sum w, and infinity if some w < 0
        shrink(w, step_size) = max(w - step_size strength, 0)

    Attributes:
        strength: lambda, not negative.

    Reference:
        Efron, Hastie, Johnstone and Tibshirani, Least angle regression, 2004 (the positive lasso).

    Example:
        >>> print(NonNegativeL1(0.5).prox(jnp.array([1.0, -2.0, 0.1]), step_size=1.0))
        [0.5 0.  0. ]
    """

    strength: Strength

    def __post_init__(self):
        require_strength(self, "strength")

    def shrink(self, w, step_size):
        return jnp.where(w < 0, 0, soft_threshold(w, step_size * self.strength))

    def distance(self, w, gradient):
        return self._distance(w, gradient + self.strength)

    def threshold(self, gradient):
        return largest(self, "strength", jnp.maximum(-gradient, 0))

    def _costs(self, w):
        return self.strength * modulus(w)


@pytree
class NonNegativeElasticNet(AlphaRatio, NonNegativePenalty):
    """The elastic net on parameters that must not be negative.

        value(w) = l1 sum w + l2 / 2 sum w^2, and infinity if some w < 0
        shrink(w, step_size) = max(w - step_size l1, 0) / (1 + step_size l2)

    Attributes:
        l1: strength of the lasso, not negative.
        l2: strength of ridge, with the 1/2; not negative.

    Reference:
        Wu, Yang and Liu, Nonnegative-lasso and application in index tracking, 2014, with ridge.

    Example:
        >>> net = NonNegativeElasticNet.from_alpha_ratio(1.0, l1_ratio=0.5)
        >>> print(net.prox(jnp.array([2.0, -2.0, 0.1]), step_size=1.0))
        [1. 0. 0.]
    """

    l1: Strength
    _: KW_ONLY
    l2: Strength

    def __post_init__(self):
        require_strength(self, "l1", "l2")

    def shrink(self, w, step_size):
        kept = jnp.where(w < 0, 0, soft_threshold(w, step_size * self.l1))
        return kept / (1 + step_size * self.l2)

    def distance(self, w, gradient):
        return self._distance(w, gradient + self.l1 + self.l2 * w)

    def threshold(self, gradient):
        return largest(self, "l1", jnp.maximum(-gradient, 0))

    def _costs(self, w):
        return self.l1 * modulus(w) + self.l2 * half_square(w)


def smooth_distance(penalty: ArrayPenalty, w: jax.Array, gradient: jax.Array) -> jax.Array:
    """`distance` of a penalty that has a gradient everywhere."""
    return norm(gradient + jnp.conj(jax.grad(penalty.value)(w)))


def kinked_distance(
    penalty: ArrayPenalty, w: jax.Array, gradient: jax.Array, slope: chex.Numeric
) -> jax.Array:
    """`distance` of a penalty that has a gradient except at 0, where its slopes are +-`slope`."""
    # JAX's gradient of a real function of complex numbers is the conjugate of the one uphill.
    elsewhere = jnp.abs(gradient + jnp.conj(jax.grad(penalty.value)(w)))
    return norm(jnp.where(w == 0, jnp.maximum(jnp.abs(gradient) - slope, 0), elsewhere))


def largest(penalty: ArrayPenalty, name: str, gradient: jax.Array) -> jax.Array:
    """`threshold` where zero solves while no |gradient| exceeds the number in the field `name`."""
    require_one(penalty, name)
    return jnp.max(jnp.abs(gradient))
