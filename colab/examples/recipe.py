"""A whole recipe, as a trainer of Hugging Face has it, end to end.

| there | here |
|---|---|
| `weight_decay`, not on biases and norms | `penalties.L2(0.01).on(...)` after Adam |
| `lr_scheduler_type="cosine"`, `warmup_ratio` | `schedules.Cosine(...).warmup(...)` |
| `max_grad_norm` | `optax.clip_by_global_norm` |
| `gradient_accumulation_steps` | `make_step(accumulate=)`, which splits a batch |
| `bf16` | `training.mixed_precision(module, jnp.bfloat16)` |
| an EMA of the weights, by a callback | `make_step(average=averages.EMA(0.98))` |
| `load_best_model_at_end` | `training.Best` |
| `EarlyStoppingCallback` | `training.Patience` |
| `resume_from_checkpoint` | `fit(checkpoint=)`: the same call again goes on |
"""

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_lrreg import averages, penalties, schedules, select, training, transforms


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for n in range(2):
            x = nn.gelu(nn.LayerNorm(name=f"norm_{n}")(nn.Dense(64, name=f"block_{n}")(x)))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10, name="head")(x)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def metrics_fn(model, batch):
    logits = model(batch["x"], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    return {"val_loss": loss, "val_accuracy": (logits.argmax(-1) == batch["y"]).mean()}


x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
order = np.random.default_rng(0).permutation(len(x))
test, train = order[:400], order[400:]
data = training.ArrayData({"x": x[train], "y": y[train]}, batch_size=128, key=jax.random.key(1))
held = training.ArrayData({"x": x[test], "y": y[test]}, batch_size=400, shuffle=False)

most = 1500  # updates; it stops earlier
module = training.mixed_precision(Network(), jnp.bfloat16)
evaluate = training.make_eval(module, metrics_fn, held)
lr = schedules.Cosine(3e-3, steps=most - 100).warmup(100)
decay = penalties.L2(0.01).on([("norm_*/**", 0), ("**/kernel", 1)])
tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(),
    transforms.add_penalty(decay),
    transforms.scale_by_learning_rate(lr),
)
step = training.make_step(
    module, loss_fn, tx, accumulate=4, average=averages.EMA(0.98), learning_rate=lr
)


def run(folder, until):
    """The same call begins a run, goes on with it, and returns at once where it has ended."""
    best = training.Best("val_loss")
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    state, history = training.fit(
        step,
        state,
        data,
        until=until,
        log_every=50,
        eval_every=50,
        eval_fn=lambda state: evaluate(training.averaged(state)),
        stop=training.Patience("val_loss", evaluations=4),
        keep_best=best,
        checkpoint=folder,
    )
    return state, history, best


with tempfile.TemporaryDirectory() as place:
    run(Path(place, "cut"), until=200)  # as if it had been killed here
    state, history, best = run(Path(place, "cut"), until=most)
    whole, _, _ = run(Path(place, "whole"), until=most)

print(select.report(state.params, decay=decay))
print(f"ended: {history['ended']}")
print(f"{'':16} {'step':>6} {'loss':>8} {'accuracy':>9}")
for name, one in {"last": state, "best, averaged": training.averaged(best.state)}.items():
    found = evaluate(one)
    print(f"{name:16} {int(one.step):6} {found['val_loss']:8.4f} {found['val_accuracy']:9.3f}")
same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, whole.params)
print(f"cut at 200 and gone on: bit for bit the run that was not cut: {all(jax.tree.leaves(same))}")
assert all(jax.tree.leaves(same))
assert int(state.step) < most
assert best.value == min(history["val_loss"])
assert evaluate(training.averaged(best.state))["val_accuracy"] > 0.95
