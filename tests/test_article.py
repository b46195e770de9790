"""The source article's objective on real data, against scikit-learn's solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, Ridge

from jax_lrreg import penalties, training

LAM = 100.0


def standardised():
    x, y = load_diabetes(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return {"x": x, "y": y - y.mean()}


def in_float32(data):
    return {name: values.astype(np.float32) for name, values in data.items()}


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2) / 2


def apply(params, x):
    return x @ params["w"]


def solve(penalty, steps=6000, rate=0.2):
    data = training.ArrayData(in_float32(standardised()), batch_size=442, shuffle=False)
    tx = optax.sgd(rate)
    state = training.init(apply, tx, key=jax.random.key(0), params={"w": jnp.zeros(10)})
    step = training.make_step(apply, loss_fn, tx, penalty=penalty)
    state, _ = training.fit(step, state, data, steps=steps, log_every=steps)
    return np.asarray(state.params["w"])


def test_l2_over_m_in_the_loss_reaches_ridge():
    data = standardised()
    ridge = Ridge(alpha=LAM, fit_intercept=False).fit(data["x"], data["y"])
    np.testing.assert_allclose(solve(penalties.L2(LAM) / 442), ridge.coef_, rtol=1e-4, atol=1e-3)


def test_l1_over_m_in_the_loss_approaches_lasso_without_exact_zeros():
    data = standardised()
    lasso = Lasso(alpha=LAM * 10 / 442, fit_intercept=False, tol=1e-10).fit(data["x"], data["y"])
    ours = solve(penalties.L1(LAM * 10) / 442)
    zeros = lasso.coef_ == 0
    assert zeros.sum() >= 2
    np.testing.assert_allclose(
        ours, lasso.coef_, atol=0.5
    )  # it jitters about zero by the rate times the strength
    assert not np.any(ours[zeros] == 0)


@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_prox_steps_reach_lasso_with_its_zeros(strength):
    data = standardised()
    penalty = penalties.L1(LAM * strength) / 442
    lasso = Lasso(alpha=LAM * strength / 442, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(
        data["x"], data["y"]
    )

    @jax.jit
    def step(_, w):
        gradient = jax.grad(lambda w: loss_fn(lambda x: x @ w, in_float32(data)))(w)
        return penalty.prox(w - 0.2 * gradient, 0.2)

    ours = np.asarray(jax.lax.fori_loop(0, 8000, step, jnp.zeros(10)))
    np.testing.assert_allclose(ours, lasso.coef_, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(ours == 0, lasso.coef_ == 0)
