"""What a step takes as a model, and what it reports of it."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import NnxNet, loss_fn

from jax_lrreg import penalties, schedules, training, transforms


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=["activation"]
)
@dataclasses.dataclass
class Layer:
    """A model that is a tree of its parameters, as in Equinox."""

    kernel: jax.Array
    bias: jax.Array
    activation: str

    def __call__(self, x):
        return getattr(jnp, self.activation)(x @ self.kernel + self.bias[None])


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "scale"], meta_fields=[]
)
@dataclasses.dataclass
class Model:
    layers: list
    scale: jax.Array | None

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


def model(seed=0):
    rng = np.random.default_rng(seed)
    first = Layer(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), jnp.zeros(4), "tanh")
    return Model([first, Layer(jnp.zeros((4, 1)), jnp.zeros(1), "positive")], None)


def call(params, x):
    return params(x)


def batch(seed=0):
    x = np.random.default_rng(seed).normal(size=(16, 3)).astype(np.float32)
    return {"x": x, "y": x[:, 0] - x[:, 1]}


def test_a_model_that_is_a_tree_trains_as_by_hand_and_comes_back_as_itself():
    reg = penalties.L2(0.01).on("layers/*/kernel")
    tx = optax.adam(0.05)
    state = training.init(call, tx, key=jax.random.key(0), params=model())
    step = training.make_step(call, loss_fn, tx, penalty=reg, ema=0.9)
    params, opt_state = model(), tx.init(model())
    for index in range(20):
        state, _ = step(state, batch(index))
        gradient = jax.grad(lambda p: loss_fn(p, batch(index)) + reg(p))(params)  # noqa: B023
        updates, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    trained = training.merge(call, state)
    assert isinstance(trained, Model)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trained, params
    )
    source = training.ArrayData(batch(), 8, jax.random.key(0))
    state, history = training.fit(step, state, source, steps=100, log_every=50)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("on_nonfinite", ["skip", "keep"])
@pytest.mark.parametrize(
    "tx", [optax.adam(0.01), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, 0.9))]
)
def test_nnx_with_batch_norm_and_dropout_is_bit_identical_to_the_nnx_loop(tx, on_nonfinite):
    """To the last bit where both do the same; the look for NaN changes what is fused."""
    tolerance = 0 if on_nonfinite == "keep" else 1e-4
    module = NnxNet(3, 8, 1, rate=0.3)
    state = training.init(module, tx, key=jax.random.key(0))
    step = training.make_step(module, loss_fn, tx, on_nonfinite=on_nonfinite)
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.Param)

    @nnx.jit
    def theirs(module, optimizer, batch):
        loss, gradient = nnx.value_and_grad(loss_fn)(module, batch)
        optimizer.update(module, gradient)
        return loss

    for index in range(30):
        state, metrics = step(state, batch(index))
        np.testing.assert_allclose(
            metrics["loss"], theirs(module, optimizer, batch(index)), rtol=tolerance
        )
    ours, expected = (
        nnx.to_pure_dict(nnx.state(m)) for m in (training.merge(module, state), module)
    )
    if on_nonfinite == "keep":
        chex.assert_trees_all_equal(ours, expected)
    count = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours)
        if "count" in jax.tree_util.keystr(path)
    ]
    assert int(count[0]) > 0  # the keys of dropout went on


@pytest.mark.parametrize(
    "make",
    [lambda: NnxNet(3, 8, 1, rate=0.3), lambda: nn.Dense(1), lambda: call],
    ids=["nnx", "linen", "f"],
)
def test_many_steps_are_traced_once(make):
    module = make()

    @chex.assert_max_traces(n=1)
    def counting(model, batch):
        return jnp.mean(model(batch["x"]) ** 2)

    tx = optax.inject_hyperparams(optax.adamw)(schedules.Cosine(0.01, steps=100))
    params = {"params": model()} if module is call else {"example": batch()["x"]}
    state = training.init(module, tx, key=jax.random.key(0), **params)
    step = training.make_step(module, counting, tx, ema=0.9, on_nonfinite="keep")
    for index in range(4):
        state, _ = step(state, batch(index))
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not jax.typeof(leaf).weak_type


class TestMonitors:
    NAMES = ("grad_norm", "update_norm", "param_norm", "param_norm/*", "sparsity", "sparsity/*")

    def test_are_those_of_the_update_and_of_the_state_after_it(self):
        tx = transforms.proximal(
            optax.sgd(0.1), penalties.L1(0.3).on("**/kernel"), learning_rate=0.1
        )
        state = training.init(call, tx, key=jax.random.key(0), params=model())
        step = training.make_step(call, loss_fn, tx, monitors=self.NAMES)
        for index in range(8):
            before = jax.device_get(state.params)
            state, metrics = step(state, batch(index))
        after = jax.device_get(state.params)
        moved = jax.tree.map(lambda a, b: a - b, after, before)
        np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(moved), rtol=1e-5)
        np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(after), rtol=1e-6)
        kernel = after.layers[0].kernel
        np.testing.assert_allclose(
            metrics["param_norm/layers/0/kernel"], np.linalg.norm(kernel), rtol=1e-6
        )
        np.testing.assert_allclose(
            metrics["sparsity/layers/0/kernel"], np.mean(kernel == 0), rtol=1e-6
        )
        assert 0 < metrics["sparsity/layers/0/kernel"] < 1
        zeros = sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(after))
        np.testing.assert_allclose(metrics["sparsity"], zeros / (12 + 4 + 4 + 1), rtol=1e-6)

    def test_of_the_state_are_read_at_the_end_of_an_interval_only(self):
        tx, source = optax.sgd(0.05), training.ArrayData(batch(), 8, jax.random.key(0))
        state = training.init(call, tx, key=jax.random.key(0), params=model())
        step = training.make_step(call, loss_fn, tx, monitors=self.NAMES)
        inner = jax.eval_shape(step.body, state, batch())[1]
        assert {"grad_norm", "update_norm"} <= set(inner)
        assert not [name for name in inner if name.startswith(("param_norm", "sparsity"))]
        state, history = training.fit(step, state, source, steps=25, log_every=10)
        np.testing.assert_array_equal(history["step"], [10, 20, 25])
        np.testing.assert_allclose(
            history["param_norm"][-1], optax.tree.norm(state.params), rtol=1e-6
        )
        assert history["sparsity/layers/1/kernel"].shape == (3,)
        again = training.init(call, tx, key=jax.random.key(0), params=model())
        plain = training.make_step(call, loss_fn, tx, monitors=())
        other, short = training.fit(plain, again, source, steps=25, log_every=10)
        chex.assert_trees_all_equal(other.params, state.params)
        assert "param_norm" not in short

    def test_the_size_of_an_update_that_was_skipped_is_zero(self):
        step = training.make_step(call, loss_fn, optax.sgd(0.1), monitors=("update_norm",))
        state = training.init(call, optax.sgd(0.1), key=jax.random.key(0), params=model())
        bad = {**batch(), "y": np.full(16, np.nan, np.float32)}
        _, metrics = step(state, bad)
        assert (metrics["update_norm"], metrics["skipped"]) == (0, 1)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_both_ways_of_skipping_give_the_same(backend, monkeypatch):
    tx = optax.adam(schedules.Linear(0.1, steps=30))

    def run():
        state = training.init(call, tx, key=jax.random.key(0), params=model())
        step = training.make_step(
            call, loss_fn, tx, ema=0.9, learning_rate=schedules.Linear(0.1, steps=30)
        )
        rates = []
        for index in range(12):
            data = batch(index)
            if index in (3, 4, 9):
                data["y"] = np.full(16, np.inf, np.float32)
            before = jax.device_get((state.params, state.opt_state, state.average))
            state, metrics = step(state, data)
            rates.append(float(metrics["learning_rate"]))
            assert metrics["skipped"] == (index in (3, 4, 9))
            if metrics["skipped"] and index:
                after = jax.device_get((state.params, state.opt_state, state.average))
                chex.assert_trees_all_equal(before, after)
        return jax.device_get(state.params), rates

    expected, rates = run()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    params, others = run()
    chex.assert_trees_all_close(expected, params, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rates, others)
    np.testing.assert_allclose(rates[3:6], [0.09] * 3, rtol=1e-6)


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        y = self.dense(x)
        self.sow(nnx.Intermediate, "output", y)
        return y[:, 0]


@pytest.mark.filterwarnings("ignore:.*sow:DeprecationWarning")
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called before"])
def test_what_an_nnx_module_sows_is_no_state(called):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    batch, module = {"x": x, "y": x.sum(1)}, Sowing(nnx.Rngs(0))
    if called:
        module(x)
    state = training.init(module, optax.sgd(0.1), key=jax.random.key(0))
    assert not jax.tree.leaves(state.model_state)
    step = training.make_step(
        module, lambda model, b: jnp.mean((model(b["x"]) - b["y"]) ** 2), optax.sgd(0.1)
    )
    state, history = training.fit(step, state, [batch] * 40, steps=40, log_every=20)
    assert history["loss"][-1] < history["loss"][0] / 2
    assert (
        bool(jax.tree.leaves(nnx.state(module, nnx.Intermediate))) == called
    )  # the module itself is left alone
