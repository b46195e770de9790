"""The history of a run: sums on the device, one reading per interval, one entry for each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg._optax_state import GROUP
from jax_lrreg.training.report import LAST, is_reserved

Logger = Callable[[int, dict[str, float]], Any]


def rows(metrics: Iterable[str]) -> list[str]:
    """The metrics in the order in which their sums stand in one array, "skipped" at the end."""
    return [*sorted(set(metrics) - {"skipped"}), "skipped"]


def zero_sums(metrics: Iterable[str]) -> dict[str, Any]:
    """The sums of an interval that has no step yet, for metrics of these names."""
    return {"values": np.zeros(len(rows(metrics)), np.float32), "steps": np.int32(0)}


def add(values: jax.Array, metrics: dict[str, jax.Array]) -> jax.Array:
    """The sums with one more step; traced into the compiled loop.

    One array, since a loop of small steps spends its time in the number of its kernels.
    """
    names = rows(metrics)
    new = jnp.stack([metrics[name].astype(jnp.float32) for name in names])
    counts = np.array([name == "skipped" for name in names])
    total = values + jnp.where(counts | (metrics["skipped"] == 0), new, 0)
    return jnp.where(np.array([_of_last(name) for name in names]), new, total)


def read(
    now: int, names: list[str], sums: dict[str, Any], at_end: dict[str, Any], raises: bool
) -> dict[str, float]:
    """The entry of an interval that ends at step `now`; waits for the device, and fetches everything at once."""
    with jax.profiler.TraceAnnotation("read metrics"):
        sums, at_end = jax.device_get((sums, at_end))
    *values, skipped = (float(value) for value in sums["values"])
    good = int(sums["steps"]) - int(skipped)
    entry = {
        name: value if _of_last(name) else value / good if good else float("nan")
        for name, value in zip(names, values, strict=False)
    }
    entry |= {name: float(value) for name, value in at_end.items()}
    entry["skipped"] = int(skipped)
    if raises and entry["skipped"]:
        count, begin = entry["skipped"], now - int(sums["steps"])
        raise FloatingPointError(
            f"{count} of the updates at steps {begin} to {now - 1} {'was' if count == 1 else 'were'} not finite and "
            "left out; the steps after it have been made. A single call of the step tells loss and gradient"
        )
    return entry


def _of_last(name: str) -> bool:
    """Whether the last step's value counts, not the mean."""
    return name in LAST or name.startswith(GROUP)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float | np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
    )


class History:
    """Collects entries and evaluations, and hands each to the loggers."""

    def __init__(self, loggers: Sequence[Logger]):
        listed = isinstance(loggers, list | tuple) and all(map(callable, loggers))
        require(
            listed,
            "fit",
            "loggers",
            loggers,
            "a list of functions (step, {name: number})",
            error=TypeError,
        )
        self.loggers = loggers
        self.entries: dict[str, list[float]] = {"step": []}
        self.evaluations: dict[str, list[float]] = {}

    def add(self, now: int, entry: dict[str, float]) -> dict[str, float]:
        """Takes the metrics of the interval that ends at step `now`."""
        return self._log(self.entries, "step", now, entry)

    def add_evaluation(
        self, now: int, values: dict[str, Any], metrics: Iterable[str]
    ) -> dict[str, float]:
        """Takes what `eval_fn` returned after step `now`, by other names than those of the `metrics`."""
        numbers = isinstance(values, dict) and all(map(_is_number, values.values()))
        require(
            numbers,
            "fit",
            "eval_fn",
            values,
            "a function that returns {name: number}",
            error=TypeError,
        )
        entry = {name: float(value) for name, value in values.items()}
        for name in entry:
            taken = is_reserved(name) or name in metrics
            require(
                not taken,
                "fit",
                "eval_fn",
                name,
                "a function whose names differ from the training metrics'",
            )
        before = set(self.evaluations) - {"eval_step"}
        allowed = f"a function that returns the same names each time, {sorted(before)}"
        require(not before or set(entry) == before, "fit", "eval_fn", sorted(entry), allowed)
        return self._log(self.evaluations, "eval_step", now, entry)

    def _log(
        self, table: dict[str, list[float]], index: str, now: int, entry: dict[str, float]
    ) -> dict[str, float]:
        for name, value in {index: now, **entry}.items():
            table.setdefault(name, []).append(value)
        for logger in self.loggers:
            logger(now, dict(entry))
        return entry

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns."""
        return {
            name: np.asarray(values) for name, values in (self.entries | self.evaluations).items()
        }
