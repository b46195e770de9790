"""Tables of what was decided for each parameter."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from jax_lrreg._arrays import Parameters
from jax_lrreg._struct import number_text
from jax_lrreg.select.rules import factors, selection

_WIDTH = 80


class Report:
    """What was decided for each parameter: prints as a table 80 columns wide.

    Attributes:
        title: what it is a report of.
        rows: one tuple of texts a parameter, its path first.
        headings: of the columns.
    """

    def __init__(
        self,
        title: str,
        rows: list[tuple[str, ...]],
        headings: Sequence[str] = ("parameter", "shape", "penalty", "why"),
    ):
        self.title, self.rows, self.headings = title, rows, tuple(headings)

    def __repr__(self) -> str:
        # Where patterns are too long for it, they are broken too, between names, then within them.
        for first, others in ((" /", " "), (" /", " /"), (" /_", " /_")):
            rows = [
                [_pieces(cell, others if column else first) for column, cell in enumerate(row)]
                for row in (self.headings, *self.rows)
            ]
            widths = _widths(rows)
            if sum(widths) + 2 * len(widths) - 2 <= _WIDTH:
                break
        rows.insert(1, [["-" * width] for width in widths])
        lines = [line for row in rows for line in _lines(row, widths)]
        return "\n".join([*_filled(_pieces(self.title, " "), _WIDTH), "", *lines])


def _widths(rows: list[list[list[str]]]) -> list[int]:
    """The widths of the columns: as the cells need, or less where the table would be too wide."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len("".join(cell)) for cell in column) for column in columns]
    least = [max(len(piece) for cell in column for piece in cell) for column in columns]
    while sum(widths) + 2 * len(widths) - 2 > _WIDTH and widths != least:
        # The widest column that has something to break gives way.
        spare = [w if w > n else 0 for w, n in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def _lines(row: list[list[str]], widths: list[int]) -> list[str]:
    """The lines that a row of cells takes."""
    cells = [_filled(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        texts = (f"{part:{width}}" for part, width in zip(parts, widths, strict=True))
        lines.append("  ".join(texts).rstrip())
    return lines


def _pieces(text: str, breaks: str) -> list[str]:
    """`text` in pieces that may stand on lines of their own: no word, no pattern is broken."""
    return re.findall(f"[^{breaks}]*[{breaks}]|[^{breaks}]+", text) or [""]


def _filled(pieces: Sequence[str], width: int) -> list[str]:
    """The lines that `pieces` fill."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return lines


def report(params: optax.Params, **columns: Any) -> Report:
    """What each parameter gets: a row a parameter, a column for each keyword; prints as a table.

    Args:
        params: a tree of parameters, as arrays or shapes.
        columns: by the heading of the column, a penalty, or rules as `transforms.scale_by_rules`
            takes them; `trainable=` is a selection. Each entry says which rule decided.

    Returns:
        A `Report`, whose title counts the parameters, and of them the trainable ones.

    Example:
        >>> params = {"embed": np.ones((4, 2)), "head": {"kernel": np.ones((2, 3))}}
        >>> report(params, learning_rate=[("head/**", 10.0), ("**", 1.0)], trainable="head/**")
        6 of 14 numbers are trained
        <BLANKLINE>
        parameter    shape  learning_rate      trainable
        -----------  -----  -----------------  ----------------------------
        embed        4x2    1.0 by '**'        no, not covered by 'head/**'
        head/kernel  2x3    10.0 by 'head/**'  yes, chosen by 'head/**'
    """
    items = Parameters(params)
    texts = []
    for name, spec in columns.items():
        try:
            texts.append(_column(name, spec, params, items))
        except (TypeError, ValueError) as error:
            error.add_note(f"report: it is the column `{name}`")
            raise
    rows = [
        (leaf.path, "x".join(map(str, np.shape(leaf.value))) or "scalar", *cells)
        for leaf, *cells in zip(items, *texts, strict=True)
    ]
    sizes = [math.prod(np.shape(leaf.value)) for leaf in items]
    title = f"{sum(sizes):,} numbers"
    if "trainable" in columns:
        chosen = selection(columns["trainable"])
        trained = sum(s for s, x in zip(sizes, items, strict=True) if chosen.multiplier(*x))
        title = f"{trained:,} of {title} are trained"
    return Report(title, rows, ("parameter", "shape", *columns))


def _column(name: str, spec: Any, params: optax.Params, items: Parameters) -> list[str]:
    """What a penalty, a selection or rules say of each parameter."""
    if hasattr(spec, "report"):
        told = {path: (what, why) for path, _, what, why in spec.report(params).rows}
        return [", ".join(filter(None, told[leaf.path])) for leaf in items]
    if name == "trainable":
        chosen = selection(spec)
        chosen.check(items.paths)
        return [f"{'yes' if chosen.multiplier(*x) else 'no'}, {chosen.reason(*x)}" for x in items]
    table = factors(spec)
    table.check(items.paths)
    return [f"{number_text(table.of(*x))} {table.reason(*x)}" for x in items]
