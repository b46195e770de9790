"""A run on so many devices: `devices.py COUNT FOLDER STEPS` prints its losses."""

import os
import sys

count, folder, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
flags = f"--xla_force_host_platform_device_count={count}"
os.environ["XLA_FLAGS"] = f"{flags} {os.getenv('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jax.sharding import PartitionSpec
from regression import begin, data, mesh, step

from jax_lrreg import training

with jax.set_mesh(mesh):
    state = begin(sharding={"**": PartitionSpec("data")})
    state, history = training.fit(step, state, data, until=steps, checkpoint=folder, log_every=10)
assert len(state.params.sharding.device_set) == count
print(*history["loss"].tolist())
