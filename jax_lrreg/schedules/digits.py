"""Powers and products that need more digits than a float32 has."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known


def exact(value: Any) -> Any:
    """A known number in double precision, so that it is rounded once, at its use; a traced one as it is."""
    return np.asarray(value, np.float64) if known(value) else value


def log2(value: Any) -> Any:
    """The logarithm to base 2, in double precision where the number is known."""
    return np.log2(exact(value)) if known(value) else jnp.log2(value)


def digits_of(number: Any, count: int) -> list[Any]:
    """A number as a sum of pieces of 12 bits, but for the last, which takes all the rest."""
    if not known(number):  # a traced float32 has no more than two
        coarse = jax.lax.reduce_precision(number, exponent_bits=8, mantissa_bits=11)
        return [coarse, number - coarse]
    pieces, rest = [], exact(number)
    for _ in range(count - 1):
        mantissa, exponent = np.frexp(rest)
        pieces.append(np.ldexp(np.rint(mantissa * 4096), exponent - 12))
        rest = rest - pieces[-1]
    return [*pieces, rest]


def exp2_sum(terms: Sequence[jax.Array], rest: jax.Array) -> jax.Array:
    """2^(terms[0] + terms[1] + ... + rest), without rounding the large terms."""
    whole = jnp.float32(0)
    for term in terms:
        nearest = jax.lax.stop_gradient(jnp.round(term))
        whole, rest = whole + nearest, rest + (term - nearest)
    nearest = jax.lax.stop_gradient(jnp.round(rest))
    exponent = jnp.clip(whole + nearest, -127, 127).astype(
        jnp.int32
    )  # 2^-127 is flushed to 0 below
    power = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return jnp.exp2(jnp.clip(rest - nearest, -1, 1)) * power


def exact_power(x: jax.Array, exponent: Any) -> jax.Array:
    """x^exponent for x > 0, right to a few units in the last place, however small x is."""
    if x.dtype != jnp.float32:
        return jnp.power(x, exponent)
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    whole = jnp.clip((bits - 0x3F3504F3) >> 23, -126, 126)  # x = 2^whole m, and m is near 1
    m = x * jax.lax.bitcast_convert_type((127 - whole) << 23, jnp.float32)
    coarse, fine = (jnp.asarray(digit, jnp.float32) for digit in digits_of(exponent, 2))
    count, log_m = whole.astype(jnp.float32), jnp.log1p(m - 1) * np.float32(np.log2(np.e))
    return exp2_sum([count * coarse], count * fine + log_m * jnp.asarray(exponent, jnp.float32))
