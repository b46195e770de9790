"""Numbers with all their digits: known ones in double precision, traced ones as two float32.

The 24 bits of a float32 are too few for an exponent and for a unit: an error of half a unit in the
last place of `log2(decay_rate)` is one of 60 units in `decay_rate^1000`.
"""

from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._struct import pytree

LARGEST_WHOLE = 2**31 - 128  # the last float32 that an int32 can hold
FAR = (
    1e30  # no schedule is longer: beyond it a float32 would soon be infinite, and inf / inf is NaN
)
LOG2_E = float(np.log2(np.e))


@pytree
class Double:
    """A number as the sum of two floats, of which the second holds what the first has no room for.

    The sums are Knuth's (TAOCP 2, 4.2.2), the products Dekker's (Numer. Math. 18, 1971). Only
    products of halves of 12 bits are relied on to be exact, since a compiler may contract `x y + z`
    to one rounding in one place and not in another, which would spoil the usual `x y - fl(x y)`.

    Attributes:
        high: the number, rounded.
        low: what rounding took from it.
    """

    high: Any
    low: Any

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    @classmethod
    def of(cls, value: "Number | chex.Numeric", dtype: Any = jnp.float32) -> "Double":
        """`value`, known or traced; an int32 is held exactly."""
        if isinstance(value, Double):
            return value
        if not isinstance(value, jax.Array):
            value = np.clip(np.asarray(value, np.float64), -FAR, FAR)
            high = value.astype(dtype)
            return cls(high, (value - high).astype(dtype))
        if jnp.issubdtype(value.dtype, jnp.integer):
            high = jnp.minimum(value.astype(dtype), LARGEST_WHOLE)
            return cls(high, (value - high.astype(jnp.int32)).astype(dtype))
        value = value.astype(jnp.promote_types(value.dtype, dtype))
        return cls(value, jnp.zeros_like(value))

    def __add__(self, other: "Number | chex.Numeric") -> "Double":
        other = Double.of(other, self.high.dtype)
        total, lost = two_sum(self.high, other.high)
        return _tidied(total, lost + (self.low + other.low))

    def __mul__(self, other: "Number | chex.Numeric") -> "Double":
        other = Double.of(other, self.high.dtype)
        (x, fine_x), (y, fine_y) = _halves(self.high), _halves(other.high)
        middle, lost = two_sum(x * fine_y, fine_x * y)
        product, more = two_sum(x * y, middle)
        cross = self.high * other.low + self.low * other.high
        return _tidied(product, more + (lost + fine_x * fine_y + cross))

    def __truediv__(self, other: "Number | chex.Numeric") -> "Double":
        other = Double.of(other, self.high.dtype)
        first, _ = _halves(self.high / other.high)
        rest = self - other * first
        second, _ = _halves(rest.high / other.high)
        rest = rest - other * second
        total, lost = two_sum(first, second)
        return _tidied(total, lost + rest.high / other.high)

    def __neg__(self) -> "Double":
        return Double(-self.high, -self.low)

    def __sub__(self, other: "Number | chex.Numeric") -> "Double":
        return self + -Double.of(other, self.high.dtype)

    def __rsub__(self, other: "Number | chex.Numeric") -> "Double":
        return -self + other

    def __rtruediv__(self, other: "Number | chex.Numeric") -> "Double":
        return Double.of(other, self.high.dtype) / self

    __radd__, __rmul__ = __add__, __mul__


# With all its digits: NumPy's or Python's float64 where it is known, a `Double` where it is traced.
# Their operators are alike, and no type checker follows which of them it is.
Number: TypeAlias = Any


def exact(value: Number | chex.Numeric) -> Number:
    """A number with all its digits: in double precision where it is known, else as a `Double`."""
    if isinstance(value, Double):
        return value
    return np.asarray(value, np.float64) if known(value) else Double.of(value)


def choose(condition: chex.Array, x: Number, y: Number) -> Double:
    """`where` for numbers with all their digits."""
    return jax.tree.map(lambda *pair: jnp.where(condition, *pair), x, y)


def log2(x: Number, rest: Double | None = None) -> Number:
    """The logarithm to base 2 of a positive number, right to 30 bits at least.

    A schedule may raise a rate to a power so high that the result underflows, so the exponent goes
    up to 126: with the 24 bits of a float32 logarithm the result would be 126 ulp off. Where x is
    nearly 1 its logarithm is nearly x - 1, and `rest` is 1 - x, where that is known better.
    """
    if not isinstance(x, Double):
        return np.log2(x)
    if x.high.dtype != jnp.float32:
        beyond = (x.high - 1) + x.low if rest is None else -rest.high
        near = jnp.abs(beyond) < 0.5
        short = jnp.log1p(jnp.where(near, beyond, 0)) * LOG2_E
        return Double.of(jnp.where(near, short, jnp.log2(x.high)), x.high.dtype)
    bits = jax.lax.bitcast_convert_type(x.high, jnp.int32)
    whole = jnp.clip((bits - 0x3F3504F3) >> 23, -126, 126)  # x = 2^whole m, 0.7 < m < 1.42
    scale = _power_of_two(-whole)
    m = Double(x.high * scale, x.low * scale)
    beyond = m - 1 if rest is None else choose(rest.high < 0.25, -rest, m - 1)
    # log m = 2 atanh(s). Only s itself needs the digits: the rest is less than a hundredth of it.
    s = beyond / (m + 1)
    square = s.high * s.high
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))
    return (s + s.high * square * series) * (2 * LOG2_E) + whole.astype(jnp.float32)


def exp2(x: Number) -> jax.Array | np.ndarray:
    """2^x, right to two units in the last place however large x is."""
    if not isinstance(x, Double):
        return np.exp2(x)
    if x.high.dtype != jnp.float32:
        return jnp.exp2(x.high + x.low)
    whole = jnp.clip(jnp.round(x.high), -127, 127)  # 2^-127 is flushed to 0
    rest = jnp.clip((x.high - whole) + x.low, -1, 1)
    return jnp.exp2(rest) * _power_of_two(whole.astype(jnp.int32))


def two_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X + y rounded, and what rounding took from it (Knuth, TAOCP 2, 4.2.2)."""
    total = x + y
    from_y = total - x
    return total, (x - (total - from_y)) + (y - from_y)


def _tidied(high: jax.Array, low: jax.Array) -> Double:
    """The same sum with as many digits as possible in `high`, which is the larger one."""
    total = high + low
    return Double(total, low - (total - high))


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` as two numbers of half as many bits, whose products are exact."""
    bits = {"exponent_bits": 8, "mantissa_bits": 11}
    if x.dtype != jnp.float32:
        bits = {"exponent_bits": 11, "mantissa_bits": 25}
    upper = jax.lax.reduce_precision(x, **bits)
    return upper, x - upper


def _power_of_two(exponent: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
