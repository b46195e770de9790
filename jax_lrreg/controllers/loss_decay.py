"""The controller that lets the loss, and not the step, say how far a decay has come."""

from dataclasses import KW_ONLY
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.controllers.base import (
    Controller,
    as_metric,
    count,
    require_mode,
    require_ranges,
    worst,
    zero,
)


class LossDecayState(NamedTuple):
    """What `LossDecay` remembers, scalars all.

    Attributes:
        scale: the multiplier in force.
        first: the first finite metric; infinite before it.
        best: the best metric so far; infinite before the first.
        nonfinite: metrics so far that were NaN or infinite.
    """

    scale: jax.Array
    first: jax.Array
    best: jax.Array
    nonfinite: jax.Array


@pytree
class LossDecay(Controller):
    """A polynomial decay by how much of the way to `target` the best metric has gone.

        progress = (first - best) / (first - target)        kept within 0 and 1
        scale = min_scale + (1 - min_scale) (1 - progress)^power

    With `target` 0 and power 1 the learning rate is in proportion to the best loss so far. It never
    rises. The best of noisy losses runs ahead of them: put `Smoothed` around it for those of
    batches.

    Attributes:
        target: the metric at which the decay is complete; any real number. A first metric that is
            no worse than it completes the decay at once.
        power: of the decay, positive.
        min_scale: the scale at the target and beyond, in [0, 1].
        mode: "min" for a loss, "max" for an accuracy.

    Reference:
        The Polyak step is in proportion to the gap loss - target as well; Polyak, Introduction to
        optimization, 1987, section 5.3. Here the gap is relative, and the rate of the schedule
        leads.

    Example:
        >>> decay = LossDecay(0.0, power=0.5)
        >>> state = decay.update(decay.update(decay.init(), 4.0), 1.0)
        >>> print(decay.scale(state))
        0.5
    """

    target: chex.Numeric = 0.0
    _: KW_ONLY
    power: chex.Numeric = 1.0
    min_scale: chex.Numeric = 0.0
    mode: str = static(default="min")

    def __post_init__(self):
        require_number(self, "target", self.target, "a finite number", lambda _: True)
        require_ranges(self, power="> 0", min_scale="in [0, 1]")
        require_mode(self)

    def init(self):
        return LossDecayState(jnp.ones((), jnp.float32), worst(self.mode), worst(self.mode), zero())

    def update(self, state, metric):
        metric = as_metric(self, metric)
        good = jnp.isfinite(metric)
        first = jnp.where(good & ~jnp.isfinite(state.first), metric, state.first)
        better = metric < state.best if self.mode == "min" else metric > state.best
        best = jnp.where(good & better, metric, state.best)
        begun = jnp.isfinite(first)
        # Before the first finite metric, numbers that are finite too: inf - inf in the branch that
        # is not taken would be a NaN in the gradient.
        left = self._left(jnp.where(begun, first, 1.0), jnp.where(begun, best, 1.0))
        scale = self.min_scale + (1 - self.min_scale) * left
        scale = jnp.where(begun, scale, 1.0).astype(jnp.float32)
        return LossDecayState(scale, first, best, count(state.nonfinite, ~good))

    def _left(self, first: jax.Array, best: jax.Array) -> jax.Array:
        """(1 - progress)^power."""
        # Halves, since the difference of two float32 of opposite signs may be none.
        sign = 0.5 if self.mode == "min" else -0.5
        goal = jnp.asarray(self.target, jnp.float32)
        gap, rest = sign * first - sign * goal, sign * best - sign * goal
        part = jnp.clip(rest / jnp.where(gap > 0, gap, 1.0), 0.0, 1.0)
        some = (gap > 0) & (part > 0)
        return jnp.where(some, jnp.power(jnp.where(some, part, 1.0), self.power), 0.0)
