"""Images: a convolutional network on handwritten digits, from which a group lasso cuts filters.

A group is a filter: `axis=(0, 1, 2)` are the axes of a (height, width, in, out) kernel that its norm
runs over. The prox sets whole filters to exactly 0, so that they can be cut out of the network with
what the next layer does with them, and nothing that it computes changes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import penalties, schedules, training, transforms


class Network(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(self.filters, (3, 3), use_bias=False, name="conv")(images))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(10, name="head")(x)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def cut(params):
    """The parameters without the filters that are 0, and how many are left."""
    kernel = np.asarray(params["conv"]["kernel"])
    kept = np.flatnonzero(np.abs(kernel).sum((0, 1, 2)))
    head = np.asarray(params["head"]["kernel"]).reshape(4, 4, -1, 10)[:, :, kept]
    head = {"kernel": head.reshape(-1, 10), "bias": params["head"]["bias"]}
    return {"conv": {"kernel": kernel[..., kept]}, "head": head}, len(kept)


x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:400], order[400:]
data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size=128, key=jax.random.key(1))

module, steps = Network(32), 1000
lr = schedules.Cosine(1e-2, steps=steps)
filters = penalties.GroupLasso(1e-2, axis=(0, 1, 2)).on("conv/kernel")
found = {}
for name, tx in {
    "no penalty": optax.adam(lr),
    "group lasso": transforms.proximal(optax.adam(lr), filters, lr),
}.items():
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    state, _ = training.fit(training.make_step(module, loss_fn, tx), state, data, steps=steps)
    small, left = cut(state.params)
    logits = Network(left).apply({"params": small}, x[test])
    change = float(jnp.abs(module.apply({"params": state.params}, x[test]) - logits).max())
    size = sum(leaf.size for leaf in jax.tree.leaves(small))
    found[name] = left, float((logits.argmax(-1) == y[test]).mean()), size, change

print(f"{'':12} {'filters left':>12} {'accuracy':>9} {'numbers':>8} {'changed by cutting':>19}")
for name, (left, accuracy, size, change) in found.items():
    print(f"{name:12} {left:9} of 32 {accuracy:8.3f} {size:8} {change:19.1e}")

left, accuracy, _, change = found["group lasso"]
assert left <= 16
assert accuracy > 0.95
assert accuracy > found["no penalty"][1] - 0.02
assert change < 1e-4
