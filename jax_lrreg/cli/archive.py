"""Arrays from .npz files: nothing is unpacked before its size and type are known."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jax_lrreg._check import require
from jax_lrreg.cli.options import PROGRAM, one_of

MOST = (
    2**27
)  # numbers in an array: a GB as float64; 778 kB of zeros unpack to more, and a header may claim 8 TB
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
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
            others = [name for name in members if name != target]
            if "x" not in others and len(others) != 1:
                raise ValueError(
                    f"{path} must hold the inputs as `x`, or one array beside `{target}`: it has "
                    f"{', '.join(others) or 'none'}"
                )
            name = "x" if "x" in others else others[0]
            x, y = (_array(path, archive, members[key], key) for key in (name, target))
    except BROKEN as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        one_hot = y.ndim == 2 and np.all((y == 0) | (y == 1)) and np.all(y.sum(1) == 1)
        hint = f"; of one-hot rows give {target}.argmax(1)" if one_hot else ""
        raise ValueError(
            f"{path}: `{target}` must have the shape (n,) or (n, 1), got {y.shape}{hint}"
        )
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"{path}: `{name}` must have as many examples as `{target}` along its first axis, got shapes "
            f"{x.shape} and {y.shape}"
        )
    if len(x) and not x.size:
        raise ValueError(f"{path}: `{name}` must have inputs for each example, got shape {x.shape}")
    notes = [f"`{name}` flattened from {x.shape}"] if x.ndim > 2 else []
    return x.reshape(len(x), -1) if len(x) else x, y, [f"arrays `{name}` and `{target}`", *notes]


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array, in float64; refused by its header where it is not one of real and finite numbers."""
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}
            read[2, 0] = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read[version](file)
        except BROKEN:
            raise
        except (
            Exception
        ):  # a broken header ends in any of a dozen errors of NumPy and of its parser
            raise ValueError(f"{path}: `{name}` is no NumPy array") from None
        if dtype.kind not in "biuf":
            kind = KINDS.get(dtype.kind, dtype)
            raise ValueError(f"{path}: `{name}` must hold real numbers, but holds {kind}")
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count > MOST:
            raise ValueError(
                f"{path}: `{name}` must have at most {MOST} numbers, got shape {shape}"
            )
        raw = file.read(count * dtype.itemsize + 1)
    if len(raw) != count * dtype.itemsize:
        much = "fewer" if len(raw) < count * dtype.itemsize else "more"
        raise ValueError(f"{path}: `{name}` of shape {shape} holds {much} bytes than that")
    values = (
        np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").astype(np.float64)
    )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = f"{name}[{', '.join(map(str, bad[0]))}]"
        raise ValueError(
            f"{path}: `{name}` has {len(bad)} numbers that are missing or infinite, the first is {place}"
        )
    return values
