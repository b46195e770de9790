"""One contender of `peers.py` in a process of its own: it runs once, and again at each line sent.

The problem is a folder with `recipe.json`, `start.npz` (parameters by path), and `data.npz`: the
examples of all batches, one after the other, as `x` and `y`. A contender is a pair of functions:
`reset() -> state`, which is not timed, and `run(state) -> params`, which waits for the result.
"""

import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """What a contender is to train."""

    name: str
    recipe: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    start: dict[str, np.ndarray]

    @property
    def batch_size(self) -> int:
        return len(self.x) // self.recipe["steps"]


class Pair(NamedTuple):
    """A contender."""

    reset: Callable[[], Any]
    run: Callable[[Any], dict[str, np.ndarray]]


def load(folder: pathlib.Path) -> Problem:
    recipe = json.loads((folder / "recipe.json").read_text())
    with np.load(folder / "data.npz") as data, np.load(folder / "start.npz") as start:
        return Problem(folder.name, recipe, data["x"], data["y"], dict(start))


def warmup_steps(recipe: dict[str, Any]) -> int:
    return int(recipe["warmup"] * recipe["steps"])


def rates(recipe: dict[str, Any]) -> list[float]:
    """The learning rate of every step."""
    steps, peak = recipe["steps"], recipe["peak"]
    if "power" in recipe:
        return [peak * (1 - t / steps) ** recipe["power"] for t in range(steps)]
    ramp = warmup_steps(recipe)
    down = [peak * (1 + np.cos(np.pi * t / (steps - ramp))) / 2 for t in range(steps - ramp)]
    return [peak * t / ramp for t in range(ramp)] + down


def peak_megabytes() -> float:
    """The most memory that this process has had at once."""
    status = pathlib.Path("/proc/self/status")
    if (
        status.exists()
    ):  # elsewhere the number may be that of the parent, from which the process was started
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(make: Callable[[Problem], Pair], folder: str) -> None:
    """Answers on the standard output, which the libraries are kept from, in lines of JSON."""
    answer, sys.stdout = sys.stdout, sys.stderr

    def say(**values: Any) -> None:
        answer.write(json.dumps(values) + "\n")
        answer.flush()

    path = pathlib.Path(folder)
    contender = make(load(path))

    def round_() -> tuple[float, dict[str, np.ndarray]]:
        state = contender.reset()
        began = time.perf_counter()
        params = contender.run(state)
        return time.perf_counter() - began, params

    first, _ = round_()
    _, params = round_()
    np.savez(path / "end.npz", **{name: np.asarray(value) for name, value in params.items()})
    say(first=first)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        say(seconds=round_()[0])
    say(peak=peak_megabytes())
