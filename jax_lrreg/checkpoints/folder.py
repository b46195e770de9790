"""The folder of a run: which steps it holds, and how one of them is restored."""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg.checkpoints import arrays, manifest, notes
from jax_lrreg.checkpoints.manifest import Damaged
from jax_lrreg.checkpoints.notes import Json

Location = str | os.PathLike[str]
T = TypeVar("T")
ARRAYS, NOTES = "arrays", "run.json"  # beside the manifest, in the folder of a step


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where a run is kept, and how often: `fit(..., checkpoint=Folder("run/", every=1000))`.

    Each checkpoint is a folder named by its step. One folder holds one run, and one process at a
    time writes to it.

    Attributes:
        path: the folder; it is made.
        every: steps between two checkpoints, rounded up to the end of a call of the device; None
            for one a minute at most. There is one at the end in any case.
        keep: how many of the latest stay, at least 1.
        best: the name of a metric that `eval_fn` returns: there is also a checkpoint of each
            evaluation that is better than all before, and the best stays beside the latest.
        mode: "min" if lower is better, or "max".
        asynchronous: whether training goes on while a checkpoint is written. It waits until the
            arrays have been copied to the host.

    Raises:
        TypeError, ValueError: by the name of the argument.

    Example:
        >>> Folder("run", every=1000, best="val_loss")
        Folder(path='run', every=1000, keep=3, best='val_loss', mode='min', asynchronous=True)
    """

    path: Location
    every: int | None = None
    keep: int = 3
    best: str | None = None
    mode: str = "min"
    asynchronous: bool = True

    def __post_init__(self):
        _folder("Folder", self.path)
        if self.every is not None:
            require_whole("Folder", "every", self.every, allowed="a whole number >= 1, or None")
        require_whole("Folder", "keep", self.keep)
        named = self.best is None or (isinstance(self.best, str) and self.best)
        allowed = "the name of a metric that `eval_fn` returns, or None"
        require(named, "Folder", "best", self.best, allowed, TypeError)
        require_choice("Folder", "mode", self.mode, ("min", "max"))
        flag = isinstance(self.asynchronous, bool)
        require(flag, "Folder", "asynchronous", self.asynchronous, "True or False", TypeError)


class Saved(NamedTuple):
    """A checkpoint that has been verified: `notes` as JSON, and arrays to be loaded.

    Attributes:
        folder: of the step.
        step: how many steps the run had made.
        notes: what is no array.
        records: of the arrays, in their order.
    """

    folder: Path
    step: int
    notes: dict[str, Any]
    records: arrays.Records

    def holds(self, name: str, field: str = "") -> bool:
        """Whether a tree was saved under this name, with anything in the field."""
        return any(record["path"].startswith(f"['{name}']{field}") for record in self.records)

    def load(self, name: str, like: T, owner: str, field: str = "") -> T:
        """The tree of this name, or a field of it, with the structure and the places of `like`."""
        begin, tree = f"['{name}']{field}", cast(Any, like)
        return cast(T, arrays.load(self.folder / ARRAYS, self.records, begin, tree, owner))


def steps(path: Location) -> list[int]:
    """The steps of which a folder holds a finished checkpoint, in order.

    What a kill left unfinished is none. The files are looked at when one is restored.

    Raises:
        Damaged: a manifest is not what was written, or is missing.

    Example:
        >>> steps("no/such/run")
        []
    """
    there, bad = finished(_folder("steps", path))
    if bad:
        raise bad[min(bad)]
    return sorted(there)


def restore(path: Location, like: T, step: int | str = "latest", damaged: str = "error") -> T:
    """The state of a run at one of its checkpoints, verified.

    Args:
        path: the folder of the run.
        like: a state of the same structure, from `training.init`: it says on which devices and
            with which shardings. What the saved one has beyond it, an average or a window of
            spikes, is added.
        step: "latest", "best", or the number of a step; see `steps`.
        damaged: what happens where a file is not what was written: "error", or "older" for the
            next older checkpoint that is whole, with a warning.

    Returns:
        A new state. Those of other programs' structure, shapes or dtypes are refused by the path of
        the leaf.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        Damaged: a file of it was changed, lost or added; the message names it.

    Example:
        >>> state = restore("run/", like=state)  # doctest: +SKIP
    """
    require_choice("restore", "damaged", damaged, ("error", "older"))
    return restored(find(_folder("restore", path), step, damaged), like, "restore")


def restored(saved: Saved, like: T, owner: str) -> T:
    """The state of a checkpoint; of a branch that took the weights alone, `like` with those."""
    if saved.notes.get("keep"):
        params = saved.load("state", like.params, owner, ".params")  # type: ignore[attr-defined]
        return dataclasses.replace(like, params=params)  # type: ignore[type-var]
    complete = getattr(like, "completed", None)
    return saved.load("state", like if complete is None else complete(saved.notes["added"]), owner)


def find(root: Path, step: int | str = "latest", damaged: str = "error") -> Saved:
    """A checkpoint of a run, its files verified."""
    there, bad = finished(root)
    wanted = _wanted(root, there, bad, step)
    left = sorted(number for number in (*there, *bad) if number <= wanted)
    while left:
        number = left.pop()
        try:
            if number in bad:
                raise bad[number]
            return _verified(root / str(number))
        except Damaged as error:
            if damaged == "error":
                way = "; it counts once the folder of this one is moved away"
                hint = f"; the next older one is of step {left[-1]}{way}" if left else ""
                raise Damaged(f"{error}{hint}") from None
            warnings.warn(f"{error}; looking at an older checkpoint", stacklevel=3)
    raise Damaged(f"restore: {str(root)!r} has no checkpoint up to step {wanted} that is whole")


def _wanted(root: Path, there: dict[int, Json], bad: dict[int, Damaged], step: int | str) -> int:
    """The number of the step that is meant, which must be there."""
    if isinstance(step, str):
        require_choice("restore", "step", step, ("latest", "best"))
        found = max((*there, *bad), default=None) if step == "latest" else best_of(there)
    else:
        number = require_whole("restore", "step", step, 0, allowed="'latest', 'best' or a step")
        found = number if number in there or number in bad else None
    if found is None:
        have = ", ".join(map(str, sorted(there))) or "none"
        kinds = {"latest": "", "best": " with a metric"}
        which = kinds.get(str(step), f" of step {step}")
        raise FileNotFoundError(f"restore: {str(root)!r} has no checkpoint{which}; it has {have}")
    return found


def _verified(folder: Path) -> Saved:
    manifest.check(folder)
    found = notes.load(folder / NOTES)
    return Saved(folder, int(folder.name), found["notes"], found["arrays"])


def best_of(about: dict[int, Json]) -> int | None:
    """The step of the best metric, the first of equal ones, or None where none has one."""
    scores = {step: x["metric"] for step, x in sorted(about.items()) if x["metric"] is not None}
    if not scores:
        return None
    # A run may have been given another `best` on the way: the latest says what counts.
    meant = list(scores.values())[-1]
    sign = 1 if meant["mode"] == "min" else -1
    keys = ("name", "mode")
    same = {n: x["value"] for n, x in scores.items() if all(x[k] == meant[k] for k in keys)}
    return min(same, key=lambda step: sign * same[step])


def finished(root: Path) -> tuple[dict[int, Json], dict[int, Damaged]]:
    """What the manifests say about finished checkpoints, by their steps, and which are damaged."""
    there, bad = {}, {}
    for folder in step_folders(root):
        number = int(folder.name)
        try:
            about = manifest.read(folder)
        except Damaged as error:
            bad[number] = error
            continue
        if about is None:
            if not manifest.is_ours(folder) and (folder / NOTES).exists():
                path = str(folder / manifest.NAME)
                bad[number] = Damaged(f"checkpoints: the file {path!r} is missing")
        elif number not in (about["step"], 0):  # at 0 a branch of weights alone begins
            name = f"is a copy of step {about['step']} under another name"
            bad[number] = Damaged(f"checkpoints: the folder {str(folder)!r} {name}")
        else:
            there[number] = about
    return there, bad


def step_folders(root: Path) -> list[Path]:
    """The folders that are named as a step, finished or not; links are refused."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if _is_step(path.name)]
    for path in named:
        if path.is_symlink():
            raise Damaged(f"checkpoints: {str(path)!r} is a link, which no checkpoint is")
    return [path for path in named if path.is_dir()]


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 10 and str(int(name)) == name


def _folder(owner: str, path: object) -> Path:
    allowed = "the path of a folder"
    fits = isinstance(path, str | os.PathLike) and bool(os.fspath(path))
    require(fits, owner, "path", path, allowed, TypeError)
    root = Path(path)  # type: ignore[arg-type]
    require("\0" not in str(root), owner, "path", str(root), allowed)
    require(not root.exists() or root.is_dir(), owner, "path", str(root), "a folder, not a file")
    return root
