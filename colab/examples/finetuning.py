"""Fine-tuning with NNX: a network that knows the digits 0 to 4 learns 5 to 9 from 20 examples each.

Four ways, each a line: the head alone, LoRA beside frozen layers, all parameters at one rate, and
all with rates that fall with the depth. What is held does not change by a bit.
"""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import schedules, select, training, transforms


class Network(nnx.Module):
    """Two layers and a head, each layer with a LoRA of rank 4 beside it, which begins at 0."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.first_lora = nnx.LoRA(64, 4, 64, rngs=rngs)
        self.second_lora = nnx.LoRA(64, 4, 64, rngs=rngs)
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x) + self.first_lora(x))
        x = nnx.relu(self.second(x) + self.second_lora(x))
        return self.head(x)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def fitted(module, tx, data, steps, trainable="**"):
    state = training.init(module, tx, key=jax.random.key(0), trainable=trainable)
    step = training.make_step(module, loss_fn, tx)
    return training.fit(step, state, data, steps=steps)[0]


x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
low, high = np.flatnonzero(y < 5), np.flatnonzero(y >= 5)
few = np.concatenate([high[y[high] == digit][:20] for digit in range(5, 10)])
unseen = np.setdiff1d(high, few)

pretraining = training.ArrayData({"x": x[low], "y": y[low]}, 64, key=jax.random.key(1))
layers = [("first/**", 1.0), ("second/**", 1.0), ("head/**", 1.0), ("**", 0.0)]  # no LoRA yet
tx = optax.chain(optax.adamw(1e-3), transforms.scale_by_rules(layers))
state = fitted(Network(nnx.Rngs(0)), tx, pretraining, steps=500)
pretrained = training.merge(Network(nnx.Rngs(0)), state)
pretrained.head = nnx.Linear(64, 5, rngs=nnx.Rngs(1))  # of the new task

steps = 300
lr = schedules.Cosine(3e-3, steps=steps - 30).warmup(30)
depths = [("first/**", "first_lora/**"), ("second/**", "second_lora/**"), "head/**"]
params = training.init(pretrained, optax.identity(), key=jax.random.key(0)).params
falling = select.layer_decay(params, 0.5, order=depths)  # 1, 0.5, 0.25
no_lora = [("*_lora/**", 0), ("**", 1)]
ways = {
    "head alone": (optax.adamw(lr), "head/**"),
    "LoRA and head": (optax.adamw(lr), [("*_lora/**", 1), ("head/**", 1)]),
    "all, one rate": (optax.adamw(lr), no_lora),
    "all, by depth": (optax.chain(optax.adamw(lr), transforms.scale_by_rules(falling)), no_lora),
}
data = training.ArrayData({"x": x[few], "y": y[few] - 5}, 50, key=jax.random.key(2))
print(f"{'':14} {'trained numbers':>15} {'accuracy':>9} {'first layer moved':>18}")
found = {}
for name, (tx, trainable) in ways.items():
    state = fitted(pretrained, tx, data, steps, trainable)
    model = training.merge(pretrained, state)
    accuracy = float((model(x[unseen]).argmax(-1) == y[unseen] - 5).mean())
    moved = jnp.abs(state.params["first"]["kernel"] - params["first"]["kernel"]).max()
    size = sum(leaf.size for leaf in jax.tree.leaves(state.trained))
    found[name] = size, accuracy, float(moved)
    print(f"{name:14} {size:15} {accuracy:9.3f} {moved:18.3g}")

print(select.report(params, learning_rate=falling, trainable=ways["LoRA and head"][1]))
assert found["LoRA and head"][2] == found["head alone"][2] == 0  # not a bit
assert found["LoRA and head"][0] < 0.2 * found["all, one rate"][0]
assert found["LoRA and head"][1] > found["head alone"][1]
assert found["all, one rate"][1] > 0.8
