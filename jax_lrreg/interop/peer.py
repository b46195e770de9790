"""What is read from a peer's object, and the shapes that several libraries have."""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import chex

from jax_lrreg.schedules import (
    Constant,
    Cosine,
    Linear,
    PiecewiseConstant,
    Polynomial,
    Schedule,
    join,
)

Peer: TypeAlias = Any  # an object of a library that is not imported here: it has no type to name
Number: TypeAlias = int | float
Piece: TypeAlias = tuple[Schedule | float, Number | None]


def name_of(obj: object) -> str:
    """The full name of an object's type, or of a function."""
    named: Any = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{named.__module__}.{named.__qualname__}"


def refused(obj: object, why: str) -> ValueError:
    """The error for what has no equal among our schedules."""
    return ValueError(f"{name_of(obj)} cannot be converted: {why}")


def number(value: Peer) -> Any:
    """A Python number out of a NumPy scalar or a tensor with one element: whole where it can be."""
    # Peers take 30.0 for a count. Ours counts whole numbers exactly, and floats to their precision.
    value = value.item() if hasattr(value, "item") else value
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def value_of(value: Peer) -> float:
    """The same for a learning rate or a factor, always a float."""
    return float(number(value))


def is_whole(value: Number) -> bool:
    """Whether a number counts whole steps."""
    return float(value).is_integer()


def sequence(pieces: Sequence[Piece]) -> Schedule:
    """`join`, but pieces without a duration are left out, and a single one stands for itself."""
    # Peers allow empty phases, and `join` writes every piece that it is given.
    kept = [(piece, length) for piece, length in pieces[:-1] if length and length > 0]
    last = pieces[-1][0]
    if kept:
        return join([*kept, (last, None)])
    return last if isinstance(last, Schedule) else Constant(last)


def stairs(init_value: chex.Numeric, changes: Iterable[tuple[Number, chex.Numeric]]) -> Schedule:
    """A staircase of changes (step, value from there on) in order, those up to step 0 over."""
    changes = list(changes)
    begun = [value for step, value in changes if step <= 0]
    later = [(step, value) for step, value in changes if step > 0]
    first = begun[-1] if begun else init_value
    if not later:
        return Constant(first)
    boundaries, values = zip(*later, strict=True)
    return PiecewiseConstant(first, boundaries=boundaries, values=values)


def ramped(schedule: Schedule, steps: Number, init_value: float, peak_value: float) -> Schedule:
    """The schedule after a straight line up to `peak_value`, which is its first value as a rule."""
    if steps <= 0:
        return schedule
    if math.isclose(float(schedule(0)), peak_value, rel_tol=1e-6):
        return schedule.warmup(steps, init_value=init_value)
    return join([(Linear(init_value, steps=steps, end_value=peak_value), steps), (schedule, None)])


def begun(schedule: Schedule, steps: Number) -> Schedule:
    """The schedule as it is from `steps` on."""
    return schedule if steps == 0 or isinstance(schedule, Constant) else schedule.shift(-steps)


def wave(init_value: float, half_period: Number, end_value: float) -> Schedule:
    """A cosine that goes on: down to `end_value` within `half_period`, up again, and so on."""
    if init_value == end_value:
        return Constant(init_value)
    down = Cosine(init_value, steps=half_period, end_value=end_value)
    up = Cosine(end_value, steps=half_period, end_value=init_value)
    waves = join([(down, half_period), (up, None)]).repeat(2 * half_period)
    # After as many as make a whole number of steps it begins anew, and rounding does not add up.
    whole = Fraction(2 * half_period).limit_denominator(1000).numerator
    return waves if whole == 2 * half_period else waves.repeat(whole)


def power_decay(init_value: float, steps: Number, end_value: float, power: float) -> Schedule:
    """1 - x^power between two values, which is a polynomial with a k-decay."""
    return Polynomial(init_value, steps=steps, end_value=end_value, k_decay=power)


def converted(obj: object, convert: Callable[[], Schedule]) -> Schedule:
    """What `convert` gives; whatever goes wrong names the object."""
    try:
        return convert()
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        why = f"it is not as its library makes it ({type(error).__name__}: {error})"
        raise refused(obj, why) from error
    except ValueError as error:  # one of our classes refused what the peer allows
        raise error if "cannot be converted" in str(error) else refused(obj, str(error)) from error


def of_group(
    obj: object, group: int | None, count: int, convert: Callable[[int], Schedule]
) -> Schedule:
    """The schedule of one parameter group, or of all where they agree."""
    if group is not None:
        if isinstance(group, bool) or not isinstance(group, int) or not 0 <= group < count:
            allowed = f"an index below {count}, the number of groups"
            raise ValueError(f"{name_of(obj)}: `group` must be {allowed}, got {group!r}")
        return converted(obj, lambda: convert(group))
    schedules = [converted(obj, lambda index=index: convert(index)) for index in range(count)]
    if any(schedule != schedules[0] for schedule in schedules):
        what = f"{count} parameter groups with different schedules"
        raise ValueError(f"{name_of(obj)} has {what}: choose one with `group=`")
    return schedules[0]


def require_agreement(
    obj: object, schedule: Schedule, step: int, value: float, scale: float
) -> Schedule:
    """Refuses an object whose present value is not the one that its own definition gives."""
    own = float(schedule(step))
    # PyTorch's recursions drift by a few millionths; what another scheduler did is far larger.
    if not math.isclose(own, value, rel_tol=1e-3, abs_tol=1e-6 * scale):
        now = (
            f"its learning rate is {value:.6g} at step {step}, where its definition gives {own:.6g}"
        )
        other = "something else has changed it, another scheduler on the same optimizer perhaps"
        raise refused(obj, f"{now}; {other}")
    return schedule
