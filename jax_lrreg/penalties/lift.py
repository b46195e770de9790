"""How a penalty on one array meets the arrays of a tree: which they are, and what it is for each of them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import Leaf, is_parameter, leaves, widened
from jax_lrreg._check import require
from jax_lrreg.schedules import Schedule


def parameters(params: Any) -> tuple[list[int], list[Leaf]]:
    """The leaves of a tree that hold real or complex numbers, and where they stand among all leaves."""
    chosen = [
        (index, leaf) for index, leaf in enumerate(leaves(params)) if is_parameter(leaf.value)
    ]
    return [index for index, _ in chosen], [leaf for _, leaf in chosen]


def replaced(penalty: Any, /, **changes: Any) -> Any:
    """A copy with other fields, not checked again: a user wrote the penalty, and we only fill it in."""
    copy = object.__new__(type(penalty))
    copy.__dict__.update(penalty.__dict__, **changes)
    return copy


def resolved(
    penalty: Any, leaf: Leaf, step: Any, found: dict[Any, Any], scheduled: bool = True
) -> Any:
    """The penalty as it is for one array: schedules at `step`, trees at the path, numbers in the array's precision.

    What is worked out on the way is kept in `found` for the next array. Without `scheduled`, for a report, schedules
    and numbers stay as they were written.
    """
    changes: dict[str, Any] = {}
    for field in fields(penalty):  # type: ignore[arg-type]
        value, name = getattr(penalty, field.name), (id(penalty), field.name)
        if isinstance(value, Schedule):
            if not scheduled:
                continue
            if step is None:
                raise ValueError(
                    f"{type(penalty).__name__}: `{field.name}` is a schedule, so `step` must be given"
                )
            value = found[name] if name in found else found.setdefault(name, value(step))
        elif (
            value is not None
            and not field.metadata.get("static")
            and not jax.tree_util.all_leaves([value])
        ):
            if name not in found:
                found[name] = {entry.path: entry.value for entry in leaves(value)}
            allowed = f"a tree like the parameters, but it has nothing at {leaf.path!r}"
            require(leaf.path in found[name], penalty, field.name, sorted(found[name]), allowed)
            value = found[name][leaf.path]
        if isinstance(value, jax.Array | np.ndarray | np.generic) and scheduled:
            value = jnp.asarray(value, precision(leaf.value, value))
        changes[field.name] = value
    penalty = replaced(penalty, **changes)
    penalty.fits(leaf)
    return penalty


def aligned(
    owner: str, argument: str, tree: Any, items: Sequence[Leaf], scalars: bool = False
) -> list[Any]:
    """The arrays of `tree`, an argument of `owner`, that stand at the paths of `items`."""
    given = leaves(tree)
    by_path = {leaf.path: leaf.value for leaf in given}
    result = []
    for index, item in enumerate(items):
        same = len(given) == len(items) and given[index].path == item.path
        require(
            same or item.path in by_path,
            owner,
            argument,
            sorted(by_path),
            f"a tree like `params`, with {item.path!r}",
        )
        value = given[index].value if same else by_path[item.path]
        allowed = f"of shape {jnp.shape(item.value)} at {item.path!r}"
        fits = jnp.shape(value) == jnp.shape(item.value) or (scalars and jnp.ndim(value) == 0)
        require(fits, owner, argument, f"shape {jnp.shape(value)}", allowed)
        result.append(value)
    return result


def with_new(values: Sequence[Any], where: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """`values` with the `new` ones in the places `where`."""
    result = list(values)
    for index, value in zip(where, new, strict=True):
        result[index] = value
    return result


def precision(w: Any, value: Any) -> Any:
    """The dtype in which `value` meets `w`: that of `widened(w)`, or of its real part where `value` is real."""
    dtype = widened(w).dtype
    return (
        jnp.promote_types(dtype, jnp.complex64)
        if jnp.iscomplexobj(value)
        else jnp.finfo(dtype).dtype
    )
