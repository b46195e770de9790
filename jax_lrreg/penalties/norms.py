"""Absolute values and norms, right at 0 and at every scale, and the equations of groups' proxes.

A square leaves float32 above 1.8e19 and below 1e-19, so that numbers are divided by a power of two
near the largest of them before they are squared. That is exact: where nothing would have
overflowed, no digit changes.
"""

import chex
import jax
import jax.numpy as jnp

Axes = tuple[int, ...] | None

NEWTON_STEPS = 20  # float64 accuracy for step sizes over 24 orders of magnitude


def magnitude(w: jax.Array, axes: Axes = ()) -> jax.Array:
    """A power of two near the largest |w| over `axes`, which are kept, and 1 for zeros.

    It has no derivative, as it is only a unit.
    """
    size = jnp.maximum(jnp.abs(jnp.real(w)), jnp.abs(jnp.imag(w))) if _complex(w) else jnp.abs(w)
    largest = jnp.max(jax.lax.stop_gradient(size), axis=axes, keepdims=True, initial=0)
    info = jnp.finfo(size.dtype)
    # Without mantissa a number is rounded to a power of two. A quarter, since XLA may multiply by
    # the reciprocal of what is to be divided by: that of 2^127, which 3e38 is near, is 0 on a
    # processor that takes subnormal numbers for 0.
    quarter = jnp.maximum(jnp.where(largest > 0, largest / 4, 1), info.tiny)
    return jax.lax.reduce_precision(quarter, info.nexp, 0)


def divided(w: jax.Array, x: chex.Numeric) -> jax.Array:
    """`w / x` by a real `x`, which JAX would make complex for a complex `w`, and square."""
    return jax.lax.complex(jnp.real(w) / x, jnp.imag(w) / x) if _complex(w) else w / x


def modulus(w: jax.Array) -> jax.Array:
    """|w|, with the derivative 0 at 0: training must not push an exact zero away."""
    if _complex(w):
        unit = magnitude(w)
        return unit * jnp.where(w == 0, 0, jnp.abs(jnp.where(w == 0, 1, divided(w, unit))))
    # `jnp.abs` has the derivative 1 at 0.
    return w * jax.lax.stop_gradient(jnp.sign(w))


def square(w: jax.Array) -> jax.Array:
    """|w|^2, a real array."""
    return jnp.real(w) ** 2 + jnp.imag(w) ** 2 if _complex(w) else w * w


@jax.custom_jvp
def half_square(w: jax.Array) -> jax.Array:
    """|w|^2 / 2, with the derivative `w`."""
    # XLA makes (w + w) g of the derivative that JAX writes for w * w: infinite above 1.7e38.
    return square(w) / 2


@half_square.defjvp
def _(primals, tangents):
    (w,), (tangent,) = primals, tangents
    return half_square(w), jnp.real(jnp.conj(w) * tangent)


def direction(w: jax.Array) -> jax.Array:
    """w / |w|, and 0 at 0."""  # noqa: D403
    if _complex(w):
        scaled = divided(w, magnitude(w))
        return jnp.where(w == 0, 0, scaled / jnp.abs(jnp.where(w == 0, 1, scaled)))
    return jnp.sign(w)


def norm(w: jax.Array, axes: Axes = None, keepdims: bool = False) -> jax.Array:
    """The Euclidean norm over `axes`; its derivative at 0 is 0, where `jnp.linalg.norm` has NaN."""
    unit = magnitude(w, axes)
    norms = unit * root(jnp.sum(square(divided(w, unit)), axis=axes, keepdims=True))
    return norms if keepdims else jnp.squeeze(norms, axes)


def lifted(w: jax.Array, axes: Axes) -> jax.Array:
    """`w` times 2^24 in each group over `axes` that has nothing but small numbers; others as is.

    Processors that take a subnormal float32, below 1.2e-38, for 0 do so in sums and comparisons.
    Its bits are still there: read as a whole number, they count units of 2^-149.
    """
    if _complex(w):
        pair = jnp.stack([jnp.real(w), jnp.imag(w)], -1)
        axes = (*(range(w.ndim) if axes is None else axes), w.ndim)
        pair = lifted(pair, axes)
        return jax.lax.complex(pair[..., 0], pair[..., 1])
    if w.dtype != jnp.float32:
        return w
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(w), jnp.int32)
    size = bits & 0x7FFFFFFF
    units = jnp.where(bits < 0, -size, size).astype(w.dtype) * 2.0 ** (24 - 149)
    large = jnp.where(size < 2**23, units, w * 2.0**24)
    small = jnp.max(jnp.where(size < 2**23, 0, jnp.abs(w)), axes, keepdims=True) < 2.0**-100
    return jnp.where(small, large, w)


def unit_vector(w: jax.Array, axes: Axes) -> jax.Array:
    """`w` divided by its norm over `axes`, and 0 where that is 0."""
    # The norm itself may overflow: that of two numbers of 3e38 is 4e38. Scaled, it does not.
    scaled = divided(w, magnitude(w, axes))
    size = norm(scaled, axes, keepdims=True)
    return divided(scaled, jnp.where(size > 0, size, 1))


def root(x: jax.Array) -> jax.Array:
    """The square root, and 0 with the derivative 0 where `x` is not above 0."""
    # At 0 `jnp.sqrt` has an infinite derivative, and an infinity that `where` does not choose is
    # still multiplied by 0 on the way back, which is NaN. Hence the inner `where`, here and below.
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def soft_threshold(w: jax.Array, threshold: chex.Numeric) -> jax.Array:
    """`sign(w) max(|w| - threshold, 0)`, by the modulus; exactly `w` for a threshold of 0."""
    # `w - clip(w, -threshold, threshold)` is shorter, but has the wrong derivatives where the
    # threshold is 0.
    near = (jnp.abs(w) <= threshold) & (threshold > 0)
    return jnp.where(near, 0, w - direction(w) * threshold)


def secular_root(
    w: jax.Array, offset: chex.Numeric, slope: chex.Numeric, start: jax.Array, axes: Axes
) -> jax.Array:
    """The s with `sum |w|^2 / (offset + s slope)^2 = 1` over `axes`, from a `start` to its left.

    `start` must lie so far right already that no single term exceeds 1. As a function of s, one
    over the norm of `w / (offset + s slope)` is concave and rising, so that Newton's steps on it
    climb to the root and never pass it: they need no bracket. The last step alone is
    differentiated, which by the implicit function theorem gives the root's own derivative.
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
    s = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, s: jnp.maximum(s, newton(s)), start)
    return newton(jax.lax.stop_gradient(s))


def water_level(
    height: jax.Array,
    width: chex.Numeric,
    total: chex.Numeric,
    axes: tuple[int, ...],
    base: tuple[chex.Numeric, chex.Numeric] = (0, 0),
) -> tuple[jax.Array, jax.Array]:
    """How high each column stands above the s with `sum width max(height - s, 0) = total`; and s.

    Columns of width 0 do not count. `base` is the height and the width of one more column for each
    group, which counts with either sign.

    Duchi et al. (2008) take the largest of the levels `(sum of the k highest - total) / k`. In that
    sum a total below the last place of the heights is lost: 3e7 - 1 is 3e7 in float32, and no
    column stands above the level. Here the level is reckoned down from the lowest column that
    counts, by sums of gaps between columns, all >= 0.
    """
    width = jnp.broadcast_to(jnp.asarray(width, height.dtype), height.shape)
    base_height, base_width = base
    counts = width > 0
    rank = jax.lax.stop_gradient(jnp.where(counts, height, -jnp.inf))
    order = jnp.argsort(_last(rank, axes), axis=-1, descending=True)
    heights, widths = (
        jnp.take_along_axis(_last(x, axes), order, -1) for x in (rank, jax.lax.stop_gradient(width))
    )
    keep = jnp.max(rank, axis=axes, keepdims=True).shape
    last = [_last(jnp.broadcast_to(x, keep), axes) for x in (base_height, base_width, total)]
    # What would stand above a level at the height of each column. It rises along the columns: those
    # count for which it is less than the total, or the same, so that of columns at the level itself
    # a derivative takes notice.
    wide = last[1] + jnp.cumsum(widths, -1)
    first = jnp.where(last[1] > 0, last[1] * (last[0] - heights[..., :1]), 0)
    above = first + jnp.cumsum(wide[..., :-1] * (heights[..., :-1] - heights[..., 1:]), -1)
    above = jnp.concatenate([first, above], -1)
    lowest = jnp.min(heights, -1, keepdims=True, where=above <= last[2], initial=jnp.inf)
    lowest = jnp.where(jnp.isfinite(lowest), lowest, last[0]).reshape(keep)
    lowest = jax.lax.stop_gradient(lowest)  # the level does not depend on what it is reckoned from

    counts = counts & (height >= lowest)
    above = jnp.sum(jnp.where(counts, width * (height - lowest), 0), axis=axes, keepdims=True)
    wide = jnp.sum(jnp.where(counts, width, 0), axis=axes, keepdims=True) + base_width
    drop = (total - base_width * (base_height - lowest) - above) / jnp.where(wide > 0, wide, 1)
    # XLA may work out these differences twice. Without a product in them that a processor could
    # fuse with the difference, both times they come out the same.
    return (height - lowest) + drop, lowest - drop


def _last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with `axes` gathered into one, the last."""
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)


def _complex(w: jax.Array) -> bool:
    return jnp.issubdtype(w.dtype, jnp.complexfloating)
