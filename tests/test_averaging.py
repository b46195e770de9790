"""Averages within the step: equal to a loop by hand, and free where they are not asked for."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import NnxNet, apply, loss_fn, problem, start, zeros

from jax_lrreg import averages, pytree, schedules, training, transforms
from jax_lrreg.averages import EMA, Cooldown, Latest, Uniform
from jax_lrreg.training.modules import adapter_of

KINDS = [
    EMA(0.9, start=2),
    EMA(schedules.Linear(0.5, steps=10, end_value=0.95)),
    Uniform(start=3, every=2),
    Latest(3, every=2),
    Cooldown(9, shape="1-sqrt", bins=4),
]
each = pytest.mark.parametrize("average", KINDS, ids=repr)
TX = optax.adam(0.05)
BATCH = problem()
DATA = training.ArrayData(BATCH, batch_size=8, key=jax.random.key(1))


def by_hand(average, step, state, batches):
    """The same steps without an average, which is updated outside of them."""
    held = average.init(state.params)
    update = jax.jit(average.update)
    for number, batch in enumerate(batches):
        state, _ = step(state, batch)
        held = update(held, state.params, number)
    return jax.jit(average.value)(held)


@each
@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.sampled(5)
def test_it_is_that_of_a_loop_by_hand_whatever_the_chunk(average, chunk):
    plain = training.make_step(apply, loss_fn, TX, donate=False)
    wanted = by_hand(average, plain, start(TX), map(DATA, range(20)))
    step = training.make_step(apply, loss_fn, TX, average=average)
    state, _ = training.fit(step, start(TX), DATA, steps=20, chunk=chunk)
    chex.assert_trees_all_close(training.averaged(state).params, wanted, rtol=1e-6, atol=1e-7)


@each
@pytest.mark.sampled(3)
def test_chunks_give_the_same_bits(average):
    def run(chunk):
        step = training.make_step(apply, loss_fn, TX, average=average)
        return training.fit(step, start(TX), DATA, steps=20, chunk=chunk)[0]

    first = run(1)
    for chunk in (7, 100):
        chex.assert_trees_all_equal(run(chunk), first)


@each
def test_a_skipped_update_leaves_it_alone(average):
    step = training.make_step(apply, loss_fn, TX, average=average, donate=False)
    state, spoilt = start(TX), {**BATCH, "y": BATCH["y"] * np.nan}
    for number in range(12):
        state, _ = step(state, BATCH)
        if number % 3 == 0:
            after, metrics = step(state, spoilt)
            assert metrics["skipped"] == 1
            chex.assert_trees_all_equal(after.average, state.average)
            state = after
    plain = training.make_step(apply, loss_fn, TX, donate=False)
    wanted = by_hand(average, plain, start(TX), [BATCH] * 12)
    # It counts the optimizer's updates, not the calls of the step.
    chex.assert_trees_all_close(training.averaged(state).params, wanted, rtol=1e-6, atol=1e-7)


@each
def test_micro_batches_are_one_update(average):
    plain = training.make_step(apply, loss_fn, TX, accumulate=4, donate=False)
    wanted = by_hand(average, plain, start(TX), map(DATA, range(10)))
    step = training.make_step(apply, loss_fn, TX, accumulate=4, average=average)
    state, _ = training.fit(step, start(TX), DATA, steps=10)
    chex.assert_trees_all_close(training.averaged(state).params, wanted, rtol=1e-6, atol=1e-7)


WINDOWS = {
    "mean of the loss": lambda: transforms.mean_value(optax.MultiSteps(TX, 4)),
    "in a chain": lambda: optax.chain(
        optax.clip(1.0), optax.MultiSteps(TX, 4).gradient_transformation()
    ),
}


@pytest.mark.parametrize("tx", WINDOWS.values(), ids=WINDOWS)
@each
@pytest.mark.sampled(3)
def test_the_steps_of_a_window_are_one_update(average, tx):
    plain, state = training.make_step(apply, loss_fn, tx(), donate=False), start(tx())
    held = average.init(state.params)
    for number in range(42):
        state, _ = plain(state, DATA(number))
        if number % 4 == 3:
            held = average.update(held, state.params, number // 4)
    step = training.make_step(apply, loss_fn, tx(), average=average)
    state, _ = training.fit(step, start(tx()), DATA, steps=42)
    got = training.averaged(state).params
    chex.assert_trees_all_close(got, average.value(held), rtol=1e-5, atol=1e-6)


def test_where_only_some_parameters_have_windows_every_step_counts():
    slow = optax.MultiSteps(TX, 4).gradient_transformation()
    tx = optax.partition({"slow": slow, "fast": TX}, {"w": "fast", "b": "slow"})
    step = training.make_step(apply, loss_fn, tx, average=Uniform())
    state, _ = training.fit(step, start(tx), DATA, steps=6)
    assert int(state.average.weight) == 6


@each
def test_before_it_begins_it_is_the_current_parameters(average):
    step = training.make_step(apply, loss_fn, TX, average=average, donate=False)
    state, _ = step(start(TX), BATCH)
    if not isinstance(average, Cooldown):
        chex.assert_trees_all_equal(training.averaged(state).params, state.params)
    chex.assert_trees_all_equal(training.averaged(state).model_state, state.model_state)


def test_ema_is_short_for_the_average():
    short = training.make_step(apply, loss_fn, TX, ema=0.9)
    long = training.make_step(apply, loss_fn, TX, average=EMA(0.9))
    (one, _), (two, _) = (training.fit(step, start(TX), DATA, steps=9) for step in (short, long))
    chex.assert_trees_all_equal(one, two)


def test_bfloat16_parameters_have_an_average_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), zeros())
    step = training.make_step(apply, loss_fn, TX, average=Uniform())
    state, _ = training.fit(step, start(TX, params=params), DATA, steps=30)
    assert {x.dtype for x in jax.tree.leaves(state.average.mean)} == {jnp.dtype("float32")}
    assert training.averaged(state).params["w"].dtype == jnp.bfloat16


def test_what_is_not_trained_has_no_average_and_a_thawed_parameter_enters_it():
    step = training.make_step(apply, loss_fn, TX, average=Cooldown(8, bins=3))
    state, _ = training.fit(step, start(TX, trainable="w"), DATA, steps=10)
    assert state.average.ring["b"] == optax.MaskedNode()
    assert training.averaged(state).params["b"] == 0
    state = training.thaw(state, TX, trainable="**")
    state, _ = training.fit(step, state, DATA, steps=10)
    assert state.average.ring["b"].shape == (3,)
    assert training.averaged(state).params["b"] != 0


class Linen(nn.Module):
    """Batch statistics in two layers, the second in their place for good if frozen."""

    frozen: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(8)(x))
        x = nn.BatchNorm(use_running_average=self.frozen, momentum=0.7)(nn.relu(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))[:, 0]


def model_of(name):
    """A module with batch statistics and dropout, and a state of it."""
    if name == "nnx":
        module = NnxNet(3, 8, 1, 0.5)
        return module, training.init(module, TX, key=jax.random.key(0))
    return linen()


MODELS = pytest.mark.parametrize("name", ["linen", "nnx"])


@MODELS
def test_a_module_is_averaged_without_a_retrace(name):
    (module, state), traced = model_of(name), []

    def counted(model, batch):
        traced.append(1)
        return loss_fn(model, batch)

    step = training.make_step(module, counted, TX, average=Latest(3), donate=False)
    state, _ = training.fit(step, state.copy(), DATA, steps=5)
    before = len(traced)
    state, _ = training.fit(step, state, DATA, steps=5)
    assert len(traced) == before
    mean = training.averaged(state)
    merged = training.merge(module, mean)
    found = nnx.state(merged, nnx.Param) if name == "nnx" else merged["params"]
    wanted = jax.tree.map(lambda x: x.mean(0), state.average.ring)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for one, two in pairs:
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def statistics(model_state, value=None):
    """The means and variances in one vector; or the model state with a value in place of each."""

    def is_one(path):
        return jax.tree_util.keystr(path[-1:]) in ("['mean']", "['var']")

    if value is None:
        pairs = jax.tree_util.tree_flatten_with_path(model_state)[0]
        return np.concatenate([np.ravel(x) for path, x in pairs if is_one(path)])
    filled = lambda path, x: jnp.full_like(x, value) if is_one(path) else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(filled, model_state)


@MODELS
def test_statistics_are_the_means_over_the_data(name):
    module, state = model_of(name)
    sizes, wanted, adapter = (24, 8), 0, adapter_of(module)
    batches = [jax.tree.map(lambda x, n=n: x[:n], BATCH) for n in sizes]
    third = lambda model, batch, now: loss_fn(model, batch) + 0 * now.step  # noqa: E731
    fresh = training.refresh_statistics(module, state, batches, loss_fn=third)
    for number, batch in enumerate(batches):
        # The momentum is the difference between what 0 and what 1 become.
        ends = []
        for value in (0.0, 1.0):
            key = jax.random.fold_in(state.key, number)
            bound = adapter.bind(state.params, statistics(state.model_state, value), key)
            loss_fn(bound.model, batch)
            ends.append(statistics(bound.model_state()))
        wanted = wanted + sizes[number] / 32 * ends[0] / (1 - (ends[1] - ends[0]))
    np.testing.assert_allclose(statistics(fresh.model_state), wanted, rtol=1e-3, atol=1e-5)
    same = (fresh.params, fresh.opt_state, fresh.step)
    chex.assert_trees_all_equal(same, (state.params, state.opt_state, state.step))


def test_frozen_statistics_stay_and_count():
    module = Linen(frozen=True)
    state = training.init(module, TX, key=jax.random.key(0), example=BATCH["x"][:2])
    own = jax.tree.map(lambda x: x + 1.5, state.model_state)
    state = state.replace(model_state=own)
    fresh = training.refresh_statistics(module, state, DATA, loss_fn=loss_fn)
    old, new = state.model_state["batch_stats"], fresh.model_state["batch_stats"]
    chex.assert_trees_all_close(new["BatchNorm_1"], old["BatchNorm_1"], rtol=1e-6)
    assert np.abs(new["BatchNorm_0"]["mean"] - old["BatchNorm_0"]["mean"]).min() > 0.1


def test_averaged_weights_with_their_own_statistics_are_no_worse():
    """Those of the latest weights do not fit the average: the loss is larger with them."""
    module = Linen()
    tx = optax.adam(0.05)
    state = training.init(module, tx, key=jax.random.key(0), example=BATCH["x"][:2])
    step = training.make_step(module, loss_fn, tx, average=Uniform(start=10))
    state, _ = training.fit(step, state, DATA, steps=100)
    mean = training.averaged(state)
    fresh = training.refresh_statistics(module, mean, DATA, loss_fn=loss_fn)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), fresh.model_state, mean.model_state)
    assert max(jax.tree.leaves(apart)) > 0.01
    again = training.refresh_statistics(module, fresh, DATA, loss_fn=loss_fn)
    chex.assert_trees_all_close(again.model_state, fresh.model_state, rtol=1e-4, atol=1e-5)


# What it costs.


def test_nothing_is_there_where_it_is_not_asked_for():
    def lowered(**options):
        step = training.make_step(apply, loss_fn, TX, **options)
        return jax.jit(step.body).lower(start(TX), BATCH).as_text()

    assert lowered(average=None) == lowered() == lowered(ema=None) != lowered(ema=0.9)
    state, _ = training.make_step(apply, loss_fn, TX)(start(TX), BATCH)
    assert state.average is None
    assert jax.tree.leaves((state.average, state.averaging)) == []


def test_a_ring_is_written_in_place():
    """No copy of it within the loop: what it takes beside the state is one slot."""
    params = {"w": jnp.ones((256, 256))}
    memory = {}
    for average in (EMA(0.9), Cooldown(100, bins=16), Latest(16)):
        step = training.make_step(
            lambda p, x: x * jnp.sum(p["w"] ** 2), lambda model, x: model(x), TX, average=average
        )
        state = step.complete(training.init(lambda p: p, TX, key=jax.random.key(0), params=params))

        def loop(state, step=step):
            return jax.lax.fori_loop(0, 9, lambda i, s: step.body(s, jnp.ones(()))[0], state)

        program = jax.jit(loop, donate_argnums=0).lower(state).compile()
        memory[average] = program.memory_analysis().temp_size_in_bytes
    least = min(memory.values())
    assert max(memory.values()) <= least + 2 * params["w"].nbytes


# What is refused.


def test_a_state_goes_on_with_its_own_kind_of_average_only():
    step = training.make_step(apply, loss_fn, TX, average=EMA(0.9))
    state, _ = step(start(TX), BATCH)
    other = training.make_step(apply, loss_fn, TX, average=EMA(schedules.Constant(0.5)))
    state, _ = other(state, BATCH)  # its numbers are the step's
    wrong = training.make_step(apply, loss_fn, TX, average=Cooldown(10))
    with pytest.raises(ValueError, match=r"`state.average` must be that of averages.Cooldown"):
        wrong(state, BATCH)
    state, _ = wrong(state.replace(average=None), BATCH)
    assert state.average.ring["w"].shape == (8, 3)
    state, _ = training.make_step(apply, loss_fn, TX)(state, BATCH)  # without one: it stays
    assert state.average.count == 1


WRONG = {
    "`average` must be one of jax_lrreg.averages": lambda: made(average=0.9),
    "`average` must be one of": lambda: made(average=EMA),
    "`average` must be one number": lambda: made(average=EMA(np.array([0.5, 0.9]))),
    "`ema` must be left out": lambda: made(ema=0.9, average=Uniform()),
    "`ema` must be a number": lambda: made(ema=1.0),
    "`state` must be one with an average": lambda: training.averaged(start(TX)),
    "`state` must be a State": lambda: training.averaged(zeros()),
    "`module` must be a module with batch statistics": lambda: refreshed(apply, start(TX)),
    "`loss_fn` must be a function that calls": lambda: refreshed(*linen(), eval_loss),
    "`data` must be at least one batch": lambda: refreshed(*linen(), loss_fn, []),
    "`data` must be an ArrayData": lambda: refreshed(*linen(), loss_fn, BATCH),
}


def made(**options):
    return training.make_step(apply, loss_fn, TX, **options)


def linen():
    return Linen(), training.init(Linen(), TX, key=jax.random.key(0), example=BATCH["x"][:2])


def eval_loss(model, batch):
    del model
    return jnp.mean(batch["x"])


def refreshed(module, state, loss_fn=loss_fn, data=DATA):
    return training.refresh_statistics(module, state, data, loss_fn=loss_fn)


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_argument_is_refused_by_its_name(words):
    with pytest.raises((ValueError, TypeError), match=words):
        WRONG[words]()


def test_decays_are_swept():
    def run(decay):
        step = training.make_step(apply, loss_fn, TX, average=EMA(decay))
        state = step.complete(start(TX))
        for number in range(5):
            state, _ = step.body(state, DATA(number))
        return training.averaged(state).params

    swept = jax.vmap(run)(jnp.array([0.0, 0.5, 0.9]))
    for index, decay in enumerate((0.0, 0.5, 0.9)):
        one = jax.tree.map(lambda x, index=index: x[index], swept)
        chex.assert_trees_all_close(one, run(decay), rtol=1e-5)


def test_an_average_of_ones_own():
    class Largest(averages.Average):
        """The entries of the largest modulus."""

        def init(self, params):
            return jax.tree.map(jnp.copy, params)

        def update(self, state, params, step, where=True):
            new = lambda a, b: jnp.where((abs(b) > abs(a)) & where, b, a)  # noqa: E731
            return jax.tree.map(new, state, params)

        def value(self, state):
            return state

    step = training.make_step(apply, loss_fn, TX, average=pytree(Largest)())
    state, _ = training.fit(step, start(TX), DATA, steps=20)
    assert np.all(np.abs(training.averaged(state).params["w"]) >= np.abs(state.params["w"]))
