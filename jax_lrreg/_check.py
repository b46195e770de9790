"""One voice for every refusal: the public argument, the value received, and what is allowed."""

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_lrreg._struct import number_text


def require(
    ok: Any,
    owner: Any,
    argument: str,
    value: Any,
    allowed: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raises unless `ok`, naming the public argument, the value received and what is allowed."""
    if not ok:
        name = owner if isinstance(owner, str) else type(owner).__name__
        received = repr(value) if isinstance(value, list) else number_text(value)
        raise error(f"{name}: `{argument}` must be {allowed}, got {received}")


def require_number(
    owner: Any, argument: str, value: Any, allowed: str, test: Callable[[np.ndarray], Any]
) -> None:
    """Refuses `value` unless it is a real number, or an array of them, that is finite and passes `test`.

    A traced value has no number yet and is trusted.
    """
    dtype = getattr(
        value, "dtype", np.dtype(type(value) if type(value) in (int, float) else object)
    )
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    require(real, owner, argument, value, allowed, error=TypeError)
    if not isinstance(value, Tracer):
        huge = type(value) is int and abs(value) >= 2**1023  # NumPy would raise an OverflowError
        array = np.asarray(np.inf if huge else value, np.float64)
        fits = np.all(np.isfinite(array)) and np.all(test(array))
        require(fits, owner, argument, value, allowed)


def require_whole(
    owner: Any,
    argument: str,
    value: Any,
    least: int = 1,
    most: int | None = None,
    allowed: str = "",
) -> int:
    """`value` as a Python int; refuses all but whole numbers from `least` to `most`.

    For what is structure: a count of steps, a size, an axis. Python's integers and NumPy's are alike; a bool,
    a float and a traced number are none.
    """
    upper = "" if most is None else f" and <= {most}"
    allowed = allowed or f"a whole number >= {least}{upper}"
    whole = least - 1
    if not isinstance(value, bool | np.bool_ | Tracer):
        with contextlib.suppress(TypeError):
            whole = operator.index(value)
    fits = least <= whole and (most is None or whole <= most)
    require(fits, owner, argument, value, allowed)
    return whole
