"""The user programs of the design, as written."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from models import NnxNet
from sklearn.datasets import load_digits

from jax_lrreg import (
    averages,
    finder,
    forecast,
    penalties,
    plots,
    pytree,
    schedules,
    select,
    sweeps,
    text,
    training,
    transforms,
)


def test_program_1_a_schedule_in_any_optax_optimizer(capsys):
    lr = schedules.Cosine(1e-3, steps=10_000).warmup(500)
    tx = optax.adamw(lr)
    print(lr)
    assert text.parse(capsys.readouterr().out) == lr
    values = lr(jnp.arange(10_500))
    assert lr(0) == 0
    assert values[500] == np.float32(1e-3)
    np.testing.assert_allclose(values, jax.jit(lr)(jnp.arange(10_500)), rtol=1e-6)
    np.testing.assert_allclose(values[:50], [lr(step) for step in range(50)], rtol=1e-6)
    params = {"w": jnp.ones(3)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    chex.assert_trees_all_equal(updates, {"w": jnp.zeros(3)})  # the rate is 0 at step 0


def test_program_2_the_source_articles_schedules_and_penalties():
    eta0, max_iter, alpha, step_size, lam, m = 0.01, 1000, 0.9, 500, 0.3, 200
    constant = schedules.Constant(eta0)
    polynomial = schedules.Polynomial(eta0, steps=max_iter, power=alpha)
    linear = schedules.Linear(eta0, steps=step_size)
    steps = np.arange(1500)
    np.testing.assert_allclose(constant(steps), np.full(1500, eta0), rtol=1e-7)
    np.testing.assert_allclose(
        polynomial(steps), eta0 * np.maximum(1 - steps / max_iter, 0) ** alpha, rtol=1e-6
    )
    np.testing.assert_allclose(
        linear(steps), eta0 * np.maximum(1 - steps / step_size, 0), rtol=1e-6
    )
    w = np.linspace(-2, 3, 11, dtype=np.float32)
    np.testing.assert_allclose((penalties.L1(lam) / m)(w), lam / m * np.abs(w).sum(), rtol=1e-6)
    np.testing.assert_allclose((penalties.L2(lam) / m)(w), lam / (2 * m) * (w**2).sum(), rtol=1e-6)


def test_program_3_algebra():
    lr = 0.5 * schedules.Constant(1e-3).warmup(100).cooldown(200, at=800, shape="1-sqrt")
    assert text.parse(repr(lr)) == lr
    np.testing.assert_allclose(
        [lr(0), lr(100), lr(800), lr(850), lr(1000)], [0, 5e-4, 5e-4, 2.5e-4, 0], rtol=1e-6
    )
    lr = schedules.InverseSqrt(1e-3, timescale=1000).clip(min=1e-5)
    np.testing.assert_allclose([lr(0), lr(3000), lr(10**8)], [1e-3, 5e-4, 1e-5], rtol=1e-6)
    lr = schedules.join(
        [
            (schedules.Linear(0.0, steps=5, end_value=0.1), 5),
            (schedules.Cosine(0.1, steps=85), None),
        ]
    ).in_units(per_step=1 / 390)
    assert lr(5 * 390) == np.float32(0.1)
    assert lr(90 * 390 - 1) > 0
    assert lr(90 * 390) == 0


def test_program_4_penalties_by_path(capsys):
    params = {"encoder": {"layer": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}}
    params["head"] = {"kernel": jnp.ones((4, 2))}
    lr = schedules.Constant(0.1)
    reg = penalties.L2(1e-4).on("**/kernel") + penalties.GroupLasso(1e-3, axis=-2).on(
        "encoder/**/kernel"
    )
    print(reg.report(params))
    report = capsys.readouterr().out
    assert "encoder/layer/bias" in report
    assert "not covered" in report
    value = reg(params)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 1e-4 / 2 * 20 + 1e-3 * 4 * 3**0.5, rtol=1e-6)
    assert text.parse(repr(reg)) == reg
    coupled = optax.chain(transforms.add_penalty(reg), optax.adam(lr))
    decoupled = optax.chain(
        optax.scale_by_adam(), transforms.add_penalty(reg), optax.scale_by_learning_rate(lr)
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    for tx, expected in ((coupled, -0.1), (decoupled, -0.1 * (1e-4 + 1e-3 / 3**0.5))):
        updates, _ = tx.update(zero, tx.init(params), params)
        np.testing.assert_allclose(updates["encoder"]["layer"]["kernel"], expected, rtol=1e-3)
        np.testing.assert_array_equal(updates["encoder"]["layer"]["bias"], 0)


def test_program_5_real_zeros():
    tx = transforms.proximal(
        optax.adam(1e-2), penalties.L1(0.01).on("**/kernel"), learning_rate=1e-2
    )
    params = {"kernel": jnp.array([1e-3, 1.0]), "bias": jnp.array([1e-3])}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert moved["kernel"][0] == 0
    assert moved["bias"][0] == params["bias"][0]


def test_program_6_a_loss_driven_learning_rate_inside_jit():
    lr = schedules.Constant(0.1)
    plateau = schedules.ReduceOnPlateau(
        factor=0.5, patience=10, cooldown=0, mode="min", threshold=1e-4
    )
    tx = optax.chain(optax.adam(lr), transforms.scale_by_controller(plateau))
    params = {"w": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(13):
        updates, state = update(params, state, params, value=jnp.float32(1))
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-5)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(x)))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(10)(x)


def plain(params, x):
    return jnp.tanh(x @ params["first"]["kernel"]) @ params["last"]["kernel"]


def plain_params():
    first, last = jax.random.split(jax.random.key(3))
    return {
        "first": {"kernel": jax.random.normal(first, (64, 32)) / 8},
        "last": {"kernel": jax.random.normal(last, (32, 10)) / 6},
    }


MODULES = {
    "linen": lambda: (Net(), {}),
    "nnx": lambda: (NnxNet(64, 32, 10, rate=0.1), {}),
    "function": lambda: (plain, {"params": plain_params()}),
}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int32)


@pytest.mark.parametrize("kind", MODULES)
def test_programs_7_8_and_10_a_step_a_loop_and_a_look(kind, digits):
    (module, given), (x, y) = MODULES[kind](), digits
    lr = schedules.Cosine(1e-2, steps=270).warmup(30)
    reg = penalties.L2(1e-4).on("**/kernel")
    tx = optax.adam(lr)
    batch = {"x": x[:128], "y": y[:128]}

    def loss_fn(model, batch):
        logits = model(batch["x"])
        accuracy = (logits.argmax(-1) == batch["y"]).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), {
            "accuracy": accuracy
        }

    state = training.init(module, tx, key=jax.random.key(0), example=batch["x"], **given)
    step = training.make_step(module, loss_fn, tx, penalty=reg, learning_rate=lr)
    state, metrics = step(state, batch)
    names = {"loss", "data_loss", "penalty", "learning_rate", "grad_norm", "skipped", "accuracy"}
    assert set(metrics) == names
    np.testing.assert_allclose(
        metrics["loss"], metrics["data_loss"] + metrics["penalty"], rtol=1e-6
    )

    def metrics_fn(model, batch):
        logits = model(batch["x"], train=False) if kind == "linen" else model(batch["x"])
        return {"val_accuracy": (logits.argmax(-1) == batch["y"]).mean()}

    data = training.ArrayData({"x": x, "y": y}, batch_size=128, key=jax.random.key(1))
    evaluate = training.make_eval(module, metrics_fn, data)
    state, history = training.fit(
        step, state, data, steps=299, log_every=100, eval_every=200, eval_fn=evaluate, progress=True
    )
    assert int(state.step) == 300
    np.testing.assert_array_equal(history["step"], [101, 201, 300])
    np.testing.assert_array_equal(history["eval_step"], [201, 300])
    np.testing.assert_allclose(history["learning_rate"], lr(history["step"] - 1), rtol=1e-6)
    assert history["val_accuracy"][-1] > 0.95
    trained = training.merge(module, state)
    if kind == "linen":
        logits = module.apply(trained, x, train=False)
    elif kind == "nnx":
        trained.eval()
        logits = trained(x)
    else:
        logits = module(trained, x)
    assert (np.asarray(logits).argmax(-1) == y).mean() > 0.95
    if kind == "linen":
        assert len(plots.history(history)) == 4  # loss, accuracy, penalty, learning rate
        plt.close("all")


def test_program_9_a_grid_of_runs_compiled_once(digits):
    x, y = digits
    module = nn.Dense(10)
    data = training.ArrayData({"x": x[:1400], "y": y[:1400]}, 64, jax.random.key(1))
    traces = []

    def cross_entropy(model, batch):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def val_loss(params):
        held_out = {"x": x[1400:], "y": y[1400:]}
        return cross_entropy(lambda x: module.apply({"params": params}, x), held_out)

    def run(hp):
        traces.append(1)
        tx = transforms.proximal(optax.adam(hp["lr"]), hp["reg"], learning_rate=hp["lr"])
        state = training.init(module, tx, key=hp["key"], example=x[:1])
        step = training.make_step(module, cross_entropy, tx, learning_rate=hp["lr"])
        state, metrics = training.scan(step, state, data, steps=60)
        chex.assert_shape(metrics["loss"], (60,))
        return {
            "val_loss": val_loss(state.params),
            "zeros": hp["reg"].sparsity(state.params).overall,
        }

    grid = sweeps.grid(
        lr=schedules.Cosine(jnp.logspace(-4, -1, 8), steps=60).warmup(5),
        reg=penalties.L1(jnp.logspace(-6, -2, 4)),
        key=jax.random.split(jax.random.key(0), 3),
    )
    result = sweeps.run(run, grid, progress=True)
    assert len(traces) == 1
    assert result.axes == ("lr", "reg", "key")
    assert result["val_loss"].shape == (8, 4, 3)
    assert np.all(np.diff(result["zeros"].mean(axis=(0, 2))) >= 0)  # the stronger, the more
    best = result.best("val_loss", over="key")
    mean = result["val_loss"].mean(axis=2)
    np.testing.assert_allclose(best.value, mean.min(), rtol=1e-6)
    assert text.parse(repr(best.hyper["lr"])) == best.hyper["lr"]
    assert text.parse(repr(best.hyper["reg"])) == best.hyper["reg"]
    ax = plots.heatmap(result, "val_loss")
    np.testing.assert_allclose(ax.images[0].get_array(), mean, rtol=1e-6)
    alone = run({**best.hyper, "key": jax.random.split(jax.random.key(0), 3)[1]})
    index = (*best.index[:2], 1)
    np.testing.assert_allclose(alone["val_loss"], result["val_loss"][index], rtol=1e-3)


def test_program_10_find_a_learning_rate_and_look_at_things(digits):
    module, (x, y) = nn.Dense(10), digits
    data = training.ArrayData({"x": x, "y": y}, batch_size=128, key=jax.random.key(1))

    def loss_fn(model, batch):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    state = training.init(module, optax.adam(1e-3), key=jax.random.key(0), example=x[:1])
    found = finder.range_test(
        module, loss_fn, optax.scale_by_adam(), state, data, low=1e-7, high=1.0, steps=100
    )
    assert 1e-3 < found.suggestion < 1
    assert list(found.suggestions) == ["halfway", "valley", "steepest", "minimum"]
    ax = plots.range_test(found)
    assert ax.get_xscale() == "log"
    shown = [entry.get_text().split()[0] for entry in ax.get_legend().get_texts()]
    assert shown == list(found.suggestions)
    plots.schedule(schedules.Constant(found.suggestion), steps=10_000)
    plt.close("all")


class Blocks(nn.Module):
    """An embedding, three blocks and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x)
        for index in range(3):
            x = x + nn.relu(nn.Dense(8, name=f"block_{index}")(x))
        return nn.Dense(10, name="head")(x)


def cross_entropy(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def test_program_11_one_table_of_rules_for_every_parameter(digits):
    (x, y), key, lr = digits, jax.random.key(0), 1e-3
    data = training.ArrayData({"x": x, "y": y}, batch_size=128, key=jax.random.key(1))
    module, reg = Blocks(), penalties.L2(1e-4).on("**/kernel")
    params = module.init(key, x[:1])["params"]
    rules = select.layer_decay(params, 0.75, order=["embed/**", "block_*/**", "head/**"])
    assert dict(rules) == {
        "head/**": 1.0,
        "block_2/**": 0.75,
        "block_1/**": 0.75**2,
        "block_0/**": 0.75**3,
        "embed/**": 0.75**4,
    }
    tx = optax.chain(optax.adamw(lr), transforms.scale_by_rules(rules))
    state = training.init(module, tx, key=key, example=x[:1], trainable="head/**")
    report = str(select.report(params, learning_rate=rules, decay=reg, trainable="head/**"))
    assert len(report.splitlines()) > 10
    step = training.make_step(module, cross_entropy, tx, learning_rate=lr)
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = step(state, data(0))
    assert metrics["learning_rate/head/**"] == np.float32(lr)
    chex.assert_trees_all_equal(state.params["embed"], before["embed"])
    state = training.thaw(state, tx, trainable="**")
    state, _ = step(state, data(1))
    assert not np.array_equal(state.params["embed"]["kernel"], before["embed"]["kernel"])

    unfreeze = schedules.PiecewiseConstant(0.0, boundaries=(5,), values=(1.0,))
    table = [("embed/**", unfreeze), ("head/**", 10.0), ("**", 1.0)]
    tx = optax.chain(optax.adamw(lr), transforms.scale_by_rules(table))
    assert training.init(module, tx, key=key, example=x[:1]).step == 0


def test_program_12_the_loop_people_expect(digits):
    (x, y), module, key, tx = digits, Blocks(), jax.random.key(0), optax.adam(1e-3)
    data = training.ArrayData({"x": x, "y": y}, batch_size=128, key=jax.random.key(1))
    evaluate = training.make_eval(module, lambda m, b: {"val_loss": cross_entropy(m, b)}, data)
    state = training.init(module, tx, key=key, example=x[:1])
    step = training.make_step(module, cross_entropy, tx)
    best = training.Best("val_loss")
    state, _ = training.fit(
        step,
        state,
        data,
        until=40,
        eval_every=10,
        eval_fn=evaluate,
        stop=training.Patience("val_loss", evaluations=10),
        keep_best=best,
    )
    assert int(state.step) == 40
    assert best.step == 40
    assert best.value == pytest.approx(evaluate(best.state)["val_loss"], rel=1e-5)
    step = training.make_step(
        module, cross_entropy, tx, on_spike=training.Spike(sigma=6.0, window=128)
    )
    state, metrics = step(state, data(0))
    assert metrics["spikes"] == 0

    def smoothed(model, batch, now):
        smoothing = schedules.Linear(0.1, steps=1000)(now.step)
        labels = optax.smooth_labels(jax.nn.one_hot(batch["y"], 10), smoothing)
        return optax.softmax_cross_entropy(model(batch["x"]), labels).mean()

    state, metrics = training.make_step(module, smoothed, tx)(state, data(1))
    assert np.isfinite(metrics["loss"])


def test_program_13_other_averages():
    made = [averages.Uniform(start=8000), averages.Latest(5, every=200), averages.EMA(0.999)]
    assert [text.parse(repr(average)) for average in made] == made


def test_program_13_averages_of_the_weights(digits):
    average = averages.Cooldown(steps=60, shape="1-sqrt", bins=8)
    (module, _), (x, y), tx = MODULES["linen"](), digits, optax.adam(1e-2)
    data = training.ArrayData({"x": x[:1400], "y": y[:1400]}, 128, jax.random.key(1))

    def loss_fn(model, batch):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def metrics_fn(model, batch):
        return {"accuracy": (model(batch["x"], train=False).argmax(-1) == batch["y"]).mean()}

    held = training.ArrayData({"x": x[1400:], "y": y[1400:]}, 397, shuffle=False)
    evaluate = training.make_eval(module, metrics_fn, held)
    state = training.init(module, tx, key=jax.random.key(0), example=x[:1])
    step = training.make_step(module, loss_fn, tx, average=average)
    state, _ = training.fit(step, state, data, steps=120)
    mean = training.refresh_statistics(module, training.averaged(state), data, loss_fn=loss_fn)
    assert evaluate(mean)["accuracy"] > 0.88
    trained = training.merge(module, mean)
    assert trained["params"].keys() == state.params.keys()


def test_program_16_the_loss_of_a_schedule_before_it_is_run():
    T, true = 600, forecast.MultiPower(2.0, A=0.5, alpha=0.5, B=80.0, C=2.0, beta=0.6, gamma=0.65)
    constant = schedules.Constant(5e-4).warmup(30)
    cosine, wsd = schedules.Cosine(5e-4, steps=570).warmup(30), constant.cooldown(0, 300, 1e-4)
    lr = constant.cooldown(120, at=480)
    losses_a, losses_b, losses_c = (true(one, steps=T) for one in (constant, cosine, wsd))
    law = forecast.fit({constant: losses_a, cosine: losses_b, wsd: losses_c})
    np.testing.assert_allclose(law(lr, steps=T)[60:], true(lr, steps=T)[60:], rtol=3e-3)
    assert law.interval(lr, steps=T).shape == (2, T)
    plan = law.best(
        lambda peak, n, p: (
            schedules.Constant(peak).warmup(50).cooldown(n, at=T - n, shape="power", power=p)
        ),
        steps=T,
        peak=(1e-4, 1e-3),
        n=(0.02 * T, 0.6 * T),
        p=(0.5, 3.0),
    )
    assert text.parse(repr(plan.schedule)) == plan.schedule
    assert plan.loss <= law.final(lr, steps=T) + 1e-3
    assert plan.interval[0] < plan.loss < plan.interval[1]
    assert plan.numbers["peak"] == pytest.approx(5e-4, rel=0.01)  # no curve had a higher one
    assert forecast.bound(lr, steps=T, gradient_norms=None) > 0
    shape = schedules.Constant(1.0).cooldown(T, at=0)
    assert forecast.peak_for(shape, like=lr, steps=T) > 5e-4
    history = {"grad_norm": np.ones(60)}
    refined = forecast.refined(history["grad_norm"], steps=T, peak_value=1e-3)
    np.testing.assert_allclose(refined(T // 2), 5e-4, rtol=1e-6)


def test_program_18_objects_of_your_own():
    @pytree
    class Sawtooth(schedules.Schedule):
        peak_value: Any
        steps: Any

        def value_at(self, clock):
            return self.peak_value * clock.cycle(self.steps)[1].left(self.steps)

    text.register(Sawtooth)
    lr = Sawtooth(0.1, 50)
    assert text.parse(repr(lr)) == lr
    steps = np.arange(120)
    np.testing.assert_allclose(lr(steps), 0.1 * (1 - steps % 50 / 50), rtol=1e-6)
    together = jax.vmap(lambda peak: Sawtooth(peak, 50)(10))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(together, [0.08, 0.16], rtol=1e-6)
    slope = jax.grad(lambda lr: lr(10))(Sawtooth(0.1, 50.0))
    np.testing.assert_allclose([slope.peak_value, slope.steps], [0.8, 0.1 * 10 / 50**2], rtol=1e-5)
    assert text.parse("0.5 * Sawtooth(0.1, 50).warmup(5)") == 0.5 * lr.warmup(5)
