"""The data of the command line: scikit-learn's bundled sets, and files of your own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_lrreg._check import require
from jax_lrreg.cli.archive import load_archive
from jax_lrreg.cli.columns import load_table
from jax_lrreg.cli.options import PROGRAM, hint, needing, one_of, shown

BUNDLED = {"digits": "classes", "diabetes": "regression", "breast_cancer": "classes"}
Pair = tuple[np.ndarray, np.ndarray]


class Dataset(NamedTuple):
    """Examples split into training and test sets, standardised by the training set.

    Attributes:
        train: inputs [examples, columns] in float32 of mean 0 and variance 1, and targets
            [examples]: in float32 of mean 0 and variance 1 for regression, numbers of classes in
            int32 else.
        test: the same of the fifth of the examples that is kept for it.
        labels: the classes in order, none for regression.
        target: mean and standard deviation that the targets had, (0, 1) for classes.
        task: what is learnt, and who says so, for people.
        notes: what was decided about a file, for people.
    """

    train: Pair
    test: Pair
    labels: list[str]
    target: tuple[float, float]
    task: str
    notes: list[str]


def load(
    data: str, target: str | None, ignored: Sequence[str], task: str | None, seed: int
) -> Dataset:
    """A bundled data set of scikit-learn by name, or a file; a fifth of it is for testing.

    What is no number, is missing or cannot be told apart is refused by its place. Everything is
    reckoned in float64 until it is standardised: a target of 1e8 and a thousandth has no
    thousandths in float32.
    """
    require(data, PROGRAM, "--data", data, "the name of a data set or a file")
    if data in BUNDLED:
        task = task or BUNDLED[data]
        x, y = _bundled(data, target, ignored)
        notes = ["bundled with scikit-learn"]
    else:
        x, y, notes = _read(Path(data), target, ignored, task)
    if len(y) < 10:
        raise ValueError(f"--data must have at least 10 examples, {data} has {len(y)}")
    labels = _labels(data, y, task)
    held = max(1, len(y) // 5)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:held], order[held:]
    y, scale = _targets(data, y, train, labels)
    x = standardised(x, train)[0].astype(np.float32)
    names = [] if labels is None else [str(label).removesuffix(".0") for label in labels]
    said, other = (f"{len(names)} classes", "regression") if names else ("regression", "classes")
    said += "" if task else f" (guessed; --task {other} for the other)"
    return Dataset((x[train], y[train]), (x[test], y[test]), names, scale, said, notes)


def _targets(
    data: str, y: np.ndarray, train: np.ndarray, labels: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Numbers of classes, or the standardised target, with the mean and deviation it had."""
    if labels is not None:
        return np.searchsorted(labels, y).astype(np.int32), (0.0, 1.0)
    y, mean, spread = standardised(y, train)
    if spread == 0:
        raise ValueError(f"{data}: the target is the same in all rows that train, {mean:g}")
    return y.astype(np.float32), (float(mean), float(spread))


def standardised(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """`values` less their mean, by their standard deviation, and these two.

    Both are those of the rows `train`: the test set is not to be looked at. What does not vary in
    them becomes 0: its deviation is rounding, or nothing.
    """
    largest = np.abs(values).max(axis=0)
    scale = np.where(largest > 0, largest, 1)  # squares of 1e200 overflow, those of 1e-200 vanish
    scaled = values / scale
    mean, spread = scaled[train].mean(axis=0), scaled[train].std(axis=0)
    # The range of equal numbers is exactly 0; their deviation may be a rounding of 1e-17, and the
    # rows that test, which differ, would become huge by it.
    spread = np.where(np.ptp(scaled[train], axis=0) > 0, spread, 0)
    result = np.where(spread > 0, (scaled - mean) / np.where(spread > 0, spread, 1), 0)
    return result, mean * scale, spread * scale


def _bundled(
    data: str, target: str | None, ignored: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    for option, value in (("--target", target), ("--ignore", ignored)):
        require(not value, PROGRAM, option, value, f"left out for {data}, which has its own target")
    with needing("scikit-learn", f"--data {data}"):
        from sklearn import datasets

    return getattr(datasets, f"load_{data}")(return_X_y=True)


def _read(
    path: Path, target: str | None, ignored: Sequence[str], task: str | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    kinds = (".npz", ".csv", ".tsv", ".txt")
    if not path.exists():
        if path.suffix.lower() not in kinds and path.parent == Path():
            one_of("--data", str(path), BUNDLED, where=f", or a file {', '.join(kinds)}")
        there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"--data: there is no file {str(path)!r}{hint(path.name, there)}")
    require(path.is_file(), PROGRAM, "--data", str(path), "a file")
    try:
        path.open("rb").close()
    except OSError as error:  # else an archive without rights would be told to be no archive
        raise ValueError(f"--data: {str(path)!r} cannot be read: {error.strerror}") from None
    if path.suffix.lower() != ".npz":
        return load_table(path, target, ignored, task == "classes")
    require(
        not ignored, PROGRAM, "--ignore", ignored, "left out for .npz, whose columns have no names"
    )
    return load_archive(path, target)


def _labels(data: str, y: np.ndarray, task: str | None) -> np.ndarray | None:
    """The classes in order, None for regression.

    Words are classes, and so are whole numbers that are few, unless `task` says.
    """
    values = np.unique(y)
    words = y.dtype.kind == "U"
    if task is None:
        # Five examples of each at least, and no more than 50: years and counts are numbers.
        few = 2 <= len(values) <= min(50, len(y) // 5)
        task = "classes" if words or (few and np.all(values == np.round(values))) else "regression"
    if task == "regression":
        require(not words, PROGRAM, "--task", task, "classes for a target of words")
        return None
    if not 2 <= len(values) <= len(y) // 2:
        allowed = f"2 to {len(y) // 2} different values to be classes"
        has = f"{len(values)}, such as {shown(str(values[0]))}"
        raise ValueError(f"{data}: the target must have {allowed}, it has {has}")
    return values
