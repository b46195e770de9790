"""Where the arrays of a state lie on a mesh: on each device, or cut by a rule."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from jax_lrreg._arrays import Leaf, Parameters, is_key, leaves, path_of
from jax_lrreg._check import require, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.groups import group_axes
from jax_lrreg.penalties.spectral import MatrixPenalty
from jax_lrreg.select.patterns import matcher, require_alive
from jax_lrreg.training.mesh import Keys, Stated, active_mesh, axis_of, data_axis, require_same_mesh

Rule: TypeAlias = Callable[[str, Any, Mesh], PartitionSpec]
Placement: TypeAlias = Sharding | Mapping[str, PartitionSpec] | Rule

FORMS = "a Sharding, {pattern: PartitionSpec} or a rule (path, leaf, mesh) -> PartitionSpec"


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
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> fsdp("data")("kernel", jax.ShapeDtypeStruct((256, 512), np.float32), mesh)
        P(None, 'data')
    """
    require(isinstance(axis, str), "fsdp", "axis", axis, "the name of an axis", TypeError)
    least = require_whole("fsdp", "least", least, 0)
    penalty = keep_groups is None or isinstance(keep_groups, Penalty)
    require(penalty, "fsdp", "keep_groups", keep_groups, "a Penalty, or None", TypeError)

    def rule(path: str, leaf: chex.Array, mesh: Mesh) -> PartitionSpec:
        count = mesh.shape[axis_of("fsdp", axis, mesh)]
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


def pinned(state: Stated) -> tuple[Any, Keys]:
    """The shardings of a state on a mesh, for the one that takes its place, and their key.

    Left to itself, XLA returns replicated biases cut: the next call would be another program. On
    one device None, with a key that no mesh has.
    """
    if not isinstance(getattr(state.step, "sharding", None), NamedSharding):
        return None, ()
    where = jax.tree.map(lambda x: x.sharding, state)
    return where, (jax.tree.structure(where), *jax.tree.leaves(where))


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
        count = int(np.prod([mesh.shape[axis_of(owner, axis, mesh, name)] for axis in each]))
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
