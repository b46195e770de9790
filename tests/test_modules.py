"""What modules need: their own arguments, what they sow, and wrong calls refused by name."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import penalties, schedules, training, transforms

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
DATA = training.ArrayData(X, 8, jax.random.key(1))
KEY = jax.random.key(0)


class Sows(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        self.sow("losses", "hidden", x)
        return nn.Dense(1)(nn.Dropout(0.1, deterministic=not train)(x))


class NeedsTrain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        if train:  # a Python branch: `train` must not be traced
            x = 2 * x
        return nn.Dense(1)(x)


class Holds(nn.Module):
    number: float

    @nn.compact
    def __call__(self, x, unhashed=None):
        self.variable("held", "number", lambda: jnp.asarray(self.number))
        return nn.Dense(len(unhashed or [1]))(x)


def test_a_second_start_of_a_module_compiles_nothing(compilations):
    def start(module, key, x, **others):
        options = {"example": x, "example_kwargs": others}
        return training.init(module, optax.sgd(0.1), key=jax.random.key(key), **options)

    module = Holds(1)
    first = start(module, 0, X[:1])
    compilations.clear()
    second = start(module, 1, X[:1])
    assert not compilations
    assert not jnp.array_equal(*(s.params["Dense_0"]["kernel"] for s in (first, second)))
    assert start(module, 0, X[:1, :2]).params["Dense_0"]["kernel"].shape == (2, 1)
    assert start(module, 0, X[:1], unhashed=[]).params["Dense_0"]["kernel"].shape == (4, 1)
    # Equal by its field, and still another one.
    assert Holds(True) == module
    kinds = [start(Holds(x), 0, X[:1]).model_state["held"]["number"].dtype for x in (True, 1.0)]
    assert kinds == [bool, jnp.float32]
    assert first.model_state["held"]["number"].dtype == jnp.int32


def test_inputs_that_steer_python_may_be_positional_or_named():
    state = training.init(NeedsTrain(), optax.sgd(0.1), key=KEY, example=(X[:1], True))
    named = training.init(
        NeedsTrain(), optax.sgd(0.1), key=KEY, example=X[:1], example_kwargs={"train": False}
    )
    chex.assert_trees_all_equal(state.params, named.params)


def test_what_is_sown_is_no_state_and_reaches_the_loss():
    module, tx = Sows(), optax.adam(1e-2)
    state = training.init(module, tx, key=KEY, example=X[:1], example_kwargs={"train": True})
    assert set(state.model_state) == {"batch_stats"}
    seen = []

    def loss_fn(model, batch):
        output, sown = model(batch, train=True, mutable=["losses"])
        seen.append(jax.tree.map(jnp.shape, sown))
        activity = penalties.activity_penalty(
            penalties.L1(0.1), sown["losses"], batch_size=len(batch)
        )
        return jnp.mean(output**2) + activity, {"activity": activity}

    step = training.make_step(module, loss_fn, tx)
    state, history = training.fit(step, state, DATA, steps=40, log_every=20)
    assert seen[0] == {"losses": {"hidden": ((8, 8),)}}, "sown once"
    assert history["activity"][1] < history["activity"][0]
    assert np.abs(state.model_state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0, (
        "the statistics are carried"
    )

    plain = training.make_step(
        module, lambda model, batch: jnp.mean(model(batch, train=True) ** 2), tx
    )
    training.fit(plain, state, DATA, steps=2)


def test_multi_steps_is_refused_with_the_way_out():
    with pytest.raises(
        TypeError, match=r"transforms.mean_value, or its own gradient_transformation"
    ):
        training.init(lambda p, x: x, optax.MultiSteps(optax.sgd(0.1), 2), key=KEY, params=1.0)
    tx = transforms.mean_value(optax.MultiSteps(optax.sgd(0.1), 2))
    training.init(lambda p, x: x, tx, key=KEY, params=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model, x: model(x).mean(),
        lambda model, x: {"error": model(x)[..., 0]},
        lambda model, x: {"error": 1j * model(x).mean()},
        lambda model, x: {"error": "low"},
        lambda model, x: {"error": None},
    ],
)
def test_metrics_that_are_no_means_are_refused(wrong):
    state = training.init(lambda p, x: x * p, optax.sgd(0.1), key=KEY, params=1.0)
    with pytest.raises(
        ValueError,
        match=r"`metrics_fn` must be a function that returns \{name: mean over the batch\}",
    ):
        training.make_eval(lambda p, x: x * p, wrong, DATA)(state)


def test_evaluation_of_padded_data_has_a_mask_of_ones():
    data = training.ArrayData({"x": X[:5]}, 2, KEY, remainder="pad")
    state = training.init(lambda p, x: x * p, optax.sgd(0.1), key=KEY, params=1.0)
    evaluate = training.make_eval(
        lambda p, x: x * p, lambda model, b: {"share": b["mask"].mean()}, data
    )
    assert evaluate(state) == {"share": 1.0}


def apply(params, x):
    return x * params


def loss(model, batch):
    return jnp.mean(jnp.abs(model(batch) - (1 + 1j)) ** 2)


def test_complex_parameters_go_downhill_and_decay():
    tx = optax.sgd(0.1)
    step = training.make_step(apply, loss, tx, penalty=penalties.L2(0.5), donate=False)
    state = training.init(apply, tx, key=KEY, params=jnp.complex64(0.3 - 2j))
    for _ in range(200):
        state, metrics = step(state, jnp.ones(4))
    np.testing.assert_allclose(
        state.params, (1 + 1j) / 1.25, rtol=1e-4
    )  # 2 (w - 1 - i) + w / 2 = 0
    assert metrics["skipped"] == 0


def test_a_rate_that_is_not_finite_is_skipped():
    lr = optax.polynomial_schedule(
        1e-2, 0.0, power=0.9, transition_steps=1000
    )  # nan at its end, jitted
    assert np.isnan(jax.jit(lr)(1000))
    tx = optax.sgd(lr)
    step = training.make_step(apply, lambda model, x: jnp.mean(model(x) ** 2), tx, learning_rate=lr)
    state = training.init(apply, tx, key=KEY, params=jnp.float32(1))
    state, history = training.fit(
        step, state, training.ArrayData(np.ones(8, np.float32), 4, KEY), steps=1005
    )
    assert history["skipped"][-1] == 5
    assert np.isfinite(state.params)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "`loss_fn` must be a function", {"loss_fn": 3}),
        (TypeError, "`penalty` must be a Penalty", {"penalty": schedules.Linear(0.1, steps=3)}),
        (ValueError, "`hyper` must be given, because `penalty`", {"penalty": lambda hyper: 0.1}),
        (TypeError, "`learning_rate` must be a number >= 0", {"learning_rate": "a"}),
        (ValueError, "`learning_rate` must be a number >= 0", {"learning_rate": -0.1}),
        (TypeError, "`monitors` must be a tuple of names", {"monitors": "grad_norm"}),
    ],
)
def test_wrong_arguments_of_a_step_are_refused_by_name(error, words, arguments):
    def make_and_run(loss_fn=loss, **options):
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), **options)
        step(training.init(apply, optax.sgd(0.1), key=KEY, params=jnp.complex64(1)), jnp.ones(4))

    with pytest.raises(error, match=words):
        make_and_run(**arguments)


def test_an_optax_schedule_beside_hyperparameters_is_told_what_to_do():
    lr = optax.cosine_decay_schedule(0.1, 10)
    step = training.make_step(apply, loss, lambda hyper: optax.sgd(hyper["x"]), learning_rate=lr)
    state = training.init(
        apply, lambda hyper: optax.sgd(hyper["x"]), key=KEY, params=1j, hyper={"x": 0.1}
    )
    with pytest.raises(TypeError) as caught:
        step(state, jnp.ones(4))
    assert "schedules.Function" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("make an ArrayData of arrays", {"data": {"x": X}}),
        ("make an ArrayData of arrays", {"data": X}),
        (
            r"`eval_fn` must be a function that returns \{name: number\}",
            {"eval_fn": lambda state: 1.0},
        ),
        (
            r"`eval_fn` must be a function that returns \{name: number\}",
            {"eval_fn": lambda state: {"error": X}},
        ),
        ("`loggers` must be a list of functions", {"loggers": print}),
    ],
)
def test_wrong_arguments_of_a_loop_are_refused_by_name(words, options):
    step = training.make_step(apply, lambda model, x: jnp.mean(model(x) ** 2), optax.sgd(0.1))
    state = training.init(apply, optax.sgd(0.1), key=KEY, params=1.0)
    with pytest.raises(TypeError, match=words):
        training.fit(step, state, **{"data": DATA, "steps": 2, **options})
