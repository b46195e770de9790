"""Ways from one value to another: a curve rises from 0 to 1, its mirror image falls from 1 to 0.

Every curve is computed together with its mirror image, and from the time that is left together
with the time that is done, because a small number must not be computed as one minus a large one:
a float32 keeps no digit of 1 - x once x is nearer to 1 than 6e-8.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg.schedules.digits import LOG2_E, Double, Number, choose, exact, exp2, log2

Curve: TypeAlias = tuple[jax.Array, jax.Array]  # how high it is, and how far it is from the top


def between(begin: chex.Numeric, end: chex.Numeric, fall: Number, rise: Number) -> jax.Array:
    """From `begin` to `end`, given a curve that falls from 1 to 0 and its mirror image that rises.

    The ends are hit exactly, and rounding cannot carry the value past either of them.
    """
    fall, rise = (x.high if isinstance(x, Double) else x for x in (fall, rise))
    begin, end = (x if isinstance(x, jax.Array) else np.asarray(x, float) for x in (begin, end))
    library = jnp if isinstance(begin, jax.Array) or isinstance(end, jax.Array) else np
    falls = begin >= end
    # Counted from the lower value, so that nothing cancels however small the result is.
    low, high = library.where(falls, end, begin), library.where(falls, begin, end)
    value = low + (high - low) * jnp.where(falls, fall, rise)
    value = jnp.where(value > high, high, value)
    return jnp.where(rise <= 0, begin, jnp.where(fall <= 0, end, value))


def half_wave(x: jax.Array, rest: jax.Array) -> Curve:
    """(1 - cos(pi x)) / 2 and one minus it, given `rest = 1 - x`."""
    # sin^2 of half the angle, and not 1 + cos: that is exactly 0 for the last 77 of 10^6 steps.
    rise, fall = (jnp.where(y >= 1, 1, jnp.sin(jnp.pi / 2 * y) ** 2) for y in (x, rest))
    return rise, fall


def exact_half_wave(x: Number, rest: Number) -> tuple[Double, Double]:
    """The same with enough digits to be raised to a power.

    sin^2 of y, at most pi / 4, by its series: y^2 (1 - y^2 / 3 + 2 y^4 / 45 - ...).
    """
    if x.high.dtype != jnp.float32:
        rise, fall = half_wave(x.high, rest.high)
        return Double.of(rise), Double.of(fall)
    early = x.high < 0.5
    near = choose(early, x, rest)
    square = near * near * (np.pi**2 / 4)
    y = square.high
    series = -1 / 315 + y * (2 / 14175 + y * (-2 / 467775 + y * (4 / 42567525)))
    small = square * (Double.of(y * (-1 / 3 + y * (2 / 45 + y * series))) + 1)
    return choose(early, small, 1 - small), choose(early, 1 - small, small)


def is_one(exponent: chex.Numeric) -> bool:
    """Whether nothing is to be raised to a power, at no cost."""
    return isinstance(exponent, int | float) and exponent == 1


def power(x: Double, rest: Double, exponent: chex.Numeric) -> Curve:
    """`x^exponent` and one minus it, given `rest = 1 - x`.

    An error of x is multiplied by the exponent: hence all its digits.
    """
    if is_one(exponent):
        return x.high, rest.high
    inside, logarithm = _raised(x, rest, exponent)
    fall = -jnp.expm1(logarithm.high / LOG2_E)
    return jnp.where(inside, exp2(logarithm), x.high), jnp.where(inside, fall, rest.high)


def exact_power(x: Double, rest: Double, exponent: chex.Numeric) -> tuple[Double, Double]:
    """The same with all its digits, for what is then raised to another power."""
    if is_one(exponent):
        return x, rest
    inside, logarithm = _raised(x, rest, exponent)
    rise, fall = Double.of(exp2(logarithm)), Double.of(-jnp.expm1(logarithm.high / LOG2_E))
    early = fall.high < 0.5
    rise, fall = choose(early, 1 - fall, rise), choose(early, fall, 1 - rise)
    # One step of Newton's: by how much the logarithm of the result is not the one it should have.
    missed = (logarithm - log2(rise, fall)).high / LOG2_E
    more = jax.lax.stop_gradient(rise.high * missed)
    return choose(inside, rise + more, x), choose(inside, fall - more, rest)


def _raised(x: Double, rest: Double, exponent: chex.Numeric) -> tuple[jax.Array, Double]:
    """Whether x has a logarithm, which at the ends is not finite or 0, and that of the power."""
    inside = (x.high > 0) & (rest.high > 0)
    half = Double.of(0.5, x.high.dtype)
    base = choose(inside, x, half), choose(inside, rest, half)
    return inside, log2(*base) * exact(exponent)


def bend(x: Double, rest: Double, rate: chex.Numeric) -> Curve:
    """(rate^(1 - x) - rate) / (1 - rate), an exponential that hits both ends, and one minus it."""
    bent = Double.of(-log2(exact(rate)), x.high.dtype)
    straight = jnp.abs(bent.high) < 1e-6  # there it is 0 / 0
    bent = choose(straight, Double.of(1e-6, x.high.dtype), bent)
    rise = _grown(x * bent) / _grown(bent)
    return rise, _grown(-rest * bent) / _grown(-bent)


def _grown(exponent: Double) -> jax.Array:
    """2^exponent - 1."""
    near = jnp.abs(exponent.high) < 1
    short = jnp.expm1(jnp.where(near, exponent.high, 0) / LOG2_E)
    return jnp.where(near, short, exp2(exponent) - 1)


def geometric(begin: chex.Numeric, end: chex.Numeric, left: Double, done: Double) -> jax.Array:
    """The geometric way, begin (end / begin)^done, from the nearer end; both are positive."""
    begin, end = jnp.asarray(begin), jnp.asarray(end)
    safe = (begin > 0) & (end > 0)
    ratio = log2(Double.of(jnp.where(safe, end, 1))) - log2(Double.of(jnp.where(safe, begin, 1)))
    early = done.high < 0.5
    value = jnp.where(early, begin, end) * exp2(choose(early, done, -left) * ratio)
    inside = safe & (done.high > 0) & (left.high > 0)
    return jnp.where(inside, value, jnp.where(left.high > 0, begin, end))


def _one_minus_root(x: jax.Array, rest: jax.Array) -> Curve:
    # The root of 0 has an infinite slope, which times 0 would be a NaN: it is never taken.
    root = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)
    return x / (1 + root), root


# By the name of the shape; all rise as x goes from 0 to 1. A cooldown falls along the same curve:
# it asks with x and rest exchanged. Those in `EXACT` magnify an error, and ask for all the digits.
CURVES: dict[str, Callable[[Any, Any, Any], tuple]] = {
    "linear": lambda x, rest, _: (x, rest),
    "cosine": lambda x, rest, _: half_wave(x, rest),
    "power": lambda x, rest, ramp: power(x, rest, ramp.power),
    "1-sqrt": lambda x, rest, _: _one_minus_root(x, rest),
    "square": lambda x, rest, _: (x * (1 + rest), rest**2),  # 1 - (1 - x)^2
    "exponential": lambda x, rest, ramp: bend(x, rest, ramp.rate),
    "constant": lambda x, rest, _: (jnp.where(x < 1, 0.0, 1.0), jnp.where(rest > 0, 1.0, 0.0)),
    "log": lambda x, rest, ramp: _log(x, rest, ramp.steps),
}
EXACT = ("power", "exponential")


def _log(x: jax.Array, rest: jax.Array, steps: chex.Numeric) -> Curve:
    """log(1 + step) / log(1 + steps), and one minus it."""
    whole = jnp.log1p(steps)
    return jnp.log1p(x * steps) / whole, -jnp.log1p(-rest * steps / (1 + steps)) / whole
