"""How a penalty on one array meets a tree: which arrays, and what it is for each of them."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import Leaf, Parameters, is_key, is_parameter, leaves, widened
from jax_lrreg._check import require
from jax_lrreg._struct import Array
from jax_lrreg.schedules import Schedule

Tree: TypeAlias = optax.Params
Step: TypeAlias = chex.Numeric | None
# A number >= 0, an array or a tree of them like the parameters, or a `Schedule`. To the mathematics
# on one array it is a number or an array by then, which no type checker can know.
Strength: TypeAlias = Any
Rest: TypeAlias = Callable[[chex.Array], chex.Array]  # what becomes of what is no parameter
T = TypeVar("T")


def parameters(
    owner: object, params: Tree, argument: str = "params"
) -> tuple[Parameters, Callable[..., Tree]]:
    """The leaves of a tree that hold real or complex numbers, and what puts others in their places.

    `rebuilt(new, rest)` is the tree with `new` for them and `rest(value)` for all else.
    """
    every = leaves(params)
    for path, value in every:
        kind = getattr(value, "dtype", type(value))
        number = jnp.issubdtype(kind, np.number) or jnp.issubdtype(kind, np.bool_)
        allowed = "a tree of arrays and numbers" + (f", also at {path!r}" if path else "")
        known = number or is_key(value) or kind in (bool, int, float, complex)
        require(known, owner, argument, value, allowed, error=TypeError)
    where = [index for index, leaf in enumerate(every) if is_parameter(leaf.value)]

    def rebuilt(new: Sequence[chex.Numeric], rest: Rest = lambda value: value) -> Tree:
        filled = dict(zip(where, new, strict=True))
        values = [filled[i] if i in filled else rest(leaf.value) for i, leaf in enumerate(every)]
        return jax.tree.unflatten(jax.tree.structure(params), values)

    return Parameters(params), rebuilt


def aligned(
    owner: str, argument: str, tree: Tree, items: Sequence[Leaf], scalars: bool = False
) -> list[chex.Numeric]:
    """The arrays of `tree`, an argument of `owner`, that stand at the paths of `items`."""
    # By path, not by order: one tree may hold integers or keys that the other leaves out, and then
    # the n-th leaf of one belongs to another parameter than the n-th of the other.
    given, result = {leaf.path: leaf.value for leaf in leaves(tree)}, []
    for path, w in items:
        allowed = f"a tree like `params`, with {path!r}"
        require(path in given, owner, argument, sorted(given), allowed)
        shape, wanted = jnp.shape(given[path]), jnp.shape(w)
        fits = shape == wanted or (scalars and shape == ())
        require(fits, owner, argument, f"shape {shape}", f"of shape {wanted} at {path!r}")
        result.append(given[path])
    return result


def replaced(penalty: T, /, **changes: object) -> T:
    """A copy with other fields, which are not checked again."""
    # A user wrote the penalty, and we only fill it in. `dataclasses.replace` would run the checks
    # of `__post_init__` again for each array and each trace.
    copy = object.__new__(type(penalty))
    vars(copy).update(vars(penalty), **changes)
    return copy


def resolved(penalty: Any, leaf: Leaf, step: Step, found: dict, scheduled: bool = True) -> Any:
    """The penalty for one array: schedules at `step`, trees at the path, numbers in its precision.

    What is worked out on the way is kept in `found` for the next array. Without `scheduled`, for a
    report, schedules and numbers stay as they were written.
    """
    changes = {}
    for name in (field.name for field in fields(penalty) if not field.metadata.get("static")):
        value, key = getattr(penalty, name), (id(penalty), name)
        if isinstance(value, Schedule):
            value = _at_step(penalty, name, step, found, key) if scheduled else value
        elif value is not None and not jax.tree_util.all_leaves([value]):
            value = _at_path(penalty, name, leaf.path, found, key)
        changes[name] = cast(penalty, name, value, leaf) if scheduled else value
    penalty = replaced(penalty, **changes)
    penalty._fits(leaf)
    return penalty


def _at_step(penalty: object, name: str, step: Step, found: dict, key: tuple) -> jax.Array:
    if step is None:
        owner = type(penalty).__name__
        raise ValueError(f"{owner}: `{name}` is a schedule, so `step` must be given")
    if key not in found:
        found[key] = getattr(penalty, name)(step)
    return found[key]


def _at_path(penalty: object, name: str, path: str, found: dict, key: tuple) -> chex.Numeric:
    if key not in found:
        found[key] = {leaf.path: leaf.value for leaf in leaves(getattr(penalty, name))}
    allowed = f"a tree like the parameters, but it has nothing at {path!r}"
    require(path in found[key], penalty, name, sorted(found[key]), allowed)
    return found[key][path]


def cast(owner: object, name: str, value: Any, leaf: Leaf) -> Any:
    """A number or array in the precision in which it meets the array at `leaf`."""
    # A float64 strength would widen the result of a float32 parameter.
    dtype = jnp.finfo(widened(leaf.value).dtype).dtype
    if jnp.iscomplexobj(value):
        return jnp.asarray(value, jnp.promote_types(dtype, jnp.complex64))
    if isinstance(value, int | float | np.generic):
        # JAX would take a Python int for an int32, and make an infinity of 1e41: times 0, NaN.
        allowed = f"a number that {dtype} holds, as the parameter at {leaf.path!r}"
        fits = abs(float(value)) <= float(jnp.finfo(dtype).max)
        require(fits, owner, name, value, allowed)
        return float(value)
    return jnp.asarray(value, dtype) if isinstance(value, Array) else value


def require_broadcast(penalty: object, leaf: Leaf, shape: Sequence[int], *names: str) -> None:
    """Checks that the named fields are numbers, or arrays that broadcast to `shape`."""
    for name in names:
        value = getattr(penalty, name)
        own = jnp.shape(value) if isinstance(value, Array) else ()
        pairs = zip(own[::-1], shape[::-1], strict=False)
        fits = len(own) <= len(shape) and all(a in (1, b) for a, b in pairs)
        allowed = f"a number or of a shape that broadcasts to {tuple(shape)} at {leaf.path!r}"
        require(fits, penalty, name, f"shape {own}", f"{allowed}; see `vmap` for sweeps")


def require_one(penalty: object, name: str) -> None:
    """Refuses an array in the field that `max_strength` stands for."""
    shape = jnp.shape(getattr(penalty, name))
    require(shape == (), penalty, name, f"shape {shape}", "one number, for `max_strength`")


def require_real(penalty: object, leaf: Leaf) -> None:
    """Refuses a complex array by its path."""
    dtype = jnp.result_type(leaf.value)
    allowed = f"real: {type(penalty).__name__} has no meaning for complex numbers"
    require(not jnp.issubdtype(dtype, np.complexfloating), "on", leaf.path, dtype.name, allowed)


def require_scalar_step(penalty: object, step_size: chex.Numeric) -> None:
    """Refuses a diagonal metric where only the Euclidean prox is known."""
    if jnp.ndim(step_size):
        name = type(penalty).__name__
        why = f"such as that of an adaptive optimizer, {name} has no prox in closed form"
        must = "must be one number for each array: under a diagonal metric"
        raise ValueError(f"{name}: `step_size` {must}, {why}")
