"""The history of a run: sums on the device, one reading for each interval, one entry of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import is_real_scalar
from jax_lrreg._check import require
from jax_lrreg._optax_state import GROUP
from jax_lrreg.select import Report
from jax_lrreg.training.metrics import COUNTS, GROUPS, LAST, is_reserved

Logger = Callable[[int, dict[str, float]], Any]
Entry = dict[str, float]


def names_of(metrics: Iterable[str]) -> list[str]:
    """The metrics in the order in which their sums stand in one array, but for "skipped"."""
    return sorted(set(metrics) - {"skipped"})


def zero_sums(names: Sequence[str]) -> np.ndarray:
    """The sums of no step: of metrics, of skipped steps, and of those before the first of them."""
    return np.zeros(len(names) + 2, np.float32)


def add(sums: jax.Array, metrics: Mapping[str, jax.Array]) -> jax.Array:
    """The sums with one more step; traced into the compiled loop.

    They are one array, since a loop of small steps spends its time in the number of its kernels.
    The number of the first bad step is a sum too, of the good ones before it: a number of its own
    would be a kernel more.
    """
    names, skipped = names_of(metrics), metrics["skipped"]
    # What "raise" names is the first update that is not finite, whatever spikes came before it.
    bad, bad_before = skipped, sums[-2]
    if "spikes" in names:  # they are skipped, but not bad
        bad, bad_before = bad - metrics["spikes"], bad_before - sums[names.index("spikes")]
    before = (1 - bad) * (bad_before == 0)
    # Each is widened before they meet: beside a bfloat16 an integer would be rounded to 8 bits.
    each = [*(metrics[name] for name in names), skipped, before]
    new = jnp.stack([value.astype(jnp.float32) for value in each])
    counts, last = np.zeros((2, len(names) + 2), bool)
    counts[-2:], last[:-2] = True, [_of_last(name) for name in names]
    counts[:-2] = [name in COUNTS for name in names]
    # A choice, not a product with 0: what is skipped is NaN more often than not.
    return jnp.where(last, new, sums + jnp.where(counts | (skipped == 0), new, 0))


class Interval:
    """Steps in a row, whose metrics are added up on the device and fetched when they are asked for.

    Attributes:
        begin: the first of them.
        end: how many steps the run has made after the last of them.
        names: of the metrics, in the order of the sums.
        sums: as `add` makes them.
        closed: whether an entry of the history ends here.
        raises: whether a step that was skipped is an error.
        at_end: metrics of the state at the end.
    """

    def __init__(self, begin: int, end: int, names: list[str], closed: bool, raises: bool):
        self.begin, self.end, self.names = begin, end, names
        self.closed, self.raises = closed, raises
        self.sums: chex.Array = zero_sums(names)
        self.at_end: dict[str, jax.Array] = {}
        self._entry: Entry = {}

    def read(self) -> Entry:
        """The entry of these steps; the first call waits for the device and fetches all at once."""
        if not self._entry:
            # Everything in one request: each of them would wait for the device once more.
            with jax.profiler.TraceAnnotation("read metrics"):
                sums, at_end = jax.device_get((self.sums, self.at_end))
            *values, skipped, before = sums.tolist()
            found = dict(zip(self.names, values, strict=True))
            good, bad = self.end - self.begin - skipped, skipped - found.get("spikes", 0)
            if self.raises and bad:
                self._refuse(self.begin + int(before), int(bad) - 1)
            entry = {
                name: value if _of_last(name) else value / good if good else float("nan")
                for name, value in found.items()
            }
            entry |= {name: int(found[name]) for name in COUNTS if name in found}
            entry |= jax.tree.map(float, at_end)
            self._entry = entry | {"skipped": int(skipped)}
        return self._entry

    def _refuse(self, first: int, others: int) -> None:
        more = f" and {others} of the {self.end - first - 1} after it are" if others else " is"
        raise FloatingPointError(
            f"the update at step {first}{more} not finite; it is left out, and the steps after "
            "it have been made. A single call of the step, with that batch, tells loss and gradient"
        )


def _of_last(name: str) -> bool:
    """Whether the last step's value counts, not the mean."""
    return name in LAST or name.startswith((GROUP, GROUPS))


class History:
    """Collects entries and evaluations, and hands each to the loggers."""

    def __init__(self, loggers: Sequence[Logger]):
        listed = isinstance(loggers, list | tuple) and all(map(callable, loggers))
        allowed = "a list of functions (step, {name: number})"
        require(listed, "fit", "loggers", loggers, allowed, error=TypeError)
        self.loggers = loggers
        self.entries: dict[str, list[float]] = {"step": []}
        self.evaluations: dict[str, list[float]] = {}
        self.ended = self.interrupted = ""
        self._waiting: Interval | None = None

    def write(self, latest: Interval | None = None) -> tuple[int, Entry]:
        """Writes and returns the interval that waits, if one does; then `latest` waits instead.

        So the metrics are read one interval late, when the device has finished it and works on the
        next.
        """
        written, self._waiting = self._waiting, latest
        if written is None:
            return 0, {}
        return written.end, self._log(self.entries, {"step": written.end, **written.read()})

    def add_evaluation(
        self, now: int, values: Mapping[str, chex.Numeric], metrics: Iterable[str]
    ) -> Entry:
        """Takes what `eval_fn` returned after step `now`; no name of the `metrics` among it."""
        check_values(values)
        allowed = "a function whose names differ from the training metrics'"
        for name in values:
            require(not is_reserved(name) and name not in metrics, "fit", "eval_fn", name, allowed)
        before = self.evaluations.keys() - {"eval_step"}
        allowed = f"a function that returns the same names each time, {sorted(before)}"
        same = not before or values.keys() == before
        require(same, "fit", "eval_fn", sorted(values), allowed)
        entry = {name: float(value) for name, value in values.items()}
        return self._log(self.evaluations, {"eval_step": now, **entry})

    def _log(self, table: dict[str, list[float]], row: Entry) -> Entry:
        rows = len(next(iter(table.values()), []))
        for name in {**table, **row}:  # a branch of a run may report others than the run did
            column = table.setdefault(name, [float("nan")] * rows)
            column.append(row.get(name, float("nan")))
        (_, now), *entry = row.items()
        for logger in self.loggers:
            logger(int(now), dict(entry))
        return dict(entry)

    def end(self, step: int, why: str) -> None:
        """Says after which step the run ended, and why."""
        self.ended = f"after step {step}: {why}"

    def go_on(self, entries: dict[str, list], evaluations: dict[str, list], since: int) -> None:
        """Takes up the rows of a run that has come so far, and the loggers those alone.

        What a killed run logged after its last checkpoint is going to be logged again.
        """
        self.entries, self.evaluations = entries, evaluations
        steps = [since, *entries["step"], *evaluations.get("eval_step", [])]
        for logger in self.loggers:
            rewind = getattr(logger, "rewind", None)
            if rewind is not None:
                rewind(int(max(steps)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns."""
        said = {"ended": self.ended, "interrupted": self.interrupted}
        ended = {name: text for name, text in said.items() if text}
        columns = ended | self.entries | self.evaluations
        return {name: np.asarray(values) for name, values in columns.items()}


def check_values(values: Mapping[str, chex.Numeric]) -> None:
    """Refuses what an `eval_fn` returned, unless they are numbers by their names."""
    fits = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    fits = fits and all(map(is_real_scalar, values.values()))
    allowed = "a function that returns {name: number}"
    require(fits, "fit", "eval_fn", values, allowed, error=TypeError)


def compare(histories: Mapping[str, Mapping[str, Any]]) -> Report:
    """The last and the best value of each metric of several runs; prints as a table.

    Args:
        histories: what `fit` returned, by the name of the run.

    Returns:
        A `select.Report`: a row for each run and metric among loss, accuracy and what was
        evaluated. The best is the lowest, of an accuracy the highest.

    Example:
        >>> short = {"step": np.array([10, 20]), "loss": np.array([1.0, 0.5])}
        >>> long = {"step": np.array([10, 20]), "loss": np.array([1.0, 0.25])}
        >>> compare({"plain": short, "cosine": long})
        2 runs
        <BLANKLINE>
        metric  run     last  best  at step
        ------  ------  ----  ----  -------
        loss    plain   0.5   0.5   20
        loss    cosine  0.25  0.25  20
    """
    allowed = "{name: history}, as training.fit returns it"
    fits = isinstance(histories, Mapping) and len(histories) > 0
    fits = fits and all(isinstance(x, Mapping) and "step" in x for x in histories.values())
    require(fits, "compare", "histories", histories, allowed)
    rows = [row for label, run in histories.items() for row in _rows_of(str(label), run)]
    order = list(dict.fromkeys(name for name, *_ in rows))
    rows.sort(key=lambda row: order.index(row[0]))  # the runs of a metric side by side
    return Report(f"{len(histories)} runs", rows, ("metric", "run", "last", "best", "at step"))


def _rows_of(label: str, run: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name in run:
        if name == "loss" or "accuracy" in name or name in evaluated(run):
            values, best, step = best_of(run, name)
            if best is None:
                yield name, label, "nan", "nan", ""
            else:
                yield name, label, f"{values[-1]:.5g}", f"{best:.5g}", str(step)


def evaluated(history: Mapping[str, Any]) -> list[str]:
    """The names in a history that belong to `eval_step`: `fit` puts them behind it."""
    names = list(history)
    return names[names.index("eval_step") + 1 :] if "eval_step" in names else []


def best_of(history: Mapping[str, Any], name: str) -> tuple[np.ndarray, float | None, int]:
    """A metric's values, the best one and its step; None where no value is a finite number.

    The best is the lowest, of an accuracy the highest.
    """
    values = np.asarray(history[name], float)
    if not np.any(np.isfinite(values)):
        return values, None, 0
    best = int(np.nanargmax(values) if "accuracy" in name else np.nanargmin(values))
    steps = history["eval_step" if name in evaluated(history) else "step"]
    return values, float(values[best]), int(steps[best])
