"""The frozen pytree dataclass that every object is made of; how objects print and compare.

An object prints as the call that makes it, short enough to look at. Numbers, arrays of up to 8 of
them and tuples of up to 64 keep every digit, and `text.parse` reads them back equal. Longer arrays
and trees of more than 8 leaves print as their shape, `<float32[64, 10]>` or `<dict of 12 leaves,
8,970 numbers>`, which is no text that reads back: `text.to_dict` keeps all.
"""

import dataclasses
import re
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T", bound=type)
Array = np.ndarray | np.generic | jax.Array

_PLAIN = (dict, list, tuple)
LONGEST_ARRAY = 8  # numbers, or leaves of a tree: a line or two, as float32 numbers take 20 digits
LONGEST_TUPLE = 64  # what is written one by one by hand, such as the boundaries of a staircase


def static(**options: Any) -> Any:
    """A field of a `pytree` that is structure: an axis, a pattern, a mode.

    Such a field is part of the tree's definition, not a leaf of it: it is never traced, batched or
    differentiated, and `jit` compiles anew when it changes. It must be hashable.

    Args:
        options: those of `dataclasses.field`, such as `default`.

    Example:
        >>> @pytree
        ... class Scale:
        ...     factor: float
        ...     axis: int = static(default=0)
        >>> jax.tree.leaves(Scale(2.0, axis=1))
        [2.0]
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(
    frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static)
)
def pytree(cls: T) -> T:
    """Makes `cls` a frozen dataclass whose fields are the children of a JAX pytree.

    Its objects print as the call that makes them, compare and hash by value, and pickle. Every
    field may be traced, batched and differentiated, but for those declared `static()`. JAX rebuilds
    objects without calling `__init__`: a check in `__post_init__` sees what a user wrote, and never
    the tracers and placeholders that transformations put in the fields.

    This is how to write a schedule, a penalty or a controller of one's own; `text.register` makes
    its text read back.

    Example:
        >>> @pytree
        ... class Line:
        ...     slope: float
        ...     offset: float = 0.0
        ...     def __call__(self, x):
        ...         return self.slope * x + self.offset
        >>> Line(2.0, offset=1.0)
        Line(2.0, offset=1.0)
        >>> jax.grad(lambda line: line(3.0))(Line(2.0))
        Line(3.0, offset=1.0)
        >>> jax.vmap(lambda line: line(3.0))(Line(jnp.arange(3.0), jnp.zeros(3))).tolist()
        [0.0, 3.0, 6.0]
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    data = [field.name for field in _children_of(cls)]
    fixed = [field.name for field in dataclasses.fields(cls) if field.name not in data]

    def flatten(obj):
        return [getattr(obj, name) for name in data], tuple(getattr(obj, name) for name in fixed)

    def flatten_with_keys(obj):
        children, structure = flatten(obj)
        return list(zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)), structure

    # `jax.tree_util.register_dataclass` would call `__init__`, and with it the checks, at every
    # unflatten.
    def unflatten(structure, children):
        obj = object.__new__(cls)
        vars(obj).update(zip(data + fixed, (*children, *structure), strict=True))
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    own = vars(cls).get("__repr__", call_text)
    for name, method in {"__eq__": _equal, "__hash__": _hash, "__repr__": own}.items():
        setattr(cls, name, method)
    return cls


def _children_of(cls: Any) -> list[dataclasses.Field]:
    """The fields that are no structure, in the order of the tree's children."""
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("static")]


def is_pytree(cls: object) -> bool:
    """Whether `cls` is a class that `pytree` made, itself and not only one of its bases."""
    return isinstance(cls, type) and vars(cls).get("__eq__") is _equal


def call_text(obj: object) -> str:
    """The shortest call that makes `obj`."""
    return f"{type(obj).__name__}({', '.join(arguments_text(obj))})"


def arguments_text(obj: Any, skip: int = 0) -> list[str]:
    """The arguments of that call but for the first `skip`, which are not even looked at.

    The very first stands by position, the others by name; those at their default are left out.
    """
    texts = []
    for index, field in enumerate(dataclasses.fields(obj)[skip:], skip):
        value, default = getattr(obj, field.name), field.default
        # A default is never an array. Whoever asked for the numbers of a long one would wait for a
        # device.
        array = isinstance(value, Tracer) or getattr(value, "ndim", 0) > 0
        if array or default is dataclasses.MISSING or not _same(default, value):
            name = "" if index == 0 and not field.kw_only else f"{field.name}="
            texts.append(name + number_text(value))
    return texts


def number_text(value: object) -> str:
    """The text of a value: what makes it, or its shape where it is long.

    A list is written as a tuple, since a list of numbers is an array to `text.parse`.

    >>> print(number_text([0.1, np.float32(2), np.arange(3), np.ones((3, 4))]))
    (0.1, 2.0, [0, 1, 2], <float64[3, 4]>)
    """
    if isinstance(value, Tracer):
        return f"<traced {value.dtype}{list(value.shape)}>"
    if isinstance(value, Array):
        return _array_text(value)
    if value is None or is_pytree(type(value)):
        return repr(value)
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:  # a named tuple prints as no tuple
        return _tree_text(value, _leaves(value))
    if not jax.tree_util.all_leaves([value]):  # a tree of others: an optimizer's state, a module
        return _shape_text(value, _leaves(value))
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))  # an address says nothing to a reader


def _tree_text(value: dict | list | tuple, leaves: list[object]) -> str:
    named = isinstance(value, dict)
    tree = named or any(isinstance(leaf, Array) for leaf in leaves)
    if len(leaves) > (LONGEST_ARRAY if tree else LONGEST_TUPLE):
        return _shape_text(value, leaves)
    if named:
        items = (f"{key!r}: {number_text(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return f"({', '.join(map(number_text, value))}{',' if len(value) == 1 else ''})"


def _array_text(value: Array) -> str:
    readable = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.number, jnp.bool_, np.str_))
    if not readable or value.size > LONGEST_ARRAY or not _at_hand(value):
        return f"<{value.dtype}{list(value.shape)}>"
    native = value.dtype.kind in "iufcbU"  # bfloat16 and its like are not
    return repr(np.asarray(value, None if native else np.float32).tolist())


def _at_hand(value: object) -> bool:
    """Whether this process can read the numbers, which may be donated, or on other hosts."""
    if not isinstance(value, jax.Array):
        return True
    return not value.is_deleted() and (value.is_fully_addressable or value.is_fully_replicated)


def _shape_text(value: object, leaves: list[object]) -> str:
    numbers = sum(x.size for x in leaves if isinstance(x, Array))
    size = f", {numbers:,} numbers" if numbers else ""
    return f"<{type(value).__name__} of {len(leaves)} leaves{size}>"


def _leaves(value: object) -> list[Any]:
    """The leaves of a tree, in which an object of ours is one: it prints as its call."""
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        # Not by JAX, which refuses keys that it cannot sort.
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in _leaves(item)]
    return [value] if value is None or is_pytree(type(value)) else jax.tree.leaves(value)


def _equal(a: object, b: object) -> bool:
    return _key(vars(a)) == _key(vars(b)) if type(a) is type(b) else NotImplemented


def _same(default: object, value: object) -> bool:
    return value is None if default is None else _key(default) == _key(value)


def _hash(obj: object) -> int:
    return hash((type(obj), _key(vars(obj))))


def _key(value: object) -> Any:
    """What `value` is compared and hashed by: an array by its shape and numbers."""
    if isinstance(value, Array) and not isinstance(value, Tracer):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        value = np.asarray(jax.random.key_data(jnp.asarray(value)) if is_key else value)
        return value.item() if value.ndim == 0 else (value.shape, tuple(value.ravel().tolist()))
    if isinstance(value, dict):
        named = sorted(value.items(), key=lambda item: repr(item[0]))  # keys may be of many types
        return tuple((name, _key(item)) for name, item in named)
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return value


@pytree
class Fixed:
    """A number as structure, without a leaf."""

    value: bool | int | float = static()


def fixed(tree: Any) -> Any:
    """`tree`, in which numbers at the default of their field are `Fixed`, and so never traced.

    A traced number costs what its field can do at all. With the exponent 1 and the end 0 known, a
    cosine of a traced rate is 70 operations, and 1,200 without: a power, with all its digits.
    """
    # One level of the tree: only `tree` itself is taken apart.
    children, level = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    if jax.tree_util.treedef_is_leaf(level):
        return tree
    if not is_pytree(type(tree)):
        return level.unflatten(map(fixed, children))

    def one(field: dataclasses.Field, child: Any) -> Any:
        left = type(child) in (bool, int, float) and _same(field.default, child)
        return Fixed(child) if left else fixed(child)

    return level.unflatten(map(one, _children_of(type(tree)), children))


def unfixed(tree: Any) -> Any:
    """The tree that `fixed` was given."""

    def is_fixed(node: object) -> bool:
        return isinstance(node, Fixed)

    return jax.tree.map(lambda x: x.value if is_fixed(x) else x, tree, is_leaf=is_fixed)
