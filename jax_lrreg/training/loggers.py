"""Ready loggers for `fit`: functions `(step, {name: number})` for CSV, JSON lines, TensorBoard.

A file that is there already is continued and never cut, so a run that goes on writes where it
stopped. An entry is in the file when the call returns: a crash loses nothing that was logged. Where
the disk is full, the OSError comes with the file as it was before the entry. A run that goes on
from a checkpoint calls `rewind(step)` first, which takes out the rows after that step: what a
killed run logged after its last checkpoint is logged again.
"""

import csv
import io
import json
import math
import os
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jax_lrreg._check import require

Location = str | os.PathLike[str]


def log_csv(path: Location) -> Callable[[int, dict[str, float]], None]:
    """Writes a table with a row for each step that has an entry, and a column for each name.

    What an evaluation finds joins the row of its step. A name that is new becomes a column at the
    right; rows above it stay empty there. Where a run goes on from an earlier step than the last
    row, steps occur twice, and the later rows count.

    Args:
        path: the file; its folder is made.

    Returns:
        A function `(step, metrics)`, for `fit(..., loggers=[...])`.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "run", "metrics.csv")
        >>> log = log_csv(path)
        >>> log(100, {"loss": 0.5}), log(200, {"loss": 0.25}), log(200, {"val_loss": 0.75})
        (None, None, None)
        >>> print(path.read_text().strip())
        step,loss,val_loss
        100,0.5,
        200,0.25,0.75
    """
    return _silent if jax.process_index() else _Table(_file(path, "log_csv"))


def _silent(step: int, metrics: dict[str, float]) -> None:
    """Writes nothing: of several processes, the first one writes the file."""
    del step, metrics


class _Table:
    """A CSV file: its columns, and its last row and where that begins."""

    def __init__(self, path: Path):
        self.path = path
        self.names: list[str] = ["step"]
        self.last: dict[str, Any] = {}
        self.begin = 0
        if self._has_rows():
            with path.open(newline="", encoding="utf-8") as file:
                self.names = next(csv.reader(file))
            require(
                self.names[0] == "step",
                "log_csv",
                "path",
                str(path),
                "a table whose first column is `step`",
            )
            _end_line(path)

    def _has_rows(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to the row of `step` if it is the last one, and else a row."""
        there = self._has_rows()
        same = there and self.last.get("step") == step
        row = {**(self.last if same else {}), "step": step, **metrics}
        new = [name for name in row if name not in self.names]
        if new or not there:
            self._widen(new, there)
        self.begin = self.begin if same else self.path.stat().st_size
        _write_tail(self.path, self.begin, _row([row.get(name, "") for name in self.names]))
        self.last = row

    def rewind(self, step: int) -> None:
        """Takes out the rows after `step`."""
        self.last, self.begin = {}, 0
        if self._has_rows():
            with self.path.open(newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
            rows = [row for row in rows if not _is_after(row[0], step)]
            if rows:  # what an evaluation finds next may belong to the last of them
                pairs = zip(head, rows[-1], strict=False)
                self.last = {name: value for name, value in pairs if value != ""}
                self.last["step"] = int(rows[-1][0]) if rows[-1][0].isdigit() else rows[-1][0]
            lines = [_row(row) for row in (head, *rows)]
            write_whole(self.path, lambda file: file.writelines(lines))
            self.begin = sum(map(len, lines[:-1]))

    def _widen(self, new: list[str], there: bool) -> None:
        """Writes the file anew with more columns: it appears whole, or the old one stays."""
        rows: list[list[str]] = []
        if there:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
        self.names += new
        lines = [_row(row + [""] * (len(self.names) - len(row))) for row in [self.names, *rows]]
        write_whole(self.path, lambda file: file.writelines(lines))
        self.begin = sum(map(len, lines[:-1]))


def _is_after(text: object, step: int) -> bool:
    """Whether a row is of a later step; one that is cut off is of none, and stays."""
    try:
        return int(str(text)) > step
    except ValueError:
        return False


def _row(values: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode()


def log_jsonl(path: Location) -> Callable[[int, dict[str, float]], None]:
    """Writes an object `{"step": ..., name: number, ...}` a line, evaluations apart.

    JSON has no number that is not finite: those become null.

    Args:
        path: the file; its folder is made.

    Returns:
        A function `(step, metrics)`, for `fit(..., loggers=[...])`.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "metrics.jsonl")
        >>> log_jsonl(path)(100, {"loss": 0.5})
        >>> print(path.read_text().strip())
        {"step": 100, "loss": 0.5}
    """
    file = _file(path, "log_jsonl")
    file.touch()
    _end_line(file)

    if jax.process_index():
        return _silent

    def log(step: int, metrics: dict[str, float]) -> None:
        entry = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, **entry}) + "\n"
        file.touch()
        _write_tail(file, file.stat().st_size, line.encode())

    def rewind(step: int) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_after(_step_of(line), step)]
        write_whole(file, lambda whole: whole.writelines(kept))

    log.rewind = rewind  # type: ignore[attr-defined]
    return log


def _step_of(line: bytes) -> object:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def log_tensorboard(folder: Location) -> Callable[[int, dict[str, float]], None]:
    """Writes each number as a scalar that TensorBoard shows; needs the extra `tensorboard`.

    A run that goes on adds another file to the folder, as TensorBoard expects it.

    Args:
        folder: the folder of the run, as for `tensorboard --logdir`.

    Returns:
        A function `(step, metrics)`, for `fit(..., loggers=[...])`.

    Raises:
        ImportError: without tensorboardX.

    Example:
        >>> log = log_tensorboard("runs/first")  # doctest: +SKIP
        >>> options = {"steps": 1000, "loggers": [log]}  # doctest: +SKIP
        >>> state, history = training.fit(step, state, data, **options)  # doctest: +SKIP
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-not-found]
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[import-not-found]
        from tensorboardX.summary import scalar  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "log_tensorboard needs tensorboardX: pip install 'jax_lrreg[tensorboard]'"
        ) from error
    place = Path(folder)
    require(not place.is_file(), "log_tensorboard", "folder", str(place), "a folder, not a file")
    place.mkdir(parents=True, exist_ok=True)
    # Not SummaryWriter: its queue and thread lose the latest entries in a crash.
    writer = EventsWriter(str(place / "events"), f".{os.getpid()}.{time.time_ns()}")

    if jax.process_index():
        return _silent

    def log(step: int, metrics: dict[str, float]) -> None:
        event = Event(wall_time=time.time(), step=step)
        for name, value in metrics.items():
            event.summary.MergeFrom(scalar(name, value))
        writer.write_event(event)
        writer.flush()

    def rewind(step: int) -> None:
        # TensorBoard forgets what an older file of the folder says of later steps.
        writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        writer.flush()

    log.rewind = rewind  # type: ignore[attr-defined]
    weakref.finalize(log, writer.close)
    return log


def write_whole(path: Path, save: Callable[[Any], Any]) -> None:
    """Makes or replaces a file by what `save` writes: it appears whole, or what was there stays."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            save(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _end_line(path: Path) -> None:
    """Ends the last line of a file, which a crash may have cut off."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")


def _write_tail(path: Path, begin: int, line: bytes) -> None:
    """Puts a line where something stands from `begin` on, which comes back if that fails."""
    # Without a buffer: what a full disk did not take would be written again when the file is
    # closed.
    with path.open("rb+", buffering=0) as file:
        file.seek(begin)
        before = file.read()
        try:
            _overwrite(file, begin, line)
        except OSError:
            _overwrite(file, begin, before)
            raise


def _overwrite(file: io.FileIO, begin: int, content: bytes) -> None:
    file.seek(begin)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]  # a nearly full disk takes a part, and refuses the next
    file.truncate()


def _file(path: Location, owner: str) -> Path:
    file = Path(path)
    require(not file.is_dir(), owner, "path", str(file), "a file, not a folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
