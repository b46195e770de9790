# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training on a TPU, from one chip to a pod
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/tpu_training.ipynb)
#
# A character transformer over all the chips that JAX finds: its state cut over them, a warmup, a
# plateau and a cooldown, decay of the weights, checkpoints and a profile. Nothing here says how
# many chips there are.
#
# On a CPU it runs as on eight chips, if asked to: start it with `JAX_PLATFORMS=cpu` in the
# environment.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("jax_lrreg") is None:  # from the checkout around, else from the index
    places = (Path.cwd(), *Path.cwd().parents)
    source = next((str(p) for p in places if (p / "jax_lrreg/__init__.py").exists()), "jax_lrreg")
    # JAX, where it is there already for the runtime's own accelerator, is left as it is.
    command = [sys.executable, "-m", "pip", "install", "-q", f"{source}[demo]"]
    if subprocess.run(command, capture_output=True).returncode:
        sys.exit(f"pip found no jax_lrreg: run this in a checkout, or try {' '.join(command[1:])}")

# %% [markdown]
# ## Is the TPU there?
#
# Without one, training would begin all the same, on a CPU and a thousand times slower. So this
# fails, and says what to do.

# %%
import os

import jax

on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
if on_cpu:
    jax.config.update("jax_num_cpu_devices", 8)
devices = jax.devices()
if devices[0].platform != "tpu" and not on_cpu:
    raise RuntimeError(
        f"there is no TPU, JAX found {devices}. On Colab: Runtime > Change runtime type > TPU, and "
        "run this from its top. Where one was chosen, restart the runtime: after an installation "
        "its libtpu and JAX may no longer fit together. For a CPU set JAX_PLATFORMS=cpu."
    )
print(f"jax {jax.__version__}: {len(devices)} x {devices[0].device_kind}")

# %% [markdown]
# ## A mesh over all of them
#
# Batches are cut over its axis. The rules of other parameters than large ones are no one's concern:
# `fsdp` cuts those of 2^16 numbers or more, and moments and averages lie as their parameter does.

# %%
auto = (jax.sharding.AxisType.Auto,)
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
jax.set_mesh(mesh)
print(mesh.shape)

# %% [markdown]
# ## A transformer
#
# It reads the source of a module of Python's library. The activations of each layer are held to the
# axis `data`: then XLA sends the weights of one layer at a time to the rows. Without that it may
# send the rows to the weights, which costs more with each chip.

# %%
import argparse

import flax.linen as nn
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jax_lrreg import checkpoints, penalties, plots, schedules, training

length, width, layers = (32, 64, 2) if on_cpu else (256, 512, 8)
batch_size = jax.device_count() * (2 if on_cpu else 16)
source = Path(argparse.__file__).read_text()
symbols, codes = np.unique(list(source), return_inverse=True)
places = np.arange(0, len(codes) - length - 1, 16)[:, None] + np.arange(length)
rows = {"x": codes[places].astype(np.int32), "y": codes[places + 1].astype(np.int32)}
held = {name: values[-256:] for name, values in rows.items()}
data = training.ArrayData(
    {name: values[:-256] for name, values in rows.items()}, batch_size, jax.random.key(1)
)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(len(symbols), width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (length, width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(layers):
            x = jax.lax.with_sharding_constraint(x, P("data"))
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return nn.Dense(len(symbols))(nn.LayerNorm()(x))


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


# %% [markdown]
# ## Schedule, penalty, optimizer
#
# On a TPU products are in bfloat16 by default; schedules, penalties and the optimizer stay in
# float32.

# %%
steps = 120 if on_cpu else 3000
lr = schedules.warmup_stable_decay(
    3e-3 if on_cpu else 1e-3, warmup_steps=steps // 10, decay_steps=steps // 5, total_steps=steps
)
penalty = penalties.L2(1e-4).on("**/kernel")
tx = optax.adam(lr)
module = Transformer()
state = training.init(
    module,
    tx,
    key=jax.random.key(0),
    example=held["x"][:1],
    sharding=training.fsdp("data", least=2**12 if on_cpu else 2**16),
)
step = training.make_step(module, loss_fn, tx, penalty=penalty, learning_rate=lr)
kernel = state.params["Dense_0"]["kernel"]
print(lr)
print(
    f"{kernel.shape} lies as {kernel.sharding.spec}; here {kernel.addressable_shards[0].data.shape}"
)

# %% [markdown]
# ## What a step costs, before it runs
#
# The very program that `fit` runs, of which nothing runs here.

# %%
program = training.lower(step, state, data, chunk=20).compile()
memory = program.memory_analysis()
held_mb, work_mb = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
print(f"{held_mb:.1f} MB held on each chip, {work_mb:.1f} MB more at work")

# %% [markdown]
# ## Train, and keep the run
#
# A Colab runtime may end at any time. With the folder on Google Drive (`drive.mount`, then
# `/content/drive/MyDrive/run`) the same cell goes on where it was, bit for bit.

# %%
import tempfile

folder = checkpoints.Folder(Path(tempfile.mkdtemp()) / "run", every=steps // 2)
evaluate = training.make_eval(
    module, lambda model, batch: {"held_out": loss_fn(model, batch)}, [held]
)
state, history = training.fit(
    step,
    state,
    data,
    until=steps,
    log_every=20,
    eval_every=steps // 4,
    eval_fn=evaluate,
    checkpoint=folder,
)
assert history["held_out"][-1] < history["held_out"][0] < np.log(len(symbols)), "it learns"
_ = plots.history(history)

# %% [markdown]
# ## A profile
#
# Twenty steps more, for TensorBoard or xprof: each call of the device is marked `train`, what reads
# metrics and evaluates by its name.

# %%
trace = tempfile.mkdtemp()
with jax.profiler.trace(trace):
    state, _ = training.fit(step, state, data, steps=20, log_every=20)
print(*sorted(path.name for path in Path(trace).rglob("*") if path.is_file()), sep="\n")
