"""What is trained: a small Flax network on a data set, with defaults that fit it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen

from jax_lrreg import penalties, schedules, training
from jax_lrreg._check import require
from jax_lrreg.cli.data import Dataset, load
from jax_lrreg.cli.options import PROGRAM, one_of, parsed

OPTIMIZERS: dict[str, Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}


class Problem(NamedTuple):
    """Data, network, loss, and how they are trained.

    Attributes:
        dataset: examples for training and for testing.
        hidden: widths of the hidden layers.
        module: the network.
        measure: `(model, batch) -> (loss, metrics)`.
        source: the batches.
        optimizer: its name in `OPTIMIZERS`.
        penalty: added to the loss.
        epochs: passes over the training examples by default.
        schedule: of a number of steps, by default.
    """

    dataset: Dataset
    hidden: tuple[int, ...]
    module: linen.Module
    measure: Callable[[Callable, Any], tuple[jax.Array, dict[str, jax.Array]]]
    source: training.ArrayData
    optimizer: str
    penalty: penalties.Penalty
    epochs: int
    schedule: Callable[[int], schedules.Schedule]

    @property
    def network(self) -> str:
        """The layers, for people."""
        inputs, outputs = self.dataset.train[0].shape[1], len(self.dataset.labels) or 1
        return f"{' -> '.join(map(str, (inputs, *self.hidden, outputs)))}, ReLU between"

    @property
    def loss(self) -> str:
        """What the loss is and its unit, for people."""
        _, spread = self.dataset.target
        if self.dataset.labels:
            return "cross-entropy, in nats"
        return f"mean squared error, in units of the target's variance ({spread:.4g} squared)"

    def init(self, tx: optax.GradientTransformation, seed: int) -> training.State:
        """The state at the beginning; refuses a pattern that matches nothing before anything is compiled."""
        x = self.dataset.train[0][:1]
        state = training.init(self.module, tx, key=jax.random.key(seed + 1), example=x)
        self.penalty.report(state.params)
        return state


def problem(
    data: str,
    target: str | None,
    ignore: Sequence[str],
    task: str | None,
    hidden: tuple[int, ...] | None,
    optimizer: str | None,
    penalty: str | None,
    batch_size: int | None,
    seed: int,
) -> Problem:
    """The problem that the options describe; what they leave open is chosen for the data.

    For `diabetes` it is the program of the source article, whose lambdas are per data set;
    otherwise warmup and cosine.
    """
    article = data == "diabetes"
    optimizer = one_of("--optimizer", optimizer or "adam", OPTIMIZERS)
    reg = None if penalty is None else parsed("--penalty", penalty, penalties.Penalty)
    dataset = load(data, target, ignore, task, seed)
    (x, y), classes = dataset.train, len(dataset.labels)
    # At least four steps an epoch: a file of 30 rows is no single batch of 64.
    size = batch_size or max(1, min(32 if article else 64, len(x) // 4))
    allowed = f"at most the {len(x)} training examples"
    require(size <= len(x), PROGRAM, "--batch-size", size, allowed)
    source = training.ArrayData({"x": x, "y": y}, size, jax.random.key(seed))
    usual = (10,) if article else (128, 128)
    widths = usual if hidden is None else hidden

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for width in widths:
                x = linen.relu(linen.Dense(width)(x))
            x = linen.Dense(classes or 1)(x)
            return x if classes else x[..., 0]

    def measure(model: Callable, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = model(batch["x"])
        if not classes:
            return jnp.mean((output - batch["y"]) ** 2), {}
        loss = optax.softmax_cross_entropy_with_integer_labels(output, batch["y"]).mean()
        return loss, {"accuracy": (output.argmax(-1) == batch["y"]).mean()}

    def warm_cosine(steps: int) -> schedules.Schedule:
        warmup = steps // 10
        cosine = schedules.Cosine(3e-3, steps=steps - warmup)
        return cosine.warmup(warmup) if warmup else cosine

    def polynomial(steps: int) -> schedules.Schedule:
        return schedules.Polynomial(0.01, steps=steps, power=0.9)

    elastic = penalties.ElasticNet(0.1, l2=0.1) if article else penalties.ElasticNet(1e-5, l2=1e-3)
    usual = elastic.on("**/kernel") / len(x) if article else elastic.on("**/kernel")
    reg = usual if reg is None else reg
    epochs, schedule = (100, polynomial) if article else (30, warm_cosine)
    return Problem(dataset, widths, Network(), measure, source, optimizer, reg, epochs, schedule)
