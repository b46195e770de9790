"""A sweep: one function of its hyperparameters, compiled once and run at many points at a time."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.checkpoints import Folder
from jax_lrreg.checkpoints.fingerprint import Fingerprint, program_of, text_of
from jax_lrreg.sweeps.grid import Grid
from jax_lrreg.sweeps.kept import kept
from jax_lrreg.sweeps.parts import parts
from jax_lrreg.sweeps.program import Programs, place_of
from jax_lrreg.sweeps.result import Result, require_width
from jax_lrreg.training.progress import Progress

Run = Callable[[dict[str, Any]], Mapping[str, chex.Numeric]]


def run(
    function: Run,
    grid: Grid,
    *,
    max_parallel: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | Folder | None = None,
) -> Result:
    """Runs a function at every point of a grid, many at a time, as one compiled program.

    The function is traced once, with every hyperparameter traced: rates, strengths and durations
    alike, but for what was left at its default, such as an exponent of 1. A grid of the same form,
    with other numbers, costs no compilation either. Members are independent: one that diverges has
    metrics that are not finite, and the others the same as without it.

    Args:
        function: `{name: hyperparameter} -> {name: scalar}`, a pure function, such as one that
            trains with `training.scan`.
        grid: from `grid`, `zipped` or `random`.
        max_parallel: how many members are in memory at once, which is a limit. By default as many
            as have room, by what the compiled program says that it needs, and take the least time:
            on the CPU a core goes through as many as its cache holds, and in a long sweep other
            widths are tried on the way, where that is cheap beside what is left.
        progress: shows how many members are done, and how long it takes yet.
        checkpoint: a folder, or a `checkpoints.Folder`, whose `every` counts members: what is done
            is kept there, and a sweep that was killed goes on with the next part, in programs of
            the same width, so bit for bit. Another grid or function is refused.

    With an active mesh the members are spread over all its devices, each one on one of them.

    Returns:
        A `Result`.

    Raises:
        TypeError: `function` is none, or `grid` is none.
        ValueError: `function` returns something else than scalars by their names; the sweep in
            `checkpoint` is another one, by the name of what differs.
        OSError: a checkpoint cannot be written.

    Example:
        >>> import jax, jax.numpy as jnp
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
    limit = require_width("run", max_parallel, grid.size)
    with place_of("run") as place:
        programs, rows = Programs(function, grid, place), rows_of(grid)
        keeping = kept(checkpoint, lambda: _plan(programs, rows), place.mesh)
        with keeping as found, Progress(progress, found.end, grid.size, unit="run") as bar:
            for part in parts(programs, rows[found.end :], limit=limit, width=found.width):
                found.add(part)
                bar.update(found.end, {"width": part.width})
    values = {name: column.reshape(grid.shape) for name, column in found.values.items()}
    return Result(grid, values)


def rows_of(grid: Grid) -> np.ndarray:
    """The place of each member along each axis, [members, axes]."""
    return np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1).astype(np.int32)


def _plan(programs: Programs, rows: np.ndarray) -> Fingerprint:
    """What makes two sweeps the same, by the names of what differs."""
    grid = programs.grid
    named = {name: text_of(points) for name, points in grid.points.items()}
    program = program_of(programs.one, programs.points, rows[0], ())
    # Which metrics are the program's results does not stand in it.
    metrics = sorted(jax.eval_shape(programs.one, programs.points, rows[0], ())[1])
    return {"grid": repr(grid), **named, "function": program, "metrics": ", ".join(metrics)}
