"""What a state, a step and a module refuse by name, and what of Flax and Optax they honour."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from models import apply, loss_fn, problem, start, zeros

from jax_lrreg import penalties, schedules, training, transforms

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
PLATEAU = schedules.ReduceOnPlateau(patience=3)
CUTS = schedules.ReduceOnPlateau(patience=0, factor=0.5)


def make(tx=SGD, loss=loss_fn, **options):
    return training.make_step(apply, loss, tx, **options)


class TestRate:
    COSINE = schedules.Cosine(0.1, steps=10)
    RIGHT = (
        (optax.adam(1e-3), 1e-3),
        (optax.adamw(COSINE), COSINE),
        (optax.nadam(0.1), 0.1),
        (optax.chain(optax.clip(1.0), optax.adam(COSINE)), COSINE),
        (optax.chain(optax.clip_by_global_norm(1e-2), optax.scale_by_learning_rate(0.1)), 0.1),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), 0.1),
        (optax.chain(optax.adam(0.1), transforms.scale_by_controller(PLATEAU)), 0.1),
        (optax.chain(transforms.scale_by_controller(schedules.LossDecay()), optax.sgd(0.1)), 0.1),
        (optax.chain(optax.sgd(0.1), transforms.scale_by_controller(CUTS)), 0.1),
        (optax.sign_sgd(0.1), 0.1),
        (optax.lion(0.1), 0.1),
        (optax.lamb(0.1), 0.1),
        (optax.chain(optax.adam(0.1), optax.scale(0.5)), 0.05),
        (optax.chain(optax.scale_by_adam(), optax.scale(0.5), optax.scale(-0.1)), 0.05),
        (optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(), 0.1),
        (transforms.proximal(optax.sgd(0.1), penalties.L1(0.1), learning_rate=0.1), 0.1),
    )
    WRONG = (
        (optax.adam(1e-3), 5e-2),
        (optax.adamw(1e-3), 1e-2),
        (optax.sgd(3e-3), 5e-2),
        (optax.sgd(0.1, momentum=0.9), 0.01),
        (optax.adam(COSINE), schedules.Cosine(0.2, steps=10)),
        (optax.adam(COSINE), 0.1),
        (optax.sgd(COSINE), schedules.Linear(0.1, steps=10)),
        (optax.chain(optax.clip(1.0), optax.adam(1e-3)), 1e-2),
        (optax.chain(optax.adam(0.1), optax.scale(0.5)), 0.1),
        (optax.rmsprop(0.1), 0.05),
        (optax.adagrad(0.1), 0.05),
        (optax.amsgrad(0.1), 0.05),
        (optax.inject_hyperparams(optax.adamw)(learning_rate=0.1), 0.05),
        (optax.chain(optax.scale_by_adam(), transforms.scale_by_learning_rate(COSINE)), 0.05),
        (optax.chain(optax.adam(0.1), transforms.scale_by_controller(PLATEAU)), 0.05),
    )
    # These treat parameters by their paths, so it takes the parameters to see their rate.
    BY_PATH = (
        optax.masked(SGD, True),
        optax.partition({"all": SGD}, "all"),
        optax.chain(transforms.add_penalty(penalties.L2(0.1)), SGD),
        optax.chain(SGD, transforms.scale_by_rules([("**", 1.0)])),
    )

    @pytest.mark.parametrize(("tx", "rate"), RIGHT)
    def test_one_that_may_be_the_optimizers_is_taken(self, tx, rate):
        make(tx, learning_rate=rate)

    @pytest.mark.parametrize(("tx", "rate"), WRONG)
    def test_another_one_is_refused(self, tx, rate):
        with pytest.raises(ValueError, match="`learning_rate` must be that of `tx`"):
            make(tx, learning_rate=rate)

    @pytest.mark.parametrize("tx", BY_PATH)
    def test_another_one_is_refused_at_the_first_call(self, tx):
        make(tx, learning_rate=0.1)(start(tx), problem())
        with pytest.raises(ValueError, match="`learning_rate` must be that of `tx`"):
            make(tx, learning_rate=0.05)(start(tx), problem())

    @pytest.mark.parametrize("given", [None, 0.1])
    def test_the_one_in_the_state_counts(self, given):
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        state = start(tx)
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(0.01)
        _, metrics = make(tx, learning_rate=given)(state, problem())
        np.testing.assert_allclose(metrics["learning_rate"], 0.01, rtol=1e-6)

    def test_one_that_the_optimizer_holds_is_reported_at_every_step(self):
        for scaled in (transforms.scale_by_learning_rate, optax.inject_hyperparams(optax.sgd)):
            tx = optax.chain(optax.clip_by_global_norm(1.0), scaled(learning_rate=self.COSINE))
            step, state = make(tx), start(tx)
            for index in range(4):
                state, metrics = step(state, problem())
                expected = self.COSINE(index)
                np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-5)


WRONG_STEPS = [
    (TypeError, r"`tx` must be an Optax .*got 'adam'; write optax\.adam", {"tx": "adam"}),
    (TypeError, "`tx` must be", {"tx": schedules.Constant(0.1)}),
    (TypeError, "`tx` must be", {"tx": None}),
    (TypeError, "`learning_rate` must be a number", {"learning_rate": penalties.L1(1)}),
    (TypeError, "`learning_rate` must be a number", {"learning_rate": penalties.NonNegative()}),
    (TypeError, "`learning_rate` must be a number", {"learning_rate": {"a": 1}}),
    (ValueError, "`learning_rate` must be one number", {"learning_rate": np.array([0.1, 0.2])}),
    (
        ValueError,
        "`learning_rate` must be one number",
        {"learning_rate": schedules.Constant(jnp.array([0.1, 0.2]))},
    ),
    (ValueError, "`ema` must be one number", {"ema": np.array([0.9, 0.99, 0.9])}),
    (TypeError, "`penalty` must be a Penalty", {"penalty": penalties.L1}),
    (ValueError, "`penalty` must be finite", {"penalty": penalties.MaxNorm(1.0)}),
    (
        ValueError,
        "`penalty` must be finite",
        {"penalty": penalties.L2(0.1).on("b") + penalties.NonNegativeL1(1.0).on("w")},
    ),
    (ValueError, "did you mean 'grad_norm'", {"monitors": ("gradnorm",)}),
    (ValueError, "did you mean 'skip'", {"on_nonfinite": "skipp"}),
]


@pytest.mark.parametrize(("error", "words", "options"), WRONG_STEPS)
def test_a_step_refuses_wrong_arguments_when_it_is_made(error, words, options):
    with pytest.raises(error, match=words):
        make(**options)


@pytest.mark.parametrize(
    "constraint", [penalties.MaxNorm(1.0), penalties.NonNegative(), penalties.NonNegativeL1(1.0)]
)
def test_a_constraint_made_of_hyperparameters_is_refused(constraint):
    step = make(penalty=lambda hyper: constraint)
    with pytest.raises(ValueError, match="`penalty` must be finite"):
        step(start(SGD, hyper=1.0), problem())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (optax.adam(0.1), SGD),
        (SGD, optax.adam(0.1)),
        (optax.sgd(0.1, momentum=0.9), optax.adam(0.1)),
        (optax.sgd(schedules.Constant(0.1)), SGD),
    ],
)
def test_the_state_of_another_optimizer_is_refused_by_its_name(theirs, ours):
    with pytest.raises(ValueError, match=r"`state.opt_state` must be that of this step's optimi"):
        make(ours)(start(theirs), problem())
    with pytest.raises(ValueError, match=r"`state.opt_state` must be that of this step's optimi"):
        training.fit(make(ours), start(theirs), [problem()] * 2, steps=2)


WRONG_PARAMS = [
    (TypeError, "params", "w"),
    (TypeError, "params/w", {"w": "text"}),
    (TypeError, "params/f", {"w": 1.0, "f": jnp.tanh}),
    (TypeError, "params/k", {"w": 1.0, "k": jax.random.PRNGKey(0)}),
    (TypeError, "params/k", {"w": 1.0, "k": KEY}),
    (ValueError, "params/w", {"w": np.array([1.0, np.nan]), "b": 0.0}),
    (ValueError, "params/w", {"w": jnp.array([1.0, jnp.inf]), "b": 0.0}),
]


@pytest.mark.parametrize(("error", "name", "params"), WRONG_PARAMS)
def test_init_refuses_a_parameter_by_its_path(error, name, params):
    with pytest.raises(error, match=f"init: `{name}` must be"):
        start(SGD, params)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), jax.random.split(KEY, 3), 0, None])
def test_init_refuses_what_is_no_single_typed_key(key):
    with pytest.raises(ValueError, match="init: `key` must be a single typed PRNG key"):
        training.init(apply, SGD, key=key, params=zeros())


def test_a_class_and_a_tree_of_its_own_parameters_are_told_apart_from_a_function():
    for call in (
        lambda: training.init(nn.Dense, SGD, key=KEY, example=jnp.ones((1, 2))),
        lambda: training.make_step(nn.Dense, loss_fn, SGD),
        lambda: training.make_eval(nnx.Linear, loss_fn, []),
        lambda: training.mixed_precision(nn.Dense, jnp.bfloat16),
    ):
        with pytest.raises(TypeError, match=r"`module` must be made, got the class (Dense|Linear)"):
            call()
    model = jax.tree_util.Partial(jnp.add, 1.0)  # a tree that can be called, as Equinox's modules
    with pytest.raises(TypeError, match=r"init\(lambda params, x: params\(x\)"):
        training.init(model, SGD, key=KEY)


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("params/bias", {"kernel": np.ones((3, 1))}),
        ("params/bias", {"params": {"kernel": np.ones((3, 1)), "bias": np.ones(1)}}),
        ("params/kernel", {"kernel": np.ones((4, 1)), "bias": np.ones(1)}),
    ],
)
def test_init_refuses_the_parameters_of_another_module(name, params):
    for module in (nn.Dense(1), nnx.Linear(3, 1, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=f"init: `{name}` must be"):
            training.init(module, SGD, key=KEY, example=np.ones((2, 3)), params=params)
    inner = {"Dense_0": params}
    with pytest.raises(ValueError, match=f"init: `{name.replace('/', '/Dense_0/', 1)}` must be"):
        training.init(Line(), SGD, key=KEY, example=np.ones((2, 3)), params=inner)


@pytest.mark.parametrize("rate", [penalties.L1(1.0), "a", -1.0, np.ones(2), optax.sgd(0.1)])
def test_a_rate_made_of_hyperparameters_is_refused_like_one_that_is_given(rate):
    step = make(optax.adabelief, learning_rate=lambda hyper: rate)
    with pytest.raises((TypeError, ValueError), match="make_step: `learning_rate` must be"):
        step(start(optax.adabelief, hyper=0.1), problem())


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("y", [0.0] * 16),
        ("y", "text"),
        ("y", np.array(["a"] * 16)),
        ("y", [1, 2]),
        ("mask", [1.0] * 16),
        ("mask", jnp.array([1.0] * 15 + [-1.0])),
        ("mask", jnp.array([1.0] * 15 + [jnp.nan])),
    ],
)
def test_a_step_and_an_evaluation_refuse_what_is_no_array_by_its_name(name, leaf):
    batch, state = {**problem(16), name: leaf}, start(SGD)
    evaluate = training.make_eval(apply, lambda model, batch: {"x": batch["x"].sum()}, [batch])
    calls = (lambda: make()(state, batch), lambda: evaluate(state))
    for call in (*calls, lambda: training.fit(make(), state, [batch], steps=1)):
        with pytest.raises(ValueError, match=rf"'{name}'"):
            call()


def test_a_batch_is_refused_by_the_name_of_the_leaf_that_does_not_fit():
    batch = {**problem(16), "scale": np.ones(2, np.float32)}
    for accumulate in (1, 2):
        with pytest.raises(ValueError, match="'scale'"):
            make(accumulate=accumulate)(start(SGD), batch)


@pytest.mark.parametrize("mask", [np.ones(6), np.array([1, 1, 1, 1, 1, 1, 1, -2.0])])
def test_a_mask_of_the_wrong_length_or_below_0_is_refused(mask):
    batch = {**problem(8), "mask": mask.astype(np.float32)}
    with pytest.raises(ValueError, match="mask"):
        make(accumulate=2)(start(SGD), batch)


def test_scalars_and_keys_are_shared_by_the_micro_batches():
    def loss(model, batch):
        assert batch["key"].shape == batch["scale"].shape == ()
        return batch["scale"] * loss_fn(model, batch)

    batch = {**problem(16), "scale": np.float32(3), "key": KEY}
    whole, split = (make(loss=loss, accumulate=k)(start(SGD), batch) for k in (1, 4))
    np.testing.assert_allclose(whole[1]["loss"], split[1]["loss"], rtol=1e-5)


class Drop(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        self.sow("intermediates", "hidden", x)
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))[:, 0]


class TestLinen:
    def run(self, call):
        seen = []

        def loss(model, batch):
            seen.append(call(model, batch["x"]))
            output = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
            return jnp.mean((output - batch["y"]) ** 2)

        batch, module = problem(), Drop()
        state = training.init(module, SGD, key=KEY, example=batch["x"])
        before = jax.device_get(state.model_state)
        state, metrics = training.make_step(module, loss, SGD)(state, batch)
        carried = not np.array_equal(*(jax.tree.leaves(x)[0] for x in (before, state.model_state)))
        return seen[0], carried, float(metrics["loss"])

    def test_a_key_that_is_given_goes_before_ours(self):
        one, same, other = (
            self.run(lambda m, x, k=k: m(x, rngs={"dropout": jax.random.key(k)}))[2]
            for k in (5, 5, 6)
        )
        assert one == same != other

    def test_mutable_is_flaxs(self):
        assert self.run(lambda m, x: m(x))[1]
        for mutable, names in (
            (True, {"batch_stats", "params", "intermediates"}),
            (["batch_stats"], {"batch_stats"}),
            ("batch_stats", {"batch_stats"}),
            (["intermediates"], {"intermediates"}),
        ):
            output, carried, _ = self.run(lambda m, x, mutable=mutable: m(x, mutable=mutable))
            assert carried
            assert set(output[1]) == names
        output, carried, _ = self.run(lambda m, x: m(x, train=False, mutable=False))
        assert not isinstance(output, tuple)
        assert not carried

    def test_captured_intermediates_are_returned(self):
        output, _, _ = self.run(lambda m, x: m(x, capture_intermediates=True))
        assert set(output[1]) == {"intermediates"}

    def test_keyword_inputs_alone_are_an_example(self):
        class Named(nn.Module):
            @nn.compact
            def __call__(self, *, tokens, scale=1.0):
                return nn.Dense(1)(tokens * scale)

        state = training.init(Named(), SGD, key=KEY, example_kwargs={"tokens": jnp.ones((2, 3))})
        assert "Dense_0" in state.params
        with pytest.raises(TypeError, match="`example` or `example_kwargs`"):
            training.init(Named(), SGD, key=KEY)

    def test_frozen_dicts_become_what_is_there(self):
        batch, module = problem(), Drop()
        state = training.init(module, optax.adam(0.1), key=KEY, example=batch["x"])
        frozen = {"model_state": state.model_state, "params": state.params}
        state = state.replace(
            **jax.tree.map(jnp.copy, {k: flax.core.freeze(v) for k, v in frozen.items()})
        )
        step = training.make_step(module, loss_fn, optax.adam(0.1))
        for _ in range(2):
            state, metrics = step(state, batch)
        assert metrics["skipped"] == 0


class TakesRngs(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.last(self.drop(nnx.relu(self.first(x)), rngs=rngs))[:, 0]


def test_an_nnx_module_that_takes_rngs_gets_new_ones_at_each_call():
    module, seen = TakesRngs(nnx.Rngs(0)), []

    def loss(model, batch):
        assert model.first.kernel.shape == (3, 8)  # its attributes are there
        return jnp.mean((model(batch["x"]) - model(batch["x"])) ** 2)

    state = training.init(module, optax.sgd(0.0), key=KEY)
    step = training.make_step(module, loss, optax.sgd(0.0))
    for _ in range(3):
        state, metrics = step(state, problem())
        seen.append(float(metrics["loss"]))
    assert len(set(seen)) == 3
    assert min(seen) > 0
    fixed = training.make_step(
        module, lambda m, b: jnp.mean(m(b["x"], nnx.Rngs(3)) ** 2), optax.sgd(0.0)
    )
    losses = [float(fixed(state.copy(), problem())[1]["loss"]) for _ in range(2)]
    assert losses[0] == losses[1]
    evaluate = training.make_eval(module, lambda m, b: {"v": m(b["x"]).mean()}, [problem()])
    assert evaluate(state) == evaluate(state)


def test_a_state_goes_through_flaxs_bytes_with_its_keys_and_hyperparameters():
    def tx(hyper):
        return optax.adam(hyper["lr"])

    hyper = {"lr": schedules.Cosine(0.1, steps=5), "reg": penalties.L1(0.1)}
    step = make(tx, ema=0.9)
    state, _ = step(start(tx, hyper=hyper), problem())
    written, other = serialization.to_bytes(state), start(tx, hyper=hyper)
    with pytest.raises(ValueError, match=r"average.*step\.complete\(state\) adds an average"):
        serialization.from_bytes(other, written)
    back = serialization.from_bytes(step.complete(other), written)
    (one, first), (two, second) = step(back, problem()), step(state, problem())
    assert first["loss"] == second["loss"]
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    with pytest.raises(ValueError, match=r"`target` must be that of the bytes: .*mu"):
        serialization.from_bytes(start(SGD), serialization.to_bytes(start(optax.adam(0.1))))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (nn.Dense(2), {"example": jnp.ones((1, 3))}),
        (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), {}),
        (lambda params, x: x @ params, {"params": jnp.ones((3, 2))}),
    ],
    ids=["linen", "nnx", "function"],
)
def test_mixed_precision_predicts_by_apply(module, options):
    mixed = training.mixed_precision(module, jnp.bfloat16)
    state = training.init(mixed, SGD, key=KEY, **options)
    output = mixed.apply(training.merge(mixed, state), jnp.ones((4, 3)))
    assert output.shape == (4, 2)
    assert output.dtype == jnp.float32
    with pytest.raises(TypeError, match=r"module.apply\(training.merge\(module, state\), x\)"):
        mixed(jnp.ones((4, 3)))


def test_a_state_and_a_step_print_in_a_line():
    params = {f"layer_{i}": {"kernel": jnp.ones((30, 40))} for i in range(20)}
    state = training.init(lambda p, x: x, optax.adam(0.1), key=KEY, params=params)
    assert len(repr(state)) < 400
    step = make(penalty=penalties.L2(0.1), accumulate=2)
    assert repr(step) == "Step(apply, loss_fn, penalty=L2(0.1), accumulate=2)"


def test_a_field_that_is_none_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'params'"):
        start(SGD).replace(parms=1.0)
