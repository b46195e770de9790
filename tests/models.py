"""What many tests train: small models, losses, data, states, and programs."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_lrreg import training


def environment_of(devices, flags=""):
    """That of a script on so many devices of one CPU, with XLA as it is in the tests."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": f"{os.getenv('XLA_FLAGS', '')} {count} {flags}"}


def apply(params, x):
    """An affine model."""
    return x @ params["w"] + params["b"]


def zeros():
    """The parameters of the affine model of three inputs, new ones each time."""
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def problem(n=64, seed=0, noise=0.1):
    """A batch that the affine model fits but for the noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + noise * rng.normal(size=n)
    return {"x": x, "y": y.astype(np.float32)}


def loss_fn(model, batch):
    """The mean of squares."""
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def masked_loss(model, batch):
    """The mean of squares over the examples of weight 1."""
    weight = batch["mask"] if "mask" in batch else jnp.ones(len(batch["x"]))
    return jnp.sum(weight * (model(batch["x"]) - batch["y"]) ** 2) / jnp.sum(weight)


def start(tx, params=None, **options):
    """A state of the affine model."""
    params = zeros() if params is None else params
    return training.init(apply, tx, key=jax.random.key(0), params=params, **options)


def two_layers(params, x):
    """A model with a hidden layer."""
    return jnp.tanh(x @ params["first"]) @ params["last"]


def two_layers_params(seed=0):
    """Parameters of the model with a hidden layer, of four inputs."""
    rng = np.random.default_rng(seed)
    params = {"first": 0.5 * rng.normal(size=(4, 8)), "last": 0.5 * rng.normal(size=8)}
    return jax.tree.map(np.float32, params)


class Cnn(nn.Module):
    """A convolution in Linen, of images with one channel."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Conv(2, (3, 3))(x).reshape(len(x), -1))[:, 0]


def images(n=32):
    """Random images that the convolution learns to call 1."""
    x = np.random.default_rng(0).normal(size=(n, 4, 4, 1)).astype(np.float32)
    return {"x": x, "y": np.ones(n, np.float32)}


class NnxNet(nnx.Module):
    """Batch statistics and dropout in NNX; one output is a number for each example."""

    def __init__(self, inputs, hidden, outputs, rate):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(inputs, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x):
        y = self.last(self.drop(nnx.relu(self.norm(self.first(x)))))
        return y[:, 0] if y.shape[1] == 1 else y


def program(function, *args):
    """The text of the program that XLA makes of a function."""
    return jax.jit(function).lower(*args).compile().as_text()
