"""What a command prints, fit to the terminal, and what it writes, tried before work begins."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jax_lrreg._check import require
from jax_lrreg.checkpoints.writer import discard
from jax_lrreg.cli.options import PROGRAM, needing
from jax_lrreg.training.loggers import write_whole

if TYPE_CHECKING:
    from jax_lrreg.plots import Axes

PIPED = 110  # columns where there is no terminal that tells


def console() -> Console:
    """As wide as the terminal, or as COLUMNS says; what is printed is text, not markup."""
    said = os.environ.get("COLUMNS", "")  # Rich takes no notice of it on a dumb terminal
    width = int(said) if said.isdigit() else None if sys.stdout.isatty() else PIPED
    height = width and 25  # which it takes both or none of there
    return Console(width=width, height=height, markup=False, emoji=False, highlight=False)


def print_pairs(title: str, pairs: Mapping[str, object]) -> None:
    """A table of names and values; numbers of five digits."""
    screen = console()
    # A name that is cut in words costs lines; a value that gets ten columns is rubble.
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan", max_width=max(12, screen.width // 3))
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    screen.print(table)


def folder(out: str, files: Sequence[str], overwrite: bool) -> Path:
    """The folder of a run, made and tried.

    One that holds such `files` is refused, or loses them to `overwrite`.
    """
    path = Path(out)
    with _writing(path, "a folder"):
        path.mkdir(parents=True, exist_ok=True)
        # lexists: a link that leads nowhere is no file, but a write would follow it.
        there = [name for name in files if os.path.lexists(path / name)]
        allowed = f"a folder without a run: it holds {', '.join(there)}, which --overwrite replaces"
        require(overwrite or not there, PROGRAM, "--out", out, allowed)
        with tempfile.TemporaryFile(dir=path):  # now, not after an hour of training
            pass
        for name in there:
            discard(path / name) if (path / name).is_dir() else (path / name).unlink()
    return path


def picture(out: str) -> Path:
    """The file of a picture, tried; a name without an ending becomes a PNG."""
    with needing("matplotlib", "a picture"):
        from jax_lrreg import plots

    path = Path(out)
    special = path.exists() and not path.is_file()
    require(not special, PROGRAM, "--out", out, "the name of a file")
    if not path.suffix:
        path = path.with_name(path.name.rstrip(".") + ".png")
    known = plots.formats()
    allowed = f"a picture, its ending one of {', '.join(known)}"
    require(path.suffix[1:].lower() in known, PROGRAM, "--out", out, allowed)
    with _writing(path, "a picture"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    return path


def save(ax: "Axes", path: Path) -> None:
    """Writes the figure of these axes: the file appears whole, or what was there stays."""
    from jax_lrreg import plots

    figure = plots.figure_of(ax)
    kind = path.suffix[1:].lower()
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=130))
    plots.plt.close(figure)


@contextlib.contextmanager
def _writing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"--out: {str(path)!r} cannot be written as {what}: {error.strerror}"
        raise ValueError(message) from None
