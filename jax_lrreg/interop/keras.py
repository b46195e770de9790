"""`from_keras`: schedules, regularizers and constraints of Keras 3.15 and of `tf_keras`."""

import math
from collections.abc import Callable

from jax_lrreg._check import require
from jax_lrreg.interop.peer import Peer, converted, number, refused, sequence, stairs, value_of
from jax_lrreg.penalties import L1, L2, ElasticNet, MaxNorm, NonNegative, Penalty, UnitNorm
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    InverseTimeStep,
    Polynomial,
    PolynomialCycle,
    Schedule,
    Step,
)


def from_keras(obj: Peer) -> Schedule | Penalty:
    """The equal of a schedule, a regularizer or a constraint of Keras.

    The step of a schedule is the optimizer's `iterations`. Keras's L2 has no 1/2, so that `L2(c)`
    becomes `L2(2 c)`. Its `MaxNorm` and `UnitNorm` divide by the norm plus 1e-7; ours do not. A
    constraint of Keras acts after each update, as `transforms.proximal` does.

    Args:
        obj: the live object.

    Raises:
        ValueError: it is none of Keras's own, or has no equal here: `OrthogonalRegularizer` (it
            penalises the mean |cosine| between rows, unlike `Orthogonal`), and a `MinMaxNorm` with
            a lower bound or a rate.

    Example:
        >>> from_keras(keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.5))  # doctest: +SKIP
        Exponential(0.1, steps=100, decay_rate=0.5)
        >>> from_keras(keras.regularizers.L2(0.01))  # doctest: +SKIP
        L2(0.02)
    """
    name, module = type(obj).__qualname__, type(obj).__module__
    if "optimizers.schedules" in module and name in _SCHEDULES:
        return converted(obj, lambda: _SCHEDULES[name](obj))
    packages = module.split(".")
    penalty = packages[0] in ("keras", "tf_keras") and {"regularizers", "constraints"} & {*packages}
    if penalty and name in _PENALTIES:
        return _PENALTIES[name](obj.get_config())
    known = ", ".join((*_SCHEDULES, *_PENALTIES))
    own = name == "OrthogonalRegularizer"
    why = "; it penalises cosines between rows, which `Orthogonal` does not" if own else ""
    raise refused(obj, f"from_keras knows {known} of Keras{why}")


def _exponential(s: Peer) -> Schedule:
    init_value, rate = value_of(s.initial_learning_rate), value_of(s.decay_rate)
    steps = number(s.decay_steps)
    if rate == 0:  # 0^0 is 1
        return sequence([(init_value, math.ceil(steps) if s.staircase else 1), (0.0, None)])
    return (Step if s.staircase else Exponential)(init_value, steps=steps, decay_rate=rate)


def _piecewise_constant(s: Peer) -> Schedule:
    # A boundary is the last step of the value before it, and loses its fraction among whole steps.
    starts = [int(number(boundary)) + 1 for boundary in s.boundaries]
    if starts != sorted(set(starts)):
        raise refused(s, f"its boundaries {s.boundaries} are not rising")
    first, *values = map(value_of, s.values)
    return stairs(first, zip(starts, values, strict=True))


def _polynomial(s: Peer) -> Schedule:
    init_value, end_value = value_of(s.initial_learning_rate), value_of(s.end_learning_rate)
    power, kind = value_of(s.power), PolynomialCycle if s.cycle else Polynomial
    if power == 0:  # 0^0 is 1, so that it never comes down
        return Constant(init_value)
    return kind(init_value, steps=number(s.decay_steps), power=power, end_value=end_value)


def _inverse_time(s: Peer) -> Schedule:
    kind = InverseTimeStep if s.staircase else InverseTime
    init_value, rate = value_of(s.initial_learning_rate), value_of(s.decay_rate)
    return kind(init_value, steps=number(s.decay_steps), decay_rate=rate)


def _cosine(s: Peer) -> Schedule:
    init_value, warmup_steps = value_of(s.initial_learning_rate), number(s.warmup_steps)
    warmed = s.warmup_target is not None
    peak_value = value_of(s.warmup_target) if warmed else init_value
    decay = Cosine(peak_value, steps=number(s.decay_steps), end_value=peak_value * s.alpha)
    # Without a target Keras looks at no warmup steps.
    up = warmed and warmup_steps > 0
    return decay.warmup(warmup_steps, init_value=init_value) if up else decay


def _cosine_restarts(s: Peer) -> Schedule:
    init_value = value_of(s.initial_learning_rate)
    return CosineRestarts(
        init_value,
        steps=number(s.first_decay_steps),
        end_value=init_value * s.alpha,
        multiplier=number(s._t_mul),  # Keras keeps both under private names only
        decay=value_of(s._m_mul),
    )


def _min_max_norm(config: dict[str, Peer]) -> Penalty:
    low, high, rate = (float(config[key]) for key in ("min_value", "max_value", "rate"))
    require(rate == 1, "from_keras", "rate", rate, "1: a constraint here holds after every step")
    if low == high == 1:
        return UnitNorm(axis=_axis(config))
    allowed = "0, or 1 like `max_value`: there is no norm from below here"
    require(low == 0, "from_keras", "min_value", low, allowed)
    return MaxNorm(high, axis=_axis(config))


def _axis(config: dict[str, Peer]) -> int | tuple[int, ...]:
    axis = config["axis"]
    return tuple(axis) if isinstance(axis, list | tuple) else axis


_SCHEDULES: dict[str, Callable[[Peer], Schedule]] = {
    "ExponentialDecay": _exponential,
    "PiecewiseConstantDecay": _piecewise_constant,
    "PolynomialDecay": _polynomial,
    "InverseTimeDecay": _inverse_time,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _cosine_restarts,
}
_PENALTIES: dict[str, Callable[[dict[str, Peer]], Penalty]] = {
    "L1": lambda config: L1(config["l1"]),
    "L2": lambda config: L2(2 * config["l2"]),
    "L1L2": lambda config: ElasticNet(config["l1"], l2=2 * config["l2"]),
    "NonNeg": lambda _: NonNegative(),
    "MaxNorm": lambda config: MaxNorm(float(config["max_value"]), axis=_axis(config)),
    "UnitNorm": lambda config: UnitNorm(axis=_axis(config)),
    "MinMaxNorm": _min_max_norm,
}
