"""The controller that raises the learning rate while a metric improves, and else cuts it."""

from dataclasses import KW_ONLY
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg._struct import pytree, static
from jax_lrreg.controllers.base import (
    Controller,
    Smoothed,
    as_metric,
    best_of,
    count,
    fraction,
    margins,
    require_counts,
    require_mode,
    require_ranges,
    whole,
    worst,
    zero,
)


class GreedyState(NamedTuple):
    """What `Greedy` remembers, scalars all.

    Attributes:
        scale: the multiplier in force.
        best: the best metric so far; infinite before the first.
        good: improvements in a row.
        bad: metrics in a row that were no improvement.
        pause: metrics still to be ignored after a cut or a rise.
        floored: cuts that found the scale at `min_scale`, since the last rise.
        nonfinite: metrics so far that were NaN or infinite.
    """

    scale: jax.Array
    best: jax.Array
    good: jax.Array
    bad: jax.Array
    pause: jax.Array
    floored: jax.Array
    nonfinite: jax.Array


@pytree
class Greedy(Controller):
    """Raises the scale after a run of improvements, and cuts it after a run of failures.

    A run is more than `patience` of them in a row.

        improved(metric) = best - metric > threshold |best| + min_delta  (mode "max": metric - best)
        scale <- min(scale / factor, max_scale)    or    max(factor scale, min_scale)

    After a cut `cooldown` metrics go unheard, after a rise `warmup`. When `reset_start` cuts have
    found the scale at its floor without a rise between, it starts afresh: scale 1, no best.

    Attributes:
        factor: of a cut; a rise is by 1 / factor; in (0, 1).
        patience: metrics in a row that change nothing yet; a whole number >= 0.
        cooldown: metrics that go unheard after a cut; a whole number >= 0.
        warmup: metrics that go unheard after a rise; a whole number >= 0.
        mode: "min" for a loss, "max" for an accuracy.
        threshold: what part of |best| an improvement must exceed, in [0, 1).
        min_delta: what amount an improvement must exceed, on top of that; >= 0.
        min_scale: lowest scale, in [0, 1].
        max_scale: highest scale, >= 1.
        eps: a change by no more than this is not made; >= 0.
        reset_start: cuts at the floor after which it starts afresh; a whole number >= 1.

    Reference:
        Subramaniam and others, GreedyLR: a novel adaptive learning rate scheduler, 2025
        (arXiv:2512.14527); the rule is that of transformers.optimization.GreedyLR, without its
        `smooth`: that is `Smoothed`.

    Example:
        >>> greedy = Greedy(0.5, patience=1)
        >>> state = greedy.init()
        >>> for loss in (5.0, 4.0, 3.0):
        ...     state = greedy.update(state, loss)
        >>> print(greedy.scale(state))
        2.0
    """

    factor: chex.Numeric = 0.95
    _: KW_ONLY
    patience: chex.Numeric = 10
    cooldown: chex.Numeric = 0
    warmup: chex.Numeric = 0
    mode: str = static(default="min")
    threshold: chex.Numeric = 0.0
    min_delta: chex.Numeric = 1e-6
    min_scale: chex.Numeric = 0.01
    max_scale: chex.Numeric = 10.0
    eps: chex.Numeric = 0.0
    reset_start: chex.Numeric = 500

    def __post_init__(self):
        require_mode(self)
        require_counts(self, 0, "patience", "cooldown", "warmup")
        require_counts(self, 1, "reset_start")
        require_ranges(self, factor="in (0, 1)", threshold="in [0, 1)", min_delta=">= 0")
        require_ranges(self, min_scale="in [0, 1]", max_scale=">= 1", eps=">= 0")

    def init(self):
        return GreedyState(jnp.ones((), jnp.float32), worst(self.mode), *(zero() for _ in range(5)))

    def update(self, state, metric):
        metric = as_metric(self, metric)
        heard = state.pause == 0
        found = best_of(self, state.best, metric)
        # During a pause no best is kept either, since what a change of the rate stirs up is not
        # what it leads to, and both counts start again.
        improved = found.improved & heard
        good = jnp.where(improved, count(state.good, True), 0)
        bad = jnp.where(improved | ~heard, 0, count(state.bad, True))
        rise, cut = good > self.patience, bad > self.patience
        higher = jnp.minimum(state.scale / self.factor, self.max_scale)
        lower = jnp.maximum(state.scale * self.factor, self.min_scale)
        scale = jnp.where(rise & (higher - state.scale > self.eps), higher, state.scale)
        scale = jnp.where(cut & (state.scale - lower > self.eps), lower, scale).astype(jnp.float32)
        # Looked at after the cut, so that the one that arrives at the floor is the first of them.
        floored = jnp.where(rise, 0, count(state.floored, cut & (scale <= self.min_scale)))
        afresh = cut & (scale <= self.min_scale) & (floored >= self.reset_start)
        pause = jnp.where(rise, whole(self.warmup), state.pause - ~heard)
        pause = jnp.where(cut, whole(self.cooldown), pause)
        return GreedyState(
            scale=jnp.where(afresh, 1.0, scale),
            best=jnp.where(afresh, worst(self.mode), jnp.where(heard, found.value, state.best)),
            good=jnp.where(rise | afresh, 0, good),
            bad=jnp.where(cut, 0, bad),
            pause=pause,
            floored=jnp.where(afresh, 0, floored),
            nonfinite=count(state.nonfinite, ~jnp.isfinite(metric)),
        )

    @classmethod
    def like_transformers(
        cls,
        factor: chex.Numeric = 0.95,
        *,
        mode: str = "min",
        patience: chex.Numeric = 10,
        threshold: chex.Numeric = 1e-6,
        threshold_mode: str = "abs",
        cooldown: chex.Numeric = 0,
        warmup: chex.Numeric = 0,
        min_lr: chex.Numeric = 1e-3,
        max_lr: chex.Numeric = 1.0,
        eps: chex.Numeric = 1e-8,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: chex.Numeric = 500,
        learning_rate: chex.Numeric = 1.0,
    ) -> "Greedy | Smoothed":
        """The controller that acts as `GreedyLR` of the same arguments, at a base `learning_rate`.

        The base must lie between `min_lr` and `max_lr`. With `smooth`, a fresh start keeps the
        running mean, which `GreedyLR` forgets.

        >>> Greedy.like_transformers(0.9, patience=3, learning_rate=0.1)
        Greedy(0.9, patience=3, eps=1e-07)
        """
        name, base = cls.__name__, learning_rate
        require(isinstance(smooth, bool), name, "smooth", smooth, "a bool", TypeError)
        require_whole(name, "window_size", window_size)
        require_number(name, "learning_rate", base, "a positive number", lambda x: x > 0)
        if known(max_lr, base):
            least, allowed = np.asarray(base, float), f"at least learning_rate={base}"
            require_number(name, "max_lr", max_lr, allowed, lambda x: x >= least)
        greedy = cls(
            factor,
            patience=patience,
            cooldown=cooldown,
            warmup=warmup,
            mode=mode,
            **margins(name, threshold, threshold_mode),
            min_scale=fraction(min_lr, base, name, "min_lr", most=True),
            max_scale=fraction(max_lr, base, name, "max_lr"),
            eps=fraction(eps, base, name, "eps"),
            reset_start=reset_start,
        )
        return Smoothed(greedy, window=window_size) if smooth else greedy
