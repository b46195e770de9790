"""`from_timm`: the time-driven schedulers of `timm.scheduler` (timm 1.0.31)."""

from collections.abc import Callable

from jax_lrreg.interop.peer import (
    Number,
    Peer,
    Piece,
    begun,
    number,
    of_group,
    power_decay,
    ramped,
    refused,
    sequence,
    stairs,
    value_of,
)
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Polynomial,
    PowerLaw,
    Schedule,
    Step,
    Tanh,
)

_MOST_CYCLES = 100  # each is a piece of the schedule, which is traced whole


def from_timm(scheduler: Peer, group: int | None = None) -> Schedule:
    """The equal of a scheduler of `timm.scheduler`.

    Our step is the `t` that it counts by: with `t_in_epochs=True`, timm's default, that is epochs,
    and `.in_units(per_step=1 / updates_per_epoch)` turns the result into one by updates (timm
    itself then changes the value at the end of an epoch only). Otherwise it is updates. Step 0 is
    the value that the constructor leaves in the optimizer, since timm's training loop never asks
    for step 0. `lr_scale` of the group is included.

    Args:
        scheduler: the live object.
        group: which parameter group, where they differ.

    Raises:
        ValueError: it follows a metric, adds noise, has a function of the user's, or is not timm's.

    Example:
        >>> scheduler = timm.scheduler.WSDLRScheduler(optimizer, 90, decay_t=30)  # doctest: +SKIP
        >>> from_timm(scheduler)  # doctest: +SKIP
        Constant(0.1).cooldown(30, at=60, shape='1-sqrt')
    """
    name, module = type(scheduler).__qualname__, type(scheduler).__module__
    if name == "PlateauLRScheduler":
        raise refused(scheduler, "it follows a metric; see schedules.ReduceOnPlateau")
    if name not in _CONVERTERS or not module.startswith("timm.scheduler"):
        raise refused(scheduler, f"from_timm knows {', '.join(_CONVERTERS)} of timm.scheduler")
    if scheduler.noise_range_t is not None:
        raise refused(scheduler, "`noise_range_t` adds random noise, drawn by PyTorch")

    def of(index: int) -> Schedule:
        base = value_of(scheduler.base_values[index])
        first = value_of(scheduler.warmup_lr_init) if number(scheduler.warmup_t) > 0 else base
        schedule = _from_first(_CONVERTERS[name](scheduler, base), first)
        scale = value_of(scheduler.optimizer.param_groups[index].get("lr_scale", 1))
        return schedule if scale == 1 else scale * schedule

    return of_group(scheduler, group, len(scheduler.base_values), of)


def _from_first(schedule: Schedule, first: float) -> Schedule:
    """The schedule, but for its value at step 0."""
    # The constructor writes `first` into the optimizer; training asks for step 1 first.
    if abs(float(schedule(0)) - first) <= 1e-6 * first:
        return schedule
    return sequence([(first, 1), (begun(schedule, 1), None)])


def _warmed(s: Peer, base: float, schedule: Schedule, target: float | None = None) -> Schedule:
    """The ramp, which pushes the schedule back if it is a prefix, or else hides its beginning."""
    steps = number(s.warmup_t)
    if steps <= 0:
        return schedule
    schedule = schedule if s.warmup_prefix else begun(schedule, steps)
    return ramped(schedule, steps, value_of(s.warmup_lr_init), base if target is None else target)


def _cycles(s: Peer, base: float, shape: Callable[[float, Number], Schedule]) -> Schedule:
    """Cycles of growing length and falling height, then `lr_min`."""
    growth, decay, limit = number(s.cycle_mul), value_of(s.cycle_decay), int(number(s.cycle_limit))
    if limit > _MOST_CYCLES:
        raise refused(s, f"`cycle_limit` is {limit}, above {_MOST_CYCLES}")
    # timm finds the cycle by a logarithm, which may miss a restart; here lengths are summed.
    lengths = [number(number(s.t_initial) * growth**cycle) for cycle in range(limit)]
    shapes = [shape(base * decay**cycle, length) for cycle, length in enumerate(lengths)]
    if limit == 1:
        return shapes[0]
    pieces: list[Piece] = [*zip(shapes, lengths, strict=True)]
    return sequence([*pieces, (value_of(s.lr_min), None)])


def _cosine(s: Peer, base: float) -> Schedule:
    steps, end_value, k_decay = number(s.t_initial), value_of(s.lr_min), value_of(s.k_decay)
    growth, decay, limit = number(s.cycle_mul), value_of(s.cycle_decay), int(number(s.cycle_limit))
    # timm shrinks the peak, we shrink the height above `end_value`.
    same = k_decay == 1 and growth >= 1 and (decay == 1 or (end_value == 0 and 0 < decay < 1))
    if limit > 1 and same:
        cycles = {"multiplier": growth, "decay": decay, "limit": limit}
        return _warmed(s, base, CosineRestarts(base, steps=steps, end_value=end_value, **cycles))

    def shape(peak: float, steps: Number) -> Schedule:
        return Cosine(peak, steps=steps, end_value=end_value, k_decay=k_decay)

    return _warmed(s, base, _cycles(s, base, shape))


def _tanh(s: Peer, base: float) -> Schedule:
    end_value, lower, upper = value_of(s.lr_min), value_of(s.lb), value_of(s.ub)

    def shape(peak: float, steps: Number) -> Schedule:
        return Tanh(peak, steps=steps, end_value=end_value, lower=lower, upper=upper)

    schedule = _cycles(s, base, shape)
    # Here timm's ramp goes to where it meets the decay.
    target = base if s.warmup_prefix else float(schedule(number(s.warmup_t)))
    return _warmed(s, base, schedule, target)


def _poly(s: Peer, base: float) -> Schedule:
    end_value, k_decay, power = value_of(s.lr_min), value_of(s.k_decay), value_of(s.power)

    def shape(peak: float, steps: Number) -> Schedule:
        if power == 0:  # 0^0 is 1
            return sequence([(peak, steps), (end_value, None)])
        return Polynomial(peak, steps=steps, power=power, end_value=end_value, k_decay=k_decay)

    return _warmed(s, base, _cycles(s, base, shape))


def _step(s: Peer, base: float) -> Schedule:
    steps, rate = number(s.decay_t), value_of(s.decay_rate)
    if rate == 0:
        return _warmed(s, base, sequence([(base, steps), (0.0, None)]))
    decay = Constant(base) if rate == 1 else Step(base, steps=steps, decay_rate=rate)
    return _warmed(s, base, decay)


def _multi_step(s: Peer, base: float) -> Schedule:
    # timm's `bisect_right(decay_t, t + 1)`: a milestone takes effect one step before it.
    steps = sorted(number(milestone) - 1 for milestone in s.decay_t)
    rate = value_of(s.decay_rate)
    passed = {step: count for count, step in enumerate(steps, 1)}  # the last of equal ones counts
    return _warmed(s, base, stairs(base, ((x, base * rate**n) for x, n in passed.items())))


def _wsd(s: Peer, base: float) -> Schedule:
    if not isinstance(s.decay_fn, str):
        raise refused(s, "`decay_fn` is a function of the user's")
    floor, scale = value_of(s.lr_min), number(s.stable_timescale)
    if s.stable_fn == "constant":
        schedule = _cooled(s, max(base, floor), floor)
        return ramped(schedule, number(s.warmup_t), value_of(s.warmup_lr_init), base)
    if s.stable_fn == "rsqrt":
        stable: Schedule = InverseSqrt(base, timescale=scale)
    elif s.stable_fn == "power":
        stable = PowerLaw(base, timescale=scale, exponent=value_of(s.stable_power))
    else:
        raise refused(s, f"`stable_fn` is {s.stable_fn!r}")
    schedule = (stable.clip(min=floor) if floor > 0 else stable) * _cooled(s, 1.0, 0.0)
    if floor > 0:  # floor + (stable - floor) d, without the difference
        schedule = schedule + _cooled(s, 0.0, floor)
    return ramped(schedule, number(s.warmup_t), value_of(s.warmup_lr_init), base)


def _cooled(s: Peer, value: float, end_value: float) -> Schedule:
    """`value`, and in the last `decay_t` steps of `t_initial` from it to `end_value`."""
    length = number(s.decay_t)
    begin = number(s.t_initial) - length
    if s.decay_fn == "power":
        decay = power_decay(value, length, end_value, value_of(s.decay_power))
        return sequence([(value, begin), (decay, None)])
    if s.decay_fn == "exp":
        shape = {"shape": "exponential", "rate": value_of(s.decay_ratio)}
    else:
        shape = {"shape": s.decay_fn}
    return Constant(value).cooldown(length, at=begin, end_value=end_value, **shape)


_CONVERTERS: dict[str, Callable[[Peer, float], Schedule]] = {
    "CosineLRScheduler": _cosine,
    "TanhLRScheduler": _tanh,
    "PolyLRScheduler": _poly,
    "StepLRScheduler": _step,
    "MultiStepLRScheduler": _multi_step,
    "WSDLRScheduler": _wsd,
}
