"""PyTorch's schedulers one by one (`torch.optim.lr_scheduler` of PyTorch 2.13)."""

import dis
import math
from collections.abc import Callable

from jax_lrreg.interop import transformers
from jax_lrreg.interop.peer import (
    Number,
    Peer,
    Piece,
    begun,
    is_whole,
    number,
    refused,
    sequence,
    stairs,
    value_of,
    wave,
)
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    Linear,
    MultiStep,
    Polynomial,
    Schedule,
    Step,
)

MODULE = "torch.optim.lr_scheduler"


def name_in_torch(s: Peer) -> str | None:
    """The name of one of PyTorch's own schedulers."""
    return type(s).__qualname__ if type(s).__module__ == MODULE else None


def convert_one(
    s: Peer, group: int, start: float, restarted: bool = False, before: float | None = None
) -> Schedule:
    """One scheduler, no sequence or chain, that begins at the value `start`.

    `restarted` by SequentialLR at a milestone, it takes the closed form at 0 first, or where there
    is none goes on from `before`, the value just before.
    """
    name = name_in_torch(s)
    if name == "MultiplicativeLR":
        factor = constant_of(s.lr_lambdas[group])
        if factor is None:
            why = "its `lr_lambda` is a function of the user's, which returns no constant"
            raise refused(s, why)
        # It multiplies what it finds, at a restart too, but not when it is made.
        return _exponential_by(start if before is None else before * factor, factor)
    if name == "LambdaLR":
        return _lambda(s, value_of(s.base_lrs[group]), group)
    if name in RECURSIVE:
        return RECURSIVE[name](s, start, restarted)
    if name in DIRECT:
        return DIRECT[name](s, value_of(s.base_lrs[group]), group)
    if name == "ReduceLROnPlateau":
        raise refused(s, "it follows a metric; see schedules.ReduceOnPlateau")
    raise refused(s, f"from_torch knows {', '.join((*RECURSIVE, *DIRECT, *OTHERS))}")


def constant_of(function: Peer) -> float | None:
    """The number that a function like `lambda epoch: 0.95` returns, or None."""
    if not hasattr(function, "__code__"):
        return None
    # Read, not run: a function of the user's may do anything, and one call would not show that it
    # is constant.
    idle = ("RESUME", "NOP")
    steps = [step for step in dis.get_instructions(function) if step.opname not in idle]
    loads = ("LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST")
    constant = steps[0].argval if steps[0].opname in loads else None
    short = len(steps) <= 2 and all(step.opname in (*loads, "RETURN_VALUE") for step in steps)
    return float(constant) if short and isinstance(constant, int | float) else None


def _lambda(s: Peer, base: float, group: int) -> Schedule:
    factor = constant_of(s.lr_lambdas[group])
    if factor is not None:
        return Constant(base * factor)
    schedule = transformers.from_lambda(s.lr_lambdas[group], base)
    if schedule is None:
        raise refused(s, "its `lr_lambda` is a function of the user's")
    return schedule


def _constant(s: Peer, start: float, restarted: bool) -> Schedule:
    steps, factor = number(s.total_iters), value_of(s.factor)
    if steps <= 0 and restarted:
        return Constant(start)
    if steps <= 0 or not is_whole(steps):  # the step at which it would be released never comes
        return Constant(start * factor)
    if factor == 0:
        raise refused(s, "with factor=0 PyTorch itself divides by zero at `total_iters`")
    return sequence([(start * factor, steps), (start, None)])


def _linear(s: Peer, start: float, restarted: bool) -> Schedule:
    begin, end, steps = value_of(s.start_factor), value_of(s.end_factor), number(s.total_iters)
    if steps < 1:
        if restarted and steps == 0:
            raise refused(s, "with total_iters=0 PyTorch itself divides by zero at the milestone")
        return Constant(start * begin)
    # Of a fractional `total_iters` the last whole step is the last that changes anything.
    whole = math.floor(steps)
    reached = end if whole == steps else begin + (end - begin) * whole / steps
    return Linear(start * begin, steps=whole, end_value=start * reached)


def _exponential(s: Peer, start: float, restarted: bool) -> Schedule:  # noqa: ARG001
    return _exponential_by(start, value_of(s.gamma))


def _exponential_by(start: float, factor: float) -> Schedule:
    if factor == 0:  # ours has a logarithm of the factor
        return sequence([(start, 1), (0.0, None)])
    return Exponential(start, steps=1, decay_rate=factor)


def _step(s: Peer, start: float, restarted: bool) -> Schedule:  # noqa: ARG001
    steps, factor = number(s.step_size), value_of(s.gamma)
    if not is_whole(steps):
        raise refused(s, f"`step_size` is {steps}, which is not whole")
    if factor == 0:
        return sequence([(start, steps), (0.0, None)])
    return Step(start, steps=steps, decay_rate=factor)


def _multi_step(s: Peer, start: float, restarted: bool) -> Schedule:
    met, factor = _met(s, restarted), value_of(s.gamma)
    later = [m for m in met if m > 0]
    if later and len(set(later)) == len(later) and factor > 0:
        first = start * factor ** (len(met) - len(later))
        return MultiStep(first, boundaries=tuple(later), decay_rate=factor)
    after = {m: start * factor**count for count, m in enumerate(met, 1)}  # the last of equal ones
    return stairs(start, after.items())


def _met(s: Peer, restarted: bool) -> list[Number]:
    """The milestones that count, each as often as it is named.

    A restart counts all up to 0. The recursion meets those that are whole, from 0 on.
    """
    least = -math.inf if restarted else 0
    named = sorted(number(m) for m, count in s.milestones.items() for _ in range(count))
    return [m for m in named if least <= m and (m <= 0 or is_whole(m))]


def _polynomial(s: Peer, start: float, restarted: bool) -> Schedule:
    steps, power = number(s.total_iters), value_of(s.power)
    if steps == 0 and restarted:
        raise refused(s, "with total_iters=0 PyTorch itself divides by zero at the milestone")
    if steps < 1 or power == 0:
        return Constant(start)
    decay = Polynomial(start, steps=steps, power=power)
    if is_whole(steps):
        return decay
    # As in LinearLR, it stops at the last whole step, above 0.
    return decay.clip(min=start * (1 - math.floor(steps) / steps) ** power)


def _cosine(s: Peer, start: float, restarted: bool) -> Schedule:  # noqa: ARG001
    return wave(start, number(s.T_max), value_of(s.eta_min))


def _warm_restarts(s: Peer, base: float, group: int) -> Schedule:  # noqa: ARG001
    steps, growth, end_value = number(s.T_0), number(s.T_mult), value_of(s.eta_min)
    return CosineRestarts(base, steps=steps, multiplier=growth, end_value=end_value)


def _cyclic(s: Peer, base: float, group: int) -> Schedule:
    if s._scale_fn_custom is not None:
        raise refused(s, "`scale_fn` is a function of the user's")
    peak_value, total = value_of(s.max_lrs[group]), value_of(s.total_size)
    # PyTorch keeps the sum and the ratio of two counts; 9 digits bring the counts back.
    up = round(total * value_of(s.step_ratio), 9)
    up_steps, down_steps = number(up), number(round(total - up, 9))
    if down_steps == 0:
        if s.mode != "triangular":
            raise refused(s, f"`step_size_down` is 0 with mode={s.mode!r}")
        return Linear(base, steps=up_steps, end_value=peak_value).repeat(up_steps)
    decays = {"triangular2": {"cycle_decay": 0.5}, "exp_range": {"step_decay": value_of(s.gamma)}}
    sides = {"up_steps": up_steps, "down_steps": down_steps}
    return Cyclic(base, peak_value=peak_value, **sides, **decays.get(s.mode, {}))


def _one_cycle(s: Peer, base: float, group: int) -> Schedule:  # noqa: ARG001
    values = s.optimizer.param_groups[group]
    pieces: list[Piece] = []
    begin, now = 0, 0  # a phase ends at a float, and may have begun before 0
    for phase in s._schedule_phases:
        end, last = number(phase["end_step"]), phase is s._schedule_phases[-1]
        if end > begin and (last or end > now):
            first, final = (value_of(values[phase[name]]) for name in ("start_lr", "end_lr"))
            linear = s._anneal_func_type == "linear"
            shape = (_last_phase if last else _phase)(first, final, end - begin, linear)
            pieces.append((begun(shape, now - begin), end - now))
            now = end
        elif last and end <= begin < end + 1:
            raise refused(s, f"`pct_start` leaves its last phase {end - begin:g} steps")
        begin = end
    return sequence(pieces)


def _phase(first: float, final: float, steps: Number, linear: bool) -> Schedule:
    return (Linear if linear else Cosine)(first, steps=steps, end_value=final)


def _last_phase(first: float, final: float, steps: Number, linear: bool) -> Schedule:
    """As PyTorch goes: one step further than the end, unless that is below zero."""
    if not linear:
        return wave(first, steps, final)
    if first * steps < (first - final) * (steps + 1):
        return _phase(first, final, steps, linear)
    return Linear(first, steps=steps + 1, end_value=first + (final - first) * (steps + 1) / steps)


RECURSIVE: dict[str, Callable[[Peer, float, bool], Schedule]] = {
    "ConstantLR": _constant,
    "LinearLR": _linear,
    "ExponentialLR": _exponential,
    "StepLR": _step,
    "MultiStepLR": _multi_step,
    "PolynomialLR": _polynomial,
    "CosineAnnealingLR": _cosine,
}
DIRECT: dict[str, Callable[[Peer, float, int], Schedule]] = {
    "CosineAnnealingWarmRestarts": _warm_restarts,
    "CyclicLR": _cyclic,
    "OneCycleLR": _one_cycle,
}
OTHERS = ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
