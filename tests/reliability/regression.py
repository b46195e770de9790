"""What the runs on several devices train: one of four outputs is the sum of the inputs.

To be imported when the devices are chosen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import training

x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
data = training.ArrayData({"x": x, "y": x.sum(1)}, 16, jax.random.key(1))
tx = optax.adam(0.1)
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def apply(params, x):
    return x @ params


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"])[:, 0] - batch["y"]) ** 2)


def begin(**options):
    params = np.zeros((16, 4), np.float32)
    return training.init(apply, tx, key=jax.random.key(0), params=params, **options)


step = training.make_step(apply, loss_fn, tx)
