"""Regularization paths and cross-validation against scikit-learn, and their certificates."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNetCV, LassoCV, lasso_path

from jax_lrreg import penalties, plots, sweeps


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
    return {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}


LASSO = penalties.L1(1.0).on("w")


@pytest.mark.parametrize("data", [diabetes, cancer, wide])
def test_the_path_of_the_lasso_is_that_of_scikit_learn(data):
    x, y = data()
    found = sweeps.path(lambda p: squares(p, (x, y)), zeros(x), LASSO)
    assert found.certificate.max() <= 2e-6
    xc, yc = (x - x.mean(0)).astype(float), (y - y.mean()).astype(float)
    np.testing.assert_allclose(found.strengths[0], np.abs(xc.T @ yc).max() / len(y), rtol=1e-4)
    np.testing.assert_allclose(found.strengths[-1], 1e-3 * found.strengths[0], rtol=1e-4)
    alphas = found.strengths.astype(float)
    _, theirs, _ = lasso_path(xc, yc, alphas=alphas, tol=1e-8, max_iter=100_000)
    ours = np.asarray(found.params["w"], float)
    same = np.all((ours != 0) == (theirs.T != 0), axis=1)
    assert same.mean() >= 0.98
    np.testing.assert_allclose(ours, theirs.T, atol=3e-4 * np.abs(theirs).max())
    cost = [np.mean((xc @ w.T - yc[:, None]) ** 2, 0) / 2 for w in (ours, theirs.T)]
    cost = [c + alphas * np.abs(w).sum(1) for c, w in zip(cost, (ours, theirs.T), strict=True)]
    assert np.max(cost[0] / cost[1] - 1) < 1e-6
    np.testing.assert_allclose(found.sparsity, np.mean(ours == 0, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.objective, cost[0], rtol=1e-4)


def test_a_group_lasso_and_a_logistic_loss_are_solved_to_the_certificate():
    x, y = cancer()

    def logistic(params):
        margin = (2 * y - 1) * (x[:, :12].reshape(-1, 4, 3).reshape(-1, 12) @ params.ravel())
        return jnp.mean(jnp.log1p(jnp.exp(-margin)))

    penalty = penalties.GroupLasso(2.0, axis=-1)
    found = sweeps.path(logistic, jnp.ones((4, 3)), penalty, strengths=10, tolerance=1e-5)
    assert found.certificate.max() <= 1e-5
    np.testing.assert_array_equal(found.params[0], 0)
    rows = np.any(np.asarray(found.params) != 0, axis=-1)
    assert rows[-1].all()
    assert np.all(np.asarray(found.params)[rows] != 0)  # a group is zero as a whole
    grads = jax.grad(logistic)(found.params[4])
    rest = (penalty * found.strengths[4]).certificate(found.params[4], grads)
    assert float(rest) <= 2e-5 * found.strengths[0] * 2
    largest = penalties.GroupLasso(1.0, axis=-1).max_strength(jax.grad(logistic)(jnp.zeros((4, 3))))
    np.testing.assert_allclose(found.strengths[0], largest / 2, rtol=1e-5)


def test_strengths_of_ones_own_need_no_strongest():
    def loss(w):
        return jnp.sum((w - 2.0) ** 2) / 2

    found = sweeps.path(loss, jnp.zeros(2), penalties.L2(1.0), strengths=[1.0, 3.0])
    np.testing.assert_allclose(found.strengths, [3, 1])
    np.testing.assert_allclose(found.params, [[0.5, 0.5], [1, 1]], rtol=1e-5)
    np.testing.assert_allclose(found.at(1.1), [1, 1], rtol=1e-5)
    assert "2 strengths" in repr(found)


@pytest.mark.parametrize(
    ("penalty", "theirs"),
    [
        (LASSO, lambda folds, n: LassoCV(cv=folds, alphas=n, tol=1e-7, max_iter=100_000)),
        (
            penalties.ElasticNet(0.5, l2=0.5).on("w"),
            lambda folds, n: ElasticNetCV(
                l1_ratio=0.5, cv=folds, alphas=n, tol=1e-7, max_iter=100_000
            ),
        ),
    ],
)
def test_cross_validation_chooses_the_strength_of_scikit_learn(penalty, theirs):
    x, y = diabetes()
    cv = sweeps.cross_validate(squares, zeros(x), penalty, (x, y), folds=5, strengths=40)
    model = theirs(5, 40).fit(x.astype(float), y.astype(float))
    np.testing.assert_allclose(cv.strengths, model.alphas_, rtol=1e-4)
    np.testing.assert_allclose(2 * cv.mean, model.mse_path_.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(cv.best, model.alpha_, rtol=1e-4)
    at = list(cv.strengths).index(np.float32(cv.one_standard_error))
    assert cv.mean[at] <= cv.mean.min() + cv.error[cv.mean.argmin()]
    assert cv.mean[at - 1] > cv.mean.min() + cv.error[cv.mean.argmin()]
    numbers = np.repeat(np.arange(5), [89, 89, 88, 88, 88])
    same = sweeps.cross_validate(squares, zeros(x), penalty, (x, y), folds=numbers, strengths=40)
    np.testing.assert_array_equal(same.scores, cv.scores)
    ax = plots.path(cv)
    assert len(ax.lines) == 10 + 3  # coefficients without the intercept, zero, two marks
    plt.close("all")


REFUSED = {
    "no certificate": (lambda: solve(penalties.Orthogonal(1.0)), "path: `penalty`"),
    "no penalty": (lambda: solve(0.1), "path: `penalty`"),
    "no strongest": (lambda: solve(penalties.L2(1.0)), "path: `strengths`"),
    "a strength of 0": (lambda: solve(strengths=[1.0, 0.0]), "path: `strengths`"),
    "tolerance": (lambda: solve(tolerance=0.0), "path: `tolerance`"),
    "folds": (lambda: folded(1), "cross_validate: `folds`"),
    "more folds": (lambda: folded(7), "cross_validate: `folds`"),
    "fold numbers": (lambda: folded([0, 1]), "cross_validate: `folds`"),
    "one fold": (lambda: folded([0] * 6), "cross_validate: `folds`"),
}


def solve(penalty=penalties.L1(1.0), **options):  # noqa: B008  it is frozen
    return sweeps.path(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), penalty, **options)


def folded(folds):
    data = (np.ones((6, 2), np.float32), np.ones(6, np.float32))
    return sweeps.cross_validate(squares, zeros(data[0]), LASSO, data, folds=folds)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
