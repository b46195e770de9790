"""Parameters that are not trained, and such as begin to be in the middle of a run."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

from jax_lrreg import penalties, schedules, training, transforms
from jax_lrreg._arrays import leaves


class Net(nn.Module):
    """A body that is larger than its head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64, name="body")(x))
        return nn.Dense(2, name="head")(x)


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def data(size=32):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(size, 4)).astype(np.float32),
        "y": rng.normal(size=(size, 2)).astype(np.float32),
    }


def start(tx, **options):
    return training.init(Net(), tx, key=jax.random.key(0), example=data()["x"][:1], **options)


def test_what_is_frozen_keeps_every_bit_through_decay_average_and_accumulation():
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = start(tx, trainable="head/**")
    before = jax.tree.map(np.asarray, state.params)
    reg = penalties.L2(0.1).on("**/kernel") + penalties.L1(0.1).on("body/**")
    options = {"penalty": reg, "ema": 0.9, "accumulate": 2}
    step = training.make_step(Net(), loss_fn, tx, **options)
    source = training.ArrayData(data(), batch_size=8, key=jax.random.key(1))
    state, history = training.fit(step, state, source, steps=1000)
    chex.assert_trees_all_equal(state.params["body"], before["body"])
    assert not np.array_equal(state.params["head"]["kernel"], before["head"]["kernel"])
    assert [leaf.path for leaf in leaves(state.average.mean)] == ["head/bias", "head/kernel"]
    assert history["loss"][-1] < history["loss"][0]


def test_a_frozen_part_has_no_state_no_arithmetic_and_no_part_in_the_norm():
    class Head(nn.Module):
        """What is trained, alone."""

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(x)

    tx, batch = optax.adam(1e-2), data()
    state = start(tx, trainable="head/**")
    step = training.make_step(Net(), loss_fn, tx)
    part = {"head": state.params["head"]}
    alone = training.init(Head(), tx, key=jax.random.key(0), example=np.ones((1, 64)), params=part)
    assert size(state.opt_state) == size(alone.opt_state)

    hidden = nn.relu(
        batch["x"] @ state.params["body"]["kernel"] + state.params["body"]["bias"][None]
    )
    other = training.make_step(Head(), loss_fn, tx)
    flops = cost(step, state, batch) - cost(other, alone, {"x": hidden, "y": batch["y"]})
    forward = 2 * 32 * 4 * 64 + 3 * 32 * 64  # the frozen layer itself
    assert flops <= 1.05 * forward
    _, metrics = step(state, batch)
    _, wanted = other(alone, {"x": hidden, "y": batch["y"]})
    np.testing.assert_allclose(metrics["grad_norm"], wanted["grad_norm"], rtol=1e-5)


def size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def cost(step, state, batch):
    """Operations of one update."""
    return step.body.lower(state, batch).compile().cost_analysis()["flops"]


def test_the_same_selection_does_the_same_as_a_mask_by_hand():
    batch = data()
    mask = {"body": "off", "head": "on"}
    by_hand = optax.partition({"on": optax.adam(0.1), "off": optax.set_to_zero()}, mask)
    tx = optax.adam(0.1)
    runs = []
    for optimizer, options in ((tx, {"trainable": [("head/**", 1)]}), (by_hand, {})):
        state = start(optimizer, **options)
        step = training.make_step(Net(), loss_fn, optimizer)
        for _ in range(3):
            state, _ = step(state, batch)
        runs.append(state.params)
    chex.assert_trees_all_close(*runs, rtol=1e-6)


def test_a_type_of_nnx_variable_is_a_selection():
    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(4, 8, rngs=rngs)
            self.lora = nnx.LoRA(4, 2, 8, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.base(x) + self.lora(x)))

    module, tx = Adapted(nnx.Rngs(0)), optax.adam(0.1)
    state = training.init(module, tx, key=jax.random.key(0), trainable=nnx.LoRAParam)
    before = {leaf.path: np.asarray(leaf.value) for leaf in leaves(state.params)}
    assert {leaf.path for leaf in leaves(state.trained)} == {"lora/lora_a", "lora/lora_b"}
    step = training.make_step(module, loss_fn, tx)
    for _ in range(3):
        state, _ = step(state, data())
    moved = {
        leaf.path
        for leaf in leaves(state.params)
        if not np.array_equal(leaf.value, before[leaf.path])
    }
    assert moved == {"lora/lora_a", "lora/lora_b"}
    assert isinstance(training.merge(module, state), Adapted)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (optax.adam, 1.0),
        (optax.adamw, 1.0),
        (optax.amsgrad, 1.0),
        (optax.rmsprop, 1.8),  # its first is the rate exactly; it does not average gradients
        (optax.adabelief, 1.3),  # its first ones are that large at the beginning of a run too
        (optax.nadam, 1.9),
        (optax.sgd, 1.0),
    ],
)
@pytest.mark.sampled(3)
def test_after_a_thaw_old_moments_are_kept_and_first_updates_are_at_most_the_rate(make, most):
    rate, batch = 0.01, data()
    tx = make(rate)
    state = start(tx, trainable="head/**")
    step = training.make_step(Net(), loss_fn, tx)
    for _ in range(300):
        state, _ = step(state, batch)
    held = {
        str(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    }
    state = training.thaw(state, tx, trainable="**")
    now = {
        str(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    }
    chex.assert_trees_all_equal({path: now[path] for path in held}, held)
    moved = []
    for _ in range(5):
        before = np.asarray(state.params["body"]["kernel"])
        state, _ = step(state, batch)
        moved.append(np.abs(np.asarray(state.params["body"]["kernel"]) - before).max())
    assert max(moved) <= 1.01 * most * rate
    assert moved[0] > 0


def sgd_in_the_body(params):
    def label(keys, _):
        return "sgd" if "body" in str(keys) else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda lr: optax.MultiSteps(optax.adam(lr), 2).gradient_transformation(), 1.01),
        (optax.yogi, 1.01),  # keeps all of its second moment where there is no gradient
        (lambda lr: optax.rmsprop(lr, centered=True), 2.0),
        (lambda lr: optax.chain(optax.adam(lr), optax.scale_by_backtracking_linesearch(5)), 1.01),
        (
            lambda lr: optax.chain(
                optax.adam(lr),
                transforms.scale_by_rules([("body/kernel", jnp.ones(4)), ("**", 1.0)]),
            ),
            1.01,
        ),
    ],
    ids=["windows", "yogi", "centered", "line search", "stacked factors"],
)
@pytest.mark.sampled(3)
def test_a_thaw_makes_updates_of_the_rate_whatever_stands_around_the_means(make, most):
    tx, batch = make(0.01), data()
    state = start(tx, trainable="head/**")
    step = training.make_step(Net(), loss_fn, tx)
    for _ in range(40):
        state, _ = step(state, batch)
    state = training.thaw(state, tx, trainable="**")
    moved = []
    for _ in range(4):
        before = np.asarray(state.params["body"]["kernel"])
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        moved.append(np.abs(np.asarray(state.params["body"]["kernel"]) - before).max() / 0.01)
    assert 0.5 < max(moved) <= most


def test_a_thawed_state_is_read_back_from_its_bytes():
    tx, batch = optax.adam(0.01), data()
    step = training.make_step(Net(), loss_fn, tx)
    state, _ = step(start(tx, trainable="head/**"), batch)
    state = training.thaw(state, tx, trainable="**")
    back = serialization.from_bytes(start(tx), serialization.to_bytes(state))
    chex.assert_trees_all_equal(back.begun, state.begun)
    chex.assert_trees_all_equal(step(back, batch)[0].params, step(state, batch)[0].params)


def test_a_group_without_means_is_not_slowed_by_those_of_another():
    groups = {"adam": optax.adam(0.01), "sgd": optax.sgd(0.01)}
    tx, batch = optax.partition(groups, sgd_in_the_body), data()
    state = start(tx, trainable="head/**")
    step = training.make_step(Net(), loss_fn, tx, donate=False)
    for _ in range(20):
        state, _ = step(state, batch)
    state = training.thaw(state, tx, trainable="**")
    after, _ = step(state, batch)

    def loss(params):
        return loss_fn(lambda x: Net().apply({"params": params}, x), batch)

    slope = jax.grad(loss)(state.params)["body"]["kernel"]
    moved = after.params["body"]["kernel"] - state.params["body"]["kernel"]
    np.testing.assert_allclose(moved, -0.01 * slope, rtol=1e-3, atol=1e-7)


def test_thawed_parameters_follow_a_fresh_adam():
    batch, tx = data(), optax.adam(0.01, eps=1e-12)
    state = start(tx, trainable="head/kernel")
    step = training.make_step(Net(), loss_fn, tx)
    for _ in range(2000):
        state, _ = step(state, batch)
    params = state.params
    state = training.thaw(state, tx, trainable="**")
    fresh = start(tx, params=jax.tree.map(jnp.copy, params))
    state, _ = step(state, batch)
    fresh, _ = step(fresh, batch)
    chex.assert_trees_all_close(state.params["body"], fresh.params["body"], rtol=1e-4)


def test_the_same_transformation_speaks_of_what_is_frozen_and_reports_each_rate():
    lr = schedules.Linear(0.1, steps=10)
    unfreeze = schedules.PiecewiseConstant(0.0, boundaries=(2,), values=(1.0,))
    rules = [("body/**", unfreeze), ("head/**", 10.0), ("**", 1.0)]
    params = start(optax.sgd(0.1)).params | {"tail": {"kernel": jnp.ones(2)}}

    def apply(params, x):
        return Net().apply({"params": {k: params[k] for k in ("body", "head")}}, x)

    tx = optax.chain(optax.sgd(lr), transforms.scale_by_rules(rules))
    state = training.init(apply, tx, key=jax.random.key(0), params=params, trainable="head/**")
    step = training.make_step(apply, loss_fn, tx, learning_rate=lr)
    seen = []
    for _ in range(4):
        rate = float(lr(int(state.step)))
        state, metrics = step(state, data())
        seen.append(float(metrics["learning_rate/body/**"]) / rate)
        np.testing.assert_allclose(metrics["learning_rate/head/**"], 10 * rate, rtol=1e-6)
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(1)
    state = training.thaw(state, tx, trainable="**")
    state, metrics = step(state, data())
    assert "learning_rate/**" in metrics


WRONG = [
    ("tail/**", ValueError, r"init: `trainable`: pattern 'tail/.*' matches no parameter"),
    ([("**", 0)], ValueError, "`trainable` must be a selection that leaves something to train"),
    (3, TypeError, "must be a pattern, a list of rules"),
    (nnx.LoRAParam, ValueError, "`trainable` must be a selection: only NNX has types"),
    ({"head": True}, TypeError, "init: `trainable` must be a pattern, a list of rules"),
    (True, TypeError, "init: `trainable` must be a pattern, a list of rules"),
    ([("head/**", -1)], ValueError, "init: `trainable`: `multiplier` must be a number >= 0"),
    (lambda path, _: path, TypeError, "init: `trainable`: `predicate` must be a bool or a number"),
]


@pytest.mark.parametrize(("trainable", "error", "message"), WRONG)
def test_wrong_selections_are_refused_by_name(trainable, error, message):
    with pytest.raises(error, match=message):
        start(optax.sgd(0.1), trainable=trainable)
    with pytest.raises(ValueError, match=r"thaw: `trainable`: pattern 'tail' matches no parameter"):
        training.thaw(start(optax.sgd(0.1)), optax.sgd(0.1), trainable="tail")
    with pytest.raises(ValueError, match=r"thaw: `trainable` must be .* types .* are for init"):
        training.thaw(start(optax.sgd(0.1)), optax.sgd(0.1), trainable=nnx.LoRAParam)


def test_a_thaw_refuses_another_optimizer():
    state = start(optax.adam(0.1), trainable="head/**")
    with pytest.raises(ValueError, match=r"thaw: `state\.opt_state` must be that of this"):
        training.thaw(state, optax.sgd(0.1), trainable="**")


def test_rules_stand_beside_a_line_search():
    tx = optax.chain(optax.lbfgs(), transforms.scale_by_rules([("head/**", 1.0), ("**", 0.5)]))
    state = start(tx)
    step = training.make_step(Net(), loss_fn, tx)
    first = None
    for _ in range(5):
        state, metrics = step(state, data())
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < first
