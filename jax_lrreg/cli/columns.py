"""Columns of text as numbers: what their commas mean, which only number the rows, and what is refused by its place."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jax_lrreg._check import require
from jax_lrreg.cli.options import PROGRAM, one_of, shown
from jax_lrreg.cli.table import PLAIN, Table, read_table

MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "?", "-", "--", "."}
COUNTED = ("", "id", "index", "row")  # names of columns that may only number the rows
ENGLISH = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII).fullmatch  # 1,234.5
GERMAN = re.compile(r"[+-]?(\d*|[1-9]\d{0,2}(\.\d{3})+),\d+(e[+-]?\d+)?", re.ASCII | re.I).fullmatch
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII).fullmatch  # 1.234.567
GROUP = "[ '\u2019\u00a0\u202f]"  # between thousands elsewhere, as in 1'234'567
GROUPED = re.compile(rf"[+-]?[1-9]\d{{0,2}}({GROUP}\d{{3}})+([.,]\d*)?", re.ASCII).fullmatch
Number = Callable[[str], float | None]


def load_table(
    path: Path, target: str | None, ignored: Sequence[str], words: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs and target of a text file, and what was decided about it.

    Args:
        path: the file.
        target: the column to predict.
        ignored: columns to leave out.
        words: whether a target of numbers and words is all words.

    Returns:
        Inputs [rows, columns] in float64; the target [rows] in float64, or as words where none of
        its cells is a number.
    """
    table = read_table(path)
    require(len(table.names) > 1, PROGRAM, "--data", str(path), "a file of two columns or more")
    at = _index(table, "--target", target)
    out = {at} | {_index(table, "--ignore", name) for name in ignored}
    require(target not in ignored, PROGRAM, "--ignore", target, "another column than the target")
    require(len(table.rows) > 0, PROGRAM, "--data", str(path), "a file with rows below its header")
    counted = [i for i in range(len(table.names)) if i not in out and _only_counts(table, i)]
    inputs = [i for i in range(len(table.names)) if i not in out and i not in counted]
    require(len(inputs) > 0, PROGRAM, "--data", str(path), "a file with inputs beside the target")
    number, notes = _number_reader(table, [*inputs, at])
    columns = {i: [number(cell) for cell in table.column(i)] for i in [at, *inputs]}
    numbers = sum(value is not None for value in columns[at])
    named = numbers == 0 or (words and numbers < len(table.rows))
    missing = {i: [cell.casefold() in MISSING for cell in table.column(i)] for i in columns}
    _refuse_words(table, {i: columns[i] for i in (inputs if named else columns)}, missing, at)
    _refuse_missing(table, missing)
    x = np.array([columns[i] for i in inputs], np.float64).T
    y = np.array(table.column(at) if named else columns[at])
    notes += [f"column {table.names[i] or i + 1} left out: it numbers the rows" for i in counted]
    return x, y, [*table.notes, *notes]


def _index(table: Table, option: str, name: str | None) -> int:
    """Where a column stands that an option names."""
    if name not in table.names and all(map(PLAIN, table.names)):
        first = shown(", ".join(table.names))
        raise ValueError(
            f"{table.path} has no header: its first line is {first}; name the columns there"
        )
    names = [known for known in table.names if known]
    return table.names.index(one_of(option, name, names, "the columns ", f" of {table.path}"))


def _only_counts(table: Table, index: int) -> bool:
    """Whether a column only numbers or names the rows, as spreadsheets, pandas and R write one at the left."""
    name = table.names[index].casefold()
    unnamed = not name or name.startswith("unnamed:")
    if not unnamed and name not in COUNTED:
        return False
    cells = table.column(index)
    if all(map(PLAIN, cells)):
        counts = bool(np.all(np.diff(np.array(cells, np.float64)) == 1))
    else:
        counts = unnamed and len(set(cells)) == len(cells)
    if not counts and not name:
        raise ValueError(f"{table.path}: column {index + 1} has no name in the header: give it one")
    return counts


def _number_reader(table: Table, columns: Sequence[int]) -> tuple[Number, list[str]]:
    """What a cell is as a number, None if it is none.

    What a comma means is judged by all cells: one that is certain decides, two that differ are
    refused, and so is a file with none. Guessing from one cell would read 1,234 as 1234 beside 0,5.
    """
    cells = {row[i] for row in table.rows for i in columns}
    strange = {_joined(cell): cell for cell in cells if not PLAIN(cell)}
    english, german = (set(filter(kind, strange)) for kind in (ENGLISH, GERMAN))
    points = any("." in cell and PLAIN(cell) and not THOUSANDS(cell) for cell in cells)
    thousands, decimal = (
        bool(english - german) or (bool(english) and points),
        bool(german - english),
    )
    if (decimal and (thousands or points)) or (english and not decimal and not thousands):
        cell = strange[min(german)]
        line = next(n for n, row in zip(table.lines, table.rows, strict=True) if cell in row)
        raise ValueError(
            f"{table.path}, line {line}: {shown(cell)} may be {cell.replace(',', '.')} or {cell.replace(',', '')}: "
            "the numbers of the file do not tell what its commas mean"
        )

    def number(cell: str) -> float | None:
        text = cell if PLAIN(cell) else _joined(cell)
        if decimal:
            text = text.replace(".", "") if THOUSANDS(text) or GERMAN(text) else text
            text = text.replace(",", ".")
        elif ENGLISH(text):
            text = text.replace(",", "")
        return float(text) if PLAIN(text) else None

    kind = "decimal commas" if decimal else "commas between thousands"
    return number, [kind] if thousands or decimal else []


def _joined(cell: str) -> str:
    """A number without what separates its thousands, but for commas and points."""
    return re.sub(GROUP, "", cell) if GROUPED(cell) else cell


def _refuse_words(
    table: Table,
    columns: dict[int, list[float | None]],
    missing: dict[int, list[bool]],
    target: int,
) -> None:
    """Raises where a column holds what is no finite number, with the first place and how many there are."""
    found = {}
    for i, values in columns.items():
        bad = [
            row
            for row, value in enumerate(values)
            if (value is None and not missing[i][row]) or (value is not None and np.isinf(value))
        ]
        if bad:
            found[i] = bad
    if not found:
        return
    i = target if target in found else next(iter(found))
    first = found[i][0]
    more = f", and so {len(found[i]) - 1} cells below" if len(found[i]) > 1 else ""
    ignored = " ".join(f"--ignore {shlex.quote(table.names[j])}" for j in list(found)[:5])
    way = f"{ignored} to go on without" if i != target else "--task classes takes all as names"
    raise ValueError(
        f"{table.path}, line {table.lines[first]}, column {shown(table.names[i])} must be a number, got "
        f"{shown(table.rows[first][i])}{more}; {way}"
    )


def _refuse_missing(table: Table, missing: dict[int, list[bool]]) -> None:
    """Raises where cells are missing, with their number and the first place."""
    counts = Counter({table.names[i]: sum(cells) for i, cells in missing.items() if any(cells)})
    if not counts:
        return
    row = min(cells.index(True) for cells in missing.values() if any(cells))
    i = next(i for i in sorted(missing) if missing[i][row])
    each = ", ".join(f"{count} in {shown(name)}" for name, count in counts.most_common(4))
    total = counts.total()
    raise ValueError(
        f"{table.path} lacks {total} cell{'s' if total > 1 else ''}, the first in line {table.lines[row]}, column "
        f"{shown(table.names[i])} ({each}): fill them in, or leave out their rows, or their columns by --ignore"
    )
