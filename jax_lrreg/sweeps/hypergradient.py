"""Gradients of a whole run by its hyperparameters, and going down them."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jax_lrreg._arrays import is_key, path_of
from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg._struct import is_pytree, number_text
from jax_lrreg.select.patterns import matcher, require_alive
from jax_lrreg.sweeps.grid import plain
from jax_lrreg.sweeps.program import hashed

Hyper = Any  # schedules, penalties and numbers, in any tree
Objective = Callable[[Hyper], chex.Numeric]

MODES = ("forward", "reverse")
REAL, OTHER = "a real number", "an array without a slope"  # what stands in the places of leaves
HALVINGS = 20  # of a step on the way to the end of a range: the rest of it is below rounding
CURE = "a root at 0, as Adam's of a gradient of 0, has none: optax.adam(..., eps_root=1e-8) has"


def hypergradient(
    function: Objective, hyper: Hyper, *, mode: str = "forward"
) -> tuple[jax.Array, Hyper]:
    """The value of a run and its slope by every real number among the hyperparameters.

    Args:
        function: `hyper -> scalar`, a pure function, such as one that trains with `training.scan`
            and returns the loss on validation data.
        hyper: a tree of numbers, schedules and penalties. A duration has a slope where it is
            written as a float, 500.0. Whole numbers and keys have none.
        mode: "forward" pushes all slopes along with the run, in the memory of a few runs: for up to
            some tens of numbers. "reverse" goes back through the run, which costs a few runs for
            any count of numbers, and keeps all of it: see `training.scan(checkpoint=)`. Where
            `solve` finds a minimum, the derivative is implicit in both.

    Returns:
        The value, and a tree like `hyper` of slopes, with None for what has none.

    Raises:
        ValueError: the value is not a finite real scalar, or a slope is not finite: it says which
            one.

    Source:
        Franceschi, Donini, Frasconi and Pontil, Forward and reverse gradient-based hyperparameter
        optimization, 2017.

    Example:
        >>> from jax_lrreg import penalties, sweeps
        >>> hyper = {"reg": penalties.L2(0.5), "steps": 10}
        >>> value, slopes = sweeps.hypergradient(lambda hp: hp["reg"](jnp.ones(4)), hyper)
        >>> print(value, slopes)
        1.0 {'reg': L2(2.0), 'steps': None}
    """
    _require_mode("hypergradient", mode)
    parts = _Parts(hyper, "hypergradient")
    value, slopes = _slopes(parts.of(function), mode, parts.numbers, parts.others)
    _refuse_nonfinite(parts, value, slopes)
    return value, parts.tree(slopes, rest=False)


@dataclasses.dataclass(frozen=True, repr=False)
class Tuned:
    """What `tune` found.

    Attributes:
        hyper: the best hyperparameters, which print and read back.
        value: what the function gave for them.
        losses: what it gave at each step, the first of them at the start; NaN where it diverged.
        values: the numbers at each step, by their paths.
    """

    hyper: Hyper
    value: float
    losses: np.ndarray
    values: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"Tuned({number_text(self.hyper)}; value {self.value:.6g})"


def tune(
    function: Objective,
    hyper: Hyper,
    *,
    steps: int = 10,
    learning_rate: float = 0.5,
    only: str | Sequence[str] = "**",
    mode: str = "forward",
) -> Tuned:
    """Goes down the slopes of a run by its hyperparameters.

    Adam moves the logarithms of all numbers > 0, so that they stay positive and a rate 30 times too
    small is as near as one 30 times too large. Whole numbers, keys, zeros and negative numbers are
    held, and so is what makes no difference. Where the value or a slope is not finite, it goes back
    to the best point with half the step.

    Args:
        function: as in `hypergradient`.
        hyper: where to begin.
        steps: how many runs with their slopes.
        learning_rate: of Adam: 0.5 multiplies or divides each number by up to 1.65 in a step.
        only: a pattern, or several, for the paths of the numbers to move, as in `select`:
            "reg/**", "lr/peak_value"; all others are held.
        mode: as in `hypergradient`.

    Returns:
        A `Tuned` with the best of all runs made.

    Raises:
        ValueError: no number is > 0, a pattern matches nothing, or the value is not finite at the
            start.

    Example:
        >>> from jax_lrreg import sweeps
        >>> tuned = sweeps.tune(lambda hp: (jnp.log(hp["lr"]) + 3) ** 2, {"lr": 1e-3}, steps=30)
        >>> 0.03 < tuned.hyper["lr"] < 0.08
        True
    """
    steps = require_whole("tune", "steps", steps)
    allowed = "a number > 0"
    require_number("tune", "learning_rate", learning_rate, allowed, lambda x: x > 0)
    _require_mode("tune", mode)
    parts = _Parts(hyper, "tune")
    program, numbers = parts.of(function), parts.numbers
    moving = parts.moving(only, hyper)
    # A shorter memory than in training, as ten steps are all there are: with 0.999 the slopes of
    # the start, the steepest, would hold the last steps small. Less than 0.7 of momentum is stuck
    # in a dent of the loss by the rate, as that of digits has one at half of the best rate.
    tx = optax.adam(1.0, b1=0.7, b2=0.7)
    memory, rate = tx.init(numbers), learning_rate
    best, least, losses, visited = numbers, np.inf, [], []
    for number in range(steps):
        value, slopes = jax.device_get(_slopes(program, mode, numbers, parts.others))
        sound = all(np.all(np.isfinite(x)) for x in (value, *slopes))
        if number == 0:
            _refuse_nonfinite(parts, value, slopes)
        losses.append(float(value) if sound else np.nan)
        visited.append(numbers)
        if sound and value < least:
            best, least = numbers, float(value)
        if not sound:
            numbers, memory, rate = best, tx.init(best), rate / 2
            value, slopes = jax.device_get(_slopes(program, mode, numbers, parts.others))
        update, memory = tx.update(_by_logarithms(moving, slopes, numbers), memory)
        pairs = zip(moving, numbers, jax.tree.leaves(update), strict=True)
        further = [jnp.where(m, x * jnp.exp(rate * u), x) for m, x, u in pairs]
        numbers = parts.within(numbers, further)
    columns = zip(parts.names, zip(*visited, strict=True), strict=True)
    values = {name: np.stack(jax.device_get(column)) for name, column in columns}
    found = jax.tree.map(plain, parts.tree(best))
    return Tuned(found, least, np.array(losses), values)


def _by_logarithms(
    moving: list[np.ndarray], slopes: list[jax.Array], numbers: list[jax.Array]
) -> list[jax.Array]:
    """The slopes by the logarithms of what moves: those by the numbers, times these."""
    triples = zip(moving, slopes, numbers, strict=True)
    return [jnp.where(moves, slope * x, 0) for moves, slope, x in triples]


class _Parts:
    """The real numbers of a tree of hyperparameters, and what is put together with them."""

    def __init__(self, hyper: Hyper, owner: str):
        pairs, self.structure = jax.tree_util.tree_flatten_with_path(hyper)
        self.leaves = [leaf for _, leaf in pairs]
        self.real = [_is_real(leaf) for leaf in self.leaves]
        allowed = "a tree with at least one real number; a whole one has no slope, 500.0 has"
        require(any(self.real), owner, "hyper", hyper, allowed)
        chosen = [pair for pair, real in zip(pairs, self.real, strict=True) if real]
        self.names = [jax.tree_util.keystr(path) for path, _ in chosen]
        self.paths = [path_of(path) for path, _ in chosen]
        self.numbers = [jnp.asarray(leaf, jnp.asarray(leaf).dtype) for _, leaf in chosen]
        self.owner = owner

    @property
    def fixed(self) -> list[Any]:
        """What a program is made of, with marks for the numbers and arrays that it is given."""
        # Python's own whole numbers are structure to a function, as `range(n)`; arrays are not.
        pairs = zip(self.leaves, self.real, strict=True)
        return [REAL if real else OTHER if _is_array(x) else x for x, real in pairs]

    @property
    def others(self) -> list[chex.Array]:
        """The arrays without a slope."""
        return [
            x for x, real in zip(self.leaves, self.real, strict=True) if not real and _is_array(x)
        ]

    def tree(self, numbers: list[Any], rest: bool = True) -> Hyper:
        """The tree with these numbers; without the rest, None in its place."""
        given = iter(numbers)
        pairs = zip(self.leaves, self.real, strict=True)
        leaves = [next(given) if real else leaf if rest else None for leaf, real in pairs]
        return jax.tree.unflatten(self.structure, leaves)

    def moving(self, only: str | Sequence[str], hyper: Hyper) -> list[np.ndarray]:
        """Which numbers are > 0 and meant by some pattern; each pattern must be for one."""
        patterns = [only] if isinstance(only, str) else only
        several = isinstance(patterns, list | tuple) and len(patterns) > 0
        require(several, self.owner, "only", only, "a pattern, or a list of them", error=TypeError)
        matches = [matcher(pattern, self.owner) for pattern in patterns]
        for pattern in patterns:
            require_alive(self.owner, pattern, self.paths)
        meant = [any(match(path) for match in matches) for path in self.paths]
        moving = [np.asarray((x > 0) & own) for x, own in zip(self.numbers, meant, strict=True)]
        allowed = "a tree with a real number > 0" + (f" at {only!r}" if only != "**" else "")
        require(any(map(np.any, moving)), self.owner, "hyper", hyper, allowed)
        return moving

    def within(self, numbers: list[jax.Array], further: list[jax.Array]) -> list[jax.Array]:
        """Each number moved as far as the object that it belongs to takes it."""
        # The ranges are where they are checked, in what the objects refuse: no list of them here
        # could be forgotten when a class changes.
        for at, to in enumerate(further):
            for _ in range(HALVINGS):
                moved = [*numbers[:at], to, *numbers[at + 1 :]]
                if _accepted(self.tree(moved)):
                    numbers = moved
                    break
                to = numbers[at] * jnp.sqrt(to / numbers[at])
        return numbers

    def of(self, function: Objective) -> "_Program":
        """The function of the real numbers and of the arrays that have no slope."""
        owner = self.owner
        require(callable(function), owner, "function", function, "a function", error=TypeError)
        return _Program(hashed(function), owner, self.structure, tuple(self.fixed))


@dataclasses.dataclass(frozen=True)
class _Program:
    """A function of hyperparameters, equal to another one of the same: so it is compiled once."""

    function: Objective
    owner: str
    structure: Any
    fixed: tuple[Any, ...]

    def __call__(self, numbers: list[jax.Array], others: list[jax.Array]) -> jax.Array:
        given = {REAL: iter(numbers), OTHER: iter(others)}
        leaves = [next(given[x]) if x in (REAL, OTHER) else x for x in self.fixed]
        value = self.function(jax.tree.unflatten(self.structure, leaves))
        number = isinstance(value, float | jax.Array | np.ndarray | np.generic)
        real = number and jnp.ndim(value) == 0
        real = real and jnp.issubdtype(jnp.asarray(value).dtype, jnp.floating)
        require(real, self.owner, "function", value, "one that returns a real scalar")
        return jnp.asarray(value)


@partial(jax.jit, static_argnums=(0, 1))
def _slopes(
    program: _Program, mode: str, numbers: list[jax.Array], others: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """The value of a program and its slopes by each number."""
    if mode == "reverse":
        return jax.value_and_grad(program)(numbers, others)
    flat, unravel = ravel_pytree(numbers)

    def along(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(lambda x: program(unravel(x), others), (flat,), (direction,))

    # What does not depend on the direction, the run itself, is made once for all of them.
    value, slopes = jax.vmap(along, out_axes=(None, 0))(jnp.eye(len(flat), dtype=flat.dtype))
    return value, unravel(slopes.astype(flat.dtype))


def _refuse_nonfinite(parts: _Parts, value: chex.Numeric, slopes: list[Any]) -> None:
    """Refuses, by its path, a slope that is not finite, and before that a value."""
    owner, finite = parts.owner, bool(np.isfinite(value))
    require(finite, owner, "function", float(value), "one that returns a finite number here")
    for name, slope in zip(parts.names, slopes, strict=True):
        finite = bool(np.all(np.isfinite(slope)))
        allowed = f"of a finite slope ({CURE})"
        require(finite, owner, f"hyper{name}", np.asarray(slope), allowed)


def _accepted(tree: Hyper) -> bool:
    """Whether the schedules and penalties of a tree are such as they would let one write."""
    objects = [x for x in jax.tree.leaves(tree, is_leaf=_is_object) if _is_object(x)]
    try:
        for x in objects:
            getattr(x, "__post_init__", lambda: None)()
    except (ValueError, TypeError):
        return False
    return all(_accepted([getattr(x, f.name) for f in dataclasses.fields(x)]) for x in objects)


def _is_object(x: object) -> bool:
    return is_pytree(type(x))


def _require_mode(owner: str, mode: str) -> None:
    allowed = "forward or reverse: the derivative of `sweeps.solve` is implicit in both"
    require(mode != "implicit", owner, "mode", mode, allowed)
    require_choice(owner, "mode", mode, MODES)


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray | np.generic | jax.Array)


def _is_real(leaf: object) -> bool:
    if is_key(leaf) or isinstance(leaf, bool | int):
        return False
    # Of an array alone: a text names a dtype to JAX, or raises.
    known = isinstance(leaf, float) or _is_array(leaf)
    return known and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
