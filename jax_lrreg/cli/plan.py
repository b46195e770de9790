"""`plan`: makes three short runs, and prints the best schedule of a long one."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import forecast, schedules, training
from jax_lrreg._check import require
from jax_lrreg.cli.options import PROGRAM, Found, needing, train_command
from jax_lrreg.cli.output import picture, print_pairs, save
from jax_lrreg.cli.problem import OPTIMIZERS, Problem, problem

LOSSES = 50  # of a short run; each is of all test examples
LEAST = 2 * LOSSES  # steps of a short run
POOR = 0.1  # misfit: schedules differ by less


def run(
    *,
    steps: int | None,
    short: int | None,
    peak: float | None,
    seeds: int,
    out: str,
    **options: Any,
) -> tuple[int, Found]:
    """Prints the schedule with its expected loss, and draws it beside the runs that were made.

    Returns:
        The exit code, 1 where a loss of a short run is no number; and the summary.
    """
    with needing("matplotlib", "plan"):
        from jax_lrreg import plots

    task = problem(**options)
    task.init(optax.identity(), options["seed"])  # so that a wrong penalty is refused by its option
    per_epoch = task.source.steps_per_epoch
    steps = task.epochs * per_epoch if steps is None else steps
    short = max(LEAST, steps // 2) if short is None else short
    require(short >= LEAST, PROGRAM, "--short", short, f"at least {LEAST}")
    every = short // LOSSES
    short = LOSSES * every
    require(short <= steps, PROGRAM, "--steps", steps, f"at least the {short} of the short runs")
    usual = task.schedule(steps)
    # Of a float32, the digits that it has.
    peak = float(f"{jnp.max(usual(jnp.arange(steps))):.6g}") if peak is None else peak
    path, lrs = picture(out), _three(peak, short)
    rates = jnp.stack([lr(jnp.arange(short)) for lr in lrs.values()])
    losses = _losses(task, every)(rates, options["seed"] + jnp.arange(seeds)).mean(axis=1)
    if not np.isfinite(losses).all():
        print(f"{PROGRAM}: a loss is no finite number: try a smaller --peak", file=sys.stderr)
        return 1, {}
    places = np.arange(every - 1, short, every)
    curves = {f"{name}, short": (places, own) for name, own in zip(lrs, losses, strict=True)}
    law = forecast.fit(list(zip(lrs.values(), curves.values(), strict=True)))
    plan = law.extrapolate(steps=steps)
    shown = {"the plan": plan, **_three(peak, steps)}
    save(plots.forecast(law, shown, curves=curves, steps=steps), path)
    summary = _summary(task, plan, law, (seeds, short))
    print_pairs(f"Planned for {options['data']}", summary)
    assert law.evidence is not None
    plain, misfit = float(law.final(shown["constant"], steps=steps)), float(law.evidence.misfit)
    _warn(float(plan.loss), plain, misfit)
    epochs = -(-steps // per_epoch)
    print(f"Wrote {path}")
    chosen = {"lr": repr(plan.schedule), "epochs": epochs}
    command = train_command({**options, **chosen})
    print(f"Train it: {command}")
    interval = list(map(float, plan.interval or ()))
    more = {"interval": interval, "misfit": misfit, "constant": plain}
    return 0, {**summary, **more, "train": command, "picture": str(path)}


def _warn(planned: float, plain: float, misfit: float) -> None:
    """Says where a plan is worth little: the law does not hold, or a constant rate does as well."""
    if misfit > POOR:
        more = "its plan is a guess: try longer --short runs, or another --peak"
        print(f"{PROGRAM}: the law does not hold here, {more}", file=sys.stderr)
    elif plain < (1 + misfit) * planned:
        more = f"a constant rate is expected to come to {plain:.4g}, which differs by less than"
        print(f"{PROGRAM}: {more} the law misses", file=sys.stderr)


def _three(peak: float, steps: int) -> dict[str, schedules.Schedule]:
    """What a law is told apart by, as in its paper: a constant, a decay, and sudden drops."""
    warmup, stairs = steps // 20, (steps // 2, 3 * steps // 4)
    constant = schedules.Constant(peak).warmup(warmup)
    return {
        "constant": constant,
        "linear": schedules.Linear(peak, steps=steps - warmup).warmup(warmup),
        "stairs": schedules.MultiStep(peak, boundaries=stairs, decay_rate=0.3).overlay_warmup(
            warmup
        ),
    }


def _losses(task: Problem, every: int) -> Callable[[jax.Array, jax.Array], np.ndarray]:
    """`(rates [runs, steps], seeds) ->` test losses [runs, seeds, places], as one program."""
    (x, y), source = task.dataset.test, task.source

    def member(rates: jax.Array, seed: jax.Array) -> jax.Array:
        tx = OPTIMIZERS[task.optimizer](lambda step: rates[jnp.minimum(step, len(rates) - 1)])
        data = training.ArrayData(source.arrays, source.batch_size, jax.random.key(seed))
        example = task.dataset.train[0][:1]
        state = training.init(task.module, tx, key=jax.random.key(seed + 1), example=example)
        step = training.make_step(task.module, task.measure, tx, penalty=task.penalty)

        def part(state: training.State, _: None) -> tuple[training.State, jax.Array]:
            state = training.scan(step, state, data, steps=every)[0]
            params: Any = state.params
            model = lambda x: task.module.apply({"params": params}, x)  # noqa: E731
            return state, task.measure(model, {"x": x, "y": y})[0]

        return jax.lax.scan(part, step.complete(state), None, length=LOSSES)[1]

    many = jax.vmap(jax.vmap(member, (None, 0)), (0, None))
    return lambda rates, seeds: np.asarray(jax.jit(many)(rates, seeds))


def _summary(
    task: Problem, plan: forecast.Plan, law: forecast.MultiPower, runs: tuple[int, int]
) -> Mapping[str, object]:
    low, high = plan.interval or (np.nan, np.nan)
    assert law.evidence is not None
    halves = (f"{name} {half:.4g}, {twice:.4g}" for name, (half, twice) in plan.matters.items())
    return {
        "task": f"{task.dataset.task}; {task.network}; {task.optimizer}",
        "schedule": repr(plan.schedule),
        "steps": plan.steps,
        "expected test loss": float(plan.loss),
        "nine times in ten within": f"{low:.4g} to {high:.4g}",
        "at half and at twice": "; ".join(halves),
        "loss": task.loss,
        "short runs": f"3 schedules, {runs[0]} seeds each, {runs[1]} steps",
        "the law misses an unseen run by": f"{100 * float(law.evidence.misfit):.2g} %",
    }
