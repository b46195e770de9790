"""The main job of the command line: train a small Flax network on real data and write a run folder."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import penalties, schedules, text, training
from jax_lrreg._check import require
from jax_lrreg.cli.data import Dataset, load
from jax_lrreg.training.loggers import write_whole

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}


class Defaults(NamedTuple):
    """What a data set is trained with unless the command line says otherwise."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    optimizer: str
    lr: Callable[[int], schedules.Schedule]
    penalty: penalties.Penalty


def defaults(data: str, examples: int) -> Defaults:
    """Warmup and cosine; for `diabetes` the program of the source article, whose lambdas are per data set."""
    if data == "diabetes":
        return Defaults(
            (10,),
            100,
            32,
            "adam",
            lambda steps: schedules.Polynomial(0.01, steps=steps, power=0.9),
            penalties.ElasticNet(0.1, l2=0.1).on("**/kernel") / examples,
        )
    return Defaults(
        (128, 128),
        30,
        64,
        "adam",
        lambda steps: schedules.Cosine(3e-3, steps=steps - steps // 10).warmup(steps // 10),
        penalties.ElasticNet(1e-5, l2=1e-3).on("**/kernel"),
    )


def problem(dataset: Dataset, standard: Defaults) -> tuple[Any, Callable]:
    """The network of a data set, and `(model, batch) -> (loss, metrics)`."""
    from flax import linen

    y = dataset.train[1]
    shift, spread = (0.0, 1.0) if dataset.classes else (float(y.mean()), float(y.std()) or 1.0)

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for width in standard.hidden:
                x = linen.relu(linen.Dense(width)(x))
            x = linen.Dense(dataset.classes or 1)(x)
            return x if dataset.classes else shift + spread * x[..., 0]

    def measure(model: Callable, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = model(batch["x"])
        if not dataset.classes:
            return jnp.mean((output - batch["y"]) ** 2) / spread**2, {}
        loss = optax.softmax_cross_entropy_with_integer_labels(output, batch["y"]).mean()
        return loss, {"accuracy": (output.argmax(-1) == batch["y"]).mean()}

    return Network(), measure


def run(
    data: str,
    *,
    target: str | None = None,
    lr: str | None = None,
    penalty: str | None = None,
    optimizer: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    out: str = "run",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains, writes `metrics.csv`, `config.json` and `history.png` to the folder `out`, and returns a summary."""
    dataset = load(data, target, seed)
    (x, y), examples = dataset.train, len(dataset.train[0])
    standard = defaults(data, examples)
    epochs, batch_size = epochs or standard.epochs, batch_size or standard.batch_size
    require(
        batch_size <= examples,
        "train",
        "--batch-size",
        batch_size,
        f"at most the {examples} training examples",
    )
    source = training.ArrayData({"x": x, "y": y}, batch_size, jax.random.key(seed))
    steps = epochs * source.steps_per_epoch
    schedule = parsed("--lr", lr, schedules.Schedule) or standard.lr(steps)
    reg = parsed("--penalty", penalty, penalties.Penalty) or standard.penalty
    name = optimizer or standard.optimizer
    require(name in OPTIMIZERS, "train", "--optimizer", name, f"one of {', '.join(OPTIMIZERS)}")
    module, measure = problem(dataset, standard)

    def evaluation(
        pair: tuple[np.ndarray, np.ndarray], prefix: str
    ) -> Callable[[training.State], dict[str, float]]:
        def metrics(model: Callable, batch: Any) -> dict[str, jax.Array]:
            loss, named = measure(model, batch)
            return {f"{prefix}_{name}": value for name, value in {"loss": loss, **named}.items()}

        held = training.ArrayData({"x": pair[0], "y": pair[1]}, len(pair[0]), shuffle=False)
        return training.make_eval(module, metrics, held)

    tx = OPTIMIZERS[name](schedule)
    state = training.init(module, tx, key=jax.random.key(seed + 1), example=x[:1])
    reg.report(
        state.params
    )  # a pattern that matches nothing is refused before anything is compiled
    step = training.make_step(module, measure, tx, penalty=reg, learning_rate=schedule)
    test, train = evaluation(dataset.test, "test"), evaluation(dataset.train, "train")
    times: dict[int, float] = {}
    began = time.perf_counter()
    state, history = training.fit(
        step,
        state,
        source,
        steps=steps,
        log_every=source.steps_per_epoch,
        eval_fn=test,
        eval_every=source.steps_per_epoch * max(1, epochs // 20),
        progress=progress,
        loggers=[lambda step, _: times.setdefault(step, time.perf_counter())],
    )
    seconds = time.perf_counter() - began
    compiled, last = min(times), max(times)  # the first interval has the compilation in it
    pace = (times[last] - times[compiled]) / max(last - compiled, 1)
    kernels = [leaf.value for leaf in _kernels(state.params)]
    zeros, weights = sum(int((k == 0).sum()) for k in kernels), sum(k.size for k in kernels)
    summary = {
        "data": data,
        "train examples": examples,
        "test examples": len(dataset.test[0]),
        "steps": steps,
        "schedule": repr(schedule),
        "penalty": repr(reg),
        "optimizer": name,
        **train(state),
        **test(state),
        "train data loss": float(history["data_loss"][-1]),
        "penalty at the end": float(reg(state.params, steps)),
        "exact zeros in kernels": f"{zeros} of {weights}",
        "learning rate at the end": float(history["learning_rate"][-1]),
        "seconds, with compiling": seconds,
        "milliseconds per step": 1000 * pace,
        "device": str(jax.devices()[0].device_kind),
    }
    config = {
        "data": data,
        "target": target,
        "schedule": repr(schedule),
        "penalty": repr(reg),
        "optimizer": name,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "hidden": list(standard.hidden),
    }
    write(Path(out), history, config)
    return summary


def write(folder: Path, history: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """The run folder. Each file appears whole or not at all."""
    from jax_lrreg import plots

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        folder / "config.json",
        lambda file: file.write((json.dumps(config, indent=2) + "\n").encode()),
    )
    write_whole(folder / "metrics.csv", lambda file: file.write(_csv(history).encode()))
    figure = plots.figure_of(plots.history(history)[0])
    write_whole(folder / "history.png", lambda file: figure.savefig(file, format="png", dpi=130))
    plots.plt.close(figure)


def _csv(history: dict[str, np.ndarray]) -> str:
    from jax_lrreg import plots

    rows: dict[int, dict[str, float]] = {}
    evaluated = plots.evaluated_names(history)
    for name, values in history.items():
        for step, value in zip(
            history["eval_step" if name in evaluated else "step"], values, strict=False
        ):
            rows.setdefault(int(step), {})[name] = value.item()
    names = [name for name in history if name not in ("step", "eval_step")]
    lines: list[str] = []
    writer = csv.writer(_Lines(lines), lineterminator="\n")
    writer.writerow(["step", *names])
    writer.writerows(
        [[step, *(row.get(name, "") for name in names)] for step, row in sorted(rows.items())]
    )
    return "".join(lines)


class _Lines:
    def __init__(self, lines: list[str]):
        self.write = lines.append


def parsed(option: str, value: str | None, kind: type, command: str = "train") -> Any:
    """The object that the text of an option describes; None where there is none."""
    if value is None:
        return None
    try:
        result = text.parse(value)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{option}: {error}") from None
    require(isinstance(result, kind), command, option, value, f"a {kind.__name__.lower()}")
    return result


def _kernels(params: Any) -> list[Any]:
    from jax_lrreg._arrays import leaves

    return [leaf for leaf in leaves(params) if leaf.path.endswith("kernel")]
