"""Speech: spoken digits as log-mel pictures, a small convolutional network, voices that it never heard.

The digits are spoken by espeak-ng where it is installed; elsewhere they are those of `spoken.npz`,
which it once spoke. The network hears nine voices in five accents, and is judged on two others. A
group lasso on the first layer has one group a band: it finds the bands that are not needed.
"""

import shutil

import flax.linen as nn
import jax
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
    logits = model(jax.numpy.roll(batch["x"], shift, axis=1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


spoken = bool(shutil.which("espeak-ng"))
clips = record() if spoken else dict(np.load(FILE))
x, y = clips["x"].astype(np.float32) / 30 - 1, clips["y"].astype(np.int32)  # from -1 to 0
unseen = clips["voice"] >= len(VOICES) - UNSEEN
where = "spoken by espeak-ng" if spoken else f"of {FILE.name}"
print(f"{len(y)} digits {where}; {unseen.sum()} by voices that are not trained on")
data = training.ArrayData({"x": x[~unseen], "y": y[~unseen]}, 50, key=jax.random.key(1))

module, steps = Network(), 400
cosine = schedules.Cosine(3e-3, steps=steps - 40).warmup(40)
bands = penalties.GroupLasso(2e-2, axis=(0, 2)).on("hear/kernel")  # (time, band, out): one a band
ways = {
    "fixed rate": optax.adam(3e-3),
    "cosine": optax.adam(cosine),
    "cosine, group lasso": transforms.proximal(optax.adam(cosine), bands, cosine),
}
print(f"{'':20} {'bands used':>10} {'seen voices':>12} {'unseen voices':>14}")
found = {}
for name, tx in ways.items():
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    step = training.make_step(module, loss_fn, tx)
    state, _ = training.fit(step, state, data, steps=steps)
    right = module.apply({"params": state.params}, x).argmax(-1) == y
    kernel = np.asarray(state.params["hear"]["kernel"])
    used = int(np.any(kernel != 0, axis=(0, 2)).sum())
    found[name] = used, float(right[~unseen].mean()), float(right[unseen].mean())
    print(f"{name:20} {used:10} {found[name][1]:12.3f} {found[name][2]:14.3f}")

used, seen, others = found["cosine, group lasso"]
assert used < 24
assert seen > 0.95
assert others > 0.8
