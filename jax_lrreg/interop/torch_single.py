"""PyTorch's schedulers one by one."""

import dis
import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from jax_lrreg.interop import transformers
from jax_lrreg.interop.peer import begun, is_whole, number, refused, sequence, value_of, wave
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    Linear,
    MultiStep,
    PiecewiseConstant,
    Polynomial,
    Schedule,
    Step,
)

MODULE = "torch.optim.lr_scheduler"


def name_in_torch(s: Any) -> str | None:
    """The name of one of PyTorch's own schedulers."""
    return type(s).__qualname__ if type(s).__module__ == MODULE else None


def convert_one(
    s: Any, group: int, start: float, restarted: bool = False, before: float | None = None
) -> Schedule:
    """One scheduler, no sequence or chain, that begins at the value `start`.

    `restarted` by SequentialLR at a milestone, it takes the closed form at 0 first, or where there is none goes
    on from `before`, the value just before.
    """
    name = name_in_torch(s)
    if name == "MultiplicativeLR":
        factor = constant_of(s.lr_lambdas[group])
        if factor is None:
            raise refused(
                s, "its `lr_lambda` is a function of the user's, which returns no constant"
            )
        first = start if before is None else before * factor
        return _exponential_by(first, factor)
    if name == "LambdaLR":
        base = value_of(s.base_lrs[group])
        factor = constant_of(s.lr_lambdas[group])
        known = (
            Constant(base * factor)
            if factor is not None
            else transformers.from_lambda(s.lr_lambdas[group], base)
        )
        if known is None:
            raise refused(s, "its `lr_lambda` is a function of the user's")
        return known
    if name in RECURSIVE:
        return RECURSIVE[name](s, start, restarted)
    if name in DIRECT:
        return DIRECT[name](s, value_of(s.base_lrs[group]), group)
    if name == "ReduceLROnPlateau":
        raise refused(s, "it follows a metric; see schedules.ReduceOnPlateau")
    raise refused(s, f"from_torch knows {', '.join((*RECURSIVE, *DIRECT, *OTHERS))}")


def constant_of(function: Any) -> float | None:
    """The number that a function like `lambda epoch: 0.95` returns, or None."""
    if not hasattr(function, "__code__"):
        return None
    steps = [
        step for step in dis.get_instructions(function) if step.opname not in ("RESUME", "NOP")
    ]
    loads = ("LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST")
    constant = steps[0].argval if steps[0].opname in loads else None
    short = len(steps) <= 2 and all(step.opname in (*loads, "RETURN_VALUE") for step in steps)
    return float(constant) if short and isinstance(constant, int | float) else None


def _constant(s: Any, start: float, restarted: bool) -> Schedule:
    steps, factor = number(s.total_iters), value_of(s.factor)
    if steps <= 0 and restarted:
        return Constant(start)
    if steps <= 0 or not is_whole(steps):  # the step at which it would be released never comes
        return Constant(start * factor)
    if factor == 0:
        raise refused(s, "with factor=0 PyTorch itself divides by zero at `total_iters`")
    return sequence([(start * factor, steps), (start, None)])


def _linear(s: Any, start: float, restarted: bool) -> Schedule:
    begin, end, steps = value_of(s.start_factor), value_of(s.end_factor), number(s.total_iters)
    if steps < 1:
        if restarted and steps == 0:
            raise refused(s, "with total_iters=0 PyTorch itself divides by zero at the milestone")
        return Constant(start * begin)
    whole = math.floor(steps)
    reached = end if whole == steps else begin + (end - begin) * whole / steps
    return Linear(start * begin, steps=whole, end_value=start * reached)


def _exponential(s: Any, start: float, restarted: bool) -> Schedule:
    del restarted
    return _exponential_by(start, value_of(s.gamma))


def _exponential_by(start: float, factor: float) -> Schedule:
    if factor == 0:
        return sequence([(start, 1), (0.0, None)])
    return Exponential(start, steps=1, decay_rate=factor)


def _step(s: Any, start: float, restarted: bool) -> Schedule:
    del restarted
    steps, factor = number(s.step_size), value_of(s.gamma)
    if not is_whole(steps):
        raise refused(s, f"`step_size` is {steps}, which is not whole")
    if factor == 0:
        return sequence([(start, steps), (0.0, None)])
    return Step(start, steps=steps, decay_rate=factor)


def _multi_step(s: Any, start: float, restarted: bool) -> Schedule:
    milestones = [number(m) for m, count in s.milestones.items() for _ in range(count)]
    at_once = [m for m in milestones if (m <= 0 if restarted else m == 0)]
    later = sorted(m for m in milestones if m > 0 and is_whole(m))
    factor = value_of(s.gamma)
    init_value = start * factor ** len(at_once)
    if not later:
        return Constant(init_value)
    if len(set(later)) == len(later) and factor > 0:
        return MultiStep(init_value, boundaries=tuple(later), decay_rate=factor)
    boundaries = sorted(set(later))
    values = tuple(init_value * factor ** bisect_right(later, boundary) for boundary in boundaries)
    return PiecewiseConstant(init_value, boundaries=tuple(boundaries), values=values)


def _polynomial(s: Any, start: float, restarted: bool) -> Schedule:
    steps, power = number(s.total_iters), value_of(s.power)
    if steps == 0 and restarted:
        raise refused(s, "with total_iters=0 PyTorch itself divides by zero at the milestone")
    if steps < 1 or power == 0:
        return Constant(start)
    decay = Polynomial(start, steps=steps, power=power)
    return (
        decay
        if is_whole(steps)
        else decay.clip(min=start * (1 - math.floor(steps) / steps) ** power)
    )


def _cosine(s: Any, start: float, restarted: bool) -> Schedule:
    del restarted
    return wave(start, number(s.T_max), value_of(s.eta_min))


def _warm_restarts(s: Any, base: float, group: int) -> Schedule:
    del group
    return CosineRestarts(
        base, steps=number(s.T_0), multiplier=number(s.T_mult), end_value=value_of(s.eta_min)
    )


def _cyclic(s: Any, base: float, group: int) -> Schedule:
    if s._scale_fn_custom is not None:
        raise refused(s, "`scale_fn` is a function of the user's")
    peak_value, total = value_of(s.max_lrs[group]), value_of(s.total_size)
    up = round(total * value_of(s.step_ratio), 9)
    up_steps, down_steps = number(up), number(round(total - up, 9))
    if down_steps == 0:
        if s.mode != "triangular":
            raise refused(s, f"`step_size_down` is 0 with mode={s.mode!r}")
        return Linear(base, steps=up_steps, end_value=peak_value).repeat(up_steps)
    decay = {
        "triangular2": {"cycle_decay": 0.5},
        "exp_range": {"step_decay": value_of(s.gamma)},
    }.get(s.mode, {})
    return Cyclic(base, peak_value=peak_value, up_steps=up_steps, down_steps=down_steps, **decay)


def _one_cycle(s: Any, base: float, group: int) -> Schedule:
    del base
    values, linear = s.optimizer.param_groups[group], s._anneal_func_type == "linear"
    pieces: list[tuple[Schedule, Any]] = []
    begin, now = 0, 0  # a phase ends at a float, and may have begun before 0
    for phase in s._schedule_phases:
        end, last = number(phase["end_step"]), phase is s._schedule_phases[-1]
        if end > begin and (last or end > now):
            first, final, steps = (
                value_of(values[phase["start_lr"]]),
                value_of(values[phase["end_lr"]]),
                end - begin,
            )
            if not last or (
                linear and first * steps < (first - final) * (steps + 1)
            ):  # that would be below zero
                shape = (Linear if linear else Cosine)(first, steps=steps, end_value=final)
            elif linear:  # one step further than its end, as PyTorch goes
                shape = Linear(
                    first, steps=steps + 1, end_value=first + (final - first) * (steps + 1) / steps
                )
            else:
                shape = wave(first, steps, final)
            pieces.append((begun(shape, now - begin), end - now))
            now = end
        elif last and end <= begin < end + 1:
            raise refused(s, f"`pct_start` leaves its last phase {end - begin:g} steps")
        begin = end
    return sequence(pieces)


RECURSIVE: dict[str, Callable[[Any, float, bool], Schedule]] = {
    "ConstantLR": _constant,
    "LinearLR": _linear,
    "ExponentialLR": _exponential,
    "StepLR": _step,
    "MultiStepLR": _multi_step,
    "PolynomialLR": _polynomial,
    "CosineAnnealingLR": _cosine,
}
DIRECT: dict[str, Callable[[Any, float, int], Schedule]] = {
    "CosineAnnealingWarmRestarts": _warm_restarts,
    "CyclicLR": _cyclic,
    "OneCycleLR": _one_cycle,
}
OTHERS = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
