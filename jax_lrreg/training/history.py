"""The history of a run: sums on the device, one reading per interval, one entry for each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import require
from jax_lrreg.training.control import GROUP
from jax_lrreg.training.report import LAST, is_reserved, nonfinite_message

Logger = Callable[[int, dict[str, float]], Any]


def zero_sums(shapes: dict[str, Any]) -> dict[str, Any]:
    """The sums of an interval that has no step yet, for metrics of these names."""
    last = {name: np.float32(0) for name in shapes if name in LAST or name.startswith(GROUP)}
    zeros = {name: np.float32(0) for name in shapes if name not in ("skipped", *last)}
    return {"mean": zeros, "last": last, "steps": np.int32(0), "skipped": np.int32(0)}


def add(sums: dict[str, Any], metrics: dict[str, jax.Array]) -> dict[str, Any]:
    """The sums with one more step; traced into the compiled loop."""
    skipped = metrics["skipped"]
    mean = {
        name: total + jnp.where(skipped > 0, 0, metrics[name].astype(jnp.float32))
        for name, total in sums["mean"].items()
    }
    last = {name: metrics[name] for name in sums["last"]}
    return {"mean": mean, "last": last, "steps": sums["steps"] + 1, "skipped": sums["skipped"] + skipped}


def read(now: int, sums: dict[str, Any], at_end: dict[str, jax.Array], raises: bool) -> dict[str, float]:
    """The entry of an interval that ends at step `now`; waits for the device, and fetches everything at once."""
    with jax.profiler.TraceAnnotation("read metrics"):
        sums, at_end = jax.device_get((sums, at_end))
    good = int(sums["steps"] - sums["skipped"])
    entry = {name: float(total) / good if good else float("nan") for name, total in sums["mean"].items()}
    entry |= {name: float(value) for name, value in (sums["last"] | at_end).items()}
    entry["skipped"] = int(sums["skipped"])
    if raises and entry["skipped"]:
        raise FloatingPointError(nonfinite_message(now - 1, entry).replace("at step", "at or before step"))
    return entry


class History:
    """Collects entries and evaluations, and hands each to the loggers."""

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers = loggers
        self.entries: dict[str, list[float]] = {"step": []}
        self.evaluations: dict[str, list[float]] = {}

    def add(self, now: int, entry: dict[str, float]) -> dict[str, float]:
        """Takes the metrics of the interval that ends at step `now`."""
        return self._log(self.entries, "step", now, entry)

    def add_evaluation(self, now: int, values: dict[str, Any]) -> dict[str, float]:
        """Takes what `eval_fn` returned after step `now`."""
        entry = {name: float(value) for name, value in values.items()}
        for name in entry:
            taken = is_reserved(name) or name in self.entries or name == "eval_step"
            require(not taken, "fit", "eval_fn", name, "a function whose names differ from the training metrics'")
        return self._log(self.evaluations, "eval_step", now, entry)

    def _log(self, table: dict[str, list[float]], index: str, now: int, entry: dict[str, float]) -> dict[str, float]:
        for name, value in {index: now, **entry}.items():
            table.setdefault(name, []).append(value)
        for logger in self.loggers:
            logger(now, dict(entry))
        return entry

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns."""
        return {name: np.asarray(values) for name, values in (self.entries | self.evaluations).items()}
