"""The controller that learns the learning rate by gradient descent on it."""

from dataclasses import KW_ONLY
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require_choice, require_number
from jax_lrreg._struct import pytree, static
from jax_lrreg.controllers.base import Controller, as_metric, count, require_ranges, zero


class HypergradientDescentState(NamedTuple):
    """The multiplier in force, and how many metrics were not finite, scalars both."""

    scale: jax.Array
    nonfinite: jax.Array


@pytree
class HypergradientDescent(Controller):
    """Raises the scale while a gradient agrees with the step before it, lowers it where it opposes.

    With `u` the previous update at scale 1, so that `params` have moved by `scale u`, the
    derivative of the loss by the scale is <gradient, u>. Its metric is the agreement, the opposite
    of that:

        rule "multiplicative":  metric = -<gradient, u> / (|gradient| |u|)
                                scale <- scale (1 + rate metric)
        rule "additive":        metric = -<gradient, u>
                                scale <- scale + rate metric

    and the scale stays within `min_scale` and `max_scale`. It begins far below 1: a rate that is
    too small is soon raised, while a first step that is too large may spoil the parameters for
    good. The multiplicative rule does not depend on the units of the loss and of the parameters: a
    rate that serves one problem serves others. What supplies the metric is the transformation
    `transforms.hypergradient_descent`.

    Attributes:
        rate: how fast it learns, in (0, 1) for the multiplicative rule, positive for the additive
            one.
        rule: "multiplicative" or "additive".
        init_scale: first scale, positive, between the bounds.
        min_scale: lowest scale, in [0, 1].
        max_scale: highest scale, >= 1.

    Reference:
        Baydin and others, Online learning rate adaptation with hypergradient descent, 2018, eq. 6
        and 8 (arXiv:1703.04782).

    Example:
        >>> tuner = HypergradientDescent(0.1, init_scale=1.0)
        >>> state = tuner.init()
        >>> for agreement in (1.0, 0.5):
        ...     state = tuner.update(state, agreement)
        >>> print(tuner.scale(state))
        1.155
    """

    rate: chex.Numeric = 0.2
    _: KW_ONLY
    rule: str = static(default="multiplicative")
    init_scale: chex.Numeric = 0.01
    min_scale: chex.Numeric = 1e-6
    max_scale: chex.Numeric = 1e6

    def __post_init__(self):
        require_choice(self, "rule", self.rule, ("multiplicative", "additive"))
        require_ranges(self, rate="> 0" if self.rule == "additive" else "in (0, 1)")
        require_ranges(self, min_scale="in [0, 1]", max_scale=">= 1")
        allowed = f"a positive number from min_scale={self.min_scale} to max_scale={self.max_scale}"
        low = np.asarray(self.min_scale, np.float64) if known(self.min_scale) else 0.0
        high = np.asarray(self.max_scale, np.float64) if known(self.max_scale) else np.inf

        def fits(x: np.ndarray) -> np.ndarray:
            return (x > 0) & (x >= low) & (x <= high)

        require_number(self, "init_scale", self.init_scale, allowed, fits)

    def init(self):
        return HypergradientDescentState(jnp.asarray(self.init_scale, jnp.float32), zero())

    def update(self, state, metric):
        metric = as_metric(self, metric)
        good = jnp.isfinite(metric)
        # A metric that is no number leaves the scale alone; a NaN in it would stay for ever.
        change = self.rate * jnp.where(good, metric, 0.0)
        if self.rule == "multiplicative":
            change = change * state.scale
        scale = jnp.clip(state.scale + change, self.min_scale, self.max_scale).astype(jnp.float32)
        return HypergradientDescentState(scale, count(state.nonfinite, ~good))

    def agreement(
        self, products: jax.Array, gradient_squares: jax.Array, update_squares: jax.Array
    ) -> jax.Array:
        """The metric from <gradient, u>, |gradient|^2, |u|^2; 0 where a cosine has no direction."""
        if self.rule == "additive":
            return -products
        # The root of each: the product of two squares of 1e20 is infinite in float32, and then
        # every cosine is 0.
        norms = jnp.sqrt(gradient_squares) * jnp.sqrt(update_squares)
        return jnp.where(norms > 0, -products / jnp.where(norms > 0, norms, 1.0), 0.0)
