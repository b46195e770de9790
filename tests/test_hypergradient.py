"""Slopes of whole runs by their hyperparameters against central differences, and tuning by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start

from jax_lrreg import penalties, schedules, sweeps, training

BATCH, VALIDATION = problem(), problem(seed=1)


def run(hp):
    """A run of 200 steps whose rate has durations with a slope."""
    tx = optax.adam(hp["lr"], eps_root=1e-10)
    data = training.ArrayData(BATCH, 16, jax.random.key(0))
    step = training.make_step(apply, loss_fn, tx, penalty=hp["reg"])
    state, _ = training.scan(step, start(tx), data, steps=200)
    return loss_fn(lambda x: apply(state.params, x), VALIDATION)


HYPER = {
    "lr": schedules.Linear(0.02, steps=180.0).warmup(10),
    "reg": penalties.L2(0.05).on("w"),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_slopes_are_those_of_central_differences(mode):
    value, slopes = sweeps.hypergradient(run, HYPER, mode=mode)
    np.testing.assert_allclose(value, jax.jit(run)(HYPER), rtol=1e-4)
    measured = jax.jit(run)
    leaves, structure = jax.tree.flatten(HYPER)
    pairs = zip(leaves, jax.tree.leaves(slopes, is_leaf=lambda x: x is None), strict=True)
    seen = 0
    for at, (leaf, slope) in enumerate(pairs):
        if not isinstance(leaf, float):
            assert slope is None
        elif leaf > 0:
            ends = []
            for side in (1.03, 0.97):
                moved = [x * side if i == at else x for i, x in enumerate(leaves)]
                ends.append(float(measured(jax.tree.unflatten(structure, moved))))
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (0.06 * leaf), rtol=2e-2)
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
    total = lambda hp: hp["x"] ** hp["n"] + jnp.sum(hp["many"])  # noqa: E731
    for mode in ("forward", "reverse"):
        value, slopes = sweeps.hypergradient(total, hyper, mode=mode)
        assert (float(value), float(slopes["x"])) == (10.0, 12.0)
        assert slopes["n"] is slopes["key"] is None
        np.testing.assert_array_equal(slopes["many"], 1)


def test_tuning_finds_a_rate_that_was_30_times_too_small():
    def trained(hp):
        tx = optax.sgd(hp["lr"])
        data = training.ArrayData(BATCH, 16, jax.random.key(0))
        step = training.make_step(apply, loss_fn, tx)
        state, _ = training.scan(step, start(tx), data, steps=30)
        return loss_fn(lambda x: apply(state.params, x), VALIDATION)

    grid = sweeps.grid(lr=np.geomspace(1e-3, 0.5, 30).astype(np.float32))
    best = sweeps.run(lambda hp: {"loss": trained(hp)}, grid).best("loss")
    tuned = sweeps.tune(trained, {"lr": best.hyper["lr"] / 30}, steps=10)
    assert tuned.value < 1.1 * best.value
    assert tuned.value == np.nanmin(tuned.losses)
    assert len(tuned.losses) == len(tuned.values["['lr']"]) == 10
    np.testing.assert_allclose(trained(tuned.hyper), tuned.value, rtol=1e-4)
    assert isinstance(tuned.hyper["lr"], float)


def test_tuning_goes_back_from_where_it_diverged():
    def steep(hp):
        return jnp.where(hp["x"] < 2.0, (hp["x"] - 1.9) ** 2, jnp.nan)

    tuned = sweeps.tune(steep, {"x": 0.5}, steps=25)
    assert np.isnan(tuned.losses).any()
    assert abs(tuned.hyper["x"] - 1.9) < 0.1
    assert "Tuned" in repr(tuned)


REFUSED = {
    "a mode": (lambda: sweeps.hypergradient(run, HYPER, mode="backward"), "`mode`"),
    "no function": (lambda: sweeps.hypergradient(1, HYPER), "`function`"),
    "no scalar": (
        lambda: sweeps.hypergradient(lambda hp: hp["x"], {"x": np.ones(2)}),
        "`function`",
    ),
    "no number": (lambda: sweeps.hypergradient(lambda hp: hp["x"], {"x": 1}), "`hyper`"),
    "steps": (lambda: sweeps.tune(run, HYPER, steps=0), "tune: `steps`"),
    "a rate": (lambda: sweeps.tune(run, HYPER, learning_rate=-1.0), "tune: `learning_rate`"),
    "nothing to move": (lambda: sweeps.tune(lambda hp: hp["x"], {"x": 0.0}), "tune: `hyper`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
