"""Regularization paths and cross-validation against scikit-learn, and their certificates."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import (
    ElasticNetCV,
    LassoCV,
    LogisticRegression,
    MultiTaskLasso,
    enet_path,
    lasso_path,
)
from sklearn.model_selection import KFold

from jax_lrreg import interop, penalties, plots, sweeps


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return x.astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)


def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y.astype(np.float32)


def wide():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 200)).astype(np.float32)
    return x, (x[:, :10] @ rng.normal(size=10) + 0.1 * rng.normal(size=60)).astype(np.float32)


def squares(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def zeros(x):
    return {"w": jnp.zeros(x.shape[1], x.dtype), "b": jnp.zeros((), x.dtype)}


LASSO = penalties.L1(1.0).on("w")


@pytest.mark.parametrize(
    ("data", "dtype", "mode", "nearness"),
    [
        (diabetes, np.float64, "warm", 1e-4),
        (cancer, np.float64, "warm", 1e-4),
        (wide, np.float64, "parallel", 1e-4),
        (wide, np.float32, "warm", 4e-4),  # the rounding of a slope, over the least curvature
    ],
)
def test_the_path_of_the_lasso_is_that_of_scikit_learn(data, dtype, mode, nearness):
    x, y = (a.astype(dtype) for a in data())
    with jax.enable_x64(dtype == np.float64):
        tolerance = 1e-7 if dtype == np.float64 else 1e-6
        loss = lambda p: squares(p, (x, y))  # noqa: E731
        found = sweeps.path(loss, zeros(x), LASSO, tolerance=tolerance, mode=mode)
    assert found.certificate.max() <= tolerance
    assert found.strengths.dtype == found.params["w"].dtype == dtype
    xc, yc = (x - x.mean(0)).astype(float), (y - y.mean()).astype(float)
    np.testing.assert_allclose(found.strengths[0], np.abs(xc.T @ yc).max() / len(y), rtol=1e-4)
    np.testing.assert_allclose(found.strengths[-1], 1e-3 * found.strengths[0], rtol=1e-4)
    alphas = found.strengths.astype(float)
    _, theirs, _ = lasso_path(xc, yc, alphas=alphas, tol=1e-8, max_iter=100_000)
    ours = np.asarray(found.params["w"], float)
    same = np.all((ours != 0) == (theirs.T != 0), axis=1)
    assert same.mean() >= 0.99
    np.testing.assert_allclose(ours, theirs.T, atol=nearness * np.abs(theirs).max())
    cost = [np.mean((xc @ w.T - yc[:, None]) ** 2, 0) / 2 for w in (ours, theirs.T)]
    cost = [c + alphas * np.abs(w).sum(1) for c, w in zip(cost, (ours, theirs.T), strict=True)]
    assert np.max(cost[0] / cost[1] - 1) < 1e-6
    np.testing.assert_allclose(found.sparsity, np.mean(ours == 0, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.objective, cost[0], rtol=1e-4)


def test_a_positive_elastic_net_has_the_path_of_scikit_learn():
    x, y = diabetes()
    net = penalties.NonNegativeElasticNet.from_alpha_ratio(1.0, l1_ratio=0.7).on("w")
    found = sweeps.path(lambda p: squares(p, (x, y)), zeros(x), net, strengths=20)
    assert found.certificate.max() <= 1e-6
    xc, yc = (x - x.mean(0)).astype(float), (y - y.mean()).astype(float)
    alphas = found.strengths.astype(float)
    options = {"l1_ratio": 0.7, "positive": True, "tol": 1e-9, "max_iter": 100_000}
    _, theirs, _ = enet_path(xc, yc, alphas=alphas, **options)
    ours = np.asarray(found.params["w"])
    np.testing.assert_array_equal(ours != 0, theirs.T != 0)
    np.testing.assert_allclose(ours, theirs.T, atol=1e-4 * theirs.max())


def test_a_logistic_lasso_is_that_of_scikit_learn():
    x, y = cancer()
    x = x[:, :12]

    def logistic(w):
        return jnp.mean(jnp.logaddexp(0, -(2 * y - 1) * (x @ w)))

    found = sweeps.path(logistic, jnp.zeros(12), penalties.L1(1.0), strengths=[0.1, 0.03, 0.01])
    for strength, w in zip(found.strengths, found.params, strict=True):
        model = LogisticRegression(
            C=1 / (strength * len(y)), l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-8
        )
        theirs = model.fit(x, y).coef_[0]
        np.testing.assert_array_equal(w != 0, theirs != 0)
        np.testing.assert_allclose(w, theirs, atol=2e-4 * np.abs(theirs).max())


def test_a_group_lasso_of_tasks_is_that_of_scikit_learn():
    x, y = diabetes()
    tasks = np.stack([y, x[:, 2] + y], 1)
    loss = lambda w: jnp.sum((x @ w - tasks) ** 2) / 2 / len(y)  # noqa: E731
    rows = penalties.GroupLasso(1.0, axis=-1)
    found = sweeps.path(loss, jnp.zeros((10, 2)), rows, strengths=10)
    for index in (3, 6):
        model = MultiTaskLasso(float(found.strengths[index]), fit_intercept=False, tol=1e-9)
        theirs = model.fit(x.astype(float), tasks.astype(float)).coef_.T
        np.testing.assert_array_equal(found.params[index] != 0, theirs != 0)
        np.testing.assert_allclose(found.params[index], theirs, atol=1e-4 * np.abs(theirs).max())


def test_numbered_groups_under_a_logistic_loss_are_solved_to_the_certificate():
    x, y = cancer()

    def logistic(w):
        return jnp.mean(jnp.log1p(jnp.exp(-(2 * y - 1) * (x[:, :12] @ w))))

    numbers = np.arange(12) // 3
    penalty = penalties.GroupLasso(2.0, groups=numbers)
    found = sweeps.path(logistic, jnp.ones(12), penalty, strengths=10, tolerance=1e-5)
    assert found.certificate.max() <= 1e-5
    np.testing.assert_array_equal(found.params[0], 0)
    chosen = np.asarray(found.params).reshape(10, 4, 3) != 0
    np.testing.assert_array_equal(chosen.any(-1), chosen.all(-1))  # a group is zero as a whole
    assert chosen[-1].all()
    assert not chosen[2].all()
    slope = np.asarray(jax.grad(logistic)(jnp.zeros(12))).reshape(4, 3)
    largest = np.linalg.norm(slope, axis=1).max()
    np.testing.assert_allclose(found.strengths[0], largest / 2, rtol=1e-5)


def test_a_nuclear_norm_finds_the_rank():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5))
    noisy = (truth + 0.01 * rng.normal(size=(6, 5))).astype(np.float32)
    seen = rng.random((6, 5)) < 0.8

    def loss(params):
        return jnp.sum(jnp.where(seen, params["w"] + params["b"][None] - noisy, 0) ** 2) / 2

    start = {"w": jnp.zeros((6, 5)), "b": jnp.zeros(5)}  # the offsets are free
    found = sweeps.path(loss, start, penalties.NuclearNorm(1.0).on("w"), strengths=6)
    assert found.certificate.max() <= 2e-6
    rank = [np.linalg.matrix_rank(w, tol=1e-4) for w in found.params["w"]]
    assert np.all(np.diff(rank) >= 0)
    assert rank[0] == 0 < rank[1] < 5
    best = {"w": jnp.zeros((6, 5)), "b": jnp.sum(seen * noisy, 0) / seen.sum(0)}
    largest = np.linalg.svd(jax.grad(loss)(best)["w"], compute_uv=False)[0]
    np.testing.assert_allclose(found.strengths[0], largest, rtol=1e-4)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_derivative_of_a_minimum_is_that_of_central_differences(mode):
    x, y = diabetes()
    x = x / x.std(0)
    kept, left = (x[::2], y[::2]), (x[1::2], y[1::2])

    def left_out(hp):
        def weighed(params):
            return hp["weight"] * squares(params, kept)

        own = penalties.ElasticNet(hp["l1"], l2=hp["l2"]).on("w")
        found = sweeps.solve(weighed, zeros(x.astype(hp["l2"].dtype)), own, tolerance=1e-10)
        return squares(found, left)

    each = np.full(10, 0.03)  # a strength for each parameter: all slopes at once
    each[3] = 0.1
    with jax.enable_x64(True):
        x, kept, left = jax.tree.map(np.float64, (x, kept, left))
        hyper = {"l1": each, "l2": np.float64(0.2), "weight": np.float64(1.3)}
        value, slopes = sweeps.hypergradient(left_out, hyper, mode=mode)
        measured = jax.jit(left_out)
        for name, at in (("l1", 2), ("l1", 3), ("l2", ...), ("weight", ...)):
            ends = []
            for side in (1e-4, -1e-4):
                moved = np.array(hyper[name])
                moved[at] *= 1 + side
                ends.append(float(measured({**hyper, name: moved})))
            step = 2e-4 * np.asarray(hyper[name])[at]
            np.testing.assert_allclose(
                np.asarray(slopes[name])[at], (ends[0] - ends[1]) / step, rtol=1e-4
            )
        np.testing.assert_allclose(value, measured(hyper), rtol=1e-9)


def test_a_solution_that_is_no_number_has_no_certificate():
    # Without a minimum: below a strength of 1 the loss falls faster than the penalty rises.
    path = sweeps.path(jnp.sum, jnp.zeros(3), penalties.L1(1.0), strengths=[2.0, 0.5])
    assert not np.isfinite(path.params[1]).any()
    assert path.certificate[0] == 0
    assert np.isnan(path.certificate[1])


def test_strengths_of_ones_own_need_no_strongest():
    def loss(w):
        return jnp.sum((w - 2.0) ** 2) / 2

    found = sweeps.path(loss, jnp.zeros(2), penalties.L2(1.0), strengths=[1.0, 3.0])
    np.testing.assert_allclose(found.strengths, [3, 1])
    np.testing.assert_allclose(found.params, [[0.5, 0.5], [1, 1]], rtol=1e-5)
    np.testing.assert_allclose(found.at(1.1), [1, 1], rtol=1e-5)
    assert "2 strengths" in repr(found)


@pytest.mark.parametrize(
    "estimator",
    [
        LassoCV(cv=5, alphas=40, tol=1e-7, max_iter=100_000),
        ElasticNetCV(l1_ratio=0.5, cv=KFold(5), alphas=40, tol=1e-7, max_iter=100_000),
    ],
)
def test_cross_validation_chooses_the_strength_of_scikit_learn(estimator):
    x, y = diabetes()
    if isinstance(estimator, ElasticNetCV):  # folds of one size are one program less
        x, y = x[:440], y[:440]
    (penalty,), options = interop.from_sklearn(estimator)
    penalty = penalty.on("w")
    assert options == {"strengths": 40, "folds": 5}
    cv = sweeps.cross_validate(squares, zeros(x), penalty, (x, y), **options)
    model = estimator.fit(x.astype(float), y.astype(float))
    np.testing.assert_allclose(cv.strengths, model.alphas_, rtol=1e-4)
    np.testing.assert_allclose(2 * cv.mean, model.mse_path_.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(cv.best, model.alpha_, rtol=1e-4)
    at = list(cv.strengths).index(np.float32(cv.one_standard_error))
    assert cv.mean[at] <= cv.mean.min() + cv.error[cv.mean.argmin()]
    assert cv.mean[at - 1] > cv.mean.min() + cv.error[cv.mean.argmin()]
    numbers = np.repeat(np.arange(5), len(x) // 5 + (np.arange(5) < len(x) % 5))
    same = sweeps.cross_validate(squares, zeros(x), penalty, (x, y), folds=numbers, strengths=40)
    np.testing.assert_array_equal(same.scores, cv.scores)
    ax = plots.path(cv)
    assert len(ax.lines) == 10 + 3  # coefficients without the intercept, zero, two marks
    plt.close("all")


REFUSED = {
    "no certificate": (lambda: solve(penalties.Orthogonal(1.0)), "path: `penalty`"),
    "no penalty": (lambda: solve(0.1), "path: `penalty`"),
    "no strongest": (lambda: solve(penalties.L2(1.0)), "path: `strengths`"),
    "a constraint": (lambda: solve(penalties.NonNegative()), "path: `penalty` .*strength"),
    "a penalty of 0": (lambda: solve(penalties.L1(0.0)), "path: `strengths`"),
    "a loss of NaN": (
        lambda: sweeps.path(lambda w: jnp.nan * jnp.sum(w), jnp.zeros(2), penalties.L1(1.0)),
        "path: `loss`",
    ),
    "a strength of 0": (lambda: solve(strengths=[1.0, 0.0]), "path: `strengths`"),
    "a negative strength": (lambda: solve(strengths=np.array([1.0, -1.0])), "path: `strengths`"),
    "strengths of NaN": (lambda: solve(strengths=[np.nan]), "path: `strengths`"),
    "no strengths": (lambda: solve(strengths=[]), "path: `strengths`"),
    "a table of strengths": (lambda: solve(strengths=np.ones((2, 2))), "path: `strengths`"),
    "half a strength": (lambda: solve(strengths=2.5), "path: `strengths`"),
    "zero strengths": (lambda: solve(strengths=0), "path: `strengths`"),
    "no prox": (lambda: solve(penalties.TotalVariation(1.0, axis=-1)), "path: `penalty`"),
    "two on one": (lambda: solve(penalties.L1(1.0) + penalties.L2(1.0)), "path: `penalty`"),
    "strengths beyond a float32": (lambda: solve(strengths=[1e50]), "path: `strengths` .*float32"),
    "strengths that round to 0": (lambda: solve(strengths=[1e-50]), "path: `strengths` .*float32"),
    "halves": (
        lambda: sweeps.path(jnp.sum, jnp.zeros(2, jnp.bfloat16), penalties.L1(1.0)),
        "path: `params` .*32 bits",
    ),
    "places": (lambda: solve().at(np.array([1.0, 2.0])), "at: `strength`"),
    "a mode": (lambda: solve(mode="cold"), "path: `mode`"),
    "iterations": (lambda: solve(max_iterations=0), "path: `max_iterations`"),
    "a loss": (lambda: sweeps.path(1.0, jnp.zeros(2), LASSO), "path: `loss`"),
    "no scalar": (
        lambda: sweeps.path(lambda w: w, jnp.zeros(2), penalties.L1(1.0)),
        "path: `loss`",
    ),
    "no numbers": (
        lambda: sweeps.path(lambda w: 1.0, {"w": np.arange(3)}, penalties.L1(1.0)),
        "path: `params`",
    ),
    "a place that is not there": (lambda: solve().at(-1.0), "at: `strength`"),
    "solve: no certificate": (
        lambda: sweeps.solve(jnp.sum, jnp.zeros((2, 2)), penalties.Orthogonal(1.0)),
        "solve: `penalty`",
    ),
    "solve: tolerance": (
        lambda: sweeps.solve(jnp.sum, jnp.zeros(2), penalties.L1(1.0), tolerance=-1.0),
        "solve: `tolerance`",
    ),
    "no examples": (lambda: folded(2, examples=1), "cross_validate: `data`"),
    "half a fold": (lambda: folded(2.5), "cross_validate: `folds`"),
    "tables of folds": (lambda: folded(np.ones((6, 1), int)), "cross_validate: `folds`"),
    "tolerance": (lambda: solve(tolerance=0.0), "path: `tolerance`"),
    "folds": (lambda: folded(1), "cross_validate: `folds`"),
    "more folds": (lambda: folded(7), "cross_validate: `folds`"),
    "fold numbers": (lambda: folded([0, 1]), "cross_validate: `folds`"),
    "one fold": (lambda: folded([0] * 6), "cross_validate: `folds`"),
}


def solve(penalty=penalties.L1(1.0), **options):  # noqa: B008  it is frozen
    return sweeps.path(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), penalty, **options)


def folded(folds, examples=6):
    data = (np.ones((examples, 2), np.float32), np.ones(examples, np.float32))
    return sweeps.cross_validate(squares, zeros(data[0]), LASSO, data, folds=folds)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
