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
# # Finding and driving the learning rate
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jax-lrreg/jax_lrreg/blob/main/colab/learning_rate.ipynb)
#
# One small problem, on which everything runs in seconds: a range test, a plateau, a hypergradient, a
# sweep of rates and schedules, and a law that tells the loss of a run before it is made.

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
# ## The problem
#
# A linear model of 100 inputs, of which a few matter most, as words do in a language. It sees each
# example once or twice, four at a time, and the targets are noisy. So a large rate learns fast and
# then jitters, and a small one does neither: a schedule has something to do here. The loss below is
# that of unseen examples, less the noise that nobody can foretell.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jax_lrreg import finder, forecast, plots, schedules, sweeps, training, transforms

plt.rcParams.update(plots.STYLE)  # one style for all pictures of this page

sizes = jnp.arange(1, 101) ** -0.5
x = jax.random.normal(jax.random.key(0), (4000, 100)) * sizes
y = x.sum(1) + 2 * jax.random.normal(jax.random.key(1), (4000,))
data = training.ArrayData({"x": x, "y": y}, batch_size=4, key=jax.random.key(2))
steps = 1000


def module(params, x):
    return x @ params


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2) / 2


def evaluate(state):
    return {"val_loss": jnp.sum(((state.params - 1) * sizes) ** 2) / 2}


def start(tx):
    return training.init(module, tx, key=jax.random.key(3), params=jnp.zeros(100))


def run(tx, rate, **options):
    step = training.make_step(module, loss_fn, tx, learning_rate=rate)
    options |= {"log_every": 20, "eval_every": 20, "eval_fn": evaluate}
    return training.fit(step, start(tx), data, steps=steps, **options)[1]


# %% [markdown]
# ## Range test
#
# It raises the rate from step to step until the loss diverges, on a copy of the state. The loss of
# four noisy examples says little, so it is given batches of 256.

# %%
larger = training.ArrayData({"x": x, "y": y}, batch_size=256, key=jax.random.key(2))
found = finder.range_test(
    module, loss_fn, optax.identity(), start(optax.identity()), larger, low=1e-3, high=10.0
)
plots.range_test(found)
rate = float(f"{found.suggestion:.1g}")
print(f"suggested: {found.suggestion:.3g}; taken: {rate}")

# %% [markdown]
# ## At that rate: fixed, decayed, and driven by the loss
#
# The plateau hears the loss of each evaluation, as `control_on` says; without it, that of each
# batch. It halves the rate where three evaluations in a row brought less than 1 %.

# %%
linear = schedules.Linear(rate, steps=steps)
plateau = schedules.ReduceOnPlateau(factor=0.5, patience=3, threshold=0.01)
driven = optax.chain(optax.sgd(rate), transforms.scale_by_controller(plateau))
runs = {
    "fixed": run(optax.sgd(rate), rate),
    "linear": run(optax.sgd(linear), linear),
    "plateau": run(driven, rate, control_on="val_loss"),
}
_ = plots.history(runs)

# %%
last = {name: float(history["val_loss"][-1]) for name, history in runs.items()}
print({name: round(loss, 3) for name, loss in last.items()})
assert max(last["linear"], last["plateau"]) < 0.8 * last["fixed"]

# %% [markdown]
# ## Hypergradient
#
# Where nothing is known about the rate: it learns the scale while it trains, up while a gradient
# agrees with the step before it, down where it opposes. Here both runs are given 0.001, which is
# more than a hundred times too small.

# %%
small = 1e-3
tuned = transforms.hypergradient_descent(optax.sgd(small), schedules.HypergradientDescent())
blind = {"0.001, fixed": run(optax.sgd(small), small), "0.001, tuned": run(tuned, small)}
for name, history in blind.items():
    rates = history["learning_rate"]
    print(f"{name:13} loss {history['val_loss'][-1]:.3f}, rate {rates[0]:.1g} to {rates[-1]:.1g}")
assert blind["0.001, tuned"]["val_loss"][-1] < 0.6 * blind["0.001, fixed"]["val_loss"][-1]

# %% [markdown]
# ## Sweep
#
# Is it only that this rate was too large for a fixed one? Nine peaks, each fixed and decayed to 0,
# with four seeds, are 72 runs and one compiled program.


# %%
def trained(hp):
    lr = schedules.Linear(hp["peak"], steps=steps, end_value=hp["end"] * hp["peak"])
    tx = optax.sgd(lr)
    step = training.make_step(module, loss_fn, tx)
    ordered = training.ArrayData({"x": x, "y": y}, batch_size=4, key=hp["key"])
    return evaluate(training.scan(step, start(tx), ordered, steps=steps)[0])


grid = sweeps.grid(
    peak=jnp.logspace(-2, -0.3, 9),
    end=jnp.array([1.0, 0.0]),  # of the peak: fixed, and decayed
    key=jax.random.split(jax.random.key(4), 4),
)
result = sweeps.run(trained, grid)
losses = np.asarray(result["val_loss"]).mean(-1)
ax = plots.sweep(result, "val_loss")
ax.set(yscale="log", xlabel="peak of the rate", ylabel="loss above the noise")
ax.set_title("a decayed rate bears a larger peak, and ends lower")
ax.set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
ax.yaxis.minorticks_off()
ax.legend(ax.lines, ["fixed", "decayed to 0"])
fixed, decayed = losses.min(0)
print(f"the best fixed rate comes to {fixed:.3f}, the best decayed one to {decayed:.3f}")
assert decayed < 0.85 * fixed

# %% [markdown]
# ## Forecast
#
# Three runs of 400 steps tell a law of the loss. It names the best schedule of a run four times as
# long, and what that comes to; then it is made. [forecast.ipynb](forecast.ipynb) has more.

# %%
short, long = 400, 1600


@jax.jit
def curve(rates):
    tx = optax.sgd(lambda step: rates[jnp.minimum(step, len(rates) - 1)])
    step = training.make_step(module, loss_fn, tx)

    def part(state, _):
        state, _ = training.scan(step, state, data, steps=8)
        return state, evaluate(state)["val_loss"]

    return jax.lax.scan(part, step.complete(start(tx)), length=len(rates) // 8)[1]


peak = rate
constant = schedules.Constant(peak).warmup(20)
three = [
    constant,
    schedules.Linear(peak, steps=short - 20).warmup(20),
    constant.cooldown(0, at=250, end_value=peak / 10),
]
places = np.arange(7, short, 8)  # the update that each loss comes after
floor = 2.0  # half the variance of the noise: a law is of whole losses
law = forecast.fit([(lr, (places, floor + curve(lr(jnp.arange(short))))) for lr in three])
plan = law.extrapolate(steps=long)
real = float(floor + curve(plan.schedule(jnp.arange(long)))[-1])
plain = float(floor + curve(constant(jnp.arange(long)))[-1])
low, high = plan.interval
print(plan.schedule)
print(f"expected {plan.loss:.3f}, nine times in ten within {low:.3f} to {high:.3f}")
print(f"came to {real:.3f}; the constant rate to {plain:.3f}")
assert real < plain
