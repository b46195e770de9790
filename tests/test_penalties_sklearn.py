"""The solutions of scikit-learn, reached by proximal gradient descent with our penalties."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model, model_selection

from jax_lrreg.interop import from_sklearn, to_sklearn
from jax_lrreg.penalties import (
    L1,
    L2,
    ElasticNet,
    GroupLasso,
    L1Ball,
    NonNegativeElasticNet,
    NonNegativeL1,
    SparseGroupLasso,
)

M, N = 200, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(M, N)) @ (np.eye(N) + 0.3 * RNG.normal(size=(N, N)))
X -= X.mean(0)  # and no intercept: it is not penalised
TRUTH = np.array([2.0, -1.5, 1.0, 0.8, -0.6] + [0.0] * (N - 5))
Y = X @ TRUTH + 0.5 * RNG.normal(size=M)
Y -= Y.mean()
TASKS = X @ (TRUTH[:, None] * RNG.normal(size=(1, 3))) + 0.5 * RNG.normal(size=(M, 3))
TASKS -= TASKS.mean(0)
LABELS = (X @ TRUTH + RNG.normal(size=M) > 0).astype(float)
TIGHT = {"tol": 1e-14, "max_iter": 100_000, "fit_intercept": False}


def squares(w, x, y):
    return jnp.sum((x @ w - y) ** 2) / (2 * M)


def logistic(w, x, y):
    return jnp.mean(jnp.logaddexp(0.0, x @ w) - y * (x @ w))


@functools.partial(jax.jit, static_argnums=0)
def fista(loss, penalty, w, x, y, step_size, steps):
    """Accelerated proximal gradient descent, restarted where it turns back."""

    def body(_, carry):
        w, v, t = carry
        new = penalty.prox(v - step_size * jax.grad(loss)(v, x, y), step_size)
        t_new = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        back = jnp.sum((v - new) * (new - w)) > 0
        t_new = jnp.where(back, 1.0, t_new).astype(t.dtype)
        return new, new + jnp.where(back, 0.0, (t - 1) / t_new) * (new - w), t_new

    return jax.lax.fori_loop(0, steps, body, (w, w, jnp.ones((), w.dtype)))[0]


@functools.partial(jax.jit, static_argnums=0)
def residual(loss, penalty, w, x, y):
    return penalty.certificate(w, jax.grad(loss)(w, x, y))


def solve(loss, penalty, y, dtype, curvature):
    x, y = np.asarray(X, dtype), np.asarray(y, dtype)
    w = np.zeros((N, *y.shape[1:]), dtype)
    step_size = np.asarray(1 / (curvature * np.linalg.norm(X, 2) ** 2 / M), dtype)
    return np.asarray(fista(loss, penalty, w, x, y, step_size, 3000)), x, y


EXAMPLES = {
    "Lasso": (squares, L1(30.0) / M, Y, lambda: linear_model.Lasso(alpha=30 / M, **TIGHT)),
    "Ridge": (
        squares,
        L2(30.0) / M,
        Y,
        lambda: linear_model.Ridge(alpha=30.0, solver="cholesky", fit_intercept=False),
    ),
    "ElasticNet": (
        squares,
        ElasticNet(20.0, l2=40.0) / M,
        Y,
        lambda: linear_model.ElasticNet(alpha=60 / M, l1_ratio=1 / 3, **TIGHT),
    ),
    "MultiTaskLasso": (
        squares,
        GroupLasso(60.0, axis=-1) / M,
        TASKS,
        lambda: linear_model.MultiTaskLasso(alpha=60 / M, **TIGHT),
    ),
    "LogisticRegression-l1": (
        logistic,
        L1(5.0) / M,
        LABELS,
        lambda: linear_model.LogisticRegression(C=1 / 5, l1_ratio=1.0, solver="liblinear", **TIGHT),
    ),
    "LogisticRegression-l2": (
        logistic,
        L2(5.0) / M,
        LABELS,
        lambda: linear_model.LogisticRegression(C=1 / 5, solver="newton-cholesky", **TIGHT),
    ),
}


@functools.cache
def theirs(name):
    _, _, y, make = EXAMPLES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that float64 is as far as it gets
        model = make().fit(X, y)
    coefficients = model.coef_ if y.ndim > 1 else np.ravel(model.coef_)
    return coefficients.T if y.ndim > 1 else coefficients


# In float32 the logistic lasso comes to rest up to 1.2e-5 away, by the order that its sums are in.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-10)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_proximal_gradient_descent_reaches_scikit_learn(name, dtype, tolerance):
    loss, penalty, y, _ = EXAMPLES[name]
    with jax.enable_x64(dtype == np.float64):
        w, x, y = solve(loss, penalty, y, dtype, 0.25 if loss is logistic else 1.0)
        certificate = np.asarray(residual(loss, penalty, w, x, y))
        overall = penalty.sparsity(w).overall
    expected = theirs(name)
    np.testing.assert_allclose(w, expected, rtol=0, atol=tolerance)
    if "l2" not in name and name != "Ridge":
        assert np.array_equal(w == 0, expected == 0)
        assert 0 < np.mean(w == 0) < 1
        zeros = np.all(expected == 0, axis=1) if expected.ndim > 1 else expected == 0
        np.testing.assert_allclose(overall, np.mean(zeros), rtol=1e-6)
    assert certificate <= tolerance


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_certificate_is_0_at_scikit_learns_solution_and_only_there(name):
    loss, penalty, y, _ = EXAMPLES[name]
    with jax.enable_x64(True):
        assert residual(loss, penalty, theirs(name), X, np.asarray(y)) < 1e-7
        assert residual(loss, penalty, 1.01 * theirs(name), X, np.asarray(y)) > 1e-4


@pytest.mark.parametrize("name", ["Lasso", "ElasticNet", "MultiTaskLasso", "LogisticRegression-l1"])
def test_at_max_strength_all_is_zero_and_just_below_it_is_not(name):
    loss, penalty, y, _ = EXAMPLES[name]
    with jax.enable_x64(True):
        zero = np.zeros((N, *np.shape(y)[1:]))
        largest = penalty.max_strength(jax.grad(loss)(zero, X, y))
        if name == "Lasso":
            np.testing.assert_allclose(
                largest, np.abs(X.T @ Y).max(), rtol=1e-12
            )  # in the source's units, lambda
        for factor, zeros in ((1.0001, True), (0.99, False)):
            first = factor * largest
            own = (
                ElasticNet(first, l2=40.0)
                if name == "ElasticNet"
                else type(penalty.penalty)(
                    first, **({"axis": -1} if name == "MultiTaskLasso" else {})
                )
            )
            w, *_ = solve(loss, own / M, y, np.float64, 1.0)
            assert (not w.any()) == zeros


def test_sparse_group_lasso_and_the_l1_ball_solve_the_same_problem_class():
    with jax.enable_x64(True):
        both = SparseGroupLasso(20.0, group=40.0, axis=-1) / M
        w, x, y = solve(squares, both, TASKS, np.float64, 1.0)
        assert both.certificate(w, jax.grad(squares)(w, x, y)) < 1e-10
        lasso = theirs("Lasso")
        w, *_ = solve(squares, L1Ball(np.abs(lasso).sum()), Y, np.float64, 1.0)
        np.testing.assert_allclose(w, lasso, atol=1e-9)


def test_a_lasso_of_positive_numbers_is_converted_and_nothing_else_positive():
    estimator = linear_model.Lasso(alpha=0.3, positive=True)
    assert from_sklearn(estimator) == NonNegativeL1(0.3)
    assert to_sklearn(NonNegativeL1(0.3), estimator="Lasso", num_examples=M) == {
        "alpha": 0.3,
        "positive": True,
    }
    net = NonNegativeElasticNet(0.125, l2=0.375)
    estimator = linear_model.ElasticNet(alpha=0.5, l1_ratio=0.25, positive=True)
    assert from_sklearn(estimator) == net
    given = to_sklearn(net, estimator="ElasticNet", num_examples=M)
    assert given == {"alpha": 0.5, "l1_ratio": 0.25, "positive": True}
    with pytest.raises(ValueError, match="LogisticRegression has no penalty"):
        to_sklearn(net, estimator="LogisticRegression", num_examples=M)
    with pytest.raises(ValueError, match="positive=True has no equal here"):
        from_sklearn(linear_model.Ridge(positive=True), num_examples=M)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_conversions_are_those_of_the_estimators(name):
    _, penalty, _, make = EXAMPLES[name]
    estimator = make()
    converted = from_sklearn(estimator, num_examples=M)
    w = jnp.float32(RNG.normal(size=(N, 3)))
    np.testing.assert_allclose(converted(w), penalty(w), rtol=1e-5)
    arguments = to_sklearn(penalty, estimator=name.split("-")[0], num_examples=M)
    given = estimator.get_params()
    for key, value in arguments.items():
        np.testing.assert_allclose(value, given[key], rtol=1e-6, err_msg=key)


def test_a_search_has_the_penalties_strengths_and_folds_of_the_estimator():
    found = from_sklearn(linear_model.LassoCV(positive=True, alphas=[0.1, 0.2], cv=3))
    assert found == ((NonNegativeL1(1.0),), {"strengths": [0.1, 0.2], "folds": 3})
    net = linear_model.ElasticNetCV(l1_ratio=[0.25, 1.0], positive=True, alphas=7)
    found = from_sklearn(net)
    nets = NonNegativeElasticNet(0.25, l2=0.75), NonNegativeElasticNet(1.0, l2=0.0)
    assert found == (nets, {"strengths": 7, "folds": 5})
    split = model_selection.PredefinedSplit([0, 1, 0, 1])
    found = from_sklearn(linear_model.MultiTaskLassoCV(cv=split))
    assert found.penalties == (GroupLasso(1.0, axis=-1),)
    np.testing.assert_array_equal(found.options["folds"], [0, 1, 0, 1])
    options = {"cv": model_selection.KFold(4), "scoring": "neg_log_loss", "solver": "saga"}
    logistic = linear_model.LogisticRegressionCV(Cs=3, l1_ratios=[0.0, 0.5, 1.0], **options)
    found = from_sklearn(logistic, num_examples=10)
    assert found.penalties == (L2(1.0), ElasticNet(0.5, l2=0.5), L1(1.0))
    np.testing.assert_allclose(found.options["strengths"], [1e3, 0.1, 1e-5])
    assert found.options["folds"] == 4


SHUFFLED = model_selection.KFold(5, shuffle=True)
SEARCHES = {
    "cv": lambda: from_sklearn(linear_model.LassoCV(cv=SHUFFLED)),
    "cv, splits": lambda: from_sklearn(linear_model.LassoCV(cv=[([0], [1]), ([1], [0])])),
    "cv, one": lambda: from_sklearn(linear_model.LassoCV(cv=1)),
    "cv.test_fold": lambda: from_sklearn(
        linear_model.LassoCV(cv=model_selection.PredefinedSplit([0, -1, 1]))
    ),
    "cv, by labels": lambda: from_sklearn(logistic(cv=5), num_examples=9),
    "scoring": lambda: from_sklearn(logistic(scoring="accuracy"), num_examples=9),
    "class_weight": lambda: from_sklearn(logistic(class_weight="balanced"), num_examples=9),
    "solver": lambda: from_sklearn(logistic(solver="liblinear"), num_examples=9),
    "Cs": lambda: from_sklearn(logistic(Cs=[-1.0]), num_examples=9),
    "l1_ratios": lambda: from_sklearn(logistic(l1_ratios=[2.0]), num_examples=9),
    "num_examples": lambda: from_sklearn(logistic()),
    "eps": lambda: from_sklearn(linear_model.LassoCV(eps=1e-2)),
    "alphas": lambda: from_sklearn(linear_model.LassoCV(alphas=2.5)),
    "alphas, negative": lambda: from_sklearn(linear_model.LassoCV(alphas=[1.0, -1.0])),
    "l1_ratio": lambda: from_sklearn(linear_model.ElasticNetCV(l1_ratio=[])),
}


def logistic(**settings):
    given = {"scoring": "neg_log_loss", "cv": model_selection.KFold(3), **settings}
    return linear_model.LogisticRegressionCV(**given)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_setting_that_cannot_be_carried_is_refused_by_name(name):
    with pytest.raises((ValueError, TypeError), match=f"`{name.split(',')[0]}` must be"):
        SEARCHES[name]()


def test_a_search_without_an_equal_is_refused():
    with pytest.raises(ValueError, match=r"RidgeCV has no equal here.*LassoCV"):
        from_sklearn(linear_model.RidgeCV())
