"""The loss-driven schedulers of other libraries that our controllers' presets must equal.

`cases(library)` lists arguments and metrics; `RATES[library](arguments, metrics)` drives the
live scheduler.
Running this file where the libraries are installed,

    python tests/parity/record_plateau.py

writes `tests/parity/plateau.json`: versions, and for each case the learning rate after each metric.
"""

import functools
import importlib.metadata
import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

FILE = pathlib.Path(__file__).parent / "plateau.json"
LEARNING_RATE = 0.4
STEPS = 60

GRID: dict[str, list[dict[str, Any]]] = {
    "torch": [
        {},
        {"factor": 0.5, "patience": 0},
        {"factor": 0.5, "patience": 2, "cooldown": 3},
        {"factor": 0.5, "patience": 1, "threshold": 0.0137, "threshold_mode": "rel"},
        {"factor": 0.5, "patience": 1, "threshold": 0.0237, "threshold_mode": "abs"},
        {"factor": 0.9, "patience": 0, "min_lr": 0.15},
        {"factor": 0.6, "patience": 0, "eps": 0.05},
        {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.0137},
        {
            "mode": "max",
            "factor": 0.3,
            "patience": 2,
            "cooldown": 1,
            "threshold": 0.1237,
            "threshold_mode": "abs",
        },
    ],
    "keras": [
        {},
        {"factor": 0.5, "patience": 0},
        {"factor": 0.5, "patience": 1, "cooldown": 1},
        {"factor": 0.5, "patience": 3, "cooldown": 4, "min_delta": 0.0237},
        {"factor": 0.9, "patience": 1, "min_lr": 0.15},
        {"mode": "max", "factor": 0.5, "patience": 2, "cooldown": 2, "min_delta": 0.1237},
    ],
    "optax": [
        {},
        {"factor": 0.5, "patience": 1},
        {"factor": 0.5, "patience": 3, "cooldown": 4},
        {"factor": 0.5, "patience": 2, "rtol": 0.0137, "atol": 0.0237, "cooldown": 1},
        {"factor": 0.9, "patience": 1, "min_scale": 0.35},
        {"factor": 0.5, "patience": 1, "accumulation_size": 4},
        {"factor": 0.5, "patience": 2, "cooldown": 1, "accumulation_size": 2},
    ],
    "transformers": [
        {},
        {"factor": 0.5, "patience": 0, "min_lr": 0.01},
        {"factor": 0.7, "patience": 1, "cooldown": 2, "warmup": 3, "min_lr": 0.05, "max_lr": 0.9},
        {"factor": 0.5, "patience": 0, "min_lr": 0.1, "reset_start": 3},
        {"factor": 0.5, "patience": 0, "min_lr": 0.1, "reset_start": 1, "cooldown": 1},
        {"factor": 0.8, "patience": 1, "threshold": 0.0137, "threshold_mode": "rel"},
        {"mode": "max", "factor": 0.8, "patience": 1, "threshold": 0.0237, "warmup": 1},
        {"factor": 0.8, "patience": 1, "smooth": True, "window_size": 7},
    ],
}


def cases(library: str) -> list[tuple[dict[str, Any], list[float]]]:
    """Arguments, each with metrics that fall, are noisy or flat, have ties, NaN and infinities."""
    return [
        (arguments, metrics(random.Random(f"{library} {number} {kind}"), kind, library, arguments))
        for number, arguments in enumerate(GRID[library])
        for kind in ("noise", "falling", "flat", "signed", "broken")
    ]


def metrics(rng: random.Random, kind: str, library: str, arguments: dict[str, Any]) -> list[float]:
    """A sequence of multiples of 1/64, which no threshold above turns into a near tie."""
    up = -1 if arguments.get("mode") == "max" else 1
    relative = (
        arguments.get("threshold_mode", "rel" if library in ("torch", "optax") else "abs") == "rel"
    )
    # PyTorch and Optax take a worse value for a better one where the best is negative and the
    # threshold relative.
    lift = 4.0 if relative else 0.0
    values = []
    for step in range(STEPS):
        trend = {"noise": 2.0, "signed": 0.0, "flat": 1.0}.get(kind, 3.0 * 0.93**step)
        noise = (
            0.0
            if kind == "flat"
            else rng.uniform(-1, 1) * (1.0 if kind in ("noise", "signed") else 0.2)
        )
        value = up * (trend + noise) + lift
        values.append(round(value * 64) / 64)
    if kind == "broken" and not arguments.get(
        "smooth"
    ):  # GreedyLR's mean never recovers from a NaN
        for step in rng.sample(range(1, STEPS), 12):
            values[step] = rng.choice([float("nan"), up * float("inf")])
    return values


def torch_rates(arguments: dict[str, Any], values: Sequence[float]) -> list[float]:
    """Drives torch.optim.lr_scheduler.ReduceLROnPlateau."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
    return [(scheduler.step(value), optimizer.param_groups[0]["lr"])[1] for value in values]


def transformers_rates(arguments: dict[str, Any], values: Sequence[float]) -> list[float]:
    """Drives transformers.optimization.GreedyLR."""
    import torch
    from transformers.optimization import GreedyLR

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LEARNING_RATE)
    scheduler = GreedyLR(optimizer, **arguments)
    return [(scheduler.step(value), optimizer.param_groups[0]["lr"])[1] for value in values]


def keras_rates(arguments: dict[str, Any], values: Sequence[float]) -> list[float]:
    """Drives keras.callbacks.ReduceLROnPlateau."""
    import keras

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE), loss="mse")
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", **{"mode": "min", **arguments})
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val_loss": value})
        rates.append(float(model.optimizer.learning_rate.numpy()))
    return rates


@functools.cache
def optax_run(arguments: tuple[tuple[str, Any], ...]) -> Any:
    """The scales of optax.contrib.reduce_on_plateau as a compiled function of the metrics."""
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.contrib.reduce_on_plateau(**dict(arguments))

    def one(state, value):
        update, state = tx.update(jnp.float32(1), state, value=value)
        return state, update

    return jax.jit(lambda values: jax.lax.scan(one, tx.init(jnp.zeros(())), values)[1])


def optax_rates(arguments: dict[str, Any], values: Sequence[float]) -> list[float]:
    """Drives optax.contrib.reduce_on_plateau."""
    import numpy as np

    return [
        float(LEARNING_RATE * scale)
        for scale in optax_run(tuple(arguments.items()))(np.float32(values))
    ]


RATES = {
    "torch": torch_rates,
    "keras": keras_rates,
    "optax": optax_rates,
    "transformers": transformers_rates,
}


def main() -> None:
    """Writes the file."""
    recorded = {}
    for library, rates in RATES.items():
        entries = [
            {
                "arguments": arguments,
                "metrics": values,
                "rates": [round(rate, 9) for rate in rates(arguments, values)],
            }
            for arguments, values in cases(library)
        ]
        recorded[library] = {"version": importlib.metadata.version(library), "cases": entries}
    FILE.write_text(json.dumps(recorded, separators=(",", ":")) + "\n")
    print({library: (entry["version"], len(entry["cases"])) for library, entry in recorded.items()})


if __name__ == "__main__":
    main()
