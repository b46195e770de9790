"""The best schedule of a form: many starts over the ranges of its numbers, then down the slope."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import nearest, require, require_number
from jax_lrreg._struct import pytree
from jax_lrreg.forecast.rates import Number, short
from jax_lrreg.schedules.base import Schedule, require_schedules

STARTS, ITERATIONS = 24, 60
COLUMNS = 2048  # steps that are looked at in the search; with as many or fewer, it is exact
DIGITS = 4  # of a real number that was found: the loss is flat at its minimum, and the text short

Judge: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]  # rates, steps of each -> loss
Template: TypeAlias = Callable[..., Schedule]


@pytree
class Plan:
    """The best schedule of a form, as a law has it.

    Attributes:
        schedule: it prints, and its text reads back.
        loss: expected after the last step.
        interval: (lower, upper) of that loss, in which it is nine times in ten; None where the law
            was not fitted.
        numbers: what the template was given, by name.
        matters: for each of these numbers the loss at half and at twice of it, or at the end of its
            range: how much it matters.
        steps: of the run.
    """

    schedule: Schedule
    loss: Number
    interval: tuple[Number, Number] | None
    numbers: Mapping[str, Number]
    matters: Mapping[str, tuple[Number, ...]]
    steps: int


class Box:
    """Ranges of numbers by name, as points of the unit cube: positive ones by their logarithm."""

    def __init__(self, ranges: Mapping[str, tuple[float, float]]):
        require(len(ranges) > 0, "best", "ranges", {}, "at least one, as in peak=(1e-4, 1e-3)")
        for name, pair in ranges.items():
            two = isinstance(pair, tuple | list) and len(pair) == 2
            require(two, "best", name, pair, "a pair (low, high)", TypeError)
            for end in pair:
                require_number("best", name, end, "a pair of numbers", np.isfinite)
            require(pair[0] < pair[1], "best", name, pair, "a pair (low, high) with low < high")
        self.ranges = dict(ranges)

    def numbers(self, point: jax.Array) -> dict[str, jax.Array]:
        """The numbers at a point of the cube."""
        found = {}
        for (name, (low, high)), x in zip(self.ranges.items(), jnp.unstack(point), strict=True):
            # By factors: of a range from 1e-4 to 1e-2, half of the starts are below 1e-3.
            found[name] = low * (high / low) ** x if low > 0 else low + (high - low) * x
        return found

    def rounded(self, numbers: Mapping[str, Number]) -> list[dict[str, float]]:
        """The numbers as Python has them: real ones to four digits, whole ones down and up."""
        options = []
        for name, (low, high) in self.ranges.items():
            value = float(numbers[name])
            if all(isinstance(end, int | np.integer) for end in (low, high)):
                sides = (math.floor(value), math.ceil(value))
                both = {int(min(max(side, low), high)) for side in sides}
                options.append(sorted(both))
            else:
                options.append([min(max(short(value, DIGITS), low), high)])
        return [dict(zip(self.ranges, some, strict=True)) for some in itertools.product(*options)]

    def moved(self, numbers: Mapping[str, float], name: str, factor: float) -> dict[str, float]:
        """The numbers with one of them times a factor, but within its range."""
        low, high = self.ranges[name]
        return {**numbers, name: min(max(numbers[name] * factor, low), high)}


def search(judge: Judge, template: Template, steps: int, box: Box) -> dict[str, float]:
    """The numbers of the schedule that a judge likes best."""
    _require_template(template, box)
    at, each = columns(steps)

    def loss(point: jax.Array) -> jax.Array:
        return judge(template(**box.numbers(point))(at), each)

    @jax.jit
    def program(starts: jax.Array) -> jax.Array:
        # All of them, without a look at which is worth it: that would be compiled, too, which takes
        # longer than the descent.
        ends, losses = jax.vmap(partial(descend, loss))(starts)
        return ends[jnp.argmin(losses)]

    found = box.numbers(program(spread(STARTS, len(box.ranges))))

    def exact(numbers: dict[str, float]) -> float:
        return float(judge(template(**numbers)(at), each))

    return min(box.rounded(jax.device_get(found)), key=exact)


def descend(
    loss: Callable[[jax.Array], jax.Array], start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adam within the unit cube: the best point on the way, and its loss."""
    tx = optax.adam(optax.cosine_decay_schedule(0.05, ITERATIONS))

    def one(carry, _):
        point, state, best, least = carry
        value, slope = jax.value_and_grad(loss)(point)
        better = value < least
        best, least = jnp.where(better, point, best), jnp.where(better, value, least)
        # A corner where the slope is no number would hold the search: it stays where it is then.
        moves, state = tx.update(jnp.nan_to_num(slope), state)
        return (jnp.clip(point + moves, 0, 1), state, best, least), None

    first = (start, tx.init(start), start, jnp.float32(jnp.inf))
    (_, _, best, least), _ = jax.lax.scan(one, first, None, length=ITERATIONS)
    return best, least


def spread(count: int, dimensions: int) -> jax.Array:
    """So many points of the unit cube, evenly spread: Roberts' generalised golden ratio."""
    ratio = 1.5
    for _ in range(60):  # the root of x^(d + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = np.arange(1, count + 1)[:, None] / ratio ** np.arange(1, dimensions + 1)
    return jnp.asarray((0.5 + steps) % 1, jnp.float32)


def columns(steps: int) -> tuple[jax.Array, jax.Array]:
    """The last steps of columns that cover a run, and how many steps each of them stands for."""
    edges = np.linspace(0, steps, min(steps, COLUMNS) + 1).round().astype(np.int64)
    return jnp.asarray(edges[1:] - 1, jnp.int32), jnp.asarray(np.diff(edges), jnp.float32)


def _require_template(template: Template, box: Box) -> None:
    """Refuses what makes no schedule of these numbers, by the name that it does not take."""
    require(callable(template), "best", "template", template, "a function of numbers", TypeError)
    takes = inspect.signature(template).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for name in () if open_ended else box.ranges:
        near = nearest(name, takes)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        require(name in takes, "best", "ranges", name, f"a name of {', '.join(takes)}{hint}")
    single = (p for p in takes.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    missing = sorted({p.name for p in single if p.default is p.empty} - {*box.ranges})
    require(not missing, "best", "ranges", sorted(box.ranges), f"one for {', '.join(missing)} too")
    middle = box.rounded(jax.device_get(box.numbers(jnp.full(len(box.ranges), 0.5))))[0]
    require_schedules("best", template=template(**middle))
