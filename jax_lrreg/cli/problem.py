"""What is trained: a small Flax network on a data set, with defaults that fit it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen

from jax_lrreg import penalties, schedules, training
from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require
from jax_lrreg.cli.data import Dataset, load
from jax_lrreg.cli.options import PROGRAM, one_of, parsed
from jax_lrreg.training.batch import Batch

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "lion": optax.lion,
}
Measured = tuple[jax.Array, dict[str, jax.Array]]


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
    measure: Callable[[Callable, Any], Measured]
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

    def steps(self, epochs: int) -> int:
        """The steps of so many epochs; a step is an int32 on the device."""
        steps = epochs * self.source.steps_per_epoch
        allowed = f"so few that there are at most {LAST_STEP} steps"
        require(steps <= LAST_STEP, PROGRAM, "--epochs", epochs, allowed)
        return steps

    def init(self, tx: optax.GradientTransformation, seed: int) -> training.State:
        """The state at the beginning; a pattern that matches nothing is refused now."""
        x = self.dataset.train[0][:1]
        state = training.init(self.module, tx, key=jax.random.key(seed + 1), example=x)
        require_fits(self.penalty, state.params)
        return state


def _warm_cosine(steps: int) -> schedules.Schedule:
    warmup = steps // 10
    cosine = schedules.Cosine(3e-3, steps=steps - warmup)
    return cosine.warmup(warmup) if warmup else cosine


def _polynomial(steps: int) -> schedules.Schedule:
    return schedules.Polynomial(0.01, steps=steps, power=0.9)


def _elastic_net(examples: int) -> penalties.Penalty:
    del examples
    return penalties.ElasticNet(1e-5, l2=1e-3).on("**/kernel")


def _shared_elastic_net(examples: int) -> penalties.Penalty:
    # The article's lambdas are for the sum of the losses over the data set; here it is their mean.
    return penalties.ElasticNet(0.1, l2=0.1).on("**/kernel") / examples


class _Usual(NamedTuple):
    """What is taken where no option says otherwise."""

    hidden: tuple[int, ...]
    batch: int
    epochs: int
    schedule: Callable[[int], schedules.Schedule]
    penalty: Callable[[int], penalties.Penalty]  # of the number of training examples


# Of `diabetes` they are those of the source article.
USUAL = {
    "diabetes": _Usual((10,), 32, 100, _polynomial, _shared_elastic_net),
    "": _Usual((128, 128), 64, 30, _warm_cosine, _elastic_net),
}


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
    usual = USUAL.get(data, USUAL[""])
    optimizer = one_of("--optimizer", "adam" if optimizer is None else optimizer, OPTIMIZERS)
    reg = None if penalty is None else parsed("--penalty", penalty, penalties.Penalty)
    dataset = load(data, target, ignore, task, seed)
    (x, y), classes = dataset.train, len(dataset.labels)
    # At least four steps an epoch: a file of 30 rows is no single batch of 64.
    size = batch_size or max(1, min(usual.batch, len(x) // 4))
    allowed = f"at most the {len(x)} training examples"
    require(size <= len(x), PROGRAM, "--batch-size", size, allowed)
    source = training.ArrayData({"x": x, "y": y}, size, jax.random.key(seed))
    widths = usual.hidden if hidden is None else hidden
    reg = usual.penalty(len(x)) if reg is None else reg
    module, measure = _network(widths, classes), _cross_entropy if classes else _squared_error
    by_default = usual.epochs, usual.schedule
    return Problem(dataset, widths, module, measure, source, optimizer, reg, *by_default)


def require_fits(penalty: penalties.Penalty, params: optax.Params) -> None:
    """Refuses a pattern that matches nothing, and a list that is the strength of no parameter."""
    try:
        penalty.report(params)
        jax.eval_shape(penalty, params)
    except ValueError as error:
        raise ValueError(f"--penalty: {error}") from None


def in_steps(
    given: schedules.Schedule, units: str, source: training.ArrayData
) -> schedules.Schedule:
    """A schedule whose lengths are in the units said, on the clock of steps."""
    return given.in_units(per_step=1 / source.steps_per_epoch) if units == "epochs" else given


def _network(widths: tuple[int, ...], classes: int) -> linen.Module:
    """Dense layers of these widths, and one number for each class, or one alone."""

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for width in widths:
                x = linen.relu(linen.Dense(width)(x))
            x = linen.Dense(classes or 1)(x)
            return x if classes else x[..., 0]  # [n, 1] less [n] would be [n, n]

    return Network()


def _squared_error(model: Callable, batch: Batch) -> Measured:
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


def _cross_entropy(model: Callable, batch: Batch) -> Measured:
    output = model(batch["x"])
    loss = optax.softmax_cross_entropy_with_integer_labels(output, batch["y"]).mean()
    return loss, {"accuracy": (output.argmax(-1) == batch["y"]).mean()}
