"""Is the learning rate that the finder suggests near the best of a brute-force sweep?

    python benchmarks/finder_against_sweep.py [--tiny]

For three problems and several seeds it trains at constant rates, a quarter of a decade apart, from the seed's own
parameters, and takes the rate with the least loss on held-out examples at the end; then it asks the finder, from the
same parameters. Printed are the factors by which each suggestion differs from the best rate of its seed, and the loss
that training at the suggested rate ends with, where 0 is the best rate's and 1 the loss before training.
"""

import argparse
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes, load_digits

from jax_lrreg import finder, training

GRID = 10 ** np.arange(-5.0, 1.26, 0.25)
WINDOW = 12  # characters that the language model sees


class Problem(NamedTuple):
    """Something to train.

    Attributes:
        init: `key -> params`.
        apply: `(params, x) -> output`.
        loss_fn: `(model, batch) -> loss`.
        arrays, held: examples to train on and to judge by.
        batch_size: examples per step.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    loss_fn: Callable[[Callable, Any], jax.Array]
    arrays: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    batch_size: int


def dense(key: jax.Array, sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (n, m)) * np.sqrt(2 / n), "bias": jnp.zeros((1, m))}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network(layers: Any, x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def cross_entropy(model: Callable, batch: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def split(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    order = np.random.default_rng(0).permutation(len(x))
    held, train = order[: len(x) // 5], order[len(x) // 5 :]
    return {"x": x[train], "y": y[train]}, {"x": x[held], "y": y[held]}


def digits() -> Problem:
    x, y = load_digits(return_X_y=True)
    arrays, held = split((x / 16).astype(np.float32), y.astype(np.int32))
    return Problem(lambda key: dense(key, (64, 64, 10)), network, cross_entropy, arrays, held, 64)


def diabetes() -> Problem:
    x, y = load_diabetes(return_X_y=True)
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x, y))
    arrays, held = split(x.astype(np.float32), y.astype(np.float32))

    def squares(model: Callable, batch: Any) -> jax.Array:
        return jnp.mean((model(batch["x"])[:, 0] - batch["y"]) ** 2)

    return Problem(lambda key: dense(key, (10, 10, 1)), network, squares, arrays, held, 32)


def characters() -> Problem:
    """The next character of the source of two modules of Python, from the twelve before it."""
    text = inspect.getsource(argparse) + inspect.getsource(textwrap)
    known = sorted(set(text))
    codes = np.array([known.index(character) for character in text], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(codes, WINDOW + 1)[::3]
    arrays, held = split(windows[:, :-1].copy(), windows[:, -1].copy())
    held = {name: values[:2000] for name, values in held.items()}

    def init(key: jax.Array) -> Any:
        one, two = jax.random.split(key)
        table = jax.random.normal(one, (len(known), 16)) * 0.3
        return {"table": table, "layers": dense(two, (16 * WINDOW, 96, len(known)))}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return network(params["layers"], params["table"][x].reshape(len(x), -1))

    return Problem(init, apply, cross_entropy, arrays, held, 64)


PROBLEMS = {"digits": digits, "diabetes": diabetes, "characters": characters}
PRECONDITIONERS = {
    "adam": optax.scale_by_adam,
    "momentum": lambda: optax.trace(0.9),
    "sgd": optax.identity,
}


def ends(problem: Problem, preconditioner: Any, seed: int, rates: Any, steps: int) -> np.ndarray:
    """The held-out losses after training at each of the rates; the last is that before training."""
    size = len(problem.arrays["x"])
    rows = jax.random.randint(jax.random.key(seed + 100), (steps, problem.batch_size), 0, size)

    @jax.jit
    def all_of_them(arrays: Any, held: Any, rates: jax.Array) -> jax.Array:
        def run(rate: jax.Array) -> jax.Array:
            tx = optax.chain(preconditioner, optax.scale_by_learning_rate(rate))
            params = problem.init(jax.random.key(seed))

            def one(carry: Any, row: jax.Array) -> tuple[Any, None]:
                params, state = carry
                batch = jax.tree.map(lambda x: x[row], arrays)
                grads = jax.grad(lambda p: problem.loss_fn(lambda x: problem.apply(p, x), batch))(params)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), rows)
            return problem.loss_fn(lambda x: problem.apply(params, x), held)

        return jax.lax.map(run, rates)

    rates = jnp.append(jnp.asarray(rates, jnp.float32), 0.0)
    losses = np.asarray(all_of_them(jax.device_put(problem.arrays), problem.held, rates))
    return np.where(np.isfinite(losses), losses, np.inf)


def suggestions(problem: Problem, preconditioner: Any, seed: int, low: float, high: float) -> dict[str, float]:
    """What the two tests suggest, by `test rule`."""
    tx, key = optax.sgd(1.0), jax.random.key(seed)
    state = training.init(problem.apply, tx, key=key, params=problem.init(key))
    data = training.ArrayData(problem.arrays, problem.batch_size, jax.random.key(seed + 7))
    rising = finder.range_test(problem.apply, problem.loss_fn, preconditioner, state, data, low=low, high=high)
    side = finder.parallel_test(problem.apply, problem.loss_fn, preconditioner, state, data, low=low, high=high)
    return {f"range {name}": rate for name, rate in rising.suggestions.items()} | {
        f"parallel {name}": rate for name, rate in side.suggestions.items()
    }


def compare(name: str, kind: str, seeds: int, steps: int) -> tuple[np.ndarray, dict[str, tuple[list, list]]]:
    """The best rates, and for each suggestion its factors to them and its share of the loss that was to be lost."""
    problem, preconditioner = PROBLEMS[name](), PRECONDITIONERS[kind]()
    bests, found = [], {}
    for seed in range(seeds):
        losses = ends(problem, preconditioner, seed, GRID, steps)
        best, before = losses[:-1].min(), losses[-1]
        bests.append(GRID[losses[:-1].argmin()])
        named = suggestions(problem, preconditioner, seed, 1e-6, 10.0)
        reached = ends(problem, preconditioner, seed, list(named.values()), steps)[:-1]
        for (rule, rate), loss in zip(named.items(), reached, strict=True):
            factors, shares = found.setdefault(rule, ([], []))
            factors.append(rate / bests[-1])
            shares.append((loss - best) / (before - best))
    return np.array(bests), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="one seed and few steps, to see that it runs")
    tiny = parser.parse_args().tiny
    seeds, steps = (1, 30) if tiny else (5, 400)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {seeds} seeds, {steps} steps")
    print("| problem | optimizer | best rates | rule | factor to the best, least to most | loss left, mean | worst |")
    print("|---|---|---|---|---|---|---|")
    for name in PROBLEMS:
        for kind in PRECONDITIONERS if not tiny else ["adam"]:
            bests, found = compare(name, kind, seeds, steps)
            for rule, (factors, shares) in found.items():
                print(
                    f"| {name} | {kind} | {min(bests):.2g} to {max(bests):.2g} | {rule} | {min(factors):.2g} to "
                    f"{max(factors):.2g} | {np.mean(shares):.3f} | {max(shares):.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
