"""PyTorch's SequentialLR and ChainedScheduler.

A chain changes the same learning rate with one scheduler after the other, at each step. Most of them multiply it,
and their product is exact. One that computes it anew makes those before it idle. The exception is
CosineAnnealingLR: a step of its recursion is (lr - eta_min) r + eta_min, so with `eta_min` it is no product, and at
the foot of each wave it adds what its own learning rate alone would rise by, without the other factors.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_lrreg.interop.peer import begun, is_whole, number, refused, sequence, value_of, wave
from jax_lrreg.interop.torch_single import DIRECT, constant_of, convert_one, name_in_torch
from jax_lrreg.schedules import Constant, Cosine, Exponential, PiecewiseLinear, Schedule, join

MOST_STEPS = 2000


def convert(s: Any, group: int, start: float) -> Schedule:
    """Any scheduler of PyTorch's that begins at the value `start`."""
    name = name_in_torch(s)
    if name == "SequentialLR":
        return _sequential(s, group, start)
    if name == "ChainedScheduler":
        return _chained(s, _members(s), group, start)
    return convert_one(s, group, start)


def _members(s: Any) -> list[Any]:
    """What a ChainedScheduler steps through, in order."""
    parts = (
        (_members(part) if name_in_torch(part) == "ChainedScheduler" else [part])
        for part in s._schedulers
    )
    return [leaf for part in parts for leaf in part]


def _sequential(s: Any, group: int, start: float) -> Schedule:
    milestones = [number(milestone) for milestone in s._milestones]
    if milestones != sorted(milestones) or not all(is_whole(milestone) for milestone in milestones):
        raise refused(s, f"its milestones {s._milestones} are not whole and rising")
    first = bisect_right(milestones, 0)
    pieces: list[tuple[Schedule, Any]] = []
    before = None
    for index in range(first, len(s._schedulers)):
        part = s._schedulers[index]
        if hasattr(part, "_schedulers"):
            raise refused(
                s,
                f"it holds a {type(part).__qualname__}, which PyTorch itself shifts in time or cannot restart",
            )
        restarted = index > first
        begin = milestones[index - 1] if restarted else 0
        length = milestones[index] - begin if index < len(milestones) else None
        if length == 0:
            continue
        own = convert_one(
            part, group, value_of(part.base_lrs[group]) if restarted else start, restarted, before
        )
        pieces.append((own, length))
        before = None if length is None else float(own(length - 1))
    return sequence(pieces)


def _chained(s: Any, parts: Sequence[Any], group: int, start: float) -> Schedule:
    """The schedule of a chain that begins at the value `start`."""
    names = [type(part).__qualname__ for part in parts]
    anew = [index for index, name in enumerate(names) if name in DIRECT or name == "LambdaLR"]
    if len(parts) == 1 or (anew and anew[-1] == len(parts) - 1):
        return convert(parts[-1], group, start)
    if anew:
        name = names[anew[-1]]
        raise refused(
            s,
            f"{name} computes the learning rate anew, and {names[-1]} after it changes that by a single step",
        )
    if "SequentialLR" in names:
        raise refused(
            s, "a SequentialLR in it computes the learning rate anew at its milestones only"
        )
    cosines = [index for index, name in enumerate(names) if name == "CosineAnnealingLR"]
    if not cosines:
        return _product(parts, group, start)
    if len(cosines) > 1:
        raise refused(s, "it holds more than one CosineAnnealingLR")
    index = cosines[0]
    return _with_cosine(s, parts[index], [*parts[:index]], [*parts[index + 1 :]], group, start)


def _product(parts: Sequence[Any], group: int, start: float) -> Schedule:
    schedules = [
        convert_one(part, group, start if index == 0 else 1.0) for index, part in enumerate(parts)
    ]
    if not schedules:
        return Constant(start)
    result = schedules[0]
    for schedule in schedules[1:]:
        result = result * schedule
    return result


def _with_cosine(
    s: Any, cosine: Any, earlier: list[Any], later: list[Any], group: int, start: float
) -> Schedule:
    half, low = number(cosine.T_max), value_of(cosine.eta_min)
    others = [*earlier, *later]
    if low == 0 and not is_whole(half):  # it never meets the foot of its wave
        return wave(start, half, 0.0) * _product(others, group, 1.0)
    if not is_whole(half):
        raise refused(
            s, "it holds a CosineAnnealingLR with `eta_min`, and a `T_max` that is not whole"
        )
    settled = max(_settled(part) for part in others)
    if low == 0:
        falling = Cosine(start, steps=half) * _product(others, group, 1.0)
        if settled <= half:
            return join([(falling, half), (wave(0.0, half, start), None)])
        changing = [part for part in others if _settled(part) > half]
        if all(_rate(part) is not None for part in changing):
            # At the foot the earlier ones multiply nothing: they begin one step later.
            rate = math.prod(_rate(part) for part in changing)  # type: ignore[misc]
            late = math.prod(_rate(part) for part in changing if part in earlier)  # type: ignore[misc]
            rising = wave(0.0, half, start / late) * Exponential(1.0, steps=1, decay_rate=rate)
            return join([(falling, half), (rising.repeat(2 * half), None)])
    if settled > MOST_STEPS:
        slow = next(type(part).__qualname__ for part in others if _settled(part) > MOST_STEPS)
        raise refused(
            s, f"CosineAnnealingLR and {slow} together are a recursion without a closed form"
        )
    return _tabulated(cosine, earlier, later, group, start, int(settled))


def _rate(part: Any) -> float | None:
    """The factor by which a scheduler multiplies at every step, where it is one and not 0."""
    name = type(part).__qualname__
    factor = constant_of(part.lr_lambdas[0]) if name == "MultiplicativeLR" else None
    return (value_of(part.gamma) if name == "ExponentialLR" else factor) or None


def _settled(part: Any) -> float:
    """The step after which a scheduler changes nothing any more."""
    name = type(part).__qualname__
    if name in ("ConstantLR", "LinearLR", "PolynomialLR"):
        return max(0, math.floor(part.total_iters))
    if name == "MultiStepLR":
        return max([0, *part.milestones])
    return 0 if _rate(part) == 1 or (name == "StepLR" and part.gamma == 1) else math.inf


def _tabulated(
    cosine: Any, earlier: list[Any], later: list[Any], group: int, start: float, settled: int
) -> Schedule:
    """The recursion step by step until only the cosine still changes, and its closed form from there."""
    half, low = int(number(cosine.T_max)), value_of(cosine.eta_min)
    if (settled - half) % (2 * half) == 0:
        settled += 1  # what is left at the foot goes into the next wave
    steps = np.arange(settled + 1)
    before, after = (
        [np.asarray(convert_one(part, group, 1.0)(steps), float) for part in p]
        for p in (earlier, later)
    )

    def ratio(factors: list[np.ndarray], step: int) -> float:
        return math.prod(factor[step] / factor[step - 1] for factor in factors if factor[step - 1])

    def height(step: int) -> float:  # from 2 at the top to 0 at the foot, and back
        return 2 * math.cos(math.pi / 2 * (step / half)) ** 2

    values = [start * math.prod(float(factor[0]) for factor in [*before, *after])]
    for step in range(1, settled + 1):
        value = values[-1] * ratio(before, step)
        if (step - 1 - half) % (2 * half) == 0:
            value += (start - low) * height(half - 1) / 2
        else:
            value = (value - low) * height(step) / height(step - 1) + low
        values.append(float(value * ratio(after, step)))
    foot = half + 2 * half * max(
        0, math.ceil((settled - half) / (2 * half))
    )  # of the wave that is under way
    pieces: list[tuple[Schedule, Any]] = [(wave(low, half, start), None)]
    if settled < foot:
        peak = low + (values[-1] - low) * 2 / height(settled)
        under_way = begun(wave(peak, half, low), settled % (2 * half))
        pieces.insert(0, (under_way, foot - settled))
    if settled > 0:
        table = PiecewiseLinear(
            values[0], boundaries=tuple(range(1, settled + 1)), values=tuple(values[1:])
        )
        pieces.insert(0, (table, settled))
    return sequence(pieces)
