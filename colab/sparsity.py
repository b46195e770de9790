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
# # Real zeros with Adam
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/sparsity.ipynb)
#
# L1 in the loss gives small weights under Adam, not zeros. The prox in Adam's own metric gives
# zeros. First the weights of a dense network, then whole filters of a convolutional one, which are
# cut out at the end.

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
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import serialization
from sklearn.datasets import load_digits

from jax_lrreg import penalties, schedules, training, transforms

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:599], order[599:]


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def accuracy(module, params, inputs):
    return float((module.apply({"params": params}, inputs[test]).argmax(-1) == y[test]).mean())


def run(module, inputs, tx, steps, penalty=None):
    data = training.ArrayData(
        {"x": inputs[train], "y": y[train]}, batch_size=128, key=jax.random.key(1)
    )
    state = training.init(module, tx, key=jax.random.key(0), example=inputs[:1])
    step = training.make_step(module, loss_fn, tx, penalty=penalty)
    state, _ = training.fit(step, state, data, steps=steps)
    return state.params


# %% [markdown]
# ## Weights
#
# The same network three times: without a penalty, with L1 in the loss, and with the prox.

# %%
mlp = nn.Sequential([nn.Dense(300), nn.relu, nn.Dense(100), nn.relu, nn.Dense(10)])
steps = 3000
lr = schedules.Cosine(3e-3, steps=steps)
l1 = penalties.L1(2e-4).on("**/kernel")


def zeros(params):
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    return sum(int((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)


results = {
    "no penalty": run(mlp, x, optax.adam(lr), steps),
    "L1 in the loss": run(mlp, x, optax.adam(lr), steps, penalty=l1),
    "prox": run(mlp, x, transforms.proximal(optax.adam(lr), l1, lr), steps),
}
for name, params in results.items():
    print(
        f"{name:15} test accuracy {accuracy(mlp, params, x):.3f}, exact zeros {zeros(params):.1%}"
    )

dense, sparse = accuracy(mlp, results["no penalty"], x), accuracy(mlp, results["prox"], x)
assert zeros(results["L1 in the loss"]) == 0
assert zeros(results["prox"]) >= 0.9
assert sparse >= dense - 0.01

# %% [markdown]
# What is left of the first layer: each picture is what one unit sees of the 8 x 8 image.

# %%
kernel = results["prox"]["layers_0"]["kernel"]
used = np.argsort(-np.abs(kernel).sum(0))[:12]
figure, axes = plt.subplots(2, 6, figsize=(7, 2.6), layout="constrained")
figure.suptitle(
    "of 64 pixels a unit sees a few: blue ones excite it, red ones hold it back", fontsize=9
)
for ax, unit in zip(axes.ravel(), used, strict=True):
    image = np.asarray(kernel[:, unit]).reshape(8, 8)
    ax.imshow(image, cmap="RdBu", vmin=-np.abs(image).max(), vmax=np.abs(image).max())
    ax.set_axis_off()

# %% [markdown]
# ## Filters
#
# A group lasso has one group per filter: `axis=(0, 1, 2)` are the axes of an (height, width, in,
# out) kernel that its norm runs over. A filter that is exactly zero can be cut out, with what the
# next layer does with it.


# %%
class Cnn(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.filters, (3, 3), use_bias=False)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(10)(x)


images = x.reshape(-1, 8, 8, 1)
cnn, steps = Cnn(32), 1500
lr = schedules.Cosine(1e-2, steps=steps)
groups = penalties.GroupLasso(1e-2, axis=(0, 1, 2)).on("Conv_0/kernel")
params = run(cnn, images, transforms.proximal(optax.adam(lr), groups, lr), steps)
kernel = np.asarray(params["Conv_0"]["kernel"])
kept = np.flatnonzero(np.abs(kernel).sum((0, 1, 2)))

small = Cnn(len(kept))
dense = np.asarray(params["Dense_0"]["kernel"]).reshape(4, 4, 32, 10)[:, :, kept].reshape(-1, 10)
pruned = {
    "Conv_0": {"kernel": kernel[..., kept]},
    "Dense_0": {"kernel": dense, "bias": params["Dense_0"]["bias"]},
}
exported = serialization.msgpack_serialize(jax.tree.map(np.asarray, pruned))
whole = serialization.msgpack_serialize(jax.tree.map(np.asarray, params))
pruned = serialization.msgpack_restore(exported)
print(f"{len(kept)} of 32 filters are left, {len(exported):,} bytes of {len(whole):,}")
print(
    f"test accuracy {accuracy(cnn, params, images):.3f}, "
    f"of the small network {accuracy(small, pruned, images):.3f}"
)
difference = cnn.apply({"params": params}, images[test]) - small.apply(
    {"params": pruned}, images[test]
)
assert len(kept) < 24
assert jnp.abs(difference).max() < 1e-4
assert accuracy(small, pruned, images) > 0.95
