"""The mesh, and the rows of a batch on it: cut over its data axis, those of all processes."""

import contextlib
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jax_lrreg._arrays import is_key, known
from jax_lrreg._check import require, require_choice
from jax_lrreg.training.batch import Batch, count_examples, is_own

Stated: TypeAlias = Any  # a `State`, whose file imports this one
Keys: TypeAlias = tuple[Any, ...]  # JAX's path of a leaf


def place(batch: Batch, mesh: Mesh, axis: str | None = None) -> Batch:
    """The batch on the devices of a mesh, cut by its examples over one of the axes.

    Each process gives its own rows: those of all of them, in the order of the mesh, are the batch.
    Scalars and keys are on every device.

    Args:
        batch: a tree of arrays with the examples along axis 0.
        mesh: of Auto axes.
        axis: its axis; None for `data`, or for the first where there is none of that name.

    Raises:
        ValueError: the mesh has no such axis, or the examples do not divide by its size.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> place({"x": np.ones((4, 2))}, mesh)["x"].sharding.spec
        P('data',)
    """
    require(isinstance(mesh, Mesh), "place", "mesh", mesh, "a jax.sharding.Mesh", TypeError)
    own = data_axis(mesh, "place")
    require(own is not None, "place", "mesh", mesh, "a mesh with an Auto axis")
    here = all(known(x) for x in jax.tree.leaves(batch))
    require(here, "place", "batch", batch, "of arrays that are there, outside `jit`", TypeError)
    count_examples(batch, "place", "batch")
    axis = str(own) if axis is None else axis_of("place", axis, mesh)
    return jax.tree.map(lambda x: rows_on(x, mesh, axis, "place", "batch"), batch)


def active_mesh() -> Mesh | None:
    """That of `jax.set_mesh`; None without one, and inside a trace, where nothing is placed."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    with contextlib.suppress(ValueError):  # how JAX says that it is asked inside a trace
        return jax.sharding.get_mesh()
    return None


def require_same_mesh(mesh: Mesh | AbstractMesh, owner: str, argument: str) -> None:
    """Refuses a mesh beside another active one: JAX would, by a page on each input."""
    active = active_mesh()
    if active is None or active == mesh:
        return
    here, there = dict(active.shape), dict(mesh.shape)
    require(here == there, owner, argument, there, f"on the active mesh, {here}")
    if isinstance(mesh, Mesh):
        here, there = ([d.id for d in x.devices.flat] for x in (active, mesh))
        require(here == there, owner, argument, there, f"on the active mesh, of devices {here}")


def data_axis(mesh: Mesh | AbstractMesh, owner: str) -> str | None:
    """The axis that batches are cut over: `data`, else the first.

    None without a mesh, and inside `shard_map`, where each device has its own rows already.
    """
    if mesh.empty:
        return None
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if AxisType.Explicit in kinds.values():
        # In a type of Explicit axes each product of the model would have to say how its result
        # lies: that of two cut arrays, as a gather of logits, is an error deep inside Optax.
        sizes, names = tuple(mesh.shape.values()), tuple(mesh.axis_names)
        types = f"(jax.sharding.AxisType.Auto,) * {len(names)}"
        raise ValueError(
            f"{owner}: `mesh` must have Auto axes only, got Explicit ones; instead:\n"
            f"    mesh = jax.make_mesh({sizes}, {names}, axis_types={types})\n"
            "    with jax.set_mesh(mesh):"
        )
    require(bool(kinds), owner, "mesh", mesh, "a mesh with at least one axis")
    axis = "data" if "data" in kinds else mesh.axis_names[0]
    return axis if kinds[axis] == AxisType.Auto else None


def axis_of(owner: str, axis: str, mesh: Mesh, argument: str = "axis") -> str:
    """The axis, if the mesh has one of that name."""
    require_choice(owner, argument, axis, map(str, mesh.axis_names))
    return axis


def around(state: Stated, owner: str) -> contextlib.AbstractContextManager:
    """The mesh of the state made active, where none is; beside another one it is refused."""
    step = getattr(state, "step", None)  # what is no state is refused by who takes it
    where = getattr(step, "sharding", None) if known(step) else None
    if not isinstance(where, NamedSharding):
        return contextlib.nullcontext()
    if not jax.sharding.get_abstract_mesh().empty:
        require_same_mesh(where.mesh, owner, "state")
        return contextlib.nullcontext()
    return jax.set_mesh(where.mesh)  # type: ignore[arg-type]  of an array, it is never abstract


def cut(batch: Batch, owner: str, pieces: int = 1, divides: bool = True) -> Batch:
    """A traced batch with its examples over the data axis of the active mesh.

    Without this each device computes the whole batch, since nothing says otherwise: NumPy arrays,
    and what is gathered from arrays on every device, are replicated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axis = data_axis(mesh, owner)
    if axis is None:
        return batch
    count = mesh.shape[axis]

    def one(path: Keys, leaf: jax.Array | np.ndarray) -> Any:
        if not np.ndim(leaf):
            return leaf
        if divides:
            several = f", times `accumulate`={pieces}" if pieces > 1 else ""
            allowed = f"a multiple of {count} examples, the mesh's axis {axis!r}{several}"
            name = "batch" + jax.tree_util.keystr(path)
            size = leaf.shape[0]
            require(size % (count * pieces) == 0, owner, name, size, allowed)
        if leaf.shape[0] % count:
            # In an evaluation XLA fills it up, and leaves the filling out. Left free, it would lay
            # the argument on a part of the axis, of 20 rows on 4 of 8 devices, which JAX refuses.
            leaf = jax.lax.with_sharding_constraint(leaf, PartitionSpec())
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(axis))

    return jax.tree_util.tree_map_with_path(one, batch)


def is_cut(owner: str) -> bool:
    """Whether the batches of what is being traced are cut over a mesh."""
    return data_axis(jax.sharding.get_abstract_mesh(), owner) is not None


def micro_batches(x: jax.Array, count: int) -> jax.Array:
    """Rows as [count, rows of a micro-batch, ...].

    On a mesh a micro-batch is every `count`-th row, so that each device has a part of every one. Of
    neighbours, each micro-batch would lie on a part of the devices: all would fetch all of it, and
    compute the same (of 4, 19.4 instead of 6.2 million operations on each of 8 devices).
    """
    rows = len(x) // count
    if not is_cut("make_step"):
        return x.reshape(count, rows, *x.shape[1:])
    axis = data_axis(jax.sharding.get_abstract_mesh(), "make_step")
    split = jnp.moveaxis(x.reshape(rows, count, *x.shape[1:]), 1, 0)
    return jax.lax.with_sharding_constraint(split, PartitionSpec(None, axis))


def of_all(batch: Batch, state: Stated, owner: str) -> Batch:
    """The batch of all processes, where each gives its own rows of it.

    `jit` takes an array of NumPy for one that is the same on every process, and does not ask.
    """
    if jax.process_count() == 1:
        return batch
    mesh = state.step.sharding.mesh
    axis = data_axis(mesh, owner)
    if axis is None or not all(known(leaf) for leaf in jax.tree.leaves(batch)):
        return batch
    return jax.tree.map(lambda x: rows_on(x, mesh, axis, owner, "batch"), batch)


def rows_on(
    leaf: chex.Array, mesh: Mesh, axis: str, owner: str, name: str, before: int = 0
) -> jax.Array:
    """One array of a batch, with the rows of this process behind `before` axes, on a mesh."""
    if np.ndim(leaf) <= before:  # a scalar, or a key
        return replicated(leaf, mesh)
    where = NamedSharding(mesh, PartitionSpec(*[None] * before, axis))
    if isinstance(leaf, jax.Array) and not is_own(leaf):
        _require_devices(leaf, where, owner, name)
        return leaf
    total = np.shape(leaf)[before] * share_of(mesh, axis)
    allowed = f"a multiple of {mesh.shape[axis]} examples, the size of the mesh's axis {axis!r}"
    require(total % mesh.shape[axis] == 0, owner, name, total, allowed)
    if jax.process_count() == 1:
        return jax.device_put(leaf, where)
    if is_key(leaf):
        own = rows_on(jax.random.key_data(leaf), mesh, axis, owner, name, before)
        return jax.random.wrap_key_data(own, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(where, np.asarray(leaf))


def replicated(leaf: chex.Array, mesh: Mesh) -> jax.Array:
    """An array, the same on every process, on all devices of a mesh."""
    where = NamedSharding(mesh, PartitionSpec())
    if is_key(leaf):  # `device_put` refuses keys on the devices of other processes
        numbers = replicated(np.asarray(jax.random.key_data(leaf)), mesh)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, where)


def share_of(mesh: Mesh, axis: str) -> int:
    """How many times the rows of this process make up a batch of all of them."""
    own = [[d.process_index == jax.process_index()] for d in mesh.devices.flat]
    places = np.argwhere(np.reshape(own, mesh.devices.shape))
    held = {place[mesh.axis_names.index(axis)] for place in places.tolist()}
    return mesh.shape[axis] // len(held)


def refuse_unfit(batch: Batch, state: Stated, owner: str, argument: str) -> None:
    """Refuses what is no batch, and arrays on other devices than the mesh that a state is on."""
    count_examples(batch, owner, argument)
    refuse_elsewhere(batch, state, owner, argument)


def refuse_elsewhere(batch: Batch, state: Stated, owner: str, argument: str) -> None:
    """Refuses the arrays of a batch that are on other devices than the mesh of a state."""
    where = getattr(state.step, "sharding", None) if known(state.step) else None
    if not isinstance(where, NamedSharding):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if isinstance(leaf, jax.Array) and known(leaf) and leaf.committed:
            _require_devices(leaf, where, owner, argument + jax.tree_util.keystr(path))


def _require_devices(leaf: jax.Array, where: NamedSharding, owner: str, name: str) -> None:
    """Refuses an array on other devices, or in another order of them: JAX would, by a page."""
    own = leaf.sharding
    there, devices = ([d.id for d in _devices_of(x, where)] for x in (own, where))
    allowed = "on the devices of the state, where training.place sends it, or a NumPy array"
    allowed += f": on {devices}" * (sorted(there) == sorted(devices))
    require(there == devices, owner, name, f"one on {there}", allowed)


def _devices_of(where: Sharding, like: NamedSharding) -> list:
    """In the order of the mesh; a sharding without one has that of another, as far as it goes."""
    if isinstance(where, NamedSharding):
        return list(where.mesh.devices.flat)  # type: ignore[union-attr]  it is never abstract
    here = [d for d in like.mesh.devices.flat if d in where.device_set]  # type: ignore[union-attr]
    return here + sorted(where.device_set - set(here), key=lambda d: d.id)
