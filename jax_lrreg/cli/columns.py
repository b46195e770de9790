"""Columns of text as numbers, or a refusal that names line and column.

What the commas mean and which columns only number the rows is judged by the whole file.
"""

import itertools
import math
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
NO_NUMBER = (None, math.inf, -math.inf)  # 1e999 is read as infinite
COUNTED = ("", "id", "index", "row")  # names of columns that may only number the rows
# Thousands do not begin with 0, so that 0,125 is no whole number; re.ASCII since \d is also the
# digits of other scripts, which `float` reads but nobody here expects.
ENGLISH = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII).fullmatch  # 1,234.5
GERMAN = re.compile(r"[+-]?(\d*|[1-9]\d{0,2}(\.\d{3})+),\d+(e[+-]?\d+)?", re.ASCII | re.I).fullmatch
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII).fullmatch  # 1.234.567
# Apostrophes are Swiss; French and Swedish Excel write spaces that do not break, U+00A0 and U+202F.
GROUP = "[ '\u2019\u00a0\u202f]"
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
    at, inputs, told = _chosen(table, target, ignored)
    number, notes = _number_reader(table, [at, *inputs])
    columns = {i: list(map(number, table.column(i))) for i in [at, *inputs]}
    missing = {i: list(map(_is_missing, table.column(i))) for i in columns}
    numbers = len(table.rows) - columns[at].count(None)
    # One word among numbers is more often a slip than a class: `words` has been asked for.
    named = numbers == 0 or (words and numbers < len(table.rows))
    bad = {i: _words(columns[i], missing[i]) for i in (inputs if named else columns)}
    _refuse_words(table, bad, at)
    _refuse_missing(table, missing)
    # float64: an identifier, a Unix time or 1e8 plus thousandths is not whole in float32.
    x = np.array([columns[i] for i in inputs], np.float64).T
    y = np.array(table.column(at) if named else columns[at])
    return x, y, [*table.notes, *notes, *told]


def _chosen(
    table: Table, target: str | None, ignored: Sequence[str]
) -> tuple[int, list[int], list[str]]:
    """Where the target and the inputs stand, and what has been left out as it numbers the rows."""

    def must(right: object, option: str, value: object, allowed: str) -> None:
        require(right, PROGRAM, option, value, allowed)

    path = str(table.path)
    must(len(table.names) > 1, "--data", path, "a file of two columns or more")
    at = _index(table, "--target", target)
    out = {at, *(_index(table, "--ignore", name) for name in ignored)}
    must(target not in ignored, "--ignore", target, "another column than the target")
    must(table.rows, "--data", path, "a file with rows below its header")
    rest = [i for i in range(len(table.names)) if i not in out]
    counted = [i for i in rest if _only_counts(table, i)]
    inputs = [i for i in rest if i not in counted]
    must(inputs, "--data", path, "a file with inputs beside the target")
    told = [f"column {table.names[i] or i + 1} left out: it numbers the rows" for i in counted]
    return at, inputs, told


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
    """Whether a column only numbers or names the rows, as pandas and R write one at the left."""
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
    """What a cell is as a number, None if it is none; and what was decided about commas.

    What a comma means is judged by all cells: one that is certain decides, two that differ are
    refused, and so is a file with none. Guessing from one cell would read 1,234 as 1234 beside 0,5.
    """
    cells = set().union(*map(table.column, columns))
    strange = {_joined(cell): cell for cell in itertools.filterfalse(PLAIN, cells)}
    english, german = (set(filter(kind, strange)) for kind in (ENGLISH, GERMAN))
    decimal = bool(german - english)
    thousands = bool(english - german)
    points = any(map(_has_point, cells))
    # Both are certain, or neither is though there are commas.
    if (english or german) and decimal == (thousands or points):
        _refuse_commas(table, strange[min(german)])
    if decimal:
        return _with_decimal_commas, ["decimal commas"]
    return _with_decimal_points, ["commas between thousands"] if english else []


def _has_point(cell: str) -> bool:
    """Whether a cell has a point before its decimals, as 1.5 does and 1.500 may not."""
    return "." in cell and bool(PLAIN(cell)) and not THOUSANDS(cell)


def _refuse_commas(table: Table, cell: str) -> None:
    line = next(n for n, row in zip(table.lines, table.rows, strict=True) if cell in row)
    may = f"{cell.replace(',', '.')} or {cell.replace(',', '')}"
    why = "the numbers of the file do not tell what its commas mean"
    raise ValueError(f"{table.path}, line {line}: {shown(cell)} may be {may}: {why}")


def _with_decimal_points(cell: str) -> float | None:
    text = _joined(cell)
    text = text.replace(",", "") if ENGLISH(text) else text
    return float(text) if PLAIN(text) else None


def _with_decimal_commas(cell: str) -> float | None:
    text = _joined(cell)
    # Its points stand between thousands, or in what is no number, as a date is.
    text = text.replace(".", "") if THOUSANDS(text) or GERMAN(text) else text
    text = text.replace(",", ".")
    return float(text) if PLAIN(text) else None


def _joined(cell: str) -> str:
    """A number without what separates its thousands, but for commas and points."""
    return re.sub(GROUP, "", cell) if GROUPED(cell) else cell


def _is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


def _words(values: Sequence[float | None], missing: Sequence[bool]) -> list[int]:
    """The rows in which there is something, but no finite number."""
    pairs = enumerate(zip(values, missing, strict=True))
    return [row for row, (value, lacks) in pairs if value in NO_NUMBER and not lacks]


def _refuse_words(table: Table, found: dict[int, list[int]], target: int) -> None:
    """Raises where columns hold what is no number, with the first place and how many there are."""
    found = {i: rows for i, rows in found.items() if rows}
    if not found:
        return
    i = target if target in found else next(iter(found))
    first, *others = found[i]
    more = f", and so {len(others)} cells below" if others else ""
    ignored = " ".join(f"--ignore {shlex.quote(table.names[j])}" for j in list(found)[:5])
    way = f"{ignored} to go on without" if i != target else "--task classes takes all as names"
    place = f"{table.path}, line {table.lines[first]}, column {shown(table.names[i])}"
    raise ValueError(f"{place} must be a number, got {shown(table.rows[first][i])}{more}; {way}")


def _refuse_missing(table: Table, missing: dict[int, list[bool]]) -> None:
    """Raises where cells are missing, with their number and the first place.

    Neither 0 nor the mean is put there: that would be an input which nobody measured.
    """
    counts = Counter({table.names[i]: sum(cells) for i, cells in missing.items() if any(cells)})
    if not counts:
        return
    row = min(cells.index(True) for cells in missing.values() if any(cells))
    i = next(i for i in sorted(missing) if missing[i][row])
    each = ", ".join(f"{count} in {shown(name)}" for name, count in counts.most_common(4))
    total = counts.total()
    lacks = f"{table.path} lacks {total} cell{'s' if total > 1 else ''}"
    place = f"the first in line {table.lines[row]}, column {shown(table.names[i])} ({each})"
    way = "fill them in, or leave out their rows, or their columns by --ignore"
    raise ValueError(f"{lacks}, {place}: {way}")
