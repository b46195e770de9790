"""`train`: trains a small network on real data, and writes a run folder."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jax_lrreg import checkpoints, schedules, training
from jax_lrreg._arrays import leaves
from jax_lrreg._check import require
from jax_lrreg.cli.options import LISTED, PROGRAM, Found, inherited, needing, parsed
from jax_lrreg.cli.output import console, folder, print_pairs, save
from jax_lrreg.cli.problem import OPTIMIZERS, Problem, in_steps, problem
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.loggers import write_whole

FILES = ("metrics.csv", "config.json", "history.png")
KEPT = "checkpoints"
CODES = {"SIGINT": 130, "SIGTERM": 143}  # 128 and the number of the signal, as shells have it


def run(
    *,
    lr: str | None,
    units: str,
    epochs: int | None,
    out: str,
    overwrite: bool,
    branch: str | None,
    at: int | None,
    **options: Any,
) -> tuple[int, Found]:
    """Trains, writes a run folder, and prints what is in the data and a summary.

    The folder `out` gets `metrics.csv`, `config.json`, `history.png` and `checkpoints`. Where it
    holds this very run, that goes on, or is shown if it has ended.

    Returns:
        The exit code: 0; 1 where a loss at the end is no number; 130 where Ctrl-C ended it, and 143
        where SIGTERM did. What there is has been written, and the same command goes on. And the
        summary.
    """
    require(at is None or branch is not None, PROGRAM, "--branch", None, "given where --at is")
    with needing("matplotlib", "train"):
        from jax_lrreg import plots

    given = None if lr is None else parsed("--lr", lr, schedules.Schedule)
    require(out, PROGRAM, "--out", out, "the name of a folder")
    single = not any(map(np.ndim, jax.tree.leaves(given)))
    require(single, PROGRAM, "--lr", given, "one schedule; lists of numbers are for `compare`")
    task = problem(**options)
    per_epoch = task.source.steps_per_epoch
    epochs = epochs or task.epochs
    steps = task.steps(epochs)
    schedule = task.schedule(steps) if given is None else in_steps(given, units, task.source)
    tx = OPTIMIZERS[task.optimizer](schedule)
    state = task.init(tx, options["seed"])
    rate = {"penalty": task.penalty, "learning_rate": schedule}
    step = training.make_step(task.module, task.measure, tx, **rate)
    test, train = _evaluation(task, "test"), _evaluation(task, "train")
    config = _config(task, schedule, epochs, {**options, "branch": branch, "at": at})
    _require_branch(branch, at, config, steps)
    place = _placed(Path(out), config, overwrite)  # last of what can be refused: it may empty it
    text = (json.dumps(config, indent=2) + "\n").encode()
    write_whole(place / "config.json", lambda file: file.write(text))
    console().print(f"{_found(options['data'], options['target'], task)}\n")
    times: dict[int, float] = {}
    began = time.perf_counter()
    every: dict[str, Any] = {"log_every": per_epoch, "eval_every": per_epoch * max(1, epochs // 20)}
    clock = lambda step, _: times.setdefault(step, time.perf_counter())  # noqa: E731
    every |= {"loggers": [training.log_csv(place / "metrics.csv"), clock], "progress": True}
    every |= {"eval_fn": test, "checkpoint": place / KEPT}
    try:
        state, history = training.fit(step, state, task.source, until=steps, **every)
    except KeyboardInterrupt as stop:  # a second one; `fit` hands over what there is
        history = {"interrupted": "SIGINT", **getattr(stop, "history", {})}
    seconds = time.perf_counter() - began
    done = max(map(int, history.get("step", ())), default=0)
    if done:
        save(plots.history(history)[0], place / "history.png")
    wrote = f"{out} has {', '.join(filter(lambda name: (place / name).exists(), FILES))}"
    if "interrupted" in history:
        code = CODES[str(history["interrupted"])]
        stopped = {"interrupted": str(history["interrupted"]), "step": done, "folder": out}
        return _complain(f"interrupted after step {done} of {steps}; {wrote}", code), stopped
    ends = {**train(state), **test(state), "train data loss": float(history["data_loss"][-1])}
    first, last = min(times, default=0), max(times, default=0)
    # The first interval has the compilation in it; a run that had ended has none.
    pace = (times[last] - times[first]) / max(last - first, 1) if times else math.nan
    each = f"{epochs} epochs of {per_epoch}, each of {task.source.batch_size} examples"
    summary = {
        **_about(task),
        "steps": f"{steps}: {each}",
        "schedule": repr(schedule),
        "penalty": repr(task.penalty),
        "optimizer": task.optimizer,
        "loss": task.loss,
        **ends,
        "penalty at the end": float(task.penalty(state.params, steps)),
        "exact zeros in kernels": _zeros(state.params),
        "learning rate at the end": float(history["learning_rate"][-1]),
        "seconds with compiling": seconds,
        **({} if math.isnan(pace) else {"milliseconds per step": 1000 * pace}),
        "device": str(jax.devices()[0].device_kind),
    }
    print_pairs(f"Trained on {options['data']}", summary)
    print(wrote)
    return _verdict(ends), {**summary, "folder": out}


def _found(data: str, target: str | None, task: Problem) -> str:
    """What is in the data and what is made of it: a wrong target is seen before the training."""
    (x, y), (unseen, others) = task.dataset.train, task.dataset.test
    rows = f"{len(x) + len(unseen):,} rows, {len(x):,} of them to train and {len(unseen):,} to test"
    numbers = f"{x.shape[1]} input{'s' if x.shape[1] > 1 else ''}"
    column = f" `{target}`" if target else ""
    if labels := task.dataset.labels:
        counts = np.bincount(np.concatenate([y, others]), minlength=len(labels))
        shares = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True)]
        more = f" and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
        what = f"one of {', '.join(shares[:LISTED])}{more}"
    else:
        mean, spread = task.dataset.target
        what = f"a number, {mean:.4g} on average, with a standard deviation of {spread:.4g}"
    notes = "; ".join(task.dataset.notes)
    return f"{data}: {rows}; {numbers}; {notes}.\nTarget{column}: {what}; {task.dataset.task}."


def _verdict(ends: dict[str, float]) -> int:
    """0, or 1 where a result is no number: a script is not to take such a run for a success."""
    bad = ", ".join(name for name, value in ends.items() if not math.isfinite(value))
    return _complain(f"no finite {bad} at the end: try a smaller --lr, or find-lr", 1) if bad else 0


def _complain(message: str, code: int) -> int:
    """Prints one line where a pipe does not take it for a result, and returns the exit code."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code


def _config(
    task: Problem, schedule: schedules.Schedule, epochs: int, options: dict[str, object]
) -> dict[str, object]:
    """What the run is made with: one that is killed can be told apart by it."""
    mean, deviation = task.dataset.target
    return {
        **options,
        "task": "classes" if task.dataset.labels else "regression",
        "labels": task.dataset.labels,
        "target_mean": mean,
        "target_deviation": deviation,
        "schedule": repr(schedule),
        "penalty": repr(task.penalty),
        "optimizer": task.optimizer,
        "epochs": epochs,
        "batch_size": task.source.batch_size,
        "hidden": task.hidden,
    }


def _require_branch(
    branch: str | None, at: int | None, config: dict[str, object], steps: int
) -> None:
    """Refuses what cannot go on from another run, before a folder is made."""
    if branch is None:
        return
    was = inherited(branch)
    why = {"seed": "; with another one it would be tested on examples that it has trained on"}
    for name in ("hidden", "optimizer", *(["seed"] if config["data"] == was["data"] else [])):
        allowed = f"that of the run, {was[name]!r}, whose state goes on{why.get(name, '')}"
        require(config[name] == was[name], PROGRAM, f"--{name}", config[name], allowed)
    there = checkpoints.steps(Path(branch) / KEPT)
    allowed = f"a step of which {branch!r} has a checkpoint: {', '.join(map(str, there)) or 'none'}"
    require(at is None or at in there, PROGRAM, "--at", at, allowed)
    begin = max(there, default=0) if at is None else at
    allowed = f"so many that there are more than the {begin} steps at which the branch begins"
    require(begin < steps, PROGRAM, "--epochs", f"{config['epochs']}, {steps} steps", allowed)


def _placed(place: Path, config: dict[str, object], overwrite: bool) -> Path:
    """The folder of the run: one that holds it, or a new one, where a branch begins."""
    if overwrite or not _is_same(place, config):
        folder(str(place), (*FILES, KEPT), overwrite)
        branch, at = config["branch"], config["at"]
        if isinstance(branch, str):
            step = at if isinstance(at, int) else "latest"
            checkpoints.branch(Path(branch) / KEPT, into=place / KEPT, step=step)
    return place


def _is_same(place: Path, config: dict[str, object]) -> bool:
    """Whether a folder holds this run; another one is refused by what differs.

    More epochs of the same schedule are the same run.
    """
    try:
        there = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not (isinstance(there, dict) and (place / KEPT).is_dir()):
        return False
    here = json.loads(json.dumps(config))
    for name in here:
        if name != "epochs" and here[name] != there.get(name):
            raise ValueError(
                f"{PROGRAM}: --out must be a folder without another run: {str(place)!r} holds one "
                f"with {name} {there.get(name)!r}, got {here[name]!r}; --overwrite replaces it, "
                "and --branch goes on from it in a new folder"
            )
    return True


def _about(task: Problem) -> dict[str, object]:
    """What is learnt, from what and by what, for people."""
    return {
        "task": task.dataset.task,
        "data": "; ".join(task.dataset.notes),
        "network": task.network,
        "train examples": len(task.dataset.train[0]),
        "test examples": len(task.dataset.test[0]),
    }


def _zeros(params: optax.Params) -> str:
    """How many weights a penalty has set to zero exactly; biases are left out, they begin at 0."""
    kernels = [leaf.value for leaf in leaves(params) if leaf.path.endswith("kernel")]
    zeros, weights = sum(int((k == 0).sum()) for k in kernels), sum(k.size for k in kernels)
    return f"{zeros} of {weights}"


def _evaluation(task: Problem, name: str) -> Callable[[training.State], dict[str, float]]:
    """Loss and metrics over one of the two sets, by names that begin with its own."""
    x, y = getattr(task.dataset, name)

    def metrics(model: Callable, batch: Batch) -> dict[str, jax.Array]:
        loss, others = task.measure(model, batch)
        return {f"{name}_{metric}": value for metric, value in {"loss": loss, **others}.items()}

    held = training.ArrayData({"x": x, "y": y}, len(x), shuffle=False)
    return training.make_eval(task.module, metrics, held)
