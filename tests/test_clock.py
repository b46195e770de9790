"""The arithmetic of time: exact at the ends, in the middle, at the last step of an int32."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg.schedules.clock import Clock, Steps
from jax_lrreg.schedules.digits import Double, exp2, log2

DURATIONS = (1, 7, 1000, 2**24 + 1, 10**9, LAST_STEP)


@pytest.mark.parametrize("duration", DURATIONS)
def test_what_is_left_and_what_is_done_are_right_to_two_units_in_the_last_place(duration):
    steps = {
        0,
        1,
        2,
        duration // 3,
        duration // 2,
        duration - 2,
        duration - 1,
        duration,
        min(duration + 5, LAST_STEP),
    }
    for step in sorted(step for step in steps if step >= 0):
        clock = Clock.of(step)
        done = fractions.Fraction(min(step, duration), duration)
        for got, exact in ((clock.left(duration), 1 - done), (clock.done(duration), done)):
            assert abs(float(got) - float(exact)) <= 2 * np.spacing(np.float32(float(exact)))
    assert Clock.of(duration).left(duration) == 0
    assert Clock.of(duration).done(duration) == 1
    assert Clock.of(-3).left(duration) == 1
    assert Clock.of(-3).done(duration) == 0


@pytest.mark.parametrize(
    "step", [0, 5, 127, 2**31 - 1, 2**31, 10**400, -1, -(2**40), 2.5, float("inf"), -float("inf")]
)
def test_python_numbers_are_kept_or_brought_within_range(step):
    clock = Clock.of(step)
    assert clock.step.dtype == jnp.int32
    assert -1 <= clock.step <= LAST_STEP
    if 0 <= step <= LAST_STEP:
        assert clock.step + clock.part == step


def test_every_integer_dtype_means_the_same_step():
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert Clock.of(np.asarray(100, dtype)).step == 100
    assert Clock.of(np.uint32(2**32 - 1)).step == LAST_STEP
    assert Clock.of(np.int8(-100)).step == -1


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_64_bits_are_brought_within_range_not_cut_to_32(dtype, x64):
    far = [2**31 - 1, 2**31, 2**31 + 5, 2**32 + 2, 2**33, np.iinfo(dtype).max]
    with jax.enable_x64(x64):
        assert np.all(Clock.of(np.array(far, dtype)).step == LAST_STEP)
        assert all(Clock.of(dtype(step)).step == LAST_STEP for step in far)
        assert Clock.of(np.array(7, dtype)).step == 7
        if dtype is np.int64:
            assert np.all(Clock.of(np.array([-1, -(2**32) + 3, -(2**63)])).step == -1)


def test_a_numpy_float64_counts_in_float64_where_jax_does():
    for step in (np.float64(5.5), np.array(5.5), np.array([5.5])):
        assert Clock.of(step).dtype == jnp.float32
        with jax.enable_x64(True):
            assert Clock.of(step).dtype == jnp.float64
    with jax.enable_x64(True):
        assert Clock.of(5.5).dtype == jnp.float32  # a Python number has no type of its own
        assert Clock.of(np.float32(5.5)).dtype == jnp.float32


def test_a_later_piece_begins_at_0_and_an_earlier_one_is_under_way():
    for duration in (*DURATIONS, 2.5, 0.1):
        clock = Clock.of(LAST_STEP).after(duration)
        assert np.isclose(float(clock.step) + float(clock.part), LAST_STEP - duration)
    assert Clock.of(9).after(10).step == -1
    assert Clock.of(10).after(10).step == 0
    assert Clock.of(3).after(-10).step == 13
    assert Clock.of(LAST_STEP).after(-10).step == LAST_STEP
    assert not Clock.of(-1).after(LAST_STEP).begun
    assert not Clock.of(-1.0).after(LAST_STEP - 0.5).begun


def test_fractions_that_add_up_to_a_whole_step_are_one():
    clock = Clock.of(jnp.float32(1.0))
    for _ in range(3):
        clock = clock.after(1 / 3)
    assert clock.begun
    assert clock.left(1e-3) == 1
    assert Clock.of(10).in_units(0.3).after(1).left(2) == 0
    assert Clock.of(10).in_units(0.3).after(1).done(2) == 1
    assert Clock.of(10).in_units(0.3).after(1).reached(2)


@pytest.mark.parametrize("period", [1, 3, 7, 10**6, LAST_STEP])
def test_whole_periods_are_counted_in_integers(period):
    for step in (0, 1, period - 1, period, min(5 * period + 2, LAST_STEP), LAST_STEP):
        count, rest = Clock.of(step).cycle(period)
        assert (int(count), int(rest.step)) == divmod(step, period)


@pytest.mark.parametrize("period", [1.1, 2.3, 1234.567, 10**6 + 1 / 3, 10**8 + 1 / 3])
def test_other_periods_do_not_drift(period):
    for step in (1, 1000, 10**6, 10**9, LAST_STEP):
        count, rest = Clock.of(step).cycle(period)
        exact_count, exact_rest = divmod(fractions.Fraction(step), fractions.Fraction(period))
        position = (int(count) - exact_count) * fractions.Fraction(period)
        assert (
            abs(
                float(
                    position + fractions.Fraction(float(rest.step) + float(rest.part)) - exact_rest
                )
            )
            <= 1e-6
        )


def test_the_interval_between_boundaries():
    boundaries = (10, 25.5, 2**30)
    for step, expected in (
        (-1, 0),
        (0, 0),
        (9, 0),
        (10, 1),
        (25, 1),
        (26, 2),
        (2**30, 2),
        (LAST_STEP, 2),
    ):
        index, own, length = Clock.of(step).interval(boundaries)
        assert index == expected
        assert np.isclose(
            float(length.whole) + float(length.part), np.diff([0, *boundaries])[expected]
        )
        begin = [0, *boundaries][expected]
        assert np.isclose(float(own.position()), max(step - begin, 0))
    index, own, _ = Clock.of(jnp.arange(30).reshape(5, 6)).interval(boundaries)
    assert index.shape == own.shape == (5, 6)


def test_a_duration_in_units_is_a_whole_number_of_steps_where_it_is_one():
    clock = Clock.of(0).in_units(1 / 390)
    assert clock.steps_of(5) == Steps(1950, 0)
    assert Clock.of(0).in_units(6).steps_of(10**10).whole == 10**10 // 6


@pytest.mark.parametrize("factor", [-1e-9, -1e-3, 0.01, 1.7, -3.3])
def test_powers_of_two_are_right_where_the_exponent_is_large(factor):
    steps = np.unique(
        np.minimum(np.abs(np.array([0, 0.01, 0.3, 1, 60, 125]) / factor), LAST_STEP).astype(int)
    )
    exact = np.exp2(steps * np.float64(factor))
    got = np.asarray(exp2(Clock.of(steps).time * factor), np.float64)
    held = (exact > 1.2e-38) & (exact < 3e38)
    assert np.all(np.abs(got - exact)[held] <= 3 * np.spacing(np.float32(exact[held])))


@pytest.mark.parametrize("x64", [False, True])
def test_a_logarithm_has_the_digits_that_an_exponent_of_126_needs(x64):
    x = np.concatenate([10.0 ** np.arange(-18, 18), 1 + 10.0 ** -np.arange(1, 8), [0.9, 0.999]])
    x = np.float64(np.float32(x))
    with jax.enable_x64(x64):
        got = jax.jit(lambda x: log2(Double.of(x)))(x if x64 else np.float32(x))
    expected = np.log2(x)
    error = np.abs(np.float64(got.high) + np.float64(got.low) - expected)
    assert np.all(error <= 2.0**-29 * np.abs(expected))


def test_powers_are_right_however_small_the_number():
    x = np.float32(10.0) ** np.arange(-18, 18, dtype=np.float32)

    def raised(x, exponent):
        return exp2(log2(Double.of(x)) * exponent)

    for exponent in (0.5, 0.9, 1.7, -1.3, 2.0):
        expected = np.float64(x) ** exponent
        held = (expected > 1.2e-38) & (expected < 3e38)
        got = np.asarray(jax.jit(functools.partial(raised, exponent=exponent))(x), np.float64)
        assert np.all(np.abs(got - expected)[held] <= 4 * np.spacing(np.float32(expected[held])))
    slope = jax.grad(raised, (0, 1))(jnp.float32(1e-6), 1.5)
    np.testing.assert_allclose(slope, (1.5e-3, 1e-9 * np.log(1e-6)), rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_doubles_have_twice_the_digits(jit):
    rng = np.random.default_rng(0)
    x, y = (Double.of(rng.normal(size=1000) * 10.0 ** rng.integers(-9, 9, 1000)) for _ in range(2))
    value = lambda x: np.float64(x.high) + np.float64(x.low)  # noqa: E731
    for operation in (lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x + y):
        expected = operation(value(x), value(y))
        got = value((jax.jit(operation) if jit else operation)(x, y))
        size = np.maximum(np.abs(expected), np.abs(value(x)) * (np.abs(value(y)) < 1e-30))
        assert np.all(np.abs(got - expected) <= 2.0**-44 * np.maximum(size, 1e-30))
