"""The command line: `python -m jax_lrreg train | find-lr | show | list`."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

from jax_lrreg import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, or 2 where an argument or a file is wrong."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        command(**options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"jax-lrreg: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _train(data: str, **options: Any) -> None:
    """Trains, writes the run folder and prints what came out."""
    from rich.console import Console
    from rich.table import Table

    from jax_lrreg.cli import train as job

    summary = job.run(data, **options)
    table = Table(
        title=f"Trained on {data}", title_justify="left", title_style="bold", show_header=False
    )
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in summary.items():
        table.add_row(
            name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else str(value)
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(
        f"Wrote {options['out']}/metrics.csv, config.json and history.png", highlight=False
    )


def _find_lr(
    data: str,
    target: str | None,
    optimizer: str | None,
    penalty: str | None,
    batch_size: int | None,
    seed: int,
    low: float,
    high: float,
    steps: int,
    out: str,
) -> None:
    """Tests rising learning rates, prints what they suggest and draws the losses to a file."""
    import jax
    import numpy as np
    import optax
    from rich.console import Console
    from rich.table import Table

    from jax_lrreg import finder, penalties, plots, training
    from jax_lrreg._check import require
    from jax_lrreg.cli import train as job
    from jax_lrreg.cli.data import load

    dataset = load(data, target, seed)
    x, y = dataset.train
    standard = job.defaults(data, len(x))
    module, measure = job.problem(dataset, standard)
    name, size = optimizer or standard.optimizer, batch_size or standard.batch_size
    require(
        name in job.OPTIMIZERS,
        "find-lr",
        "--optimizer",
        name,
        f"one of {', '.join(job.OPTIMIZERS)}",
    )
    require(
        size <= len(x), "find-lr", "--batch-size", size, f"at most the {len(x)} training examples"
    )
    reg = job.parsed("--penalty", penalty, penalties.Penalty, "find-lr") or standard.penalty
    state = training.init(module, optax.identity(), key=jax.random.key(seed + 1), example=x[:1])
    reg.report(state.params)
    source = training.ArrayData({"x": x, "y": y}, size, jax.random.key(seed))
    direction = optax.chain(
        job.OPTIMIZERS[name](1.0), optax.scale(-1.0)
    )  # the optimizer without its rate
    found = finder.range_test(
        module, measure, direction, state, source, low=low, high=high, steps=steps, penalty=reg
    )
    figure = plots.figure_of(plots.range_test(found))
    figure.savefig(out, dpi=130)
    plots.plt.close(figure)
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(
        title=f"Learning rates for {name} on {data}", title_justify="left", title_style="bold"
    )
    for column in ("rule", "learning rate", "smoothed loss there"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule, rate in found.suggestions.items():
        nearest = int(np.argmin(np.abs(np.log(found.learning_rates / rate))))
        table.add_row(rule, f"{rate:.3g}", f"{found.smoothed[nearest]:.4g}")
    console.print(table)
    tried = f"{len(found.learning_rates)} rates from {found.learning_rates[0]:.3g} to {found.learning_rates[-1]:.3g}"
    console.print(
        f"Tried {tried}{', where the loss diverged' if found.stopped else ''}.", highlight=False
    )
    console.print(f"Suggested: {found.suggestion:.3g}. Wrote {out}", highlight=False)


def _show(schedule: str, steps: int, log: bool, out: str) -> None:
    """Draws a schedule to a file, and prints a table and a sketch of it."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from jax_lrreg import plots, schedules, text
    from jax_lrreg._check import require

    lr = text.parse(schedule)
    require(isinstance(lr, schedules.Schedule), "show", "TEXT", schedule, "a schedule")
    figure = plots.figure_of(plots.schedule(lr, steps=steps, log=log))
    figure.savefig(out, dpi=130)
    plots.plt.close(figure)
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table()
    table.add_column("step", justify="right")
    table.add_column("value", justify="right")
    marks = sorted(
        {round(mark) for mark, _ in plots.phases(lr)} | {steps * k // 8 for k in range(9)}
    )
    for step in marks:
        if step <= steps:
            table.add_row(str(step), f"{float(lr(step)):.6g}")
    console.print(repr(lr), highlight=False, markup=False)
    console.print(table)
    console.print(
        _sketch(np.asarray(lr(np.linspace(0, steps, 72).round().astype(int)), float), steps),
        highlight=False,
    )
    console.print(f"Wrote {out}", highlight=False)


def _list_names() -> None:
    """Prints every name that a text may hold."""
    import types

    from rich.console import Console
    from rich.table import Table

    from jax_lrreg import penalties, schedules
    from jax_lrreg._struct import call_text
    from jax_lrreg.text.vocabulary import methods, names

    def shapes(base: type) -> dict[str, Any]:
        written = {
            n: t
            for n, t in names().items()
            if isinstance(t, type) and issubclass(t, base) and "." not in n
        }
        return {
            name: thing for name, thing in written.items() if thing.__repr__ is call_text
        }  # the rest by methods

    functions = {
        n: t for n, t in names().items() if isinstance(t, types.FunctionType) and "." not in n
    }
    of_schedule = {
        f".{name}": getattr(schedules.Schedule, name) for name in methods(schedules.Constant(0.0))
    }
    of_penalty = {
        f".{name}": getattr(penalties.Penalty, name) for name in methods(penalties.L1(0.0))
    }
    groups = {
        "Schedules": shapes(schedules.Schedule),
        "made of several": functions,
        "Methods of a schedule": of_schedule,
        "Penalties": shapes(penalties.Penalty),
        "Methods of a penalty": of_penalty,
    }
    table = Table("name", "what it is")
    for title, group in groups.items():
        table.add_section()
        table.add_row(f"[bold]{title}", "")
        for name in sorted(group):
            table.add_row(name, (group[name].__doc__ or "").strip().split("\n")[0], style=None)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _sketch(values: Any, steps: int, height: int = 8) -> str:
    """The values as blocks of text, the largest at the top."""
    blocks = " ▁▂▃▄▅▆▇█"
    top = float(max(values)) or 1.0
    lines = []
    for row in range(height, 0, -1):
        eighths = [
            min(8, max(0, math.ceil(8 * (value / top * height - (row - 1)) - 0.5)))
            for value in values
        ]
        label = f"{top:.3g}" if row == height else "0" if row == 1 else ""
        lines.append(f"{label:>9} " + "".join(blocks[level] for level in eighths))
    ends = f"step 0{steps:>{len(values) - 6}}"
    return "\n".join([*lines, " " * 10 + ends])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-lrreg",
        description="Learning-rate schedules and regularization for JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jax_lrreg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | find-lr | show | list")

    def add(name: str, command: Any, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=description, description=description, allow_abbrev=False
        )
        sub.set_defaults(command=command)
        return sub

    sub = add("train", _train, "Train a small network on real data and write a run folder.")
    sub.add_argument(
        "--data",
        default="digits",
        metavar="NAME|FILE",
        help="digits, diabetes, breast_cancer, or a .npz or .csv file of numbers (default: digits)",
    )
    sub.add_argument(
        "--target", help="the column of a .csv, or the array of a .npz, to predict (.npz: y)"
    )
    sub.add_argument(
        "--lr", metavar="TEXT", help='a schedule, as in "Cosine(1e-3, steps=2000).warmup(100)"'
    )
    sub.add_argument(
        "--penalty", metavar="TEXT", help="a penalty, as in \"L1(1e-4).on('**/kernel')\""
    )
    sub.add_argument(
        "--optimizer", help="sgd, momentum, adam, adamw, rmsprop or lion (default: adam)"
    )
    sub.add_argument("--epochs", type=_whole, help="passes over the training examples")
    sub.add_argument("--batch-size", type=_whole, help="examples per step")
    sub.add_argument(
        "--seed",
        type=_natural,
        default=0,
        help="of the split, the order and the parameters (default: 0)",
    )
    sub.add_argument("--out", default="run", metavar="FOLDER", help="the run folder (default: run)")
    sub = add("find-lr", _find_lr, "Try rising learning rates on real data, and suggest one.")
    sub.add_argument(
        "--data",
        default="digits",
        metavar="NAME|FILE",
        help="as in train (default: digits)",
    )
    sub.add_argument("--target", help="as in train")
    sub.add_argument("--optimizer", help="as in train")
    sub.add_argument("--penalty", metavar="TEXT", help="as in train")
    sub.add_argument("--batch-size", type=_whole, help="examples per step")
    sub.add_argument(
        "--seed",
        type=_natural,
        default=0,
        help="of the split, the order and the parameters (default: 0)",
    )
    sub.add_argument(
        "--low", type=_positive, default=1e-6, help="first learning rate (default: 1e-6)"
    )
    sub.add_argument(
        "--high", type=_positive, default=10.0, help="last learning rate (default: 10)"
    )
    sub.add_argument("--steps", type=_whole, default=100, help="how many rates (default: 100)")
    sub.add_argument(
        "--out", default="find-lr.png", metavar="FILE", help="the picture (default: find-lr.png)"
    )
    sub = add("show", _show, "Draw a schedule, and print a table and a sketch of it.")
    sub.add_argument("schedule", metavar="TEXT", help='as in "Cosine(1e-3, steps=900).warmup(100)"')
    sub.add_argument("--steps", type=_whole, default=1000, help="how far to draw (default: 1000)")
    sub.add_argument("--log", action="store_true", help="draw the values on a logarithmic axis")
    sub.add_argument(
        "--out", default="schedule.png", metavar="FILE", help="the picture (default: schedule.png)"
    )
    add("list", _list_names, "List the schedules and penalties that a text may name.")
    return parser


def _whole(value: str) -> int:
    return _number(value, 1)


def _natural(value: str) -> int:
    return _number(value, 0)


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {value!r}")
    return number


def _number(value: str, least: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number < 2**31:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {least} to 2147483647, got {value!r}"
        )
    return number
