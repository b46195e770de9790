"""Another run that begins where one has come to."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from jax_lrreg._check import require
from jax_lrreg.checkpoints import manifest, notes
from jax_lrreg.checkpoints.folder import ARRAYS, NOTES, Folder, Location, find, step_folders
from jax_lrreg.checkpoints.writer import LOCK, Writer

KEPT = ("params",)


def branch(
    run: Location,
    into: Location,
    step: int | str = "latest",
    keep: Sequence[str] | None = None,
) -> int:
    """Makes a new run that goes on from a checkpoint of another, with a plan of its own.

    The state goes on: parameters, moments, counters, averages, the history. From there on another
    schedule, penalty, optimizer of the same state, batch size or data is no error. The old run is
    not touched.

    Args:
        run: the folder of the old run.
        into: the folder of the new one, which must not hold a run.
        step: "latest", "best", or a number.
        keep: `("params",)` to take nothing but the weights: optimizer, counters, averages and the
            history begin anew, at step 0, and the optimizer may be any. None keeps all.

    Returns:
        The step it was.

    Raises:
        ValueError: there is something in `into`; FileNotFoundError and Damaged as `restore`.

    Example:
        >>> branch("run/", into="cooled/", step=8000)  # doctest: +SKIP
        8000
    """
    place = _checked(into, keep)
    saved = find(Path(run), step)
    writer = Writer(Folder(place), "branch")  # which deletes what a kill left of an earlier call
    try:
        # What begins anew has made no step: its checkpoints are to be newer than this one.
        target = place / str(0 if keep else saved.step)
        manifest.open_folder(target)
        shutil.copytree(saved.folder / ARRAYS, target / ARRAYS)
        origin = {"run": str(Path(run).absolute()), "step": saved.step}
        about = {**saved.notes, "branched": origin, "keep": list(keep or ())}
        text = notes.dumps({"notes": about, "arrays": saved.records})
        (target / NOTES).write_text(text, encoding="utf-8")
        manifest.seal(target, {"step": saved.step, "metric": None})
    finally:
        writer.close()
    return saved.step


def _checked(into: Location, keep: Sequence[str] | None) -> Path:
    """The new folder, refused where there is something in it."""
    allowed = 'None or ("params",)'
    fits = keep is None or (not isinstance(keep, str) and tuple(keep) == KEPT)
    require(fits, "branch", "keep", keep, allowed)
    named = isinstance(into, str | os.PathLike) and bool(os.fspath(into))
    require(named, "branch", "into", into, "the path of a folder", TypeError)
    place = Path(into)
    empty = not os.path.lexists(place) or (place.is_dir() and not _others(place))
    require(empty, "branch", "into", str(place), "a folder that is new or empty")
    return place


def _others(place: Path) -> list[Path]:
    """What is in a folder, but for a lock and what a kill left of a checkpoint."""
    left = [p for p in step_folders(place) if manifest.is_ours(p) and manifest.read(p) is None]
    return [path for path in place.iterdir() if path.name != LOCK and path not in left]
