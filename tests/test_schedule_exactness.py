"""Every shape against its formula in double precision, at horizons up to the last step there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    HalfLife,
    InverseSqrt,
    InverseTime,
    InverseTimeStep,
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
    noam,
)
from tests.laws import SCHEDULES

LAST = 2**31 - 1
HORIZONS = (7, 1000, 10**6, 2**24 + 1, 10**9, LAST)


def steps_of(horizon):
    """The first and last 200 steps, some beyond, many between: always as many, to compile once."""
    between = np.random.default_rng(0).integers(0, horizon + 1, 1000)
    ends = [np.arange(200), horizon - np.arange(200), horizon + np.arange(50)]
    return np.clip(np.concatenate([between, *ends]), 0, LAST)


def arch(x):
    """(1 - cos(pi x)) / 2 without cancellation."""
    return np.sin(np.pi / 2 * x) ** 2


def between(begin, end, fall, rise):
    return np.where(begin >= end, end + (begin - end) * fall, begin + (end - begin) * rise)


@functools.cache
def references(horizon):
    """Name -> (schedule, its values at `steps_of(horizon)` in double precision)."""
    with np.errstate(all="ignore"):
        return _references(horizon)


def _references(total):
    steps = steps_of(total)
    t = steps.astype(np.float64)
    done, left = np.minimum(t, total) / total, np.maximum(total - t, 0) / total
    warm, cool = max(total // 10, 1), max(total // 5, 1)
    ramp, unramp = np.minimum(t, warm) / warm, np.maximum(warm - t, 0) / warm
    begin = total - cool
    fall, rise = np.clip((total - t) / cool, 0, 1), np.clip((t - begin) / cool, 0, 1)
    scale = max(total / 1000, 1.0)
    period = max(total // 10, 1)
    count, phase = steps // period, steps % period
    up, down = max(total // 30, 1), max(total // 17, 1)
    cycle, within = steps // (up + down), steps % (up + down)
    triangle = np.where(within < up, within / up, (up + down - within) / down)
    late = np.where(
        done < 0.5, 1 - done**1.5, -np.expm1(1.5 * np.log1p(-np.minimum(left, 1 - 1e-17)))
    )
    odds = np.exp(2 * (-7 + 10 * done))
    boundaries = [max(total // 7, 1), total // 3 + 2, total // 2 + 3, min(total + 9, LAST)]
    values = [0.1, 0.02, 0.5, 0.0]
    stair = np.searchsorted(boundaries, steps, side="right")
    knot = np.minimum(stair, 3)
    x0, x1 = np.array([0, *boundaries[:-1]])[knot], np.array(boundaries)[knot]
    y0, y1 = np.array([0.01, *values[:-1]])[knot], np.array(values)[knot]
    before, after = np.clip((x1 - t) / (x1 - x0), 0, 1), np.clip((t - x0) / (x1 - x0), 0, 1)
    ends = np.ceil(steps / period).clip(1)
    half = total // 2 + 1
    quarter = total // 8

    cases = {
        "linear": (Linear(1e-3, steps=total), 1e-3 * left),
        "linear up": (Linear(0.0, steps=total, end_value=0.1), 0.1 * done),
        "linear between": (Linear(0.3, steps=total, end_value=0.1), 0.1 + 0.2 * left),
        "polynomial 0.9": (Polynomial(1e-3, steps=total, power=0.9), 1e-3 * left**0.9),
        "polynomial 5": (Polynomial(1e-3, steps=total, power=5.0), 1e-3 * left**5),
        "polynomial k-decay": (
            Polynomial(1e-3, steps=total, power=1.5, k_decay=1.5),
            1e-3 * late**1.5,
        ),
        "cosine": (Cosine(1e-3, steps=total), 1e-3 * arch(left)),
        "cosine up": (Cosine(0.0, steps=total, end_value=1.0), arch(done)),
        "cosine to a floor": (
            Cosine(1e-3, steps=total, end_value=1e-5),
            1e-5 + (1e-3 - 1e-5) * arch(left),
        ),
        "cosine exponent": (Cosine(1e-3, steps=total, exponent=1.7), 1e-3 * arch(left) ** 1.7),
        "cosine k-decay": (Cosine(1e-3, steps=total, k_decay=1.5), 1e-3 * arch(late)),
        "rex": (Rex(1e-3, steps=total), 1e-3 * 2 * left / (1 + left)),
        "rex up": (Rex(0.0, steps=total, end_value=1.0), done / (1 + left)),
        "tanh": (Tanh(1e-3, steps=total), np.where(t >= total, 0, 1e-3 / (1 + odds))),
        "tanh up": (
            Tanh(0.0, steps=total, end_value=1.0),
            np.where(t >= total, 1, odds / (1 + odds)),
        ),
        "exponential": (
            Exponential(1e-3, steps=period, decay_rate=1e-3),
            1e-3 * 1e-3 ** (t / period),
        ),
        "exponential fine": (
            Exponential(1e-3, steps=scale, decay_rate=0.95),
            1e-3 * 0.95 ** (t / scale),
        ),
        "half life": (HalfLife(1e-3, steps=period), 1e-3 * 0.5 ** (t / period)),
        "inverse time": (
            InverseTime(1e-3, steps=scale, decay_rate=0.5),
            1e-3 / (1 + 0.5 * t / scale),
        ),
        "inverse time stairs": (
            InverseTimeStep(1e-3, steps=period, decay_rate=0.5),
            1e-3 / (1 + 0.5 * count),
        ),
        "inverse sqrt": (InverseSqrt(1e-3, timescale=scale), 1e-3 / np.sqrt(1 + t / scale)),
        "noam": (
            noam(model_dim=512, warmup_steps=warm),
            512**-0.5 * np.minimum((t + 1) ** -0.5, (t + 1) * float(warm) ** -1.5),
        ),
        "fairseq": (
            InverseSqrt.fairseq(1e-3, warmup_steps=warm),
            np.where(t < warm, 1e-3 * t / warm, 1e-3 * np.sqrt(warm / np.maximum(t, 1))),
        ),
        "t5": (InverseSqrt.t5(warmup_steps=warm), 1 / np.sqrt(np.maximum(t, warm))),
        "shifted": (
            InverseSqrt.shifted(1e-3, warmup_steps=warm, timescale=scale, shift=3),
            np.where(
                t < warm,
                1e-3 / np.sqrt(1 + 3 / scale) * ramp,
                1e-3 / np.sqrt(1 + (t + 3 - warm) / scale),
            ),
        ),
        "power law": (
            PowerLaw(1e-3, timescale=scale, exponent=0.7),
            1e-3 * (1 + t / scale) ** -0.7,
        ),
        "power law 2.5": (
            PowerLaw(1e-3, timescale=scale, exponent=2.5),
            1e-3 * (1 + t / scale) ** -2.5,
        ),
        "step": (Step(1e-3, steps=period, decay_rate=0.3), 1e-3 * 0.3**count),
        "multi step": (MultiStep(1e-3, boundaries=boundaries, decay_rate=0.3), 1e-3 * 0.3**stair),
        "piecewise constant": (
            PiecewiseConstant(1e-3, boundaries=boundaries, values=values),
            np.array([1e-3, *values])[stair],
        ),
        "piecewise linear": (
            PiecewiseLinear(0.01, boundaries=boundaries, values=values),
            between(y0, y1, before, after),
        ),
        "piecewise cosine": (
            PiecewiseCosine(0.01, boundaries=boundaries, values=values),
            between(y0, y1, arch(before), arch(after)),
        ),
        "cyclic": (
            Cyclic(1e-4, peak_value=1e-3, up_steps=up, down_steps=down),
            1e-4 + 9e-4 * triangle,
        ),
        "cyclic from 0": (
            Cyclic(0.0, peak_value=1e-3, up_steps=up, down_steps=down),
            1e-3 * triangle,
        ),
        "cyclic inverse": (
            Cyclic(0.95, peak_value=0.85, up_steps=up, down_steps=down),
            0.95 - 0.1 * triangle,
        ),
        "triangular2": (
            Cyclic.triangular2(1e-4, peak_value=1e-3, up_steps=up, down_steps=down),
            1e-4 + 9e-4 * triangle * 0.5**cycle,
        ),
        "exp_range": (
            Cyclic.exp_range(
                0.0, peak_value=1e-3, up_steps=up, down_steps=down, step_decay=1 - 1 / total
            ),
            1e-3 * triangle * np.exp(t * np.log1p(-1 / total)),
        ),
        "restarts": (
            CosineRestarts(1e-3, steps=period, decay=0.7),
            1e-3 * 0.7**count * arch(1 - phase / period),
        ),
        "restarts, longer": _restarts(steps, max(total // 100, 1), 2, 0.0),
        "restarts, real": _restarts(steps, max(total / 200, 1.0), 1.3, 1e-4),
        "polynomial cycle": (
            PolynomialCycle(1e-3, steps=period, power=1.5),
            1e-3 * ((ends * period - steps) / (ends * period)) ** 1.5,
        ),
        "warmup linear": (Constant(1e-3).warmup(warm), 1e-3 * ramp),
        "warmup cosine": (Constant(1e-3).warmup(warm, shape="cosine"), 1e-3 * arch(ramp)),
        "warmup power": (Constant(1e-3).warmup(warm, shape="power", power=3.0), 1e-3 * ramp**3),
        "warmup 1-sqrt": (
            Constant(1e-3).warmup(warm, shape="1-sqrt"),
            1e-3 * ramp / (1 + np.sqrt(unramp)),
        ),
        "warmup square": (Constant(1e-3).warmup(warm, shape="square"), 1e-3 * ramp * (1 + unramp)),
        "warmup log": (
            Constant(1e-3).warmup(warm, shape="log"),
            1e-3 * np.log1p(np.minimum(t, warm)) / np.log1p(warm),
        ),
        "warmup exponential": (
            Constant(1e-3).warmup(warm, init_value=1e-7, shape="exponential"),
            1e-7 * 1e4**ramp,
        ),
        "cooldown linear": (Constant(1e-3).cooldown(cool, at=begin), 1e-3 * fall),
        "cooldown cosine": (
            Constant(1e-3).cooldown(cool, at=begin, shape="cosine"),
            1e-3 * arch(fall),
        ),
        "cooldown 1-sqrt": (
            Constant(1e-3).cooldown(cool, at=begin, shape="1-sqrt"),
            1e-3 * fall / (1 + np.sqrt(rise)),
        ),
        "cooldown square": (
            Constant(1e-3).cooldown(cool, at=begin, shape="square"),
            1e-3 * fall * (1 + rise),
        ),
        "cooldown power": (
            Constant(1e-3).cooldown(cool, at=begin, shape="power", power=0.5),
            1e-3 * np.sqrt(fall),
        ),
        "cooldown exponential": (
            Constant(1e-3).cooldown(cool, at=begin, shape="exponential"),
            1e-3 * np.expm1(fall * np.log(10)) / 9,
        ),
        "cooldown geometric": (
            Constant(1e-3).cooldown(cool, at=begin, end_value=1e-6, shape="exponential", rate=1e-3),
            1e-3 * 1e-3**rise,
        ),
        "later": (
            Linear(1e-3, steps=total).shift(cool),
            1e-3 * np.clip((total + cool - t) / total, 0, 1),
        ),
        "earlier": (
            Linear(1e-3, steps=total).shift(-cool),
            1e-3 * np.clip((total - cool - t) / total, 0, 1),
        ),
        "stretch": (
            Linear(1e-3, steps=period).stretch(3),
            1e-3 * np.clip((3 * period - t) / (3 * period), 0, 1),
        ),
        "repeat": (Linear(1e-3, steps=period).repeat(period), 1e-3 * (period - phase) / period),
        "units": (Cosine(1e-3, steps=90).in_units(90 / total), 1e-3 * arch(left)),
        "join": (
            join(
                [
                    (Linear(0.0, steps=warm, end_value=0.1), warm),
                    (Cosine(0.1, steps=max(total - warm, 1)), None),
                ]
            ),
            np.where(
                t < warm, 0.1 * ramp, 0.1 * arch(np.maximum(total - t, 0) / max(total - warm, 1))
            ),
        ),
    }
    if total < LAST:  # the schedule stretched as much must fit in an int32, too
        rest = np.maximum(total - t, 0) / (total - quarter) * (half - quarter) / half
        cases["extend"] = (
            Cosine(1e-3, steps=half).extend(at=quarter, total_steps=total),
            1e-3 * arch(np.where(t < quarter, (half - t) / half, rest)),
        )
    return cases


def _restarts(steps, first, multiplier, floor):
    ends = np.cumsum(first * np.longdouble(multiplier) ** np.arange(150))
    ends = ends[: np.searchsorted(ends, LAST) + 1]
    index = np.searchsorted(ends, steps, side="right")
    length = first * np.longdouble(multiplier) ** index
    left = (np.concatenate([[0], ends])[index] + length - steps) / length
    schedule = CosineRestarts(1e-3, steps=first, end_value=floor, multiplier=multiplier, decay=0.7)
    return schedule, floor + (1e-3 - floor) * 0.7**index * arch(np.float64(left))


def error(value, reference):
    """The largest error in ulp of a float32; what it cannot hold is left out."""
    value = np.asarray(value, np.float64)
    assert np.all(np.isfinite(value))
    held = reference > 1.2e-38
    assert np.all(value[~held] <= 1.3e-38)
    return np.max(
        np.abs(value - reference)[held] / np.spacing(np.float32(reference[held])), initial=0
    )


@pytest.mark.parametrize("name", references(1000))
@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.sampled(93)
def test_every_step_is_right_to_16_units_in_the_last_place(name, horizon):
    if name not in references(horizon):
        pytest.skip("too long for an int32")
    schedule, reference = references(horizon)[name]
    steps = jnp.asarray(steps_of(horizon), jnp.int32)
    assert error(schedule(steps), reference) <= 16
    if horizon in (1000, 2**24 + 1, LAST):
        assert error(jax.jit(schedule)(steps), reference) <= 16


@pytest.mark.parametrize("name", references(LAST))
@pytest.mark.sampled(16)
def test_unsigned_64_bit_and_python_steps_are_counted_like_an_int32_and_hold_beyond_it(name):
    schedule, reference = references(LAST)[name]
    steps = steps_of(LAST)
    expected = schedule(jnp.asarray(steps, jnp.int32))
    beyond = np.where(steps == LAST, LAST + np.arange(len(steps)), steps)
    assert np.any(beyond > LAST)
    assert np.array_equal(schedule(jnp.asarray(beyond, jnp.uint32)), expected)
    assert np.array_equal(schedule(np.where(steps == LAST, 2**33, steps)), expected)
    assert error(jax.jit(schedule)(jnp.asarray(beyond, jnp.uint32)), reference) <= 16
    for index in (0, 5, 1001, 1199, 1201):  # random, near the beginning, near the end
        assert error(schedule(int(steps[index])), reference[index]) <= 16
    assert error(schedule(10**12), reference[np.argmax(steps)]) <= 16


@pytest.mark.parametrize("name", references(1000))
@pytest.mark.parametrize("horizon", [10**6, 2**24])
@pytest.mark.sampled(31)
def test_float32_steps_are_right_as_far_as_they_are_whole_numbers(name, horizon):
    schedule, reference = references(horizon)[name]
    steps = steps_of(horizon)
    whole = steps <= 2**24
    value = schedule(np.minimum(steps, 2**24).astype(np.float32))
    assert error(value[whole], reference[whole]) <= 16


@pytest.mark.parametrize("name", references(1000))
@pytest.mark.sampled(16)
def test_float64_steps_are_computed_in_float64(name):
    schedule, reference = references(10**6)[name]
    with jax.enable_x64(True):
        value = schedule(steps_of(10**6).astype(np.float64))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, reference, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_ends_are_exact_and_the_steps_before_them_are_not(horizon):
    for schedule in (
        Linear(0.1, steps=horizon),
        Cosine(0.1, steps=horizon),
        Polynomial(0.1, steps=horizon, power=0.9),
    ):
        for value in (schedule, jax.jit(schedule)):
            assert value(0) == np.float32(0.1)
            assert value(horizon) == 0
            assert 0 < value(horizon - 1) < 0.1


@pytest.mark.parametrize("horizon", HORIZONS)
def test_decays_never_rise(horizon):
    steps = np.sort(steps_of(horizon))
    for schedule in (
        Linear(0.1, steps=horizon, end_value=0.01),
        Cosine(0.1, steps=horizon, end_value=0.01),
        Polynomial(0.1, steps=horizon, power=0.7),
        Rex(0.1, steps=horizon),
        InverseSqrt(0.1, timescale=horizon / 50),
        Constant(0.1).cooldown(horizon // 2 + 1, at=horizon // 2, shape="1-sqrt"),
    ):
        # an increase within the rounding of the last place is none
        rises = np.diff(np.asarray(schedule(steps), np.float64)) / np.asarray(schedule(steps))[
            :-1
        ].clip(1e-30)
        assert np.max(rises) <= 5e-7


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("part", [1 / 3, 0.1, 0.999])
def test_a_duration_that_is_no_whole_number_is_right_to_a_millionth_of_a_step(horizon, part):
    steps = steps_of(horizon)
    period = horizon // 100 + 1 + part
    phase = np.float64(np.mod(steps.astype(np.longdouble), np.longdouble(period)))
    value = np.asarray(Linear(1.0, steps=period).repeat(period)(steps), np.float64)
    wrong = np.abs(value * period - (period - phase))
    wrong = np.minimum(
        wrong, np.abs(wrong - period)
    )  # the end of one period is the beginning of the next
    assert np.max(wrong - 16 * np.spacing(np.float32(period))) <= 1e-6


# Traced fields -----------------------------------------------------------------------------------


def hard(total):
    """Schedules whose fields magnify an error, over about `total` steps."""
    constant, decayed = Constant(0.1), Exponential(1.0, steps=total / 30, decay_rate=0.7)
    pieces = [
        (Linear(0.1, steps=total / 9), total / 9),
        (Cosine(0.2, steps=total / 3), total / 3.3),
        (Exponential(0.1, steps=total / 9, decay_rate=0.4), None),
    ]
    third, half, knots = total // 3, total // 2, (total / 9, total / 3.1, total / 2.2)
    up, down = total // 50 + 1, total // 40 + 1
    slow = {"cycle_decay": 0.83, "step_decay": 1 - 20 / total}
    return [
        Step(1.0, steps=max(total // 300, 1), decay_rate=0.9),
        Exponential(1.0, steps=total // 700 + 1, decay_rate=0.93),
        Exponential(0.1, steps=total, decay_rate=1e-30),
        Exponential(0.1, steps=3, decay_rate=1 - 50 / total),
        HalfLife(0.1, steps=total / 90),
        MultiStep(0.1, boundaries=(total // 9, third, half), decay_rate=0.37),
        Cyclic(0.01, peak_value=0.1, up_steps=up, down_steps=down, **slow),
        CosineRestarts(0.1, steps=total // 20, multiplier=1.3, decay=0.8),
        CosineRestarts(0.1, steps=total // 20, multiplier=2, decay=1.2, end_value=0.001),
        CosineRestarts(0.1, steps=total / 23.7, multiplier=1.1, limit=5),
        Polynomial(0.1, steps=total, power=7.3),
        Polynomial(0.1, steps=total, power=2.0, k_decay=2.5),
        Cosine(0.1, steps=total, exponent=4.0),
        Cosine(0.1, steps=total, exponent=2.0, k_decay=0.6),
        PowerLaw(0.1, timescale=total / 70, exponent=6.2),
        InverseSqrt(0.1, timescale=total / 70),
        InverseTimeStep(0.1, steps=total // 70, decay_rate=0.7),
        Tanh(0.1, steps=total, lower=-20.3, upper=15.7),
        PolynomialCycle(0.1, steps=total // 7, power=3.3),
        constant.cooldown(third, at=half, shape="exponential", rate=1e-9),
        constant.cooldown(third, at=half, shape="power", power=6.1),
        constant.warmup(third, init_value=1e-12, shape="exponential"),
        constant.warmup(half, shape="power", power=5.5),
        Linear(0.1, steps=total * 0.3).in_units(0.3),
        Cosine(0.1, steps=90).in_units(90 / total),
        Cosine(0.1, steps=total / 3).stretch(2.7),
        Cosine(0.1, steps=total).warmup(total / 7.3).extend(at=third, total_steps=2.2 * total),
        Linear(0.1, steps=total / 7.7).repeat(total / 7.7),
        Cosine(0.1, steps=total).shift(-total / 3.3),
        join(pieces),
        PiecewiseLinear(0.1, boundaries=knots, values=(0.2, 0.01, 0.3)),
        PiecewiseConstant(0.1, boundaries=knots, values=(0.2, 0.01, 0.3)),
        (Cosine(0.1, steps=total) * decayed + 0.003).clip(min=0.005, max=0.09),
    ]


def test_every_field_is_right_to_16_units_in_the_last_place_though_it_is_traced(request):
    wrong, every = {}, 1 if request.config.getoption("--full") else 8
    for total, schedules in ((130, SCHEDULES), (10**6, hard(10**6))):
        steps = np.clip(steps_of(total), 0, LAST)[::3]
        for schedule in schedules[::every]:
            schedule = jax.tree.map(lambda x: float(np.float32(x)) if x % 1 else x, schedule)
            got = np.asarray(jax.jit(call)(schedule, jnp.asarray(steps, jnp.int32)), np.float64)
            with jax.enable_x64(
                True
            ):  # a duration that is no whole number: to a millionth of a step
                late = [np.maximum(steps + shift, 0.0) for shift in (-1e-6, 0, 1e-6)]
                expected = np.stack([np.asarray(jax.jit(call)(schedule, at)) for at in late])
            assert np.all(np.isfinite(got))
            off = np.maximum(expected.min(0) - got, got - expected.max(0)).clip(0)
            ulp = np.spacing(np.float32(expected[1].clip(1.2e-38)))
            if (worst := np.max(off.clip(1.3e-38) / ulp * (off > 1.3e-38))) > 16:
                wrong[total, repr(schedule)] = worst
    assert not wrong


def call(schedule, step):
    return schedule(step)
