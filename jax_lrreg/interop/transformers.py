"""The factors that `transformers.optimization` (5.24) gives to PyTorch's `LambdaLR`.

They are functions, known by their private names.
"""

import functools
import math
from collections.abc import Callable

from jax_lrreg.interop.peer import (
    Number,
    Peer,
    begun,
    number,
    power_decay,
    ramped,
    sequence,
    value_of,
    wave,
)
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Linear,
    Polynomial,
    Schedule,
)


def from_lambda(function: Peer, base: float) -> Schedule | None:
    """`base` times what the function gives, or None if it is not one of theirs."""
    given: dict[str, Peer] = {}
    if isinstance(function, functools.partial):
        function, given = function.func, function.keywords
    convert = _CONVERTERS.get(getattr(function, "__qualname__", ""))
    if convert is None or not str(function.__module__).startswith("transformers."):
        return None
    counts = ("num_", "timescale")
    return convert(base, **{k: number(v) if k.startswith(counts) else v for k, v in given.items()})


def _constant_with_warmup(base: float, num_warmup_steps: Number) -> Schedule:
    return ramped(Constant(base), num_warmup_steps, 0.0, base)


def _linear(base: float, num_warmup_steps: Number, num_training_steps: Number) -> Schedule:
    steps = num_training_steps - num_warmup_steps
    decay = Linear(base, steps=steps) if steps > 0 else Constant(0.0)  # nothing left to decay in
    return ramped(decay, num_warmup_steps, 0.0, base)


def _cosine(
    base: float,
    num_warmup_steps: Number,
    num_training_steps: Number,
    num_cycles: float,
    min_lr_rate: float = 0.0,
) -> Schedule:
    waves = _waves(base, num_training_steps - num_warmup_steps, num_cycles, min_lr_rate)
    return ramped(waves, num_warmup_steps, 0.0, base)


def _waves(base: float, steps: Number, num_cycles: float, min_lr_rate: float) -> Schedule:
    """`num_cycles` waves within `steps`, and on after them: the usual half wave comes back up."""
    if num_cycles == 0:
        return Constant(base)
    return wave(base, number(max(1, steps) / (2 * abs(num_cycles))), base * value_of(min_lr_rate))


def _cosine_with_restarts(
    base: float, num_warmup_steps: Number, num_training_steps: Number, num_cycles: Number
) -> Schedule:
    steps = max(1, num_training_steps - num_warmup_steps)
    length = number(steps / num_cycles) if num_cycles else 0
    if num_cycles == 0:
        decay = sequence([(base, steps), (0.0, None)])
    elif num_cycles == 1:
        decay = Cosine(base, steps=steps)
    elif isinstance(num_cycles, int):  # the phase (cycles * progress) % 1 ends with the training
        decay = CosineRestarts(base, steps=length, limit=num_cycles)
    else:  # the end of the training cuts a cycle
        decay = sequence([(CosineRestarts(base, steps=length), steps), (0.0, None)])
    return ramped(decay, num_warmup_steps, 0.0, base)


def _polynomial(
    base: float,
    num_warmup_steps: Number,
    num_training_steps: Number,
    lr_end: float,
    power: float,
    lr_init: float,
) -> Schedule:
    end_value = base * value_of(lr_end) / value_of(lr_init)
    steps = num_training_steps - num_warmup_steps
    if steps == 0:
        why = "with as many warmup steps as steps in all it divides by zero after the warmup"
        raise ValueError(why)
    if steps < 0:
        decay: Schedule = Constant(end_value)
    elif power == 0:  # 0^0 is 1: the end comes one step late
        decay = sequence([(base, steps + 1), (end_value, None)])
    else:
        decay = Polynomial(base, steps=steps, power=power, end_value=end_value)
    return ramped(decay, num_warmup_steps, 0.0, base)


def _inverse_sqrt(base: float, num_warmup_steps: Number, timescale: Number) -> Schedule:
    return ramped(InverseSqrt(base, timescale=timescale), num_warmup_steps, 0.0, base)


def _cosine_with_early_warmup(
    base: float,
    num_warmup_steps: Number,
    num_training_steps: Number,
    num_cycles: float,
    min_lr_rate: float = 0.0,
    warmup_lr_rate: float | None = None,
) -> Schedule:
    # The ramp is at the peak one step before its end, and the wave is one step ahead.
    steps = math.ceil(num_warmup_steps)
    waves = _waves(base, num_training_steps - num_warmup_steps, num_cycles, min_lr_rate)
    waves = begun(waves, number(steps + 1 - num_warmup_steps))
    first = 1 / max(1, num_warmup_steps) if warmup_lr_rate is None else value_of(warmup_lr_rate)
    ramp: Schedule | float = base * first
    if steps > 1:
        ramp = Linear(base * first, steps=number(num_warmup_steps - 1), end_value=base)
    return sequence([(ramp, steps), (waves, None)])


def _warmup_stable_decay(
    base: float,
    num_warmup_steps: Number,
    num_stable_steps: Number,
    num_decay_steps: Number,
    warmup_type: str,
    decay_type: str,
    min_lr_ratio: float,
    num_cycles: float,
) -> Schedule:
    low, steps = base * value_of(min_lr_ratio), max(1, num_decay_steps)
    if decay_type == "linear":
        decay: Schedule = Linear(base, steps=steps, end_value=low)
    elif decay_type == "1-sqrt":
        decay = power_decay(base, steps, low, 0.5)
    elif num_cycles == 0.5:
        decay = Cosine(base, steps=steps, end_value=low)
    else:
        decay = _waves(base, num_decay_steps, num_cycles, min_lr_ratio)
    # A warmup that reaches into the decay hides its beginning.
    hidden = max(0, -num_stable_steps)
    length = num_decay_steps - hidden
    rest = sequence([(base, num_stable_steps), (begun(decay, hidden), length), (low, None)])
    if num_warmup_steps <= 0:
        return rest
    if math.isclose(float(rest(0)), base, rel_tol=1e-6):
        return rest.warmup(num_warmup_steps, init_value=low, shape=warmup_type)
    ramp = Constant(base).warmup(num_warmup_steps, init_value=low, shape=warmup_type)
    return sequence([(ramp, num_warmup_steps), (rest, None)])


_CONVERTERS: dict[str, Callable[..., Schedule]] = {
    "_get_constant_lambda": Constant,
    "_get_constant_schedule_with_warmup_lr_lambda": _constant_with_warmup,
    "_get_linear_schedule_with_warmup_lr_lambda": _linear,
    "_get_cosine_schedule_with_warmup_lr_lambda": _cosine,
    "_get_cosine_with_hard_restarts_schedule_with_warmup_lr_lambda": _cosine_with_restarts,
    "_get_polynomial_decay_schedule_with_warmup_lr_lambda": _polynomial,
    "_get_inverse_sqrt_schedule_lr_lambda": _inverse_sqrt,
    "_get_cosine_with_min_lr_schedule_with_warmup_lr_rate_lambda": _cosine_with_early_warmup,
    "_get_wsd_scheduler_lambda": _warmup_stable_decay,
}
