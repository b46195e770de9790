"""Separable penalties that are not convex: they bias large parameters less than the lasso does."""

import math
from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.base import ArrayPenalty, require_strength
from jax_lrreg.penalties.lift import Strength
from jax_lrreg.penalties.norms import direction, divided, magnitude, modulus, root, soft_threshold
from jax_lrreg.penalties.separable import kinked_distance


@pytree
class L0(ArrayPenalty):
    """The number of parameters that are not 0. It has a prox, but no gradient to follow: that is 0.

        value(w) = strength * number of w != 0
        shrink(w, step_size) = w where |w| > sqrt(2 step_size strength), 0 elsewhere

    Attributes:
        strength: lambda, not negative.

    Reference:
        Blumensath and Davies, Iterative thresholding for sparse approximations, 2008.

    Example:
        >>> print(L0(0.5).prox(jnp.array([1.1, -0.9, 0.0]), step_size=1.0))
        [1.1 0.  0. ]
    """

    strength: Strength

    def __post_init__(self):
        require_strength(self, "strength")

    def value(self, w):
        return jnp.sum(jnp.where(w == 0, 0, self.strength * jnp.ones(w.shape, jnp.real(w).dtype)))

    def shrink(self, w, step_size):
        return hard_threshold(w, jnp.sqrt(2 * step_size * self.strength))

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, _steep(self.strength))


@pytree
class Lq(ArrayPenalty):
    """A power of the parameters below 1, sparser than the lasso.

        value(w) = strength sum |w|^q

    The gradient grows without bound near 0, and is 0 at 0. With u = step_size strength, `shrink` is
    0 up to |w| = (3/2) u^(2/3) for q = 1/2, and up to 2 (2u/3)^(3/4) for q = 2/3. Beyond, it is the
    larger root of z = |w| - q u z^(q - 1), in closed form.

    Attributes:
        strength: lambda, not negative.
        q: 1/2 or 2/3, the powers with a closed form.

    Reference:
        Xu, Chang, Xu and Zhang, L1/2 regularization: a thresholding representation theory, 2012;
        Cao, Sun and Xu, Fast image deconvolution using closed-form thresholding formulas, 2013.

    Example:
        >>> print(Lq(0.5, q=0.5).prox(jnp.array([0.9, 1.25]), step_size=1.0))
        [0. 1.]
    """

    strength: Strength
    _: KW_ONLY
    q: float = static()

    def __post_init__(self):
        require_strength(self, "strength")
        require_number(self, "q", self.q, "1/2 or 2/3", lambda _: True)
        closed = any(math.isclose(self.q, known, rel_tol=1e-6) for known in (1 / 2, 2 / 3))
        allowed = "1/2 or 2/3, the powers whose prox has a closed form; L1 has q = 1"
        require(closed, self, "q", self.q, allowed)

    def value(self, w):
        zero = w == 0
        return jnp.sum(self.strength * jnp.where(zero, 0, modulus(jnp.where(zero, 1, w)) ** self.q))

    def shrink(self, w, step_size):
        size, pull = jnp.abs(w), step_size * self.strength
        # At a pull of 0 the power below has an infinite slope.
        base = jnp.where(pull > 0, 2 * (1 - self.q) * pull, 1)
        # Up to this |w|, 0 costs no more than the other local minimum, if there is one.
        limit = (2 - self.q) / (2 * (1 - self.q)) * base ** (1 / (2 - self.q))
        limit = jnp.where(pull > 0, limit, 0)
        kept = (size > limit) & (size > 0)
        safe = jnp.where(kept, size, 1)
        # The ratio z / |w| depends on |w| / limit alone. It goes into one step
        # z = |w| - q u z^(q - 1), which is a contraction: that takes off the rounding, and gives
        # |w| itself where u is 0.
        ratio = jnp.where(kept & (limit > 0), safe / jnp.where(limit > 0, limit, 1), 1e4)
        ratio = jnp.clip(ratio, 1, 1e4)
        larger = _half(ratio) if self.q < 0.6 else _two_thirds(ratio)
        move = self.q * pull * (larger * safe) ** (self.q - 1)
        return jnp.where(kept | (pull == 0), w - direction(w) * jnp.where(kept, move, 0), 0)

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, _steep(self.strength))


@pytree
class MCP(ArrayPenalty):
    """The minimax concave penalty: the lasso at 0, a constant from |w| = gamma strength on.

        value(w) = sum (strength |w| - w^2 / (2 gamma)  where |w| <= gamma strength
                        gamma strength^2 / 2            elsewhere)
        shrink(w, step_size) = soft(w, step_size strength) / (1 - step_size / gamma)
                                 up to |w| = gamma strength,
                             = w beyond

    for step_size < gamma. From there on the problem is concave below gamma strength, and `shrink`
    leaves or removes: it is w where |w| > strength sqrt(gamma step_size), and 0 elsewhere.

    Attributes:
        strength: lambda, the slope at 0; not negative.
        gamma: how far it reaches; positive, and larger than the step size for a continuous prox.

    Reference:
        Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010, eq. 2.1.

    Example:
        >>> print(MCP(1.0, gamma=2.0).prox(jnp.array([0.5, 1.5, 4.0]), step_size=1.0))
        [0. 1. 4.]
    """

    strength: Strength
    _: KW_ONLY
    gamma: chex.Numeric

    def __post_init__(self):
        require_strength(self, "strength")
        require_number(self, "gamma", self.gamma, "a positive number", lambda x: x > 0)

    def value(self, w):
        size = jnp.minimum(modulus(w), self.gamma * self.strength)  # it is constant from there on
        return jnp.sum(self.strength * size - size**2 / (2 * self.gamma))

    def shrink(self, w, step_size):
        convex = step_size < self.gamma
        stretch = 1 - jnp.where(convex, step_size, 0) / self.gamma
        near = soft_threshold(w, step_size * self.strength) / stretch
        firm = jnp.where(jnp.abs(w) <= self.gamma * self.strength, near, w)
        hard = hard_threshold(w, self.strength * jnp.sqrt(self.gamma * step_size))
        return jnp.where(convex, firm, hard)

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, self.strength)


@pytree
class SCAD(ArrayPenalty):
    """The smoothly clipped absolute deviation: the lasso near 0, a constant from a strength on.

        value(w) = sum (strength |w|                                         for |w| <= strength
                        (2 a strength |w| - w^2 - strength^2) / (2 (a - 1))  up to a strength
                        strength^2 (a + 1) / 2                               beyond)

    `shrink` solves its problem on each of the three pieces and takes the best.

    Attributes:
        strength: lambda, the slope at 0; not negative.
        a: where it ends; greater than 2, by custom 3.7.

    Reference:
        Fan and Li, Variable selection via nonconcave penalized likelihood, 2001, eq. 2.7.

    Example:
        >>> print(SCAD(1.0).prox(jnp.array([0.5, 1.5, 5.0]), step_size=1.0))
        [0.  0.5 5. ]
    """

    strength: Strength
    _: KW_ONLY
    a: chex.Numeric = 3.7

    def __post_init__(self):
        require_strength(self, "strength")
        require_number(self, "a", self.a, "a number > 2", lambda x: x > 2)

    def value(self, w):
        return jnp.sum(_scad(modulus(w), self.strength, self.a))

    def shrink(self, w, step_size):
        # The costs below are squares.
        unit = jnp.maximum(magnitude(w), magnitude(jnp.asarray(self.strength, w.real.dtype)))
        size, strength = jnp.abs(divided(w, unit)), self.strength / unit
        end, curved = self.a * strength, self.a - 1 - step_size
        middle = size + step_size * (size - end) / jnp.where(curved > 0, curved, 1)

        def cost(z: jax.Array) -> jax.Array:
            return (z - size) ** 2 / 2 + step_size * _scad(z, strength, self.a)

        # On each piece the problem is a quadratic one, whose solution is clipped to the piece. For
        # step_size >= a - 1 the middle one is concave: its ends belong to the other two as well.
        best = jnp.clip(size - step_size * strength, 0, strength)
        for piece in (jnp.clip(middle, strength, end), jnp.maximum(size, end)):
            best = jnp.where(cost(piece) < cost(best), piece, best)
        return direction(w) * best * unit

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, self.strength)


@pytree
class LogSum(ArrayPenalty):
    """The logarithm of the parameters, whose minimisation is the reweighted lasso.

        value(w) = strength sum log(1 + |w| / eps)
        shrink(w, step_size) = 0, or the larger root of (z - |w|) (z + eps) + step_size strength = 0
                               if it costs less

    Attributes:
        strength: lambda, not negative; the slope at 0 is strength / eps.
        eps: the size below which a parameter counts as small; positive.

    Reference:
        Candes, Wakin and Boyd, Enhancing sparsity by reweighted l1 minimization, 2008.

    Example:
        >>> print(LogSum(1.0, eps=1.0).prox(jnp.array([0.5, 3.5]), step_size=2.0))
        [0. 3.]
    """

    strength: Strength
    _: KW_ONLY
    eps: chex.Numeric

    def __post_init__(self):
        require_strength(self, "strength")
        require_number(self, "eps", self.eps, "a positive number", lambda x: x > 0)

    def value(self, w):
        return jnp.sum(self.strength * jnp.log1p(modulus(w) / self.eps))

    def shrink(self, w, step_size):
        # (|w| + eps)^2 may overflow. In these units a pull of 100 is more than enough to leave no
        # root.
        unit = jnp.maximum(magnitude(w), magnitude(jnp.asarray(self.eps, w.real.dtype)))
        size, eps = jnp.abs(divided(w, unit)), self.eps / unit
        pull = jnp.minimum(step_size * self.strength / unit / unit, 100)
        # The smaller root is a local maximum. Of the two minima, 0 and the larger root, the cheaper
        # one is taken.
        inside = (size + eps) ** 2 - 4 * pull
        larger = jnp.maximum(size - 2 * pull / (size + eps + root(inside)), 0)
        # Infinity times a pull of 0 would be NaN.
        ratio = jnp.minimum(larger / eps, jnp.finfo(size.dtype).max)
        cost = (larger - size) ** 2 / 2 + pull * jnp.log1p(ratio)
        return direction(w) * jnp.where((inside >= 0) & (cost <= size**2 / 2), larger, 0) * unit

    def distance(self, w, gradient):
        return kinked_distance(self, w, gradient, self.strength / self.eps)


def hard_threshold(w: jax.Array, threshold: chex.Numeric) -> jax.Array:
    """`w` where |w| > threshold, 0 elsewhere; `w` for a threshold of 0."""
    return jnp.where((jnp.abs(w) > threshold) | (threshold == 0), w, 0)


def _scad(size: jax.Array, strength: chex.Numeric, a: chex.Numeric) -> jax.Array:
    """SCAD of sizes >= 0: from the strength on, its slope falls by 1 / (a - 1), down to 0."""
    bend = jnp.clip(size - strength, 0, (a - 1) * strength)
    return jnp.minimum(size, a * strength) * strength - bend**2 / (2 * (a - 1))


def _steep(strength: chex.Numeric) -> jax.Array:
    """The slope at 0 of a penalty that rises there without bound, unless its strength is 0."""
    return jnp.where(jnp.asarray(strength) > 0, jnp.inf, 0)


def _half(ratio: jax.Array) -> jax.Array:
    """Z / |w| of the prox of |w|^(1/2), where |w| is `ratio` times the largest that becomes 0."""
    angle = jnp.arccos(ratio**-1.5 / math.sqrt(2))
    return (2 + 2 * jnp.cos(2 / 3 * (math.pi - angle))) / 3


def _two_thirds(ratio: jax.Array) -> jax.Array:
    """The same for |w|^(2/3): z is the cube of the larger root s of s^4 - ratio s + 2^(-4/3) = 0.

    The quartic is the product of s^2 + a s + b and s^2 - a s + c, and A = a^2 is the root of a
    cubic.
    """
    edge = 4 / 3 * 2 ** (-4 / 3)
    square_a = 2 * math.sqrt(edge) * jnp.cosh(jnp.arccosh(ratio**2 / (2 * edge**1.5)) / 3)
    a = jnp.sqrt(square_a)
    return ((a + jnp.sqrt(2 * ratio / a - square_a)) / 2) ** 3 / ratio
