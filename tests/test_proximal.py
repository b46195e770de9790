import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizers import KNOWN
from sklearn.linear_model import Lasso, MultiTaskLasso

from jax_lrreg import penalties, schedules, training, transforms

STEPS = 6000
RATE = schedules.Cosine(1e-2, steps=STEPS)


def lasso():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 40))
    true = np.zeros(40)
    true[:8] = rng.choice([-1, 1], 8) * rng.uniform(0.5, 3, 8)
    y = x @ true + 0.5 * rng.normal(size=200)
    x, y = x - x.mean(0), y - y.mean()
    return x, y, Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y).coef_


X, Y, COEF = lasso()


def gradient(w):
    return jax.grad(lambda w: jnp.mean((X.astype(np.float32) @ w - Y.astype(np.float32)) ** 2) / 2)(
        w
    )


def run(tx, steps=STEPS):
    def body(_, carry):
        w, state = carry
        updates, state = tx.update(gradient(w), state, w)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(40)
    return np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, steps, body, (w, tx.init(w)))[0])())


def test_the_problem_has_32_zeros():
    assert (COEF == 0).sum() == 32


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.sampled(5)
def test_reaches_the_lasso_with_its_exact_zeros(name):
    rate = RATE * {"adagrad": 50, "amsgrad": 10}.get(name, 1)
    w = run(transforms.proximal(KNOWN[name](RATE), penalties.L1(0.3), learning_rate=rate))
    np.testing.assert_array_equal(w == 0, COEF == 0)
    np.testing.assert_allclose(w, COEF, atol=2e-5)


def test_a_mean_in_bfloat16_reaches_the_zeros_and_the_rest_as_far_as_it_can_tell():
    tx = transforms.proximal(
        optax.adam(RATE, mu_dtype=jnp.bfloat16), penalties.L1(0.3), learning_rate=RATE
    )
    w = run(tx)
    np.testing.assert_array_equal(w == 0, COEF == 0)
    np.testing.assert_allclose(
        w, COEF, atol=0.3 * 2**-8 / (1 - 0.9)
    )  # changes below half a place are lost


def test_the_two_wrong_ways_give_no_zeros_or_another_solution():
    in_loss = run(optax.chain(transforms.add_penalty(penalties.L1(0.3)), optax.adam(RATE)))
    assert (in_loss == 0).sum() == 0

    def metric(state, rate):  # soft thresholding by the rate times the strength
        return rate

    thresholded = run(transforms.proximal(optax.adam(RATE), penalties.L1(0.3), RATE, metric=metric))
    assert np.abs(thresholded - COEF).max() > 0.1


def test_clipping_that_never_acts_goes_with_an_explicit_metric():
    adam = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(RATE))
    tx = transforms.proximal(
        adam, penalties.L1(0.3), RATE, metric=transforms.Metric(b2=0.999, eps=1e-8)
    )
    np.testing.assert_allclose(run(tx), COEF, atol=2e-5)


def test_an_explicit_metric_allows_traced_hyperparameters_and_a_sweep():
    def solve(strength, rate):
        tx = transforms.proximal(
            optax.adam(rate),
            penalties.L1(strength),
            rate,
            metric=transforms.Metric(b2=0.999, eps=1e-8),
        )

        def body(_, carry):
            w, state = carry
            updates, state = tx.update(gradient(w), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.zeros(40)
        return jax.lax.fori_loop(0, 500, body, (w, tx.init(w)))[0]

    strengths = jnp.array([0.1, 0.3, 1.0])
    batched = jax.jit(jax.vmap(solve, in_axes=(0, None)))(strengths, jnp.float32(0.01))
    for strength, w in zip(strengths, batched, strict=True):
        np.testing.assert_allclose(w, jax.jit(solve)(strength, 0.01), atol=1e-5)
    zeros = (np.asarray(batched) == 0).sum(1)
    assert zeros[0] <= zeros[1] <= zeros[2]


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "rmsprop, momentum", "centered"])
def test_complex_parameters_reach_the_optimum_with_their_exact_zeros(name):
    centered = lambda lr: optax.rmsprop(lr, eps=1e-6, centered=True)  # noqa: E731
    penalty, target = penalties.L1(1.0), jnp.array([3 - 4j, 0.3 + 0.4j, -2j, 0.5])
    rate = schedules.Cosine(0.05, steps=2000)
    inner = centered(rate) if name == "centered" else KNOWN[name](rate)
    tx = transforms.proximal(inner, penalty, rate * (10 if name == "amsgrad" else 1))

    def slope(w):
        return jax.grad(lambda w: jnp.sum(jnp.abs(w - target) ** 2) / 2)(w)

    def body(_, carry):
        w, state = carry
        updates, state = tx.update(jnp.conj(slope(w)), state, w)
        return optax.apply_updates(w, updates), state

    w = jnp.array([1 + 1j, 1 - 1j, 1j, -1])
    w = jax.jit(lambda w: jax.lax.fori_loop(0, 2000, body, (w, tx.init(w)))[0])(w)
    np.testing.assert_allclose(w, [4 * (3 - 4j) / 5, 0, -1j, 0], atol=3e-3)
    assert np.array_equal(w == 0, [False, True, False, True])
    assert penalty.certificate(w, slope(w)) < 0.03


def test_the_metric_goes_with_a_sweep_of_strengths():
    def solve(strength):
        tx = transforms.proximal(
            optax.adam(0.01), penalties.L1(strength), 0.01
        )  # measured while it is traced

        def body(_, carry):
            w, state = carry
            updates, state = tx.update(gradient(w), state, w)
            return optax.apply_updates(w, updates), state

        return jax.lax.fori_loop(0, 300, body, (jnp.zeros(40), tx.init(jnp.zeros(40))))[0]

    strengths = jnp.array([0.0, 0.3, 1.0])
    batched = jax.jit(jax.vmap(solve))(strengths)
    for strength, w in zip(strengths, batched, strict=True):
        np.testing.assert_allclose(w, jax.jit(solve)(strength), atol=1e-5)
    zeros = (np.asarray(batched) == 0).sum(1)
    assert zeros[0] == 0 < zeros[1] < zeros[2]


def test_a_strength_of_0_moves_exactly_as_without_and_has_a_derivative():
    params, grads = jnp.array([1.0, -2.0, 0.0]), jnp.array([0.5, 0.1, 0.0])

    def updated(strength):
        tx = transforms.proximal(optax.sgd(0.1), penalties.L1(strength), 0.1)
        return tx.update(grads, tx.init(params), params)[0]

    np.testing.assert_array_equal(
        updated(0.0), optax.sgd(0.1).update(grads, optax.sgd(0.1).init(params))[0]
    )
    near = (updated(1e-3) - updated(0.0)) / 1e-3
    np.testing.assert_allclose(near, [-0.1, 0.1, 0.0], atol=1e-3)
    np.testing.assert_allclose(jax.jacobian(updated)(1e-3), [-0.1, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(jax.jacobian(updated)(0.0), [-0.1, 0.1, 0.0], atol=1e-6)


def test_zeros_stay_exact_in_bfloat16():
    params = {"w": jnp.full(8, 0.37, jnp.bfloat16), "v": jnp.full(8, 0.37, jnp.float32)}
    tx = transforms.proximal(optax.adam(0.01), penalties.L1(5.0), learning_rate=0.01)
    state = tx.init(params)
    for _ in range(100):
        updates, state = tx.update(
            jax.tree.map(lambda p: (0.01 * p).astype(p.dtype), params), state, params
        )
        assert updates["w"].dtype == jnp.bfloat16
        params = optax.apply_updates(params, updates)
    assert not jnp.any(params["w"])
    assert not jnp.any(params["v"])


def test_what_is_not_selected_moves_exactly_as_without():
    params = {"kernel": jnp.linspace(-1, 1, 7), "bias": jnp.linspace(1, 2, 3)}
    grads = jax.tree.map(jnp.cos, params)
    plain = optax.adam(0.01)
    tx = transforms.proximal(plain, penalties.L1(10.0).on("kernel"), learning_rate=0.01)
    ours, _ = tx.update(grads, tx.init(params), params)
    theirs, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_array_equal(ours["bias"], theirs["bias"])
    assert not np.array_equal(ours["kernel"], theirs["kernel"])


@pytest.mark.parametrize("wrap", ["masked", "multi steps", "partition", "chain"])
def test_works_inside(wrap):
    inner = transforms.proximal(optax.adam(0.05), penalties.L1(1.0), learning_rate=0.05)
    tx = {
        "masked": optax.masked(inner, {"a": True, "b": False}),
        "multi steps": optax.MultiSteps(inner, 2).gradient_transformation(),
        "partition": optax.partition(
            {"prox": inner, "sgd": optax.sgd(0.1)}, {"a": "prox", "b": "sgd"}
        ),
        "chain": optax.chain(optax.clip_by_global_norm(10.0), inner),
    }[wrap]  # fmt: skip
    params = {"a": jnp.array([0.3, -2.0]), "b": jnp.array([0.3])}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = {"a": params["a"] - jnp.array([0.5, -3.0]), "b": params["b"] * 0.1}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(1500):
        params, state = step(params, state)
    np.testing.assert_allclose(params["a"], [0.0, -2.0], atol=1e-2)
    assert params["a"][0] == 0


def test_group_rows_under_adam():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 10))
    true = np.zeros((10, 3))
    true[:4] = rng.normal(size=(4, 3))
    y = x @ true + 0.1 * rng.normal(size=(100, 3))
    reference = (
        MultiTaskLasso(alpha=0.2, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x, y).coef_.T
    )
    x, y = x.astype(np.float32), y.astype(np.float32)
    lr = schedules.Cosine(1e-2, steps=4000)
    tx = transforms.proximal(optax.adam(lr), penalties.GroupLasso(0.2, axis=-1), lr)

    def body(_, carry):
        w, state = carry
        grads = jax.grad(lambda w: jnp.sum((x @ w - y) ** 2) / (2 * len(x)))(w)
        updates, state = tx.update(grads, state, w)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros((10, 3))
    w = np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, 4000, body, (w, tx.init(w)))[0])())
    np.testing.assert_allclose(w, reference, atol=1e-4)
    np.testing.assert_array_equal(np.all(w == 0, 1), np.all(reference == 0, 1))
    assert np.all(reference == 0, 1).sum() >= 4


def test_in_a_training_step_with_accumulation():
    def apply(params, x):
        return x @ params

    def loss_fn(model, batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2) / 2

    lr = schedules.Cosine(1e-2, steps=3000)
    tx = transforms.proximal(optax.adam(lr), penalties.L1(0.3), lr)
    data = training.ArrayData(
        {"x": X.astype(np.float32), "y": Y.astype(np.float32)}, 200, shuffle=False
    )
    step = training.make_step(apply, loss_fn, tx, accumulate=4, learning_rate=lr)
    state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(40))
    state, history = training.fit(step, state, data, steps=3000, log_every=1000)
    np.testing.assert_array_equal(np.asarray(state.params) == 0, COEF == 0)
    np.testing.assert_allclose(history["learning_rate"], lr(history["step"] - 1), rtol=1e-6)


SGD, L1 = optax.sgd(0.1), penalties.L1(0.1)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "`inner`", lambda: transforms.proximal(0.1, L1, 0.1)),
        (TypeError, "`penalty`", lambda: transforms.proximal(SGD, 0.1, 0.1)),
        (TypeError, "`learning_rate`", lambda: transforms.proximal(SGD, L1, None)),
        (ValueError, "`learning_rate`", lambda: transforms.proximal(SGD, L1, -1.0)),
        (TypeError, "`metric`", lambda: transforms.proximal(SGD, L1, 0.1, metric="adam")),
        (ValueError, "`b2`", lambda: transforms.Metric(b2=1.0)),
        (ValueError, "`eps`", lambda: transforms.Metric(eps=-1.0)),
        (ValueError, "`momentum`", lambda: transforms.Metric(momentum=1.5)),
        (
            ValueError,
            "positive at some",
            lambda: transforms.proximal(optax.sgd(0.0), L1, lambda _: 0.0),
        ),
    ],
)  # fmt: skip
def test_wrong_calls(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_a_penalty_without_a_prox_is_refused_by_name():
    tx = transforms.proximal(optax.sgd(0.1), penalties.L1(0.1) + penalties.L2(0.1), 0.1)
    with pytest.raises(ValueError, match="L1 and L2 both apply"):
        tx.init(jnp.ones(2))


def test_decay_family():
    params, grads = jnp.array([10.0, -0.1]), jnp.array([3.0, 0.01])

    def moved(*chain):
        tx = optax.chain(*chain)
        return optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])

    adam, rate = optax.scale_by_adam(), optax.scale_by_learning_rate(0.1)
    l2 = penalties.L2(0.2)
    clip = optax.clip_by_global_norm(1.0)
    np.testing.assert_allclose(
        moved(clip, transforms.add_penalty(l2), adam, rate), [9.9, 0.0], atol=1e-5
    )
    np.testing.assert_allclose(
        moved(clip, adam, transforms.add_penalty(l2), rate), [9.7, -0.198], atol=1e-5
    )
    independent = transforms.add_independent_penalty(penalties.L2(0.02))
    np.testing.assert_allclose(moved(clip, adam, rate, independent), [9.7, -0.198], atol=1e-5)
    np.testing.assert_allclose(
        moved(clip, adam, transforms.add_cautious_penalty(l2), rate), [9.7, -0.2], atol=1e-5
    )
    corrected = transforms.add_corrected_penalty(l2, schedules.Constant(0.1), peak_value=0.4)
    np.testing.assert_allclose(
        moved(clip, adam, corrected, rate), [9.9 - 0.05, -0.2 + 0.0005], atol=1e-5
    )


def test_independent_decay_follows_its_own_schedule():
    tx = transforms.add_independent_penalty(penalties.L2(0.1), schedules.Linear(1.0, steps=2))
    params, state = jnp.array([1.0]), None
    state = tx.init(params)
    for factor in (0.9, 0.95, 1.0):
        updates, state = tx.update(jnp.zeros(1), state, params)
        np.testing.assert_allclose(updates, factor - 1, atol=1e-6)


def test_updates_narrower_than_the_parameters_give_zeros():
    params, tx = (
        jnp.array([0.37, 0.123456, -0.2]),
        transforms.proximal(optax.sgd(0.1), penalties.L1(5.0), 0.1),
    )
    updates, _ = tx.update(jnp.zeros(3, jnp.bfloat16), tx.init(params), params)
    np.testing.assert_array_equal(optax.apply_updates(params, updates), np.zeros(3))


@pytest.mark.parametrize("make", [optax.sgd, optax.adam])
def test_none_is_no_parameter(make):
    params, tx = (
        {"a": jnp.array([1.0, 0.01]), "b": None},
        transforms.proximal(make(0.1), penalties.L1(1.0), 0.1),
    )
    alone = {"a": params["a"]}
    expected, _ = tx.update({"a": jnp.zeros(2)}, tx.init(alone), alone)
    updates, _ = tx.update({"a": jnp.zeros(2), "b": None}, tx.init(params), params)
    assert updates["b"] is None
    np.testing.assert_array_equal(updates["a"], expected["a"])


def test_what_has_no_gradient_is_not_moved():
    params, tx = (
        {"a": jnp.ones(2), "b": jnp.ones(1)},
        transforms.proximal(optax.sgd(0.1), penalties.L1(1.0), 0.1),
    )
    updates, _ = tx.update({"a": jnp.zeros(2), "b": None}, tx.init(params), params)
    assert updates["b"] is None
    np.testing.assert_allclose(updates["a"], [-0.1, -0.1], rtol=1e-6)


def test_an_edited_rate_of_inject_hyperparams_counts():
    params, tx = (
        jnp.array([1.0]),
        transforms.proximal(optax.inject_hyperparams(optax.sgd)(0.1), penalties.L1(1.0), 0.1),
    )
    state = tx.init(params)
    state.inner.hyperparams["learning_rate"] = jnp.asarray(0.01)
    np.testing.assert_allclose(tx.update(jnp.zeros(1), state, params)[0], [-0.01], rtol=1e-5)


def test_a_gradient_that_is_nan_is_no_error_of_the_prox():
    params, tx = jnp.ones(2), transforms.proximal(optax.adam(0.1), penalties.L1(1.0), 0.1)
    updates, _ = tx.update(jnp.array([jnp.nan, 0.0]), tx.init(params), params)
    assert jnp.isnan(updates[0])
    assert jnp.isfinite(updates[1])


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam])
def test_a_schedule_is_traced_a_few_times_however_often_the_optimizer_is_tried(optimizer):
    traces = 0

    def lr(step):
        nonlocal traces
        traces += 1
        return 0.1 / (1 + step)

    tx = transforms.proximal(optimizer(lr), penalties.L1(0.1), learning_rate=lr)
    params = {"w": jnp.ones(5)}
    jax.jit(tx.update).trace(params, tx.init(params), params)
    assert traces <= 8
