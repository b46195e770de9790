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
# # jax_lrreg in five minutes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/quickstart.ipynb)
#
# A schedule, a penalty, a jitted training step and a loop, on handwritten digits.
# It runs on a CPU, a GPU or a TPU as it stands.

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

# %%
import jax

print(f"jax {jax.__version__} on {jax.default_backend()}: {jax.devices()}")

# %% [markdown]
# ## A schedule
#
# A function of the step that goes wherever Optax takes a learning rate. It prints as the expression
# that makes it.

# %%
import jax.numpy as jnp

from jax_lrreg import plots, schedules

steps = 600
lr = schedules.Cosine(3e-3, steps=540).warmup(60)
print(lr)
print(lr(0), lr(60), lr(jnp.array([100, 300, 600])))
_ = plots.schedule(lr, steps=steps)

# %% [markdown]
# ## A penalty
#
# Chosen by parameter path; the report says which parameter gets what.

# %%
import flax.linen as nn
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import penalties, training

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:360], order[360:]


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(10)(x)


module = Network()
reg = penalties.ElasticNet(1e-5, l2=1e-3).on("**/kernel")
tx = optax.adam(lr)
state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
print(reg.report(state.params))


# %% [markdown]
# ## Train
#
# `model` in the loss is the module with its parameters and keys bound to it.


# %%
def loss_fn(model, batch):
    logits = model(batch["x"])
    accuracy = (logits.argmax(-1) == batch["y"]).mean()
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), {
        "accuracy": accuracy
    }


def metrics_fn(model, batch):
    logits = model(batch["x"], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    return {"val_loss": loss, "val_accuracy": (logits.argmax(-1) == batch["y"]).mean()}


data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size=64, key=jax.random.key(1))
held = training.ArrayData({"x": x[test], "y": y[test]}, batch_size=360, shuffle=False)
step = training.make_step(module, loss_fn, tx, penalty=reg, learning_rate=lr)
evaluate = training.make_eval(module, metrics_fn, held)
state, history = training.fit(
    step, state, data, steps=steps, log_every=20, eval_every=100, eval_fn=evaluate, progress=True
)
print(f"accuracy on unseen digits: {history['val_accuracy'][-1]:.3f}")
assert history["val_accuracy"][-1] > 0.95

# %% [markdown]
# ## Look

# %%
_ = plots.history(history)
