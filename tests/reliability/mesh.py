"""What a run does on so many devices: `mesh.py COUNT` prints it as JSON."""

import json
import os
import sys

count = int(sys.argv[1])
flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = flags
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import penalties, training

ROWS, WIDTH, STEPS = 1024, 64, 4
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **names: (
        compiled.append(names.get("fun_name", ""))
        if event.endswith("backend_compile_duration")
        else None
    )
)
mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
x = rng.normal(size=(2 * ROWS, WIDTH)).astype(np.float32)
arrays = {"x": x, "y": np.sin(x.sum(1))}
data = training.ArrayData(arrays, ROWS, jax.random.key(1))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(WIDTH)(nn.tanh(nn.Dense(WIDTH)(x)))))[:, 0]


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


module, tx = Model(), optax.adam(1e-2)


def make(**options):
    return training.make_step(module, loss_fn, tx, penalty=penalties.L2(1e-4), **options)


def begin(**options):
    return training.init(module, tx, key=jax.random.key(0), example=x[:1], **options)


batches = [data(i) for i in range(STEPS)]
kinds = {"ArrayData": lambda: data, "list": lambda: batches, "generator": lambda: iter(batches)}
if count == 8:
    kinds["placed"] = lambda: [training.place(batch, mesh) for batch in batches]
found = {"losses": {}, "flops": {}, "compiled": {}, "devices": []}


def measure(name, step, state, given, chunk=STEPS):
    if name != "generator":  # it runs the program of the list
        program = training.lower(step, state, given(), chunk=chunk).compile()
        found["flops"][name] = program.cost_analysis()["flops"]
    compiled.clear()
    state, history = training.fit(step, state, given(), steps=STEPS, log_every=1, chunk=chunk)
    found["losses"][name] = history["loss"].tolist()
    found["compiled"][name] = [n for n in compiled if "many" in n or "single" in n]
    found["devices"].append(len(state.params["Dense_0"]["bias"].sharding.device_set))
    return state


with jax.set_mesh(mesh):
    step = make()
    for name, given in kinds.items():
        measure(name, step, begin(), given)
    for pieces in (4, 8):
        measure(f"accumulate {pieces}", make(accumulate=pieces), begin(), lambda: data)
    cut = begin(sharding=training.fsdp("data", least=1024))
    kernel = cut.params["Dense_1"]["kernel"]
    moment = cut.opt_state[0].mu["Dense_1"]["kernel"]
    found["share"] = [w.addressable_shards[0].data.size / w.size for w in (kernel, moment)]
    after = measure("fsdp", step, cut, lambda: data)
    found["kept"] = after.params["Dense_1"]["kernel"].sharding == kernel.sharding
    compiled.clear()
    state = begin()
    for batch in batches:
        state, metrics = step(state, batch)
    found["losses"]["step"] = [float(metrics["loss"])]
    found["compiled"]["step"] = [n for n in compiled if "call" in n]
    state, metrics = jax.jit(lambda s: training.scan(step, s, data, steps=STEPS))(begin())
    found["losses"]["scan"] = metrics["loss"].tolist()
    uneven = training.ArrayData({k: v[:1023] for k, v in arrays.items()}, 1000, shuffle=False)
    score = training.make_eval(module, lambda m, b: {"loss": loss_fn(m, b)}, uneven)
    found["evaluation"] = score(begin())["loss"]
print(json.dumps(found))
