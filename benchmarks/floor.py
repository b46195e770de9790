"""What do the step and the loop cost, beside a hand-written scan doing the same arithmetic?

Workloads: the source article's model (10 features, Dense 10 relu, Dense 1, Adam, batch 32, polynomial decay,
L1 + L2), an MLP on scikit-learn's digits, a character transformer on the standard library's sources, a small
CNN. Each is run by `training.fit` and by raw JAX with the data on the device: same batches, same final loss.
"""

import argparse
import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import interleaved, machine, show
from sklearn.datasets import load_diabetes, load_digits

from jax_lrreg import penalties, schedules, training


class Workload(NamedTuple):
    """A model with its data, loss, optimizer and penalty."""

    module: nn.Module
    arrays: dict[str, np.ndarray]
    batch_size: int
    steps: int
    loss: Callable[[Callable, Any], jax.Array]
    tx: optax.GradientTransformation
    penalty: penalties.Penalty
    lr: schedules.Schedule


class Mlp(nn.Module):
    """Dense layers with relu between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Cnn(nn.Module):
    """Two convolutions and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.avg_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """A decoder with learned positions."""

    layers: int
    width: int
    heads: int
    symbols: int

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[1]
        x = nn.Embed(self.symbols, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (length, self.width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.symbols)(nn.LayerNorm()(x))


def square(model, batch):
    return jnp.mean((model(batch["x"])[..., 0] - batch["y"]) ** 2)


def cross_entropy(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def workloads(tiny: bool) -> dict[str, Workload]:
    """The four, sized for two CPU cores; tiny ones only show that they run."""
    rng = np.random.default_rng(0)
    x = np.tile(load_diabetes().data, (3, 1))[:1000] + 0.01 * rng.normal(size=(1000, 10))
    article = {"x": x.astype(np.float32), "y": (x @ rng.normal(size=10)).astype(np.float32)}
    images, labels = load_digits(return_X_y=True)
    digits = {"x": (images / 16).astype(np.float32), "y": labels.astype(np.int32)}
    squares = {"x": digits["x"].reshape(-1, 8, 8, 1), "y": digits["y"]}

    def steps(full: int) -> int:
        return 3 if tiny else full

    lr = schedules.Polynomial(0.01, steps=steps(3100), power=0.9)
    both = penalties.ElasticNet(1e-4, l2=1e-4).on("**/kernel")
    warm = schedules.Cosine(0.1, steps=630).warmup(70)
    l2 = penalties.L2(1e-4).on("**/kernel")
    characters, symbols = text(2_000 if tiny else 200_000, 32 if tiny else 128)
    slow = schedules.Cosine(1e-3, steps=54).warmup(6)
    model = Transformer(1, 16, 2, symbols) if tiny else Transformer(4, 128, 4, symbols)
    return {
        "article": Workload(Mlp((10, 1)), article, 32, steps(3100), square, optax.adam(lr), both, lr),
        "digits": Workload(
            Mlp((256, 256, 10)), digits, 128, steps(700), cross_entropy, optax.sgd(warm, momentum=0.9), l2, warm
        ),
        "transformer": Workload(model, characters, 16, steps(60), cross_entropy, optax.adamw(slow), l2, slow),
        "cnn": Workload(Cnn(), squares, 64, steps(300), cross_entropy, optax.adam(slow), l2, slow),
    }


def text(characters: int, length: int) -> tuple[dict[str, np.ndarray], int]:
    """Windows of the standard library's sources, and the next characters."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    source = "".join(path.read_text(errors="ignore") for path in sorted(folder.glob("*.py"))[:40])[:characters]
    symbols, codes = np.unique(list(source), return_inverse=True)
    rows = codes[: (len(codes) - 1) // length * length].reshape(-1, length)
    following = codes[1 : rows.size + 1].reshape(-1, length)
    return {"x": rows.astype(np.int32), "y": following.astype(np.int32)}, len(symbols)


def ours(work: Workload) -> Callable[[], Any]:
    """`training.fit` from the same start each time."""
    data = training.ArrayData(work.arrays, work.batch_size, jax.random.key(1))
    step = training.make_step(work.module, work.loss, work.tx, penalty=work.penalty, learning_rate=work.lr)
    start = training.init(work.module, work.tx, key=jax.random.key(0), example=work.arrays["x"][:1])

    def run():
        state = jax.tree.map(jnp.copy, start)
        state, history = training.fit(step, state, data, steps=work.steps, log_every=work.steps)
        return state.params, history["loss"][-1]

    return run


def raw(work: Workload, scan: bool) -> Callable[[], Any]:
    """The same arithmetic written by hand: one scan over all steps, or one jitted call a step."""
    data = training.ArrayData(work.arrays, work.batch_size, jax.random.key(1))
    start = training.init(work.module, work.tx, key=jax.random.key(0), example=work.arrays["x"][:1])
    arrays = jax.tree.map(jnp.asarray, work.arrays)

    def body(carry, row):
        params, opt_state = carry
        batch = jax.tree.map(lambda a: a[row], arrays)

        def loss_of(params):
            loss = work.loss(lambda x: work.module.apply({"params": params}, x), batch)
            return loss + work.penalty(params)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = work.tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    whole = jax.jit(lambda carry, rows: jax.lax.scan(body, carry, rows), donate_argnums=0)
    single = jax.jit(body, donate_argnums=0)

    def run():
        carry = jax.tree.map(jnp.copy, (start.params, start.opt_state))
        rows = np.stack([data.indices(step) for step in range(work.steps)])
        if scan:
            carry, losses = whole(carry, rows)
            return carry[0], losses.mean()
        for row in rows:
            carry, loss = single(carry, row)
        return carry[0], loss

    return run


def main(tiny: bool) -> None:
    print(machine())
    for name, work in workloads(tiny).items():
        runs = {"raw scan": raw(work, scan=True), "raw, one call a step": raw(work, scan=False), "fit": ours(work)}
        params = [run()[0] for run in runs.values()]
        for other in params[1:]:
            worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params[0], other)))
            assert worst < 5e-2, f"the contenders of {name} end {worst} apart"
        rounds = 2 if tiny else {"article": 25, "digits": 15}.get(name, 5)
        print(f"\n## {name}: {work.steps} steps\n")
        print(show(interleaved(runs, rounds=rounds), baseline="raw scan", each=work.steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    main(parser.parse_args().tiny)
