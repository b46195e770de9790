"""Averages of parameters: each is the weighted sum that its docstring says, in NumPy's float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import averages, schedules, text
from jax_lrreg.averages import EMA, Cooldown, Latest, RisingDecay, Uniform

SHAPES = {  # from 1 to 0, as `Schedule.cooldown` has them
    "linear": lambda x, _: 1 - x,
    "cosine": lambda x, _: (1 + np.cos(np.pi * x)) / 2,
    "power": lambda x, average: (1 - x) ** average.power,
    "1-sqrt": lambda x, _: 1 - np.sqrt(x),
    "square": lambda x, _: 1 - x**2,
    "exponential": lambda x, average: (average.rate**x - average.rate) / (1 - average.rate),
}
LENGTH = 40
WINDOWS = [
    Cooldown(9, bins=9),
    Cooldown(1),
    Cooldown(2, bins=2),
    Cooldown(12, shape="1-sqrt", bins=4),
    Cooldown(17, shape="cosine", bins=3),
    Cooldown(30, shape="power", power=0.7, bins=2),
    Cooldown(25, shape="exponential", rate=0.3, bins=9),
    Cooldown(1000, shape="square", bins=5),
]
EXAMPLES = [
    EMA(0.0),
    EMA(0.9),
    EMA(0.9, start=7),
    EMA(schedules.Linear(0.5, steps=20, end_value=0.95)),
    EMA.like_timm(0.9, update_after_step=3, warmup_gamma=2.0),
    EMA.like_tensorflow(0.7),
    Uniform(),
    Uniform(start=5, every=4),
    Latest(1),
    Latest(4),
    Latest(3, every=5),
    *WINDOWS,
]
each = pytest.mark.parametrize("average", EXAMPLES, ids=repr)


def walk(length=LENGTH, seed=0):
    """Parameters at first and after each update."""
    rng = np.random.default_rng(seed)
    way = {"w": rng.normal(size=(length + 1, 3)), "b": rng.normal(size=length + 1)}
    return jax.tree.map(lambda x: np.cumsum(x, 0).astype(np.float32), way)


def at(way, index):
    return jax.tree.map(lambda x: x[index], way)


def read(average, way, step=None):
    """The average after each update, as one scan."""

    def one(state, now):
        index, params = now
        state = average.update(state, params, index)
        return state, average.value(state)

    after = jax.tree.map(lambda x: jnp.asarray(x[1:]), way)
    count = len(after["b"])
    return jax.lax.scan(one, average.init(at(way, 0)), (jnp.arange(count), after))[1]


def fall(average, length):
    """What the updates of a cooldown are multiplied by, and 0 after the last."""
    return SHAPES[average.shape](np.arange(length + 1) / length, average)


@functools.cache
def decays(average):
    """The decay of each update."""
    scheduled = isinstance(average.decay, schedules.Schedule)
    steps = np.arange(LENGTH)
    return np.asarray(average.decay(steps)) if scheduled else np.full(LENGTH, average.decay)


def expected(average, x):
    """The average of x[0] and what came after it, by its definition; the last entry is newest."""
    x, count = x.astype(np.float64), len(x) - 1
    steps = np.arange(count)  # the update `step` led to x[step + 1]
    if isinstance(average, Cooldown):
        length = min(count, average.steps)
        path = x[1:] if average.bins >= average.steps else straightened(average, x)
        return np.tensordot(-np.diff(fall(average, length)), path[-length:], 1)
    weight = np.zeros(count)
    if isinstance(average, EMA):
        decay = decays(average)
        for step in steps[average.start :]:
            weight *= decay[step]
            weight[step] += 1 - decay[step]
    else:
        start = getattr(average, "start", 0)
        taken = [s for s in steps if s >= start and (s - start + 1) % average.every == 0]
        weight[taken[-average.count :] if isinstance(average, Latest) else taken] = 1.0
    return np.tensordot(weight / weight.sum(), x[1:], 1) if weight.any() else x[-1]


def straightened(average, x):
    """The way with straight lines between the middles of its bins, and the first parameters."""
    size, count = average._size, len(x) - 1
    bins = [np.arange(k, min(k + size, count)) for k in range(0, count, size)]
    middles = np.array([-1.0, *(b.mean() for b in bins)])
    means = np.stack([x[0], *(x[1:][b].mean(0) for b in bins)])
    kept = slice(-average.bins, None) if len(means) > average.bins else slice(None)
    middles, means = middles[kept], means[kept]
    way = np.empty_like(x[1:])
    for t in range(count):
        right = int(np.clip(np.searchsorted(middles, t), 1, len(middles) - 1))
        share = (t - middles[right - 1]) / (middles[right] - middles[right - 1])
        way[t] = means[right - 1] + share * (means[right] - means[right - 1])
    return way


@each
@pytest.mark.sampled(8)
def test_it_is_the_weighted_sum_that_it_says_after_every_update(average):
    way = walk()
    found = read(average, way)
    for name, x in way.items():
        wanted = [expected(average, x[: step + 2]) for step in range(LENGTH)]
        np.testing.assert_allclose(found[name], np.stack(wanted), rtol=2e-5, atol=3e-5)


@each
@pytest.mark.sampled(6)
def test_it_is_the_same_compiled_batched_and_in_a_loop(average):
    ways = [walk(seed=seed) for seed in range(3)]
    batched = jax.vmap(lambda way: read(average, way))(jax.tree.map(lambda *x: np.stack(x), *ways))
    update, value = jax.jit(average.update), jax.jit(average.value)
    for index, way in enumerate(ways):
        state = average.init(at(way, 0))
        chex.assert_trees_all_close(value(state), at(way, 0), rtol=1e-6)
        for step in range(LENGTH):
            state = update(state, at(way, step + 1), step)
        chex.assert_trees_all_close(value(state), at(at(batched, index), -1), rtol=1e-5, atol=1e-5)
    by_hand = average.update(average.init(at(way, 0)), at(way, 1), 0)
    chex.assert_trees_all_close(average.value(by_hand), at(read(average, way), 0), rtol=1e-5)


@each
def test_its_text_reads_back(average):
    assert text.parse(repr(average)) == average
    assert text.from_dict(text.to_dict(average)) == average


@each
@pytest.mark.sampled(6)
def test_where_nothing_was_done_nothing_changes(average):
    way = walk()
    update = jax.jit(average.update)
    state = average.init(at(way, 0))
    for step in range(12):
        spoilt = jax.tree.map(lambda x: x * np.nan, at(way, 0))
        chex.assert_trees_all_equal(update(state, spoilt, step, where=False), state)
        state = update(state, at(way, step + 1), step, where=True)
    wanted = at(read(average, at(way, slice(13))), -1)
    chex.assert_trees_all_close(average.value(state), wanted, rtol=1e-5)


@each
@pytest.mark.sampled(6)
def test_any_tree_and_any_dtype(average):
    key = jax.random.key(0)
    params = {
        "bf16": jnp.ones(4, jnp.bfloat16),
        "complex": jnp.ones(2) * (1 + 2j),
        "half": np.ones(2, np.float16),
        "none": None,
        "masked": optax.MaskedNode(),
        "count": jnp.array([3, 4]),
        "flag": np.array(True),
        "key": key,
        "number": 1.0,
    }
    state = average.init(params)
    held = {id(leaf) for leaf in jax.tree.leaves(params)}
    assert not held & {id(leaf) for leaf in jax.tree.leaves(state)}
    assert (jax.tree.map(jnp.shape, average.update(state, params, 0))) == jax.tree.map(
        jnp.shape, state
    )
    for step in range(12):
        params = {**params, "count": params["count"] + 1}
        state = jax.jit(average.update)(state, params, step)
    value = average.value(state)
    assert jax.tree.structure(value) == jax.tree.structure(params)
    names = ("bf16", "half", "complex", "number")
    assert [value[n].dtype for n in names] == ["float32", "float32", "complex64", "float32"]
    for name in names:
        np.testing.assert_allclose(value[name], np.asarray(params[name], complex), rtol=1e-6)
    assert value["count"].tolist() == [15, 16]
    assert value["flag"]
    assert value["key"] == key


def test_in_bfloat16_it_goes_on():
    """A mean in bfloat16 would stand still: 1 + 0.001 is 1 there."""
    average, params = EMA(0.999), jnp.ones(2, jnp.bfloat16)
    state = average.init(params)
    one = lambda step, state: average.update(state, params * (step % 2), step)  # noqa: E731
    state = jax.lax.fori_loop(0, 400, one, state)
    np.testing.assert_allclose(average.value(state), 0.5, atol=0.01)


@each
@pytest.mark.sampled(5)
def test_at_the_last_steps_it_stays_finite(average):
    state = average.init({"w": jnp.ones(2)})
    for step in range(2**31 - 4, 2**31):
        state = jax.jit(average.update)(state, {"w": jnp.ones(2)}, jnp.int32(step))
    np.testing.assert_allclose(average.value(state)["w"], 1.0, rtol=1e-6)


def test_a_number_that_was_not_finite_is_forgotten():
    for average in (Latest(2), Cooldown(2, bins=2), EMA(0.0)):
        state = average.init({"w": jnp.full(2, jnp.nan)})
        for step in range(8):
            state = average.update(state, {"w": jnp.ones(2)}, step)
        assert average.value(state)["w"].tolist() == [1.0, 1.0]


def test_decays_may_be_traced():
    way, decays = walk(), jnp.array([0.0, 0.5, 0.99])
    swept = jax.vmap(lambda decay: read(EMA(decay), way))(decays)
    for index, decay in enumerate((0.0, 0.5, 0.99)):
        chex.assert_trees_all_close(at(swept, index), read(EMA(decay), way), rtol=1e-5)
    slope = jax.grad(lambda decay: at(read(EMA(decay), way), -1)["b"])(0.9)
    assert np.isfinite(slope)
    assert slope != 0


def test_cost_is_one_copy_whatever_the_number_of_bins():
    """A ring is written in place: the compiled loop copies none of it."""
    params = {"w": jnp.ones((256, 256))}
    for average in (Cooldown(100, bins=16), Latest(16, every=3), EMA(0.9)):

        def loop(state, params, average=average):
            where = lambda i: params["w"][0, 0] > i  # noqa: E731
            one = lambda i, s: average.update(s, params, i, where=where(i))  # noqa: E731
            return jax.lax.fori_loop(0, 100, one, state)

        compiled = jax.jit(loop, donate_argnums=0).lower(average.init(params), params).compile()
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < 3 * params["w"].nbytes


# What a cooldown would have come to.


def cooled(average, rate, slopes, steps):
    """Where gradient descent on a linear loss ends if the last of `steps` updates cool down."""
    length = min(average.steps, steps)
    return -rate * slopes * (steps - length + np.sum(fall(average, length)))


@pytest.mark.parametrize("bins", [2, 8, 50])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [7, 50])
@pytest.mark.sampled(9)
def test_on_a_linear_loss_it_is_the_cooled_down_run_at_any_step(shape, steps, bins):
    average = Cooldown(steps, shape=shape, bins=bins)
    slopes = np.array([1.0, -2.0, 0.5])
    tx = optax.sgd(0.01)

    def one(carry, step):
        params, opt_state, state = carry
        updates, opt_state = tx.update(jnp.asarray(slopes, jnp.float32), opt_state)
        params = optax.apply_updates(params, updates)
        state = average.update(state, params, step)
        return (params, opt_state, state), average.value(state)

    start = jnp.zeros(3)
    found = jax.lax.scan(one, (start, tx.init(start), average.init(start)), jnp.arange(70))[1]
    wanted = np.stack([cooled(average, 0.01, slopes, step + 1) for step in range(70)])
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.sampled(2)
def test_with_more_bins_it_is_nearer_to_the_exact_average(shape):
    way = walk(300)
    exact = at(read(Cooldown(200, shape=shape, bins=200), way), -1)["w"]

    def distance(bins):
        return np.abs(at(read(Cooldown(200, shape=shape, bins=bins), way), -1)["w"] - exact).max()

    assert distance(64) < 0.5 * distance(4)
    assert distance(64) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.sampled(2)
def test_checkpoints_merge_to_what_is_kept_along_the_way(shape):
    way = walk(9)
    weights = averages.weights(shape, 9)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
    merged = averages.merge([at(way, k + 1) for k in range(9)], weights)
    kept = at(read(Cooldown(9, shape=shape, bins=9), way), -1)
    chex.assert_trees_all_close(merged, kept, rtol=2e-6, atol=1e-6)


def test_weights_take_the_parameter_of_their_shape():
    x = 1 - np.arange(6) / 5
    np.testing.assert_allclose(averages.weights("power", 5, power=3.0), -np.diff(x**3), rtol=1e-5)
    wanted = -np.diff((0.2 ** (1 - x) - 0.2) / 0.8)
    np.testing.assert_allclose(averages.weights("exponential", 5, rate=0.2), wanted, rtol=1e-5)


def test_merged_parameters_keep_their_dtypes_and_what_is_no_parameter():
    trees = [{"w": jnp.full(2, k, jnp.bfloat16), "n": jnp.array(k), "none": None} for k in range(3)]
    merged = averages.merge(trees, [0.5, 0.25, 0.25])
    assert merged["w"].dtype == jnp.bfloat16
    assert merged["w"].tolist() == [0.75, 0.75]
    assert merged["n"] == 2
    assert merged["none"] is None
    slope = jax.grad(lambda w: averages.merge([1.0, 3.0], jnp.stack([w, 1 - w])))(0.5)
    assert slope == -2.0


# Presets.


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(("gamma", "power"), [(1.0, 2 / 3), (5.0, 0.75)])
def test_like_timm_is_its_recursion(after, gamma, power):
    """`ModelEmaV3.update(model, step=n)` of timm 1.0, n counted from 1, in NumPy."""
    x = walk()["w"].astype(np.float64)
    ema = EMA.like_timm(0.9, update_after_step=after, warmup_gamma=gamma, warmup_power=power)
    found = read(ema, walk())["w"]
    mean = x[0]
    for number in range(1, LENGTH + 1):
        since = max(0, number - after - 1)
        decay = 0.0 if since <= 0 else min(1 - (1 + since / gamma) ** -power, 0.9)
        mean = decay * mean + (1 - decay) * x[number]
        np.testing.assert_allclose(found[number - 1], mean, rtol=1e-5, atol=1e-5)


def test_like_tensorflow_has_its_decay():
    step = np.arange(10_000)
    found = EMA.like_tensorflow(0.99).decay(step)
    np.testing.assert_allclose(found, np.minimum((1 + step) / (10 + step), 0.99), rtol=1e-6)


def test_a_decay_rises_as_its_formula_says():
    decay = RisingDecay(0.9999, init_value=0.2, timescale=7.0, exponent=0.75)
    step = np.arange(0, 10**6, 997, dtype=np.float64)
    wanted = np.minimum(1 - 0.8 * (1 + step / 7) ** -0.75, 0.9999)
    np.testing.assert_allclose(decay(step.astype(np.int32)), wanted, rtol=1e-6)


# What is refused.

TREE = {"w": jnp.ones(2)}
WRONG = {
    "`decay`": [
        lambda: EMA(1.0),
        lambda: EMA(-0.1),
        lambda: EMA(float("nan")),
        lambda: EMA("0.9"),
        lambda: EMA(lambda step: 0.9),
        lambda: EMA(np.array([0.9, 1.5])),
        lambda: EMA(schedules.Constant(1.0)),
        lambda: EMA(schedules.Linear(0.9, steps=10, end_value=1.0)),
        lambda: EMA(schedules.Linear(1.5, steps=10, end_value=0.9)),
    ],
    "EMA.like_.*: `decay`": [lambda: EMA.like_timm(1.0), lambda: EMA.like_tensorflow(2.0)],
    "`warmup_gamma`": [lambda: EMA.like_timm(0.9, warmup_gamma=0.0)],
    "`update_after_step`": [lambda: EMA.like_timm(0.9, update_after_step=-1)],
    "`start`": [lambda: EMA(0.9, start=-1), lambda: Uniform(start=-1), lambda: Uniform(start=0.5)],
    "`every`": [lambda: Uniform(every=0), lambda: Latest(3, every=0)],
    "`count`": [lambda: Latest(0), lambda: Latest(True), lambda: averages.weights("linear", 0)],
    "`steps`": [lambda: Cooldown(0), lambda: Cooldown(1.5)],
    "`bins`": [lambda: Cooldown(10, bins=0), lambda: Cooldown(10, bins=1)],
    "did you mean '1-sqrt'": [
        lambda: Cooldown(10, shape="1-sqr"),
        lambda: averages.weights("1_sqrt", 10),
    ],
    "`power`": [
        lambda: Cooldown(10, power=3.0),
        lambda: Cooldown(10, shape="power", power=0.0),
        lambda: Cooldown(10, shape="power", power=np.array([1.0, 2.0])),
        lambda: averages.weights("power", 10, power=-1.0),
    ],
    "`rate`": [lambda: Cooldown(10, rate=0.2), lambda: averages.weights("linear", 3, rate=0.5)],
    "`params": [
        lambda: averages.merge([], []),
        lambda: averages.merge(TREE, [1.0]),
        lambda: averages.merge(1.0, [1.0]),
        lambda: averages.merge([TREE, {"v": jnp.ones(2)}], [0.5, 0.5]),
        lambda: averages.merge([TREE, {"w": jnp.ones(3)}], [0.5, 0.5]),
        lambda: averages.merge([TREE, {"w": jnp.ones(2, jnp.bfloat16)}], [0.5, 0.5]),
    ],
    "`weights`": [
        lambda: averages.merge([TREE, TREE], [0.5]),
        lambda: averages.merge([TREE, TREE], [0.5, 0.6]),
        lambda: averages.merge([TREE, TREE], [0.5, np.nan]),
        lambda: averages.merge([TREE, TREE], ["a", "b"]),
        lambda: averages.merge([TREE, TREE], 1.0),
    ],
}
CASES = [(name, index) for name, cases in WRONG.items() for index in range(len(cases))]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_wrong_argument_is_refused_by_its_name(name, index):
    with pytest.raises((ValueError, TypeError), match=name):
        WRONG[name][index]()
