"""Penalties on matrices as a whole, through their singular values, and on differences of neighbours."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import leaves, widened
from jax_lrreg._check import require
from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.axes import (
    Axis,
    group_axes,
    group_shape,
    matrices,
    require_axes,
    require_matrix,
)
from jax_lrreg.penalties.base import Penalty, require_broadcast, require_strength, smooth_distance
from jax_lrreg.penalties.lift import replaced
from jax_lrreg.penalties.norms import adjoint, last_max, modulus, norm, nuclear_norm, ranked, square
from jax_lrreg.penalties.separable import require_one


@pytree
class Orthogonal(Penalty):
    """Soft orthogonality of the smaller side: of the columns of a tall matrix, of the rows of a wide one.

        value(w) = strength ||W^H W - I||^2, or with W W^H where W has more columns than rows

    where W is w as (everything that goes in, out). It is smooth, and smallest not at 0 but at singular values 1.

    Attributes:
        strength: lambda, not negative.
        stacked: how many leading axes only stack layers, as `nn.scan` does.

    Reference:
        Bansal, Chen and Wang, Can we gain more from orthogonality regularizations in training deep CNNs?, 2018, eq. 1.

    Example:
        >>> print(Orthogonal(1.0)({"kernel": 2 * jnp.eye(3)[:, :2]}))
        18.0
    """

    strength: Any
    _: KW_ONLY
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        _require_stacked(self)

    def fits(self, leaf):
        _require_matrices(self, leaf)

    def value(self, w):
        matrix = matrices(self, w)
        if matrix.shape[-2] < matrix.shape[-1]:
            matrix = jnp.swapaxes(matrix, -1, -2)
        gram = jnp.conj(jnp.swapaxes(matrix, -1, -2)) @ matrix
        identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        defect = jnp.sum(square(gram - identity), axis=(-1, -2))
        return jnp.sum(self.strength * defect)

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


@pytree
class NuclearNorm(Penalty):
    """The sum of the singular values, for low rank. At 0 the gradient is 0, and nothing on missing ranks elsewhere.

        value(w) = strength sum of the singular values of W
        shrink(w, step_size) = W with its singular values lowered by step_size strength, not below 0

    where W is w as (everything that goes in, out). The prox is known for one step size only, and has no derivative by
    W (it is NaN) where two singular values are the same, as all those are that it has made 0.

    Attributes:
        strength: lambda, not negative; one number, or one for each stacked matrix.
        stacked: how many leading axes only stack layers.

    Reference:
        Cai, Candes and Shen, A singular value thresholding algorithm for matrix completion, 2010, theorem 2.1.

    Example:
        >>> print(NuclearNorm(1.0)({"kernel": jnp.diag(jnp.array([3.0, 0.5]))}))
        3.5
    """

    strength: Any
    _: KW_ONLY
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        _require_stacked(self)

    def fits(self, leaf):
        _require_matrices(self, leaf)

    def value(self, w):
        return jnp.sum(self.strength * nuclear_norm(matrices(self, w)))

    def shrink(self, w, step_size):
        return _lowered(self, w, step_size, lambda s, pull: jnp.where(s > pull, s - pull, 0))

    def distance(self, w, gradient):
        u, s, vh = ranked(matrices(self, w))
        strength = jnp.broadcast_to(jnp.asarray(self.strength, s.dtype), s.shape[:-1])[..., None]
        slope = matrices(self, gradient)
        outside = slope - u @ (adjoint(u) @ slope)
        outside = outside - (outside @ adjoint(vh)) @ vh
        within = slope - outside + strength[..., None] * (u @ vh)
        free = jnp.maximum(jnp.linalg.svd(outside, compute_uv=False) - strength, 0)
        return jnp.sqrt(jnp.sum(square(within)) + jnp.sum(free**2))

    def threshold(self, gradient):
        require_one(self, "strength")
        return jnp.max(jnp.linalg.svd(matrices(self, gradient), compute_uv=False))


@pytree
class SpectralNorm(Penalty):
    """The largest singular value, found by power iteration from a vector that the penalty carries.

        value(w) = strength sigma_1(W),  sigma_1 = ||W v||,  v after `iterations` of v <- W^H W v / ||W^H W v||

    where W is w as (everything that goes in, out). Every call begins at the same vector, unless the penalty carries
    others: they are data of it, and `advance(params)` returns the penalty with those of `params`. Advance once before
    a loop and then once a step, and `iterations=1` suffices. The value is a lower bound that is exact when v has
    converged; where the two largest singular values are nearly the same, that takes longer, and the gradient, which
    is that of one of them, is not the subgradient of least norm. The prox takes a full singular value decomposition,
    for one step size only, and has no derivative by W (it is NaN) where two singular values are the same.

    Attributes:
        strength: lambda, not negative; one number, or one for each stacked matrix.
        iterations: power iterations in each call, at least 1.
        stacked: how many leading axes only stack layers.
        vectors: what `advance` carries, by path; None to begin with.

    Reference:
        Yoshida and Miyato, Spectral norm regularization for improving the generalizability of deep learning, 2017.

    Example:
        >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0]))}
        >>> print(SpectralNorm(1.0)(params))
        3.0
        >>> penalty = SpectralNorm(1.0, iterations=1)
        >>> for _ in range(5):
        ...     penalty = penalty.advance(params)
        >>> print(penalty(params))
        3.0
    """

    strength: Any
    _: KW_ONLY
    iterations: int = static(default=50)
    stacked: int = static(default=0)
    vectors: Any = None

    def __post_init__(self):
        require_strength(self, "strength")
        _require_stacked(self)
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        require(
            whole and self.iterations >= 1,
            self,
            "iterations",
            self.iterations,
            "a whole number >= 1",
        )

    def fits(self, leaf):
        _require_matrices(self, leaf)
        shape = np.shape(leaf.value)
        own, needed = np.shape(self.vectors), (*shape[: self.stacked], shape[-1], 1)
        allowed = f"what `advance` made for {leaf.path!r}, of shape {needed}"
        require(self.vectors is None or own == needed, self, "vectors", f"shape {own}", allowed)

    def value(self, w):
        matrix = matrices(self, w)
        along = matrix @ self._iterated(jax.lax.stop_gradient(matrix))
        return jnp.sum(self.strength * norm(along, (along.ndim - 2, along.ndim - 1)))

    def shrink(self, w, step_size):
        def cut(s: jax.Array, pull: jax.Array) -> jax.Array:
            above = jnp.cumsum(s, -1) - pull
            level = last_max(above / jnp.cumsum(jnp.ones_like(s), -1))
            level = jnp.where(level > 0, level, 0)
            return jnp.where(s < level, s, level)  # `minimum` would share a tie's derivative

        return _lowered(self, w, step_size, cut)

    def distance(self, w, gradient):
        raise NotImplementedError(
            "SpectralNorm has no certificate: its subdifferential depends on how often the largest singular value "
            "occurs, which rounding does not let one tell"
        )

    def advanced(self, items):
        carried = (
            {} if self.vectors is None else {leaf.path: leaf.value for leaf in leaves(self.vectors)}
        )
        vectors = {}
        for item in items:
            known = carried.get(item.path)
            one = replaced(self, vectors=known)
            one.fits(item)
            vectors[item.path] = one._iterated(
                jax.lax.stop_gradient(matrices(self, widened(item.value)))
            )
        return replaced(self, vectors=vectors)

    def _iterated(self, matrix: jax.Array) -> jax.Array:
        if self.vectors is None:
            # Irregular, so that it is orthogonal to no singular vector that anyone would construct.
            start = jnp.cos(
                1.0 + 1.7 * jnp.arange(matrix.shape[-1], dtype=jnp.real(matrix).dtype) ** 1.1
            )
            v = jnp.broadcast_to(start[:, None], (*matrix.shape[:-2], matrix.shape[-1], 1)).astype(
                matrix.dtype
            )
        else:
            v = jax.lax.stop_gradient(jnp.asarray(self.vectors)).astype(matrix.dtype)

        def iterate(_: Any, v: jax.Array) -> jax.Array:
            moved = adjoint(matrix) @ (matrix @ v)
            size = norm(moved, (moved.ndim - 2, moved.ndim - 1), keepdims=True)
            return jnp.where(size > 0, moved / jnp.where(size > 0, size, 1), v)

        v = jax.lax.fori_loop(0, self.iterations, iterate, v)
        size = norm(v, (v.ndim - 2, v.ndim - 1), keepdims=True)
        return v / jnp.where(size > 0, size, 1)


@pytree
class TotalVariation(Penalty):
    """The differences of neighbours along some axes, for piecewise constant filters and tables. A loss term only.

        value(w) = strength sum over axes of sum |w[i + 1] - w[i]|

    The gradient is a subgradient, not always that of least norm.

    Attributes:
        strength: lambda, not negative.
        axis: the axes along which neighbours are compared; None for all.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Rudin, Osher and Fatemi, Nonlinear total variation based noise removal algorithms, 1992 (here anisotropic).

    Example:
        >>> print(TotalVariation(1.0, axis=0)(jnp.array([1.0, 1.0, 4.0, 3.0])))
        4.0
    """

    strength: Any
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        require_axes(self)

    def fits(self, leaf):
        group_shape(self, leaf)
        require_broadcast(self, leaf, (), "strength")

    def value(self, w):
        steps = [jnp.diff(w, axis=axis) for axis in group_axes(self, w.ndim)]
        return self.strength * sum(
            (jnp.sum(modulus(step)) for step in steps), jnp.zeros((), jnp.real(w).dtype)
        )


def require_scalar_step(penalty: Penalty, step_size: Any) -> None:
    """Refuses a diagonal metric where only the Euclidean prox is known."""
    name = type(penalty).__name__
    if jnp.ndim(step_size):
        raise ValueError(
            f"{name}: `step_size` must be one number for each array: under a diagonal metric, such as "
            f"that of an adaptive optimizer, {name} has no prox in closed form"
        )


def _require_stacked(penalty: Any) -> None:
    count = (
        isinstance(penalty.stacked, int)
        and not isinstance(penalty.stacked, bool)
        and penalty.stacked >= 0
    )
    require(count, penalty, "stacked", penalty.stacked, "a whole number >= 0")


def _require_matrices(penalty: Any, leaf: Any) -> None:
    require_matrix(penalty, leaf)
    require_broadcast(penalty, leaf, np.shape(leaf.value)[: penalty.stacked], "strength")


def _lowered(penalty: Any, w: jax.Array, step_size: Any, lower: Callable) -> jax.Array:
    """`w` with the singular values that `lower` makes of them and of the pull; exactly `w` where nothing pulls."""
    require_scalar_step(penalty, step_size)
    matrix = matrices(penalty, w)
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
    pull = jnp.broadcast_to(step_size * jnp.asarray(penalty.strength, s.dtype), s.shape[:-1])[
        ..., None
    ]
    product = (u * lower(s, pull)[..., None, :]) @ vh
    # Where nothing pulls, the product is `w` but for rounding, and has the derivatives.
    exact = jax.lax.stop_gradient(matrix) + (product - jax.lax.stop_gradient(product))
    return jnp.where(pull[..., None] > 0, product, exact).reshape(w.shape)
