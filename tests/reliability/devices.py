"""A run on so many devices: `devices.py COUNT FOLDER STEPS` prints its losses."""

import os
import sys

count, folder, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jax_lrreg import training

mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
data = training.ArrayData({"x": x, "y": x.sum(1)}, 16, jax.random.key(1))
tx = optax.adam(0.1)


def apply(params, x):
    return x @ params


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


rules = {"**": PartitionSpec("data")}

with jax.set_mesh(mesh):
    options = {"key": jax.random.key(0), "params": jnp.zeros(8), "sharding": rules}
    state = training.init(apply, tx, **options)
    step = training.make_step(apply, loss_fn, tx)
    kept = {"checkpoint": folder, "log_every": 10}
    state, history = training.fit(step, state, data, until=steps, **kept)
assert len(state.params.sharding.device_set) == count
print(*history["loss"].tolist())
