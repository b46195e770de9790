"""Does a law of three short runs tell the loss of nine others, and is its best schedule the best?

    python benchmarks/forecast.py [--tiny] [--picture FILE]

Twelve schedules of one peak train a small character transformer, and an MLP on digits, from five
seeds side by side; the transformer for 3,000 steps and for 12,000. `forecast.fit` is given the
held-out losses of three of them, and tells those of the others at the end; its prior, which is that
of models a thousand times as large, is left out, but for one column. Then the schedule that the law
plans is run as well, and `forecast.refined` of the gradient norms of linear decay, after the warmup
that all have. Printed are the mean losses over the seeds. The picture has the curves of the first.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine
from _workloads import Mlp, Transformer, cross_entropy, digits, held_out, text
from scipy.stats import spearmanr

from jax_lrreg import forecast, training
from jax_lrreg.schedules import Constant, Cosine, Cyclic, Linear, MultiStep, Schedule


class Problem(NamedTuple):
    """What is trained: `held` are the examples that it is judged by, every so many steps."""

    module: nn.Module
    arrays: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    batch_size: int
    peak: float
    steps: int
    every: int

    @property
    def warmup(self) -> int:
        return self.steps // 20


def problems(tiny: bool) -> dict[str, Problem]:
    characters, symbols = text(20_000 if tiny else 500_000, 32)
    small = Transformer(1, 16, 2, symbols)
    if tiny:
        return {"char transformer": problem(small, characters, 256, 16, 1e-2, 60, 3)}
    return {
        "characters, 12,000": problem(small, characters, 256, 16, 1e-2, 12_000, 100),
        "characters, 3,000": problem(small, characters, 256, 16, 1e-2, 3000, 50),
        "digits": problem(Mlp((64, 64, 10)), digits(), 360, 32, 2e-3, 1000, 20),
    }


def problem(module: nn.Module, arrays: Any, held: int, *rest: Any) -> Problem:
    return Problem(module, *held_out(arrays, held), *rest)


def twelve(work: Problem) -> dict[str, Schedule]:
    peak, steps, warmup = work.peak, work.steps, work.warmup
    base, rest = Constant(peak).warmup(warmup), steps - warmup

    def cooled(percent: int, shape: str, **options: float) -> Schedule:
        length = percent * steps // 100
        return base.cooldown(length, at=steps - length, shape=shape, **options)

    stairs = MultiStep(peak, boundaries=(rest // 2, 3 * rest // 4), decay_rate=0.3)
    down = steps // 3 - warmup
    return {
        "constant": base,
        "cosine": Cosine(peak, steps=rest).warmup(warmup),
        "cosine to 10 %": Cosine(peak, steps=rest, end_value=peak / 10).warmup(warmup),
        "linear": Linear(peak, steps=rest).warmup(warmup),
        "WSD 10 % linear": cooled(10, "linear"),
        "WSD 20 % linear": cooled(20, "linear"),
        "WSD 20 % 1-sqrt": cooled(20, "1-sqrt"),
        "WSD 40 % linear": cooled(40, "linear"),
        "WSD 40 % square": cooled(40, "square"),
        "WSD 20 % exponential": cooled(20, "exponential", end_value=peak / 10),
        "steps": stairs.warmup(warmup),
        "cyclic": Cyclic(peak / 10, peak_value=peak, up_steps=warmup, down_steps=down),
    }


FITTED = ("constant", "cosine", "steps")  # as the paper: a constant, a decay, sudden drops


def noting() -> optax.GradientTransformation:
    """Changes nothing; its state is the L1 norm of the latest gradient, which Adam's theory has."""

    def update(grads: Any, state: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        del state, params
        return grads, optax.tree.norm(grads, ord=1)

    return optax.GradientTransformation(lambda _: jnp.zeros(()), update)


def runner(work: Problem, seeds: int) -> Callable[[Schedule], tuple[np.ndarray, np.ndarray]]:
    """`schedule ->` held-out losses [seeds, losses] and gradient norms [seeds, steps]."""
    data, held = jax.tree.map(jnp.asarray, (work.arrays, work.held))

    def run(rates: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        adam = optax.adam(lambda step: rates[jnp.minimum(step, work.steps - 1)])
        tx = optax.chain(noting(), adam)
        example = work.arrays["x"][:1]
        state = training.init(work.module, tx, key=key, example=example)
        step = training.make_step(work.module, cross_entropy, tx)
        shape = (work.steps // work.every, work.every, work.batch_size)
        rows = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, len(data["x"]))

        def one(state: training.State, index: jax.Array) -> tuple[training.State, jax.Array]:
            state, _ = step.body(state, jax.tree.map(lambda x: x[index], data))
            return state, state.opt_state[0]

        def part(state: training.State, rows: jax.Array) -> tuple[training.State, Any]:
            state, norms = jax.lax.scan(one, state, rows)
            variables = {"params": state.params}
            loss = cross_entropy(lambda x: work.module.apply(variables, x), held)
            return state, (loss, norms)

        losses, norms = jax.lax.scan(part, step.complete(state), rows)[1]
        return losses, norms.reshape(-1)

    program = jax.jit(jax.vmap(run, (None, 0)))
    keys = jax.random.split(jax.random.key(0), seeds)
    steps = np.arange(work.steps)
    return lambda lr: jax.device_get(program(jnp.asarray(lr(steps)), keys))


def study(name: str, work: Problem, seeds: int) -> tuple[Any, ...]:
    """Runs everything, and prints the rows of a problem."""
    train, lrs = runner(work, seeds), twelve(work)
    steps = np.arange(work.every - 1, work.steps, work.every)
    ran = {label: train(lr) for label, lr in lrs.items()}
    curves = {label: losses.mean(0) for label, (losses, _) in ran.items()}
    fitted = [(lrs[label], (steps, curves[label])) for label in FITTED]
    law, usual = forecast.fit(fitted, prior=None), forecast.fit(fitted)
    rest, norms = work.steps - work.warmup, ran["linear"][1].mean(0)[work.warmup :]
    lrs |= {"planned": law.extrapolate(steps=work.steps).schedule}
    refined = forecast.refined(norms, steps=rest, peak_value=work.peak)
    lrs |= {"refined": refined.warmup(work.warmup)}
    for label in ("planned", "refined"):
        curves[label] = train(lrs[label])[0].mean(0)
    told, with_prior = (
        {label: float(one.final(lr, steps=work.steps)) for label, lr in lrs.items()}
        for one in (law, usual)
    )
    for label, lr in lrs.items():
        real, low, high = curves[label][-1], *law.interval(lr, steps=work.steps)[:, -1]
        off, other = (100 * (one[label] / real - 1) for one in (told, with_prior))
        title = f"{label}, fitted" if label in FITTED else label
        cells = (name, title, f"{real:.4f}", f"{told[label]:.4f}", f"{low:.4f} to {high:.4f}")
        print(f"| {' | '.join(cells)} | {off:+.2f} % | {other:+.2f} % |", flush=True)
    others = [label for label in curves if label not in (*FITTED, "planned", "refined")]
    cells = [name]
    for one in (told, with_prior):
        ranks = spearmanr([one[x] for x in others], [curves[x][-1] for x in others])[0]
        worst = max(abs(one[x] / curves[x][-1] - 1) for x in others)
        cells.append(f"{ranks:.2f}, {100 * worst:.2f} %")
    best = min(curves[x][-1] for x in curves if x not in ("planned", "refined"))
    behind = curves["planned"][-1] - best, curves["refined"][-1] - curves["linear"][-1]
    cells += [f"{x:+.4f}" for x in behind]
    shown = {label: lrs[label] for label in (*FITTED, "planned")}
    return f"| {' | '.join(cells)} |", law, shown, steps, curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--picture", help="file to draw to")
    options = parser.parse_args()
    seeds = 1 if options.tiny else 5
    print(f"{machine()}; {seeds} seeds")
    print("| problem | schedule | loss at the end | expected | interval | off | with the prior |")
    print("|---|---|---|---|---|---|---|")
    found = [study(name, work, seeds) for name, work in problems(options.tiny).items()]
    print()
    print("| problem | ranks, worst | with the prior | planned - best of 12 | refined - linear |")
    print("|---|---|---|---|---|")
    print("\n".join(summary for summary, *_ in found))
    if options.picture:
        import matplotlib

        matplotlib.use("Agg")
        from jax_lrreg import plots

        _, law, lrs, steps, curves = found[0]
        measured = {label: (steps, curves[label]) for label in lrs}
        ax = plots.forecast(law, lrs, curves=measured)
        plots.figure_of(ax).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
