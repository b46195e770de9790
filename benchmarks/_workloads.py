"""The four models that the benchmarks train, with their data, losses and optimizers.

The source article's model (10 features, Dense 10 relu, Dense 1, Adam, batch 32, polynomial decay,
L1 + L2), an MLP on scikit-learn's digits, a character transformer on the standard library's
sources, and a small CNN on the digits.
"""

import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _peer_child import warmup_steps
from sklearn.datasets import load_diabetes, load_digits

from jax_lrreg import penalties, schedules, training


class Workload(NamedTuple):
    """A model with its data, loss, optimizer and penalty; `recipe` says it in plain words."""

    module: nn.Module
    arrays: dict[str, np.ndarray]
    batch_size: int
    loss: Callable[[Callable, Any], jax.Array]
    tx: optax.GradientTransformation
    penalty: penalties.Penalty
    lr: schedules.Schedule
    recipe: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.recipe["steps"]

    def start(self) -> training.State:
        """The state that every contender begins with."""
        return training.init(
            self.module, self.tx, key=jax.random.key(0), example=self.arrays["x"][:1]
        )

    def data(self) -> training.ArrayData:
        return training.ArrayData(self.arrays, self.batch_size, jax.random.key(1))

    def order(self) -> np.ndarray:
        """The numbers of the examples of every step, [steps, batch_size]."""
        return order(self.data(), self.steps)


class Mlp(nn.Module):
    """Dense layers with relu between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Cnn(nn.Module):
    """Two convolutions and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.avg_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """A decoder with learned positions."""

    layers: int
    width: int
    heads: int
    symbols: int

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        x = nn.Embed(self.symbols, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (length, self.width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.symbols)(nn.LayerNorm()(x))


def square(model, batch):
    return jnp.mean((model(batch["x"])[..., 0] - batch["y"]) ** 2)


def cross_entropy(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def workloads(tiny: bool, device: str = "cpu") -> dict[str, Workload]:
    """The four, sized for two CPU cores or for one GPU; tiny ones only show that they run."""
    large = device == "gpu" and not tiny
    rng = np.random.default_rng(0)
    x = np.tile(load_diabetes().data, (3, 1))[:1000] + 0.01 * rng.normal(size=(1000, 10))
    article = {"x": x.astype(np.float32), "y": (x @ rng.normal(size=10)).astype(np.float32)}
    pixels = digits()
    squares = {"x": pixels["x"].reshape(-1, 8, 8, 1), "y": pixels["y"]}
    characters, symbols = text(2_000 if tiny else 200_000, 32 if tiny else 128)
    shape = (1, 16, 2) if tiny else (6, 512, 8) if large else (4, 128, 4)

    def work(
        module: nn.Module, arrays: Any, batch_size: int, loss: Callable, **recipe: Any
    ) -> Workload:
        recipe["steps"] = 3 if tiny else recipe["steps"]
        lr = learning_rate(recipe)
        penalty = (
            penalties.ElasticNet(recipe["l1"], l2=recipe["l2"])
            if recipe["l1"]
            else penalties.L2(recipe["l2"])
        )
        tx = {
            "adam": optax.adam,
            "adamw": optax.adamw,
            "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
        }
        optimizer = tx[recipe["optimizer"]](lr)
        return Workload(
            module, arrays, batch_size, loss, optimizer, penalty.on("**/kernel"), lr, recipe
        )

    slow = {"l1": 0.0, "l2": 1e-4, "peak": 1e-3, "warmup": 0.1}
    return {
        "article": work(
            Mlp((10, 1)), article, 32, square,
            model="mlp", optimizer="adam", peak=0.01, power=0.9, l1=1e-4, l2=1e-4, steps=3100,
        ),
        "digits": work(
            Mlp((256, 256, 10)), pixels, 128, cross_entropy,
            model="mlp", optimizer="momentum", peak=0.1, warmup=0.1, l1=0.0, l2=1e-4, steps=700,
        ),
        "transformer": work(
            Transformer(*shape, symbols), characters, 64 if large else 16, cross_entropy,
            model="transformer", heads=shape[2], optimizer="adamw",
            steps=60 if large else 30, **slow,
        ),
        "cnn": work(
            Cnn(), squares, 64, cross_entropy,
            model="cnn", optimizer="adam", steps=600 if large else 60, **slow,
        ),
    }  # fmt: skip


def learning_rate(recipe: dict[str, Any]) -> schedules.Schedule:
    """Polynomial decay where a power is named, else warmup and half a cosine."""
    if "power" in recipe:
        return schedules.Polynomial(recipe["peak"], steps=recipe["steps"], power=recipe["power"])
    ramp = warmup_steps(recipe)
    cosine = schedules.Cosine(recipe["peak"], steps=recipe["steps"] - ramp)
    return cosine.warmup(ramp) if ramp else cosine


def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits, 64 brightnesses from 0 to 1 each."""
    images, labels = load_digits(return_X_y=True)
    return {"x": (images / 16).astype(np.float32), "y": labels.astype(np.int32)}


def held_out(arrays: dict[str, np.ndarray], count: int) -> tuple[dict[str, np.ndarray], ...]:
    """The examples that are trained on, and `count` by which a model is judged."""
    order = np.random.default_rng(0).permutation(len(arrays["x"]))
    parts = (order[count:], order[:count])
    return tuple({name: x[rows] for name, x in arrays.items()} for rows in parts)


def text(characters: int, length: int) -> tuple[dict[str, np.ndarray], int]:
    """Windows of the standard library's sources, and the next characters."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    source = "".join(path.read_text(errors="ignore") for path in sorted(folder.glob("*.py"))[:40])[
        :characters
    ]
    symbols, codes = np.unique(list(source), return_inverse=True)
    rows = codes[: (len(codes) - 1) // length * length].reshape(-1, length)
    following = codes[1 : rows.size + 1].reshape(-1, length)
    return {"x": rows.astype(np.int32), "y": following.astype(np.int32)}, len(symbols)


def order(data: training.ArrayData, steps: int) -> np.ndarray:
    """The numbers of the examples of the first `steps` steps, [steps, batch_size]."""
    return np.stack([data.indices(step) for step in range(steps)])


def flat(params: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths."""
    pairs = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value)
        for path, value in pairs
    }


def unflat(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The tree of `like` with the arrays at its paths."""
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(arrays[path]) for path in flat(like)]
    )


def final_loss(work: Workload, params: Any) -> float:
    """The loss of all examples, without the penalty."""
    judge = jax.jit(
        lambda params, batch: work.loss(lambda x: work.module.apply({"params": params}, x), batch)
    )
    return float(judge(params, jax.tree.map(lambda a: a[:1800], work.arrays)))
