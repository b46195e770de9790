"""Does the average that stands for a cooldown reach the loss of a real one?

    python benchmarks/cooldown_average.py [--tiny] [--picture FILE]

Runs at a constant rate keep `averages.Cooldown` within the step, for cooldowns over the last 10, 20
and 40 % of the run. From the same run, at the steps where these begin, others leave and cool down
for real, over the same batches. Printed are the losses on held-out examples at the end, the mean
over the seeds, which are trained side by side; the last column is the worst seed's difference. The
picture shows what the average promises at each step of the run before it ends, and where the real
cooldowns end.
"""

import argparse
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine
from _workloads import Mlp, Transformer, cross_entropy, digits, held_out, text

from jax_lrreg import averages, schedules, training

SHARES = (0.1, 0.2, 0.4)
SHAPE = "1-sqrt"


class Problem(NamedTuple):
    """What is trained: `held` are the examples that it is judged by."""

    module: nn.Module
    arrays: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    batch_size: int
    rate: float
    steps: int


class Run(NamedTuple):
    """Held-out losses, each [seeds] or [seeds, steps]."""

    constant: np.ndarray
    average: dict[float, np.ndarray]
    along: dict[float, np.ndarray]
    cooled: dict[float, np.ndarray]


def problems(tiny: bool) -> dict[str, Problem]:
    characters, symbols = text(4_000 if tiny else 100_000, 32)
    shape = (1, 8, 2) if tiny else (2, 32, 4)
    return {
        "digits MLP": problem(Mlp((64, 64, 10)), digits(), 32, 2e-3, 20 if tiny else 1000),
        "char transformer": problem(
            Transformer(*shape, symbols), characters, 8, 3e-3, 20 if tiny else 1000
        ),
    }


def problem(module: nn.Module, arrays: Any, batch: int, rate: float, steps: int) -> Problem:
    """The problem with a fifth of the examples held out."""
    return Problem(module, *held_out(arrays, len(arrays["x"]) // 5), batch, rate, steps)


def compare(work: Problem, seeds: int, points: int, shares: tuple[float, ...]) -> Run:
    """All runs of a problem; the average is read at so many steps."""

    def loss(state: training.State) -> jax.Array:
        variables = {"params": state.params}
        return cross_entropy(lambda x: work.module.apply(variables, x), work.held)

    def advance(step: training.Step, state: training.State, rows: jax.Array) -> training.State:
        def one(state: training.State, index: jax.Array) -> tuple[training.State, None]:
            batch = {name: jnp.asarray(x)[index] for name, x in work.arrays.items()}
            return step.body(state, batch)[0], None

        return jax.lax.scan(one, state, rows)[0]

    def made(lr: schedules.Schedule, average: averages.Average | None = None) -> training.Step:
        return training.make_step(work.module, cross_entropy, optax.adam(lr), average=average)

    def run(key: jax.Array) -> dict[str, Any]:
        constant = schedules.Constant(work.rate).warmup(work.steps // 20)
        example = work.arrays["x"][:1]
        first = training.init(work.module, optax.adam(constant), key=key, example=example)
        shape = (work.steps, work.batch_size)
        rows = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, len(work.arrays["x"]))
        found: dict[str, Any] = {"average": {}, "along": {}, "cooled": {}}
        for share in shares:
            steps = round(share * work.steps)
            average = averages.Cooldown(steps, shape=SHAPE)
            step, stops = made(constant, average), work.steps // points

            def part(state, rows, step=step):
                state = advance(step, state, rows)
                return state, loss(training.averaged(state))

            # The run in equal parts; after each, what a cooldown would have given.
            parts = rows.reshape(points, stops, -1)
            state, along = jax.lax.scan(part, step.complete(first), parts)
            found["constant"], found["average"][share] = loss(state), along[-1]
            found["along"][share] = along
            begin = work.steps - steps
            lr = constant.cooldown(steps, at=begin, shape=SHAPE)
            found["cooled"][share] = loss(advance(made(lr), first, rows))
        return found

    keys = jax.random.split(jax.random.key(0), seeds)
    return Run(**jax.device_get(jax.jit(jax.vmap(run))(keys)))


def picture(runs: dict[str, Run], work: dict[str, Problem], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        1, len(runs), figsize=(10, 3.6), layout="constrained", squeeze=False
    )
    axes = grid[0]
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        steps = work[name].steps
        for color, share in zip(("C0", "C1", "C2"), run.along, strict=False):
            along = run.along[share].mean(0)
            at = np.linspace(steps / len(along), steps, len(along))
            ax.plot(at, along, color, label=f"average over {share:.0%}")
            ax.plot(steps, run.cooled[share].mean(), "o", color=color, clip_on=False)
        ax.plot(steps, run.constant.mean(), "ko", clip_on=False, label="constant rate, last")
        ax.set_yscale("log")
        ax.set_title(f"{name}: a dot is a real cooldown", fontsize=10)
        ax.set_xlabel("step")
    axes[0].set_ylabel("held-out loss")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--picture", help="file to draw to")
    options = parser.parse_args()
    seeds, points, shares = (2, 4, SHARES[1:2]) if options.tiny else (5, 20, SHARES)
    print(f"{machine()}; {seeds} seeds")
    print("| problem | cooldown | constant rate | real one | average | average - real | worst |")
    print("|---|---|---|---|---|---|---|")
    runs, works = {}, dict(list(problems(options.tiny).items())[: 1 if options.tiny else None])
    for name, work in works.items():
        run = runs[name] = compare(work, seeds, points, shares)
        for share in shares:
            apart = run.average[share] - run.cooled[share]
            losses = (run.constant, run.cooled[share], run.average[share])
            means = " | ".join(f"{np.mean(x):.4f}" for x in losses)
            print(f"| {name} | {share:.0%} | {means} | {apart.mean():+.4f} | {apart.max():+.4f} |")
    if options.picture:
        picture(runs, works, options.picture)


if __name__ == "__main__":
    main()
