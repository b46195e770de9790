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
# # The loss of a schedule before it is run
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/forecast.ipynb)
#
# From three short runs of a character transformer: a law of the loss, the loss of a schedule that
# was not run, and the best schedule, which then is. At the end the same on the published curves of
# a model of 100M parameters, where they are at hand.

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
# ## A small transformer
#
# It reads the source of a module of Python's library, 32 characters at a time.

# %%
import argparse
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import forecast, plots, schedules, training

source = Path(argparse.__file__).read_text()
symbols, codes = np.unique(list(source), return_inverse=True)
rows = codes[: (len(codes) - 1) // 32 * 32].reshape(-1, 32).astype(np.int32)
after = codes[1 : rows.size + 1].reshape(-1, 32).astype(np.int32)
order = np.random.default_rng(0).permutation(len(rows))
held = {"x": rows[order[:256]], "y": after[order[:256]]}
kept = {"x": rows[order[256:]], "y": after[order[256:]]}


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(len(symbols), 16)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (tokens.shape[1], 16))
        mask = nn.make_causal_mask(tokens)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(len(symbols))(nn.LayerNorm()(x))


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


# %% [markdown]
# A run as a function of its rates: the held-out losses of 40 places along it. The mean is over
# three seeds, which run side by side.

# %%
module, steps, peak = Transformer(), 800, 1e-2
every = steps // 40
places = np.arange(every - 1, steps, every)


@jax.jit
def curve(rates):
    def run(key):
        tx = optax.adam(lambda step: rates[jnp.minimum(step, steps - 1)])
        data = training.ArrayData(kept, batch_size=8, key=key)
        state = training.init(module, tx, key=key, example=kept["x"][:1])
        step = training.make_step(module, loss_fn, tx)

        def part(state, _):
            state, _ = training.scan(step, state, data, steps=every)
            return state, loss_fn(lambda x: module.apply({"params": state.params}, x), held)

        return jax.lax.scan(part, step.complete(state), length=40)[1]

    return jax.vmap(run)(jax.random.split(jax.random.key(0), 3)).mean(0)


warmup = 40
constant = schedules.Constant(peak).warmup(warmup)
runs = {
    "constant": constant,
    "linear": schedules.Linear(peak, steps=steps - warmup).warmup(warmup),
    "late": constant.cooldown(160, at=steps - 160),
}
curves = {name: (places, np.asarray(curve(lr(jnp.arange(steps))))) for name, lr in runs.items()}

# %% [markdown]
# ## The law
#
# It prints, and its text reads back. `misfit` is by how much it misses the curve of a schedule that
# it has not seen.

# %%
law = forecast.fit([(lr, curves[name]) for name, lr in runs.items()])
print(law.floor, law.alpha, law.evidence.misfit)


# %% [markdown]
# ## The best schedule, and what it comes to
#
# Ranges of ints give whole numbers. `matters` has the loss at half and at twice of each.


# %%
def shape(n, p):
    return constant.cooldown(n, at=steps - n, shape="power", power=p)


plan = law.best(shape, steps=steps, n=(20, steps - warmup), p=(0.5, 3.0))
real = np.asarray(curve(plan.schedule(jnp.arange(steps))))
print(plan.schedule)
print(f"expected {plan.loss:.4f}, in {plan.interval[0]:.4f} to {plan.interval[1]:.4f}")
print(f"came to {real[-1]:.4f};", {name: f"{y[-1]:.4f}" for name, (_, y) in curves.items()})
print(plan.matters)

# %% [markdown]
# A run as short as this one still learns fast: a decay from the start on comes too early, and
# `linear` ends above the constant rate. The plan falls late, as `late` does, and ends 4 % below it.

# %%
_ = plots.forecast(law, {"planned": plan, **runs}, curves={**curves, "planned": (places, real)})

# %% [markdown]
# ## The published curves
#
# Those of Luo et al. (2025, arXiv:2503.12811), if there is a folder of them: three are fitted, one
# with a cooldown is foretold.

# %%
folder = Path("loss_curves/100M")
if folder.exists():
    warm = schedules.Constant(3e-4).warmup(2159)
    table = {
        "constant_24000": warm,
        "cosine_24000": schedules.Cosine(3e-4, steps=21_841, end_value=3e-5).warmup(2159),
        "wsdcon_9": warm.cooldown(0, at=8000, end_value=9e-5),
        "wsdld_20000_24000": warm.cooldown(4000, at=20_000, end_value=3e-5),
    }
    public = {
        name: tuple(np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1).T[[0, 2]])
        for name in table
    }
    large = forecast.fit([(table[name], public[name]) for name in list(table)[:3]])
    plots.forecast(large, table, curves=public)
