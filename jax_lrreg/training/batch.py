"""What a batch is: how many examples it has, and what is refused in one by the name of its leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_lrreg._arrays import is_key, known, path_of
from jax_lrreg._check import require

Batch = Any  # a leaf is an array of examples along axis 0, or a scalar or key for all of them

NUMBERS = (np.number, np.bool_, jax.dtypes.extended)  # PRNG keys are of the last kind


def require_batches(
    data: Any,
    owner: str,
    argument: str = "data",
    allowed: str = "an ArrayData or an iterable of batches",
) -> None:
    """Refuses what is no iterable, and arrays, which would be iterated by their rows."""
    arrays = isinstance(data, dict | str | np.ndarray | jax.Array)
    if (
        arrays
        or isinstance(data, type)
        or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__"))
    ):
        got = f"{outline(data)}; make an ArrayData of arrays" if arrays else repr(data)
        raise TypeError(f"{owner}: `{argument}` must be {allowed}, got {got}")


def count_examples(batch: Batch, owner: str, argument: str) -> int | None:
    """How many examples a batch has along axis 0; None where it holds scalars and keys only.

    Refuses, by its name, what is no array of numbers, and arrays that differ in the number of
    examples.
    """
    counts: dict[int, dict[str, str]] = {}
    for name, leaf in _named(batch):
        allowed = "arrays of numbers, no lists and no text"
        # A tree that has lists of numbers has a scalar for each of them, which would be shared by
        # all.
        listed = {name: f"list[{len(leaf)}]"} if type(leaf) is list else None
        require(listed is None, owner, argument, listed, allowed)
        array = as_array(leaf)
        outlined = {name: _outlined(array)}
        numbers = any(jnp.issubdtype(array.dtype, kind) for kind in NUMBERS)
        require(numbers, owner, argument, outlined, allowed)
        if array.ndim:
            counts.setdefault(array.shape[0], outlined)
    allowed = "arrays with equally many examples along axis 0; only a scalar or a key is shared"
    got = {name: text for each in counts.values() for name, text in each.items()}
    require(len(counts) < 2, owner, argument, got, allowed)
    check_mask(batch, owner, argument)
    return next(iter(counts), None)


def check_mask(batch: Batch, owner: str, argument: str, wait: bool = False) -> None:
    """Refuses a `mask` that weighs no examples; one to wait for is trusted, unless to `wait`."""
    if not isinstance(batch, dict) or "mask" not in batch:
        return
    listed, allowed = type(batch["mask"]) is list, "a finite weight >= 0 for each example"
    name = f"{argument}['mask']"
    require(not listed, owner, name, "a list", f"an array, {allowed}")
    mask = as_array(batch["mask"])
    real = any(jnp.issubdtype(mask.dtype, kind) for kind in (np.integer, np.floating, np.bool_))
    weighs = real and mask.ndim > 0
    if weighs and (isinstance(mask, np.ndarray) or (known(mask) and (wait or _is_at_hand(mask)))):
        mask = np.asarray(mask)
        weighs = bool(np.all(np.isfinite(mask) & (mask >= 0)))
    require(weighs, owner, name, mask if mask.ndim < 2 else outline(mask), allowed)


def _is_at_hand(array: jax.Array) -> bool:
    """Whether the numbers lie in the host's memory, so that a look at them costs nothing."""
    ready = getattr(array, "is_ready", None)  # an array of JAX has it, though its type says nothing
    return (
        ready is not None
        and ready()
        and array.is_fully_addressable
        and all(device.platform == "cpu" for device in array.devices())
    )


def _require_no_mask(owner: object, argument: str, batch: Batch) -> None:
    free = isinstance(batch, dict) and "mask" not in batch
    got = outline(batch) if isinstance(batch, dict) else type(batch).__name__
    require(free, owner, argument, got, "dicts without `mask`, which remainder='pad' adds")


def is_own(leaf: object) -> bool:
    """Whether an array has the rows of this process, and not those of all.

    What each process makes of its rows where a mesh is active (`jnp.asarray`), JAX takes for one
    array that is whole on every device: nothing else says that it is another one on each process.
    """
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def outline(batch: Batch) -> Any:
    """A batch in a few words: the type and shape of each array by its name."""
    outlined = {name: _outlined(as_array(leaf)) for name, leaf in _named(batch)}
    return outlined[""] if list(outlined) == [""] else outlined


def _outlined(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def as_array(leaf: Any) -> Any:
    """A leaf of a batch as an array: tensors of other libraries are read as NumPy's."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _named(batch: Batch) -> list[tuple[str, Any]]:
    """The leaves with their names; a list of numbers is one, which JAX would take for a tree."""
    pairs = jax.tree_util.tree_flatten_with_path(batch, is_leaf=_is_list_of_numbers)[0]
    return [(path_of(path), leaf) for path, leaf in pairs]


def _is_list_of_numbers(x: object) -> bool:
    number = int | float | complex | np.generic
    return type(x) is list and bool(x) and all(isinstance(e, number) or _is_scalar(e) for e in x)


def _is_scalar(x: Any) -> bool:
    """Whether a number in a list has been traced with its batch."""
    return isinstance(x, Tracer) and x.ndim == 0 and not is_key(x)


def _leaves(batch: Batch) -> tuple[list[Any], Any]:
    leaves, structure = jax.tree.flatten(batch)
    return [as_array(leaf) for leaf in leaves], structure


def _form(leaves: list[Any]) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in leaves]
