"""What modules need to be trained: their own arguments, what they sow, and wrong calls refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import penalties, training, transforms

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


def test_inputs_that_steer_python_may_be_positional_or_named():
    state = training.init(NeedsTrain(), optax.sgd(0.1), key=KEY, example=(X[:1], True))
    named = training.init(NeedsTrain(), optax.sgd(0.1), key=KEY, example=X[:1], example_kwargs={"train": False})
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, named.params))


def test_what_is_sown_is_no_state_and_reaches_the_loss():
    module, tx = Sows(), optax.adam(1e-2)
    state = training.init(module, tx, key=KEY, example=X[:1], example_kwargs={"train": True})
    assert set(state.model_state) == {"batch_stats"}
    seen = []

    def loss_fn(model, batch):
        output, sown = model(batch, train=True, mutable=["losses"])
        seen.append(jax.tree.map(jnp.shape, sown))
        activity = penalties.activity_penalty(penalties.L1(0.1), sown["losses"], batch_size=len(batch))
        return jnp.mean(output**2) + activity, {"activity": activity}

    step = training.make_step(module, loss_fn, tx)
    state, history = training.fit(step, state, DATA, steps=40, log_every=20)
    assert seen[0] == {"losses": {"hidden": ((8, 8),)}}, "sown once"
    assert history["activity"][1] < history["activity"][0]
    assert np.abs(state.model_state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0, "the statistics are carried"

    plain = training.make_step(module, lambda model, batch: jnp.mean(model(batch, train=True) ** 2), tx)
    training.fit(plain, state, DATA, steps=2)


def test_multi_steps_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"transforms.mean_value, or its own gradient_transformation"):
        training.init(lambda p, x: x, optax.MultiSteps(optax.sgd(0.1), 2), key=KEY, params=1.0)
    tx = transforms.mean_value(optax.MultiSteps(optax.sgd(0.1), 2))
    training.init(lambda p, x: x, tx, key=KEY, params=1.0)


@pytest.mark.parametrize("wrong", [lambda model, x: model(x).mean(), lambda model, x: {"error": model(x)[..., 0]}])
def test_metrics_that_are_no_means_are_refused(wrong):
    state = training.init(lambda p, x: x * p, optax.sgd(0.1), key=KEY, params=1.0)
    with pytest.raises(ValueError, match=r"`metrics_fn` must be a function that returns \{name: mean over the batch\}"):
        training.make_eval(lambda p, x: x * p, wrong, DATA)(state)


def test_evaluation_of_padded_data_has_a_mask_of_ones():
    data = training.ArrayData({"x": X[:5]}, 2, KEY, remainder="pad")
    state = training.init(lambda p, x: x * p, optax.sgd(0.1), key=KEY, params=1.0)
    evaluate = training.make_eval(lambda p, x: x * p, lambda model, b: {"share": b["mask"].mean()}, data)
    assert evaluate(state) == {"share": 1.0}
