"""How a run ends: after steps, at a step, at a deadline, without improvement; the best state."""

import itertools
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start

from jax_lrreg import training

TX = optax.sgd(0.01)
STEP = training.make_step(apply, loss_fn, TX)
DATA = training.ArrayData(problem(), batch_size=16, key=jax.random.key(1))
CHUNKS = [1, 7, 100]


def scripted(values):
    """An evaluation that returns these numbers, the first twice: names are asked for."""
    values = list(values)
    numbers = itertools.chain(values[:1], values, itertools.repeat(values[-1]))
    return lambda state: {"val_loss": next(numbers), "step_seen": int(state.step)}


def by_hand(steps):
    """The states of a hand-written loop, by their step."""
    state, states = start(TX), {}
    for step in range(steps):
        state, _ = STEP(state, DATA(step))
        states[step + 1] = state.copy()
    return states


@pytest.mark.parametrize("chunk", CHUNKS)
def test_until_is_the_step_to_reach_however_often_one_asks(chunk):
    whole, _ = training.fit(STEP, start(TX), DATA, steps=30, chunk=chunk)
    state, history = training.fit(STEP, start(TX), DATA, until=12, chunk=chunk)
    assert int(state.step) == 12
    state, history = training.fit(STEP, state, DATA, until=30, chunk=chunk)
    chex.assert_trees_all_equal(state, whole)
    assert str(history["ended"]) == "after step 30: all steps are made"
    again, history = training.fit(STEP, state, iter([]), until=12, chunk=chunk)
    chex.assert_trees_all_equal(again, whole)
    assert history["step"].size == 0


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("values", "mode", "min_delta", "last"),
    [
        ([5, 4, 3, 3, 3, 2], "min", 0.0, 50),
        ([5, 4, math.nan, 3.99, 3.98, 1], "min", 0.1, 40),
        ([math.nan, math.nan, 1, 1], "max", 0.0, 20),
        ([1, 2, 3, 2, 3, 9], "max", 0.0, 50),
        ([9, 8, 7, 6, 5, 4], "min", 0.5, 60),
        ([-1, -2, -2, -2], "min", 0.0, 40),
    ],
)
def test_patience_counts_evaluations_without_improvement(chunk, values, mode, min_delta, last):
    patience = training.Patience("val_loss", evaluations=2, mode=mode, min_delta=min_delta)
    options = {"until": 60, "eval_every": 10, "eval_fn": scripted(values), "chunk": chunk}
    state, history = training.fit(STEP, start(TX), DATA, stop=patience, log_every=7, **options)
    assert int(state.step) == last == history["step"][-1] == history["eval_step"][-1]
    chex.assert_trees_all_equal(state, by_hand(last)[last])
    said = "Patience" in str(history["ended"])
    assert said == (last < 60), history["ended"]
    # Every step is in one entry, the last one too.
    assert np.diff([0, *history["step"]]).max() <= 7
    for at, loss in zip(history["step"][-2:], history["loss"][-2:], strict=True):
        assert np.isfinite(loss), at


def test_a_function_stops_and_a_second_call_goes_on():
    def half_way(step, metrics):
        return step >= 20 and metrics["step_seen"] == step

    options = {"eval_every": 5, "eval_fn": scripted([1]), "stop": half_way}
    state, history = training.fit(STEP, start(TX), DATA, until=40, **options)
    assert int(state.step) == 20
    assert str(history["ended"]) == "after step 20: half_way said so"
    state, _ = training.fit(STEP, state, DATA, until=40)
    chex.assert_trees_all_equal(state, by_hand(40)[40])


def test_a_deadline_ends_a_run_without_evaluations():
    given, ticks = start(TX), itertools.count()

    def batches():
        for index in ticks:
            yield DATA(index)

    state, history = training.fit(
        STEP, given, batches(), until=10**7, chunk=5, log_every=1000, stop=training.Deadline(0.5)
    )
    last = int(state.step)
    assert 5 <= last < 10**7
    assert last == history["step"][-1]
    assert "Deadline(seconds=0.5)" in str(history["ended"])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_best_state_is_a_copy_that_training_does_not_touch(chunk):
    best = training.Best("val_loss")
    options = {"eval_every": 10, "eval_fn": scripted([3, math.nan, 1, 2, 1]), "chunk": chunk}
    state, _ = training.fit(STEP, start(TX), DATA, steps=50, keep_best=best, **options)
    assert (best.step, best.value) == (30, 1.0)
    chex.assert_trees_all_equal(best.state, by_hand(30)[30])
    chex.assert_trees_all_equal(state, by_hand(50)[50])
    state, _ = training.fit(STEP, best.state.copy(), DATA, steps=20)
    chex.assert_trees_all_equal(state, by_hand(50)[50])
    assert "step=30, value=1" in repr(best)


def test_what_is_no_number_is_never_best():
    best = training.Best("val_loss", mode="max")
    options = {"eval_every": 10, "eval_fn": scripted([math.nan])}
    training.fit(STEP, start(TX), DATA, steps=30, keep_best=best, **options)
    assert best.state is best.step is best.value is None


def test_stopping_compiles_nothing_more(compilations):
    options = {"eval_every": 10, "eval_fn": scripted([1]), "log_every": 10}
    training.fit(STEP, start(TX), DATA, steps=30, **options)
    before = len(compilations)
    for stop in (training.Patience("val_loss", evaluations=1), training.Deadline(100)):
        training.fit(STEP, start(TX), DATA, steps=30, stop=stop, **options)
    assert len(compilations) == before


EVALUATED = {"eval_every": 10, "eval_fn": scripted([1])}
WRONG = {
    "both": ({"steps": 1, "until": 1}, TypeError, "one of `steps` and `until`.*steps=1, until=1"),
    "neither": ({}, TypeError, "one of `steps` and `until` must be given"),
    "until a float": ({"until": 1.5}, ValueError, "`until` must be .*got 1.5"),
    "until negative": ({"until": -1}, ValueError, "`until` must be .*got -1"),
    "no evaluation": (
        {"steps": 1, "stop": training.Patience("val_loss", evaluations=1)},
        ValueError,
        "`eval_every` must be given where `stop` is",
    ),
    "a mistyped name": (
        {"steps": 1, "stop": training.Patience("val_los", evaluations=1), **EVALUATED},
        ValueError,
        "`stop` must be .*did you mean 'val_loss'",
    ),
    "a mistyped best": (
        {"steps": 1, "keep_best": training.Best("vall_loss"), **EVALUATED},
        ValueError,
        "`keep_best` must be .*did you mean 'val_loss'",
    ),
    "best without evaluation": (
        {"steps": 1, "keep_best": training.Best("x")},
        ValueError,
        "`eval_fn` must be given where `keep_best` is",
    ),
    "best of a name": (
        {"steps": 1, "keep_best": "val_loss", **EVALUATED},
        TypeError,
        "`keep_best` must be a training.Best",
    ),
    "a class": ({"steps": 1, "stop": training.Patience}, TypeError, "`stop` must be an object"),
    "no function": ({"steps": 1, "stop": 3}, TypeError, "`stop` must be a function"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_before_the_first_step(options, error, message):
    given = start(TX)
    with pytest.raises(error, match=message):
        training.fit(STEP, given, DATA, **options)
    assert int(given.step) == 0


NO_NUMBERS = {
    "nothing": None,
    "a number": 1.0,
    "no names": {0: 1.0, "val_loss": 1.0},
    "complex": {"val_loss": np.complex64(1j)},
    "complex of JAX": {"val_loss": jnp.complex64(1j)},
    "text": {"val_loss": np.str_("low")},
    "a key": {"val_loss": jax.random.key(0)},
    "too large": {"val_loss": 10**400},
}


@pytest.mark.parametrize("found", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize("keep_best", [None, training.Best("val_loss")])
def test_what_is_no_number_by_its_name_is_refused(found, keep_best):
    options = {"eval_fn": lambda state: found, "keep_best": keep_best}
    with pytest.raises(TypeError, match=r"fit: `eval_fn` must be .* \{name: number\}"):
        training.fit(STEP, start(TX), DATA, steps=5, **options)


def test_any_mapping_of_numbers_is_an_evaluation():
    values = {"a": 1, "b": np.bool_(True), "c": jnp.bfloat16(0.5), "d": np.array(2.0)}
    found = types.MappingProxyType(values)
    _, history = training.fit(STEP, start(TX), DATA, steps=5, eval_fn=lambda state: found)
    assert [history[name].tolist() for name in values] == [[1.0], [1.0], [0.5], [2.0]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: training.Patience("a", evaluations=0), ValueError, "`evaluations`.*got 0"),
        (lambda: training.Patience("a", evaluations=1, mode="mim"), ValueError, "'min'"),
        (lambda: training.Patience("a", evaluations=1, min_delta=-1), ValueError, "`min_delta`"),
        (lambda: training.Patience(3, evaluations=1), TypeError, "`name`.*got 3"),
        (lambda: training.Best("a", mode="least"), ValueError, "`mode`"),
        (lambda: training.Best(""), TypeError, "`name`"),
        (lambda: training.Deadline(0), ValueError, "`seconds`.*got 0"),
        (lambda: training.Deadline("1h"), TypeError, "`seconds`.*got '1h'"),
    ],
)
def test_criteria_refuse_wrong_numbers(make, error, message):
    with pytest.raises(error, match=message):
        make()
