"""`from_optax`: the functions that `optax.schedules` makes, read from what they enclose."""

import contextlib
from collections.abc import Callable
from typing import Any

from jax_lrreg.interop.peer import of_group, refused, sequence
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    PiecewiseConstant,
    PiecewiseCosine,
    PiecewiseLinear,
    Polynomial,
    Schedule,
    Step,
)


def from_optax(schedule: Callable[[Any], Any]) -> Schedule:
    """The equal of a schedule of Optax; our step is its `count`. A schedule of ours is returned as it is.

    Optax's schedules are closures without a public form: they are read from their enclosed variables.

    Raises:
        ValueError: it was not made by a function of `optax.schedules`; any function takes part in our algebra
            as it is, see `schedules.Function`.

    Example:
        >>> import optax
        >>> from_optax(optax.cosine_decay_schedule(0.1, decay_steps=100, alpha=0.5))
        Cosine(0.1, steps=100, end_value=0.05)
    """
    if isinstance(schedule, Schedule):
        return schedule
    maker = getattr(schedule, "__qualname__", "").partition(".<locals>")[0]
    convert = MAKERS.get(maker)
    code = getattr(schedule, "__code__", None)
    if convert is None or code is None or not schedule.__module__.startswith("optax."):
        raise refused(
            schedule,
            f"from_optax knows what {', '.join(MAKERS)} make, and all that is made of these",
        )
    enclosed = {}
    for name, cell in zip(code.co_freevars, schedule.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that was never set
            enclosed[name] = cell.cell_contents
    if len(enclosed) == 1 and schedule.__qualname__.endswith("<lambda>"):
        return of_group(schedule, None, 1, lambda _: Constant(*enclosed.values()))
    return of_group(schedule, None, 1, lambda _: convert(schedule, **enclosed))


def _polynomial(
    schedule: Any,
    init_value: Any,
    end_value: Any,
    power: Any,
    transition_steps: Any,
    transition_begin: Any,
) -> Schedule:
    del schedule
    if _is(power, 0):
        return Constant(init_value)
    if _is(power, 1):
        decay = Linear(init_value, steps=transition_steps, end_value=end_value)
    else:
        decay = Polynomial(init_value, steps=transition_steps, power=power, end_value=end_value)
    return decay if _is(transition_begin, 0) else decay.shift(transition_begin)


def _exponential(
    schedule: Any,
    init_value: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: Any,
    staircase: bool,
    end_value: Any = None,
    clip_fn: Any = None,
) -> Schedule:
    del schedule
    decay: Schedule = (Step if staircase else Exponential)(
        init_value, steps=transition_steps, decay_rate=decay_rate
    )
    decay = decay if _is(transition_begin, 0) else decay.shift(transition_begin)
    if end_value is None:
        return decay
    return decay.clip(min=end_value) if clip_fn.__name__ == "maximum" else decay.clip(max=end_value)


def _cosine(
    schedule: Any, init_value: Any, decay_steps: Any, alpha: Any, exponent: Any
) -> Schedule:
    del schedule
    steps = (
        int(decay_steps)
        if isinstance(decay_steps, float) and decay_steps.is_integer()
        else decay_steps
    )
    return Cosine(init_value, steps=steps, end_value=init_value * alpha, exponent=exponent)


def _piecewise_constant(schedule: Any, init_value: Any, boundaries_and_scales: Any) -> Schedule:
    del schedule
    value, boundaries, values = init_value, [], []
    for boundary, scale in sorted((boundaries_and_scales or {}).items()):
        value = value * scale
        if boundary <= 0:
            init_value = value
        else:
            boundaries.append(boundary)
            values.append(value)
    if not boundaries:
        return Constant(init_value)
    return PiecewiseConstant(init_value, boundaries=tuple(boundaries), values=tuple(values))


def _piecewise_interpolate(schedule: Any, interpolate_fn: Any, **variables: Any) -> Schedule:
    kinds = {"_linear_interpolate": PiecewiseLinear, "_cosine_interpolate": PiecewiseCosine}
    kind = kinds.get(interpolate_fn.__name__)
    if kind is None:
        raise refused(schedule, f"it interpolates by {interpolate_fn.__name__}")
    if "bounds" in variables:  # Optax 0.2.6
        if 0 in variables["interval_sizes"]:
            raise refused(schedule, "it divides by 0 where two boundaries are the same")
        knots = [
            (int(at), float(value))
            for at, value in zip(variables["bounds"], variables["values"], strict=True)
        ]
    else:
        values = [variables["init_value"]]
        for scale in variables["scales"]:
            values.append(values[-1] * scale)
        knots = list(zip((0, *variables["boundaries"]), values, strict=True))
    begun = [knot for knot in knots if knot[0] <= 0]
    begin, first = begun[-1]
    later = [(boundary - begin, value) for boundary, value in knots[len(begun) :]]
    if not later:
        return Constant(first)
    curve = kind(first, boundaries=tuple(b for b, _ in later), values=tuple(v for _, v in later))
    return curve.shift(begin) if begin else curve


def _join(schedule: Any, schedules: Any, boundaries: Any) -> Schedule:
    del schedule
    # Of unsorted boundaries the later ones win, and pieces without a boundary are never used.
    pieces, end = [], None
    for boundary, piece in reversed(list(zip([0, *boundaries], schedules, strict=False))):
        begin = max(boundary, 0)
        if end is None or begin < end:
            own = from_optax(piece)
            pieces.append(
                (own.shift(boundary) if boundary < 0 else own, None if end is None else end - begin)
            )
            end = begin
    return sequence(pieces[::-1])


def _never(schedule: Any, **enclosed: Any) -> Schedule:
    raise refused(schedule, f"it encloses {', '.join(enclosed) or 'nothing'}")


def _is(value: Any, constant: int) -> bool:
    return isinstance(value, int | float) and value == constant


MAKERS: dict[str, Callable[..., Schedule]] = {
    "constant_schedule": _never,
    "polynomial_schedule": _polynomial,
    "exponential_decay": _exponential,
    "cosine_decay_schedule": _cosine,
    "piecewise_constant_schedule": _piecewise_constant,
    "piecewise_interpolate_schedule": _piecewise_interpolate,
    "join_schedules": _join,
}
