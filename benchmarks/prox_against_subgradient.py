"""Which way of putting an L1 penalty on Adam gives zeros, and what does a step of it cost?

A lasso of 2000 examples and 500 coefficients, of which scikit-learn's solution leaves 337 or so at
zero. Ways: L1 in the loss; soft-thresholding by learning_rate * strength after Adam; the prox in
Adam's metric. Prints for each the exact zeros, the relative gap of the objective, and the time per
step beside plain Adam.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import interleaved, machine, show
from sklearn.linear_model import Lasso

from jax_lrreg import penalties, schedules, transforms


def problem(examples: int, coefficients: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Inputs, targets and a strength at which about two thirds of the coefficients are zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, coefficients))
    true = np.where(rng.uniform(size=coefficients) < 0.3, rng.normal(size=coefficients), 0)
    y = x @ true + rng.normal(size=examples)
    return x - x.mean(0), y - y.mean(), 0.05


def main(tiny: bool) -> None:
    examples, coefficients, steps = (200, 40, 50) if tiny else (2000, 500, 10_000)
    x, y, strength = problem(examples, coefficients)
    reference = (
        Lasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y).coef_
    )

    def objective(w: np.ndarray) -> float:
        w = np.asarray(w, np.float64)
        return float(np.mean((x @ w - y) ** 2) / 2 + strength * np.abs(w).sum())

    gram, moment = (
        jnp.asarray(x.T @ x / examples, jnp.float32),
        jnp.asarray(x.T @ y / examples, jnp.float32),
    )
    lr, l1 = schedules.Cosine(1e-2, steps=steps), penalties.L1(strength)
    ways = {
        "Adam, no penalty": optax.adam(lr),
        "Adam, L1 in the loss": optax.chain(transforms.add_penalty(l1), optax.adam(lr)),
        "Adam, thresholded by rate * strength": transforms.proximal(
            optax.adam(lr), l1, lr, metric=lambda _, rate: rate
        ),
        "Adam, prox in its metric": transforms.proximal(optax.adam(lr), l1, lr),
        "momentum, prox in its metric": transforms.proximal(optax.sgd(lr, momentum=0.9), l1, lr),
    }

    def solver(tx: optax.GradientTransformation):
        @jax.jit
        def solve() -> jax.Array:
            def body(_, carry):
                w, state = carry
                updates, state = tx.update(gram @ w - moment, state, w)
                return optax.apply_updates(w, updates), state

            w = jnp.zeros(coefficients)
            return jax.lax.fori_loop(0, steps, body, (w, tx.init(w)))[0]

        return solve

    solvers = {name: solver(tx) for name, tx in ways.items()}
    best = objective(reference)
    print(machine())
    print(
        f"{(reference == 0).sum()} of {coefficients} coefficients are zero in "
        "scikit-learn's solution\n"
    )
    print("| way | exact zeros | same zeros | gap |\n|---|---|---|---|")
    for name, solve in solvers.items():
        w = np.asarray(solve())
        same = np.array_equal(w == 0, reference == 0)
        print(
            f"| {name} | {(w == 0).sum()} | {'yes' if same else 'no'} "
            f"| {objective(w) / best - 1:.1e} |"
        )
    print()
    print(
        show(interleaved(solvers, rounds=3 if tiny else 7), baseline="Adam, no penalty", each=steps)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    main(parser.parse_args().tiny)
