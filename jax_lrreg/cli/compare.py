"""`compare`: trains at every point of a grid, with several seeds each, and says which is best."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from jax_lrreg import penalties, schedules, sweeps, training
from jax_lrreg._check import require
from jax_lrreg.cli.options import PROGRAM, Found, needing, parsed, train_command
from jax_lrreg.cli.output import console, picture, save
from jax_lrreg.cli.problem import OPTIMIZERS, Problem, in_steps, problem, require_fits

ROWS = 20  # of the table that are printed, the best ones; the file has all
BY, OVER = "test_loss", "seed"
Hyper = dict[str, schedules.Schedule | penalties.Penalty]
Named = Mapping[str, Any]
Run = Callable[[Named], dict[str, jax.Array]]


def run(
    *,
    lr: str | None,
    units: str,
    epochs: int | None,
    seeds: int,
    out: str,
    **options: Any,
) -> tuple[int, Found]:
    """Prints the points by their mean test loss, draws them, and says how to train the best one.

    Returns:
        The exit code, 1 where no point has a finite loss; and all points, the best one first.
    """
    with needing("matplotlib", "compare"):
        from jax_lrreg import plots

    task = problem(**options)
    epochs = epochs or task.epochs
    steps = task.steps(epochs)
    given = None if lr is None else _schedule(lr)
    schedule = task.schedule(steps) if given is None else in_steps(given, units, task.source)
    hyper: Hyper = {"lr": schedule, "penalty": task.penalty}
    grid = _grid(hyper) * sweeps.grid(seed=_keys(options["seed"], seeds))
    path = picture(out)  # last of what can be refused, since it may make a folder
    result = sweeps.run(_member(task, steps, hyper), grid, progress=True)
    result.to_csv(path.with_suffix(".csv"), over=OVER)
    mean = result.mean(BY, OVER)[0].reshape(-1)
    if not np.isfinite(mean).any():
        print(f"Wrote {path.with_suffix('.csv')}")
        print(f"{PROGRAM}: no finite {BY} at any point: try a smaller --lr", file=sys.stderr)
        return 1, {"points": [], "table": str(path.with_suffix(".csv"))}
    drawn = plots.heatmap if len(grid.axes) == 3 else plots.sweep
    save(drawn(result, BY), path)
    screen = console()
    screen.print(f"{task.optimizer} on {options['data']}: {task.dataset.task}; {task.network}")
    each = f"{seeds} seed{'s' if seeds > 1 else ''} each, {steps} steps"
    screen.print(f"{len(mean)} points, {each}; loss: {task.loss}")
    screen.print(_table(result, mean))
    best = result.best(BY, over=OVER)
    print(f"Best of all on the test examples, which flatters it: {BY} {best.value:.4g}")
    print(f"Wrote {path} and {path.with_suffix('.csv')}")
    chosen = {name: repr(value) for name, value in (hyper | best.hyper).items()}
    command = train_command({**options, **chosen, "epochs": epochs})
    print(f"Train it: {command}")
    rows = result.table(over=OVER).rows
    points = [_plain(rows[at]) for at in np.argsort(mean, kind="stable")]
    files = {"picture": str(path), "table": str(path.with_suffix(".csv"))}
    return 0, {
        "points": points,
        "best": {**chosen, BY: float(best.value)},
        "train": command,
    } | files


def _plain(row: Named) -> Found:
    """A row of a table as numbers and texts."""
    numbers = (int, float, np.number)
    return {n: float(v) if isinstance(v, numbers) else str(v) for n, v in row.items()}


def _schedule(text: str) -> schedules.Schedule:
    """What --lr says; a bare list is one of constant rates, as a bare number is of one."""
    listed = text.lstrip().startswith("[")
    return parsed("--lr", f"Constant({text})" if listed else text, schedules.Schedule)


def _grid(hyper: Hyper) -> sweeps.Grid:
    """An axis for each text with a list in it."""
    options, axes = {"lr": "--lr", "penalty": "--penalty"}, {}
    for name, value in hyper.items():
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(value)):
            try:
                axes[name] = sweeps.grid(**{name: value})
            except ValueError:
                allowed = "a text whose lists are of one length, with a number or more in each"
                require(False, PROGRAM, options[name], value, allowed)
    allowed = 'a text with a list in it, as in "Constant([0.1, 0.01])", where --penalty is none'
    require(axes, PROGRAM, "--lr", hyper["lr"], allowed)
    first, *others = axes.values()
    return first * others[0] if others else first


def _keys(seed: int, count: int) -> dict[str, jax.Array]:
    """For each seed the keys that `train` has: of the order, and of the parameters."""
    # One split of the data for all: with `train --seed` it changes too, so only the first seed's
    # member is the run that `train` makes.
    keys = jax.vmap(jax.random.key)
    numbers = jnp.arange(seed, seed + count)
    return {"order": keys(numbers), "start": keys(numbers + 1)}


def _member(task: Problem, steps: int, hyper: Hyper) -> Run:
    """The run of one member, as `train` makes it; a pattern that matches nothing is refused now."""
    sets, source = {name: getattr(task.dataset, name) for name in ("test", "train")}, task.source
    begin = partial(training.init, task.module, example=sets["train"][0][:1])
    first = jax.tree.map(lambda x: x[0] if jnp.ndim(x) else x, task.penalty)
    require_fits(first, begin(optax.identity(), key=jax.random.key(0)).params)

    def member(hp: Named) -> dict[str, jax.Array]:
        lr, penalty = (hp.get(name, hyper[name]) for name in ("lr", "penalty"))
        tx = OPTIMIZERS[task.optimizer](lr)
        data = training.ArrayData(source.arrays, source.batch_size, hp["seed"]["order"])
        step = training.make_step(task.module, task.measure, tx, penalty=penalty)
        state = begin(tx, key=hp["seed"]["start"])
        state, _ = training.scan(step, state, data, steps=steps)
        variables: Any = training.merge(task.module, state)
        model = lambda x: task.module.apply(variables, x)  # noqa: E731
        found = {}
        for name, (x, y) in sets.items():
            loss, others = task.measure(model, {"x": x, "y": y})
            found |= {f"{name}_{key}": value for key, value in {"loss": loss, **others}.items()}
        return found

    return member


def _table(result: sweeps.Result, mean: np.ndarray) -> Table:
    """The best points, each metric with an interval of two standard errors over the seeds."""
    table, names = Table(), sorted(result.names, key=lambda name: (name[:4], name[-4:] != "loss"))
    moving = [pair for axis in result.grid.parts[:-1] for pair in _moving(axis.points)]
    for name in (*(name for name, _ in moving), *names):
        table.add_column(name.replace("_", " "), justify="right")
    places, rows = result.grid.places, result.table(over=OVER).rows
    for at in np.argsort(mean, kind="stable")[:ROWS]:
        index = np.unravel_index(at, result.shape[:-1])
        numbers = (leaf[index[places[name.split()[0]]]] for name, leaf in moving)
        table.add_row(*(f"{number:.4g}" for number in numbers), *_cells(rows[at], names))
    return table


def _cells(row: Named, names: Sequence[str]) -> list[str]:
    halves = (2 * row[f"{name} error"] for name in names)
    texts = ("" if math.isnan(half) else f" ± {half:.1g}" for half in halves)  # of one seed
    return [f"{row[name]:.4g}{text}" for name, text in zip(names, texts, strict=True)]


def _moving(points: Mapping[str, object]) -> list[tuple[str, Any]]:
    """The numbers that change along an axis, by the option and their field."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(points)
    field = lambda path: jax.tree_util.keystr(path[-1:], simple=True)  # noqa: E731
    name = lambda path: f"{jax.tree_util.keystr(path[:1], simple=True)} {field(path)}"  # noqa: E731
    return [(name(path), leaf) for path, leaf in pairs if jnp.ndim(leaf)]
