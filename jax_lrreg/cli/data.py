"""The data of the command line: scikit-learn's bundled sets, and files of your own."""

import csv
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_lrreg._check import require

BUNDLED = ("digits", "diabetes", "breast_cancer")


class Dataset(NamedTuple):
    """Examples split into training and test sets, inputs standardised by the training set.

    Attributes:
        train, test: pairs (x, y) of NumPy arrays; y is float32 for regression, int32 for classes.
        classes: the number of classes, or 0 for regression.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int


def load(data: str, target: str | None, seed: int) -> Dataset:
    """A bundled data set of scikit-learn by name, or a .npz or .csv file; a fifth of it is for testing."""
    if data in BUNDLED:
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{data}")(return_X_y=True)
    else:
        x, y = _load_file(Path(data), target)
    x, y = np.asarray(x, np.float64).reshape(len(x), -1), np.asarray(y)
    for name, values in (("inputs", x), ("target", y)):
        bad = np.count_nonzero(~np.isfinite(values.astype(np.float64)))
        require(
            bad == 0,
            "--data",
            data,
            f"{bad} missing or infinite {name}",
            "a file of finite numbers",
        )
    require(len(x) >= 10, "--data", data, len(x), "at least 10 examples")
    order = np.random.default_rng(seed).permutation(len(x))
    held = max(1, len(x) // 5)
    test, train = order[:held], order[held:]
    classes = _classes(y)
    if classes:
        y = np.searchsorted(np.unique(y), y).astype(np.int32)
    scale = x[train].std(0)
    x = ((x - x[train].mean(0)) / np.where(scale > 0, scale, 1)).astype(np.float32)
    y = y if classes else y.astype(np.float32)
    return Dataset((x[train], y[train]), (x[test], y[test]), classes)


def _load_file(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    kinds = (".npz", ".csv")
    require(
        path.suffix in kinds,
        "train",
        "--data",
        str(path),
        f"one of {', '.join(BUNDLED)}, or a .npz or .csv file",
    )
    if not path.is_file():
        raise FileNotFoundError(f"--data: there is no file {str(path)!r}")
    return _load_npz(path, target or "y") if path.suffix == ".npz" else _load_csv(path, target)


def _load_npz(path: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    require(zipfile.is_zipfile(path), "train", "--data", str(path), "a file that numpy.savez made")
    with np.load(path, allow_pickle=False) as file:
        require(target in file, "train", "--target", target, f"one of the arrays {', '.join(file)}")
        names = [name for name in file if name != target]
        require(
            "x" in names or len(names) == 1,
            "train",
            "--data",
            names,
            "a file with inputs `x` and a target `y`",
        )
        try:
            return file["x" if "x" in names else names[0]], file[target]
        except ValueError:
            raise ValueError(
                f"--data: {path} must hold arrays of numbers, but holds Python objects"
            ) from None


def _load_csv(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    require(
        target is not None, "train", "--target", target, f"one of the columns {', '.join(header)}"
    )
    require(
        target in header, "train", "--target", target, f"one of the columns {', '.join(header)}"
    )
    table = np.empty((len(rows), len(header)))
    for number, row in enumerate(rows, start=2):
        require(
            len(row) == len(header),
            "--data",
            f"{path}, line {number}",
            len(row),
            f"{len(header)} values",
        )
        for column, value in enumerate(row):
            try:
                table[number - 2, column] = float(value)
            except ValueError:
                raise ValueError(
                    f"--data: {path}, line {number}, column {header[column]!r} must be a number, got {value!r}"
                ) from None
    index = header.index(target)  # type: ignore[arg-type]
    return np.delete(table, index, 1), table[:, index]


def _classes(y: np.ndarray) -> int:
    """The number of classes where the target is a few whole numbers, else 0."""
    values = np.unique(y)
    whole = y.ndim == 1 and np.all(values == np.round(values)) and 2 <= len(values) <= 50
    return len(values) if whole and len(y) >= 5 * len(values) else 0
