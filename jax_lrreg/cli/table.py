"""Text files of columns: encoding, separator and header are told apart, or refused by place."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jax_lrreg.cli.options import shown

BINARY = {
    b"PK\x03\x04": "a zip archive, as of Excel or NumPy",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x1f\x8b": "compressed by gzip",
    b"\x93NUMPY": "a single NumPy array",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite": "a database",
}
MARKS = {  # of Windows: Excel writes one before UTF-8, Notepad before UTF-16.
    # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE).fullmatch
# Lines that the separator is judged by: each of the five is tried on all of them, and a file may
# have a million.
SAMPLE = 200


class Table(NamedTuple):
    """A file as columns of text.

    Attributes:
        path: where it stands.
        names: of the columns; "" where the header has none.
        lines: the line in which each row begins, from 1.
        rows: the cells, without the spaces around them.
        notes: what was decided about the file, for people.
    """

    path: Path
    names: list[str]
    lines: list[int]
    rows: list[list[str]]
    notes: list[str]

    def column(self, index: int) -> list[str]:
        """The cells of one column."""
        return [row[index] for row in self.rows]


def read_table(path: Path) -> Table:
    """The columns of a text file; ValueError, with file and line, for what is none.

    Lines that are empty or begin with `#` are left out. A first line `sep=;`, as Excel writes it,
    names the separator; otherwise it is the one that cuts most lines into equally many cells.
    """
    text, encoding = _decoded(path)
    lines = io.StringIO(text, newline="").readlines()
    named = re.fullmatch(r'"?sep=(.)"?\s*', lines[0], re.IGNORECASE)
    remarks = {i: line for i, line in enumerate(lines) if line.lstrip().startswith("#")}
    for i in [*remarks, *([0] if named else [])]:
        lines[i] = "\n"  # so that those below keep their numbers
    mark = named[1] if named else _separator(lines)
    numbers, rows = _cells(path, lines, mark)
    _uncomment(remarks, mark, numbers, rows)
    names = _header(path, numbers, rows)
    dropped = {"comments": len(remarks), "lines of empty cells": _empty(numbers, rows)}
    rest = [f"{what} left out: {count}" for what, count in dropped.items() if count]
    notes = [f"{encoding} text", f"separated by {SEPARATORS.get(mark, repr(mark))}", *rest]
    return Table(path, names, numbers[1:], rows[1:], notes)


def _cells(path: Path, lines: Sequence[str], mark: str) -> tuple[list[int], list[list[str]]]:
    """The line each row begins in, and its cells."""
    try:
        found = list(_rows(lines, mark, strict=True))
    except csv.Error as error:
        line, why = error.args
        message = f"{path}, line {line} cannot be read ({why}): is a quote left open?"
        raise ValueError(message) from None
    if not found:
        raise ValueError(f"{path} has no lines but empty ones and comments")
    return [number for number, _ in found], [row for _, row in found]


def _uncomment(
    remarks: dict[int, str], mark: str, numbers: list[int], rows: list[list[str]]
) -> None:
    """Makes a header of the last comment above numbers: NumPy's savetxt writes it as one."""
    last = max((i for i in remarks if i < numbers[0]), default=-1)
    if last >= 0 and any(map(PLAIN, rows[0])):
        _, names = next(_rows([remarks[last].lstrip(" #")], mark), (0, []))
        if len(names) == len(rows[0]):
            numbers.insert(0, last + 1)
            rows.insert(0, names)
            del remarks[last]


def _decoded(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding."""
    raw = path.read_bytes()
    what = next((what for magic, what in BINARY.items() if raw.startswith(magic)), None)
    if what:
        raise ValueError(f"{path} must be text, but is {what}")
    encodings = _encodings(raw)
    for encoding in encodings:
        with suppress(UnicodeError):
            text = raw.decode(encoding)
            break
    else:
        why = f"its first bytes say {encodings[0]}, what follows is not"
        raise ValueError(f"{path} is not whole: {why}")
    if "\0" in text:
        raise ValueError(f"{path} must be text, but holds bytes that are zero")
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text, encoding


def _encodings(raw: bytes) -> list[str]:
    """The encodings to try, the likeliest first."""
    marked = [name for mark, name in MARKS.items() if raw.startswith(mark)][:1]
    # Latin letters in UTF-16 are every other byte a zero; Windows writes it without a mark at
    # times.
    even, odd = raw[:4096:2].count(0), raw[1:4096:2].count(0)
    half = len(raw[:4096]) // 4
    wide = ["utf-16-be"] if even > half else ["utf-16-le"] if odd > half else []
    # UTF-8 refuses nearly all text of Windows, cp1252 leaves five bytes undefined, and Latin-1
    # refuses none: it stands last.
    return marked or wide or ["utf-8", "cp1252", "latin-1"]


def _rows(lines: Sequence[str], mark: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line it begins in."""
    reader = csv.reader(iter(lines), delimiter=mark, skipinitialspace=True, strict=strict)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, [cell.strip() for cell in row]
            begin = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(begin, str(error)) from None


def _separator(lines: Sequence[str]) -> str:
    """The mark that cuts the largest share of lines into equally many cells, then into most."""

    def fit(mark: str) -> tuple[float, int]:
        sizes: Counter[int] = Counter()
        with suppress(csv.Error):
            sizes.update(len(row) for _, row in _rows(lines[:SAMPLE], mark))
        cells, count = max(sizes.items(), key=lambda pair: (pair[1], pair[0]), default=(1, 0))
        return (count / sizes.total(), cells) if cells > 1 else (0.0, 0)

    # Names and dates have spaces in them, so these separate only what nothing else does: less than
    # half of the lines agree on another mark, and nine in ten on spaces.
    best = max([mark for mark in SEPARATORS if mark != " "], key=fit)
    return best if fit(best)[0] >= 0.5 or fit(" ")[0] < 0.9 else " "


def _header(path: Path, numbers: list[int], rows: list[list[str]]) -> list[str]:
    """The names of the columns; cuts what trailing separators add to the rows."""
    names, *below = rows
    # Excel ends every line of a sheet with as many separators as its widest row once had.
    while names and not names[-1] and any(len(row) < len(names) for row in below):
        names.pop()
    for number, row in zip(numbers[1:], below, strict=True):
        _fit(row, len(names), f"{path}, line {number}", numbers[0])
    _cut_last(names, below)
    _refuse_doubled(names, f"{path}, line {numbers[0]}")
    return names


def _cut_last(names: list[str], rows: Sequence[list[str]]) -> None:
    """Takes out the last column where it is empty, header too: every line ends in a separator."""
    last = len(names) - 1
    if names and not names[last] and not any(row[last] for row in rows if any(row)):
        for row in (names, *rows):
            del row[last:]


def _fit(row: list[str], width: int, place: str, header: int) -> None:
    """Cuts empty cells at the end of a row; refuses one that has not as many as the header."""
    while len(row) > width and not row[-1]:
        row.pop()
    if len(row) != width and any(row):
        names = f"{width} values, as many as the header in line {header} has names"
        raise ValueError(f"{place} must have {names}, got {len(row)}")


def _refuse_doubled(names: Sequence[str], place: str) -> None:
    """Raises for a name of two columns: of a target, the other would stay among the inputs."""
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            places = [str(i + 1) for i, other in enumerate(names) if other == name]
            columns = f"for columns {', '.join(places[:5])}: which is meant?"
            raise ValueError(f"{place} names {shown(name)} {count} times, {columns}")


def _empty(numbers: list[int], rows: list[list[str]]) -> int:
    """Takes out the rows whose cells are all empty, as spreadsheets write them, and counts them."""
    empty = [i for i, row in enumerate(rows) if i and not any(row)]
    for i in reversed(empty):
        del numbers[i], rows[i]
    return len(empty)
