"""What makes a step's folder valid, and ours: a manifest with the SHA-256 of every file in it.

A folder begins with a manifest that says it is unfinished and gets the finished one last, renamed
into place. It is deleted the other way round. So a kill at any moment leaves a folder that counts,
or one that the next run knows to be its own and deletes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from jax_lrreg.checkpoints.notes import Json

NAME = "manifest.json"
PART = "manifest.json.part"
FORMAT = "jax_lrreg checkpoint 1"
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Damaged(ValueError):
    """A checkpoint is not what was written; the message names the file."""


def open_folder(folder: Path) -> None:
    """Makes a step's folder, unfinished."""
    folder.mkdir()
    _write(folder, {"files": None})


def seal(folder: Path, about: dict[str, Json]) -> None:
    """Makes a step valid: the last thing that is written."""
    files = {name: _sum_of(folder / name) for name in sorted(_names(folder)) if name != NAME}
    _write(folder, {"files": files, "about": about})


def read(folder: Path) -> dict[str, Json] | None:
    """What was said `about` a finished step; None where the folder is unfinished or not ours."""
    body = _read(folder)
    return body["about"] if body and body["files"] is not None else None


def check(folder: Path) -> None:
    """Refuses a finished step with a file that was changed, lost or added, by its name."""
    body = _read(folder)
    if not body or body["files"] is None:
        raise Damaged(f"checkpoints: {str(folder)!r} is no finished checkpoint")
    files, there = body["files"], set(_names(folder)) - {NAME}
    for name in sorted(there ^ files.keys()):
        what = "is missing" if name in files else "is not in the manifest"
        raise Damaged(f"checkpoints: the file {str(folder / name)!r} {what}")
    for name, expected in files.items():
        if _sum_of(folder / name) != expected:
            raise Damaged(
                f"checkpoints: the file {str(folder / name)!r} is damaged: its SHA-256 is not that "
                "of the manifest"
            )


def is_ours(folder: Path) -> bool:
    """Whether a folder may be deleted: it carries our manifest, or a kill left it without any."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if (folder / NAME).is_file():
        try:
            return _read(folder) is not None
        except Damaged:
            return False  # for a person to look at
    return set(os.listdir(folder)) <= {PART}


def remove(folder: Path) -> None:
    """Deletes a step's folder, which from the first moment on is no valid step."""
    if not is_ours(folder):
        raise ValueError(f"checkpoints: {str(folder)!r} carries no manifest of ours: it stays")
    if (folder / NAME).exists():
        _write(folder, {"files": None})
    for name in sorted(os.listdir(folder), key=lambda name: name == NAME):
        path = folder / name
        # A link is removed, never followed.
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def _names(folder: Path) -> Iterator[str]:
    """The files below a folder, by their paths in it; links and odd names are refused."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not _SAFE.fullmatch(name):
                what = "a link" if path.is_symlink() else "no name of [A-Za-z0-9._-]{1,64}"
                raise Damaged(f"checkpoints: {str(path)!r} is {what}, which no checkpoint has")
        yield from (Path(place, name).relative_to(folder).as_posix() for name in files)


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(body: dict[str, Json]) -> str:
    # Its own sum is in it too: a flipped bit in the name of a file is no missing file.
    inner = json.dumps(body, sort_keys=True)
    own = hashlib.sha256(inner.encode()).hexdigest()
    return f'{{"format": "{FORMAT}", "sha256": "{own}", "body": {inner}}}\n'


def _write(folder: Path, body: dict[str, Json]) -> None:
    part = folder / PART
    with part.open("w", encoding="utf-8") as file:
        file.write(_text(body))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / NAME)
    sync(folder)


def sync(folder: Path) -> None:
    """Makes names that were given in a folder outlast a loss of power, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError:  # nor does every file system that is mounted over a network
        pass
    finally:
        os.close(handle)


def _read(folder: Path) -> dict[str, Json] | None:
    path = folder / NAME
    if folder.is_symlink() or path.is_symlink() or not path.is_file():
        return None
    content = path.read_bytes()
    try:
        body = json.loads(content)["body"]
        whole = content == _text(body).encode() and body.keys() >= {"files"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole, body = False, None
    if not whole:
        raise Damaged(f"checkpoints: the file {str(path)!r} is damaged")
    return body
