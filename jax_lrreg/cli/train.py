"""`train`: trains a small network on real data, and writes a run folder."""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from jax_lrreg import schedules, training
from jax_lrreg._arrays import leaves
from jax_lrreg.cli.options import PROGRAM, needing, parsed
from jax_lrreg.cli.output import folder, print_pairs, save
from jax_lrreg.cli.problem import OPTIMIZERS, Problem, problem
from jax_lrreg.training.loggers import write_whole

FILES = ("metrics.csv", "config.json", "history.png")


def run(
    *, lr: str | None, units: str, epochs: int | None, out: str, overwrite: bool, **options: Any
) -> int:
    """Trains, writes `metrics.csv`, `config.json` and `history.png` to the folder `out`, and prints a summary.

    Returns:
        0; 1 where a loss at the end is no number; 130 where Ctrl-C ended it. What there is has been
        written.
    """
    with needing("matplotlib", "train"):
        from jax_lrreg import plots

    given = None if lr is None else parsed("--lr", lr, schedules.Schedule)
    task = problem(**options)
    per_epoch = task.source.steps_per_epoch
    epochs = epochs or task.epochs
    steps = epochs * per_epoch
    if given is not None and units == "epochs":
        given = given.in_units(per_step=1 / per_epoch)
    schedule = given or task.schedule(steps)
    tx = OPTIMIZERS[task.optimizer](schedule)
    state = task.init(tx, options["seed"])
    rate = {"penalty": task.penalty, "learning_rate": schedule}
    step = training.make_step(task.module, task.measure, tx, **rate)
    test, train = _evaluation(task, "test"), _evaluation(task, "train")
    place = folder(out, FILES, overwrite)
    config = {
        **options,
        "task": "classes" if task.dataset.labels else "regression",
        "labels": task.dataset.labels,
        "target_mean": task.dataset.target[0],
        "target_deviation": task.dataset.target[1],
        "schedule": repr(schedule),
        "penalty": repr(task.penalty),
        "optimizer": task.optimizer,
        "epochs": epochs,
        "batch_size": task.source.batch_size,
        "hidden": task.hidden,
    }
    text = (json.dumps(config, indent=2) + "\n").encode()
    write_whole(place / "config.json", lambda file: file.write(text))
    times: dict[int, float] = {}
    began = time.perf_counter()
    interrupted = False
    try:
        state, history = training.fit(
            step,
            state,
            task.source,
            steps=steps,
            log_every=per_epoch,
            eval_fn=test,
            eval_every=per_epoch * max(1, epochs // 20),
            progress=True,
            loggers=[
                training.log_csv(place / "metrics.csv"),
                lambda step, _: times.setdefault(step, time.perf_counter()),
            ],
        )
    except KeyboardInterrupt as stop:  # `fit` hands over what there is
        history, interrupted = getattr(stop, "history", {}), True
    seconds = time.perf_counter() - began
    made = len(history.get("step", ()))
    if made:
        save(plots.history(history)[0], place / "history.png")
    wrote = ", ".join(name for name in FILES if (place / name).exists())
    if interrupted:
        done = int(history["step"][-1]) if made else 0
        print(
            f"{PROGRAM}: interrupted after step {done} of {steps}; {out} has {wrote}",
            file=sys.stderr,
        )
        return 130
    ends = {**train(state), **test(state), "train data loss": float(history["data_loss"][-1])}
    first, last = min(times), max(times)  # the first interval has the compilation in it
    pace = (times[last] - times[first]) / max(last - first, 1)
    kernels = [leaf.value for leaf in leaves(state.params) if leaf.path.endswith("kernel")]
    zeros, weights = sum(int((k == 0).sum()) for k in kernels), sum(k.size for k in kernels)
    summary = {
        "task": task.dataset.task,
        "data": "; ".join(task.dataset.notes),
        "network": task.network,
        "train examples": len(task.dataset.train[0]),
        "test examples": len(task.dataset.test[0]),
        "steps": f"{steps}: {epochs} epochs of {per_epoch}, each of {task.source.batch_size} examples",
        "schedule": repr(schedule),
        "penalty": repr(task.penalty),
        "optimizer": task.optimizer,
        "loss": task.loss,
        **ends,
        "penalty at the end": float(task.penalty(state.params, steps)),
        "exact zeros in kernels": f"{zeros} of {weights}",
        "learning rate at the end": float(history["learning_rate"][-1]),
        "seconds, with compiling": seconds,
        "milliseconds per step": 1000 * pace,
        "device": str(jax.devices()[0].device_kind),
    }
    print_pairs(f"Trained on {options['data']}", summary)
    print(f"{out} has {wrote}")
    bad = [name for name, value in ends.items() if not math.isfinite(value)]
    if bad:
        names = ", ".join(bad)
        print(
            f"{PROGRAM}: no finite {names} at the end: try a smaller --lr, or find-lr",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _evaluation(task: Problem, name: str) -> Callable[[training.State], dict[str, float]]:
    """Loss and metrics over one of the two sets, by names that begin with its own."""
    x, y = getattr(task.dataset, name)

    def metrics(model: Callable, batch: Any) -> dict[str, jax.Array]:
        loss, others = task.measure(model, batch)
        return {f"{name}_{metric}": value for metric, value in {"loss": loss, **others}.items()}

    held = training.ArrayData({"x": x, "y": y}, len(x), shuffle=False)
    return training.make_eval(task.module, metrics, held)
