"""One voice for every refusal: the public argument, the value received, and what is allowed."""

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable
from typing import SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_lrreg._struct import Array, number_text

_LONGEST = 300  # a message shows this much of a value: a whole file may have been given for a name


def require(
    ok: object,
    owner: object,
    argument: str,
    value: object,
    allowed: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raises unless `ok`, naming the public argument, the value received and what is allowed."""
    if not ok:
        raise error(_refusal(owner, argument, value, allowed))


def require_choice(owner: object, argument: str, value: object, choices: Iterable[str]) -> None:
    """Refuses all but one of a few names, and says which of them is nearest.

    >>> require_choice("warmup", "shape", "cosin", ("linear", "cosine"))
    Traceback (most recent call last):
    ValueError: warmup: `shape` must be one of linear, cosine, got 'cosin'; did you mean 'cosine'?
    """
    choices = tuple(choices)
    if not (isinstance(value, str) and value in choices):
        near = nearest(value, choices) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(_refusal(owner, argument, value, f"one of {', '.join(choices)}") + hint)


def require_number(
    owner: object,
    argument: str,
    value: object,
    allowed: str,
    test: Callable[[np.ndarray], bool | np.bool_ | np.ndarray],
) -> None:
    """Refuses all but a finite real number, or an array of them, that passes `test`.

    A traced value has no number yet and is trusted.
    """
    # A bool is an int to Python, and others' arrays (torch's) have a dtype that JAX does not know.
    plain = np.dtype(type(value) if type(value) in (int, float) else object)
    dtype = value.dtype if isinstance(value, Array | Tracer) else plain
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    require(real, owner, argument, value, allowed, error=TypeError)
    if not isinstance(value, Tracer):
        huge = type(value) is int and abs(value) >= 2**1023  # NumPy would raise an OverflowError
        array = np.asarray(np.inf if huge else value, np.float64)
        fits = np.all(np.isfinite(array)) and np.all(test(array))
        require(fits, owner, argument, value, allowed)


def require_whole(
    owner: object,
    argument: str,
    value: object,
    least: int = 1,
    most: int | None = None,
    allowed: str = "",
) -> int:
    """`value` as a Python int; refuses all but whole numbers from `least` to `most`.

    For what is structure: a count of steps, a size, an axis. Python's integers and NumPy's are
    alike; a bool, a float and a traced number are none.
    """
    upper = "" if most is None else f" and <= {most}"
    allowed = allowed or f"a whole number >= {least}{upper}"
    whole = least - 1
    if isinstance(value, SupportsIndex) and not isinstance(value, bool | np.bool_ | Tracer):
        # An array has the method, but may hold no whole number.
        with contextlib.suppress(TypeError):
            whole = operator.index(value)
    fits = least <= whole and (most is None or whole <= most)
    require(fits, owner, argument, value, allowed)
    return whole


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names among `known` that look most like `name`, whatever their case; none if none does.

    >>> nearest("cosin", ["Cosine", "Constant", "Linear"])
    ['Cosine']
    """
    lower = {key.lower(): key for key in known}
    # difflib takes time in proportion to the product of two lengths: a page is cut at its
    # beginning.
    found = difflib.get_close_matches(name[:60].lower(), lower, n=count, cutoff=0.6)
    return [lower[key] for key in found]


def _refusal(owner: object, argument: str, value: object, allowed: str) -> str:
    name = owner if isinstance(owner, str) else type(owner).__name__
    received = repr(value) if isinstance(value, list) else number_text(value)
    if len(received) > _LONGEST:
        received = f"{received[:_LONGEST]}..."
    return f"{name}: `{argument}` must be {allowed}, got {received}"
