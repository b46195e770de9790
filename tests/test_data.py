"""Batches are what they seem: what does not fit together is refused by name, wherever given."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import masked_loss

from jax_lrreg import training

X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
TX = optax.sgd(0.1)


def apply(params, x):
    return x @ params


def loss_fn(model, batch):
    return masked_loss(model, {"y": jnp.zeros(len(batch["x"])), **batch})


STEP = training.make_step(apply, loss_fn, TX)


def start():
    return training.init(apply, TX, key=jax.random.key(0), params=jnp.ones(3))


def into_array_data(batch):
    return training.ArrayData(batch, 2, shuffle=False)


def into_fit(batch):
    return training.fit(STEP, start(), iter([batch] * 2), steps=2)


def into_a_stream(batch):
    return list(training.Stream([batch], remainder="drop"))


def into_a_padded_stream(batch):
    if isinstance(batch, dict) and "mask" in batch:
        raise ValueError("Stream: batches[0]['mask'] is refused whatever it is")
    return list(training.Stream([{"x": X, **batch}, batch], remainder="pad"))


def into_an_evaluation(batch):
    mean = training.make_eval(apply, lambda model, batch: {"v": jnp.mean(batch["x"])}, [batch])
    return mean(start())


PLACES = [into_array_data, into_fit, into_a_stream, into_a_padded_stream, into_an_evaluation]
OWNERS = ["ArrayData", "fit", "Stream", "Stream", "make_eval"]
WRONG = {
    "too few": ("a", {"x": X, "a": np.ones(3)}),
    "too many": ("a", {"x": X, "a": np.ones((11, 2))}),
    "deep": ("a/b/0", {"x": X, "a": {"b": [np.ones(3), np.ones(10)]}}),
    "on the device": ("a", {"x": X, "a": jnp.ones(3)}),
    "a raw key": ("a", {"x": X, "a": jax.random.PRNGKey(0)}),
    "text": ("a", {"x": X, "a": np.array(list("abcdefghij"))}),
    "one word": ("a", {"x": X, "a": "word"}),
    "objects": ("a", {"x": X, "a": np.array([None] * 10)}),
    "arrays in objects": ("a", {"x": X, "a": np.array([[1], [1, 2]] * 5, dtype=object)}),
    "dates": ("a", {"x": X, "a": np.array(["2020-01-01"] * 10, "datetime64[D]")}),
    "a list of numbers": ("a", {"x": X, "a": list(range(10))}),
    "a list of NumPy's numbers": ("a", {"x": X, "a": list(np.arange(10.0))}),
    "a short mask": ("mask", {"x": X, "mask": np.ones(3)}),
    "a mask for all": ("mask", {"x": X, "mask": 1.0}),
    "a negative mask": ("mask", {"x": X, "mask": np.r_[np.ones(9), -1.0]}),
    "a mask with NaN": ("mask", {"x": X, "mask": np.r_[np.ones(9), np.nan]}),
    "an infinite mask": ("mask", {"x": X, "mask": np.r_[np.ones(9), np.inf]}),
    "a complex mask": ("mask", {"x": X, "mask": np.ones(10) * 1j}),
    "masks": ("mask", {"x": X, "mask": {"x": np.ones(10)}}),
}


@pytest.mark.parametrize(("place", "owner"), list(zip(PLACES, OWNERS, strict=True)))
@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_together_is_refused_by_its_name_everywhere(place, owner, kind):
    name, batch = WRONG[kind]
    with pytest.raises(ValueError, match=rf"^{owner}: .*\b{re.escape(name)}\b"):
        place(batch)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "shared",
    [2.0, np.float32(2), np.array(2), jnp.float32(2), jax.random.key(1), {"deep": 2.0}, True],
    ids=lambda x: type(x).__name__,
)
def test_a_scalar_or_a_key_is_shared(place, shared):
    place({"x": X, "a": shared})


def test_what_is_shared_is_in_every_batch():
    key = jax.random.key(1)
    for remainder in ("drop", "pad"):
        data = training.ArrayData(
            {"x": X, "scale": 2.0, "key": key}, 4, jax.random.key(0), remainder=remainder
        )
        for step in range(3):
            batch = data(step)
            assert batch["scale"] == 2.0
            assert batch["key"] == key
            assert batch["x"].shape == (4, 3)

        def loss(model, batch):
            noise = jax.random.normal(batch["key"], ())
            return batch["scale"] * jnp.mean(model(batch["x"]) ** 2) + noise

        step, seen = training.make_step(apply, loss, TX), []
        for given in (data, (data(index) for index in range(9))):
            state, history = training.fit(step, start(), given, steps=9, log_every=3, chunk=2)
            seen.append((state.params, history["loss"]))
        chex.assert_trees_all_equal(*seen)
    evaluate = training.make_eval(apply, lambda _, batch: {"v": batch["x"].mean()}, data)
    np.testing.assert_allclose(evaluate(start())["v"], X.mean(), rtol=1e-5)


def test_class_weights_among_the_examples_are_refused_where_they_would_count_as_such():
    given = [{"class_weight": np.ones(3), "x": X}, {"class_weight": np.ones(3), "x": X[:2]}]
    evaluate = training.make_eval(apply, lambda _, batch: {"v": batch["x"].mean()}, given)
    with pytest.raises(ValueError, match=r"make_eval: `data\[0\]`.*'class_weight'.*'x'"):
        evaluate(start())
    with pytest.raises(ValueError, match=r"Stream: `batches\[0\]`.*'class_weight'.*'x'"):
        list(training.Stream(given, remainder="pad"))


def test_a_mask_that_is_wrong_in_a_later_batch_is_told_after_those_before_it():
    good = {"x": X, "mask": np.ones(10)}
    given = [good, good, {"x": X, "mask": -np.ones(10)}, good]
    with pytest.raises(ValueError, match=r"fit: `data\[2\]\['mask'\]`") as caught:
        training.fit(STEP, start(), given, steps=4)
    assert int(caught.value.state.step) == 2
    with pytest.raises(ValueError, match=r"make_eval: `data\[2\]\['mask'\]`"):
        training.make_eval(apply, lambda _, batch: {"v": 0.0}, given)(start())
    with pytest.raises(ValueError, match=r"ArrayData: `arrays\['mask'\]`"):
        training.ArrayData({"x": X, "mask": -jnp.ones(10)}, 2, shuffle=False)


@pytest.mark.parametrize("weights", [np.r_[1, 1, 0, 0.5], [True, True, False, True], [0, 1, 1, 2]])
def test_masks_weigh_batches_in_an_evaluation(weights):
    weights = np.asarray(weights)
    x = np.arange(4, dtype=np.float32)

    def mean(_, batch):
        return {"v": jnp.sum(batch["x"] * batch["mask"]) / jnp.sum(batch["mask"])}

    given = training.ArrayData({"x": x, "mask": weights}, 2, shuffle=False)
    for data in (given, [given(0), given(1)], (given(index) for index in range(2))):
        found = training.make_eval(lambda p, x: x, mean, data)(start())
        assert found["v"] == pytest.approx(np.average(x, weights=weights))


class TestEmpty:
    @pytest.mark.parametrize(
        "data", [[], (), iter([]), {}.values()], ids=lambda x: type(x).__name__
    )
    def test_no_batch(self, data):
        with pytest.raises(ValueError, match=r"^fit: `data` must be .* batch"):
            training.fit(STEP, start(), data, steps=2)
        with pytest.raises(ValueError, match=r"^make_eval: `data` must be at least one batch"):
            training.make_eval(apply, lambda *_: {"v": 0.0}, data)(start())
        assert list(training.Stream(data)) == []

    def test_no_examples(self):
        nothing = {"x": X[:0]}
        with pytest.raises(ValueError, match=r"^fit: `data\[0\]` must be .*1 example"):
            training.fit(STEP, start(), [nothing] * 2, steps=2)
        with pytest.raises(ValueError, match=r"^Stream: `batches\[0\]`"):
            list(training.Stream([nothing]))
        with pytest.raises(ValueError, match=r"^ArrayData: `arrays`"):
            training.ArrayData(nothing, 1, shuffle=False)
        some = training.make_eval(apply, lambda _, b: {"v": b["x"].mean()}, [nothing, {"x": X}])
        assert some(start())["v"] == pytest.approx(X.mean(), rel=1e-5)

    @pytest.mark.parametrize("arrays", [{}, [], None, {"a": 2.0}, 3.0], ids=repr)
    def test_no_arrays(self, arrays):
        with pytest.raises(
            ValueError, match=r"^ArrayData: `arrays` must be a tree with at least one"
        ):
            training.ArrayData(arrays, 1, shuffle=False)

    @pytest.mark.parametrize("batch", [{}, None, (), 1.0])
    def test_a_batch_without_examples_is_a_batch(self, batch):
        step = training.make_step(apply, lambda model, _: jnp.sum(model(jnp.eye(3))), TX)
        state, _ = training.fit(step, start(), iter([batch] * 4), steps=4)
        np.testing.assert_allclose(state.params, 0.6, rtol=1e-6)


NO_BATCHES = [{"x": X}, "x", X, jnp.ones(3), 3, None, lambda: [X], training.Stream]


@pytest.mark.parametrize("data", NO_BATCHES, ids=lambda x: type(x).__name__)
def test_what_is_no_iterable_of_batches_is_refused(data):
    with pytest.raises(TypeError, match=r"^fit: `data` must be an ArrayData or an iterable"):
        training.fit(STEP, start(), data, steps=2)
    with pytest.raises(TypeError, match=r"^steps: `data` must be an ArrayData or an iterable"):
        training.steps(STEP, start(), data, steps=2)
    with pytest.raises(TypeError, match=r"^make_eval: `data` must be an ArrayData or an iterable"):
        training.make_eval(apply, lambda *_: {}, data)
    with pytest.raises(TypeError, match=r"^Stream: `batches` must be an iterable of batches"):
        training.Stream(data)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2", None, 11, np.array([2, 3])], ids=repr)
def test_a_batch_size_is_a_whole_number(size):
    with pytest.raises(ValueError, match=r"^ArrayData: `batch_size` must be a whole number"):
        training.ArrayData(X, size, shuffle=False)
    assert training.ArrayData(X, np.int64(2), shuffle=False)(0).shape == (2, 3)


@pytest.mark.parametrize("step", [-1, 2.5, None, True])
def test_a_step_is_a_whole_number(step):
    data = training.ArrayData(X, 2, shuffle=False)
    with pytest.raises(ValueError, match=r"^ArrayData: `step` must be a whole number"):
        data(step)
    chex.assert_trees_all_equal(data(jnp.int32(1)), data(np.int64(1)), data(1), X[2:4])


def test_names_of_an_evaluation_that_change_from_batch_to_batch_are_refused():
    given = [{"x": X}, {"x": X, "y": X}]
    evaluate = training.make_eval(apply, lambda _, batch: dict.fromkeys(batch, 0.0), given)
    with pytest.raises(ValueError, match=r"make_eval: `metrics_fn` must be .* same names"):
        evaluate(start())


class TestPrinting:
    def test_data_in_a_line(self):
        data = training.ArrayData({"x": X, "y": {"z": jnp.ones(10, jnp.int32)}}, 2, shuffle=False)
        arrays = "{'x': 'float32[10, 3]', 'y/z': 'int32[10]'}"
        options = "batch_size=2, shuffle=False, remainder='drop'"
        assert repr(data) == f"ArrayData({arrays}, {options})"
        many = training.ArrayData([X] * 1000, 2, shuffle=False)
        assert repr(many) == f"ArrayData(<1000 arrays of 10 examples>, {options})"
        assert (
            repr(training.ArrayData(X, 2, shuffle=False)) == f"ArrayData(float32[10, 3], {options})"
        )

    def test_a_stream_in_a_line(self):
        assert repr(training.Stream([X] * 5)) == "Stream(<list of 5>, remainder='drop')"
        stream = training.Stream((X for _ in range(3)), remainder="pad")
        assert repr(stream) == "Stream(<generator>, remainder='pad')"

    def test_a_chunk_in_a_line_without_a_look_at_the_device(self, monkeypatch):
        for now in training.steps(STEP, start(), [{"x": X}] * 4, steps=4, log_every=2):
            with jax.transfer_guard_device_to_host("disallow"):
                names = ["data_loss", "grad_norm", "loss", "penalty", "skipped"]
                assert repr(now) == f"Chunk(step={now.step}, names={names})"
