"""Absolute values and norms with the right derivative at 0, and the two equations that proxes of groups lead to."""

from typing import Any

import jax
import jax.numpy as jnp

NEWTON_STEPS = 20  # float64 accuracy for step sizes over 24 orders of magnitude


def modulus(w: jax.Array) -> jax.Array:
    """|w|, with the derivative 0 at 0, where `jnp.abs` has 1: training must not push an exact zero away."""
    if jnp.iscomplexobj(w):
        return jnp.where(w == 0, 0, jnp.abs(jnp.where(w == 0, 1, w)))
    return w * jax.lax.stop_gradient(jnp.sign(w))


def square(w: jax.Array) -> jax.Array:
    """|w|^2, a real array."""
    return jnp.real(w) ** 2 + jnp.imag(w) ** 2 if jnp.iscomplexobj(w) else w * w


def direction(w: jax.Array) -> jax.Array:
    """W / |w|, and 0 at 0."""
    if jnp.iscomplexobj(w):
        return jnp.where(w == 0, 0, w / jnp.abs(jnp.where(w == 0, 1, w)))
    return jnp.sign(w)


def norm(w: jax.Array, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> jax.Array:
    """The Euclidean norm over `axes`, with the derivative 0 at 0, where `jnp.linalg.norm` has NaN."""
    squares = jnp.sum(square(w), axis=axes, keepdims=keepdims)
    return root(squares)


def root(x: jax.Array) -> jax.Array:
    """The square root, and 0 with the derivative 0 where `x` is not above 0: `jnp.sqrt` has an infinite one at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def soft_threshold(w: jax.Array, threshold: Any) -> jax.Array:
    """`sign(w) max(|w| - threshold, 0)`, on the modulus where `w` is complex; exactly `w` for a threshold of 0."""
    if jnp.iscomplexobj(w):
        size = jnp.abs(w)
        return w * (jnp.maximum(size - threshold, 0) / jnp.where(size > 0, size, 1))
    # Where the threshold is 0, `w - clip(w, -threshold, threshold)` has the wrong derivative by it.
    return jnp.where(jnp.abs(w) <= threshold, 0, w - jnp.sign(w) * threshold)


def secular_root(
    w: jax.Array, offset: Any, slope: Any, start: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """The s with `sum |w|^2 / (offset + s slope)^2 = 1` over `axes`, found from a `start` to its left.

    `start` must lie so far right already that no single term exceeds 1. As a function of s, one over the
    norm of `w / (offset + s slope)` is concave and rising, so that Newton's steps on it climb to the root
    and never pass it: they need no bracket. The last step alone is differentiated, which by the implicit
    function theorem gives the root's own derivative.
    """

    def newton(s: jax.Array) -> jax.Array:
        scale = offset + s * slope
        inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
        squares = square(w * inverse)
        total = jnp.sum(squares, axis=axes, keepdims=True)
        fall = jnp.sum(squares * inverse * slope, axis=axes, keepdims=True)
        proper = (total > 0) & (fall > 0)
        total, fall = jnp.where(proper, total, 1), jnp.where(proper, fall, 1)
        return s + (jnp.sqrt(total) - 1) * total / fall

    start = jax.lax.stop_gradient(start)
    root = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, s: jnp.maximum(s, newton(s)), start)
    return newton(jax.lax.stop_gradient(root))


def water_level(
    height: jax.Array, width: Any, total: Any, axes: tuple[int, ...], always: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The level s with `sum width max(height - s, 0) = total` over `axes`, as two numbers whose sum it is.

    Columns of width 0 do not count; those in `always` count with either sign. The level is the largest of
    those at which the highest columns, one, two, three, ..., would hold the total alone. That is the first of
    the two numbers, up to the rounding of long sums, which the second takes off. `(height - first) - rest`
    keeps the digits of heights that are large against `total`; XLA may compute it twice, and as there is no
    product in it to fuse with the difference, both times it comes out the same.
    """
    width = jnp.broadcast_to(jnp.asarray(width, height.dtype), height.shape)
    always = jnp.broadcast_to(always, height.shape)
    counts = width > 0
    fixed = always & counts
    rank = jnp.where(fixed, jnp.inf, jnp.where(counts, height, -jnp.inf))
    order = jnp.argsort(_last(rank, axes), axis=-1, descending=True)
    columns = (jnp.where(counts, width * height, 0), width, fixed)
    contents, widths, fixeds = (
        jnp.take_along_axis(_last(column, axes), order, -1) for column in columns
    )
    held = jnp.cumsum(widths, -1)
    complete = jnp.cumsum(fixeds, -1) == jnp.sum(fixeds, -1, keepdims=True)
    shape = jnp.max(rank, axis=axes, keepdims=True).shape
    levels = jnp.cumsum(contents, -1) - _last(jnp.broadcast_to(total, shape), axes)
    levels = jnp.where((held > 0) & complete, levels / jnp.where(held > 0, held, 1), -jnp.inf)
    first = last_max(levels).reshape(shape)
    first = jnp.where(jnp.isfinite(first), first, 0)

    # Newton's step on a falling convex polygon is exact on the last piece. More than one is taken because over
    # widths of many orders of magnitude the first may go too far down.
    rest = jnp.zeros_like(first)
    for _ in range(4):
        above = (height - first) - rest
        filled = counts & (always | (above > 0))
        excess = jnp.sum(jnp.where(filled, width * above, 0), axis=axes, keepdims=True) - total
        wide = jnp.sum(jnp.where(filled, width, 0), axis=axes, keepdims=True)
        rest = rest + jnp.where(wide > 0, excess / jnp.where(wide > 0, wide, 1), 0)
    return first, rest


def last_max(x: jax.Array) -> jax.Array:
    """The maximum over the last axis; of several alike the last one has all of the derivative."""
    index = x.shape[-1] - 1 - jnp.argmax(x[..., ::-1], axis=-1, keepdims=True)
    return jnp.take_along_axis(x, index, axis=-1)


def _last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with `axes` gathered into one, the last."""
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)


def adjoint(matrix: jax.Array) -> jax.Array:
    """The conjugate transpose over the last two axes."""
    return jnp.conj(jnp.swapaxes(matrix, -1, -2))


def ranked(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The singular value decomposition with the vectors of vanishing singular values set to 0."""
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
    smallest = max(matrix.shape[-2:]) * jnp.finfo(s.dtype).eps * s[..., :1]
    keeps = s > smallest
    return (
        jnp.where(keeps[..., None, :], u, 0),
        jnp.where(keeps, s, 0),
        jnp.where(keeps[..., None], vh, 0),
    )


@jax.custom_jvp
def nuclear_norm(matrix: jax.Array) -> jax.Array:
    """The sum of the singular values. JAX would fill the missing ranks of its gradient with some vectors."""
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False), -1)


@nuclear_norm.defjvp
def _(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    return nuclear_norm(matrix), jnp.real(jnp.sum(jnp.conj(_polar(matrix)) * tangent, (-2, -1)))


@jax.custom_jvp
def _polar(matrix: jax.Array) -> jax.Array:
    """U V^H over the singular values that are not 0: the subgradient of least norm of their sum."""
    u, _, vh = ranked(matrix)
    return u @ vh


@_polar.defjvp
def _(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    u, s, vh = ranked(matrix)
    keeps = s > 0
    inverse = jnp.where(keeps, 1 / jnp.where(keeps, s, 1), 0)
    both = keeps[..., None] & keeps[..., None, :]
    pairs = jnp.where(both, 1 / jnp.where(both, s[..., None] + s[..., None, :], 1), 0)
    inner = adjoint(u) @ tangent @ adjoint(vh)
    turned = u @ ((inner - adjoint(inner)) * pairs) @ vh
    left = (tangent - u @ (adjoint(u) @ tangent)) @ (adjoint(vh) * inverse[..., None, :]) @ vh
    right = (u * inverse[..., None, :]) @ (adjoint(u) @ (tangent - (tangent @ adjoint(vh)) @ vh))
    return u @ vh, turned + left + right
