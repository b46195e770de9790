"""The frozen pytree dataclass that every object of the library is made of, and how they print and compare."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T", bound=type)
Array = np.ndarray | np.generic | jax.Array


def static(**options: Any) -> Any:
    """A field that is structure (an axis, a pattern, a mode), not data: part of the tree's definition."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(
    frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static)
)
def pytree(cls: T) -> T:
    """Makes `cls` a frozen dataclass whose fields are the children of a JAX pytree.

    Objects print as the call that makes them, compare and hash by value, and pickle. JAX rebuilds
    them without calling `__init__`, so a check in `__post_init__` sees only what a user wrote, never
    the tracers and placeholders that transformations put in the fields.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)
    data = [f.name for f in fields if not f.metadata.get("static")]
    fixed = [f.name for f in fields if f.metadata.get("static")]

    def flatten(obj):
        return [getattr(obj, name) for name in data], tuple(getattr(obj, name) for name in fixed)

    def flatten_with_keys(obj):
        children, structure = flatten(obj)
        return list(zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)), structure

    def unflatten(structure, children):
        obj = object.__new__(cls)
        vars(obj).update(zip(data + fixed, (*children, *structure), strict=True))
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    methods = {
        "__eq__": lambda a, b: (
            _key(vars(a)) == _key(vars(b)) if type(a) is type(b) else NotImplemented
        ),
        "__hash__": lambda obj: hash((cls, _key(vars(obj)))),
        "__repr__": vars(cls).get("__repr__", call_text),
    }
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def call_text(obj: Any) -> str:
    """The shortest call that makes `obj`."""
    return f"{type(obj).__name__}({', '.join(arguments_text(obj))})"


def arguments_text(obj: Any) -> list[str]:
    """The arguments of that call: the first by position, those at their default left out."""
    texts = []
    for index, field in enumerate(dataclasses.fields(obj)):
        value = getattr(obj, field.name)
        if (
            isinstance(value, Tracer)
            or field.default is dataclasses.MISSING
            or _key(field.default) != _key(value)
        ):
            name = "" if index == 0 and not field.kw_only else f"{field.name}="
            texts.append(name + number_text(value))
    return texts


def number_text(value: Any) -> str:
    """The shortest text that reads back as exactly `value`; a list of numbers would be an array, so it is a tuple."""
    if isinstance(value, Array) and not isinstance(value, Tracer):
        if jnp.issubdtype(value.dtype, jnp.number) and value.size <= 64:
            return repr(
                np.asarray(value, None if value.dtype.kind in "iufc" else np.float32).tolist()
            )
        return f"<{value.dtype}{list(value.shape)}>"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {number_text(item)}' for key, item in value.items())}}}"
    if type(value) in (list, tuple):
        return f"({', '.join(map(number_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _key(value: Any) -> Any:
    """What `value` is compared and hashed by: a number by itself, an array by its shape and numbers."""
    if isinstance(value, Array) and not isinstance(value, Tracer):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        value = np.asarray(jax.random.key_data(jnp.asarray(value)) if is_key else value)
        return value.item() if value.ndim == 0 else (value.shape, tuple(value.ravel().tolist()))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return value
