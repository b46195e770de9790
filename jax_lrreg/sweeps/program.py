"""The compiled programs of a sweep: one function, for as many members as there is room for."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jax_lrreg._arrays import NO_MESH, is_real_scalar
from jax_lrreg._check import require
from jax_lrreg._processes import agreed, ending_together
from jax_lrreg._struct import fixed, unfixed
from jax_lrreg.sweeps.grid import Grid, taken
from jax_lrreg.training.accumulate import equations
from jax_lrreg.training.mesh import data_axis

Metrics = dict[str, jax.Array | np.ndarray]
Made = tuple[chex.ArrayTree, Metrics]  # what members go on from, and their metrics
Function = Callable[..., Any]  # of `run` or of `halving`
T = TypeVar("T")

SHARE = 0.8  # of the memory that is free: its numbers are those of a moment, and others want some

# Compiled programs, by form and width. They live as long as their function, which they do not hold.
_PROGRAMS: WeakKeyDictionary[Function, dict[Any, Any]] = WeakKeyDictionary()


class Place(NamedTuple):
    """Where members run side by side.

    Attributes:
        calls: how many programs are under way at once.
        devices: over how many one of them is cut.
        mesh: the active one, over all of whose devices it is; an empty one without.
        device: one of those used.
    """

    calls: int
    devices: int
    mesh: jax.sharding.Mesh
    device: Any  # a jax.Device, which is no type to pyright

    @property
    def lanes(self) -> int:
        """How many times the width of a program runs at once."""
        return self.calls * self.devices

    def agreed(self, number: int) -> int:
        """The largest that a process of the mesh says: each has its own clock and memory.

        By these they would choose programs of different widths, and wait for each other for ever.
        """
        return number if self.mesh.empty else agreed(number)[0]


@contextlib.contextmanager
def place_of(owner: str) -> Iterator[Place]:
    """The devices of the active mesh; without one, the cores of the CPU, or one accelerator.

    Meanwhile there is no active mesh: a member is on one device, and its batches are not cut over
    the mesh as those of `fit` are.
    """
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside a trace, where there is nothing to measure or to compile
        outside = "must be called outside of jit: it compiles by itself"
        raise ValueError(f"{owner}: {outside}") from None
    if not mesh.empty:
        data_axis(mesh, owner)  # refuses Explicit axes
        # Of another process's device JAX does not say what memory is free.
        with jax.set_mesh(NO_MESH), ending_together(owner):
            yield Place(1, mesh.size, mesh, mesh.local_devices[0])
        return
    device = next(iter(jnp.zeros(()).devices()))  # the default one, whoever set it
    # Products of small arrays keep one core busy, and two programs two: calls of one device from
    # several threads run at once, and leave the interpreter alone meanwhile.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Place((cores or 1) if device.platform == "cpu" else 1, 1, mesh, device)


def hashed(function: T) -> T:
    """A function by which `jit` can keep what it compiles: an object without a hash is wrapped."""
    try:
        hash(function)
    except TypeError:
        call: Any = function
        return cast(T, lambda *args: call(*args))
    return function


class Programs:
    """What is compiled of a function over grids of one form.

    Attributes:
        grid: of which the members are points.
        points: those, without the numbers at their default, which are not traced.
        place: where they run.
        seconds: that compiling the latest program took.
    """

    def __init__(self, function: Function, grid: Grid, place: Place, steps: int | None = None):
        self.grid, self.place, self.seconds = grid, place, 0.0
        self.points = fixed(grid.points)
        try:
            self._made, alive = _PROGRAMS.setdefault(function, {}), ref(function)
        except TypeError:  # an object without a hash, or without weak references: compiled anew
            self._made, alive = {}, lambda: function
        if "" not in self._made:
            # This inner `jit` keeps its trace, so that no width asks the function again.
            one = partial(_one, alive)
            self._made[""] = jax.jit(one, static_argnames=("places", "steps"))
        places = tuple(grid.places.items())
        self.one = partial(self._made[""], places=places, steps=steps)
        leaves, structure = jax.tree.flatten(self.points)
        self._form = (structure, *map(_form, leaves), places, steps, place.mesh, place.device)

    def compiled(self, width: int, carried: chex.ArrayTree) -> Callable[..., Made]:
        """The program `(points, rows, carried) -> (carried, metrics)` of so many members.

        On a mesh it is so many on each device.
        """
        count = width * self.place.devices
        rows = jax.ShapeDtypeStruct((count, len(self.grid.shape)), jnp.int32)
        wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), carried)
        leaves, structure = jax.tree.flatten(wide)
        key = (*self._form, count, structure, *((x.shape, x.dtype) for x in leaves))
        if key not in self._made:
            began = time.perf_counter()
            args = self.points, rows, wide
            one = self.one if self.place.mesh.empty else _traced(self.one, *args)
            many = jax.jit(_cut(partial(_many, one), self.place.mesh))
            program = many.lower(*args).compile()
            self._made[key] = program, time.perf_counter() - began
        program, self.seconds = self._made[key]
        return program

    def remembered(self, size: int, new: Callable[[], T]) -> T:
        """What an earlier sweep of this form and size has left, or what is `new`."""
        key = (*self._form, size, "widths")
        if key not in self._made:
            self._made[key] = new()
        return self._made[key]

    def fitting(self, width: int, carried: chex.ArrayTree) -> tuple[Callable[..., Made], int]:
        """That program, or one of fewer members where these would not have room side by side."""
        while True:
            program = self.compiled(width, carried)
            # In MiB, as the processes tell each other numbers of 32 bits.
            free = -self.place.agreed(-(_free(self.place) >> 20)) << 20
            needed, there = _needed(program) * self.place.lanes, SHARE * free
            if needed <= there or width == 1:
                return program, width
            # What a program needs goes up with its members, but for what they share.
            width = max(1, min(width - 1, int(width * there / needed)))

    def bytes_in_turn(self, carried: chex.ArrayTree) -> int:
        """The bytes of a member that a loop of it goes through in each turn, as JAX sees it."""
        row = np.zeros(len(self.grid.shape), np.int32)
        first = jax.tree.map(lambda x: x[0], carried)
        program = jax.make_jaxpr(self.one)(self.points, row, first)
        sizes = [0]
        for equation in equations(program.jaxpr):
            if equation.primitive.name in ("scan", "while"):
                count = equation.params.get("num_carry")  # beyond which are outputs of each turn
                avals = [variable.aval for variable in equation.outvars[:count]]
                sizes.append(sum(x.size * getattr(x.dtype, "itemsize", 8) for x in avals))
        return max(sizes)


def _one(
    alive: Callable[[], Function | None],
    points: Mapping[str, chex.ArrayTree],
    row: jax.Array,
    carried: chex.ArrayTree,
    *,
    places: tuple[tuple[str, int], ...],
    steps: int | None,
) -> Made:
    """One member, whose place along each axis is in `row`: what `function` makes of it."""
    function = alive()
    assert function is not None  # whoever asks for a trace holds it
    hyper = {name: taken(unfixed(points[name]), row[axis]) for name, axis in places}
    if steps is None:
        return carried, _metrics("run", function(hyper))
    made = function(hyper, carried if jax.tree.leaves(carried) else None, steps)
    pair = isinstance(made, tuple) and len(made) == 2
    # Without a state, each rung would begin from the beginning.
    kept = pair and len(jax.tree.leaves(made[0])) > 0
    allowed = "one that returns (state, {name: scalar}), a tree of arrays and metrics"
    require(kept, "halving", "function", made, allowed, error=TypeError)
    # The next rung's program takes arrays of definite dtypes, and a Python number's is weak.
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), made[0])
    return state, _metrics("halving", made[1])


def _metrics(owner: str, found: object) -> Metrics:
    allowed = "one that returns {name: scalar}, one or more"
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"{owner}: `function` must be {allowed}, got one that returns {found!r}")
    for name, value in found.items():
        require(is_real_scalar(value), owner, "function", {name: value}, allowed)
    return {str(name): jnp.asarray(value) for name, value in found.items()}


def _many(
    one: Callable[..., Made],
    points: Mapping[str, chex.ArrayTree],
    rows: jax.Array,
    carried: chex.ArrayTree,
) -> Made:
    return jax.vmap(one, in_axes=(None, 0, 0))(points, rows, carried)


def _traced(
    one: Callable[..., Made],
    points: Mapping[str, chex.ArrayTree],
    rows: jax.ShapeDtypeStruct,
    carried: chex.ArrayTree,
) -> Callable[..., Made]:
    """A function of one member as its trace without a mesh.

    Inside `shard_map` JAX refuses what the function holds, as its data, where a mesh was active
    when it was made: of such an array the type has that mesh, and of what is computed another.
    """
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (rows, carried))
    program, made = jax.make_jaxpr(one, return_shape=True)(points, *first)
    call, structure = jax.extend.core.jaxpr_as_fun(program), jax.tree.structure(made)
    return lambda *args: jax.tree.unflatten(structure, call(*jax.tree.leaves(args)))


def _cut(many: Callable[..., Made], mesh: jax.sharding.Mesh) -> Callable[..., Made]:
    """The same over the devices of a mesh, each of which has members of its own."""
    if mesh.empty:
        return many
    axes = mesh.axis_names

    def local(
        points: Mapping[str, chex.ArrayTree], rows: jax.Array, carried: chex.ArrayTree
    ) -> Made:
        with jax.sharding.use_abstract_mesh(NO_MESH.abstract_mesh):
            carried, metrics = many(points, rows, carried)
        whole = partial(jax.lax.all_gather, axis_name=axes, tiled=True)  # for every process to read
        return carried, jax.tree.map(whole, metrics)

    # Not by the compiler's own choice, which may keep all members on all devices.
    spread, same = PartitionSpec(axes), PartitionSpec()
    specs = {"in_specs": (same, spread, spread), "out_specs": (spread, same)}
    return jax.shard_map(local, mesh=mesh, **specs, check_vma=False)


def _form(leaf: chex.Numeric) -> tuple[Any, ...]:
    """What `jit` tells arguments apart by."""
    aval = jax.typeof(leaf)
    return aval.shape, aval.dtype, aval.weak_type


def _needed(program: Callable[..., Made]) -> int:
    """Bytes that a program takes beside its constants."""
    analysis = getattr(program, "memory_analysis", lambda: None)()  # which not every one has
    names = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
    return sum(getattr(analysis, name, 0) for name in names)


def _free(place: Place) -> int:
    """Bytes that are free for the parts under way at once."""
    stats = place.device.memory_stats()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return free * place.devices
    # On the CPU, which keeps no such numbers, what the system says; its devices share it.
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
