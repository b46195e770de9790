"""What a run does on so many devices: `mesh.py COUNT` prints it as JSON."""

import importlib.util
import json
import os
import re
import sys

count = int(sys.argv[1])
flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{flags} {os.getenv('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import penalties, training, transforms

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


def again():
    """The first state, in buffers of its own: `fit` gives them away."""
    return jax.device_put(first, may_alias=False)


batches = [data(i) for i in range(STEPS)]
arrived = jax.tree.map(jnp.asarray, batches)  # each on the first device
kinds = {"ArrayData": lambda: data, "list": lambda: batches, "generator": lambda: iter(arrived)}
if importlib.util.find_spec("grain"):
    import grain

    def drawn():  # the same rows in the same order, batched by Grain
        order = np.concatenate([data.rows(i)[0] for i in range(STEPS)])
        rows = [{name: a[i] for name, a in arrays.items()} for i in order]
        return iter(grain.MapDataset.source(rows).batch(ROWS).to_iter_dataset())

    kinds["grain"] = drawn
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


SENT = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
POINT = rng.normal(size=(WIDTH, 8)).astype(np.float32)
FAMILIES = {  # each on a matrix of its own, of one program
    "ball": penalties.L1Ball(1.0, axis=0),
    "simplex": penalties.Simplex(axis=-1),
    "start": penalties.L2SP(0.5, reference=POINT),
    "former": penalties.EWC(0.5, importance=POINT**2, reference=POINT),
}
PROX = sum(penalty.on(name) for name, penalty in FAMILIES.items())


def followed(prox, sharding=None):
    """The weights after two steps under a prox, and what the program sends."""
    tx = optax.adam(0.1)
    if prox:
        tx = transforms.proximal(tx, prox, learning_rate=0.1)
    apply = lambda params, x: sum(x @ w for w in params.values())  # noqa: E731
    step = training.make_step(apply, lambda model, x: jnp.mean((model(x) - 1) ** 2), tx)
    params = dict.fromkeys(FAMILIES, -POINT)
    state = training.init(apply, tx, key=jax.random.key(0), params=params, sharding=sharding)
    text = step.lower(state, x[:16]).compile().as_text()
    for i in range(2):
        state, _ = step(state, x[16 * i : 16 * i + 16])
    sent = [len(re.findall(rf" {kind}(-start)?\(", text)) for kind in SENT]
    return jax.device_get(state.params), sent


if count == 4:
    alone, _ = followed(PROX)
    with jax.set_mesh(mesh):
        rule = training.fsdp("data", least=0, keep_groups=PROX)
        _, plain = followed(None, rule)
        held, sent = followed(PROX, rule)
    differs = {name: float(abs(held[name] - alone[name]).max()) for name in alone}
    found["families"] = {"differs": differs, "sent": sent, "plain": plain}

found["refused"] = {}
if count == 2:
    other = jax.make_mesh((2, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    turned = jax.sharding.Mesh(mesh.devices[::-1], ("data",), axis_types=mesh.axis_types)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    step, batch = make(), jax.tree.map(lambda a: a[:16], arrays)
    with jax.set_mesh(mesh):
        state, own = begin(), training.make_eval(module, lambda m, b: {"loss": m(b)}, [batch])
        training.scan(
            step, state, data, steps=1
        )  # the same data, on the device and on another mesh
    alone, _ = training.fit(step, begin(), data, steps=1, log_every=1)
    found["alone"] = len(alone.step.sharding.device_set)
    with jax.set_mesh(turned):
        training.scan(step, begin(), data, steps=1)
    refused = {
        "state": (other, lambda: step(state, batch)),
        "evaluated": (other, lambda: own(state)),
        "devices": (turned, lambda: training.scan(step, state, [batch], steps=1)),
        "batch": (mesh, lambda: step(state, jax.device_put(batch, one))),
        "order": (mesh, lambda: step(state, training.place(batch, turned))),
        "sharding": (mesh, lambda: begin(sharding=one)),
    }
    for name, (active, use) in refused.items():
        try:
            with jax.set_mesh(active):
                use()
        except ValueError as error:
            found["refused"][name] = str(error)

with jax.set_mesh(mesh):
    first = begin()
    step = make()
    for name, given in kinds.items():
        measure(name, step, again(), given)
    for pieces in (4, 8):
        measure(f"accumulate {pieces}", make(accumulate=pieces), again(), lambda: data)
    cut = begin(sharding=training.fsdp("data", least=1024))
    kernel = cut.params["Dense_1"]["kernel"]
    moment = cut.opt_state[0].mu["Dense_1"]["kernel"]
    found["share"] = [w.addressable_shards[0].data.size / w.size for w in (kernel, moment)]
    after = measure("fsdp", step, cut, lambda: data)
    found["kept"] = after.params["Dense_1"]["kernel"].sharding == kernel.sharding
    compiled.clear()
    state = again()
    for batch in batches:
        state, metrics = step(state, batch)
    found["losses"]["step"] = [float(metrics["loss"])]
    found["compiled"]["step"] = [n for n in compiled if "call" in n]
    state, metrics = jax.jit(lambda s: training.scan(step, s, data, steps=STEPS))(first)
    found["losses"]["scan"] = metrics["loss"].tolist()
    uneven = training.ArrayData({k: v[:1023] for k, v in arrays.items()}, 500, shuffle=False)
    score = training.make_eval(module, lambda m, b: {"loss": loss_fn(m, b)}, uneven)
    found["evaluation"] = score(first)["loss"]
print(json.dumps(found))
