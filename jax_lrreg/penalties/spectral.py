"""Penalties on matrices by their singular values, and on differences of neighbours.

Every product of matrices here asks for the highest precision: by default a TPU multiplies in
bfloat16, and the prox of the nuclear norm, which takes a matrix apart and puts it together again,
would move it by 7e-4 instead of 2e-6.
"""

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import leaves, widened
from jax_lrreg._check import require, require_whole
from jax_lrreg._struct import pytree, static
from jax_lrreg.penalties.base import ArrayPenalty, require_strength
from jax_lrreg.penalties.groups import Axis, group_axes, group_shape, require_axes
from jax_lrreg.penalties.lift import (
    Strength,
    replaced,
    require_broadcast,
    require_one,
    require_scalar_step,
)
from jax_lrreg.penalties.norms import (
    divided,
    magnitude,
    modulus,
    norm,
    square,
    unit_vector,
    water_level,
)
from jax_lrreg.penalties.separable import smooth_distance

LARGEST_ON_TPUS = 256  # the smaller side of a matrix that is decomposed on a mesh of them


class MatrixPenalty(ArrayPenalty):
    """A penalty on `w` as matrices (everything that goes in, out), after its stacked axes."""

    # No fields yet: the subclasses declare them, and so decide their order.
    strength: Strength
    stacked: int

    def __post_init__(self):
        require_strength(self, "strength")
        require_whole(self, "stacked", self.stacked, 0)

    def _fits(self, leaf):
        shape, stacked = np.shape(leaf.value), self.stacked
        allowed = f"such that {leaf.path!r}, which has shape {shape}, keeps at least 2 axes"
        require(len(shape) - stacked >= 2, self, "stacked", stacked, allowed)
        require_broadcast(self, leaf, shape[:stacked], "strength")


@pytree
class Orthogonal(MatrixPenalty):
    """Soft orthogonality: of the columns of a tall matrix, of the rows of a wide one.

        value(w) = strength ||W^H W - I||^2, or with W W^H where W has more columns than rows

    where W is w as (everything that goes in, out). It is smooth, and smallest not at 0 but at
    singular values 1.

    Attributes:
        strength: lambda, not negative.
        stacked: how many leading axes only stack layers, as `nn.scan` does.

    Reference:
        Bansal, Chen and Wang, Can we gain more from orthogonality regularizations in training deep
        CNNs?, 2018, eq. 1.

    Example:
        >>> print(Orthogonal(1.0)({"kernel": 2 * jnp.eye(3)[:, :2]}))
        18.0
    """

    strength: Strength
    _: KW_ONLY
    stacked: int = static(default=0)

    def value(self, w):
        matrix = matrices(self, w)
        # The larger Gram matrix has not the rank to be the identity.
        tall = matrix.shape[-2] >= matrix.shape[-1]
        gram = product(adjoint(matrix), matrix) if tall else product(matrix, adjoint(matrix))
        identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        defects = square(gram - identity)
        return jnp.sum(self.strength * jnp.sum(defects, axis=(-1, -2)))

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


@pytree
class NuclearNorm(MatrixPenalty):
    """The sum of the singular values, for low rank.

        value(w) = strength sum of the singular values of W
        shrink(w, step_size) = W with its singular values lowered by step_size strength, not below 0

    where W is w as (everything that goes in, out). The gradient is that of least norm: 0 at 0, and
    elsewhere nothing on missing ranks. The prox is known for one step size only, and
    has no derivative by W (it is NaN) where two singular values are the same, as all those are that
    it has made 0.

    Attributes:
        strength: lambda, not negative; one number, or one for each stacked matrix.
        stacked: how many leading axes only stack layers.

    Reference:
        Cai, Candes and Shen, A singular value thresholding algorithm for matrix completion, 2010,
        theorem 2.1.

    Example:
        >>> print(NuclearNorm(1.0)({"kernel": jnp.diag(jnp.array([3.0, 0.5]))}))
        3.5
    """

    strength: Strength
    _: KW_ONLY
    stacked: int = static(default=0)

    def value(self, w):
        matrix = matrices(self, w)
        _require_small_on_tpus(self, matrix)
        return jnp.sum(self.strength * nuclear_norm(matrix))

    def shrink(self, w, step_size):
        return _lowered(self, w, step_size, lambda s, pull: jnp.where(s > pull, s - pull, 0))

    def distance(self, w, gradient):
        u, s, vh = ranked(matrices(self, w))
        strength = jnp.broadcast_to(jnp.asarray(self.strength, s.dtype), s.shape[:-1])[..., None]
        slope = matrices(self, gradient)
        # On the ranks of w the subgradient is u vh; on the missing ones it is any matrix of
        # spectral norm 1.
        outside = slope - product(u, product(adjoint(u), slope))
        outside = outside - product(outside, adjoint(vh), vh)
        within = slope - outside + strength[..., None] * product(u, vh)
        free = jnp.maximum(jnp.linalg.svd(outside, compute_uv=False) - strength, 0)
        return norm(jnp.stack([norm(within), norm(free)]))

    def threshold(self, gradient):
        require_one(self, "strength")
        return jnp.max(jnp.linalg.svd(matrices(self, gradient), compute_uv=False))


@pytree
class SpectralNorm(MatrixPenalty):
    """The largest singular value, found by power iteration from a vector that the penalty carries.

        value(w) = strength sigma_1(W),  sigma_1 = ||W v||
        v after `iterations` of v <- W^H W v / ||W^H W v||

    where W is w as (everything that goes in, out). Every call begins at the same vector, unless the
    penalty carries others: they are data of it, and `advance(params)` returns the penalty with
    those of `params`. Advance once before a loop and then once a step, and `iterations=1` suffices.
    The value is a lower bound that is exact when v has converged; where the two largest singular
    values are nearly the same, that takes longer, and the gradient, which is that of one of them,
    is not the subgradient of least norm. The prox takes a full singular value decomposition, for
    one step size only, and has no derivative by W (it is NaN) where two singular values are the
    same.

    Attributes:
        strength: lambda, not negative; one number, or one for each stacked matrix.
        iterations: power iterations in each call, at least 1.
        stacked: how many leading axes only stack layers.
        vectors: what `advance` carries, by path; None to begin with.

    Reference:
        Yoshida and Miyato, Spectral norm regularization for improving the generalizability of deep
        learning, 2017.

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

    strength: Strength
    _: KW_ONLY
    # The error of the value falls as (sigma_2 / sigma_1)^(4 iterations): at a ratio of 0.95, 50
    # leave 4e-5 of it.
    iterations: int = static(default=50)
    stacked: int = static(default=0)
    vectors: Any = None  # of a user's penalty a tree, by path; of the one for an array its own

    def __post_init__(self):
        super().__post_init__()
        require_whole(self, "iterations", self.iterations)

    def _fits(self, leaf):
        super()._fits(leaf)
        shape = np.shape(leaf.value)
        own, needed = np.shape(self.vectors), (*shape[: self.stacked], shape[-1], 1)
        allowed = f"what `advance` made for {leaf.path!r}, of shape {needed}"
        require(self.vectors is None or own == needed, self, "vectors", f"shape {own}", allowed)

    def value(self, w):
        matrix = matrices(self, w)
        unit = magnitude(matrix, (-2, -1))
        # The iteration squares it, which with an entry of 1e30 would overflow.
        matrix = divided(matrix, unit)
        along = product(matrix, self._iterated(matrix))
        sizes = norm(along, (along.ndim - 2, along.ndim - 1)) * unit[..., 0, 0]
        return jnp.sum(self.strength * sizes)

    def shrink(self, w, step_size):
        def cut(s: jax.Array, pull: jax.Array) -> jax.Array:
            _, level = water_level(s, 1, pull, (s.ndim - 1,))
            level = jnp.where(level > 0, level, 0)
            return jnp.where(s < level, s, level)  # `minimum` would share a tie's derivative

        return _lowered(self, w, step_size, cut)

    def distance(self, w, gradient):
        raise NotImplementedError(
            "SpectralNorm has no certificate: its subdifferential depends on how often the largest "
            "singular value occurs, which rounding does not let one tell"
        )

    def _advanced(self, items):
        carried = () if self.vectors is None else leaves(self.vectors)
        found, vectors = {leaf.path: leaf.value for leaf in carried}, {}
        for item in items:
            one = replaced(self, vectors=found.get(item.path))
            one._fits(item)
            vectors[item.path] = one._iterated(matrices(self, widened(item.value)))
        return replaced(self, vectors=vectors)

    def _iterated(self, matrix: jax.Array) -> jax.Array:
        """The vectors after the power iterations, without a derivative."""
        # Where they end, the value is stationary in them: d sigma_1 = u^H dW v needs no dv.
        matrix = jax.lax.stop_gradient(divided(matrix, magnitude(matrix, (-2, -1))))
        columns = matrix.shape[-1]
        if self.vectors is None:
            # Irregular, so that it is orthogonal to no singular vector that anyone would construct.
            angles = 1.7 * jnp.arange(columns, dtype=jnp.finfo(matrix.dtype).dtype) ** 1.1
            start = jnp.cos(1.0 + angles)[:, None]
        else:
            start = jax.lax.stop_gradient(jnp.asarray(self.vectors))
        start = jnp.broadcast_to(start, (*matrix.shape[:-2], columns, 1)).astype(matrix.dtype)

        def iterate(_: int, v: jax.Array) -> jax.Array:
            moved = product(adjoint(matrix), product(matrix, v))
            size = norm(moved, (moved.ndim - 2, moved.ndim - 1), keepdims=True)
            return jnp.where(size > 0, divided(moved, jnp.where(size > 0, size, 1)), v)

        v = jax.lax.fori_loop(0, self.iterations, iterate, start)
        return unit_vector(v, (v.ndim - 2, v.ndim - 1))


@pytree
class TotalVariation(ArrayPenalty):
    """The differences of neighbours, for piecewise constant filters and tables. A loss term only.

        value(w) = strength sum over axes of sum |w[i + 1] - w[i]|

    The gradient is a subgradient, not always that of least norm.

    Attributes:
        strength: lambda, not negative.
        axis: the axes along which neighbours are compared; None for all.
        stacked: how many leading axes only stack layers; `axis` counts without them.

    Reference:
        Rudin, Osher and Fatemi, Nonlinear total variation based noise removal algorithms, 1992
        (here anisotropic).

    Example:
        >>> print(TotalVariation(1.0, axis=0)(jnp.array([1.0, 1.0, 4.0, 3.0])))
        4.0
    """

    strength: Strength
    _: KW_ONLY
    axis: Axis = static()
    stacked: int = static(default=0)

    def __post_init__(self):
        require_strength(self, "strength")
        require_axes(self)

    def _fits(self, leaf):
        group_shape(self, leaf)
        require_broadcast(self, leaf, (), "strength")

    def value(self, w):
        # Of halves, as the difference of two numbers of 3e38 may be infinite.
        steps = [jnp.diff(divided(w, 2), axis=axis) for axis in group_axes(self, w.ndim)]
        sums = [2 * jnp.sum(modulus(step)) for step in steps]
        return self.strength * sum(sums, jnp.zeros((), jnp.finfo(w.dtype).dtype))


def matrices(penalty: MatrixPenalty, w: jax.Array) -> jax.Array:
    """`w` as matrices (everything that goes in, out): one of a convolution, or of each layer."""
    return w.reshape(*w.shape[: penalty.stacked], -1, w.shape[-1])


def adjoint(matrix: jax.Array) -> jax.Array:
    """The conjugate transpose over the last two axes."""
    return jnp.conj(jnp.swapaxes(matrix, -1, -2))


def product(*matrices: jax.Array) -> jax.Array:
    """The product of several matrices, from the left, in the highest precision of the device."""
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), matrices)


def decomposed(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The singular value decomposition with the singular values in a unit, and that unit."""
    # They may overflow. LAPACK scales by itself, not every device's library does.
    unit = magnitude(matrix, (-2, -1))
    with jax.default_matmul_precision("highest"):  # JAX's derivative of it multiplies matrices too
        u, s, vh = jnp.linalg.svd(divided(matrix, unit), full_matrices=False)
    return u, s, vh, unit


def ranked(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The singular value decomposition with the vectors of vanishing singular values set to 0."""
    u, s, vh, unit = decomposed(matrix)
    # As in NumPy's `matrix_rank`: below it a singular value is the rounding of the others, and its
    # vectors are those of noise.
    smallest = max(matrix.shape[-2:]) * jnp.finfo(s.dtype).eps * s[..., :1]
    keeps = s > smallest
    u, vh = jnp.where(keeps[..., None, :], u, 0), jnp.where(keeps[..., None], vh, 0)
    return u, jnp.where(keeps, s * unit[..., 0], 0), vh


@jax.custom_jvp
def nuclear_norm(matrix: jax.Array) -> jax.Array:
    """The sum of the singular values, with the subgradient of least norm."""
    # JAX's own derivative would fill the missing ranks with whatever vectors the device found.
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False), -1)


@nuclear_norm.defjvp
def _(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    return nuclear_norm(matrix), jnp.real(jnp.sum(jnp.conj(_polar(matrix)) * tangent, (-2, -1)))


@jax.custom_jvp
def _polar(matrix: jax.Array) -> jax.Array:
    """U V^H over the singular values that are not 0: the subgradient of least norm of their sum."""
    u, _, vh = ranked(matrix)
    return product(u, vh)


@_polar.defjvp
def _(primals, tangents):
    # U V^H turns within the ranks that are there, by the antisymmetric part of the move over
    # s_i + s_j, and tilts out of them, by the rest of the move over s_i. The derivatives of U and V
    # alone divide by s_i - s_j, which is 0 for twins; in the product these parts cancel.
    (matrix,), (tangent,) = primals, tangents
    u, s, vh = ranked(matrix)
    keeps = s > 0
    inverse = jnp.where(keeps, 1 / jnp.where(keeps, s, 1), 0)[..., None, :]
    both = keeps[..., None] & keeps[..., None, :]
    pairs = jnp.where(both, 1 / jnp.where(both, s[..., None] + s[..., None, :], 1), 0)
    uh, v = adjoint(u), adjoint(vh)
    inner = product(uh, tangent, v)
    turned = product(u, (inner - adjoint(inner)) * pairs, vh)
    left = product(tangent - product(u, product(uh, tangent)), v * inverse, vh)
    right = product(u * inverse, product(uh, tangent - product(tangent, v, vh)))
    return product(u, vh), turned + left + right


def _require_small_on_tpus(penalty: MatrixPenalty, matrix: jax.Array) -> None:
    """Refuses a decomposition that a mesh of TPUs would compile for longer than anyone waits."""
    mesh, sides = jax.sharding.get_abstract_mesh(), matrix.shape[-2:]
    kind = str(getattr(getattr(mesh, "abstract_device", None), "device_kind", ""))
    # The prox of one matrix of 256 x 256 takes 5 s to compile, of 512 x 512 62 to 72 s, and a model
    # has many: XLA writes the polar iterations out for each size that it halves a matrix to.
    fits = mesh.empty or mesh.size == 1 or "TPU" not in kind or min(sides) <= LARGEST_ON_TPUS
    allowed = (
        f"matrices with a side of at most {LARGEST_ON_TPUS} on a mesh of TPUs, for which larger "
        "singular value decompositions take minutes to compile: choose others with `on`, or "
        "take Orthogonal, or SpectralNorm in the loss"
    )
    require(fits, penalty, "params", f"{sides[0]} x {sides[1]}", allowed)


def _lowered(
    penalty: MatrixPenalty, w: jax.Array, step_size: chex.Numeric, lower: Callable
) -> jax.Array:
    """`w` with each singular value s made `lower(s, pull)`; exactly `w` where nothing pulls."""
    require_scalar_step(penalty, step_size)
    matrix = matrices(penalty, w)
    _require_small_on_tpus(penalty, matrix)
    u, s, vh, unit = decomposed(matrix)
    strength = jnp.asarray(penalty.strength, s.dtype)
    pull = jnp.broadcast_to(step_size * strength, s.shape[:-1])[..., None] / unit[..., 0]
    moved = product(u * lower(s, pull)[..., None, :], vh) * unit
    # Where nothing pulls, the product is `w` but for rounding, and has the derivatives.
    exact = jax.lax.stop_gradient(matrix) + (moved - jax.lax.stop_gradient(moved))
    return jnp.where(pull[..., None] > 0, moved, exact).reshape(w.shape)
