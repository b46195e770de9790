"""Mixed precision: what has few bits, what stays float32, and what a loss scale does."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from models import loss_fn
from models import two_layers as apply

from jax_lrreg import penalties, training, transforms

HALVES = [jnp.bfloat16, jnp.float16]


def problem(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(32, 4)).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1))}, models.two_layers_params(seed + 1)


def train(module, tx, steps=60, loss=loss_fn, batch=None, **options):
    data, params = problem()
    start = (
        {"params": params}
        if not isinstance(module, nn.Module | nnx.Module)
        else {"example": data["x"]}
    )
    state = training.init(module, tx, key=jax.random.key(0), **start)
    step = training.make_step(module, loss, tx, **options)
    for _ in range(steps):
        state, metrics = step(state, data if batch is None else batch)
    return state, metrics


def dtypes(tree):
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        seen = self.variable("seen", "dtype_bits", lambda: jnp.zeros((), jnp.int32))
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        seen.value = jnp.int32(jnp.finfo(x.dtype).bits)
        return nn.Dense(1, dtype=jnp.float32)(nn.relu(x))[:, 0]


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, dtype=jnp.bfloat16, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def encode(self, x):
        return self.norm(self.first(x))

    def __call__(self, x):
        x = self.encode(x)
        self.seen[...] = jnp.int32(jnp.finfo(x.dtype).bits)
        return self.last(nnx.relu(x))[:, 0]


class TestMixedPrecision:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_computes_in_few_bits_and_keeps_everything_in_float32(self, dtype):
        seen = []

        def watched(params, x):
            output = apply(params, x)
            seen.append((x.dtype, params["first"].dtype, output.dtype))
            return output

        def loss(model, batch):
            output = model(batch["x"])
            assert output.dtype == jnp.float32
            return jnp.mean((output - batch["y"]) ** 2)

        module = training.mixed_precision(watched, dtype)
        state, metrics = train(
            module, optax.adam(0.01), loss=loss, penalty=penalties.L2(1e-3), ema=0.9
        )
        assert set(seen) == {(jnp.dtype(dtype),) * 3}
        assert dtypes(state) == {"float32"}
        assert dtypes(metrics) == {"float32"}
        full, expected = train(apply, optax.adam(0.01), penalty=penalties.L2(1e-3), ema=0.9)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)
        np.testing.assert_allclose(state.params["first"], full.params["first"], atol=0.05)
        assert not np.array_equal(state.params["first"], full.params["first"])

    @pytest.mark.parametrize("make", [Net, lambda: NnxNet(nnx.Rngs(0))], ids=["linen", "nnx"])
    def test_statistics_of_normalization_stay_float32(self, make):
        module = training.mixed_precision(make(), jnp.bfloat16)
        data, _ = problem()
        state = training.init(module, optax.adam(0.01), key=jax.random.key(0), example=data["x"])
        step = training.make_step(module, loss_fn, optax.adam(0.01), accumulate=2)
        first = None
        for _ in range(60):
            state, metrics = step(state, data)
            first = metrics["loss"] if first is None else first
        assert metrics["loss"] < 0.5 * first
        assert dtypes(state) == {"float32"}
        bits = [
            x for x in jax.tree.leaves(state.model_state) if x.dtype == jnp.int32 and x.ndim == 0
        ]
        assert 16 in bits
        merged = training.merge(module, state)
        assert dtypes(nnx.state(merged) if isinstance(merged, nnx.Module) else merged) == {
            "float32"
        }

    def test_the_running_means_are_near_those_of_full_precision(self):
        half, _ = train_linen(training.mixed_precision(Net(), jnp.bfloat16))
        full, _ = train_linen(Net())
        ours, theirs = half.model_state["batch_stats"], full.model_state["batch_stats"]
        chex.assert_trees_all_close(ours, theirs, atol=0.03)

    def test_a_layer_with_a_dtype_of_its_own_computes_in_that(self):
        class Wide(nn.Module):
            @nn.compact
            def __call__(self, x):
                y = nn.Dense(8, dtype=jnp.float32)(x)
                assert (x.dtype, y.dtype) == (jnp.bfloat16, jnp.float32)
                return nn.Dense(1)(y.astype(x.dtype))[:, 0]

        module = training.mixed_precision(Wide(), jnp.bfloat16)
        data, _ = problem()
        state = training.init(
            module,
            optax.sgd(0.1),
            key=jax.random.key(0),
            example=jnp.asarray(data["x"], "bfloat16"),
        )
        _, metrics = training.make_step(module, loss_fn, optax.sgd(0.1))(state, data)
        assert metrics["skipped"] == 0

    def test_integers_keys_and_numbers_go_in_as_they_are(self):
        def model(params, index, key, scale, mask):
            assert index.dtype == jnp.int32
            assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            assert isinstance(scale, float)
            assert mask.dtype == jnp.bool_
            return {"output": params[index] * scale, "index": index}

        module = training.mixed_precision(model, jnp.bfloat16)
        state = training.init(
            module, optax.sgd(0.1), key=jax.random.key(0), params=np.ones(5, np.float32)
        )

        def loss(model, batch):
            output = model(batch, jax.random.key(0), 300.0, mask=batch > 0)
            assert output["index"].dtype == jnp.int32
            return jnp.mean(output["output"])

        state, _ = training.make_step(module, loss, optax.sgd(1e-3))(
            state, jnp.array([0, 1], jnp.int32)
        )
        np.testing.assert_allclose(state.params, [0.85, 0.85, 1, 1, 1], rtol=1e-2)

    def test_methods_of_an_nnx_module_are_cast_too(self):
        module = training.mixed_precision(NnxNet(nnx.Rngs(0)), jnp.bfloat16)
        state = training.init(module, optax.sgd(0.1), key=jax.random.key(0))

        def loss(model, batch):
            code = model.encode(batch["x"])
            assert code.dtype == jnp.float32
            assert model.last.kernel.dtype == jnp.bfloat16
            return jnp.mean(code**2)

        training.make_step(module, loss, optax.sgd(0.1))(state, problem()[0])

    def test_evaluates_in_the_same_dtype(self):
        module = training.mixed_precision(apply, jnp.bfloat16)
        data, params = problem()
        state = training.init(module, optax.sgd(0.1), key=jax.random.key(0), params=params)
        evaluate = training.make_eval(
            module, lambda model, batch: {"mean": model(batch["x"]).mean()}, [data]
        )
        half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (params, data["x"]))
        expected = jax.jit(lambda *args: apply(*args).astype(jnp.float32).mean())(*half)
        np.testing.assert_allclose(evaluate(state)["mean"], expected, rtol=1e-6)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_parameters_of_few_bits_with_a_copy_train_as_those_of_float32(self, dtype):
        module = training.mixed_precision(apply, dtype, param_dtype=dtype)
        tx = transforms.master_weights(optax.adam(1e-3))
        state, metrics = train(module, tx, steps=200, ema=0.99)
        assert dtypes(state.params) == {jnp.dtype(dtype).name}
        assert dtypes(state.opt_state) == {"float32"}
        assert dtypes(state.average) == {"float32"}
        _, expected = train(apply, optax.adam(1e-3), steps=200)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)

    @pytest.mark.parametrize("dtype", [int, "text", None, jnp.int8])
    def test_refuses_what_is_no_floating_dtype(self, dtype):
        with pytest.raises(TypeError, match="`compute_dtype` must be a floating dtype"):
            training.mixed_precision(apply, dtype)
        if dtype is not None:
            with pytest.raises(TypeError, match="`param_dtype` must be a floating dtype"):
                training.mixed_precision(apply, jnp.bfloat16, param_dtype=dtype)


def train_linen(module):
    data, _ = problem()
    state = training.init(module, optax.adam(0.01), key=jax.random.key(0), example=data["x"])
    step = training.make_step(module, loss_fn, optax.adam(0.01))
    for _ in range(40):
        state, metrics = step(state, data)
    return state, metrics


class TestMasterWeights:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_the_parameters_are_the_rounded_copy_exactly(self, dtype):
        rng = np.random.default_rng(0)
        params = jnp.asarray(rng.normal(size=400) * 10.0 ** rng.uniform(-6, 3, 400), dtype)
        tx = transforms.master_weights(optax.sgd(1.0))
        state = tx.init(params)
        update = jax.jit(tx.update)
        for turn in range(20):
            gradient = rng.normal(size=400) * 10.0 ** rng.uniform(-8, 3, 400)
            if turn % 2:  # falls to a tiny part of itself, or to zero
                gradient = np.asarray(state.master) * (
                    1 - 10.0 ** rng.uniform(-9, -1, 400) * (rng.random(400) < 0.9)
                )
            updates, state = update(jnp.asarray(gradient, jnp.float32), state, params)
            params = optax.apply_updates(params, updates)
            assert params.dtype == dtype
            np.testing.assert_array_equal(params, state.master.astype(dtype))

    def test_small_updates_add_up(self):
        params = {"w": jnp.ones(3, jnp.bfloat16)}
        state = training.init(
            lambda p: p["w"], optax.identity(), key=jax.random.key(0), params=params
        )
        results = []
        for tx in (optax.sgd(1e-4), transforms.master_weights(optax.sgd(1e-4))):
            state = state.replace(params=params, opt_state=tx.init(params))
            step = training.make_step(lambda p: p["w"], lambda model, _: model().sum(), tx)
            new = state.copy()
            for _ in range(1000):
                new, _ = step(new, None)
            results.append(float(new.params["w"][0]))
        assert results[0] == 1.0
        np.testing.assert_allclose(results[1], 0.9, atol=0.004)

    def test_leaves_of_32_bits_are_updated_as_without_it(self):
        params = {"half": jnp.ones(3, jnp.bfloat16), "full": jnp.linspace(0.1, 1.7, 5)}
        plain, tx = optax.adam(0.01), transforms.master_weights(optax.adam(0.01))
        state, other = tx.init(params), plain.init(params["full"])
        assert state.master["full"] is None
        gradients = jax.tree.map(jnp.cos, params)
        for _ in range(3):
            updates, state = tx.update(gradients, state, params)
            expected, other = plain.update(gradients["full"], other, params["full"])
            np.testing.assert_allclose(updates["full"], expected, rtol=1e-6)

    def test_a_parameter_set_from_outside_is_where_the_copy_goes_on(self):
        params, tx = jnp.ones(2, jnp.bfloat16), transforms.master_weights(optax.sgd(1e-3))
        _, state = tx.update(jnp.ones(2), tx.init(params), params)
        edited = jnp.array([1.0, 5.0], jnp.bfloat16)
        _, state = tx.update(jnp.ones(2), state, edited)
        np.testing.assert_allclose(state.master, [0.998, 4.999], rtol=1e-6)

    def test_penalties_inside_see_the_copy_and_zeros_are_exact(self):
        params = jnp.array([1.0, 0.02, -0.03], jnp.bfloat16)
        tx = transforms.master_weights(
            transforms.proximal(optax.sgd(0.1), penalties.L1(0.5), learning_rate=0.1)
        )
        updates, state = tx.update(jnp.zeros(3), tx.init(params), params)
        np.testing.assert_array_equal(
            optax.apply_updates(params, updates), jnp.array([0.95, 0, 0], jnp.bfloat16)
        )
        tx = transforms.master_weights(
            optax.chain(transforms.add_penalty(penalties.L2(0.1)), optax.sgd(0.01))
        )
        state, params = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(jnp.zeros(3), state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state.master[0], 0.999**3, rtol=1e-6)

    @pytest.mark.parametrize("order", ["inside", "around"])
    def test_goes_with_multi_steps(self, order):
        def wrapped(tx):
            return optax.MultiSteps(tx, 2).gradient_transformation()

        master = transforms.master_weights
        tx = (
            master(wrapped(optax.adam(0.01)))
            if order == "around"
            else wrapped(master(optax.adam(0.01)))
        )
        module = training.mixed_precision(apply, jnp.bfloat16, param_dtype=jnp.bfloat16)
        state, metrics = train(module, tx)
        assert metrics["skipped"] == 0
        found = state.opt_state if order == "around" else state.opt_state.inner_opt_state
        jax.tree.map(
            lambda p, m: np.testing.assert_array_equal(p, m.astype(p.dtype)),
            state.params,
            found.master,
        )

    def test_refuses_by_name(self):
        with pytest.raises(TypeError, match="`inner`"):
            transforms.master_weights(0.1)
        tx = transforms.master_weights(optax.sgd(0.1))
        with pytest.raises(ValueError, match="`params`"):
            tx.update(jnp.ones(1), tx.init(jnp.ones(1)))


class TestLossScale:
    def test_saves_gradients_that_float16_would_flush_to_zero(self):
        def tiny(model, batch):
            return 1e-8 * loss_fn(model, batch)

        module, tx = training.mixed_precision(apply, jnp.float16), optax.adam(0.01, eps=1e-20)
        scale = DynamicScale(scale=2.0**20)
        without, _ = train(module, tx, loss=tiny, monitors=())
        scaled, metrics = train(module, tx, loss=tiny, loss_scale=scale)
        full, expected = train(apply, tx, loss=tiny)
        first = problem()[1]["first"]
        assert np.abs(scaled.params["first"] - full.params["first"]).mean() < 0.03
        assert np.abs(without.params["first"] - full.params["first"]).mean() > 0.1
        assert np.abs(full.params["first"] - first).mean() > 0.1
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.1)
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=0.5)

    @pytest.mark.parametrize("accumulate", [1, 4])
    def test_goes_down_while_updates_are_skipped_and_up_again(self, accumulate):
        data, params = problem()
        module, tx = training.mixed_precision(apply, jnp.float16), optax.adam(0.01)
        scale = DynamicScale(scale=2.0**30, growth_interval=5)
        step = training.make_step(
            module, loss_fn, tx, loss_scale=scale, accumulate=accumulate, ema=0.9
        )
        state = training.init(module, tx, key=jax.random.key(0), params=params)
        before, scales, skipped = jax.device_get(state.params), [], []
        for _ in range(60):
            state, metrics = step(state, data)
            scales.append(float(metrics["loss_scale"]))
            skipped.append(int(metrics["skipped"]))
            if all(skipped):
                chex.assert_trees_all_equal(before, jax.device_get(state.params))
                assert int(state.opt_state[0].count) == 0
        made = skipped.count(0)
        assert 3 < skipped.index(0) < 25
        assert int(state.opt_state[0].count) == made
        # The object's own rule, from what happened.
        expected = DynamicScale(scale=jnp.float32(2.0**30), growth_interval=5)
        for scale, skip in zip(scales, skipped, strict=True):
            assert scale == float(expected.scale)
            witness = jnp.nan if skip else 0.0
            expected = expected.value_and_grad(lambda x: x * witness)(1.0)[0]  # noqa: B023
        assert max(scales[skipped.index(0) :]) > scales[skipped.index(0)]
        assert np.isfinite(metrics["loss"])

    def test_is_data_of_the_state_and_traced_once(self):
        counting = chex.assert_max_traces(loss_fn, n=1)

        data, params = problem()
        tx = optax.sgd(0.1)
        step = training.make_step(apply, counting, tx, loss_scale=DynamicScale(growth_interval=3))
        state = training.init(apply, tx, key=jax.random.key(0), params=params)
        state, _ = step(state, data)
        for _ in range(7):
            state, _ = step(state, data)
        state = state.replace(loss_scale=state.loss_scale.replace(scale=8.0))
        state, metrics = step(state, data)
        assert metrics["loss_scale"] == 8

    def test_does_not_depend_on_the_chunk(self):
        data, params = problem()
        module, tx = training.mixed_precision(apply, jnp.float16), optax.adam(0.01)
        results = []
        for chunk in (1, 7, 50):
            step = training.make_step(
                module, loss_fn, tx, loss_scale=DynamicScale(scale=2.0**25, growth_interval=9)
            )
            state = training.init(module, tx, key=jax.random.key(0), params=params)
            source = training.ArrayData(data, 8, jax.random.key(1))
            state, history = training.fit(step, state, source, steps=50, chunk=chunk, log_every=25)
            results.append(jax.device_get((state.params, state.loss_scale.scale, history)))
        for other in results[1:]:
            chex.assert_trees_all_equal(results[0], other)
        assert results[0][2]["loss_scale"].shape == (2,)
        assert results[0][2]["skipped"][0] > 0

    def test_leaves_a_full_precision_run_as_it_was(self):
        tx = optax.adam(0.01)
        plain, _ = train(apply, tx, penalty=penalties.L1(1e-3))
        scaled, _ = train(
            apply, tx, penalty=penalties.L1(1e-3), loss_scale=DynamicScale(growth_interval=10)
        )
        chex.assert_trees_all_close(plain.params, scaled.params, rtol=2e-5)

    def test_refuses_by_name(self):
        with pytest.raises(TypeError, match="`loss_scale` must be a flax"):
            training.make_step(apply, loss_fn, optax.sgd(0.1), loss_scale=1024.0)
        for choice in ("raise", "keep"):
            with pytest.raises(
                ValueError, match="`on_nonfinite` must be 'skip' where `loss_scale` is given"
            ):
                training.make_step(
                    apply, loss_fn, optax.sgd(0.1), loss_scale=DynamicScale(), on_nonfinite=choice
                )


def test_a_float16_gradient_norm_does_not_overflow():
    params = {"w": jnp.zeros(4096, jnp.float16)}
    tx = optax.sgd(1e-3)
    state = training.init(lambda p: p["w"], tx, key=jax.random.key(0), params=params)
    step = training.make_step(
        lambda p: p["w"], lambda model, x: (model() * x).astype(jnp.float32).sum(), tx
    )
    state, metrics = step(state, jnp.full(4096, 50, jnp.float16))
    np.testing.assert_allclose(metrics["grad_norm"], 3200, rtol=1e-3)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "tx",
    [optax.adam(0.01), optax.adagrad(0.1), optax.adamw(0.01), optax.lion(1e-3)],
    ids=["adam", "adagrad", "adamw", "lion"],
)
def test_the_state_keeps_its_types_with_parameters_of_few_bits(tx, accumulate):
    data, params = problem()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    step = training.make_step(apply, loss_fn, tx, accumulate=accumulate, ema=0.9)
    state = step.complete(training.init(apply, tx, key=jax.random.key(0), params=params))
    types = jax.tree.map(jax.typeof, state)
    state, _ = step(state, data)
    assert jax.tree.map(jax.typeof, state) == types
