"""What may stop a run and when, and the state that was best until then."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg.training.state import State

Stop = Callable[[int, Mapping[str, float]], Any]  # (step, what `eval_fn` returned) -> whether


@dataclasses.dataclass
class Patience:
    """Stops a run that no longer improves: `fit(..., stop=Patience("val_loss", evaluations=10))`.

    It says True after so many evaluations in a row of which none was better than the best before
    them by more than `min_delta`. One that is not a number is none. It goes on counting where `fit`
    is called with it again: another run, or one that is to wait anew, takes a new one.

    Attributes:
        name: of a metric that `eval_fn` returns.
        evaluations: how many, at least 1.
        mode: "min" if lower is better, or "max".
        min_delta: what an improvement exceeds, at least 0, in the unit of the metric.
        best: the best value so far, or None.
        waited: how many evaluations in a row have not improved on it.

    Example:
        >>> stop = Patience("loss", evaluations=2, min_delta=0.1)
        >>> [stop(step, {"loss": loss}) for step, loss in enumerate([1.0, 0.5, 0.45, 0.41])]
        [False, False, False, True]
    """

    name: str
    evaluations: int
    mode: str = "min"
    min_delta: float = 0.0
    best: float | None = dataclasses.field(default=None, init=False)
    waited: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        _check_metric("Patience", self.name, self.mode)
        self.evaluations = require_whole("Patience", "evaluations", self.evaluations)
        require_number("Patience", "min_delta", self.min_delta, "a number >= 0", lambda x: x >= 0)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the run has waited long enough."""
        del step
        value = _value("Patience", self.name, metrics)
        if _is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.evaluations

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"name": self.name, "mode": self.mode, "best": self.best, "waited": self.waited}

    def set_state(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept."""
        _check_same("stop", self, saved)
        self.best, self.waited = saved["best"], saved["waited"]


@dataclasses.dataclass
class Deadline:
    """Stops a run after a time: `fit(..., stop=Deadline(seconds=3600))`.

    The time begins with the call of `fit`. It is asked after each call of the device, not only
    after evaluations, and what is under way on the device is waited for.

    Attributes:
        seconds: how long, above 0.

    Example:
        >>> Deadline(seconds=3600)
        Deadline(seconds=3600)
    """

    seconds: float

    def __post_init__(self):
        require_number("Deadline", "seconds", self.seconds, "a number > 0", lambda x: x > 0)
        self.begin()

    def begin(self) -> None:
        """Counts from now on."""
        self._end = time.monotonic() + self.seconds

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    # Evaluations may be far apart: `fit` asks `is_over` after each call of the device as well.
    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the time is over."""
        del step, metrics
        return self.is_over()


class Best:
    """Holds a copy of the state at the best evaluation: `fit(..., keep_best=Best("val_loss"))`.

    It is on the device, and safe from donation. What is not a number is never best; of equal ones
    the first is. Where `fit` is called with it again, what comes must be better than before:
    another run takes a new one.

    Args:
        name: of a metric that `eval_fn` returns.
        mode: "min" if lower is better, or "max".

    Attributes:
        state: the best state, or None before the first evaluation.
        step: how many steps it had made.
        value: of the metric there.

    Example:
        >>> Best("val_accuracy", mode="max")
        Best('val_accuracy', mode='max')
    """

    def __init__(self, name: str, mode: str = "min"):
        _check_metric("Best", name, mode)
        self.name, self.mode = name, mode
        self.state: State | None = None
        self.step: int | None = None
        self.value: float | None = None

    def __repr__(self) -> str:
        found = "" if self.step is None else f", step={self.step}, value={self.value:.6g}"
        return f"Best({self.name!r}, mode={self.mode!r}{found})"

    def see(self, step: int, metrics: Mapping[str, float], state: State) -> None:
        """Keeps a copy of `state`, if it is better than all before."""
        value = _value("Best", self.name, metrics)
        if _is_better(value, self.value, self.mode):
            self.state, self.step, self.value = state.copy(), step, value

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside the state."""
        return {"name": self.name, "mode": self.mode, "step": self.step, "value": self.value}

    def set_state(self, saved: Mapping[str, Any], state: State | None) -> None:
        """Goes on from what a checkpoint kept."""
        _check_same("keep_best", self, saved)
        self.step, self.value, self.state = saved["step"], saved["value"], state


def check_stopping(
    stop: Stop | None, keep_best: Best | None, eval_fn: Callable | None, eval_every: int | None
) -> None:
    """Refuses what would never be asked, or could not answer."""
    allowed = "a function (step, {name: number}) -> bool, or None"
    require(stop is None or callable(stop), "fit", "stop", stop, allowed, TypeError)
    require(not isinstance(stop, type), "fit", "stop", stop, "an object, not its class", TypeError)
    kept = keep_best is None or isinstance(keep_best, Best)
    require(kept, "fit", "keep_best", keep_best, "a training.Best, or None", TypeError)
    if stop is not None and not isinstance(stop, Deadline):
        require(eval_every is not None, "fit", "eval_every", None, "given where `stop` is")
    require(keep_best is None or eval_fn, "fit", "eval_fn", None, "given where `keep_best` is")


def judged(
    stop: Stop | None,
    keep_best: Best | None,
    step: int,
    values: Mapping[str, float],
    state: State,
) -> bool:
    """Whether the run is to end after this evaluation; keeps the state, if it is the best."""
    if keep_best is not None:
        keep_best.see(step, values, state)
    return stop is not None and bool(stop(step, values))


def names_asked(**arguments: object) -> dict[str, str]:
    """The names of metrics that arguments speak of, those that do."""
    named = {key: getattr(value, "name", value) for key, value in arguments.items()}
    return {key: name for key, name in named.items() if isinstance(name, str)}


def name_of(stop: object) -> str:
    """What to call that which stopped a run."""
    return getattr(stop, "__name__", None) or repr(stop)


def settings_of(stop: object) -> str | None:
    """What a checkpoint knows `stop` by: a run that it ended goes on with another one."""
    if dataclasses.is_dataclass(stop):
        given = [field.name for field in dataclasses.fields(stop) if field.init]
        return f"{type(stop).__name__}({', '.join(repr(getattr(stop, x)) for x in given)})"
    kind = stop if hasattr(stop, "__qualname__") else type(stop)
    return None if stop is None else getattr(kind, "__qualname__", None)


def _check_same(argument: str, own: Patience | Best, saved: Mapping[str, Any]) -> None:
    """Refuses to compare values with those of another metric."""
    same = (own.name, own.mode) == (saved["name"], saved["mode"])
    allowed = f"of {saved['name']!r} and mode {saved['mode']!r}, as that of the checkpoint"
    require(same, "fit", argument, own, allowed)


def _check_metric(owner: str, name: object, mode: object) -> None:
    allowed = "the name of a metric that `eval_fn` returns"
    require(isinstance(name, str) and name, owner, "name", name, allowed, TypeError)
    require_choice(owner, "mode", mode, ("min", "max"))


def _value(owner: str, name: str, metrics: Mapping[str, float]) -> float:
    require_choice(owner, "name", name, sorted(metrics))
    return float(metrics[name])


def _is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    if math.isnan(value) or best is None:
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta
