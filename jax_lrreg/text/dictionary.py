"""`to_dict` and `from_dict`: objects as plain data that JSON takes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._struct import Array, is_pytree
from jax_lrreg.text import vocabulary
from jax_lrreg.text.vocabulary import array_of, unknown

MAX_ENTRIES = 1_000_000  # numbers, texts, lists and dictionaries, together


def to_dict(obj: object) -> dict[str, Any]:
    """A schedule or penalty as plain data for JSON: its `type` and all its fields.

    Fields at their default are there too. Arrays become nested lists of exactly their numbers,
    however long they are. A list that could be mistaken, a tuple of numbers where an array is
    expected or the other way round, is written as `{"type": "tuple" or "array", "items": [...]}`.

    Raises:
        ValueError: it holds a function or a traced value, or more than 1,000,000 entries.
        TypeError: it is no schedule or penalty.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> to_dict(Linear(0.1, steps=100))
        {'type': 'Linear', 'init_value': 0.1, 'steps': 100, 'end_value': 0.0}
    """
    if not vocabulary.is_whole(obj):
        raise TypeError(f"to_dict: `obj` must be a schedule or a penalty, got {type(obj).__name__}")
    try:
        plain = _plain_object(obj)
    except RecursionError:
        raise ValueError("to_dict: nested too deeply") from None
    _require_small("to_dict", plain)
    return plain


def from_dict(d: Mapping[str, object]) -> Any:
    """The object that `to_dict` described. Fields at their default may be left out.

    Args:
        d: of at most 1,000,000 entries, 150 levels deep; it may come from anyone.

    Raises:
        ValueError: a type or a field is unknown, or missing and without a default; named in the
            message. What the classes themselves refuse passes through, as a ValueError or a
            TypeError.
        TypeError: it is no dictionary.

    Example:
        >>> from_dict({"type": "Linear", "init_value": 0.1, "steps": 100})
        Linear(0.1, steps=100)
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"from_dict: `d` must be a dictionary, got {type(d).__name__}")
    if "type" not in d:
        keys = ", ".join(f"{key!r:.60}" for key in itertools.islice(d, 10)) or "(none)"
        raise ValueError(f"from_dict: there is no `type` among the keys {keys}")
    _require_small("from_dict", d)
    obj = _object(d)
    if not vocabulary.is_whole(obj):
        raise ValueError(f"from_dict: {d['type']!r} is not the type of a schedule or a penalty")
    return obj


def _require_small(owner: str, d: Mapping[str, object]) -> None:
    """Refuses what is too large or too deep, level by level, before anything is made of it."""
    # n dictionaries, each of which holds the next one twice, have 2^n entries: no more than the
    # limit is ever taken out of a level.
    level: list[Any] = [d]
    entries = 0
    for _ in range(vocabulary.MAX_DEPTH):
        entries += len(level)
        if entries > MAX_ENTRIES:
            raise ValueError(f"{owner}: there are more than {MAX_ENTRIES:,} entries")
        if any(
            isinstance(value, int) and abs(value) >= 10**vocabulary.MAX_DIGITS for value in level
        ):
            raise ValueError(
                f"{owner}: a whole number has more than {vocabulary.MAX_DIGITS} digits"
            )
        inner = (x.values() if isinstance(x, Mapping) else x for x in level if _holds(x))
        level = [*itertools.islice(itertools.chain.from_iterable(inner), MAX_ENTRIES + 1)]
        if not level:
            return
    raise ValueError(f"{owner}: nested too deeply, in more than {vocabulary.MAX_DEPTH} levels")


def _holds(value: object) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _plain_object(obj: Any) -> dict[str, Any]:
    name = vocabulary.name_of(type(obj))
    arguments = vocabulary.parameters(type(obj))
    plain: dict[str, Any] = {"type": name}
    for field in dataclasses.fields(obj):
        value, owner = getattr(obj, field.name), f"{name}: `{field.name}`"
        plain[field.name] = _plain(value, owner, vocabulary.takes_tuple(arguments[field.name]))
    return plain


def _plain(value: object, owner: str, is_tuple: bool = False) -> Any:
    """`value` in plain data, as it reads back where a list is a tuple, or else an array.

    `owner` is named if it cannot be.
    """
    if is_pytree(type(value)):
        return _plain_object(value)
    if isinstance(value, Array):
        return _plain_array(value, owner, is_tuple)
    if isinstance(value, tuple | list):
        return _plain_tuple(value, owner, is_tuple)
    if isinstance(value, dict):
        return _plain_dict(value, owner)
    if isinstance(value, float) and not math.isfinite(value):
        return {"type": "float", "value": repr(value)}
    if isinstance(value, int | float | str | None):
        return value
    raise ValueError(f"{owner} is {value!r:.300}, which has no text")


def _plain_tuple(value: tuple | list, owner: str, is_tuple: bool) -> Any:
    items = [_plain(item, owner) for item in value]
    mistaken = not is_tuple and isinstance(array_of(items), np.ndarray)
    return {"type": "tuple", "items": items} if mistaken else items


def _plain_dict(value: dict, owner: str) -> dict[str, Any]:
    if not all(isinstance(key, str | int) for key in value):
        raise ValueError(f"{owner} has other keys than texts and whole numbers, which have no text")
    named = {key: _plain(item, owner) for key, item in value.items()}
    if all(isinstance(key, str) for key in named) and "type" not in named:
        return named
    return {"type": "dict", "items": [list(pair) for pair in named.items()]}


def _plain_array(value: Array, owner: str, is_tuple: bool) -> Any:
    if not known(value):
        raise ValueError(f"{owner} is traced and has no number yet")
    kinds = (jnp.integer, jnp.floating, jnp.bool_)
    if not any(jnp.issubdtype(value.dtype, numbers) for numbers in kinds):
        raise ValueError(f"{owner} is an array of {value.dtype}, which has no text")
    array = np.asarray(value)
    native = array.dtype.kind in "biuf"  # bfloat16 and its like are not
    array = array if native else array.astype(np.float32)
    if array.ndim == 0:
        return _plain(array.item(), owner)
    numbers = array.tolist()  # Python's floats: every digit of a float32, too
    if not np.all(np.isfinite(array)):
        # JSON has no infinity.
        numbers = np.vectorize(repr, otypes=[object])(array.astype(float)).tolist()
    back = () if is_tuple else array_of(numbers)
    if isinstance(back, np.ndarray) and back.shape == array.shape:
        return numbers
    return {"type": "array", "shape": list(array.shape), "items": numbers}


def _read(value: object, is_tuple: bool = False) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list | tuple):
        array = value if is_tuple else array_of(list(value))
        return array if isinstance(array, np.ndarray) else tuple(map(_read, value))
    if not isinstance(value, Mapping):
        return value
    if "type" not in value:
        return {key: _read(item) for key, item in value.items()}
    kind = value["type"]
    if not isinstance(kind, str) or kind not in _TAGGED:
        return _object(value)
    try:
        return _TAGGED[kind](value)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"from_dict: the {kind} cannot be read ({why})") from None


def _read_array(d: Mapping[str, Any]) -> np.ndarray:
    items = np.asarray(d["items"])
    items = items.astype(float) if items.dtype.kind == "U" else items
    if items.dtype.kind not in "biuf":
        raise ValueError("it holds other things than numbers")
    return items.reshape(d["shape"])


_TAGGED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "float": lambda d: float(d["value"]),
    "array": _read_array,
    "tuple": lambda d: tuple(map(_read, d["items"])),
    "dict": lambda d: {key: _read(item) for key, item in d["items"]},
}


def _object(d: Mapping[str, object]) -> Any:
    name = d["type"]
    classes = {key: thing for key, thing in vocabulary.names().items() if isinstance(thing, type)}
    if not isinstance(name, str) or name not in classes:
        raise unknown("type", str(name), classes)
    given = {key: value for key, value in d.items() if key != "type"}
    return vocabulary.made(name, classes[name], given, _read)
