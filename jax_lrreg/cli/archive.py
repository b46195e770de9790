"""Arrays from .npz files: nothing is unpacked before its size and type are known."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np

from jax_lrreg._check import require
from jax_lrreg.cli.options import PROGRAM, one_of

# Numbers in an array: a GB as float64. A bomb is a small file that unpacks to more than memory
# holds (778 kB of packed zeros are 1.8 GiB), and a header may claim 8 TB that are not there.
MOST = 2**27
# Of zipfile: RuntimeError is for a password, NotImplementedError for a method it does not know.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
# `np.load` is not used: it allocates what the header claims, and unpickles objects, which is
# running the file's code.
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
Order = Literal["C", "F"]
KINDS = {
    "O": "Python objects",
    "c": "complex numbers",
    "U": "text",
    "S": "bytes",
    "M": "dates",
    "m": "durations",
    "V": "records",
}


def load_archive(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs `x`, or the only other array, and the target, `y` unless named.

    Returns:
        Inputs [examples, numbers] and target [examples], both in float64, and what was decided
        about them.
    """
    whole = zipfile.is_zipfile(path)
    require(whole, PROGRAM, "--data", str(path), "a whole file as numpy.savez makes it")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            target = one_of("--target", target or "y", members, "the arrays ", f" of {path}")
            name = _inputs(path, members, target)
            x, y = (_array(path, archive, members[key], key) for key in (name, target))
    except BROKEN as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    # A column of targets would broadcast against a row of predictions to n x n differences.
    y = y[:, 0] if y.shape[1:] == (1,) else y
    _refuse_shapes(path, name, x, target, y)
    notes = [f"`{name}` flattened from {x.shape}"] if x.ndim > 2 else []
    return x.reshape(len(x), -1) if len(x) else x, y, [f"arrays `{name}` and `{target}`", *notes]


def _refuse_shapes(path: Path, name: str, x: np.ndarray, target: str, y: np.ndarray) -> None:
    one_hot = y.ndim == 2 and np.all((y == 0) | (y == 1)) and np.all(y.sum(1) == 1)
    hint = f"; of one-hot rows give {target}.argmax(1)" if one_hot else ""
    _must(y.ndim == 1, path, target, f"have the shape (n,) or (n, 1), got {y.shape}{hint}")
    shapes = f"along its first axis, got shapes {x.shape} and {y.shape}"
    _must(x.shape[:1] == y.shape, path, name, f"have as many examples as `{target}` {shapes}")
    filled = x.size > 0 or not len(y)
    _must(filled, path, name, f"have inputs for each example, got shape {x.shape}")


def _must(right: bool, path: Path, name: str, what: str) -> None:
    if not right:
        raise ValueError(f"{path}: `{name}` must {what}")


def _inputs(path: Path, members: Mapping[str, zipfile.ZipInfo], target: str) -> str:
    """The name of the array of inputs."""
    others = [name for name in members if name != target]
    if "x" not in others and len(others) != 1:
        has = ", ".join(others) or "none"
        inputs = f"the inputs as `x`, or one array beside `{target}`"
        raise ValueError(f"{path} must hold {inputs}: it has {has}")
    return "x" if "x" in others else others[0]


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array, in float64; refused by its header where it is not one of finite numbers."""
    with archive.open(info) as file:
        shape, order, dtype = _header(path, file, name)
        size = math.prod(shape) * dtype.itemsize
        raw = file.read(size + 1)  # never `read()`: a bomb has any number of bytes behind these
    if len(raw) != size:
        much = "fewer" if len(raw) < size else "more"
        raise ValueError(f"{path}: `{name}` of shape {shape} holds {much} bytes than that")
    values = np.frombuffer(raw, dtype).reshape(shape, order=order).astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        first = f"the first is {name}[{', '.join(map(str, bad[0]))}]"
        missing = f"has {len(bad)} numbers that are missing or infinite, {first}"
        raise ValueError(f"{path}: `{name}` {missing}")
    return values


def _header(path: Path, file: IO[bytes], name: str) -> tuple[tuple[int, ...], Order, np.dtype]:
    """Shape, order and type of an array; refused where they are not those of real numbers."""
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except BROKEN:
        raise
    except Exception:  # a broken header ends in any of a dozen errors of NumPy and of its parser
        raise ValueError(f"{path}: `{name}` is no NumPy array") from None
    holds = KINDS.get(dtype.kind, dtype)
    _must(dtype.kind in "biuf", path, name, f"hold real numbers, but holds {holds}")
    # Two lengths below zero have a product above it.
    possible = min(shape, default=0) >= 0 and math.prod(shape) <= MOST
    _must(possible, path, name, f"have at most {MOST} numbers, got shape {shape}")
    return shape, "F" if fortran else "C", dtype
