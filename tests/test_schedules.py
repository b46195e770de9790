"""What every schedule promises, on the list of all of them and on random compositions."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_lrreg import schedules, text
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    Function,
    InverseSqrt,
    Linear,
    MultiStep,
    PiecewiseConstant,
    PiecewiseCosine,
    PiecewiseLinear,
    Polynomial,
    PolynomialCycle,
    PowerLaw,
    Rex,
    Step,
    Tanh,
    join,
)
from tests.laws import COMBINATORS, RECIPES, SCHEDULES, SHAPES
from tests.models import program

STEPS = np.concatenate([np.arange(-3, 130), [1000, 10**6, 2**24 + 1, 2**31 - 2, 2**31 - 1]])
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
every_class = pytest.mark.parametrize(
    "schedule", SHAPES + COMBINATORS, ids=repr
)  # recipes are made of these


def ulps(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.max(
        np.abs(a - b) / np.spacing(np.maximum(np.abs(b), 1e-37).astype(np.float32)), initial=0
    )


def real(schedule):
    """The same schedule with every number written as a float, which has a gradient."""
    return jax.tree.map(float, schedule)


def slopes(schedule, steps):
    """The gradient of the sum over `steps`: finite only if that of every single value is."""
    return jax.grad(lambda schedule: jnp.sum(schedule(steps)))(real(schedule))


@every_schedule
@pytest.mark.sampled(24)
def test_values_are_finite_not_negative_and_hold_outside_the_span(schedule):
    value = np.asarray(schedule(jnp.asarray(STEPS)))
    assert value.dtype == np.float32
    assert value.shape == STEPS.shape
    assert np.all(np.isfinite(value))
    assert np.all(value >= 0)
    assert np.all(value[STEPS < 0] == value[STEPS == 0])
    if schedule.horizon is not None:
        assert np.all(value[schedule.horizon <= STEPS] == value[-1])


@every_schedule
@pytest.mark.sampled(24)
def test_jitted_equals_eager(schedule):
    steps = jnp.asarray(STEPS)
    # XLA contracts a product and a sum; a power multiplies that ulp by its exponent
    assert ulps(jax.jit(schedule)(steps), schedule(steps)) <= 8


@every_schedule
@pytest.mark.sampled(24)
def test_every_kind_of_step_gives_the_same_value(schedule):
    few = np.minimum(np.arange(len(STEPS)), 127)
    expected = schedule(few)
    for dtype in (np.int8, np.uint8, np.int16, np.uint32, np.int64, np.float32):
        assert np.array_equal(schedule(few.astype(dtype)), expected), dtype
    for step in (0, 7, 41.0, np.int64(12), np.uint32(99), jnp.bfloat16(3)):
        value = schedule(step)
        assert value.shape == ()
        assert not value.weak_type
        assert value.dtype == jnp.float32
        assert (
            ulps(value, expected[int(step)]) <= 2
        )  # a scalar is not computed by vector instructions


@every_schedule
@pytest.mark.sampled(24)
def test_fractions_arrays_of_any_rank_and_huge_steps_are_steps_too(schedule):
    few = [0, 3, 3.5, 17.25, 41, 1e30]
    scalars = np.array([float(schedule(step)) for step in few])
    assert np.all(np.isfinite(scalars))
    for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
        steps = np.asarray(few, np.float64).clip(0, 200).astype(dtype)
        exact = [schedule(float(step)) for step in steps]
        for array in (steps, jnp.asarray(steps), steps.reshape(2, 3)):
            value = schedule(array)
            assert value.shape == array.shape
            assert value.dtype == jnp.float32
            assert ulps(np.ravel(value), exact) <= 4
    assert schedule(10**400) == schedule(float("inf")) == schedule(2**31 - 1)
    assert schedule(-(10**400)) == schedule(-2.5) == schedule(0)


HUGE = {
    "constant": (lambda: Constant(2**31), 0, 2**31),
    "linear": (lambda: Linear(2**31, steps=5), 3, 2**31 * 0.4),
    "clip": (lambda: Constant(0.1).clip(min=2**31), 0, 2**31),
    "sum": (lambda: Constant(0.1) + 2**31, 0, 2**31),
    "stairs": (lambda: PiecewiseConstant(2**31, boundaries=(5,), values=(2**32,)), 5, 2**32),
    "lines": (lambda: PiecewiseLinear(0, boundaries=(2**32,), values=(2**31,)), 2**30, 2**29),
    "steps": (lambda: Cosine(1000.0, steps=10**10), 10**9, 975.52826),
    "units": (lambda: Cosine(1000.0, steps=10).in_units(1e-9), 10**9, 975.52826),
    "stretch": (lambda: Cosine(1000.0, steps=10).stretch(1e9), 10**9, 975.52826),
    "warmup": (lambda: Constant(0.1).warmup(2**32), 2**31 - 1, 0.05),
    "cooldown": (lambda: Constant(0.1).cooldown(5, at=2**31), 2**31 - 1, 0.1),
    "long cooldown": (lambda: Constant(0.1).cooldown(2**32, at=0), 2**31 - 1, 0.05),
    "later": (lambda: Linear(0.1, steps=5).shift(2**31), 2**31 - 1, 0.1),
    "earlier": (lambda: Linear(0.1, steps=2**33).shift(-(2**32)), 2**31 - 1, 0.025),
    "repeat": (lambda: Linear(0.1, steps=2**32).repeat(2**31 + 5), 2**31 - 1, 0.05),
    "join": (lambda: join([(Constant(0.1), 2**31), (Constant(0.2), None)]), 2**31 - 1, 0.1),
    "extend": (lambda: Linear(0.1, steps=1000).extend(at=500, total_steps=2**31 - 1), 2**30, 0.025),
    "restarts": (lambda: CosineRestarts(2**31, steps=2**31), 2**30, 2**30),
    "timescale": (lambda: InverseSqrt(2**31, timescale=1e300), 2**31 - 1, 2**31),
    "endless": (lambda: Linear(0.1, steps=1e300), 2**31 - 1, 0.1),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.sampled(7)
def test_constants_and_durations_beyond_an_int32_are_right(name):
    make, step, expected = HUGE[name]
    np.testing.assert_allclose(make()(step), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(make())(jnp.int32(min(step, 2**31 - 1))), expected, rtol=1e-6
    )


SHAPES_OF_WARMUPS = (
    "linear",
    "cosine",
    "power",
    "constant",
    "exponential",
    "1-sqrt",
    "square",
    "log",
)
SHAPES_OF_COOLDOWNS = ("linear", "cosine", "power", "exponential", "1-sqrt", "square")


@pytest.mark.parametrize("shape", SHAPES_OF_WARMUPS)
def test_a_warmup_of_no_steps_is_none(shape):
    schedule = Linear(0.1, steps=10).warmup(0, init_value=0.5, shape=shape)
    assert np.array_equal(schedule(STEPS), Linear(0.1, steps=10)(STEPS))
    assert schedule.horizon == 10
    assert text.parse(repr(schedule)) == schedule


@pytest.mark.parametrize("shape", SHAPES_OF_COOLDOWNS)
def test_a_cooldown_of_no_steps_is_a_jump(shape):
    schedule = Constant(0.1).cooldown(0, at=5, end_value=0.01, shape=shape)
    steps = np.array([-1, 0, 4, 5, 6])
    np.testing.assert_array_equal(schedule(steps), np.float32([0.1, 0.1, 0.1, 0.01, 0.01]))
    assert text.parse(repr(schedule)) == schedule


def test_a_recipe_takes_parts_of_no_length():
    t, ends = np.arange(12), {"total_steps": 10}
    flat, drop = np.full(12, 0.1, np.float32), np.where(np.arange(12) < 10, np.float32(0.1), 0)
    at_once = {"warmup_steps": 0, "decay_steps": 0}
    np.testing.assert_array_equal(schedules.warmup_stable_decay(0.1, **at_once, **ends)(t), drop)
    np.testing.assert_array_equal(schedules.flat_cosine(0.1, decay_steps=0, **ends)(t), drop)
    lr = schedules.warmup_stable_decay_periods(0.1, **at_once, period_steps=(5, 5))
    np.testing.assert_array_equal(lr(t), drop)
    lr = schedules.cosine_then_linear(0.1, **at_once, **ends, cosine_end_value=0.1)
    np.testing.assert_array_equal(lr(t), drop)
    lr = schedules.one_cycle(0.1, warmup_steps=0, **ends, init_value=0.01, end_value=0.1)
    np.testing.assert_array_equal(lr(t), flat)
    lr = schedules.one_cycle_three_phases(
        0.1, warmup_steps=0, down_steps=4, **ends, init_value=0.02
    )
    np.testing.assert_allclose(lr(np.array([0, 2, 4, 10])), [0.1, 0.06, 0.02, 0.0], rtol=1e-6)


def test_a_piece_of_no_steps_is_never_seen():
    never = Linear(7.0, steps=3)
    seen = join([(Constant(9.0), 0), (Linear(0.1, steps=5), 5), (never, 0), (Constant(0.3), None)])
    plain = join([(Linear(0.1, steps=5), 5), (Constant(0.3), None)])
    assert np.array_equal(seen(STEPS), plain(STEPS))
    slope = jax.grad(lambda schedule: jnp.sum(schedule(jnp.asarray(STEPS, jnp.int32))))(real(seen))
    assert all(np.isfinite(x) for x in jax.tree.leaves(slope))
    lengths = join([(Constant(9.0), 0), (Constant(0.3), None)])
    assert text.parse(repr(lengths)) == lengths


def test_restarts_may_rise_from_cycle_to_cycle():
    rising = CosineRestarts(0.1, steps=10, decay=1.2)
    np.testing.assert_allclose(
        rising(np.array([0, 10, 20, 25])), [0.1, 0.12, 0.144, 0.072], rtol=1e-6
    )
    assert np.all(np.isfinite(rising(STEPS)))


@pytest.mark.parametrize(
    "array", [np.array, jnp.array, tuple, list], ids=["NumPy", "JAX", "tuple", "list"]
)
def test_boundaries_may_be_an_array(array):
    got = PiecewiseConstant(0.1, boundaries=array([30, 60]), values=array([0.5, 0.25]))
    assert got == PiecewiseConstant(0.1, boundaries=(30, 60), values=(0.5, 0.25))
    assert text.parse(repr(got)) == got


@pytest.mark.parametrize(
    "number", [np.sqrt(4), np.float32(2), np.int64(2), np.array(2.0)], ids=repr
)
def test_a_number_of_numpy_reads_back(number):
    lr = Cosine(0.1, steps=10)
    for schedule in (
        number * lr,
        lr * number,
        lr + number,
        number + lr,
        lr / number,
        lr.shift(number),
    ):
        assert text.parse(repr(schedule)) == schedule


def test_a_chain_of_methods_is_rendered_in_linear_time(monkeypatch):
    calls = []
    text_of = Constant.__repr__
    monkeypatch.setattr(Constant, "__repr__", lambda self: calls.append(1) or text_of(self))
    schedule = Constant(1)
    for _ in range(30):
        schedule = schedule.shift(1).warmup(2).clip(max=1.0)
    assert repr(schedule).count("shift") == 30
    assert len(calls) == 1


@pytest.mark.parametrize("schedule", SHAPES[::4], ids=repr)
def test_the_value_has_the_shape_of_the_step(schedule):
    shape = (2, 3, len(STEPS) // 6)
    assert np.array_equal(schedule(STEPS.reshape(shape)), schedule(STEPS).reshape(shape))


@every_class
@pytest.mark.sampled(12)
def test_new_values_do_not_retrace(schedule):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def value(schedule, step):
        return schedule(step)

    value(schedule, 3)
    value(jax.tree.map(changed, schedule), 5)


@pytest.mark.parametrize("schedule", COMBINATORS[::3], ids=repr)
def test_vmap_over_the_fields_is_the_loop(schedule):
    steps = jnp.minimum(jnp.arange(len(STEPS)), 100)
    pair = [schedule, jax.tree.map(changed, schedule)]
    batch = jax.tree.map(lambda *leaves: jnp.asarray(leaves), *pair)
    for one, row in zip(pair, jax.vmap(lambda schedule: schedule(steps))(batch), strict=True):
        np.testing.assert_allclose(row, one(steps), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", SHAPES, ids=repr)
@pytest.mark.sampled(11)
def test_vmap_over_one_field_is_the_loop(schedule):
    leaves, treedef = jax.tree.flatten(schedule)
    steps = jnp.minimum(jnp.arange(len(STEPS)), 100)
    for index, leaf in enumerate(leaves):

        def value(x, index=index):
            return treedef.unflatten([*leaves[:index], x, *leaves[index + 1 :]])(steps)

        many = jax.vmap(value)(jnp.asarray([leaf, changed(leaf)]))
        np.testing.assert_allclose(many[1], value(changed(leaf)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", SHAPES, ids=repr)
@pytest.mark.sampled(11)
def test_fields_may_be_arrays(schedule):
    pair = [schedule, jax.tree.map(changed, schedule)]
    batch = jax.tree.map(lambda *leaves: jnp.asarray(leaves), *pair)
    np.testing.assert_allclose(batch(17), [one(17) for one in pair], rtol=1e-5, atol=1e-7)


def changed(leaf):
    # Not 0.99: 100 periods of 0.99 end at the whole step 99, where float32 and Python's floats fall
    # on different sides of a jump. No period below 100 times 0.9871 ends at a whole step before it.
    return leaf + 1 if isinstance(leaf, int) else leaf * 0.9871


@every_class
@pytest.mark.sampled(20)
def test_gradient_is_the_finite_difference(schedule):
    # Every step is a fraction, for at a whole one some schedules jump.
    steps = (0.37, 7.21, 10.68, 13.37, 19.41, 29.63, 36.17, 44.83, 61.54, 88.71)
    with jax.enable_x64(True):
        leaves, treedef = jax.tree.flatten(real(schedule))
        at = jnp.asarray(steps, jnp.float64)

        def value(
            leaves,
        ):  # every step with a weight of its own, so that no error can hide behind another
            return jnp.sum(treedef.unflatten(leaves)(at) * np.sqrt(np.arange(2.0, 12.0)))

        for index, (leaf, slope) in enumerate(zip(leaves, jax.grad(value)(leaves), strict=True)):
            size = 1e-6 * max(abs(leaf), 1)
            up, down = (
                value([*leaves[:index], leaf + sign * size, *leaves[index + 1 :]])
                for sign in (1, -1)
            )
            np.testing.assert_allclose(slope, (up - down) / (2 * size), rtol=1e-5, atol=1e-8)


@every_class
@pytest.mark.sampled(20)
def test_gradients_are_finite_everywhere(schedule):
    assert all(
        np.isfinite(leaf)
        for leaf in jax.tree.leaves(slopes(schedule, jnp.asarray(STEPS, jnp.int32)))
    )


@pytest.mark.parametrize("schedule", SHAPES, ids=repr)
@pytest.mark.sampled(11)
def test_gradients_are_finite_at_steps_that_are_floats(schedule):
    steps = jnp.arange(float(len(STEPS))) - 3
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes(schedule, steps)))


@every_schedule
def test_text_copies_and_hash(schedule):
    again = eval(repr(schedule), {name: getattr(schedules, name) for name in dir(schedules)})
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert jax.tree.map(lambda x: x, schedule) == schedule
    assert jax.tree.map(lambda x: x + 1, schedule) != schedule or not jax.tree.leaves(schedule)


OPTAX = [
    (Constant(0.1), optax.constant_schedule(0.1)),
    (Linear(0.1, steps=40, end_value=0.01), optax.linear_schedule(0.1, 0.01, 40)),
    (Linear(0.1, steps=40).shift(7), optax.linear_schedule(0.1, 0.0, 40, transition_begin=7)),
    (Polynomial(0.1, steps=40, power=0.9), optax.polynomial_schedule(0.1, 0.0, 0.9, 40)),
    (
        Polynomial(0.1, steps=40, power=3.0, end_value=0.2),
        optax.polynomial_schedule(0.1, 0.2, 3.0, 40),
    ),
    (Cosine(0.1, steps=40), optax.cosine_decay_schedule(0.1, 40)),
    (
        Cosine(0.1, steps=40, end_value=0.01, exponent=1.5),
        optax.cosine_decay_schedule(0.1, 40, 0.1, 1.5),
    ),
    (Exponential(0.1, steps=10, decay_rate=0.5), optax.exponential_decay(0.1, 10, 0.5)),
    (
        Exponential(0.1, steps=10, decay_rate=0.5).clip(min=0.02),
        optax.exponential_decay(0.1, 10, 0.5, end_value=0.02),
    ),
    (Step(0.1, steps=10, decay_rate=0.5), optax.exponential_decay(0.1, 10, 0.5, staircase=True)),
    (
        MultiStep(0.1, boundaries=(10, 25), decay_rate=0.3),
        optax.piecewise_constant_schedule(0.1, {10: 0.3, 25: 0.3}),
    ),
    (
        PiecewiseConstant(0.1, boundaries=(10, 25), values=(0.03, 0.06)),
        optax.piecewise_constant_schedule(0.1, {10: 0.3, 25: 2.0}),
    ),
    (
        schedules.PiecewiseLinear(0.1, boundaries=(10, 25), values=(0.03, 0.06)),
        optax.piecewise_interpolate_schedule("linear", 0.1, {10: 0.3, 25: 2.0}),
    ),
    (
        PiecewiseCosine(0.1, boundaries=(10, 25), values=(0.03, 0.06)),
        optax.piecewise_interpolate_schedule("cosine", 0.1, {10: 0.3, 25: 2.0}),
    ),
    (Constant(0.1).warmup(10, init_value=0.01), optax.warmup_constant_schedule(0.01, 0.1, 10)),
    (
        schedules.warmup_cosine(0.1, warmup_steps=10, total_steps=50, end_value=0.01),
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 50, 0.01),
    ),
    (
        Exponential(0.1, steps=10, decay_rate=0.5).warmup(10),
        optax.warmup_exponential_decay_schedule(0.0, 0.1, 10, 10, 0.5),
    ),
    (
        schedules.one_cycle_three_phases(
            0.1,
            warmup_steps=30,
            down_steps=55,
            total_steps=100,
            init_value=0.004,
            end_value=4e-7,
            shape="linear",
        ),
        optax.linear_onecycle_schedule(100, 0.1),
    ),
    (
        schedules.one_cycle(
            0.1, warmup_steps=30, total_steps=100, init_value=0.004, end_value=4e-7
        ),
        optax.cosine_onecycle_schedule(100, 0.1),
    ),
    (
        CosineRestarts(0.1, steps=20, multiplier=2, limit=2),
        optax.sgdr_schedule(
            [
                {"init_value": 0.1, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": 20},
                {"init_value": 0.1, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": 40},
            ]
        ),
    ),
    (
        join([(Linear(0.1, steps=10), 10), (Cosine(0.2, steps=20), None)]),
        optax.join_schedules(
            [optax.linear_schedule(0.1, 0.0, 10), optax.cosine_decay_schedule(0.2, 20)], [10]
        ),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTAX, ids=[repr(ours) for ours, _ in OPTAX])
def test_optax_has_the_same(ours, theirs):
    near = np.array([0, 10, 20, 25, 30, 40, 50, 60, 85, 100])
    steps = np.unique(np.clip(np.concatenate([near - 1, near, near + 1, near + 4]), 0, None))
    expected = [float(theirs(int(step))) for step in steps]
    values = ours(np.resize(steps, len(STEPS)))[: len(steps)]  # a size that has been compiled
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("power", [0.5, 0.9])
def test_no_nan_at_the_end_where_optax_has_one(power):
    ours = Polynomial(1e-3, steps=1000, power=power)
    theirs = optax.polynomial_schedule(1e-3, 0.0, power, 1000)
    steps = jnp.arange(990, 1010)
    assert np.all(np.isfinite(jax.jit(ours)(steps)))
    assert np.all(jax.jit(ours)(steps[10:]) == 0)
    assert np.all(jax.jit(ours)(steps[:10]) > 0)
    assert not np.all(np.isfinite(jax.jit(theirs)(steps))), (
        "Optax has repaired this; the README may say so"
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_gradients_keep_their_dtype(dtype):
    tx = optax.scale_by_learning_rate(Cosine(1e-3, steps=100))
    gradients = {"w": jnp.ones(3, dtype)}
    updates, _ = tx.update(gradients, tx.init(gradients))
    assert updates["w"].dtype == dtype
    np.testing.assert_allclose(np.float32(updates["w"]), -1e-3, rtol=4e-3)


def test_any_function_takes_part_and_never_sees_a_step_outside_its_span():
    seen = join(
        [
            (Constant(0.1), 10),
            (Function(lambda step: 1 / jnp.sqrt(step + 1.0)), 5),
            (lambda step: 0.2, None),
        ]
    )
    steps = jnp.arange(30)
    assert np.all(np.isfinite(jax.jit(seen)(steps)))
    np.testing.assert_allclose(seen(steps)[10:15], 1 / np.sqrt(np.arange(1, 6)), rtol=1e-6)
    idle = join([(Linear(0.1, steps=10.0), 10.0), (lambda step: jnp.sqrt(step - 0.0), None)])
    slope = jax.grad(lambda schedule: schedule(5))(idle)
    assert all(np.isfinite(x) for x in jax.tree.leaves(slope))
    assert (optax.cosine_decay_schedule(0.1, 10) * Constant(2.0))(5) == pytest.approx(0.1)
    assert (0.5 * Function(optax.linear_schedule(1.0, 0.0, 10)))(jnp.arange(4)).shape == (4,)


def test_momentum_cycles_against_the_learning_rate():
    rate = Cyclic(0.01, peak_value=0.1, up_steps=5, down_steps=5)(np.arange(40))
    momentum = Cyclic(0.95, peak_value=0.85, up_steps=5, down_steps=5)(np.arange(40))
    np.testing.assert_allclose((rate - 0.01) / 0.09, (0.95 - momentum) / 0.1, atol=1e-5)


def test_a_cooldown_that_was_planned_gives_way_to_a_branch():
    planned = schedules.warmup_stable_decay(0.1, warmup_steps=10, decay_steps=20, total_steps=100)
    branch = planned.branch_cooldown(20, at=40)
    assert branch == Constant(0.1).warmup(10).cooldown(20, at=40)
    late = planned.branch_cooldown(5, at=90)
    steps = np.arange(90)
    assert np.array_equal(late(steps), planned(steps))
    assert late(90) == planned(90)
    assert late(95) == 0


@pytest.mark.parametrize("total", [31, 60])
def test_moving_the_end_of_a_running_schedule_does_not_jump(total):
    running = schedules.warmup_cosine(0.1, warmup_steps=10, total_steps=50, end_value=0.01)
    extended = running.extend(at=30, total_steps=total)
    steps = np.arange(31)
    assert np.array_equal(extended(steps), running(steps))
    assert extended.horizon == total
    assert extended(total) == running(50)
    assert np.all(np.diff(extended(np.arange(30, total + 1))) <= 0)


@pytest.mark.parametrize("steps", [7, 10**6])
def test_area_is_the_sum(steps):
    schedule = Cosine(1e-3, steps=900_000).warmup(1000)
    expected = np.sum(np.asarray(schedule(np.arange(steps)), np.float64))
    np.testing.assert_allclose(schedule.area(steps), expected, rtol=1.2e-7)


def test_recipes_take_numbers_that_are_traced():
    def value(warmup, total):
        return schedules.warmup_cosine(0.1, warmup_steps=warmup, total_steps=total)(5)

    pairs = [(0, 100), (10, 100), (20, 50)]
    many = jax.jit(jax.vmap(value))(*map(jnp.asarray, zip(*pairs, strict=True)))
    np.testing.assert_allclose(many, [value(*pair) for pair in pairs], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(10.0, 100.0), -0.005, rtol=1e-5)


def test_area_has_a_gradient():
    area = jax.jit(jax.grad(lambda steps: Linear(0.1, steps=steps).area(150)))(100.0)
    np.testing.assert_allclose(area, 0.1 / 2, rtol=2e-2)


def test_tokens_beyond_an_int32_end_exactly():
    lr = Cosine(3e-4, steps=15 * 10**12).warmup(10**10).in_units(per_step=2**22)
    steps = (15 * 10**12 + 10**10) / 2**22
    assert lr.horizon == steps
    assert lr(int(steps)) > 0
    assert lr(int(steps) + 1) == 0


# Random compositions

durations = st.one_of(st.integers(1, 50), st.floats(0.5, 50.0))
values = st.floats(0.0, 1.0)
positive = st.floats(0.01, 1.0)
functions = (lambda step: 0.1 / (step + 1.0), optax.cosine_decay_schedule(0.1, 20))
shapes = st.one_of(
    st.sampled_from(SHAPES + RECIPES),
    st.builds(Constant, values),
    st.builds(Linear, values, steps=durations, end_value=values),
    st.builds(
        Polynomial, values, steps=durations, power=st.floats(0.2, 4.0), k_decay=st.floats(0.5, 2.0)
    ),
    st.builds(Cosine, values, steps=durations, end_value=values),
    st.builds(Rex, values, steps=durations, end_value=values),
    st.builds(Tanh, values, steps=durations, end_value=values),
    st.builds(Exponential, values, steps=durations, decay_rate=positive),
    st.builds(InverseSqrt, values, timescale=durations),
    st.builds(PowerLaw, values, timescale=durations, exponent=positive),
    st.builds(Step, values, steps=durations, decay_rate=positive),
    st.builds(
        CosineRestarts,
        values,
        steps=durations,
        multiplier=st.sampled_from([1, 1.5, 2]),
        decay=positive,
    ),
    st.builds(
        Cyclic,
        values,
        peak_value=values,
        up_steps=durations,
        down_steps=durations,
        cycle_decay=positive,
    ),
    st.builds(
        PolynomialCycle, values, steps=durations, power=st.floats(0.5, 3.0), end_value=values
    ),
    st.builds(
        lambda cls, a, b, c, n, m: cls(a, boundaries=(n, n + m), values=(b, c)),
        st.sampled_from([PiecewiseConstant, PiecewiseLinear, PiecewiseCosine]),
        *(values, values, values, durations, durations),
    ),
    st.builds(Function, st.sampled_from(functions)),
)
ups = st.sampled_from(
    ["linear", "cosine", "power", "constant", "exponential", "1-sqrt", "square", "log"]
)
downs = st.sampled_from(["linear", "cosine", "power", "exponential", "1-sqrt", "square"])


def extended(schedule, begin, longer):
    end = schedule.horizon
    return schedule.extend(at=begin * end, total_steps=longer * end) if end else schedule


def compose(inner):
    return st.one_of(
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, x: x * a / 3, inner, positive),
        st.builds(lambda a, n, b: join([(a, n), (b, None)]), inner, durations, inner),
        st.builds(
            lambda a, n, x, shape: a.warmup(n, init_value=x, shape=shape),
            inner,
            durations,
            positive,
            ups,
        ),
        st.builds(
            lambda a, n, x, shape: a.overlay_warmup(n, init_value=x, shape=shape),
            inner,
            durations,
            positive,
            ups,
        ),
        st.builds(
            lambda a, n, t, shape: a.cooldown(n, at=t, shape=shape),
            inner,
            durations,
            durations,
            downs,
        ),
        st.builds(
            lambda a, n, t, x: a.branch_cooldown(n, at=t, end_value=x),
            inner,
            durations,
            durations,
            values,
        ),
        st.builds(extended, inner, st.floats(0.1, 0.9), st.floats(1.1, 3.0)),
        st.builds(lambda a, n: a.shift(n), inner, st.integers(-20, 20)),
        st.builds(lambda a, x: a.stretch(x), inner, st.floats(0.3, 3.0)),
        st.builds(lambda a, n: a.repeat(n), inner, durations),
        st.builds(lambda a, x: a.in_units(x), inner, st.floats(0.1, 3.0)),
        # Equal bounds are a point where the slope is not defined.
        st.builds(lambda a, x, y: a.clip(min=x, max=x + y), inner, positive, positive),
    )


compositions = st.recursive(shapes, compose, max_leaves=4)


@settings(max_examples=6)
@given(compositions, st.integers(0, 50))
def test_compositions_keep_the_laws(schedule, chosen):
    steps = jnp.asarray(STEPS, jnp.int32)
    value = np.asarray(schedule(steps))
    assert np.all(np.isfinite(value))
    assert np.all(value >= 0)
    assert np.all(value[STEPS < 0] == value[STEPS == 0])
    if schedule.horizon is not None:
        assert np.all(value[schedule.horizon <= STEPS] == value[-1])
    if "<" not in repr(schedule):  # a function has no text
        assert (
            eval(repr(schedule), {name: getattr(schedules, name) for name in dir(schedules)})
            == schedule
        )
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes(schedule, steps)))
    np.testing.assert_allclose(jax.jit(schedule)(steps), value, rtol=1e-5, atol=1e-9)
    leaves, treedef = jax.tree.flatten(schedule)
    if leaves:
        index = chosen % len(leaves)
        check_one_field(
            lambda x: treedef.unflatten([*leaves[:index], x, *leaves[index + 1 :]]), leaves[index]
        )


def check_one_field(schedule_of, leaf):
    """`vmap` over the field is the loop, and its gradient is the finite difference."""
    steps = jnp.minimum(jnp.arange(len(STEPS)), 100)
    many = jax.vmap(lambda x: schedule_of(x)(steps))(jnp.asarray([leaf, changed(leaf)]))
    np.testing.assert_allclose(many[1], schedule_of(changed(leaf))(steps), rtol=1e-4, atol=1e-6)
    with jax.enable_x64(True):
        at = jnp.asarray([0.37, 7.21, 10.68, 19.41, 36.17, 61.54], jnp.float64)
        size = 1e-6 * max(abs(leaf), 1.0)

        def value(x):
            return jnp.sum(schedule_of(x)(at) * np.sqrt(np.arange(2.0, 8.0)))

        difference = (value(leaf + size) - value(leaf - size)) / (2 * size)
        np.testing.assert_allclose(jax.grad(value)(float(leaf)), difference, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is the CPU's compiler that repeats")
@every_class
def test_an_update_works_its_schedule_out_once_however_many_arrays_it_scales(schedule):
    def lines(arrays):
        update = lambda count, grads: [-schedule(count) * grad for grad in grads]  # noqa: E731
        return program(update, jnp.int32(3), [jnp.ones((3, 4))] * arrays).count("\n")

    # A product, its loop and their names; most schedules would be 40 to 540 lines more.
    assert (lines(5) - lines(1)) / 4 < 16
