"""`from_torch`: schedulers of `torch.optim.lr_scheduler`, sequences and chains of them.

A chain changes the same learning rate with one scheduler after the other, at each step. Most of
them multiply it, and their product is exact. One that computes it anew makes those before it idle.
The exception is CosineAnnealingLR: a step of its recursion is (lr - eta_min) r + eta_min, so with
`eta_min` it is no product, and at the foot of each wave it adds what its own learning rate alone
would rise by, without the other factors.
"""

import functools
import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from jax_lrreg.interop.peer import (
    Peer,
    Piece,
    begun,
    is_whole,
    number,
    of_group,
    refused,
    require_agreement,
    sequence,
    value_of,
    wave,
)
from jax_lrreg.interop.torch_single import DIRECT, MODULE, constant_of, convert_one, name_in_torch
from jax_lrreg.schedules import Constant, Cosine, Exponential, PiecewiseLinear, Schedule, join

_MOST_STEPS = 2000  # of a recursion that is written out step by step


def from_torch(scheduler: Peer, group: int | None = None) -> Schedule:
    """The equal of a scheduler of `torch.optim.lr_scheduler`, or of transformers' `get_scheduler`.

    Our step is its `last_epoch`, the number of times `scheduler.step()` has been called. PyTorch
    computes recursively what has a closed form, and drifts from it by a few millionths in a million
    steps. At its very last step, `total_steps`, a linear `OneCycleLR` goes below zero, where ours
    stays at the end value.

    Args:
        scheduler: the live object, at any point of its run.
        group: which parameter group, where they differ.

    Raises:
        ValueError: it follows a metric, has a function of the user's, is a class of the user's,
            chains what has no closed form, or its optimizer has been changed by something else.

    Example:
        >>> from_torch(torch.optim.lr_scheduler.StepLR(optimizer, step_size=30))  # doctest: +SKIP
        Step(0.1, steps=30)
    """
    if name_in_torch(scheduler) is None:
        module = type(scheduler).__module__
        if type(scheduler).__qualname__ == "GreedyLR" and module.startswith("transformers."):
            raise refused(scheduler, "it follows a metric; see schedules.Greedy.like_transformers")
        raise refused(scheduler, f"from_torch knows the schedulers of {MODULE} itself")
    leaf = _first_leaf(scheduler)

    def of(index: int) -> Schedule:
        start = _start(leaf, index)
        schedule = _converted(scheduler, index, start)
        # In the middle of a run the rate shows whether this object alone has moved it.
        now = scheduler if hasattr(scheduler, "last_epoch") else leaf
        if now.last_epoch < 0 or not hasattr(scheduler, "_last_lr"):
            return schedule
        value = value_of(scheduler._last_lr[index])
        scale = max(abs(start), *(abs(value_of(lr)) for lr in leaf.base_lrs))
        return require_agreement(scheduler, schedule, now.last_epoch, value, scale)

    return of_group(scheduler, group, len(leaf.optimizer.param_groups), of)


def _first_leaf(s: Peer) -> Peer:
    return _first_leaf(s._schedulers[0]) if hasattr(s, "_schedulers") else s


def _start(leaf: Peer, group: int) -> float:
    """The learning rate of the optimizer before the first scheduler changed it."""
    values = leaf.optimizer.param_groups[group]
    if not hasattr(leaf, "base_lrs"):
        return value_of(values["lr"])
    return value_of(values.get("initial_lr", leaf.base_lrs[group]))


def _converted(s: Peer, group: int, start: float) -> Schedule:
    """Any scheduler of PyTorch's that begins at the value `start`."""
    name = name_in_torch(s)
    if name == "SequentialLR":
        return _sequential(s, group, start)
    if name == "ChainedScheduler":
        return _chained(s, _members(s), group, start)
    return convert_one(s, group, start)


def _members(s: Peer) -> list[Peer]:
    """What a ChainedScheduler steps through, in order."""
    if name_in_torch(s) != "ChainedScheduler":
        return [s]
    return [leaf for part in s._schedulers for leaf in _members(part)]


def _sequential(s: Peer, group: int, start: float) -> Schedule:
    milestones = [number(milestone) for milestone in s._milestones]
    if milestones != sorted(milestones) or not all(map(is_whole, milestones)):
        raise refused(s, f"its milestones {s._milestones} are not whole and rising")
    first = bisect_right(milestones, 0)  # those before it are over when the sequence is made
    begins, ends = [0, *milestones[first:]], [*milestones[first:], None]
    pieces: list[Piece] = []
    before = None
    for part, begin, end in zip(s._schedulers[first:], begins, ends, strict=True):
        if hasattr(part, "_schedulers"):
            why = "which PyTorch itself shifts in time or cannot restart"
            raise refused(s, f"it holds a {type(part).__qualname__}, {why}")
        length = None if end is None else end - begin
        if length == 0:
            continue
        # At its milestone PyTorch calls `step(0)`: the rate begins at the part's own base, or where
        # the part has no closed form, goes on from the value before.
        restarted = part is not s._schedulers[first]
        own_start = value_of(part.base_lrs[group]) if restarted else start
        own = convert_one(part, group, own_start, restarted, before)
        pieces.append((own, length))
        before = None if length is None else float(own(length - 1))
    return sequence(pieces)


def _chained(s: Peer, parts: Sequence[Peer], group: int, start: float) -> Schedule:
    """The schedule of a chain that begins at the value `start`."""
    names = [type(part).__qualname__ for part in parts]
    # What computes the rate from its own base loses what the ones before it did in the same step.
    anew = [name for name in names if name in (*DIRECT, "LambdaLR")]
    if len(parts) == 1 or names[-1] in anew:
        return _converted(parts[-1], group, start)
    if anew:
        step = f"and {names[-1]} after it changes that by a single step"
        raise refused(s, f"{anew[-1]} computes the learning rate anew, {step}")
    if "SequentialLR" in names:
        why = "a SequentialLR in it computes the learning rate anew at its milestones only"
        raise refused(s, why)
    if "CosineAnnealingLR" not in names:
        return _product(parts, group, start)
    if names.count("CosineAnnealingLR") > 1:
        raise refused(s, "it holds more than one CosineAnnealingLR")
    index = names.index("CosineAnnealingLR")
    return _with_cosine(s, parts[index], parts[:index], parts[index + 1 :], group, start)


def _product(parts: Sequence[Peer], group: int, start: float) -> Schedule:
    starts = itertools.chain([start], itertools.repeat(1.0))
    schedules = [convert_one(part, group, one) for part, one in zip(parts, starts, strict=False)]
    return functools.reduce(operator.mul, schedules) if schedules else Constant(start)


def _with_cosine(
    s: Peer, cosine: Peer, earlier: Sequence[Peer], later: Sequence[Peer], group: int, start: float
) -> Schedule:
    """A chain of which one is a CosineAnnealingLR, and `earlier` and `later` are the others."""
    others = [*earlier, *later]
    if value_of(cosine.eta_min) == 0:
        schedule = _without_floor(cosine, earlier, later, group, start)
        if schedule is not None:
            return schedule
    elif not is_whole(number(cosine.T_max)):
        why = "it holds a CosineAnnealingLR with `eta_min`, and a `T_max` that is not whole"
        raise refused(s, why)
    for part in others:
        if _settled(part) > _MOST_STEPS:
            both = f"CosineAnnealingLR and {type(part).__qualname__}"
            raise refused(s, f"{both} together are a recursion without a closed form")
    settled = int(max(map(_settled, others)))
    return _tabulated(cosine, earlier, later, group, start, settled)


def _without_floor(
    cosine: Peer, earlier: Sequence[Peer], later: Sequence[Peer], group: int, start: float
) -> Schedule | None:
    """The closed form of a chain whose cosine multiplies at every step but those from a foot."""
    half = number(cosine.T_max)
    product = _product([*earlier, *later], group, 1.0)
    if not is_whole(half):  # it never meets the foot of its wave
        return wave(start, half, 0.0) * product
    falling = Cosine(start, steps=half) * product
    if max(map(_settled, [*earlier, *later])) <= half:
        return join([(falling, half), (wave(0.0, half, start), None)])
    early, late = (
        math.prod(_rate(part) for part in parts if _settled(part) > half)
        for parts in (earlier, later)
    )
    if early * late == 0:
        return None
    # At the foot the earlier ones multiply nothing: they begin one step later.
    rising = wave(0.0, half, start / early) * Exponential(1.0, steps=1, decay_rate=early * late)
    return join([(falling, half), (rising.repeat(2 * half), None)])


def _rate(part: Peer) -> float:
    """The factor by which a scheduler multiplies at every step, or 0 where there is no such one."""
    name = type(part).__qualname__
    if name == "MultiplicativeLR":
        return constant_of(part.lr_lambdas[0]) or 0.0
    return value_of(part.gamma) if name == "ExponentialLR" else 0.0


def _settled(part: Peer) -> float:
    """The step after which a scheduler changes nothing any more."""
    name = type(part).__qualname__
    if name in ("ConstantLR", "LinearLR", "PolynomialLR"):
        return max(0, math.floor(part.total_iters))
    if name == "MultiStepLR":
        return max([0, *part.milestones])
    return 0 if _rate(part) == 1 or (name == "StepLR" and part.gamma == 1) else math.inf


def _tabulated(
    cosine: Peer,
    earlier: Sequence[Peer],
    later: Sequence[Peer],
    group: int,
    start: float,
    settled: int,
) -> Schedule:
    """The recursion step by step while another changes, and its closed form from there."""
    # PyTorch's step, with h(t) = 1 + cos(pi t / half) and the rate that the earlier ones left:
    #     lr = (lr - low) h(t) / h(t - 1) + low,   but   lr + (start - low) h(half - 1) / 2
    # after a foot, where h is 0. The latter is the rise of its own wave, whatever the others did.
    half, low = int(number(cosine.T_max)), value_of(cosine.eta_min)
    if (settled - half) % (2 * half) == 0:
        settled += 1  # what is left at the foot goes into the next wave
    steps = np.arange(settled + 1)
    before, after = (
        [np.asarray(convert_one(part, group, 1.0)(steps), float) for part in parts]
        for parts in (earlier, later)
    )

    def ratio(factors: list[np.ndarray], step: int) -> float:
        return math.prod(factor[step] / factor[step - 1] for factor in factors if factor[step - 1])

    def height(step: int) -> float:  # h by the half angle: 1 + cos loses its digits at the foot
        return 2 * math.cos(math.pi / 2 * (step / half)) ** 2

    values = [start * math.prod(float(factor[0]) for factor in [*before, *after])]
    for step in range(1, settled + 1):
        value = values[-1] * ratio(before, step)
        if (step - 1 - half) % (2 * half) == 0:
            value += (start - low) * height(half - 1) / 2
        else:
            value = (value - low) * height(step) / height(step - 1) + low
        values.append(float(value * ratio(after, step)))
    table: Schedule | float = values[0]
    if settled > 0:
        boundaries = tuple(steps[1:].tolist())
        table = PiecewiseLinear(values[0], boundaries=boundaries, values=tuple(values[1:]))
    # The wave that is under way goes down to its foot, and whole ones follow.
    foot = half + 2 * half * max(0, math.ceil((settled - half) / (2 * half)))
    peak = low + (values[-1] - low) * 2 / height(settled)
    under_way = begun(wave(peak, half, low), settled % (2 * half))
    whole = wave(low, half, start)
    return sequence([(table, settled), (under_way, foot - settled), (whole, None)])
