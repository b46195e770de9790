"""A sweep: one function of its hyperparameters, compiled once and run at many points at a time."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.sweeps.grid import Grid, taken
from jax_lrreg.sweeps.result import Result, require_width
from jax_lrreg.training.progress import Progress

Run = Callable[[dict[str, Any]], Mapping[str, chex.Numeric]]

SHARE = 0.8  # of the memory that is free: its numbers are those of a moment, and others want some

# Compiled programs, by form and width. They live as long as their function, which they do not hold.
_PROGRAMS: WeakKeyDictionary[Run, dict[Any, Any]] = WeakKeyDictionary()


def run(
    function: Run,
    grid: Grid,
    *,
    max_parallel: int | None = None,
    progress: bool = False,
) -> Result:
    """Runs a function at every point of a grid, many at a time, as one compiled program.

    The function is traced once, with every hyperparameter traced: rates, strengths and durations
    alike. A grid of the same form, with other numbers, costs no compilation either. Members are
    independent: one that diverges has metrics that are not finite, and the others the same as
    without it.

    Args:
        function: `{name: hyperparameter} -> {name: scalar}`, a pure function, such as one that
            trains with `training.scan`.
        grid: from `grid`, `zipped` or `random`.
        max_parallel: how many members are in memory at once, which is a limit; their parts are
            equally large, and the last one is filled up with repetitions. By default as many as
            the memory of the device that is free has room for, by what the compiled program says
            that it needs.
        progress: shows how many members are done, and how long it takes yet.

    Returns:
        A `Result`.

    Raises:
        TypeError: `function` is none, or `grid` is none.
        ValueError: `function` returns something else than scalars by their names.

    Example:
        >>> from jax_lrreg import sweeps
        >>> def distance(hp):
        ...     steps = jax.lax.fori_loop(0, 10, lambda _, x: x - hp["lr"] * 2 * (x - 1), 0.0)
        ...     return {"error": jnp.abs(steps - 1)}
        >>> result = sweeps.run(distance, sweeps.grid(lr=[0.01, 0.1, 0.4, 2.0]))
        >>> print(result)
        Result(lr=4; error)
        >>> result.best("error").hyper
        {'lr': 0.4}
    """
    require(callable(function), "run", "function", function, "a function", error=TypeError)
    require(isinstance(grid, Grid), "run", "grid", grid, "a grid, as from `grid`", error=TypeError)
    width = require_width("run", max_parallel, grid.size)
    rows = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1).astype(np.int32)
    with Progress(progress, 0, grid.size, unit="run") as bar:
        program, width = _program(function, grid, width)
        found = []
        for begin in range(0, grid.size, width):
            # The last part is as wide as the others, so that it is the same program.
            part = np.take(rows, np.arange(begin, begin + width), axis=0, mode="clip")
            found.append(jax.device_get(program(grid.points, part)))
            bar.update(min(begin + width, grid.size), {"part": len(found)})
    values = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    cut = {name: column[: grid.size].reshape(grid.shape) for name, column in values.items()}
    return Result(grid, cut)


def _program(function: Run, grid: Grid, width: int | None) -> tuple[Callable, int]:
    """The compiled program of a part, and how many members it has."""
    if function not in _PROGRAMS:
        # The inner `jit` keeps its trace, so that no width asks the function again.
        many = partial(_many, jax.jit(partial(_one, ref(function)), static_argnames="places"))
        _PROGRAMS[function] = {"": jax.jit(many, static_argnames="places")}
    made = _PROGRAMS[function]
    points, places = grid.points, tuple(grid.places.items())
    form = jax.tree.structure(points), tuple(map(_form, jax.tree.leaves(points)))

    def compiled(width: int) -> Any:
        if (form, places, width) not in made:
            rows = jax.ShapeDtypeStruct((width, len(grid.shape)), jnp.int32)
            made[form, places, width] = made[""].lower(points, rows, places=places).compile()
        return made[form, places, width]

    if width is not None:
        width = _even(grid.size, width)
        return compiled(width), width
    width = grid.size
    while True:
        program = compiled(width)
        needed, there = _needed(program), SHARE * _free()
        if needed <= there or width == 1:
            return program, width
        # What a program needs goes up with its members, but for what they share.
        width = _even(grid.size, max(1, min(width - 1, int(width * there / needed))))


def _one(
    alive: Callable[[], Run | None],
    points: dict[str, Any],
    row: jax.Array,
    *,
    places: tuple[tuple[str, int], ...],
) -> dict[str, jax.Array]:
    """The metrics of one member, whose place along each axis is in `row`."""
    function = alive()
    assert function is not None  # whoever asks for a trace holds it
    found = function({name: taken(points[name], row[axis]) for name, axis in places})
    allowed = "return {name: scalar}, one or more"
    mapping = isinstance(found, Mapping) and len(found) > 0
    require(mapping, "run", "function", found, allowed, error=TypeError)
    metrics = {}
    for name, value in found.items():
        number = isinstance(value, bool | int | float | jax.Array | np.ndarray | np.generic)
        number = number and jnp.ndim(value) == 0
        number = number and not jnp.issubdtype(jnp.asarray(value).dtype, jnp.complexfloating)
        require(number, "run", "function", {name: value}, allowed)
        metrics[str(name)] = jnp.asarray(value)
    return metrics


def _many(one: Callable, points: dict[str, Any], rows: jax.Array, *, places: Any) -> Any:
    return jax.vmap(partial(one, places=places), in_axes=(None, 0))(points, rows)


def _form(leaf: Any) -> Any:
    """What `jit` tells arguments apart by."""
    aval = jax.typeof(leaf)
    return aval.shape, aval.dtype, aval.weak_type


def _even(size: int, width: int) -> int:
    """The least width that makes as few parts as `width` does: little is done twice at the end."""
    return math.ceil(size / math.ceil(size / width))


def _needed(program: Any) -> int:
    """Bytes that a program takes beside its constants."""
    analysis = program.memory_analysis()  # which not every platform has
    names = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
    return sum(getattr(analysis, name, 0) for name in names)


def _free() -> int:
    """Bytes that are free where programs run."""
    device = next(iter(jnp.zeros(()).devices()))  # the default one, whoever set it
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    # On the CPU, which keeps no such numbers, what the system says.
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
