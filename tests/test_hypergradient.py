"""Slopes of whole runs by their hyperparameters against central differences, and tuning by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start, two_layers
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import ElasticNetCV

from jax_lrreg import averages, penalties, schedules, sweeps, training

BATCH, VALIDATION = problem(), problem(seed=1)


def run(hp):
    """A run of 200 steps whose rate has durations with a slope."""
    tx = optax.adam(hp["lr"], eps_root=1e-10)
    data = training.ArrayData(BATCH, 16, jax.random.key(0))
    step = training.make_step(apply, loss_fn, tx, penalty=hp["reg"])
    state, _ = training.scan(step, start(tx), data, steps=200)
    return loss_fn(lambda x: apply(state.params, x), VALIDATION)


HYPER = {  # a duration of 180.0 has two slopes: the rate of step 190 begins to be 0 there
    "lr": schedules.Linear(0.02, steps=180.5).warmup(10),
    "reg": penalties.L2(0.05).on("w"),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_slopes_are_those_of_central_differences(mode):
    # In 32 bits the differences of a run of 200 steps are 3 % rounding, the slopes are not.
    single, slopes = sweeps.hypergradient(run, HYPER, mode=mode)
    leaves, structure = jax.tree.flatten(HYPER)
    slopes = jax.tree.leaves(slopes, is_leaf=lambda x: x is None)
    seen = 0
    with jax.enable_x64(True):
        measured = jax.jit(run)
        np.testing.assert_allclose(single, measured(HYPER), rtol=1e-4)
        for at, (leaf, slope) in enumerate(zip(leaves, slopes, strict=True)):
            if not isinstance(leaf, float):
                assert slope is None
            elif leaf > 0:
                ends = []
                for side in (1.001, 0.999):
                    moved = [np.float64(x * side) if i == at else x for i, x in enumerate(leaves)]
                    ends.append(float(measured(jax.tree.unflatten(structure, moved))))
                np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (0.002 * leaf), rtol=1e-3)
                seen += 1
    assert seen >= 3  # the rate, its duration, the strength


def test_a_slope_that_is_not_finite_is_refused_with_the_cure():
    def root(hp):
        return jnp.sqrt(hp["x"] - hp["y"])

    with pytest.raises(ValueError, match=r"hypergradient: `hyper\['x'\]`.*eps_root"):
        sweeps.hypergradient(root, {"x": 1.0, "y": 1.0})
    with pytest.raises(ValueError, match=r"hypergradient: `function`.*finite"):
        sweeps.hypergradient(root, {"x": 0.0, "y": 1.0})


def test_whole_numbers_and_keys_have_no_slope():
    hyper = {"x": 2.0, "n": 3, "key": jax.random.key(0), "many": np.ones(2, np.float32)}
    hyper["name"] = "x"
    total = lambda hp: hp["x"] ** hp["n"] + jnp.sum(hp["many"])  # noqa: E731
    for mode in ("forward", "reverse"):
        value, slopes = sweeps.hypergradient(total, hyper, mode=mode)
        assert (float(value), float(slopes["x"])) == (10.0, 12.0)
        assert slopes["n"] is slopes["key"] is slopes["name"] is None
        np.testing.assert_array_equal(slopes["many"], 1)


def test_the_same_function_is_traced_once():
    traces = []

    def total(hp):
        traces.append(hp["n"])
        return hp["x"] ** hp["n"] * jnp.sum(hp["k"]) + 0 * jax.random.uniform(hp["key"])

    for x, k in ((1.0, 2), (2.0, 3)):
        hyper = {"x": x, "n": 3, "k": np.array([k, k]), "key": jax.random.key(k)}
        value, slopes = sweeps.hypergradient(total, hyper)
        assert (float(value), float(slopes["x"])) == (x**3 * 2 * k, 3 * x**2 * 2 * k)
        assert slopes["n"] is slopes["k"] is slopes["key"] is None
    assert traces == [3]
    sweeps.hypergradient(total, {**hyper, "n": 2})
    assert traces == [3, 2]


def test_tuning_finds_a_rate_for_digits_that_was_30_times_too_small():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.float32(x[order] / 16), y[order].astype(np.int32)
    kept, left = ({"x": x[part], "y": y[part]} for part in (slice(1200), slice(1200, None)))
    data = training.ArrayData(kept, 64, jax.random.key(1))
    rng = np.random.default_rng(1)
    first = {"first": rng.normal(size=(64, 32)) / 8, "last": rng.normal(size=(32, 10)) / 6}
    first = jax.tree.map(np.float32, first)

    def cross_entropy(model, batch):
        each = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        return each.mean()

    def trained(hp):
        tx = optax.sgd(hp["lr"], momentum=0.9)
        step = training.make_step(two_layers, cross_entropy, tx)
        state = training.init(two_layers, tx, key=jax.random.key(0), params=first)
        state, _ = training.scan(step, state, data, steps=100)
        return lambda x: two_layers(state.params, x)

    def loss(hp):
        return cross_entropy(trained(hp), left)

    def accuracy(hp):
        return jnp.mean(jnp.argmax(trained(hp)(left["x"]), -1) == left["y"])

    rates = np.geomspace(1e-3, 3, 16).astype(np.float32)
    run = lambda hp: {"loss": loss(hp), "accuracy": accuracy(hp)}  # noqa: E731
    grid = sweeps.run(run, sweeps.grid(lr=rates))
    best = grid.best("loss")
    tuned = sweeps.tune(loss, {"lr": best.hyper["lr"] / 30}, steps=10)
    assert jax.jit(accuracy)(tuned.hyper) >= grid["accuracy"][best.index] - 0.01
    assert tuned.value == np.nanmin(tuned.losses)
    assert len(tuned.losses) == len(tuned.values["['lr']"]) == 10
    assert isinstance(tuned.hyper["lr"], float)


def test_tuning_a_minimum_finds_that_of_cross_validation():
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:440] / x.std(0), ((y - y.mean()) / y.std())[:440]  # folds of one size
    ratios = [0.1, 0.5, 0.9, 1.0]
    theirs = ElasticNetCV(cv=5, l1_ratio=ratios, alphas=50, tol=1e-6, max_iter=100_000).fit(x, y)
    x, y = jnp.float32(x), jnp.float32(y)
    left = np.arange(440).reshape(5, 88)
    kept = np.stack([np.delete(np.arange(440), fold) for fold in left])

    def squares(params, rows):
        return jnp.mean((x[rows] @ params["w"] + params["b"] - y[rows]) ** 2) / 2

    def left_out(net):
        def one(kept, left):
            start = {"w": jnp.zeros(10), "b": jnp.zeros(())}
            found = sweeps.solve(lambda p: squares(p, kept), start, net.on("w"))
            return 2 * squares(found, left)

        return jnp.mean(jax.vmap(one)(kept, left))

    net = penalties.ElasticNet(30 * theirs.alpha_, l2=3 * theirs.alpha_)
    tuned = sweeps.tune(left_out, net, steps=10, mode="reverse")
    assert tuned.losses[0] > 1.02 * tuned.value
    assert tuned.value < 1.001 * theirs.mse_path_.mean(-1).min()


def test_tuning_moves_only_what_is_chosen_and_stays_within_its_range():
    def far(hp):
        moved = jnp.log(hp["average"].decay) - 1.0, jnp.log(hp["reg"].strength) - 1.0
        return moved[0] ** 2 + moved[1] ** 2

    hyper = {"average": averages.EMA(0.5), "reg": penalties.L2(0.5)}
    tuned = sweeps.tune(far, hyper, steps=8)
    assert 0.99 < tuned.hyper["average"].decay < 1  # which is its range
    assert tuned.hyper["reg"].strength > 1
    some = sweeps.tune(far, hyper, steps=3, only="average/**")
    assert some.hyper["reg"] == hyper["reg"]
    assert some.hyper["average"].decay > 0.5
    both = sweeps.tune(far, hyper, steps=3, only=["average/decay", "re:reg/.*"])
    np.testing.assert_array_equal(both.losses, tuned.losses[:3])


def test_tuning_goes_back_from_where_it_diverged():
    def steep(hp):
        return jnp.where(hp["x"] < 2.0, (hp["x"] - 1.9) ** 2, jnp.nan)

    tuned = sweeps.tune(steep, {"x": 0.5}, steps=25)
    assert np.isnan(tuned.losses).any()
    assert abs(tuned.hyper["x"] - 1.9) < 0.1
    assert "Tuned" in repr(tuned)


REFUSED = {
    "a mode": (lambda: sweeps.hypergradient(run, HYPER, mode="backward"), "`mode`"),
    "the implicit mode": (
        lambda: sweeps.hypergradient(run, HYPER, mode="implicit"),
        "`mode` .*sweeps.solve",
    ),
    "no function": (lambda: sweeps.hypergradient(1, HYPER), "`function`"),
    "no scalar": (
        lambda: sweeps.hypergradient(lambda hp: hp["x"], {"x": np.ones(2)}),
        "`function`",
    ),
    "no number": (lambda: sweeps.hypergradient(lambda hp: hp["x"], {"x": 1}), "`hyper`"),
    "steps": (lambda: sweeps.tune(run, HYPER, steps=0), "tune: `steps`"),
    "a rate": (lambda: sweeps.tune(run, HYPER, learning_rate=-1.0), "tune: `learning_rate`"),
    "another pattern": (lambda: sweeps.tune(run, HYPER, only="rag/**"), "tune: .*'rag/.*reg/"),
    "no pattern": (lambda: sweeps.tune(run, HYPER, only=3), "tune: `only`"),
    "no patterns": (lambda: sweeps.tune(run, HYPER, only=[]), "tune: `only`"),
    "a zero to move": (
        lambda: sweeps.tune(lambda hp: hp["x"] + hp["y"], {"x": 0.0, "y": 1.0}, only="x"),
        "tune: `hyper`",
    ),
    "nothing to move": (lambda: sweeps.tune(lambda hp: hp["x"], {"x": 0.0}), "tune: `hyper`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
