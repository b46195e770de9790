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
# # Learning rates that the loss drives
#
# One network on handwritten digits, trained with a fixed rate, a schedule, a plateau controller, a
# hypergradient, and a rate chosen by a range test; in the end one picture of all of them.

# %%
import importlib.util

if importlib.util.find_spec("jax_lrreg") is None:
    # On Colab, JAX is there already for the runtime's own accelerator: it is left as it is.
    # %pip install -q "jax_lrreg[demo]"
    pass

# %%
import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import finder, plots, schedules, training, transforms

print(f"jax {jax.__version__} on {jax.default_backend()}: {jax.devices()}")

# %%
x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:360], order[360:]
data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size=64, key=jax.random.key(1))
held = training.ArrayData({"x": x[test], "y": y[test]}, batch_size=360, shuffle=False)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


module = Network()


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def metrics_fn(model, batch):
    return {
        "val_loss": loss_fn(model, batch),
        "val_accuracy": (model(batch["x"]).argmax(-1) == batch["y"]).mean(),
    }


evaluate = training.make_eval(module, metrics_fn, held)
steps = 600


# %% [markdown]
# ## Runs
#
# The rate that goes by default, 1e-3, is ten times too small for this network, which nobody knows
# beforehand. `rate` is what the optimizer is given; the metrics tell what each update was really
# multiplied by.


# %%
def run(tx, rate, **options):
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    step = training.make_step(module, loss_fn, tx, learning_rate=rate)
    options = {"log_every": 10, "eval_every": 20, "eval_fn": evaluate, **options}
    _, history = training.fit(step, state, data, steps=steps, **options)
    return history


rate = 1e-3
cosine = schedules.Cosine(rate, steps=steps - 60).warmup(60)
runs = {"fixed": run(optax.adam(rate), rate), "schedule": run(optax.adam(cosine), cosine)}

# %% [markdown]
# A controller is driven by a metric. Here it is the loss on held-out examples, which `fit` hands
# over after each evaluation; without `control_on` it would be the loss of each batch. It multiplies
# a rate that is rather too large.

# %%
plateau = schedules.ReduceOnPlateau(factor=0.5, patience=2, threshold=0.01)
tx = optax.chain(optax.adam(0.03), transforms.scale_by_controller(plateau))
runs["plateau"] = run(tx, 0.03, control_on="val_loss")
print(plateau)

# %% [markdown]
# A hypergradient learns the scale of the rate while it trains: up while gradients agree with the
# step before them, down where they oppose. It starts from a hundredth of the same small rate.

# %%
tuner = schedules.HypergradientDescent()
runs["hypergradient"] = run(transforms.hypergradient_descent(optax.adam(rate), tuner), rate)

# %% [markdown]
# The range test raises the rate from step to step until the loss diverges. The state that it starts
# from is left as it is.

# %%
state = training.init(module, optax.adam(rate), key=jax.random.key(0), example=x[:1])
found = finder.range_test(
    module, loss_fn, optax.scale_by_adam(), state, data, low=1e-6, high=10.0, steps=100
)
print({name: f"{value:.2g}" for name, value in found.suggestions.items()})
plots.range_test(found)

# %%
chosen = schedules.Cosine(found.suggestion, steps=steps - 60).warmup(60)
runs["range test"] = run(optax.adam(chosen), chosen)

# %% [markdown]
# ## One picture

# %%
figure, (upper, lower) = plots.plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
for (name, history), color in zip(runs.items(), plots.COLORS, strict=False):
    accuracy = history["val_accuracy"][-1]
    upper.plot(
        history["eval_step"],
        history["val_loss"],
        color=color,
        label=f"{name}: {100 * accuracy:.1f} %",
    )
    lower.plot(history["step"], history["learning_rate"], color=color)
upper.set(yscale="log", ylabel="loss on unseen digits")
lower.set(yscale="log", ylabel="learning rate", xlabel="step")
upper.legend(frameon=False, ncols=2)
for ax in (upper, lower):
    ax.spines[["top", "right"]].set_visible(False)

# %%
last = {name: float(history["val_loss"][-1]) for name, history in runs.items()}
print({name: round(loss, 4) for name, loss in last.items()})
assert min(last["plateau"], last["hypergradient"], last["range test"]) < 0.8 * last["fixed"]
