"""`from_keras` for the classes of `keras.optimizers.schedules`."""

import math
from collections.abc import Callable
from typing import Any

from jax_lrreg.interop.peer import number, refused, sequence, value_of
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    InverseTimeStep,
    PiecewiseConstant,
    Polynomial,
    PolynomialCycle,
    Schedule,
    Step,
)


def _exponential(s: Any) -> Schedule:
    init_value, rate, steps = (
        value_of(s.initial_learning_rate),
        value_of(s.decay_rate),
        number(s.decay_steps),
    )
    if rate == 0:  # 0^0 is 1
        return sequence([(init_value, math.ceil(steps) if s.staircase else 1), (0.0, None)])
    return (Step if s.staircase else Exponential)(init_value, steps=steps, decay_rate=rate)


def _piecewise_constant(s: Any) -> Schedule:
    # A boundary is the last step of the value before it, and loses its fraction among whole steps.
    starts = [int(number(boundary)) + 1 for boundary in s.boundaries]
    values = [value_of(value) for value in s.values]
    if not starts:
        return Constant(values[0])
    begun = [index for index, start in enumerate(starts) if start <= 0]
    first = begun[-1] + 1 if begun else 0
    if starts != sorted(set(starts)):
        raise refused(s, f"its boundaries {s.boundaries} are not rising")
    if first == len(starts):
        return Constant(values[-1])
    return PiecewiseConstant(
        values[first], boundaries=tuple(starts[first:]), values=tuple(values[first + 1 :])
    )


def _polynomial(s: Any) -> Schedule:
    init_value, end_value = value_of(s.initial_learning_rate), value_of(s.end_learning_rate)
    power = value_of(s.power)
    if power == 0:
        return Constant(init_value)
    kind = PolynomialCycle if s.cycle else Polynomial
    return kind(init_value, steps=number(s.decay_steps), power=power, end_value=end_value)


def _inverse_time(s: Any) -> Schedule:
    kind = InverseTimeStep if s.staircase else InverseTime
    return kind(
        value_of(s.initial_learning_rate),
        steps=number(s.decay_steps),
        decay_rate=value_of(s.decay_rate),
    )


def _cosine(s: Any) -> Schedule:
    init_value, steps = value_of(s.initial_learning_rate), number(s.decay_steps)
    warmup_steps = number(s.warmup_steps)
    if s.warmup_target is None:
        return Cosine(init_value, steps=steps, end_value=init_value * s.alpha)
    peak_value = value_of(s.warmup_target)
    decay = Cosine(peak_value, steps=steps, end_value=peak_value * s.alpha)
    return decay.warmup(warmup_steps, init_value=init_value) if warmup_steps > 0 else decay


def _cosine_restarts(s: Any) -> Schedule:
    init_value = value_of(s.initial_learning_rate)
    return CosineRestarts(
        init_value,
        steps=number(s.first_decay_steps),
        end_value=init_value * s.alpha,
        multiplier=number(s._t_mul),
        decay=value_of(s._m_mul),
    )


CONVERTERS: dict[str, Callable[[Any], Schedule]] = {
    "ExponentialDecay": _exponential,
    "PiecewiseConstantDecay": _piecewise_constant,
    "PolynomialDecay": _polynomial,
    "InverseTimeDecay": _inverse_time,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _cosine_restarts,
}
