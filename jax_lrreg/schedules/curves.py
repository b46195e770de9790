"""Ways from one value to another: a curve falls from 1 to 0 while its mirror image rises from 0 to 1.

Every curve is computed together with its mirror image, and from the time that is left together with the
time that is done, because a small number must not be computed as one minus a large one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg.schedules.digits import exact, exact_power

CURVES = ("linear", "cosine", "power", "1-sqrt", "square", "exponential", "constant", "log")
LOG2_E = float(np.log2(np.e))


def interpolate(begin: Any, end: Any, fall: jax.Array, rise: jax.Array) -> jax.Array:
    """From `begin` to `end`, given a curve as it falls from 1 to 0 and its mirror image as it rises.

    The ends are hit exactly, and rounding cannot carry the value past either of them.
    """
    library = jnp if isinstance(begin, jax.Array) or isinstance(end, jax.Array) else np
    falls = library.greater_equal(begin, end)
    low, high = library.where(falls, end, begin), library.where(falls, begin, end)
    value = low + (high - low) * jnp.where(falls, fall, rise)
    value = jnp.where(value > high, high, value)
    return jnp.where(rise <= 0, begin, jnp.where(fall <= 0, end, value))


def half_wave(x: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1 - cos(pi x)) / 2 and one minus it, given `rest = 1 - x`."""
    rise, fall = (jnp.where(y >= 1, 1, jnp.sin(jnp.pi / 2 * y) ** 2) for y in (x, rest))
    return rise, fall


def power(x: jax.Array, rest: jax.Array, exponent: Any) -> tuple[jax.Array, jax.Array]:
    """`x^exponent` and one minus it, given `rest = 1 - x`."""
    if isinstance(exponent, int | float) and exponent == 1:
        return x, rest
    inside = (x > 0) & (rest > 0)  # the ends have no finite logarithm
    logarithm = jnp.log1p(-jnp.where(inside & (rest < 0.5), rest, 0.25))
    logarithm = jnp.where(rest < 0.5, logarithm, jnp.log(jnp.where(inside, x, 0.5)))
    curve = exact_power(jnp.where(inside, x, 0.5), exponent)
    return jnp.where(inside, curve, x), jnp.where(inside, -jnp.expm1(exponent * logarithm), rest)


def bend(x: jax.Array, rest: jax.Array, rate: Any) -> tuple[jax.Array, jax.Array]:
    """(rate^(1 - x) - rate) / (1 - rate), an exponential that hits both ends, and one minus it."""
    log = jnp.log if not known(rate) else np.log
    bent = -log(exact(rate))
    bent = jnp.where(
        jnp.abs(bent) < 1e-6, 1e-6, bent
    )  # a straight line, where the formula is 0 / 0
    return jnp.expm1(x * bent) / jnp.expm1(bent), jnp.expm1(-rest * bent) / jnp.expm1(-bent)


def geometric(begin: Any, end: Any, left: jax.Array, done: jax.Array) -> jax.Array:
    """The geometric way, begin (end / begin)^done, counted from the nearer end; both values are positive."""
    safe = (jnp.asarray(begin) > 0) & (jnp.asarray(end) > 0)
    ratio = jnp.log(jnp.where(safe, end, 1) / jnp.where(safe, begin, 1))
    value = jnp.where(done < 0.5, begin * jnp.exp(done * ratio), end * jnp.exp(-left * ratio))
    return jnp.where(safe & (done > 0) & (left > 0), value, jnp.where(left > 0, begin, end))


def curve(
    shape: str, x: jax.Array, rest: jax.Array, parameter: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The rising curve named `shape` at `x`, and one minus it, given `rest = 1 - x`.

    A cooldown falls along the same curve: it asks with `x` and `rest` exchanged. `parameter` is the exponent
    of `power`, the ratio of `exponential`, the duration of `log`.
    """
    if shape == "linear":
        return x, rest
    if shape == "cosine":
        return half_wave(x, rest)
    if shape == "power":
        return power(x, rest, parameter)
    if shape == "exponential":
        return bend(x, rest, parameter)
    if shape == "square":  # 1 - (1 - x)^2
        return x * (1 + rest), rest**2
    if shape == "1-sqrt":  # 1 - sqrt(1 - x), whose slope at the far end is infinite
        root = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)
        return x / (1 + root), root
    if shape == "log":  # log(1 + step) / log(1 + steps)
        whole = jnp.log1p(parameter)
        return jnp.log1p(x * parameter) / whole, -jnp.log1p(
            -rest * parameter / (1 + parameter)
        ) / whole
    return jnp.where(x >= 1, 1.0, 0.0), jnp.where(x >= 1, 0.0, 1.0)  # constant


def require_curve(
    owner: str, shape: Any, allowed: tuple[str, ...], **parameters: tuple[Any, str, Any]
) -> None:
    """Refuses an unknown shape, and a parameter (value, its shape, default) that the shape does not have."""
    require(
        isinstance(shape, str) and shape in allowed,
        owner,
        "shape",
        shape,
        f"one of {', '.join(allowed)}",
    )
    for name, (value, only, default) in parameters.items():
        require_number(owner, name, value, "a positive number", lambda x: x > 0)
        idle = shape != only and known(value) and np.any(np.not_equal(value, default))
        require(not idle, owner, name, value, f"left out, as it belongs to shape={only!r}")
