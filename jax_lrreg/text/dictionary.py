"""`to_dict` and `from_dict`: objects as plain data that JSON takes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import Tracer
from jax_lrreg.text.names import (
    arrays,
    call,
    check_arguments,
    is_ours,
    is_whole_object,
    name_of,
    names,
    place,
    unknown,
)


def to_dict(obj: Any) -> dict[str, Any]:
    """A schedule or penalty as plain data for JSON: its `type` and all its fields, defaults included.

    Arrays become nested lists of exactly their numbers. A list that could be mistaken, a tuple of numbers where an
    array is expected or the other way round, is written as `{"type": "tuple" or "array", "items": [...]}`.

    Raises:
        ValueError: it holds a function or a traced value.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> to_dict(Linear(0.1, steps=100))
        {'type': 'Linear', 'init_value': 0.1, 'steps': 100, 'end_value': 0.0}
    """
    if not is_whole_object(obj):
        raise TypeError(f"to_dict: `obj` must be a schedule or a penalty, got {type(obj).__name__}")
    return _plain(obj, "array", "")


def from_dict(d: Mapping[str, Any]) -> Any:
    """The object that `to_dict` described.

    Raises:
        ValueError: a type or a field is unknown, or missing and without a default; named in the message.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"from_dict: `d` must be a dictionary, got {type(d).__name__}")
    if "type" not in d:
        raise ValueError(
            f"from_dict: there is no `type` among the keys {', '.join(map(repr, d)) or '(none)'}"
        )
    try:
        obj = _object(d)
    except RecursionError:
        raise ValueError("from_dict: nested too deeply") from None
    if not is_whole_object(obj):
        raise ValueError(f"from_dict: {d['type']!r} is not the type of a schedule or a penalty")
    return obj


def _object(d: Mapping[str, Any]) -> Any:
    name = d["type"]
    classes = {key: thing for key, thing in names().items() if isinstance(thing, type)}
    if not isinstance(name, str) or name not in classes:
        raise unknown("type", str(name), classes)
    given = {key: value for key, value in d.items() if key != "type"}
    check_arguments(name, classes[name], given)
    return call(
        name,
        classes[name],
        {key: _read(value, place(classes[name], key)) for key, value in given.items()},
    )


def _plain(value: Any, where: str, owner: str) -> Any:
    """`value` as it is written in such a place, see `names.place`. `owner` is named if it cannot be."""
    if is_ours(value):
        name = name_of(type(value))
        plain: dict[str, Any] = {"type": name}
        for field in dataclasses.fields(value):
            own = place(type(value), field.name)
            plain[field.name] = _plain(getattr(value, field.name), own, f"{name}: `{field.name}`")
        return plain
    if isinstance(value, Tracer):
        raise ValueError(f"{owner} is traced and has no number yet")
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain_array(value, where, owner)
    if isinstance(value, tuple | list):
        items = [_plain(item, _inside(where), owner) for item in value]
        ambiguous = where == "array" and isinstance(arrays(items), np.ndarray)
        return {"type": "tuple", "items": items} if ambiguous else items
    if isinstance(value, dict):
        named = {key: _plain(item, where, owner) for key, item in value.items()}
        if all(isinstance(key, str) for key in named) and "type" not in named:
            return named
        return {"type": "dict", "items": [list(pair) for pair in named.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"type": "float", "value": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{owner} is {value!r}, which has no text")


def _plain_array(value: Any, where: str, owner: str) -> Any:
    if not any(
        jnp.issubdtype(value.dtype, numbers) for numbers in (jnp.integer, jnp.floating, jnp.bool_)
    ):
        raise ValueError(f"{owner} is an array of {value.dtype}, which has no text")
    array = np.asarray(value)
    array = (
        array if array.dtype.kind in "biuf" else array.astype(np.float32)
    )  # bfloat16 and its like
    if array.ndim == 0:
        return _plain(array.item(), where, owner)
    numbers = array.tolist()
    if not np.all(np.isfinite(array)):
        numbers = np.vectorize(repr, otypes=[object])(array.astype(float)).tolist()
    same = (
        where == "array"
        and np.shape(arrays(numbers)) == array.shape
        and isinstance(arrays(numbers), np.ndarray)
    )
    return numbers if same else {"type": "array", "shape": list(array.shape), "items": numbers}


def _read(value: Any, where: str) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list | tuple):
        array = arrays(list(value)) if where == "array" else None
        return (
            array
            if isinstance(array, np.ndarray)
            else tuple(_read(item, _inside(where)) for item in value)
        )
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    try:
        if "type" not in value:
            return {key: _read(item, where) for key, item in value.items()}
        if kind == "float":
            return float(value["value"])
        if kind == "array":
            items = np.asarray(value["items"])
            return (items.astype(float) if items.dtype.kind == "U" else items).reshape(
                value["shape"]
            )
        if kind == "tuple":
            return tuple(_read(item, "array") for item in value["items"])
        if kind == "dict":
            return {key: _read(item, where) for key, item in value["items"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"from_dict: the {kind} cannot be read ({type(error).__name__}: {error})"
        ) from None
    return _object(value)


def _inside(where: str) -> str:
    return "static" if where == "static" else "array"
