"""What do a path, a cross-validation, a slope and a tuned rate cost, and how near do they come?

    python benchmarks/paths.py [--tiny] [--rounds N]

Paths of the lasso stand beside scikit-learn's coordinate descent at its own tolerance of 1e-4, and
at 1e-8 for the comparison of the solutions; cross-validation beside `LassoCV`. Slopes are those of
a run of stochastic gradient descent by four numbers, beside the run alone. Ratios are to the first
line of a table.
"""

import argparse
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import interleaved, machine, show
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LassoCV, lasso_path

from jax_lrreg import penalties, schedules, sweeps, training

LASSO = penalties.L1(1.0).on("w")


def problems() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    x, y = load_diabetes(return_X_y=True)
    cancer, benign = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(60, 200))
    return {
        "diabetes": (x, (y - y.mean()) / y.std()),
        "breast cancer": ((cancer - cancer.mean(0)) / cancer.std(0), benign.astype(float)),
        "60 x 200": (wide, wide[:, :10] @ rng.normal(size=10) + 0.1 * rng.normal(size=60)),
    }


def squares(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def paths(name: str, x: np.ndarray, y: np.ndarray, strengths: int, rounds: int) -> None:
    batch = np.float32(x), np.float32(y)
    params = {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}

    def loss(params):
        return squares(params, batch)

    centred = x - x.mean(0), y - y.mean()
    found = sweeps.path(loss, params, LASSO, strengths=strengths)
    alphas = found.strengths.astype(float)
    calls = {
        "scikit-learn": lambda: lasso_path(*centred, alphas=alphas),
        "scikit-learn, 1e-8": lambda: lasso_path(*centred, alphas=alphas, tol=1e-8),
        "warm": lambda: sweeps.path(loss, params, LASSO, strengths=strengths).objective,
        "parallel": lambda: (
            sweeps.path(loss, params, LASSO, strengths=strengths, mode="parallel").objective
        ),
    }
    print(f"\n{name}, {strengths} strengths\n")
    print(show(interleaved(calls, rounds=rounds), baseline="scikit-learn"), flush=True)
    ours = np.asarray(found.params["w"], float)
    theirs = lasso_path(*centred, alphas=alphas, tol=1e-8, max_iter=100_000)[1].T
    costs = [
        np.mean((centred[0] @ w.T - centred[1][:, None]) ** 2, 0) / 2 + alphas * np.abs(w).sum(1)
        for w in (ours, theirs)
    ]
    same = np.all((ours != 0) == (theirs != 0), axis=1).mean()
    far = np.abs(ours - theirs).max() / np.abs(theirs).max()
    gap = np.max(costs[0] / costs[1] - 1)
    worst = found.certificate.max()
    print(f"\nsame support {same:.0%}, coefficients {far:.1e}, objective {gap:.1e}, ", end="")
    print(f"certificate {worst:.1e}", flush=True)


def folds(name: str, x: np.ndarray, y: np.ndarray, strengths: int, rounds: int) -> None:
    batch = np.float32(x), np.float32(y)
    params = {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}
    options = {"cv": 8, "alphas": strengths, "max_iter": 1_000_000}
    calls = {
        "LassoCV": lambda: LassoCV(**options).fit(x, y).alpha_,
        "LassoCV, 1e-7": lambda: LassoCV(tol=1e-7, **options).fit(x, y).alpha_,
        "cross_validate": lambda: (
            sweeps.cross_validate(squares, params, LASSO, batch, folds=8, strengths=strengths).best
        ),
    }
    print(f"\n{name}, 8 folds, {strengths} strengths\n")
    print(show(interleaved(calls, rounds=rounds), baseline="LassoCV"))
    print("\nchosen:", ", ".join(f"{call():.5g}" for call in calls.values()), flush=True)


def perceptron(width: int, steps: int):
    """A loss on digits left out, and an accuracy, of a run with momentum."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.float32(x[order] / 16), y[order].astype(np.int32)
    data = training.ArrayData({"x": x[:1200], "y": y[:1200]}, 64, jax.random.key(1))
    rng = np.random.default_rng(1)
    start = {
        "first": np.float32(rng.normal(size=(64, width)) / 8),
        "last": np.float32(rng.normal(size=(width, 10)) / width**0.5),
    }

    def apply(params, x):
        return jnp.tanh(x @ params["first"]) @ params["last"]

    def loss_fn(model, batch):
        each = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        return each.mean()

    def trained(hp):
        rate = schedules.Exponential(hp["lr"], steps=steps, decay_rate=hp.get("left", 1.0))
        tx = optax.sgd(rate, momentum=hp.get("momentum", 0.9))
        penalty = penalties.L2(hp.get("strength", 0.0))
        step = training.make_step(apply, loss_fn, tx, penalty=penalty)
        state = training.init(apply, tx, key=jax.random.key(0), params=start)
        return training.scan(step, state, data, steps=steps)[0].params

    def loss(hp):
        params = trained(hp)
        return loss_fn(lambda x: apply(params, x), {"x": x[1200:], "y": y[1200:]})

    def accuracy(hp):
        return jnp.mean(jnp.argmax(apply(trained(hp), x[1200:]), -1) == y[1200:])

    return loss, accuracy


def slopes(width: int, steps: int, rounds: int) -> None:
    loss, _ = perceptron(width, steps)
    hyper = {"lr": 0.1, "left": 0.5, "momentum": 0.9, "strength": 1e-4}
    run = jax.jit(loss)
    calls = {
        "the run": lambda: run(hyper),
        "forward": lambda: sweeps.hypergradient(loss, hyper, mode="forward"),
        "reverse": lambda: sweeps.hypergradient(loss, hyper, mode="reverse"),
    }
    print(f"\nslopes by 4 numbers, digits, {width} hidden, {steps} steps\n")
    print(show(interleaved(calls, rounds=rounds), baseline="the run"), flush=True)


def tuned(width: int, steps: int) -> None:
    loss, accuracy = perceptron(width, steps)
    rates = np.geomspace(1e-3, 3, 32).astype(np.float32)
    result = sweeps.run(
        lambda hp: {"loss": loss(hp), "accuracy": accuracy(hp)}, sweeps.grid(lr=rates)
    )
    best = result.best("loss")
    found = sweeps.tune(loss, {"lr": best.hyper["lr"] / 30}, steps=10)
    print(f"\n| digits, {steps} steps | rate | loss | accuracy |\n|---|---|---|---|")
    share = result["accuracy"][best.index]
    print(f"| best of 32 rates | {best.hyper['lr']:.3g} | {best.value:.4f} | {share:.4f} |")
    rate, share = found.hyper["lr"], jax.jit(accuracy)(found.hyper)
    print(f"| tuned from a 30th | {rate:.3g} | {found.value:.4f} | {share:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    tiny, rounds = given.tiny, 1 if given.tiny else given.rounds
    warnings.simplefilter("ignore")  # scikit-learn's, of tolerances that it does not reach
    print(machine())
    chosen = problems()
    for name, (x, y) in list(chosen.items())[: 1 if tiny else None]:
        paths(name, x, y, 3 if tiny else 100, rounds)
    if not tiny:
        folds("60 x 200", *chosen["60 x 200"], 100, rounds)
        for width in (8, 32, 128):
            slopes(width, 300, rounds)
    tuned(8 if tiny else 32, 2 if tiny else 100)


if __name__ == "__main__":
    main()
