"""Equinox: a module of Equinox is a tree, so it trains as a function of its arrays.

`eqx.partition` splits a module into arrays and the rest; the arrays are the parameters, and the
function puts the two together again. Paths are those of the attributes, as in `layers/0/weight`.
"""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import penalties, schedules, select, training

if importlib.util.find_spec("equinox") is None:
    print("skipped: Equinox is not installed (pip install equinox)")
    sys.exit()

import equinox as eqx

network = eqx.nn.MLP(64, 10, 64, depth=1, key=jax.random.key(0))
params, rest = eqx.partition(network, eqx.is_inexact_array)


def apply(params, x):
    return jax.vmap(eqx.combine(params, rest))(x)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:400], order[400:]
data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size=64, key=jax.random.key(1))

steps = 600
lr = schedules.Cosine(3e-3, steps=steps - 60).warmup(60)
decay = penalties.L2(1e-3).on("**/weight")
tx = optax.adam(lr)
state = training.init(apply, tx, key=jax.random.key(2), params=params)
step = training.make_step(apply, loss_fn, tx, penalty=decay, learning_rate=lr)
state, history = training.fit(step, state, data, steps=steps)

trained = eqx.combine(training.merge(apply, state), rest)  # a module of Equinox again
accuracy = float((jax.vmap(trained)(x[test]).argmax(-1) == y[test]).mean())
print(select.report(params, decay=decay))
print(f"loss {history['loss'][0]:.3f} to {history['loss'][-1]:.3f}, accuracy {accuracy:.3f}")
assert isinstance(trained, eqx.nn.MLP)
assert jnp.isfinite(history["loss"]).all()
assert accuracy > 0.93
