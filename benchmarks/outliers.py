"""Of 100 bad batches, how many does `training.Spike` skip, and how many of the good ones?

    python benchmarks/outliers.py [--tiny]

A bad batch has labels of other examples, and every second one inputs of 100 times the size too (of
characters, which are no numbers, other characters). They come at random after the first 300 steps,
by when a model calls most examples right. Beside them stands the run without bad batches, and what
becomes of one that takes them all. Losses are the mean over the good batches of the last quarter.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from _timing import machine
from _workloads import cross_entropy
from cooldown_average import Problem, problems

from jax_lrreg import schedules, training

SPIKES = {
    "taken": None,
    "mean": training.Spike(sigma=6.0, window=128),
    "median": training.Spike(sigma=6.0, window=128, robust=True),
}


def batches(work: Problem, steps: int, bad: set[int]) -> Iterator[dict[str, np.ndarray]]:
    """The same batches in the same order, but for the bad ones."""
    rng = np.random.default_rng(1)
    for step in range(steps):
        rows = rng.integers(0, len(work.arrays["x"]), work.batch_size)
        batch = {name: value[rows] for name, value in work.arrays.items()}
        if step in bad:
            other = np.random.default_rng(step)
            batch["y"] = other.permutation(batch["y"].ravel()).reshape(batch["y"].shape)
            if step % 2 and np.issubdtype(batch["x"].dtype, np.floating):
                batch["x"] = 100 * batch["x"]
            elif step % 2:
                batch["x"] = other.permutation(batch["x"].ravel()).reshape(batch["x"].shape)
        yield batch


def run(work: Problem, steps: int, bad: set[int], spike: training.Spike | None) -> tuple[Any, Any]:
    """Which steps were skipped, and the loss of each."""
    tx = optax.adam(schedules.Constant(work.rate).warmup(steps // 20))
    step = training.make_step(work.module, cross_entropy, tx, on_spike=spike)
    example = work.arrays["x"][:1]
    state = training.init(work.module, tx, key=jax.random.key(0), example=example)
    _, history = training.fit(step, state, batches(work, steps, bad), steps=steps, log_every=1)
    return history["skipped"] > 0, history["loss"]


def row(name: str, title: str, found: tuple[Any, Any], bad: set[int]) -> str:
    skipped, losses = found
    each = np.isin(np.arange(len(losses)), list(bad))
    good = ~each & (np.arange(len(losses)) >= 0.75 * len(losses))
    share = skipped[~each].mean()
    last = np.nanmean(losses[good])
    return (
        f"| {name} | {title} | {skipped[each].sum()} of {each.sum()} | {share:.2%} | {last:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    tiny = parser.parse_args().tiny
    steps, first, count = (40, 20, 4) if tiny else (2000, 300, 100)
    print(machine())
    print("\n| problem | judged by | bad ones skipped | good ones skipped | loss at the end |")
    print("|---|---|---|---|---|")
    chosen = dict(list(problems(tiny).items())[: 1 if tiny else None])  # compiling takes longest
    for name, work in chosen.items():
        steps_of = np.random.default_rng(2).choice(np.arange(first, steps), count, replace=False)
        bad = set(steps_of.tolist())
        print(row(name, "none are bad", run(work, steps, set(), SPIKES["mean"]), set()), flush=True)
        for title, spike in SPIKES.items():
            print(row(name, title, run(work, steps, bad, spike), bad), flush=True)


if __name__ == "__main__":
    main()
