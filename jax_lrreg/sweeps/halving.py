"""Successive halving: of many runs, those that look best go on for longer."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg.sweeps.grid import Grid
from jax_lrreg.sweeps.parts import joined, parts
from jax_lrreg.sweeps.program import Programs, place_of
from jax_lrreg.sweeps.result import Over, Result, places_of, require_width
from jax_lrreg.sweeps.run import rows_of
from jax_lrreg.training.progress import Progress

Rung = Callable[[dict[str, Any], Any, int], tuple[chex.ArrayTree, Mapping[str, chex.Numeric]]]


def halving(
    function: Rung,
    grid: Grid,
    name: str,
    *,
    steps: Sequence[int],
    factor: float = 3.0,
    mode: str = "min",
    over: Over = None,
    max_parallel: int | None = None,
    progress: bool = False,
) -> Result:
    """Runs all points of a grid for a while, the best of them for longer, and so on.

    After each rung the best `1 / factor` of the points go on, rounded up, from where they are. The
    others cost nothing any more: a rung is a program of its own, as wide as it has members. A point
    whose metric is not finite goes on last of all.

    Args:
        function: `(hp, state, steps) -> (state, {name: scalar})`, which makes `steps` steps from
            `state`, in the first rung from the beginning, where `state` is None.
        grid: as in `run`.
        name: of the metric by which points are chosen.
        steps: how many steps a member has made after each rung, rising. `function` is given the
            differences.
        factor: how many times fewer points a rung has than the one before, > 1.
        mode: "min" or "max".
        over: an axis, or several, such as that of the seeds: points are chosen by their mean over
            it, and go on or stop with all their members.
        max_parallel: as in `run`.
        progress: as in `run`, in steps.

    Returns:
        A `Result` of the latest metrics of each member, and "steps", how many it has made. `best`
        looks at those alone that have made all.

    Raises:
        TypeError, ValueError: as in `run`; `steps` do not rise; no metric has this name.

    Source:
        Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
        optimization, 2016, figure 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax_lrreg import sweeps
        >>> def descend(hp, x, steps):
        ...     x = jnp.float32(1) if x is None else x
        ...     x = jax.lax.fori_loop(0, steps, lambda _, x: x - hp["lr"] * x, x)
        ...     return x, {"loss": x**2}
        >>> grid = sweeps.grid(lr=jnp.linspace(0.01, 0.09, 9))
        >>> result = sweeps.halving(descend, grid, "loss", steps=[10, 30, 90])
        >>> print(result["steps"], result.best("loss").hyper)
        [10 10 10 10 10 10 30 30 90] {'lr': 0.09}
    """
    require(callable(function), "halving", "function", function, "a function", error=TypeError)
    allowed = "a grid, as from `grid`"
    require(isinstance(grid, Grid), "halving", "grid", grid, allowed, error=TypeError)
    require_choice("halving", "mode", mode, ("min", "max"))
    require_number("halving", "factor", factor, "a number > 1", lambda x: x > 1)
    ends = _ends(steps)
    limit = require_width("halving", max_parallel, grid.size)
    places_of("halving", over, grid.axes)
    rows, members, state = rows_of(grid), np.arange(grid.size), ()
    values: dict[str, np.ndarray] = {}
    made = np.zeros(grid.size, np.int32)
    with place_of("halving") as place, Progress(progress, 0, ends[-1], unit="step") as bar:
        for begin, end in itertools.pairwise([0, *ends]):
            if begin:
                kept = _best(Result(grid, _shaped(values, grid)), name, members, factor, mode, over)
                members, state = members[kept], jax.tree.map(lambda x, at=kept: x[at], state)
            programs = Programs(function, grid, place, end - begin)
            if not begin:  # a wrong name is known before anything runs, from the trace
                _, metrics = jax.eval_shape(programs.one, programs.points, rows[0], ())
                require_choice("halving", "name", name, metrics)
                allowed = "one whose metrics are not called steps, which the result has"
                require("steps" not in metrics, "halving", "function", [*metrics], allowed)
            found = list(parts(programs, rows[members], state, limit))
            state, metrics = jax.tree.map(joined, *(part.made for part in found))
            values = values or {key: np.full(grid.size, np.nan, float) for key in metrics}
            allowed = f"one that returns the same metrics in each rung, {', '.join(values)}"
            require(metrics.keys() == values.keys(), "halving", "function", [*metrics], allowed)
            for key, column in metrics.items():
                values[key][members] = column
            made[members] = end
            bar.update(end, {"members": len(members)})
    shaped = _shaped({**values, "steps": made}, grid)
    return Result(grid, shaped, complete=shaped["steps"] == ends[-1])


def _best(
    so_far: Result, name: str, members: np.ndarray, factor: float, mode: str, over: Over
) -> np.ndarray:
    """Which of these members go on: all those of the best points, in their order."""
    mean, _ = so_far.mean(name, over, "halving")
    scores = np.broadcast_to(mean, so_far.shape).reshape(-1)[members]
    # Seeds of one point have one number, and so go on together.
    points = np.broadcast_to(np.arange(mean.size).reshape(mean.shape), so_far.shape).reshape(-1)
    named, first = np.unique(points[members], return_index=True)
    worst_last = scores[first] if mode == "min" else -scores[first]
    count = math.ceil(len(named) / factor)
    best = named[np.argsort(worst_last, kind="stable")[:count]]  # NaN is sorted to the end
    return np.flatnonzero(np.isin(points[members], best))


def _shaped(values: Mapping[str, np.ndarray], grid: Grid) -> dict[str, np.ndarray]:
    return {name: column.reshape(grid.shape) for name, column in values.items()}


def _ends(steps: Sequence[int]) -> list[int]:
    """The rungs, checked."""
    allowed = "whole numbers >= 1 that rise, such as [100, 300, 900]"
    listed = isinstance(steps, list | tuple | np.ndarray) and len(steps) > 0
    require(listed, "halving", "steps", steps, allowed)
    ends = [require_whole("halving", "steps", step, allowed=allowed) for step in steps]
    rise = all(before < after for before, after in itertools.pairwise(ends))
    require(rise, "halving", "steps", steps, allowed)
    return ends
