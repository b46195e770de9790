"""What do schedule, clipping, penalty and rules add to an update, where memory is the limit?

50 million float32 parameters in 20, 200 and 1000 leaves: parameters, gradients and two moments of
200 MB each. All contenders donate parameters and state. The baseline is the bare Optax chain
(clipping and Adam at a constant rate). Beside the time of an update stands what it would take to
move the bytes that it has to move at the bandwidth of a copy, measured in the same rounds, and the
seconds of tracing and compiling.

Bytes, in arrays of the parameters' size: Adam reads 4 and writes 3; clipping reads the gradient
once more; a coupled penalty reads the parameters once more, in the norm; a decoupled one reads
nothing more.
"""

import argparse
import gc
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import interleaved, machine

from jax_lrreg import penalties, schedules, transforms

WIDTH = 1024
DECAY = 1e-4
L2_ALONE = "decoupled, ours: L2"
RULES = "decoupled, ours: L2, and `scale_by_rules`"


class Contender(NamedTuple):
    """An Optax chain, and how many arrays of the parameters' size it has to read and write."""

    tx: optax.GradientTransformation
    arrays: int


def chains() -> dict[str, Contender]:
    lr = schedules.Cosine(1e-3, steps=1000).warmup(10)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 1000)
    l2, both = penalties.L2(DECAY), penalties.ElasticNet(1e-5, l2=DECAY)
    rules = [("*0", 0.1), ("*1", schedules.Constant(10.0)), ("**", 1.0)]
    clip, adam, rate = (
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate,
    )
    return {
        "Optax, neither schedule nor penalty": Contender(optax.chain(clip, adam, rate(1e-3)), 8),
        "decoupled, Optax's `adamw`": Contender(
            optax.chain(clip, optax.adamw(theirs, weight_decay=DECAY)), 8
        ),
        L2_ALONE: Contender(optax.chain(clip, adam, transforms.add_penalty(l2), rate(lr)), 8),
        "decoupled, ours: L1 + L2": Contender(
            optax.chain(clip, adam, transforms.add_penalty(both), rate(lr)), 8
        ),
        RULES: Contender(
            optax.chain(
                clip, adam, transforms.add_penalty(l2), rate(lr), transforms.scale_by_rules(rules)
            ),
            8,
        ),
        "coupled, Optax's `add_decayed_weights`": Contender(
            optax.chain(optax.add_decayed_weights(DECAY), clip, adam, rate(theirs)), 9
        ),
        "coupled, ours: `add_penalty`, L1 + L2": Contender(
            optax.chain(transforms.add_penalty(both), clip, adam, rate(lr)), 9
        ),
        "coupled, ours: `add_penalty_and_clip`, L2": Contender(
            optax.chain(transforms.add_penalty_and_clip(l2, 1.0), adam, rate(lr)), 9
        ),
        "coupled, ours: `add_penalty_and_clip`, L1 + L2": Contender(
            optax.chain(transforms.add_penalty_and_clip(both, 1.0), adam, rate(lr)), 9
        ),
    }


def tree(leaves: int, rows: int, scale: float) -> dict[str, jax.Array]:
    base = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32) * scale
    return {f"layer_{index:04d}": jnp.array(base) for index in range(leaves)}


class Jitted:
    """One donated update at a time; it holds what the next one takes."""

    def __init__(self, tx: optax.GradientTransformation, params: Any, grads: Any):
        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.carry, self.grads = (jax.tree.map(jnp.copy, params), tx.init(params)), grads
        began = time.perf_counter()
        self.compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*self.carry, grads).compile()
        self.compile_seconds = time.perf_counter() - began
        self.temporary = self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self) -> Any:
        self.carry = self.compiled(*self.carry, self.grads)
        return self.carry


class Copy:
    """All parameters read and written once, in place."""

    def __init__(self, params: Any):
        scaled = jax.jit(lambda values: jax.tree.map(lambda x: x * 0.999, values), donate_argnums=0)
        self.values = jax.tree.map(jnp.copy, params)
        self.compiled = scaled.lower(self.values).compile()

    def __call__(self) -> Any:
        self.values = self.compiled(self.values)
        return self.values


def same_updates(leaves: int) -> None:
    """The coupled chains agree with one another on small arrays, and so do the decoupled ones."""
    params, grads = tree(leaves, 1, 1.0), tree(leaves, 1, 0.01)

    def after(tx: optax.GradientTransformation) -> Any:
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
        return updates

    found = {name: after(contender.tx) for name, contender in chains().items()}
    names = list(found)
    for one, other in ((names[1], names[2]), (names[5], names[7]), (names[6], names[8])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
            found[one],
            found[other],
        )


def table(leaves: int, parameters: int, rounds: int) -> str:
    """Time, ratio, bytes and compile time of each contender at this number of leaves."""
    rows = max(1, round(parameters / leaves / WIDTH))
    size = 4 * leaves * rows * WIDTH
    params, grads = tree(leaves, rows, 1.0), tree(leaves, rows, 1e-3)
    compiled = {name: Jitted(contender.tx, params, grads) for name, contender in chains().items()}
    calls: dict[str, Callable] = {"copy": Copy(params), **compiled}
    if find_spec("torch"):
        import _update_torch

        given = ([np.asarray(x) for x in values.values()] for values in (params, grads))
        calls |= _update_torch.contenders(*given, decay=DECAY)
    seconds = interleaved(
        calls, rounds=rounds, untimed=1
    )  # what another chain freed would be asked for anew
    copy = np.median(seconds["copy"])
    lines = [
        f"\n## {leaves} leaves, {size / 4e6:.0f} million parameters, "
        f"copy {2 * size / copy / 1e9:.0f} GB/s\n",
        "| what | ms | ratio | from | to | arrays moved "
        "| x their copy | MB beside | s to compile |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    baseline = seconds["Optax, neither schedule nor penalty"]
    for name in list(calls)[1:]:
        low, middle, high = np.quantile(seconds[name] / baseline, [0.1, 0.5, 0.9])
        median = np.median(seconds[name])
        line = f"| {name} | {1e3 * median:.1f} | {middle:.2f} | {low:.2f} | {high:.2f} |"
        if name in compiled:
            arrays, one = chains()[name].arrays, compiled[name]
            bound = arrays / 2 * copy
            line += f" {arrays} | {median / bound:.2f} |"
            line += f" {one.temporary / 1e6:.0f} | {one.compile_seconds:.1f} |"
        lines.append(line if name in compiled else line + " | | | |")
    low, middle, high = np.quantile(seconds[RULES] / seconds[L2_ALONE], [0.1, 0.5, 0.9])
    lines.append(f"\n`scale_by_rules`, x the chain without: {middle:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


def versions() -> str:
    if not find_spec("torch"):
        return f"{machine()}; PyTorch is not installed and left out"
    import _update_torch

    return f"{machine()}, {_update_torch.threads()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--leaves", type=int, nargs="+", help="numbers of leaves")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    print(versions())
    same_updates(3)
    for leaves in arguments.leaves or ((2, 4) if tiny else (20, 200, 1000)):
        print(
            table(leaves, 20_000 if tiny else 50_000_000, arguments.rounds or (3 if tiny else 15)),
            flush=True,
        )
        gc.collect()


if __name__ == "__main__":
    main()
