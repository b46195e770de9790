"""The runs that the battery kills: small ones that keep all that a run can keep.

Nothing here touches a device when it is imported: the battery forks processes that have imported
JAX and have not begun with it.
"""

import hashlib

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import nnx

from jax_lrreg import averages, checkpoints, schedules, training, transforms

STEPS = 240


def arrays():
    """Examples of a line."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(1).astype(np.float32)}


def loss_fn(model, batch):
    """The mean of squares."""
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


class Net(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.2, deterministic=False)(nn.relu(x)))[:, 0]


class NnxNet(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))[:, 0]


class Positions:
    """Batches by an iterator with `get_state` and `set_state`."""

    def __init__(self, data):
        self.data, self.now = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.now += 1
        return self.data(self.now - 1)

    def get_state(self):
        return {"now": self.now}

    def set_state(self, state):
        self.now = state["now"]


def optimizer():
    """Adam with a schedule that is cut by a plateau."""
    lr = schedules.Cosine(0.02, steps=STEPS).warmup(20)
    plateau = schedules.ReduceOnPlateau(factor=0.5, patience=3)
    return optax.chain(optax.adam(lr), transforms.scale_by_controller(plateau))


def make(case):
    """The step, the state and the data of a case."""
    data, tx = training.ArrayData(arrays(), 16, jax.random.key(1)), optimizer()
    module = NnxNet() if case == "nnx" else Net()
    example = None if case == "nnx" else np.zeros((1, 4), np.float32)
    state = training.init(module, tx, key=jax.random.key(0), example=example)
    options = {
        "linen": {"average": averages.EMA(0.99), "on_spike": training.Spike(window=16)},
        "accumulate": {"accumulate": 4},
    }.get(case, {})
    return (
        training.make_step(module, loss_fn, tx, **options),
        state,
        Positions(data) if case == "stream" else data,
    )


CASES = ("linen", "nnx", "accumulate", "stream")


def run(case, folder=None, asynchronous=True, every=10, before_end=None):
    """Runs a case to its end, and returns a sum of all that came of it."""
    step, state, data = make(case)
    weights = lambda s: float(sum(np.abs(x).sum() for x in jax.tree.leaves(s.params)))  # noqa: E731
    best = training.Best("size")
    options = {"steps": STEPS, "chunk": 5, "log_every": 15, "eval_every": 20, "keep_best": best}
    options["stop"] = training.Patience("size", evaluations=100)
    if folder is not None:
        options["checkpoint"] = checkpoints.Folder(folder, every=every, asynchronous=asynchronous)
    evaluate = lambda s: {"size": weights(s)}  # noqa: E731
    state, history = training.fit(step, state, data, eval_fn=evaluate, **options)
    if "interrupted" in history:
        return "interrupted"
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state, best.state)):
        key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes())
    for name in sorted(history):
        digest.update(name.encode() + str(history[name].tolist()).encode())
    return digest.hexdigest()
