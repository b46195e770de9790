"""Is the learning rate that the finder suggests near the best of a brute-force sweep?

    python benchmarks/finder_against_sweep.py [--tiny]

For three problems and several seeds it trains at constant rates, a quarter of a decade apart, from
the seed's own parameters, and takes the rate with the least loss at the end, on the examples it
trained on (which is what a finder looks at) and on held-out ones; then it asks the finder, from the
same parameters. Printed are the factors by which each suggestion differs from the best rate of its
seed, and the loss that training at the suggested rate ends with, where 0 is the best rate's and 1
the loss before training.
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


def trainer(problem: Problem, preconditioner: Any, steps: int) -> Callable[[int, Any], np.ndarray]:
    """`(seed, rates) -> losses` of all and of held-out examples; the last is before training."""

    @jax.jit
    def train(seed: Any, rates: jax.Array, arrays: Any, held: Any) -> jax.Array:
        rows = jax.random.randint(
            jax.random.key(seed + 100), (steps, problem.batch_size), 0, len(arrays["x"])
        )
        judged = {name: values[:4000] for name, values in arrays.items()}

        def run(rate: jax.Array) -> jax.Array:
            tx = optax.chain(preconditioner, optax.scale_by_learning_rate(rate))
            params = problem.init(jax.random.key(seed))

            def one(carry: Any, row: jax.Array) -> tuple[Any, None]:
                params, state = carry
                batch = jax.tree.map(lambda x: x[row], arrays)
                grads = jax.grad(lambda p: problem.loss_fn(lambda x: problem.apply(p, x), batch))(
                    params
                )
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), rows)
            return jnp.stack(
                [problem.loss_fn(lambda x: problem.apply(params, x), of) for of in (judged, held)]
            )

        return jax.lax.map(run, jnp.append(rates, 0.0)).T

    def ends(seed: int, rates: Any) -> np.ndarray:
        losses = np.asarray(
            train(seed, jnp.asarray(rates, jnp.float32), problem.arrays, problem.held)
        )
        return np.where(np.isfinite(losses), losses, np.inf)

    return ends


def suggestions(
    problem: Problem, preconditioner: Any, seed: int, low: float, high: float
) -> dict[str, float]:
    """What the two tests suggest, by `test rule`."""
    tx, key = optax.sgd(1.0), jax.random.key(seed)
    state = training.init(problem.apply, tx, key=key, params=problem.init(key))
    data = training.ArrayData(problem.arrays, problem.batch_size, jax.random.key(seed + 7))
    rising = finder.range_test(
        problem.apply, problem.loss_fn, preconditioner, state, data, low=low, high=high
    )
    side = finder.parallel_test(
        problem.apply, problem.loss_fn, preconditioner, state, data, low=low, high=high
    )
    return {f"range {name}": rate for name, rate in rising.suggestions.items()} | {
        f"parallel {name}": rate for name, rate in side.suggestions.items()
    }


class Rule(NamedTuple):
    """How a rule did, seed by seed."""

    factors: list[float]
    held_factors: list[float]
    shares: list[float]


def compare(
    name: str, kind: str, seeds: int, steps: int, grid: np.ndarray
) -> tuple[list[float], dict[str, Rule]]:
    """The best rates, and for each rule its factors to them and its share of the fall."""
    problem, preconditioner = PROBLEMS[name](), PRECONDITIONERS[kind]()
    ends, bests, found = trainer(problem, preconditioner, steps), [], {}
    for seed in range(seeds):
        losses, held = ends(seed, grid)
        best, before = losses[:-1].min(), losses[-1]
        bests.append(float(grid[losses[:-1].argmin()]))
        named = suggestions(problem, preconditioner, seed, 1e-6, 10.0)
        reached = ends(seed, list(named.values()))[0, :-1]
        for (rule, rate), loss in zip(named.items(), reached, strict=True):
            entry = found.setdefault(rule, Rule([], [], []))
            entry.factors.append(rate / bests[-1])
            entry.held_factors.append(rate / grid[held[:-1].argmin()])
            entry.shares.append((loss - best) / (before - best))
    return bests, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="one seed and few steps, to see that it runs"
    )
    tiny = parser.parse_args().tiny
    seeds, steps = (1, 30) if tiny else (5, 400)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {seeds} seeds, {steps} steps")
    print(
        "| problem | optimizer | best rates | rule | factor to the best | to the best held-out "
        "| loss left | worst |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in PROBLEMS if not tiny else ["diabetes"]:
        for kind in PRECONDITIONERS if not tiny else ["adam"]:
            bests, found = compare(name, kind, seeds, steps, GRID[::6] if tiny else GRID)
            for rule, entry in found.items():
                print(
                    f"| {name} | {kind} | {span(bests)} | {rule} | {span(entry.factors)} | "
                    f"{span(entry.held_factors)} | "
                    f"{np.mean(entry.shares):.3f} | {max(entry.shares):.3f} |",
                    flush=True,
                )


def span(numbers: list[float]) -> str:
    return f"{min(numbers):.2g} to {max(numbers):.2g}"


if __name__ == "__main__":
    main()
