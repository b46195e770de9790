"""Batches from iterables: drawn exactly as many as needed, and what goes wrong is told."""

import itertools
import subprocess
import sys
import threading
import traceback

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import environment_of, masked_loss

from jax_lrreg import training


def apply(params, x):
    return x @ params


STEP = training.make_step(apply, masked_loss, optax.adam(0.05))


def start():
    return training.init(apply, optax.adam(0.05), key=jax.random.key(0), params=jnp.zeros(3))


def batch(index, size=8):
    x = np.random.default_rng(index).normal(size=(size, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


def batches(count, begin=0):
    return [batch(index) for index in range(begin, begin + count)]


def by_hand(data):
    state = start()
    for each in data:
        state, _ = STEP(state, each)
    return state


@pytest.mark.parametrize("chunk", [1, 3, 7, "auto"])
def test_every_chunk_gives_the_same_numbers_in_the_order_of_the_iterable(chunk):
    reference, expected = training.fit(STEP, start(), batches(40), steps=40, log_every=10, chunk=10)
    state, history = training.fit(
        STEP, start(), iter(batches(40)), steps=40, log_every=10, chunk=chunk
    )
    chex.assert_trees_all_equal(state, reference)
    chex.assert_trees_all_equal(dict(history), dict(expected))
    np.testing.assert_allclose(state.params, by_hand(batches(40)).params, rtol=1e-5)


def test_never_more_is_drawn_than_is_needed_so_an_iterator_goes_on():
    whole, _ = training.fit(STEP, start(), batches(30), steps=30, log_every=4)
    stream, state = iter(batches(30)), start()
    for steps in (7, 11, 12):
        state, _ = training.fit(STEP, state, stream, steps=steps, log_every=4)
    chex.assert_trees_all_equal(state, whole)
    assert next(stream, None) is None


def test_the_batches_of_one_more_call_are_drawn_while_the_device_works():
    drawn, begun = [], threading.active_count()

    def stream():
        for index in range(100):
            drawn.append(index)
            yield batch(index)

    chunks = training.steps(STEP, start(), stream(), steps=20, chunk=5, log_every=5)
    assert drawn == []
    seen = [(now.step, len(drawn)) for now in chunks]
    assert seen == [(5, 10), (10, 15), (15, 20), (20, 20)]
    assert threading.active_count() == begun


def broken(at):
    yield from batches(at)
    raise KeyError("a shard is missing")


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_an_error_of_the_iterable_comes_with_its_traceback_after_every_batch_before_it(chunk):
    given = start()
    with pytest.raises(KeyError, match="a shard is missing") as caught:
        training.fit(STEP, given, broken(10), steps=50, chunk=chunk)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    left = caught.value.state
    assert int(left.step) == 10
    assert "after step 10" in caught.value.__notes__[0]
    rest, _ = training.fit(STEP, left, batches(5, begin=10), steps=5)
    whole, _ = training.fit(STEP, start(), batches(15), steps=15)
    chex.assert_trees_all_equal(rest, whole)


WRONG = {
    "ended after 3 batches": lambda: iter(batches(3)),
    "batch 3 of `data` is .*float32.7, 3": lambda: iter([*batches(3), batch(3, size=7)]),
    "batch 3 of `data` is .*float64": lambda: iter(
        [*batches(3), jax.tree.map(np.float64, batch(3))]
    ),
    "batch 3 of `data` is .*'z'": lambda: iter([*batches(3), {**batch(3), "z": np.ones(8)}]),
    "batch 3 of `data` is": lambda: iter([*batches(3), tuple(batch(3).values())]),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_stream_that_ends_early_or_changes_is_refused_where_it_does(words):
    given = start()
    with pytest.raises(ValueError, match=f"^fit: .*{words}") as caught:
        training.fit(STEP, given, WRONG[words](), steps=20)
    assert int(caught.value.state.step) == 3
    # It was the first call of the device: nothing that was given is lost.
    assert not given.params.is_deleted()
    np.testing.assert_allclose(caught.value.state.params, by_hand(batches(3)).params, rtol=1e-5)
    with pytest.raises(ValueError, match=f"^steps: .*{words}"):
        list(training.steps(STEP, start(), WRONG[words](), steps=20))


@pytest.mark.parametrize(
    "data",
    [[], [{"x": np.array(["a"])}], iter(()), broken(0)],
    ids=["none", "text", "end", "error"],
)
def test_a_wrong_first_batch_leaves_the_state_alone(data):
    given = start()
    with pytest.raises((ValueError, KeyError), match=r"data|shard") as caught:
        training.fit(STEP, given, data, steps=20)
    assert not given.params.is_deleted()
    assert not hasattr(caught.value, "state")


def test_a_step_that_cannot_be_traced_leaves_the_state_alone():
    given, step = (
        start(),
        training.make_step(apply, lambda model, batch: jnp.ones(2), optax.adam(0.05)),
    )
    with pytest.raises(ValueError, match="real scalar"):
        training.fit(step, given, iter(batches(9)), steps=9)
    assert not given.params.is_deleted()


def test_a_keyboard_interrupt_leaves_the_state():
    def logger(step, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        training.fit(
            STEP, start(), itertools.cycle(batches(4)), steps=10_000, log_every=10, loggers=[logger]
        )
    # The entry of step 10 is read while the steps after it are made.
    assert caught.value.state.step == 20


def test_a_loader_may_use_its_memory_again():
    def stream():
        memory = batch(0)
        for index in range(20):
            for name, value in batch(index).items():
                memory[name][...] = value
            yield memory

    state, _ = training.fit(STEP, start(), stream(), steps=20, chunk=5)
    chex.assert_trees_all_equal(state, training.fit(STEP, start(), batches(20), steps=20)[0])


def test_arrays_of_the_device_are_stacked_there():
    stream = (jax.tree.map(jnp.asarray, each) for each in batches(20))
    with jax.transfer_guard_device_to_host("disallow"):
        state, _ = training.fit(STEP, start(), stream, steps=20, chunk=7)
    chex.assert_trees_all_equal(state, training.fit(STEP, start(), batches(20), steps=20)[0])


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensors = [jax.tree.map(torch.from_numpy, each) for each in batches(20)]
    loader = torch.utils.data.DataLoader(tensors, batch_size=None)
    state, _ = training.fit(STEP, start(), loader, steps=20)
    chex.assert_trees_all_equal(state, training.fit(STEP, start(), batches(20), steps=20)[0])


def test_the_types_are_those_of_the_callers_context():
    with jax.enable_x64(True):
        tx = optax.sgd(0.1)
        state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(3, jnp.float64))
        step = training.make_step(apply, masked_loss, tx)
        data = [jax.tree.map(np.float64, each) for each in batches(20)]
        one, _ = training.fit(step, jax.tree.map(jnp.copy, state), data, steps=20, chunk=1)
        many, _ = training.fit(step, state, data, steps=20, chunk=10)
    assert one.params.dtype == np.float64
    chex.assert_trees_all_equal(one, many)


def test_on_four_devices_every_kind_of_data_trains_the_same():
    code = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jax_lrreg import training
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
rng = np.random.default_rng(0)
arrays = {"x": np.float32(rng.normal(size=(96, 3))), "y": np.float32(rng.normal(size=96))}
data = training.ArrayData(arrays, 16, jax.random.key(1))
loss = lambda model, batch: jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
apply, tx = lambda p, x: x @ p, optax.adam(0.05)
step = training.make_step(apply, loss, tx)
def run(given, where, **options):
    state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(3), sharding=where)
    state, history = training.fit(step, state, given, steps=14, log_every=7, **options)
    assert len(state.params.sharding.device_set) == (1 if where is None else 4)
    return np.asarray(state.params), history["loss"]
expected = run(data, None)
sent = [jax.device_put(data(index), split) for index in range(14)]
for chunk in (1, 3, 7):
    for given in (data, (data(index) for index in range(14)), sent, iter(sent)):
        for ours, theirs in zip(run(given, whole, chunk=chunk), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
print("same")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(4))
    assert done.stdout.strip() == "same", done.stderr[-2000:]


class TestStream:
    def ragged(self):
        return [batch(0), batch(1), batch(2, size=3), batch(3), batch(4, size=5)]

    def test_drops(self):
        got = list(training.Stream(iter(self.ragged())))
        assert [len(each["x"]) for each in got] == [8, 8, 8]
        np.testing.assert_array_equal(got[2]["x"], batch(3)["x"])

    def test_pads_with_weight_0(self):
        got = list(training.Stream(self.ragged(), remainder="pad"))
        assert [each["mask"].sum() for each in got] == [8, 8, 3, 8, 5]
        assert {each["x"].shape for each in got} == {(8, 3)}
        np.testing.assert_array_equal(got[4]["x"][:5], batch(4, size=5)["x"])
        state, _ = training.fit(
            STEP, start(), training.Stream(self.ragged(), remainder="pad"), steps=5
        )
        np.testing.assert_allclose(state.params, by_hand(self.ragged()).params, rtol=1e-5)

    def test_refuses(self):
        with pytest.raises(
            ValueError, match=r"Stream: `batches\[2\]` must be a batch of 8 examples, .* got 3"
        ):
            training.fit(STEP, start(), training.Stream(self.ragged(), remainder="error"), steps=5)
        with pytest.raises(ValueError, match=r"batches\[1\].* got 9"):
            list(training.Stream([batch(0), batch(1, size=9)]))

    def test_an_iterator_goes_on_behind_it(self):
        stream = training.Stream(iter([*batches(3), batch(3, size=2), *batches(3, begin=4)]))
        state, _ = training.fit(STEP, start(), stream, steps=3)
        state, _ = training.fit(STEP, state, stream, steps=3)
        np.testing.assert_allclose(
            state.params, by_hand([*batches(3), *batches(3, begin=4)]).params, rtol=1e-5
        )

    @pytest.mark.parametrize(
        ("error", "words", "call"),
        [
            (TypeError, "`batches`", lambda: training.Stream(3)),
            (ValueError, "`remainder`", lambda: training.Stream([], remainder="wrap")),
            (
                ValueError,
                "dicts without `mask`",
                lambda: list(training.Stream([np.ones(3)], remainder="pad")),
            ),
            (
                ValueError,
                "dicts without `mask`",
                lambda: list(training.Stream([{"mask": np.ones(3)}], "pad")),
            ),
        ],
    )
    def test_a_wrong_call_is_refused_by_name(self, error, words, call):
        with pytest.raises(error, match=words):
            call()
