"""Programs compiled for TPUs that are not here: `tpu.py [--full]` prints what they hold.

On each topology those of its list; with `--full` all of them on every one.
"""

import json
import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
import _ahead  # before JAX
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jax_lrreg import averages, penalties, training, transforms

CUT = ("cut", "cut penalty", "cut proximal")
TOPOLOGIES = {
    "v5e:1x1": ("step",),
    "v5e:2x2": (
        *("step", "penalty", "proximal", "loop", "accumulated", "scan"),
        *(*CUT, "cut injected", "cut average", "cut ball", "cut reference", "cut important"),
    ),
    "v5e:16x16": ("loop", "sweep", *CUT),
    "v6e:2x2": ("penalty",),
    "v5p:8x8x16": ("penalty", *CUT),
}
PARAMS = {
    "conv": np.ones((3, 3, 1, 8), np.float32),
    "kernel": np.ones((128, 1024), np.float32),
    "out": np.ones(1024, np.float32),
}
LASSO, RATE = penalties.L1(1e-4), 1e-2
BALL = penalties.L1Ball(1.0, axis=0).on("kernel")
ADAM = optax.adam(RATE)
NO_MESH = jax.sharding.AbstractMesh((), ())
INJECTED = optax.inject_hyperparams(optax.adam)(learning_rate=RATE)


def apply(params, x):
    window = {"window_strides": (1, 1), "padding": "SAME"}
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, params["conv"], **window, **numbers))
    return jnp.tanh(x.reshape(len(x), -1) @ params["kernel"]) @ params["out"]


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def rows_for(mesh):
    """Four for each chip: one for each micro-batch. Of thousands, a convolution compiles long."""
    count = 4 * mesh.size
    return {"x": np.ones((count, 4, 4, 1), np.float32), "y": np.ones(count, np.float32)}


def data_for(rows):
    return training.ArrayData(rows, len(rows["y"]), shuffle=False)


def begin(tx, hyper=None):
    return training.init(apply, tx, key=jax.random.key(0), params=PARAMS, hyper=hyper)


def proximal(tx, penalty=LASSO):
    return transforms.proximal(tx, penalty, learning_rate=RATE)


def near(point):
    """A reference that is data of the state: it is cut as the parameters are."""
    return proximal(ADAM, penalties.L2SP(1e-4, reference=point))


def important(point):
    return proximal(ADAM, penalties.EWC(1e-4, importance=point, reference=point))


def lowered(mesh, tx=ADAM, cut=False, loop=False, hyper=None, keeps=None, **options):
    """The program of one step, or of a loop of them, and how many arrays its state has."""
    step = training.make_step(apply, loss_fn, tx, **options)
    rule = training.fsdp("data", least=1024, keep_groups=keeps) if cut else None
    state = _ahead.shapes_on(mesh, lambda: step.complete(begin(tx, hyper)), rule)
    rows = rows_for(mesh)
    leaves = len(jax.tree.leaves(state.replace(hyper=None))) - 1  # all that changes: not the key
    return training.lower(step, state, data_for(rows)) if loop else step.lower(state, rows), leaves


def scan(mesh):
    step, data = training.make_step(apply, loss_fn, ADAM), data_for(rows_for(mesh))
    assert data.device_arrays  # made here, as the devices of the mesh are elsewhere
    many = jax.jit(partial(training.scan, step, data=data, steps=3), donate_argnums=0)
    state = _ahead.shapes_on(mesh, lambda: begin(ADAM))
    with jax.set_mesh(mesh):
        return many.lower(state), len(jax.tree.leaves(state)) - 1


def sweep(mesh):
    """Two members on each chip, at rates and strengths of their own."""

    def run(rate, strength):
        tx = transforms.proximal(optax.adam(rate), penalties.L1(strength), learning_rate=rate)
        few = data_for(jax.tree.map(lambda x: x[:4], rows_for(mesh)))
        step = training.make_step(apply, loss_fn, tx)
        return training.scan(step, begin(tx), few, steps=2)[1]["loss"]

    def local(*numbers):  # as `sweeps.run` does: a member is on one chip
        with jax.sharding.use_abstract_mesh(NO_MESH):
            return jax.vmap(run)(*numbers)

    numbers = jax.ShapeDtypeStruct((2 * mesh.size,), np.float32)
    places = {"in_specs": P("data"), "out_specs": P("data")}
    members = jax.shard_map(local, mesh=mesh, check_vma=False, **places)
    return jax.jit(members).lower(numbers, numbers), 0


PROGRAMS = {
    "step": lowered,
    "penalty": partial(lowered, penalty=LASSO),
    "proximal": partial(lowered, tx=proximal(ADAM)),
    "loop": partial(lowered, loop=True),
    "accumulated": partial(lowered, accumulate=4),
    "scan": scan,
    "sweep": sweep,
    "cut": partial(lowered, cut=True),
    "cut penalty": partial(lowered, cut=True, penalty=LASSO),
    "cut proximal": partial(lowered, tx=proximal(ADAM), cut=True),
    "cut ball": partial(lowered, tx=proximal(ADAM, BALL), cut=True, keeps=BALL),
    "cut reference": partial(lowered, tx=near, hyper=PARAMS, cut=True),
    "cut important": partial(lowered, tx=important, hyper=PARAMS, cut=True),
    # With a float scalar in the state, and with an average: the guard looks at neither.
    "cut injected": partial(lowered, tx=INJECTED, cut=True),
    "cut average": partial(lowered, cut=True, average=averages.EMA(0.9)),
}


def looked_at(program, leaves, chips):
    text = program.compile().as_text()
    words = ("conditional(", "f64[", "outfeed(", "xla_python_cpu_callback", "xla_ffi_python")
    kept = text.split("\n")[0].count("-alias") >= leaves
    sent = {kind: message.count for kind, message in _ahead.messages(text, chips).items()}
    return sent | {"words": [word for word in words if word in text], "kept": kept}


found = {}
for name, labels in TOPOLOGIES.items():
    mesh = _ahead.mesh_of(name)
    for label in PROGRAMS if "--full" in sys.argv else labels:
        found[f"{name} {label}"] = looked_at(*PROGRAMS[label](mesh), mesh.size)
print(json.dumps(found))
