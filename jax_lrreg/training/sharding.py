"""Where arrays lie on a mesh: batches cut over its data axis, the state whole or cut by rules."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jax_lrreg._arrays import Leaf, Parameters, is_key, known, leaves, path_of
from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.groups import group_axes
from jax_lrreg.penalties.spectral import MatrixPenalty
from jax_lrreg.select.patterns import matcher, require_alive
from jax_lrreg.training.batch import Batch, count_examples, is_own

Rule: TypeAlias = Callable[[str, Any, Mesh], PartitionSpec]
Stated: TypeAlias = Any  # a `State`, whose file imports this one
Keys: TypeAlias = tuple[Any, ...]  # JAX's path of a leaf
Placement: TypeAlias = Sharding | Mapping[str, PartitionSpec] | Rule

FORMS = "a Sharding, {pattern: PartitionSpec} or a rule (path, leaf, mesh) -> PartitionSpec"


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
    axis = str(own) if axis is None else _axis_of("place", axis, mesh)
    return jax.tree.map(lambda x: rows_on(x, mesh, axis, "place", "batch"), batch)


def fsdp(axis: str, least: int = 2**16, keep_groups: Penalty | None = None) -> Rule:
    """The rule that cuts each large parameter, with its moments, over all devices of an axis.

    It is the longest axis of the parameter that divides; one without such an axis is replicated.

    Args:
        axis: of the mesh, as a rule that of the data.
        least: numbers in a parameter that is cut; the messages for smaller ones would cost more
            time than their memory is worth.
        keep_groups: a penalty whose groups (or matrices) stay whole on a device, so that their
            norms cost no message.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> fsdp("data")("kernel", jax.ShapeDtypeStruct((256, 512), np.float32), mesh)
        P(None, 'data')
    """
    require(isinstance(axis, str), "fsdp", "axis", axis, "the name of an axis", TypeError)
    least = require_whole("fsdp", "least", least, 0)
    penalty = keep_groups is None or isinstance(keep_groups, Penalty)
    require(penalty, "fsdp", "keep_groups", keep_groups, "a Penalty, or None", TypeError)

    def rule(path: str, leaf: chex.Array, mesh: Mesh) -> PartitionSpec:
        count = mesh.shape[_axis_of("fsdp", axis, mesh)]
        whole = _whole_axes(keep_groups, path, leaf)
        free = [i for i, n in enumerate(leaf.shape) if n % count == 0 and i not in whole]
        if leaf.size < least or not free:
            return PartitionSpec()
        longest = max(free, key=lambda i: leaf.shape[i])
        return PartitionSpec(*[None] * longest, axis)

    return rule


def shardings(state: Stated, mesh: Mesh, rule: Rule | Mapping[str, PartitionSpec] | None) -> Any:
    """A tree like `state` of shardings: parameters by the rule, and what follows them.

    A moment, an average or another array of the state lies as the parameter whose path is the end
    of its own, where it has its shape, or that shape behind one of copies, or without one axis, as
    a factor has. All else is replicated.

    Args:
        state: a `State`, of arrays or of shapes.
        mesh: of Auto axes.
        rule: `(path, leaf, mesh) -> PartitionSpec`, `{pattern: PartitionSpec}`, of which the first
            that matches a parameter counts and others are replicated, or None.

    Raises:
        TypeError: what a rule returns is no PartitionSpec.
        ValueError: a pattern matches no parameter; a PartitionSpec names an axis that is not there,
            or does not fit the shape of its parameter.
    """
    return lying(state, mesh, rule, "shardings", "rule")


def lying(
    state: Stated,
    mesh: Mesh,
    rule: Rule | Mapping[str, PartitionSpec] | None,
    *said: str,
) -> Any:
    """`shardings`, whose refusals name the function and the argument that the user has."""
    fits = isinstance(mesh, Mesh | AbstractMesh)
    require(fits, "shardings", "mesh", mesh, "a jax.sharding.Mesh", TypeError)
    stated = hasattr(state, "params")
    require(stated, "shardings", "state", type(state).__name__, "a State, from `init`", TypeError)
    data_axis(mesh, "shardings")  # refuses Explicit axes
    params = leaves(state.params)
    decide = _rule_of(rule, [leaf.path for leaf in params], *said)
    specs = {leaf.path: _fitting(decide(*leaf, mesh), leaf, mesh, *said) for leaf in params}
    shapes = {path: tuple(value.shape) for path, value in params}

    def lies(keys: Keys, leaf: chex.Array) -> NamedSharding:
        names = path_of(keys).split("/")
        tails = ("/".join(names[begin:]) for begin in range(len(names) + 1))
        path = next((tail for tail in tails if tail in specs), None)
        spec = PartitionSpec()
        if path is not None:
            spec = _followed(tuple(leaf.shape), shapes[path], specs[path])
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(lies, state)


def made_on(
    make: Callable[..., Any], args: tuple, mesh: Mesh | None, sharding: Placement | None
) -> Any:
    """The state `make(*args)`, made where it is to lie: no device ever holds more than its share.

    Made first and sent after, it would be whole on one device: 12.7 MB where each has 1.6 of 8.
    """

    def strong(*args: chex.ArrayTree) -> Any:
        # Copies, as an argument that comes back is not a buffer of its own, and a weak type changes
        # at the first update.
        return jax.tree.map(_own, make(*args))

    # What is committed to one device would not go with a program on many.
    args = jax.tree.map(lambda x: _uncommitted(x) if isinstance(x, jax.Array) else x, args)
    where = sharding
    if not isinstance(sharding, Sharding):
        assert mesh is not None
        where = lying(jax.eval_shape(strong, *args), mesh, sharding, "init", "sharding")
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return jax.jit(strong, out_shardings=where)(*args)


def _own(x: chex.Numeric) -> jax.Array:
    return jnp.copy(x) if is_key(x) else jnp.array(x, jnp.asarray(x).dtype)


def _uncommitted(x: jax.Array) -> Any:
    if not x.committed or not x.is_fully_addressable:
        return x
    if is_key(x):
        numbers = np.asarray(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.asarray(numbers), impl=jax.random.key_impl(x))
    return np.asarray(x)


def mesh_for(sharding: Placement | None) -> Mesh | None:
    """The mesh that a state made so lies on; None for one device, or another kind of sharding."""
    if isinstance(sharding, NamedSharding):
        data_axis(sharding.mesh, "init")
        allowed = "that of a whole array, as scalars lie so too: a rule or {pattern: PartitionSpec}"
        allowed += " cuts parameters, and what follows them"
        require(not any(sharding.spec), "init", "sharding", sharding.spec, allowed)
        require_same_mesh(sharding.mesh, "init", "sharding")
        return sharding.mesh  # type: ignore[return-value]  of devices, it is never abstract
    if isinstance(sharding, Sharding):
        active = active_mesh()
        same = active is None or sharding.device_set == set(active.devices.flat)
        allowed = "on all devices of the active mesh, or used outside jax.set_mesh"
        require(same, "init", "sharding", sharding, allowed)
        return None
    rules = isinstance(sharding, Mapping) or _takes_three(sharding)
    require(sharding is None or rules, "init", "sharding", sharding, FORMS, TypeError)
    mesh = active_mesh()
    allowed = "None, or a Sharding, without an active mesh: a rule is used inside jax.set_mesh"
    require(sharding is None or mesh is not None, "init", "sharding", sharding, allowed)
    if mesh is not None:
        data_axis(mesh, "init")
    return mesh


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


def refuse_unfit(batch: Batch, state: Stated, owner: str, argument: str) -> None:
    """Refuses what is no batch, and arrays on other devices than the mesh that a state is on."""
    count_examples(batch, owner, argument)
    where = getattr(state.step, "sharding", None) if known(state.step) else None
    if not isinstance(where, NamedSharding):
        return
    devices = where.device_set
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        stays = isinstance(leaf, jax.Array) and known(leaf) and leaf.committed
        there = leaf.sharding.device_set if stays else devices
        name = argument + jax.tree_util.keystr(path)
        allowed = "on the devices of the state, where training.place sends it, or a NumPy array"
        require(there == devices, owner, name, f"one on {sorted(d.id for d in there)}", allowed)


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


def pinned(state: Stated) -> tuple[Any, Keys]:
    """The shardings of a state on a mesh, for the one that takes its place, and their key.

    Left to itself, XLA returns replicated biases cut: the next call would be another program. On
    one device None, with a key that no mesh has.
    """
    if not isinstance(getattr(state.step, "sharding", None), NamedSharding):
        return None, ()
    where = jax.tree.map(lambda x: x.sharding, state)
    return where, (jax.tree.structure(where), *jax.tree.leaves(where))


def rows_on(
    leaf: chex.Array, mesh: Mesh, axis: str, owner: str, name: str, before: int = 0
) -> jax.Array:
    """One array of a batch, with the rows of this process behind `before` axes, on a mesh."""
    if np.ndim(leaf) <= before:  # a scalar, or a key
        return replicated(leaf, mesh)
    where = NamedSharding(mesh, PartitionSpec(*[None] * before, axis))
    if isinstance(leaf, jax.Array) and not is_own(leaf):
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


def share_of(mesh: Mesh, axis: str) -> int:
    """How many times the rows of this process make up a batch of all of them."""
    own = [[d.process_index == jax.process_index()] for d in mesh.devices.flat]
    places = np.argwhere(np.reshape(own, mesh.devices.shape))
    held = {place[mesh.axis_names.index(axis)] for place in places.tolist()}
    return mesh.shape[axis] // len(held)


def _takes_three(rule: object) -> bool:
    """Whether a rule can be called with a path, a leaf and a mesh."""
    if not callable(rule):
        return False
    with contextlib.suppress(TypeError, ValueError):
        inspect.signature(rule).bind("", None, None)
        return True
    return False


def _rule_of(
    rule: Rule | Mapping[str, PartitionSpec] | None, paths: list[str], owner: str, argument: str
) -> Rule:
    """A rule, of patterns too; refuses a pattern that matches none of the paths."""
    if rule is None:
        return lambda *_: PartitionSpec()
    if not isinstance(rule, Mapping):
        require(_takes_three(rule), owner, argument, rule, FORMS, TypeError)
        return rule
    for pattern in rule:
        require_alive(f"{owner}: `{argument}`", pattern, paths)
    pairs = [(matcher(pattern), spec) for pattern, spec in rule.items()]
    return lambda path, *_: next((spec for fits, spec in pairs if fits(path)), PartitionSpec())


def _fitting(
    spec: PartitionSpec, leaf: Leaf, mesh: Mesh, owner: str, argument: str
) -> PartitionSpec:
    """The PartitionSpec of a parameter; refuses one that does not fit, by its path."""
    name, shape = f"{argument} of {leaf.path}", tuple(leaf.value.shape)
    require(isinstance(spec, PartitionSpec), owner, name, spec, "a PartitionSpec", TypeError)
    allowed = f"of at most {len(shape)} entries, as the parameter has shape {shape}"
    require(len(spec) <= len(shape), owner, name, spec, allowed)
    parts = [() if x is None else x if isinstance(x, tuple) else (x,) for x in spec]
    used = sum(parts, ())
    require(len(set(used)) == len(used), owner, name, spec, "one that names an axis once")
    for length, each in zip(shape, parts, strict=False):
        count = int(np.prod([mesh.shape[_axis_of(owner, axis, mesh, name)] for axis in each]))
        allowed = f"such that {count} devices divide the {length} of shape {shape}"
        require(length % count == 0, owner, name, spec, allowed)
    return spec


def _followed(shape: tuple[int, ...], of: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """How an array lies whose path ends in that of a parameter of shape `of`."""
    whole = (*spec, *[None] * (len(of) - len(spec)))
    before = len(shape) - len(of)
    if before >= 0 and shape[before:] == of:
        return PartitionSpec(*[None] * before, *whole)
    left = [i for i in range(len(of)) if shape == of[:i] + of[i + 1 :]]
    # Of a square matrix it cannot be told which axis a factor was summed over.
    found = {(*whole[:i], *whole[i + 1 :]) for i in left}
    return PartitionSpec(*found.pop()) if len(found) == 1 else PartitionSpec()


def _whole_axes(penalty: Penalty | None, path: str, leaf: chex.Array) -> set[int]:
    """The axes of a parameter that the groups, or the matrices, of a penalty run over."""
    if penalty is None:
        return set()
    items = Parameters({path: leaf})
    items.paths = []  # a pattern need not match this one parameter
    whole: set[int] = set()
    for term in (term for terms in penalty._terms(items) for term in terms):
        kind: Any = term.penalty
        if isinstance(kind, MatrixPenalty):
            whole |= set(range(kind.stacked, len(leaf.shape)))
        elif hasattr(kind, "axis"):
            whole |= set(group_axes(kind, len(leaf.shape)))
    return whole


def _axis_of(owner: str, axis: str, mesh: Mesh, argument: str = "axis") -> str:
    """The axis, if the mesh has one of that name."""
    require_choice(owner, argument, axis, map(str, mesh.axis_names))
    return axis
