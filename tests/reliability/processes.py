"""One of two processes on a mesh: `processes.py RANK PORT FOLDER [STEPS]` prints what it finds."""

import json
import os
import pathlib
import sys

rank, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 6
flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
limits = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
jax.distributed.initialize(f"localhost:{port}", 2, rank, **limits)

import jax.numpy as jnp
from regression import begin, data, mesh, step

from jax_lrreg import training


def own_rows(index):
    return jax.tree.map(lambda a: a[rank * 8 : rank * 8 + 8], data(index))


found = {}
with jax.set_mesh(mesh):
    for name, rule in (("whole", None), ("fsdp", training.fsdp("data", least=16))):
        kinds = {"arrays": data, "rows": [own_rows(i) for i in range(steps)]}
        for kind in kinds if steps < 100 else ("arrays",):
            state = begin(sharding=rule)
            loggers = [training.log_csv(folder / f"{name}-{kind}.csv")]
            options = {"steps": steps, "log_every": 2, "loggers": loggers}
            print("training", flush=True)
            state, history = training.fit(step, state, kinds[kind], **options)
            size = jax.jit(lambda p: jnp.sum(jnp.abs(p)))(state.params)
            found[f"{name} {kind}"] = [*history["loss"].tolist(), float(size)]
print(json.dumps(found))
