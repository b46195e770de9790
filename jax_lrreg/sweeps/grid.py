"""Grids: which hyperparameters a sweep goes through, along axes that have names."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import is_key
from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg._struct import Array, is_pytree, number_text

Points = Any  # a tree, such as a schedule, whose arrays hold one entry for each point of an axis
NUMBERS = (jnp.number, jnp.bool_, jax.dtypes.prng_key)


class Axis(NamedTuple):
    """One axis of a grid: hyperparameters that change together.

    Attributes:
        points: the hyperparameters by their names.
        length: how many points there are.
    """

    points: dict[str, Points]
    length: int

    @property
    def name(self) -> str:
        return "+".join(self.points)


class Grid:
    """All combinations of the points of several axes; made by `grid`, `zipped` and `random`.

    `first * second` has the axes of both.

    Attributes:
        axes: the names of the axes, in the order given; those of hyperparameters that change
            together are joined with `+`.
        shape: the number of points along each.
        size: the number of combinations.
    """

    def __init__(self, parts: Sequence[Axis]):
        self.parts = tuple(parts)
        self.axes = tuple(axis.name for axis in self.parts)
        self.shape = tuple(axis.length for axis in self.parts)
        self.size = math.prod(self.shape)

    def __repr__(self) -> str:
        axes = (f"{name}={length}" for name, length in zip(self.axes, self.shape, strict=True))
        return f"Grid({', '.join(axes)})"

    def __mul__(self, other: "Grid") -> "Grid":
        """The combinations of each point here with each one there."""
        if not isinstance(other, Grid):
            return NotImplemented
        twice = sorted(set(self.points) & set(other.points))
        require(not twice, "grid", "*", twice, "grids of different hyperparameters")
        return Grid(self.parts + other.parts)

    @property
    def points(self) -> dict[str, Points]:
        """The hyperparameters of all axes by their names."""
        return {name: tree for axis in self.parts for name, tree in axis.points.items()}

    @property
    def places(self) -> dict[str, int]:
        """Along which axis each hyperparameter changes."""
        return {name: at for at, axis in enumerate(self.parts) for name in axis.points}

    def hyper(self, index: Sequence[int | slice]) -> dict[str, Any]:
        """The hyperparameters at an index, as objects that print; not those of a whole axis."""
        found = {}
        for name, at in self.places.items():
            where = index[at]
            if not isinstance(where, slice):
                found[name] = jax.tree.map(plain, taken(self.points[name], where))
        return found

    def labels(self, axis: int) -> list[dict[str, Any]]:
        """For each point of an axis, its hyperparameters as numbers and texts; seeds as numbers."""
        others = [slice(None)] * len(self.shape)
        rows = []
        for at in range(self.shape[axis]):
            found = self.hyper([*others[:axis], at, *others[axis + 1 :]])
            rows.append({name: _label(value, at) for name, value in found.items()})
        return rows


def grid(**axes: Points) -> Grid:
    """All combinations of the hyperparameters given, each an axis of the grid.

    Args:
        axes: by its name, a tree: a number, a schedule, a penalty, or a dict of them. The arrays in
            it hold the points of the axis along their leading dimension, all equally many; scalars
            are shared by all points. An array of PRNG keys is an axis of seeds. A list of numbers,
            or of trees that differ in their numbers only, is an axis as well.

    Raises:
        ValueError: an axis has no points, or arrays of different lengths; or there is no axis.

    Example:
        >>> from jax_lrreg import penalties, schedules
        >>> lr = schedules.Cosine(jnp.array([1e-3, 1e-2]), steps=100)
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> grid(lr=lr, reg=[penalties.L1(0.1), penalties.L1(0.2)], key=keys)
        Grid(lr=2, reg=2, key=3)
    """
    require(len(axes) > 0, "grid", "axes", {}, "at least one")
    return Grid([_axis("grid", {name: tree}) for name, tree in axes.items()])


def zipped(**axes: Points) -> Grid:
    """One axis along which several hyperparameters change together.

    Args:
        axes: as in `grid`, all of the same length.

    Example:
        >>> zipped(lr=[0.1, 0.2], steps=[200, 100]) * grid(decay=[0.0, 0.1, 1.0])
        Grid(lr+steps=2, decay=3)
    """
    require(len(axes) > 0, "zipped", "axes", {}, "at least one")
    return Grid([_axis("zipped", axes)])


def random(n: int, *, key: chex.PRNGKey, **ranges: Any) -> Grid:
    """One axis of `n` points drawn at random, each hyperparameter by itself.

    Random points cover each hyperparameter more densely than as many on a grid, of which most
    repeat the same few numbers.

    Args:
        n: how many points.
        key: a typed PRNG key.
        ranges: by its name, `(low, high)`, from which numbers are drawn uniformly in their
            logarithm, whole ones where both are ints; or a list, of whose entries each point gets
            one.

    Source:
        Bergstra and Bengio, Random search for hyper-parameter optimization, 2012.

    Example:
        >>> points = random(16, key=jax.random.key(0), lr=(1e-4, 1e-1), b1=[0.9, 0.95])
        >>> points
        Grid(lr+b1=16)
    """
    n = require_whole("random", "n", n)
    typed = isinstance(key, jax.Array) and is_key(key) and key.ndim == 0
    require(typed, "random", "key", key, "a typed PRNG key, as from jax.random.key(0)")
    require(len(ranges) > 0, "random", "ranges", {}, "at least one")
    drawn = {}
    for number, (name, values) in enumerate(ranges.items()):
        own = jax.random.fold_in(key, number)
        if isinstance(values, tuple) and len(values) == 2:
            drawn[name] = _drawn(n, own, name, *values)
        else:
            listed = values if isinstance(values, list) else []
            allowed = "a pair (low, high), or a list to choose from"
            require(len(listed) > 0, "random", name, values, allowed)
            chosen = jax.random.randint(own, (n,), 0, len(listed))
            drawn[name] = taken(_stacked("random", name, listed), chosen)
    return Grid([_axis("random", drawn)])


def taken(tree: Points, at: chex.Numeric) -> Any:
    """The point `at` of an axis: what has a leading dimension at its entry, scalars as they are."""
    return jax.tree.map(lambda x: x[at] if jnp.ndim(x) else x, tree)


def require_axis(owner: str, argument: str, name: str, axes: Sequence[str]) -> int:
    """The place of an axis by its name."""
    require_choice(owner, argument, name, axes)
    return axes.index(name)


def _axis(owner: str, trees: dict[str, Points]) -> Axis:
    """An axis of what is given under each name, in arrays of one length."""
    points, lengths = {}, {}
    for name, tree in trees.items():
        if isinstance(tree, list):
            tree = _stacked(owner, name, tree)
        tree = jax.tree.map(_array, tree)
        found = set()
        for leaf in jax.tree.leaves(tree):
            array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            numbers = any(jnp.issubdtype(array.dtype, kind) for kind in NUMBERS)
            allowed = "of numbers, keys, and trees of them such as schedules and penalties"
            require(numbers, owner, name, leaf, allowed, error=TypeError)
            if array.ndim:
                _require_held(owner, name, array)
                found.add(array.shape[0])
        allowed = "points along the leading dimension of its arrays, equally many in each"
        require(len(found) == 1 and 0 not in found, owner, name, tree, allowed)
        points[name], lengths[name] = tree, found.pop()
    allowed = "axes of one length"
    require(len(set(lengths.values())) == 1, owner, "axes", lengths, allowed)
    return Axis(points, next(iter(lengths.values())))


def _array(leaf: Any) -> Any:
    """What NumPy takes for an array as one: a column of a table, a range."""
    return leaf if isinstance(leaf, Array) or np.ndim(leaf) == 0 else np.asarray(leaf)


def _require_held(owner: str, name: str, array: chex.Array) -> None:
    """Refuses numbers that would be others, as 0, in the precision of a program."""
    if isinstance(array, np.ndarray):
        kind = jax.dtypes.canonicalize_dtype(array.dtype)
        with np.errstate(over="ignore", under="ignore"):
            same = np.isclose(array.astype(kind), array, rtol=1e-6, atol=0, equal_nan=True)
        require(np.all(same), owner, name, array, f"numbers in the range of {kind}")


def _stacked(owner: str, name: str, values: list[Any]) -> Points:
    """A list of points as one tree of arrays."""
    require(len(values) > 0, owner, name, values, "at least one point")
    structures = {jax.tree.structure(value) for value in values}
    allowed = "points of one structure, which differ in their numbers only"
    require(len(structures) == 1, owner, name, values, allowed)
    shapes = {tuple(map(jnp.shape, jax.tree.leaves(value))) for value in values}
    require(len(shapes) == 1, owner, name, values, "points of equal shapes")

    def stack(*leaves: Any) -> chex.Array:
        if is_key(leaves[0]):
            return jnp.stack(leaves)
        same = all(type(x) in (bool, int, float) and x == leaves[0] for x in leaves)
        return leaves[0] if same and is_tree else np.stack([np.asarray(x) for x in leaves])

    is_tree = not jax.tree_util.all_leaves(values)  # what all its points share stays one number
    stacked = jax.tree.map(stack, *values)
    every = all(jnp.ndim(x) == 0 for x in jax.tree.leaves(stacked))
    if every:  # the same point several times
        is_tree = False
        stacked = jax.tree.map(stack, *values)
    return stacked


def _drawn(n: int, key: chex.PRNGKey, name: str, low: Any, high: Any) -> np.ndarray:
    """Numbers from `low` to `high`, uniform in their logarithm."""
    for end in (low, high):
        require_number("random", name, end, "a pair of numbers > 0", lambda x: x > 0)
    require(low < high, "random", name, (low, high), "a pair (low, high) with low < high")
    whole = all(isinstance(end, int | np.integer) for end in (low, high))
    _require_held("random", name, np.asarray([low, high]))
    # A whole number is the floor of one from `low` to just below `high + 1`: ends are as likely.
    ends = np.log([low, high + 1 if whole else high])
    even = np.asarray(jax.random.uniform(key, (n,)), np.float64)
    numbers = np.exp(ends[0] + (ends[1] - ends[0]) * even)
    if whole:
        return np.clip(np.floor(numbers), low, high).astype(np.int32)
    return np.clip(numbers, low, high).astype(np.float32)


def plain(value: Any) -> Any:
    """A scalar as the shortest Python number that is it in its precision."""
    if is_key(value) or jnp.ndim(value) or type(value) in (bool, int, float):
        return value
    number = np.asarray(value)
    if jnp.issubdtype(number.dtype, jnp.floating):
        return float(str(number))
    return number.item()


def _label(value: Any, at: int) -> Any:
    """What a row of a table says of a hyperparameter."""
    if is_key(value):
        return at
    if isinstance(value, bool | int | float):
        return value
    return repr(value) if is_pytree(type(value)) else number_text(value)
