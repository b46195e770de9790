"""One process that writes to the folder of a run: a lock, one save at a time, old ones deleted."""

import contextlib
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import chex
import jax

from jax_lrreg._check import require
from jax_lrreg._processes import together
from jax_lrreg.checkpoints import arrays, manifest, notes
from jax_lrreg.checkpoints.folder import (
    ARRAYS,
    NOTES,
    Folder,
    Saved,
    best_of,
    find,
    finished,
    step_folders,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"
PAUSE = 60.0  # seconds between two checkpoints where `every` does not say


class Writer:
    """The folder of a run, held by this process from now until `close`.

    What a killed run left unfinished is deleted.

    Attributes:
        folder: what it was made of.
        begun: whether a run wrote here before.
    """

    def __init__(self, folder: Folder, owner: str = "fit"):
        self.folder, self.owner, self.root = folder, owner, Path(folder.path)
        self.begun = (self.root / LOCK).exists()
        self._lock = self._locked()
        try:
            self.process = jax.process_index()
            if self.process == 0:
                self._clean()
            together(0)  # before that another process would see what is being deleted
            self.about, self._bad = finished(self.root)
            newest = together(max(self.about, default=-1))
            allowed = "a folder that all processes see, with the same steps in it"
            given = f"{str(self.root)!r}, with the newest of {newest} on each (-1: none)"
            require(len(set(newest)) == 1, owner, "checkpoint", given, allowed)
            self._checkpointer: Any = None
            self._thread: threading.Thread | None = None
            self._error: BaseException | None = None
            self._last, self._step = time.monotonic(), max(self.about, default=0)
        except BaseException:
            os.close(self._lock)
            raise

    def _clean(self) -> None:
        for path in step_folders(self.root):
            if manifest.is_ours(path) and manifest.read(path) is None:
                manifest.remove(path)

    def latest(self) -> Saved | None:
        """The newest checkpoint, verified; None in a new run."""
        return find(self.root) if self.about or self._bad else None

    def is_due(self, step: int, metric: float | None) -> bool:
        """Whether a checkpoint is to be written after this step, where `best` had this value."""
        every = self.folder.every
        timely = time.monotonic() - self._last >= PAUSE
        due = timely if every is None else step // every > self._step // every
        return due or (metric is not None and self._is_best(metric))

    def _is_best(self, value: float) -> bool:
        if value != value:
            return False
        about = {**self.about, -1: {"metric": self._metric(value)}}  # the first of equals is best
        return best_of({step: about[step] for step in self.about} | {2**40: about[-1]}) == 2**40

    def _metric(self, value: float | None) -> dict[str, Any] | None:
        if value is None or value != value:
            return None
        return {"name": self.folder.best, "mode": self.folder.mode, "value": value}

    def save(
        self,
        step: int,
        trees: dict[str, chex.ArrayTree],
        about: dict[str, notes.Json],
        metric: float | None = None,
    ) -> None:
        """Writes a checkpoint; it returns as soon as the arrays may change."""
        self.wait()
        if step in self.about:
            return
        folder, self._last, self._step = self.root / str(step), time.monotonic(), step
        if self._checkpointer is None:
            self._checkpointer = arrays.checkpointer()
            logging.getLogger("absl").addFilter(self._is_of_others)
        try:
            values, records = arrays.flat(trees)
            text = notes.dumps({"notes": about, "arrays": records})
            if self.process == 0:
                manifest.open_folder(folder)
                (folder / NOTES).write_text(text, encoding="utf-8")
            arrays.begin(self._checkpointer, folder / ARRAYS, values)
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
            raise self._refusal(step, error) from error
        self._thread = threading.Thread(target=self._finish, args=(step, self._metric(metric)))
        self._thread.start()
        if not self.folder.asynchronous:
            self.wait()

    def _finish(self, step: int, metric: dict[str, notes.Json] | None) -> None:
        try:
            self._checkpointer.wait_until_finished()
            said = {"step": step, "metric": metric}
            if self.process == 0:
                manifest.seal(self.root / str(step), said)
            self.about[step] = said
            self._thin_out()
        except BaseException as error:  # it is raised where somebody waits for it
            self._error = error

    def _thin_out(self) -> None:
        """Deletes all but the latest and the best."""
        kept = {*sorted(self.about)[-self.folder.keep :], best_of(self.about)}
        for step in sorted(self.about.keys() - kept):
            del self.about[step]
            if self.process == 0:
                manifest.remove(self.root / str(step))

    def wait(self) -> None:
        """Returns when the checkpoint under way is valid; raises what kept it from that."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise self._refusal(self._step, error) from error

    def _is_of_others(self, record: logging.LogRecord) -> bool:
        # Orbax writes a page for each thread that failed; here the error is raised, in one line.
        return (
            record.levelno < logging.ERROR or str(self.root.absolute()) not in record.getMessage()
        )

    def _refusal(self, step: int, error: BaseException) -> OSError:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, in its long text
        told = os.strerror(int(number[1])) if number else getattr(error, "strerror", None)
        reason = told or str(error).split("\n")[0][:300]
        what = f"{self.owner}: `checkpoint`: step {step} could not be written to"
        return OSError(f"{what} {str(self.root)!r}: {reason}; what was there before stays")

    def close(self) -> None:
        """Waits, and lets others write."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                logging.getLogger("absl").removeFilter(self._is_of_others)
            os.close(self._lock)

    def _locked(self) -> int:
        """The handle of a file that is locked until it is closed, also by a kill."""
        path = self.root / LOCK
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            what = f"{self.owner}: `checkpoint`: {str(self.root)!r} cannot be written to"
            raise OSError(f"{what}: {error.strerror}") from None
        if fcntl is None or jax.process_index() != 0:
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise ValueError(
                f"{self.owner}: `checkpoint` must be a folder that no other run writes to, got "
                f"{str(self.root)!r}: process {other} does"
            ) from None
        except OSError:  # a file system without locks, such as some that are mounted over a network
            pass
        with contextlib.suppress(OSError):
            os.truncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle


def discard(root: Path) -> None:
    """Deletes the checkpoints in a folder, and the folder if nothing else is in it."""
    for path in step_folders(root):
        manifest.remove(path)
    (root / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        root.rmdir()
