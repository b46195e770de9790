"""What does a schedule cost inside a jitted step, beside a constant and beside Optax's?

Three tables: a whole training step (Adam on a perceptron, scanned), where a schedule must be lost
in the noise; the schedules alone, one value after the other; and the time until the first value,
tracing and compiling included.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import interleaved, machine, show

from jax_lrreg.schedules import (
    Constant,
    Cosine,
    Linear,
    PiecewiseConstant,
    PiecewiseLinear,
    join,
    warmup_cosine,
)


def training(
    make_tx: Callable[[Any], optax.GradientTransformation], hyper: Any, width: int, steps: int
) -> Callable:
    """A run of `steps` updates of a perceptron; the numbers in `hyper` are data."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(64, width)), jnp.float32) for _ in range(2))
    params = [
        jnp.asarray(rng.normal(size=(width, width)) / width**0.5, jnp.float32) for _ in range(2)
    ]

    def loss(params: list) -> jax.Array:
        return jnp.mean((jax.nn.relu(x @ params[0]) @ params[1] - y) ** 2)

    @jax.jit
    def run(hyper: Any, params: list) -> Any:
        tx = make_tx(hyper)

        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

    return lambda: run(hyper, params)


def values(schedule: Callable, steps: int) -> Callable:
    """The sum of `steps` values, computed one after the other."""

    @jax.jit
    def total(begin: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(
            begin, steps, lambda step, so_far: so_far + schedule(step), jnp.float32(0)
        )

    return lambda: total(0)


def seconds_to_first_value(make: Callable[[], Callable]) -> float:
    jax.clear_caches()
    began = time.perf_counter()
    jax.block_until_ready(jax.jit(make())(3))
    return time.perf_counter() - began


def main(tiny: bool) -> None:
    width, steps, rounds = (16, 20, 3) if tiny else (256, 200, 21)
    count = 5 if tiny else 50
    ours = warmup_cosine(1e-3, warmup_steps=50, total_steps=1000)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000)
    fixed, given = (lambda rate: lambda _: optax.adam(rate)), optax.adam
    runs = {
        "constant 1e-3": training(fixed(1e-3), None, width, steps),
        "Optax warmup_cosine_decay_schedule": training(fixed(theirs), None, width, steps),
        "ours, warmup_cosine": training(fixed(ours), None, width, steps),
        "ours, its numbers as data": training(given, ours, width, steps),
        "ours, join of 50 pieces": training(fixed(pieces(count)), None, width, steps),
    }
    print(machine())
    print(f"\n### A step of Adam, {2 * width**2} parameters\n")
    print(show(interleaved(runs, rounds=rounds), baseline="constant 1e-3", each=steps))

    boundaries = [10 * (i + 1) for i in range(count)]
    makers = {
        "constant": lambda: Constant(0.1),
        "Optax, warmup_cosine": lambda: optax.warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000),
        "ours, warmup_cosine": lambda: warmup_cosine(1e-3, warmup_steps=50, total_steps=1000),
        f"Optax, join of {count}": lambda: optax.join_schedules(
            [optax.linear_schedule(0.1, 0.01 * i, 10) for i in range(count + 1)], boundaries
        ),
        f"ours, join of {count}": lambda: pieces(count),
        f"Optax, piecewise constant, {count}": lambda: optax.piecewise_constant_schedule(
            0.1, {boundary: 0.9 for boundary in boundaries}
        ),
        f"ours, piecewise constant, {count}": lambda: PiecewiseConstant(
            0.1, boundaries=boundaries, values=[0.1 * 0.9**i for i in range(count)]
        ),
        f"Optax, piecewise linear, {count}": lambda: optax.piecewise_interpolate_schedule(
            "linear", 0.1, {boundary: 0.9 for boundary in boundaries}
        ),
        f"ours, piecewise linear, {count}": lambda: PiecewiseLinear(
            0.1, boundaries=boundaries, values=[0.1 * 0.9**i for i in range(count)]
        ),
    }
    loop = 100 if tiny else 10_000
    print("\n### One value\n")
    seconds = interleaved(
        {name: values(make(), loop) for name, make in makers.items()}, rounds=rounds
    )
    print(show(seconds, baseline="Optax, warmup_cosine", each=loop))

    print("\n### Until the first value\n\n| what | seconds |\n|---|---|")
    for name, make in makers.items():
        print(
            f"| {name} | {min(seconds_to_first_value(make) for _ in range(1 if tiny else 3)):.3f} |"
        )


def pieces(count: int) -> Callable:
    """A join whose pieces are alternately straight and curved."""
    kinds = (Linear(0.1, steps=10, end_value=0.05), Cosine(0.1, steps=10, end_value=0.05))
    return join([*((kinds[i % 2], 10) for i in range(count)), (Constant(0.01), None)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    main(parser.parse_args().tiny)
