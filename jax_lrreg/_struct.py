"""The frozen pytree dataclass that every object of the library is made of, and how arguments are checked."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T", bound=type)


def static(**options: Any) -> Any:
    """A field that is structure (an axis, a pattern, a mode), not data: part of the tree's definition."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def pytree(cls: T) -> T:
    """Makes `cls` a frozen dataclass whose fields are the children of a JAX pytree.

    Objects print as the call that makes them, compare and hash by value, and pickle. JAX rebuilds
    them without calling `__init__`, so a check in `__post_init__` sees only what a user wrote, never
    the tracers and placeholders that transformations put in the fields.
    """
    own_repr = cls.__dict__.get("__repr__", call_text)
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
        for name, value in zip(data + fixed, (*children, *structure), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    for name, method in {"__eq__": _equal, "__hash__": _hash, "__repr__": own_repr}.items():
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
        traced = isinstance(value, Tracer)
        if field.default is dataclasses.MISSING or traced or _key(field.default) != _key(value):
            positional = index == 0 and not field.kw_only
            texts.append(number_text(value) if positional else f"{field.name}={number_text(value)}")
    return texts


def number_text(value: Any) -> str:
    """The shortest text that reads back as exactly `value`."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer):
        if jnp.issubdtype(value.dtype, jnp.number) and value.size <= 64:
            return repr(np.asarray(value, None if value.dtype.kind in "iuf" else np.float32).tolist())
        return f"<{value.dtype}{list(value.shape)}>"
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {number_text(item)}' for key, item in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(number_text, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(number_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _key(value: Any) -> Any:
    """What `value` is compared and hashed by: a number by itself, an array by its shape and numbers."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(jnp.asarray(value))
        value = np.asarray(value)
        return value.item() if value.ndim == 0 else (value.shape, tuple(value.ravel().tolist()))
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return value


def _fields_key(obj: Any) -> tuple:
    return (type(obj), *(_key(getattr(obj, field.name)) for field in dataclasses.fields(obj)))


def _equal(self: Any, other: Any) -> bool:
    return _fields_key(self) == _fields_key(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_fields_key(self))


def require(ok: Any, owner: Any, argument: str, value: Any, allowed: str, error: type[Exception] = ValueError) -> None:
    """Raises unless `ok`, naming the public argument, the value received and what is allowed."""
    if not ok:
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise error(f"{name}: `{argument}` must be {allowed}, got {number_text(value)}")


def require_number(owner: Any, argument: str, value: Any, allowed: str, test: Callable[[np.ndarray], Any]) -> None:
    """Refuses `value` unless it is a real number, or an array of them, that is finite and passes `test`.

    A traced value has no number yet and is trusted.
    """
    dtype = getattr(value, "dtype", np.dtype(type(value) if type(value) in (int, float) else object))
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    require(real, owner, argument, value, allowed, error=TypeError)
    if not isinstance(value, Tracer):
        array = np.asarray(value, np.float64)
        require(np.all(np.isfinite(array)) and np.all(test(array)), owner, argument, value, allowed)
