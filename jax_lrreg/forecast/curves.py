"""Curves of losses as a fit takes them: checked, past the warmup, and few enough."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require, require_choice
from jax_lrreg._struct import number_text
from jax_lrreg.forecast.memory import drops
from jax_lrreg.forecast.rates import Rates, as_numbers, rates_of
from jax_lrreg.schedules.base import Schedule

Losses: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike]
Curves: TypeAlias = Mapping[Schedule, Losses] | Sequence[tuple[Rates, Losses]]

MOST = 200  # losses of a curve that are fitted one by one; the mean of several where it has more
LEAST = 8
UNSETTLED = 0.05  # of a run: at its very beginning no loss follows a power law


class Curve(NamedTuple):
    """A run to fit.

    Attributes:
        rates: of every step, up to the last one with a loss.
        warmup: for how many steps they rise at first.
        begins: of each loss, the first step that it is the mean over.
        ends: the last one.
        losses: the means.
        noise: standard deviation of the logarithm of each.
    """

    rates: np.ndarray
    warmup: int
    begins: np.ndarray
    ends: np.ndarray
    losses: np.ndarray
    noise: float

    @property
    def drops(self) -> np.ndarray:
        return np.asarray(drops(jnp.asarray(self.rates, jnp.float32), False), np.float64)


def curves_of(curves: Curves, each: str, skip: int | None) -> list[Curve]:
    """The curves given, or what is wrong with them."""
    require_choice("fit", "each", each, ("step", "interval"))
    listed = isinstance(curves, Mapping | Sequence) and not isinstance(curves, str)
    allowed = "a dict {schedule: losses}, or a list of such pairs"
    require(listed, "fit", "curves", curves, allowed, error=TypeError)
    pairs = list(curves.items()) if isinstance(curves, Mapping) else list(curves)
    for pair in pairs:
        fits = isinstance(pair, tuple | list) and len(pair) == 2
        require(fits, "fit", "curves", pair, allowed, error=TypeError)
    require(len(pairs) >= 2, "fit", "curves", len(pairs), "two curves at least, better three")
    found = [_curve(schedule, losses, each, skip) for schedule, losses in pairs]
    _require_told_apart(found)
    return found


def _require_told_apart(curves: Sequence[Curve]) -> None:
    """Refuses curves whose rates do not fall, or are all the same."""
    falling = [np.flatnonzero(curve.drops > 0) for curve in curves]
    pairs = zip(curves, falling, strict=True)
    seen = [len(at) > 0 and np.sum(curve.ends > at[0]) >= 3 for curve, at in pairs]
    allowed = "with a drop of the rate in one at least, and three losses after it"
    require(any(seen), "fit", "curves", f"{len(curves)} without one", allowed)
    length = min(len(curve.rates) for curve in curves)
    first = curves[0].rates[:length]
    same = all(np.allclose(c.rates[:length], first, rtol=1e-3, atol=0) for c in curves)
    allowed = "of different schedules, or A and B cannot be told apart"
    require(not same, "fit", "curves", f"{len(curves)} with the same rates", allowed)


def _curve(schedule: Rates, losses: Losses, each: str, skip: int | None) -> Curve:
    name = f"losses of {number_text(schedule)}"
    given: Any = losses  # what is in a tuple of two, no type checker follows
    sparse = isinstance(given, tuple) and len(given) == 2
    values = _numbers(given[1] if sparse else given, name)
    steps = np.arange(len(values))
    if not sparse:
        _require_length(schedule, len(values), name)
    else:
        steps = _numbers(given[0], f"steps of {number_text(schedule)}")
        allowed = f"as many as steps, {len(steps)}"
        require(len(steps) == len(values), "fit", name, len(values), allowed)
        whole = np.all((steps == np.floor(steps)) & (steps < LAST_STEP))
        rising = np.all(np.diff(steps) > 0) and steps[0] >= 0 and whole
        allowed = f"at steps that are whole, >= 0 and rise, to {LAST_STEP - 1} at most"
        require(rising, "fit", name, steps, allowed)
        steps = steps.astype(np.int64)
    rates = np.asarray(rates_of("fit", schedule, int(steps[-1]) + 1, "curves"), np.float64)
    falls = np.flatnonzero(np.diff(rates) <= 0)
    warmup = int(falls[0]) if len(falls) else len(rates)
    begins = np.append(0, steps[:-1] + 1) if each == "interval" and sparse else steps
    if skip is None:
        skip = max(warmup, round(UNSETTLED * len(rates)))
    least = float(values.min())
    require(least > 0, "fit", name, least, "positive: the fit is of their logarithms")
    kept = begins >= skip
    allowed = f"{LEAST} at least past the warmup, from step {skip} on"
    require(np.sum(kept) >= LEAST, "fit", name, int(np.sum(kept)), allowed)
    return _blocks(rates, warmup, begins[kept], steps[kept], values[kept])


def _blocks(
    rates: np.ndarray, warmup: int, begins: np.ndarray, ends: np.ndarray, losses: np.ndarray
) -> Curve:
    """The curve, in means over as many neighbours as make it short enough."""
    size = 1 if len(losses) <= MOST else -(-2 * len(losses) // MOST)
    first = np.arange(0, len(losses), size)
    last = np.minimum(first + size, len(losses)) - 1
    means = np.add.reduceat(losses, first) / (last - first + 1)
    # Second differences know nothing of a steady fall; a median, nothing of a jump. Of independent
    # numbers their deviation is sqrt(6) times theirs.
    noise = float(np.median(np.abs(np.diff(np.log(means), 2))) / (0.6745 * np.sqrt(6)))
    return Curve(rates, warmup, begins[first], ends[last], means, noise)


def _numbers(values: Losses, name: str) -> np.ndarray:
    numbers = as_numbers(values)
    require(numbers.ndim == 1 and numbers.size > 0, "fit", name, values, "numbers [steps]")
    bad = np.flatnonzero(~np.isfinite(numbers))
    at = f"{numbers[bad[0]]} at place {bad[0]}" if len(bad) else ""
    require(not len(bad), "fit", name, at, "finite")
    return numbers


def _require_length(schedule: Rates, count: int, name: str) -> None:
    """Refuses a curve of each step that ends before its schedule, or long after it."""
    if not isinstance(schedule, Schedule) or schedule.horizon is None:
        return
    horizon = schedule.horizon
    end = int(np.ceil(float(np.asarray(horizon))))
    allowed = (
        f"one for each of the {end} steps of the schedule; for a part of them, (steps, losses)"
    )
    # A schedule of n steps may have its last value at n - 1 or at n.
    require(count >= end - 1, "fit", name, count, allowed)
    before, last = (float(schedule(at)) for at in (max(end - 1, 0), end))
    # What ends in a stair may go on at it for as long as one likes; a decay is over at its end.
    over = (end > 1 and before > last > 0.9 * before) or last == 0 < before
    require(not over or count <= end + 1, "fit", name, count, allowed)
