"""Keras `fit` for `peers.py`, over all batches in order: as one long epoch, or one call for each.

The backend is that of KERAS_BACKEND.
"""

import sys
from typing import Any

import keras
import numpy as np
from _peer_child import Pair, Problem, serve, warmup_steps
from keras import layers


class Positions(layers.Layer):
    """Adds a learned array."""

    def __init__(self, length: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.position = self.add_weight(shape=(length, width), name="position")

    def call(self, x: Any) -> Any:
        return x + self.position


def network(problem: Problem) -> keras.Model:
    """The model, its layers named like Linen's."""
    recipe, start = problem.recipe, problem.start
    reg = {"kernel_regularizer": keras.regularizers.L1L2(recipe["l1"], recipe["l2"] / 2)}

    def dense(name: str, activation: Any = None) -> layers.Layer:
        return layers.Dense(start[f"{name}/kernel"].shape[-1], activation, name=name, **reg)

    def norm(index: int) -> layers.Layer:
        return layers.LayerNormalization(epsilon=1e-6, name=f"LayerNorm_{index}")

    inputs = x = keras.Input(problem.x.shape[1:], dtype=problem.x.dtype.name)
    count = sum(path.startswith("Dense_") and path.endswith("kernel") for path in start)
    if recipe["model"] == "mlp":
        for index in range(count - 1):
            x = dense(f"Dense_{index}", "relu")(x)
    elif recipe["model"] == "cnn":
        for index, width in enumerate((32, 64)):
            x = layers.Conv2D(
                width, 3, padding="same", activation="relu", name=f"Conv_{index}", **reg
            )(x)
        x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    else:
        symbols, width = start["Embed_0/embedding"].shape
        x = layers.Embedding(symbols, width, name="Embed_0")(x)
        x = Positions(*start["position"].shape, name="position")(x)
        for index in range(count // 2):
            name, normed = f"MultiHeadDotProductAttention_{index}", norm(2 * index)(x)
            attention = layers.MultiHeadAttention(
                recipe["heads"], width // recipe["heads"], name=name, **reg
            )
            x = x + attention(normed, normed, use_causal_mask=True)
            up, down = dense(f"Dense_{2 * index + 1}"), dense(f"Dense_{2 * index}")
            x = x + down(keras.activations.gelu(up(norm(2 * index + 1)(x)), approximate=True))
        x = norm(count - 1)(x)
    return keras.Model(inputs, dense(f"Dense_{count - 1}")(x))


def path_of(variable: Any) -> str:
    """Its path in Linen."""
    parts = variable.path.split("/")
    names = {"gamma": "scale", "beta": "bias", "embeddings": "embedding", "attention_output": "out"}
    parts = [names.get(part, part) for part in parts]
    return (
        parts[-1]
        if parts[-1] == "position"
        else "/".join(parts[next(i for i, p in enumerate(parts) if "_" in p) :])
    )


def optimizer(recipe: dict[str, Any]) -> keras.optimizers.Optimizer:
    steps, peak = recipe["steps"], recipe["peak"]
    if "power" in recipe:
        rate = keras.optimizers.schedules.PolynomialDecay(peak, steps, 0.0, recipe["power"])
    else:
        ramp = warmup_steps(recipe)
        warm = {"initial_learning_rate": 0.0, "warmup_target": peak, "warmup_steps": ramp}
        rate = keras.optimizers.schedules.CosineDecay(
            decay_steps=steps - ramp, **(warm if ramp else {"initial_learning_rate": peak})
        )
    if recipe["optimizer"] == "momentum":
        return keras.optimizers.SGD(rate, momentum=0.9)
    decay = {"adam": None, "adamw": 1e-4}[recipe["optimizer"]]
    return keras.optimizers.Adam(rate, epsilon=1e-8, weight_decay=decay)


def make(problem: Problem, whole_run: bool) -> Pair:
    model = network(problem)
    whole = problem.y.dtype == np.int32
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if whole else "mse"
    model.compile(optimizer(problem.recipe), loss)
    model.optimizer.build(model.trainable_variables)
    blank = [np.array(variable) for variable in model.optimizer.variables]
    variables = {path_of(variable): variable for variable in model.trainable_variables}
    y = problem.y if whole else problem.y[:, None]

    size = len(y) if whole_run else problem.recipe["epoch"] * problem.batch_size

    def reset() -> None:
        for path, variable in variables.items():
            variable.assign(problem.start[path])
        for variable, value in zip(model.optimizer.variables, blank, strict=True):
            variable.assign(value)

    def run(_: None) -> dict[str, np.ndarray]:
        for begin in range(0, len(y), size):
            part = slice(begin, begin + size)
            model.fit(
                problem.x[part],
                y[part],
                batch_size=problem.batch_size,
                epochs=1,
                shuffle=False,
                verbose=0,
            )
        return {path: np.array(variable) for path, variable in variables.items()}

    return Pair(reset, run)


if __name__ == "__main__":
    serve(lambda problem: make(problem, sys.argv[1] == "whole"), sys.argv[2])
