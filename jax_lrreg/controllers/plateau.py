"""The controller that cuts the learning rate when a metric stops improving."""

from dataclasses import KW_ONLY
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._check import require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.controllers.base import (
    Averaged,
    Controller,
    as_metric,
    best_of,
    count,
    fraction,
    margins,
    one_less,
    require_counts,
    require_mode,
    require_ranges,
    whole,
    worst,
    zero,
)


class PlateauState(NamedTuple):
    """What `ReduceOnPlateau` remembers, scalars all.

    Attributes:
        scale: the multiplier in force.
        best: the best metric so far; infinite before the first.
        bad: metrics in a row that were no improvement.
        cooldown: metrics still to be ignored after a cut.
        nonfinite: metrics so far that were NaN or infinite.
    """

    scale: jax.Array
    best: jax.Array
    bad: jax.Array
    cooldown: jax.Array
    nonfinite: jax.Array


@pytree
class ReduceOnPlateau(Controller):
    """Cuts the scale by `factor` when more than `patience` metrics in a row do not improve.

        improved(metric) = best - metric > threshold |best| + min_delta  (mode "max": metric - best)
        scale <- max(factor scale, min_scale)
        after a cut, `cooldown` metrics are not held against it

    With patience 0 the first metric that is no improvement cuts; one that is an improvement never
    does.

    Attributes:
        factor: of a cut, in (0, 1).
        patience: metrics without improvement that are put up with; a whole number >= 0.
        cooldown: metrics after a cut that count as no failure; a whole number >= 0.
        mode: "min" for a loss, "max" for an accuracy.
        threshold: what part of |best| an improvement must exceed, in [0, 1).
        min_delta: what amount an improvement must exceed, on top of that; >= 0.
        min_scale: where cutting ends, in [0, 1].
        eps: a cut by no more than this is not made; >= 0, in units of the scale.

    Reference:
        The rule is that of torch.optim.lr_scheduler.ReduceLROnPlateau; `like_torch`, `like_keras`
        and `like_optax` translate the arguments of three libraries, which count patience
        differently.

    Example:
        >>> plateau = ReduceOnPlateau(0.1, patience=0)
        >>> state = plateau.update(plateau.init(), 1.0)
        >>> print(plateau.scale(state), plateau.scale(plateau.update(state, float("nan"))))
        1.0 0.1
    """

    factor: chex.Numeric = 0.1
    _: KW_ONLY
    patience: chex.Numeric = 10
    cooldown: chex.Numeric = 0
    mode: str = static(default="min")
    threshold: chex.Numeric = 1e-4
    min_delta: chex.Numeric = 0.0
    min_scale: chex.Numeric = 0.0
    eps: chex.Numeric = 0.0

    def __post_init__(self):
        require_mode(self)
        require_counts(self, 0, "patience", "cooldown")
        require_ranges(self, factor="in (0, 1)", threshold="in [0, 1)", min_delta=">= 0")
        require_ranges(self, min_scale="in [0, 1]", eps=">= 0")

    def init(self):
        return PlateauState(jnp.ones((), jnp.float32), worst(self.mode), zero(), zero(), zero())

    def update(self, state, metric):
        metric = as_metric(self, metric)
        best, improved = best_of(self, state.best, metric)
        # In PyTorch's order: the metric is judged, then the cooldown, then the patience. Keras
        # takes one off the cooldown first, and Optax cuts one failure earlier: see `like_keras`.
        cooling = state.cooldown > 0
        bad = jnp.where(improved | cooling, 0, count(state.bad, True))
        cut = bad > self.patience
        lower = jnp.maximum(state.scale * self.factor, self.min_scale)
        # Not below `lower` already: with a `min_scale` above the scale a cut would be a rise.
        scale = jnp.where(cut & (state.scale - lower > self.eps), lower, state.scale)
        # float32 whatever the parameters are: in bfloat16, as in Optax, 39 cuts by 0.9 are 7 % off.
        return PlateauState(
            scale=scale.astype(jnp.float32),
            best=best,
            bad=jnp.where(cut, 0, bad),
            cooldown=jnp.where(cut, whole(self.cooldown), state.cooldown - cooling),
            nonfinite=count(state.nonfinite, ~jnp.isfinite(metric)),
        )

    @classmethod
    def like_torch(
        cls,
        factor: chex.Numeric = 0.1,
        *,
        mode: str = "min",
        patience: chex.Numeric = 10,
        threshold: chex.Numeric = 1e-4,
        threshold_mode: str = "rel",
        cooldown: chex.Numeric = 0,
        min_lr: chex.Numeric = 0.0,
        eps: chex.Numeric = 1e-8,
        learning_rate: chex.Numeric = 1.0,
    ) -> "ReduceOnPlateau":
        """The controller that acts as PyTorch's scheduler, at a base `learning_rate`.

        `min_lr` and `eps` are learning rates, hence the base. Where PyTorch is harmed, this is not:
        a relative threshold of a negative best accepts worse values there, and -inf is a best for
        ever.

        >>> ReduceOnPlateau.like_torch(0.5, patience=3, min_lr=1e-4, learning_rate=0.1)
        ReduceOnPlateau(0.5, patience=3, min_scale=0.001, eps=1e-07)
        """
        name = cls.__name__
        return cls(
            factor,
            patience=patience,
            cooldown=cooldown,
            mode=mode,
            **margins(name, threshold, threshold_mode),
            min_scale=fraction(min_lr, learning_rate, name, "min_lr", most=True),
            eps=fraction(eps, learning_rate, name, "eps"),
        )

    @classmethod
    def like_keras(
        cls,
        factor: chex.Numeric = 0.1,
        *,
        patience: chex.Numeric = 10,
        mode: str = "min",
        min_delta: chex.Numeric = 1e-4,
        cooldown: chex.Numeric = 0,
        min_lr: chex.Numeric = 0.0,
        learning_rate: chex.Numeric = 1.0,
    ) -> "ReduceOnPlateau":
        """The controller that acts as Keras's callback, at a base `learning_rate`.

        Keras cuts at the `patience`-th failure, not after it, and spends one of the `cooldown`
        epochs before it looks at the metric. Its mode "auto" needs the name of the metric: say
        which.

        >>> ReduceOnPlateau.like_keras(0.5, patience=3, cooldown=2)
        ReduceOnPlateau(0.5, patience=2, cooldown=1, threshold=0.0, min_delta=0.0001)
        """
        name = cls.__name__
        return cls(
            factor,
            patience=one_less(name, "patience", patience, least=0),
            cooldown=one_less(name, "cooldown", cooldown, least=0),
            mode=mode,
            threshold=0.0,
            min_delta=min_delta,
            min_scale=fraction(min_lr, learning_rate, name, "min_lr", most=True),
        )

    @classmethod
    def like_optax(
        cls,
        factor: chex.Numeric = 0.1,
        *,
        patience: chex.Numeric = 10,
        rtol: chex.Numeric = 1e-4,
        atol: chex.Numeric = 0.0,
        cooldown: chex.Numeric = 0,
        accumulation_size: chex.Numeric = 1,
        min_scale: chex.Numeric = 0.0,
    ) -> "ReduceOnPlateau | Averaged":
        """The controller that acts as `optax.contrib.reduce_on_plateau` of the same arguments.

        Optax cuts at the `patience`-th failure. Its patience 0 cuts at every update, improving or
        not, and is refused. An `accumulation_size` above 1 makes it an `Averaged` controller.

        >>> ReduceOnPlateau.like_optax(0.5, patience=3, accumulation_size=20)
        Averaged(ReduceOnPlateau(0.5, patience=2), window=20)
        """
        name = cls.__name__
        require_number(name, "rtol", rtol, "a number in [0, 1)", lambda x: (x >= 0) & (x < 1))
        require_number(name, "atol", atol, "a number >= 0", lambda x: x >= 0)
        allowed = "a whole number >= 1"
        require_number(name, "accumulation_size", accumulation_size, allowed, lambda x: x >= 1)
        plateau = cls(
            factor,
            patience=one_less(name, "patience", patience, least=1),
            cooldown=cooldown,
            threshold=rtol,
            min_delta=atol,
            min_scale=min_scale,
        )
        if isinstance(accumulation_size, int) and accumulation_size == 1:
            return plateau
        return Averaged(plateau, window=accumulation_size)
