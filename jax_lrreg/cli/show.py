"""`show`: draws a schedule to a file, and prints a table and a sketch of it."""

import sys

import numpy as np
from rich.table import Table

from jax_lrreg import schedules
from jax_lrreg.cli.options import Found, needing, parsed
from jax_lrreg.cli.output import console, picture, save

BLOCKS = " ▁▂▃▄▅▆▇█"
LETTERS = " ..::||##"  # for terminals that have no blocks
WIDE = 72  # columns of a sketch; wider, its eight rows would show no slope
LABEL = 10


def run(*, schedule: str, steps: int, log: bool, out: str) -> tuple[int, Found]:
    """Prints the schedule, its values at its marks and a sketch, and writes a picture.

    Returns:
        The exit code, and those values.
    """
    with needing("matplotlib", "show"):
        from jax_lrreg import plots

    lr = parsed("TEXT", schedule, schedules.Schedule)
    path = picture(out)
    save(plots.schedule(lr, steps=steps, log=log), path)
    table = Table()
    for name in ("step", "value"):
        table.add_column(name, justify="right")
    marks = {round(mark) for mark, _ in plots.phases(lr)} | {steps * k // 8 for k in range(9)}
    # As text in between: of a float32, the digits that it has.
    values = {step: float(str(lr(step))) for step in sorted(marks) if step <= steps}
    for step, value in values.items():
        table.add_row(str(step), f"{value:.6g}")
    screen = console()
    screen.print(repr(lr))
    screen.print(table)
    columns = max(8, min(WIDE, screen.width - LABEL - 1))
    shown = np.linspace(0, steps, columns).round().astype(np.int64)
    print(sketch(np.asarray(lr(shown), np.float64), steps))
    print(f"Wrote {path}")
    pairs = [{"step": step, "value": value} for step, value in values.items()]
    return 0, {"schedule": repr(lr), "values": pairs, "picture": str(path)}


def sketch(values: np.ndarray, steps: int, height: int = 8) -> str:
    """The values as blocks of text, the largest at the top; each row is an eighth of it."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
        blocks = BLOCKS
    except UnicodeError:
        blocks = LETTERS
    top = float(values.max()) or 1.0
    labels = {height: f"{top:.3g}", 1: "0"}
    lines = []
    for row in range(height, 0, -1):
        # `round` takes halves to the even eighth, which makes uneven stairs of a line.
        filled = np.ceil(8 * (values / top * height - (row - 1)) - 0.5)
        cells = np.clip(filled, 0, 8).astype(int)
        lines.append(f"{labels.get(row, ''):>{LABEL - 1}} " + "".join(blocks[c] for c in cells))
    return "\n".join([*lines, " " * LABEL + f"step 0{steps:>{len(values) - 6}}"])
