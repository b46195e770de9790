"""What a sweep found: its metrics along named axes, the best of them, and tables."""

import csv
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg._struct import number_text
from jax_lrreg.sweeps.grid import Grid, require_axis

ROWS = 60  # of a table that are printed
Over = str | Sequence[str] | None


@dataclasses.dataclass(frozen=True, repr=False)
class Best:
    """The best point of a sweep.

    Attributes:
        name: of the metric.
        hyper: the hyperparameters there, which print and read back; without those of the axes that
            the mean is over.
        index: the place in `result[name]`, with a slice for each axis that the mean is over.
        value: of the metric.
        error: its standard error over the members, NaN of a single one; None without `over`.
        diverged: how many members of the whole sweep are left out, as their metric is not finite.
    """

    name: str
    hyper: dict[str, Any]
    index: tuple[int | slice, ...]
    value: float
    error: float | None
    diverged: int

    def __repr__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2g}"
        hyper = (f"{name}={number_text(value)}" for name, value in self.hyper.items())
        left = f"; {self.diverged} diverged" if self.diverged else ""
        return f"Best({self.name} {self.value:.6g}{error} at {', '.join(hyper)}{left})"


class Table:
    """A table of a sweep, one row for each point; prints.

    Attributes:
        rows: dicts of numbers and texts by column.
    """

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __repr__(self) -> str:
        shown = self.rows[:ROWS]
        cells = [[*map(str, shown[0])], *([_cell(x) for x in row.values()] for row in shown)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        more = len(self.rows) - len(shown)
        lines += [f"... and {more} more rows"] if more else []
        return "\n".join(line.rstrip() for line in lines)

    def to_csv(self, path: str | Path) -> None:
        """Writes the table as a file of comma-separated values."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def to_pandas(self) -> Any:
        """The table as a frame of Pandas, which must be installed."""
        try:
            return importlib.import_module("pandas").DataFrame(self.rows)
        except ImportError as error:
            raise ImportError("to_pandas needs Pandas: pip install pandas") from error


class Result:
    """The metrics of every member of a sweep.

    `result[name]` is a NumPy array of the grid's shape; `result.axes` names its dimensions.

    Attributes:
        grid: what was swept.
        names: of the metrics.
        axes: the names of the axes, in the order given.
        shape: the number of points along each.
        complete: which members ran to their end; `halving` stops some before.
    """

    def __init__(
        self, grid: Grid, values: Mapping[str, np.ndarray], complete: np.ndarray | None = None
    ):
        self.grid, self._values = grid, dict(values)
        self.complete = np.ones(grid.shape, bool) if complete is None else complete
        self.names, self.axes, self.shape = tuple(self._values), grid.axes, grid.shape

    def __getitem__(self, name: str) -> np.ndarray:
        """A metric of every member."""
        require_choice("result", "name", name, self.names)
        return self._values[name]

    def __repr__(self) -> str:
        axes = ", ".join(f"{n}={k}" for n, k in zip(self.axes, self.shape, strict=True))
        every = np.stack([np.isfinite(values) for values in self._values.values()])
        lost = int(np.sum(~np.all(every, axis=0)))
        left = f"; {lost} of {self.grid.size} diverged" if lost else ""
        count = int(np.sum(self.complete))
        left += f"; {count} of {self.grid.size} complete" if count < self.grid.size else ""
        return f"Result({axes}; {', '.join(self.names)}{left})"

    def best(self, name: str, mode: str = "min", over: Over = None) -> Best:
        """The point where a metric is best; of several seeds, where its mean over them is.

        Members whose metric is not finite are left out, of a mean as well, and counted. So are, but
        for the counting, those that `halving` has stopped.

        Args:
            name: of the metric.
            mode: "min" or "max".
            over: an axis, or several, that the mean is over, such as that of the seeds.

        Raises:
            ValueError: no metric or axis has this name, or no member is finite.
        """
        require_choice("best", "mode", mode, ("min", "max"))
        mean, error = self.mean(name, over, "best")
        out = places_of("best", over, self.axes)
        mean = np.where(np.all(self.complete, axis=out, keepdims=True), mean, np.nan)
        finite = np.isfinite(mean).any()
        require(finite, "best", "name", name, "a metric that is finite somewhere")
        lost = int(np.sum(~np.isfinite(self[name])))
        flat = int(np.nanargmin(mean) if mode == "min" else np.nanargmax(mean))
        index = tuple(map(int, np.unravel_index(flat, mean.shape)))
        whole = tuple(slice(None) if i in out else at for i, at in enumerate(index))
        hyper = self.grid.hyper(whole)
        spread = None if error is None else float(error[index])
        return Best(name, hyper, whole, float(mean[index]), spread, lost)

    def mean(
        self, name: str, over: Over = None, owner: str = "mean"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The mean of a metric over some axes, which stay with length 1, and its standard error.

        What is not finite is left out: a mean of nothing is NaN, and so is the error of one.
        """
        values, out = self[name].astype(float), places_of(owner, over, self.axes)
        good = np.isfinite(values)
        if not out:
            return np.where(good, values, np.nan), None
        count = good.sum(axis=out, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(good, values, 0).sum(axis=out, keepdims=True) / count
            squares = np.where(good, values - mean, 0) ** 2
            variance = squares.sum(axis=out, keepdims=True) / np.maximum(count - 1, 0)
            return mean, np.sqrt(variance / count)

    def table(self, over: Over = None) -> Table:
        """One row for each point: hyperparameters, then metrics; with `over`, means and errors.

        A metric that is called as a hyperparameter is "lr (metric)" there.
        """
        out = places_of("table", over, self.axes)
        labels = [self.grid.labels(axis) for axis in range(len(self.shape))]
        columns = self._columns(over)
        shape = tuple(1 if axis in out else n for axis, n in enumerate(self.shape))
        rows = []
        for index in np.ndindex(*shape):
            kept = (axis for axis in range(len(shape)) if axis not in out)
            row = {k: v for axis in kept for k, v in labels[axis][index[axis]].items()}
            rows.append(row | {name: values[index].item() for name, values in columns.items()})
        return Table(rows)

    def _columns(self, over: Over) -> dict[str, np.ndarray]:
        """The metrics, or with `over` their means and errors."""
        columns: dict[str, np.ndarray] = {}
        for name in self.names:
            mean, error = self.mean(name, over, "table")
            column = f"{name} (metric)" if name in self.grid.places else name
            columns[column] = self[name] if error is None else mean
            if error is not None:
                columns[f"{column} error"] = error
        return columns

    def to_csv(self, path: str | Path, over: Over = None) -> None:
        """Writes `table` as a file of comma-separated values."""
        self.table(over).to_csv(path)

    def to_pandas(self, over: Over = None) -> Any:
        """`table` as a frame of Pandas, which must be installed."""
        return self.table(over).to_pandas()


def places_of(owner: str, over: Over, axes: Sequence[str]) -> tuple[int, ...]:
    """The places of one axis, of several, or of none."""
    allowed = f"an axis of {', '.join(axes)}, a list of them, or None"
    named = over is None or isinstance(over, str | list | tuple)
    require(named, owner, "over", over, allowed, error=TypeError)
    names: Sequence[str] = [over] if isinstance(over, str) else over or ()
    require(len({*names}) == len(names), owner, "over", over, "each axis once")
    return tuple(require_axis(owner, "over", name, axes) for name in names)


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def require_width(owner: str, value: int | None, size: int) -> int | None:
    """`max_parallel`, at most the number of members; None where it is to be found."""
    if value is None:
        return None
    return min(require_whole(owner, "max_parallel", value), size)
