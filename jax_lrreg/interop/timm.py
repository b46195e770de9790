"""`from_timm`: the time-driven schedulers of `timm.scheduler`."""

from collections.abc import Callable
from typing import Any

from jax_lrreg.interop.peer import (
    begun,
    number,
    of_group,
    power_decay,
    ramped,
    refused,
    sequence,
    value_of,
)
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    PiecewiseConstant,
    Polynomial,
    PowerLaw,
    Schedule,
    Step,
    Tanh,
)

MOST_CYCLES = 100


def from_timm(scheduler: Any, group: int | None = None) -> Schedule:
    """The equal of a scheduler of `timm.scheduler`.

    Our step is the `t` that it counts by: with `t_in_epochs=True`, timm's default, that is epochs, and
    `.in_units(per_step=1 / updates_per_epoch)` turns the result into one by updates (timm itself then changes
    the value at the end of an epoch only). Otherwise it is updates. Step 0 is the value that the constructor
    leaves in the optimizer, since timm's training loop never asks for step 0. `lr_scale` of the group is included.

    Args:
        scheduler: the live object.
        group: which parameter group, where they differ.

    Raises:
        ValueError: it follows a metric, adds noise, has a function of the user's, or is not timm's.

    Example:
        >>> from_timm(timm.scheduler.WSDLRScheduler(optimizer, t_initial=90, decay_t=30))  # doctest: +SKIP
        Constant(0.1).cooldown(30, at=60, shape='1-sqrt')
    """
    kind = type(scheduler)
    convert = CONVERTERS.get(kind.__qualname__)
    if kind.__qualname__ == "PlateauLRScheduler":
        raise refused(scheduler, "it follows a metric; see schedules.ReduceOnPlateau")
    if convert is None or not kind.__module__.startswith("timm.scheduler"):
        raise refused(scheduler, f"from_timm knows {', '.join(CONVERTERS)} of timm.scheduler")
    if scheduler.noise_range_t is not None:
        raise refused(scheduler, "`noise_range_t` adds random noise, drawn by PyTorch")

    def of(index: int) -> Schedule:
        base = value_of(scheduler.base_values[index])
        schedule = _from_first(convert(scheduler, base), _first(scheduler, base))
        scale = scheduler.optimizer.param_groups[index].get("lr_scale", 1)
        return schedule if scale == 1 else value_of(scale) * schedule

    return of_group(scheduler, group, len(scheduler.base_values), of)


def _first(s: Any, base: float) -> float:
    return value_of(s.warmup_lr_init) if number(s.warmup_t) > 0 else base


def _from_first(schedule: Schedule, first: float) -> Schedule:
    """The schedule, but for its value at step 0."""
    if abs(float(schedule(0)) - first) <= 1e-6 * first:
        return schedule
    return sequence([(first, 1), (begun(schedule, 1), None)])


def _warmed(s: Any, base: float, schedule: Schedule, target: float | None = None) -> Schedule:
    """The ramp, which pushes the schedule back if it is a prefix, and hides its beginning otherwise."""
    steps = number(s.warmup_t)
    if steps <= 0:
        return schedule
    schedule = schedule if s.warmup_prefix else begun(schedule, steps)
    return ramped(schedule, steps, value_of(s.warmup_lr_init), base if target is None else target)


def _cycles(s: Any, base: float, shape: Callable[[float, Any], Schedule]) -> Schedule:
    """Cycles of growing length and falling height, then `lr_min`."""
    length, growth, limit = number(s.t_initial), number(s.cycle_mul), int(number(s.cycle_limit))
    if limit > MOST_CYCLES:
        raise refused(s, f"`cycle_limit` is {limit}, above {MOST_CYCLES}")
    pieces: list[tuple[Schedule | float, Any]] = []
    for cycle in range(limit):
        own = number(length * growth**cycle)
        pieces.append((shape(base * value_of(s.cycle_decay) ** cycle, own), own))
    if limit == 1:
        return pieces[0][0]  # type: ignore[return-value]
    return sequence([*pieces, (value_of(s.lr_min), None)])


def _cosine(s: Any, base: float) -> Schedule:
    end_value, k_decay = value_of(s.lr_min), value_of(s.k_decay)
    growth, decay, limit = number(s.cycle_mul), value_of(s.cycle_decay), int(number(s.cycle_limit))
    # timm shrinks the peak, we shrink the height above `end_value`
    same = k_decay == 1 and growth >= 1 and (decay == 1 or (end_value == 0 and 0 < decay < 1))
    if limit > 1 and same:
        steps = number(s.t_initial)
        schedule = CosineRestarts(
            base, steps=steps, end_value=end_value, multiplier=growth, decay=decay, limit=limit
        )
    else:
        schedule = _cycles(
            s, base, lambda peak, n: Cosine(peak, steps=n, end_value=end_value, k_decay=k_decay)
        )
    return _warmed(s, base, schedule)


def _tanh(s: Any, base: float) -> Schedule:
    end_value, lower, upper = value_of(s.lr_min), value_of(s.lb), value_of(s.ub)
    schedule = _cycles(
        s, base, lambda peak, n: Tanh(peak, steps=n, end_value=end_value, lower=lower, upper=upper)
    )
    target = base if s.warmup_prefix else float(schedule(number(s.warmup_t)))
    return _warmed(s, base, schedule, target)


def _poly(s: Any, base: float) -> Schedule:
    end_value, k_decay, power = value_of(s.lr_min), value_of(s.k_decay), value_of(s.power)

    def shape(peak: float, steps: Any) -> Schedule:
        if power == 0:
            return sequence([(peak, steps), (end_value, None)])
        return Polynomial(peak, steps=steps, power=power, end_value=end_value, k_decay=k_decay)

    return _warmed(s, base, _cycles(s, base, shape))


def _step(s: Any, base: float) -> Schedule:
    steps, rate = number(s.decay_t), value_of(s.decay_rate)
    if rate == 0:
        return _warmed(s, base, sequence([(base, steps), (0.0, None)]))
    return _warmed(
        s, base, Constant(base) if rate == 1 else Step(base, steps=steps, decay_rate=rate)
    )


def _multi_step(s: Any, base: float) -> Schedule:
    # A milestone takes effect one step before it.
    rate = value_of(s.decay_rate)
    passed = sorted(number(milestone) - 1 for milestone in s.decay_t)
    init_value = base * rate ** sum(boundary <= 0 for boundary in passed)
    boundaries = sorted({boundary for boundary in passed if boundary > 0})
    if not boundaries:
        return _warmed(s, base, Constant(init_value))
    values = tuple(
        base * rate ** sum(other <= boundary for other in passed) for boundary in boundaries
    )
    return _warmed(
        s, base, PiecewiseConstant(init_value, boundaries=tuple(boundaries), values=values)
    )


def _wsd(s: Any, base: float) -> Schedule:
    if not isinstance(s.decay_fn, str):
        raise refused(s, "`decay_fn` is a function of the user's")
    length, floor = number(s.decay_t), value_of(s.lr_min)
    begin = number(s.t_initial) - length
    shape = {"exp": "exponential"}.get(s.decay_fn, s.decay_fn)

    def cooled(value: float, end_value: float) -> Schedule:
        if shape == "power":
            return sequence(
                [
                    (value, begin),
                    (power_decay(value, length, end_value, value_of(s.decay_power)), None),
                ]
            )
        options = {"rate": value_of(s.decay_ratio)} if shape == "exponential" else {}
        return Constant(value).cooldown(
            length, at=begin, end_value=end_value, shape=shape, **options
        )

    if s.stable_fn == "constant":
        schedule = cooled(max(base, floor), floor)
    else:
        scale = number(s.stable_timescale)
        stable: Schedule = InverseSqrt(base, timescale=scale)
        if s.stable_fn == "power":
            stable = PowerLaw(base, timescale=scale, exponent=value_of(s.stable_power))
        elif s.stable_fn != "rsqrt":
            raise refused(s, f"`stable_fn` is {s.stable_fn!r}")
        if floor > 0:  # floor + (stable - floor) d, without the difference
            schedule = stable.clip(min=floor) * cooled(1.0, 0.0) + cooled(0.0, floor)
        else:
            schedule = stable * cooled(1.0, 0.0)
    return ramped(schedule, number(s.warmup_t), value_of(s.warmup_lr_init), base)


CONVERTERS: dict[str, Callable[[Any, float], Schedule]] = {
    "CosineLRScheduler": _cosine,
    "TanhLRScheduler": _tanh,
    "PolyLRScheduler": _poly,
    "StepLRScheduler": _step,
    "MultiStepLRScheduler": _multi_step,
    "WSDLRScheduler": _wsd,
}
