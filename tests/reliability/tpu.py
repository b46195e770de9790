"""Programs compiled for TPUs that are not here: `tpu.py TOPOLOGY...` prints what they hold."""

import json
import os
import re
import sys
from functools import partial

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server that could be asked
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by other tests at the same time
}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from jax_lrreg import penalties, training, transforms

BOUNDS = {"v5e:1x1": {"chips_per_host_bounds": (1, 1, 1)}}
PARAMS = {
    "conv": np.ones((3, 3, 1, 8), np.float32),
    "kernel": np.ones((512, 256), np.float32),
    "out": np.ones(256, np.float32),
}
ROWS = {"x": np.ones((64, 8, 8, 1), np.float32), "y": np.ones(64, np.float32)}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def apply(params, x):
    window = {"window_strides": (1, 1), "padding": "SAME"}
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, params["conv"], **window, **numbers))
    return jnp.tanh(x.reshape(len(x), -1) @ params["kernel"]) @ params["out"]


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def looked_at(lowered, leaves):
    text = lowered.compile().as_text()
    found = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    words = ("conditional(", "f64[", "outfeed(", "xla_python_cpu_callback")
    aliased = len(re.findall(r"(?:may|must)-alias", text.split("\n")[0]))
    return found | {"words": [w for w in words if w in text], "kept": aliased >= leaves}


found = {}
lasso = penalties.L1(1e-4)
adam = optax.adam(1e-2)
for name in sys.argv[1:]:
    chips = topologies.get_topology_desc(name, platform="tpu", **BOUNDS.get(name, {})).devices
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.Mesh(np.array(chips), ("data",), axis_types=kinds)
    data = training.ArrayData(ROWS, 64, shuffle=False)

    def state_for(tx, rule, mesh=mesh):
        make = lambda: training.init(apply, tx, key=jax.random.key(0), params=PARAMS)  # noqa: E731
        shapes = jax.eval_shape(make)
        lies = training.shardings(shapes, mesh, rule)
        one = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
        return jax.tree.map(one, shapes, lies)

    def see(label, step, tx=adam, rule=None, loop=False, name=name, data=data):
        state = state_for(tx, rule)
        leaves = len(jax.tree.leaves(state)) - 1  # all but the key
        lowered = training.lower(step, state, data) if loop else step.lower(state, ROWS)
        found[f"{name} {label}"] = looked_at(lowered, leaves)

    plain = training.make_step(apply, loss_fn, adam)
    penalised = training.make_step(apply, loss_fn, adam, penalty=lasso)
    proximal = transforms.proximal(adam, lasso, learning_rate=1e-2)
    see("step", plain)
    see("penalty", penalised)
    see("proximal", training.make_step(apply, loss_fn, proximal), proximal)
    see("loop", plain, loop=True)
    see("accumulated", training.make_step(apply, loss_fn, adam, accumulate=4))
    cut = training.fsdp("data", least=1024)
    see("fsdp", plain, rule=cut)
    see("fsdp penalty", penalised, rule=cut)
    see("fsdp proximal", training.make_step(apply, loss_fn, proximal), proximal, cut)
    with jax.set_mesh(mesh):
        many = jax.jit(partial(training.scan, plain, data=data, steps=3))
        found[f"{name} scan"] = looked_at(many.lower(state_for(adam, None)), 0)
print(json.dumps(found))
