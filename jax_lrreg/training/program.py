"""The compiled calls of the loop, one step or many on the device, and the states they take."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jax_lrreg._check import require
from jax_lrreg.training.batch import Batch, is_own
from jax_lrreg.training.history import add
from jax_lrreg.training.mesh import (
    active_mesh,
    data_axis,
    replicated,
    require_same_mesh,
    rows_on,
    share_of,
)
from jax_lrreg.training.sharding import pinned
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step

# Each lives as long as its step, which it does not hold.
_PROGRAMS: WeakKeyDictionary[Step, dict[Any, Callable]] = WeakKeyDictionary()


def program_of(step: Step, loops: bool, state: State | None = None) -> Any:
    """The compiled call that makes `count` steps, or one step and no loop around it.

    The number is data, so chunks of every length are one and the same program. What it returns lies
    as the `state` does, where that is on a mesh.
    """
    made = _PROGRAMS.setdefault(step, {})
    where, place = (None, ()) if state is None else pinned(state)
    if (key := (loops, *place)) not in made:
        # The sums are few, and whoever holds a chunk may read them later: they are not donated.
        donated = (0,) if step.donate else ()
        function = partial(_many if loops else _single, step.body)
        outputs = None if where is None else (where, where.step)
        options = {"donate_argnums": donated, "static_argnames": "gather"}
        made[key] = jax.jit(function, out_shardings=outputs, **options)
    return made[key]


def _single(body, state, sums, arrays, row, count, *, gather):
    del count
    state, metrics = body(state, gather(arrays, row))
    return state, add(sums, metrics)


def _many(body, state, sums, arrays, rows, count, *, gather):
    def one(index, carry):
        row = jax.tree.map(lambda x: x[index], rows)
        state, sums = carry
        return _single(body, state, sums, arrays, row, count, gather=gather)

    return jax.lax.fori_loop(0, count, one, (state, sums))


class Place(NamedTuple):
    """Where a run is: on one device, or on those of a mesh.

    Attributes:
        mesh: the active one, else that of the state; None on one device.
        axis: that its batches are cut over.
        device: without a mesh, what arrays are sent to.
        spread: whether the state is on several devices without a mesh: `jit` distributes what it is
            given.
    """

    mesh: Mesh | None
    axis: str
    device: Sharding | None
    spread: bool = False

    def whole(self, arrays: chex.ArrayTree) -> Any:
        """Arrays, the same on every process, on each of the devices."""
        if self.mesh is None:
            return arrays if self.spread else jax.device_put(arrays, self.device)
        return jax.tree.map(partial(replicated, mesh=self.mesh), arrays)

    def rows(self, leaf: chex.Array, before: int, owner: str) -> Any:
        """An array of a batch, of which this process has its rows, behind `before` axes."""
        if self.mesh is None:
            return self.whole(leaf)
        return rows_on(leaf, self.mesh, self.axis, owner, "data", before)

    def global_shape(self, leaf: chex.Array, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that an array of a batch has for all processes together."""
        if self.mesh is None or not shape or not is_own(leaf):
            return shape
        return (shape[0] * share_of(self.mesh, self.axis), *shape[1:])

    def shapes(self, arrays: chex.ArrayTree | State, like: State | None = None) -> Any:
        """Shapes instead of arrays, which lie as those of `like` at their paths do, or whole."""
        where = {str(path): x for path, x in jax.tree_util.tree_leaves_with_path(like)}
        whole = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

        def one(path: tuple, x: chex.Array) -> jax.ShapeDtypeStruct:
            own = getattr(where.get(str(path)), "sharding", None)
            own = own if isinstance(own, NamedSharding) else whole
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

        return jax.tree_util.tree_map_with_path(one, arrays)

    def row_shapes(self, batch: Batch, before: tuple[int, ...]) -> Any:
        """The shapes of a batch, or of several behind one another, as `rows` sends them."""

        def one(x: chex.Array) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec(*[None] * len(before), self.axis) if x.ndim else PartitionSpec()
            own = None if self.mesh is None else NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct((*before, *x.shape), x.dtype, sharding=own)

        return jax.tree.map(one, batch)

    def settled(self, state: State) -> State:
        """The state on these devices: what is there lies as it did, the rest on each of them."""
        if self.mesh is None:
            return state
        devices = set(self.mesh.devices.flat)
        there = lambda x: x.sharding.device_set == devices and x.committed  # noqa: E731
        return jax.tree.map(lambda x: x if there(x) else self.whole(x), state)


def place_of(state: State, owner: str) -> Place:
    """Where a run from this state is."""
    own = getattr(state.step, "sharding", None)
    mesh: Any = active_mesh()  # of an array it is never abstract
    if isinstance(own, NamedSharding):
        require_same_mesh(own.mesh, owner, "state")
        mesh = own.mesh if mesh is None else mesh
    axis = None if mesh is None else data_axis(mesh, owner)
    if axis is None:
        spread = jax.process_count() > 1 or (own is not None and len(own.device_set) > 1)
        return Place(None, "", own if getattr(state.step, "committed", False) else None, spread)
    return Place(mesh, axis, None)


def platform_of(state: State) -> str:
    """The platform of the devices that a state is on, or is to be on."""
    where = getattr(state.step, "sharding", None)
    device = next(iter(where.device_set)) if where is not None else jax.devices()[0]
    return device.platform


def settled(state: State) -> State:
    """The state as arrays of definite dtypes, none twice: fit to be donated, compiling once."""
    seen: set[int] = set()

    def settle(leaf: chex.Numeric) -> jax.Array:
        # Through NumPy, as making a Python number definite is a program.
        own = leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.asarray(leaf))
        if jax.typeof(own).weak_type:
            own = jnp.asarray(own, own.dtype)
        if id(own) in seen:
            own = jnp.copy(own)
        seen.add(id(own))
        return own

    return jax.tree.map(settle, state)


def edited(old: State, new: State) -> State:
    """The new state, where it differs from the old one in copies of its dtypes and places."""
    structure = jax.tree.structure(old)
    if not isinstance(new, State) or jax.tree.structure(new) != structure:
        given = jax.tree.structure(new) if isinstance(new, State) else type(new).__name__
        allowed = f"of the structure that the run began with, {structure}"
        raise ValueError(f"Chunk: `state` must be {allowed}, got {given}")

    def edit(path: tuple, leaf: Any, before: jax.Array) -> jax.Array:
        if leaf is before:
            return leaf
        number = isinstance(leaf, bool | int | float | np.number)
        kind = getattr(leaf, "dtype", None) == before.dtype
        if number:
            kind = np.can_cast(np.asarray(leaf).dtype, before.dtype, "same_kind")
        allowed = f"{before.dtype}{list(before.shape)} as before"
        name = f"state{jax.tree_util.keystr(path)}"
        require(kind and np.shape(leaf) == before.shape, "Chunk", name, leaf, allowed)
        value: Any = np.asarray(leaf, before.dtype) if number else jnp.copy(leaf)
        return jax.device_put(value, before.sharding if before.committed else None)

    return jax.tree_util.tree_map_with_path(edit, new, old)
