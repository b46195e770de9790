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
# # Schedules, looked at
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/schedules_gallery.ipynb)
#
# Every shape as a picture under the expression that makes it; what is done with them in time; how a
# schedule is written, saved and read; and in the end what they are worth.

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
import textwrap

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jax_lrreg import plots, schedules, sweeps, text, training

plt.rcParams.update(plots.STYLE)  # one style for all pictures of this page
steps = 1000


def gallery(texts, columns=3):
    """Each schedule under its own text: what is printed is what makes it."""
    rows = -(-len(texts) // columns)
    size = {"figsize": (4.3 * columns, 2.3 * rows), "layout": "constrained"}
    _, axes = plt.subplots(rows, columns, squeeze=False, sharex=True, **size)
    for ax, written in zip(axes.ravel(), texts, strict=False):
        plots.schedule(text.parse(written), steps=steps, ax=ax)
        title = textwrap.fill(written.replace(").", ") ."), 126 // columns).replace(") .", ").")
        ax.set_title(title, fontsize=8, family="monospace", pad=14)
        ax.set(xlabel="", ylabel="", xticks=[0, 500, 1000])
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate")


# %% [markdown]
# ## Decays

# %%
gallery(
    [
        "Constant(1.0)",
        "Linear(1.0, steps=1000)",
        "Polynomial(1.0, steps=1000, power=2)",
        "Cosine(1.0, steps=1000)",
        "Exponential(1.0, steps=200, decay_rate=0.5)",
        "InverseTime(1.0, steps=100, decay_rate=1)",
        "InverseSqrt(1.0, timescale=100)",
        "Rex(1.0, steps=1000)",
        "Tanh(1.0, steps=1000)",
    ]
)

# %% [markdown]
# ## Stairs and cycles

# %%
gallery(
    [
        "Step(1.0, steps=250, decay_rate=0.5)",
        "MultiStep(1.0, boundaries=(500, 800), decay_rate=0.3)",
        "PiecewiseConstant(1.0, boundaries=(300, 700), values=(0.5, 0.1))",
        "CosineRestarts(1.0, steps=150, multiplier=2)",
        "Cyclic(0.1, peak_value=1.0, up_steps=125, down_steps=125)",
        "PiecewiseLinear(0.1, boundaries=(300, 900, 1000), values=(1.0, 0.1, 0))",
    ]
)

# %% [markdown]
# ## In time
#
# A warmup goes before a schedule, a cooldown takes over at a step; pieces are joined; a sum, a
# product and a multiple are schedules too. Dotted lines mark where one phase ends.

# %%
gallery(
    [
        "Cosine(1.0, steps=900).warmup(100)",
        "Constant(1.0).warmup(100).cooldown(200, at=800)",
        "Constant(1.0).cooldown(300, at=700, shape='1-sqrt')",
        "InverseSqrt(1.0, timescale=100).clip(min=0.5)",
        "join([(Linear(0.0, steps=200, end_value=1.0), 200), (Cosine(1.0, steps=800), None)])",
        "0.5 * Cosine(1.0, steps=1000) + Constant(0.1)",
    ],
    columns=2,
)

# %% [markdown]
# In epochs rather than steps, on a logarithmic axis, several in one picture:

# %%
in_epochs = schedules.Cosine(1e-3, steps=9).warmup(1).in_units(per_step=1 / 100)
named = {
    "cosine in epochs": in_epochs,
    "cosine in steps": schedules.Cosine(1e-3, steps=900).warmup(100),
    "inverse square root": schedules.InverseSqrt(1e-3, timescale=100).warmup(100),
}
ax = plots.schedule(named, steps=steps, log=True)
_ = ax.set_title("in epochs of 100 steps and in steps: one line")

# %% [markdown]
# ## As text
#
# It prints as the expression that makes it, and reads back without `eval`.

# %%
lr = 0.5 * schedules.Constant(1e-3).warmup(100).cooldown(200, at=800, shape="1-sqrt")
print(lr)
assert text.parse(repr(lr)) == lr
print(lr(0), lr(100), lr(jnp.array([800, 900, 1000])))

# %% [markdown]
# ## What they are worth
#
# On a linear model that sees noisy examples once, four at a time: six shapes, each at nine peaks
# and with four seeds, which is one compiled program. A shape is judged at its own best peak.

# %%
shapes = {
    "fixed": schedules.Constant(1.0),
    "1 / sqrt(t)": schedules.InverseSqrt(1.0, timescale=50).warmup(50),
    "stairs": schedules.MultiStep(1.0, boundaries=(500, 750), decay_rate=0.3),
    "cosine": schedules.Cosine(1.0, steps=steps),
    "linear": schedules.Linear(1.0, steps=steps),
    "cooldown": schedules.Constant(1.0).cooldown(600, at=400, shape="1-sqrt"),
}
rates = jnp.stack([shape(jnp.arange(steps)) for shape in shapes.values()])
sizes = jnp.arange(1, 101) ** -0.5
x = jax.random.normal(jax.random.key(0), (4000, 100)) * sizes
y = x.sum(1) + 2 * jax.random.normal(jax.random.key(1), (4000,))


def module(params, x):
    return x @ params


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2) / 2


def trained(hp):
    tx = optax.sgd(lambda step: hp["peak"] * hp["rates"][step])
    data = training.ArrayData({"x": x, "y": y}, batch_size=4, key=hp["key"])
    state = training.init(module, tx, key=jax.random.key(3), params=jnp.zeros(100))
    step = training.make_step(module, loss_fn, tx)
    state, _ = training.scan(step, state, data, steps=steps)
    return {"loss": jnp.sum(((state.params - 1) * sizes) ** 2) / 2}  # less that of the noise


keys = jax.random.split(jax.random.key(4), 4)
result = sweeps.run(trained, sweeps.grid(rates=rates, peak=jnp.logspace(-2, -0.3, 9), key=keys))
losses = np.asarray(result["loss"])  # [shapes, peaks, seeds]
at = losses.mean(-1).argmin(-1)
best = {name: losses[i, at[i]] for i, name in enumerate(shapes)}
for name, found in sorted(best.items(), key=lambda pair: pair[1].mean()):
    error = found.std(ddof=1) / len(found) ** 0.5
    print(f"{name:12} loss above the noise {found.mean():.4f} ± {error:.4f}")
assert best["linear"].mean() < 0.7 * best["fixed"].mean()

# %%
_, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, means, color in zip(shapes, losses.mean(-1), plots.COLORS, strict=False):
    ax.plot(np.logspace(-2, -0.3, 9), means, marker="o", markersize=3, color=color, label=name)
ax.set(xscale="log", yscale="log", xlabel="peak of the learning rate", ylim=(0.05, 0.6))
ax.set_ylabel("loss above the noise")
ax.set_yticks([0.1, 0.2, 0.4], ["0.1", "0.2", "0.4"])
ax.yaxis.minorticks_off()
ax.set_title("decayed rates bear a larger peak, and end lower")
_ = ax.legend(ncols=2)
