"""Side by side in one run: warm up, take turns, wait for the device, report medians and ratios."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np


def machine() -> str:
    """The device and the versions that a table was measured with."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "optax", "flax"))
    device = jax.devices()[0]
    python = f"Python {platform.python_version()}"
    return f"{device.device_kind} ({os.cpu_count()} CPU cores), {python}, {versions}"


def interleaved(
    calls: dict[str, Callable[[], Any]], *, rounds: int, untimed: int = 0
) -> dict[str, np.ndarray]:
    """Seconds of each call in each round, [rounds]; the order turns around from round to round.

    `untimed` calls before each timed one bring memory and caches into the state that the call
    itself leaves.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: 1 if index % 2 else -1]:
            for _ in range(untimed):
                jax.block_until_ready(calls[name]())
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in seconds.items()}


def show(seconds: dict[str, np.ndarray], *, baseline: str, each: int = 1) -> str:
    """A Markdown table: the median time of one of `each` parts, and its ratio to `baseline`."""
    lines = ["| what | microseconds | ratio | from | to |", "|---|---|---|---|---|"]
    for name, values in seconds.items():
        ratios = values / seconds[baseline]
        low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        lines.append(
            f"| {name} | {1e6 * np.median(values) / each:.4g} "
            f"| {middle:.3f} | {low:.3f} | {high:.3f} |"
        )
    return "\n".join(lines)
