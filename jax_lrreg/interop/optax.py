"""`from_optax`: the functions that `optax.schedules` makes, read from what they enclose."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import chex
import optax

from jax_lrreg.interop.peer import Peer, Piece, converted, refused, sequence, stairs
from jax_lrreg.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    PiecewiseCosine,
    PiecewiseLinear,
    Polynomial,
    Schedule,
    Step,
)

Value: TypeAlias = chex.Numeric  # traced or not


def from_optax(schedule: optax.Schedule) -> Schedule:
    """The equal of a schedule of Optax; a schedule of ours is returned as it is.

    Our step is its `count`. Optax's schedules are closures without a public form: they are read
    from their enclosed variables.

    Raises:
        ValueError: it was not made by a function of `optax.schedules`; any function takes part in
            our algebra as it is, see `schedules.Function`.

    Example:
        >>> import optax
        >>> from_optax(optax.cosine_decay_schedule(0.1, decay_steps=100, alpha=0.5))
        Cosine(0.1, steps=100, end_value=0.05)
    """
    if isinstance(schedule, Schedule):
        return schedule
    function: Peer = schedule
    convert = _MAKERS.get(getattr(function, "__qualname__", "").partition(".<locals>")[0])
    code = getattr(function, "__code__", None)
    if convert is None or code is None or not function.__module__.startswith("optax."):
        made = f"what {', '.join(_MAKERS)} make, and all that is made of these"
        raise refused(function, f"from_optax knows {made}")
    enclosed = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that was never set
            enclosed[name] = cell.cell_contents
    if len(enclosed) == 1 and function.__qualname__.endswith("<lambda>"):
        # A constant, which Optax's makers also return where they find nothing to decay.
        return converted(function, lambda: Constant(*enclosed.values()))
    return converted(function, lambda: convert(function, **enclosed))


def _polynomial(
    _: Peer,
    init_value: Value,
    end_value: Value,
    power: Value,
    transition_steps: Value,
    transition_begin: Value,
) -> Schedule:
    if _is(power, 0):
        return Constant(init_value)
    if _is(power, 1):
        decay = Linear(init_value, steps=transition_steps, end_value=end_value)
    else:
        decay = Polynomial(init_value, steps=transition_steps, power=power, end_value=end_value)
    return decay if _is(transition_begin, 0) else decay.shift(transition_begin)


def _exponential(
    _: Peer,
    init_value: Value,
    transition_steps: Value,
    decay_rate: Value,
    transition_begin: Value,
    staircase: bool,
    end_value: Value | None = None,
    clip_fn: Peer = None,
) -> Schedule:
    kind = Step if staircase else Exponential
    decay: Schedule = kind(init_value, steps=transition_steps, decay_rate=decay_rate)
    decay = decay if _is(transition_begin, 0) else decay.shift(transition_begin)
    if end_value is None:
        return decay
    return decay.clip(min=end_value) if clip_fn.__name__ == "maximum" else decay.clip(max=end_value)


def _cosine(
    _: Peer, init_value: Value, decay_steps: Value, alpha: Value, exponent: Value
) -> Schedule:
    # Optax divides by a float here; a whole one is a count of ours, exact to the last step.
    whole = isinstance(decay_steps, float) and decay_steps.is_integer()
    steps = int(decay_steps) if whole else decay_steps
    return Cosine(init_value, steps=steps, end_value=init_value * alpha, exponent=exponent)


def _piecewise_constant(
    _: Peer, init_value: Value, boundaries_and_scales: dict[int, float] | None
) -> Schedule:
    value, changes = init_value, []
    for boundary, scale in sorted((boundaries_and_scales or {}).items()):
        value = value * scale
        changes.append((boundary, value))
    return stairs(init_value, changes)


def _piecewise_interpolate(schedule: Peer, interpolate_fn: Peer, **variables: Peer) -> Schedule:
    kinds = {"_linear_interpolate": PiecewiseLinear, "_cosine_interpolate": PiecewiseCosine}
    kind = kinds.get(interpolate_fn.__name__)
    if kind is None:
        raise refused(schedule, f"it interpolates by {interpolate_fn.__name__}")
    knots = _knots(schedule, **variables)
    begin, first = [knot for knot in knots if knot[0] <= 0][-1]
    later = [(boundary - begin, value) for boundary, value in knots if boundary > 0]
    if not later:
        return Constant(first)
    boundaries, values = zip(*later, strict=True)
    curve = kind(first, boundaries=boundaries, values=values)
    return curve.shift(begin) if begin else curve


def _knots(schedule: Peer, **variables: Peer) -> list[tuple[int, float]]:
    """The steps and values between which it interpolates."""
    if "bounds" not in variables:
        values = [variables["init_value"]]
        for scale in variables["scales"]:
            values.append(values[-1] * scale)
        return list(zip((0, *variables["boundaries"]), values, strict=True))
    # Optax 0.2.6 encloses arrays instead, and gives NaN at every step where an interval is empty.
    if 0 in variables["interval_sizes"]:
        raise refused(schedule, "it divides by 0 where two boundaries are the same")
    knots = zip(variables["bounds"], variables["values"], strict=True)
    return [(int(at), float(value)) for at, value in knots]


def _join(_: Peer, schedules: Sequence[optax.Schedule], boundaries: Sequence[int]) -> Schedule:
    # Of unsorted boundaries the later ones win, and pieces without a boundary are never used.
    pieces: list[Piece] = []
    end = None
    for boundary, piece in reversed(list(zip([0, *boundaries], schedules, strict=False))):
        begin = max(boundary, 0)
        if end is None or begin < end:
            own = from_optax(piece)
            own = own.shift(boundary) if boundary < 0 else own
            pieces.append((own, None if end is None else end - begin))
            end = begin
    return sequence(pieces[::-1])


def _never(schedule: Peer, **enclosed: Peer) -> Schedule:
    raise refused(schedule, f"it encloses {', '.join(enclosed) or 'nothing'}")


def _is(value: Value, constant: int) -> bool:
    # Of a traced number nobody knows: it takes the general form.
    return isinstance(value, int | float) and value == constant


_MAKERS: dict[str, Callable[..., Schedule]] = {
    "constant_schedule": _never,
    "polynomial_schedule": _polynomial,
    "exponential_decay": _exponential,
    "cosine_decay_schedule": _cosine,
    "piecewise_constant_schedule": _piecewise_constant,
    "piecewise_interpolate_schedule": _piecewise_interpolate,
    "join_schedules": _join,
}
