"""Speech: spoken digits as log-mel pictures, a small convolutional network, voices that it never heard.

The digits are spoken by espeak-ng where it is installed; elsewhere they are those of `spoken.npz`,
which it once spoke. The network hears nine voices in five accents, and is judged on two others: with
a fixed rate, with a cosine, and with an L1 that sets nearly half of its weights to exactly 0.
"""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _spoken import FILE, UNSEEN, VOICES, record

from jax_lrreg import penalties, schedules, training, transforms


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (5,), name="hear")(x))
        x = nn.max_pool(x, (2,), (2,))
        x = nn.relu(nn.Conv(64, (5,), name="join")(x))
        return nn.Dense(10, name="say")(x.mean(1))


def loss_fn(model, batch, now):
    # Each picture begins up to three frames earlier or later, and differs so with each update.
    shift = jax.random.randint(now.key, (), -3, 4)
    logits = model(jnp.roll(batch["x"], shift, axis=1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


spoken = bool(shutil.which("espeak-ng"))
clips = record() if spoken else dict(np.load(FILE))
x, y = clips["x"].astype(np.float32) / 30 - 1, clips["y"].astype(np.int32)  # from -1 to 0
unseen = clips["voice"] >= len(VOICES) - UNSEEN
where = "spoken by espeak-ng" if spoken else f"of {FILE.name}"
print(f"{len(y)} digits {where}; {unseen.sum()} by voices that are not trained on")
data = training.ArrayData({"x": x[~unseen], "y": y[~unseen]}, 50, key=jax.random.key(1))

module, steps = Network(), 400
cosine = schedules.Cosine(1e-2, steps=steps - 40).warmup(40)
l1 = penalties.L1(2e-4).on("**/kernel")
ways = {
    "fixed rate": optax.adam(3e-3),  # at 1e-2, which the cosine bears, it is right once in three
    "cosine": optax.adam(cosine),
    "cosine, prox of L1": transforms.proximal(optax.adam(cosine), l1, cosine),
}
print(f"{'':20} {'weights left':>12} {'seen voices':>12} {'unseen voices':>14}")
found = {}
for name, tx in ways.items():
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    step = training.make_step(module, loss_fn, tx)
    state, _ = training.fit(step, state, data, steps=steps)
    right = module.apply({"params": state.params}, x).argmax(-1) == y
    left = 1 - l1.sparsity(state.params).overall
    found[name] = left, float(right[~unseen].mean()), float(right[unseen].mean())
    print(f"{name:20} {left:12.1%} {found[name][1]:12.3f} {found[name][2]:14.3f}")

left, seen, others = found["cosine, prox of L1"]
assert left < 0.75
assert seen > 0.95
assert others > 0.9
assert found["cosine"][2] > found["fixed rate"][2] - 0.02
