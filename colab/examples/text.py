"""Text: a small character transformer that reads the source of Python's standard library.

Decay on matrices alone, clipping, warmup and cosine, beside the same with a fixed rate; and then the
network writes a few lines itself.
"""

import argparse
import ast
import csv
import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import penalties, schedules, training, transforms

LENGTH, WIDTH = 64, 64
source = "".join(inspect.getsource(module) for module in (argparse, ast, csv, json))
symbols, codes = np.unique(list(source), return_inverse=True)
rows = codes[: len(codes) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int32)
order = np.random.default_rng(0).permutation(len(rows))
test, train = rows[order[:128]], rows[order[128:]]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(nn.LayerNorm()(x), mask=mask)
        h = nn.gelu(nn.Dense(4 * WIDTH, name="widen")(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH, name="narrow")(h)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(len(symbols), WIDTH)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        mask = nn.make_causal_mask(tokens)
        for n in range(2):
            x = Block(name=f"block_{n}")(x, mask)
        return nn.Dense(len(symbols), name="head")(nn.LayerNorm()(x))


def loss_fn(model, tokens):
    logits = model(tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


module, steps, peak = Transformer(), 400, 1e-2
decay = penalties.L2(0.1).on("**/kernel")  # no biases, no norms, no embeddings
data = training.ArrayData(train, batch_size=16, key=jax.random.key(1))
held = training.ArrayData(test, batch_size=len(test), shuffle=False)
evaluate = training.make_eval(module, lambda m, b: {"test_loss": loss_fn(m, b)}, held)


def run(lr):
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        transforms.add_penalty(decay),
        transforms.scale_by_learning_rate(lr),
    )
    state = training.init(module, tx, key=jax.random.key(0), example=train[:1])
    return training.fit(training.make_step(module, loss_fn, tx), state, data, steps=steps)


found = {
    "fixed rate": run(peak),
    "warmup, cosine": run(schedules.Cosine(peak, steps=steps - 50).warmup(50)),
}
print(f"{len(source):,} characters, {len(symbols)} different; loss in nats per character")
print(f"{'':15} {'training loss':>13} {'unseen text':>12}")
losses = {}
for name, (state, history) in found.items():
    losses[name] = float(evaluate(state)["test_loss"])
    print(f"{name:15} {history['loss'][-1]:13.3f} {losses[name]:12.3f}")


@jax.jit
def written(params, key, start):
    """`start`, [1, LENGTH], goes on for as many characters, one after another."""

    def one(tokens, key):
        logits = module.apply({"params": params}, tokens)[:, -1]
        new = jax.random.categorical(key, logits / 0.6)
        return jnp.concatenate([tokens[:, 1:], new[:, None]], 1), new[0]

    return jax.lax.scan(one, start, jax.random.split(key, 3 * LENGTH))[1]


state, _ = found["warmup, cosine"]
print("".join(symbols[written(state.params, jax.random.key(2), test[:1])]))
assert losses["warmup, cosine"] < losses["fixed rate"]
assert losses["warmup, cosine"] < 2.0
