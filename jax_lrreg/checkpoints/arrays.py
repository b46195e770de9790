"""Trees of arrays in a folder, by Orbax, and their paths, shapes and dtypes as JSON.

Orbax gets the leaves under numbers. So what a tree is made of does not matter to it: nodes of our
own, `None`, structure without leaves, typed keys, and empty arrays, which it does not take.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import is_key

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

Records = list[dict[str, Any]]  # a leaf each: its path, shape, dtype, and the kind of a key


def checkpointer() -> "ocp.AsyncCheckpointer":
    """What writes; it has a thread of its own while it does."""
    import orbax.checkpoint as ocp  # half a second, which a run without checkpoints does not pay

    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())


def begin(writer: "ocp.AsyncCheckpointer", folder: Path, values: dict[str, jax.Array]) -> None:
    """Begins to write leaves; returns when they have been copied to the host."""
    import orbax.checkpoint as ocp

    writer.save(folder.absolute(), args=ocp.args.PyTreeSave(values))


def flat(tree: chex.ArrayTree) -> tuple[dict[str, Any], Records]:
    """The leaves by numbers, and what stands under each."""
    values, records = {}, []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        record = record_of(jax.tree_util.keystr(path), leaf)
        records.append(record)
        if 0 not in record["shape"]:
            values[str(number)] = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return values, records


def record_of(path: str, leaf: chex.Array) -> dict[str, Any]:
    """What is to be the same where a leaf is restored."""
    kind = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
    dtype = "key" if kind else jnp.result_type(leaf).name
    return {"path": path, "shape": list(np.shape(leaf)), "dtype": dtype, "key": kind}


def load(
    folder: Path, records: Records, begin: str, like: chex.ArrayTree, owner: str
) -> chex.ArrayTree:
    """The tree whose paths begin so, with the structure, devices and shardings of `like`."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    found = {x["path"]: (str(i), x) for i, x in enumerate(records) if x["path"].startswith(begin)}
    own = {begin + jax.tree_util.keystr(path): leaf for path, leaf in pairs}
    argument = "state" if owner == "fit" else "like"  # which `fit` has not
    _refuse_others(found, own, begin, owner, argument)
    numbers = [found[path][0] for path in own]
    values = _read(folder, {n: x for n, x in zip(numbers, own.values(), strict=True) if np.size(x)})
    leaves = [_placed(values.get(n), x) for n, x in zip(numbers, own.values(), strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _read(folder: Path, wanted: dict[str, chex.Array]) -> dict[str, chex.Array]:
    """The leaves under these numbers, where and of the dtypes that those given are."""
    import orbax.checkpoint as ocp

    if not wanted:
        return {}
    data = {n: jax.random.key_data(x) if is_key(x) else x for n, x in wanted.items()}
    args = {n: _how(x, _is_placed(wanted[n])) for n, x in data.items()}
    request = ocp.args.PyTreeRestore(item=data, restore_args=args, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder.absolute(), args=request)


def _refuse_others(
    found: dict[str, tuple], own: dict[str, chex.Array], begin: str, owner: str, argument: str
) -> None:
    for path in sorted(found.keys() ^ own.keys()):
        has = "the checkpoint has" if path in found else "the checkpoint does not have"
        name = path.removeprefix(begin)
        allowed = "a state of the structure saved"
        raise ValueError(f"{owner}: `{argument}` must be {allowed}: {has} {name!r}")
    for path, leaf in own.items():
        saved, mine = found[path][1], record_of(path, leaf)
        if saved != mine:
            texts = [f"{x['key'] or x['dtype']}{x['shape']}" for x in (saved, mine)]
            name = argument + path.removeprefix(begin)
            raise ValueError(f"{owner}: `{name}` must be {texts[0]}, as saved, got {texts[1]}")


def _how(leaf: chex.Array, placed: bool) -> "ocp.RestoreArgs":
    import orbax.checkpoint as ocp

    if not (placed and isinstance(leaf, jax.Array)):
        # What is nowhere in particular comes through NumPy, so that it stays so.
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _is_placed(leaf: chex.Array) -> bool:
    return isinstance(leaf, jax.Array) and (leaf.committed or len(leaf.sharding.device_set) > 1)


def _placed(value: chex.Array | None, leaf: chex.Array) -> chex.Array:
    if value is None:
        return leaf  # empty: there is nothing that could differ
    if not isinstance(value, jax.Array):
        value = jnp.array(value)  # a copy: it will be donated, and NumPy's memory is not ours
    return (
        jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if is_key(leaf) else value
    )
