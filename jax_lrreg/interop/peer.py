"""What is read from a peer's object: names, numbers, parameter groups; and shapes that several libraries have."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from jax_lrreg.schedules import Constant, Cosine, Linear, Polynomial, Schedule, join


def name_of(obj: Any) -> str:
    """The full name of an object's type, or of a function."""
    named = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{named.__module__}.{named.__qualname__}"


def refused(obj: Any, why: str) -> ValueError:
    """The error for what has no equal among our schedules."""
    return ValueError(f"{name_of(obj)} cannot be converted: {why}")


def number(value: Any) -> Any:
    """A Python number out of a number, a NumPy scalar or a tensor with one element."""
    value = value.item() if hasattr(value, "item") else value
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        else value
    )


def value_of(value: Any) -> float:
    """The same for a learning rate or a factor, always a float."""
    return float(value.item() if hasattr(value, "item") else value)


def is_whole(value: Any) -> bool:
    """Whether a number counts whole steps."""
    return float(value).is_integer()


def sequence(pieces: Sequence[tuple[Schedule | float, Any]]) -> Schedule:
    """`join`, but pieces without a duration are left out, and a single one stands for itself."""
    kept = [(piece, length) for piece, length in pieces[:-1] if length > 0] + [
        (pieces[-1][0], None)
    ]
    if len(kept) > 1:
        return join(kept)
    last = kept[0][0]
    return last if isinstance(last, Schedule) else Constant(last)


def ramped(schedule: Schedule, steps: Any, init_value: float, peak_value: float) -> Schedule:
    """The schedule after a straight line up to `peak_value`, which is its first value as a rule."""
    if steps <= 0:
        return schedule
    if math.isclose(float(schedule(0)), peak_value, rel_tol=1e-6):
        return schedule.warmup(steps, init_value=init_value)
    return join([(Linear(init_value, steps=steps, end_value=peak_value), steps), (schedule, None)])


def begun(schedule: Schedule, steps: Any) -> Schedule:
    """The schedule as it is from `steps` on."""
    return schedule if steps == 0 or isinstance(schedule, Constant) else schedule.shift(-steps)


def wave(init_value: float, half_period: Any, end_value: float) -> Schedule:
    """A cosine that goes on: down to `end_value` within `half_period`, up again, and so on."""
    if init_value == end_value:
        return Constant(init_value)
    down = Cosine(init_value, steps=half_period, end_value=end_value)
    up = Cosine(end_value, steps=half_period, end_value=init_value)
    waves = join([(down, half_period), (up, None)]).repeat(2 * half_period)
    # After as many as make a whole number of steps it begins anew, and rounding does not add up.
    whole = Fraction(2 * half_period).limit_denominator(1000).numerator
    return waves if whole == 2 * half_period else waves.repeat(whole)


def power_decay(init_value: float, steps: Any, end_value: float, power: float) -> Schedule:
    """1 - x^power between two values, which is a polynomial with a k-decay."""
    return Polynomial(init_value, steps=steps, end_value=end_value, k_decay=power)


def of_group(
    obj: Any, group: int | None, count: int, convert: Callable[[int], Schedule]
) -> Schedule:
    """The schedule of one parameter group, or of all where they agree."""
    if group is not None:
        if isinstance(group, bool) or not isinstance(group, int) or not 0 <= group < count:
            raise ValueError(
                f"{name_of(obj)}: `group` must be an index below {count}, the number of groups, got {group!r}"
            )
        return _converted(obj, convert, group)
    schedules = [_converted(obj, convert, index) for index in range(count)]
    if any(schedule != schedules[0] for schedule in schedules):
        raise ValueError(
            f"{name_of(obj)} has {count} parameter groups with different schedules: choose one with `group=`"
        )
    return schedules[0]


def _converted(obj: Any, convert: Callable[[int], Schedule], group: int) -> Schedule:
    try:
        return convert(group)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise refused(
            obj, f"it is not as its library makes it ({type(error).__name__}: {error})"
        ) from error
    except ValueError as error:
        if "cannot be converted" in str(error):
            raise
        raise refused(obj, str(error)) from error


def require_agreement(
    obj: Any, schedule: Schedule, step: int, value: float, scale: float
) -> Schedule:
    """Refuses an object whose present value is not the one that its own definition gives."""
    own = float(schedule(step))
    if not math.isclose(own, value, rel_tol=1e-3, abs_tol=1e-6 * scale):
        raise refused(
            obj,
            f"its learning rate is {value:.6g} at step {step}, where its definition gives {own:.6g}; "
            "something else has changed it, another scheduler on the same optimizer perhaps",
        )
    return schedule
