"""Means in which all parameters count alike: from some update on, or the latest few."""

from dataclasses import KW_ONLY

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require_whole
from jax_lrreg._struct import pytree, static
from jax_lrreg.averages.base import Average, MeanState, RingState, combined, copies_of, moved, put


@pytree
class Uniform(Average):
    """The mean of all parameters from some update on, stochastic weight averaging (SWA).

        mean = 1/n (params_1 + ... + params_n)

    Attributes:
        start: how many updates are made before the average begins; a whole number >= 0.
        every: it takes the parameters after every so many updates from there on; a whole number
            >= 1. Before the first it is the current parameters.

    Source:
        Izmailov et al., Averaging weights leads to wider optima and better generalization, 2018.

    Example:
        >>> swa = Uniform(start=1)
        >>> state = swa.init(jnp.float32(0.0))
        >>> for step, params in enumerate((5.0, 1.0, 2.0)):
        ...     state = swa.update(state, jnp.float32(params), step)
        >>> print(swa.value(state))
        1.5
    """

    _: KW_ONLY
    start: int = static(default=0)
    every: int = static(default=1)

    def __post_init__(self):
        require_whole(self, "start", self.start, 0, LAST_STEP)
        require_whole(self, "every", self.every, 1, LAST_STEP)

    def init(self, params):
        return MeanState(copies_of(params), jnp.zeros((), jnp.int32))

    def update(self, state, params, step, where=True):
        taken = _is_taken(step, self.start, self.every)
        count = state.weight + taken
        rate = jnp.where(taken, 1 / jnp.maximum(count, 1), count == 0)
        mean = moved(state.mean, params, rate, where)
        return MeanState(mean, jnp.where(where, count, state.weight))


@pytree
class Latest(Average):
    """The mean of the latest few parameters, latest weight averaging (LAWA).

        mean = 1/count (params_n + ... + params_{n - count + 1})

    Attributes:
        count: how many are averaged, and how many copies are held; a whole number >= 1.
        every: it takes the parameters after every so many updates; a whole number >= 1. Before the
            first it is the current parameters.

    Source:
        Kaddour, Stop wasting my time! Saving days of ImageNet and BERT training with latest weight
        averaging, 2022.

    Example:
        >>> lawa = Latest(2)
        >>> state = lawa.init(jnp.float32(0.0))
        >>> for step, params in enumerate((5.0, 1.0, 2.0)):
        ...     state = lawa.update(state, jnp.float32(params), step)
        >>> print(lawa.value(state))
        1.5
    """

    count: int = static()
    _: KW_ONLY
    every: int = static(default=1)

    def __post_init__(self):
        require_whole(self, "count", self.count, 1, LAST_STEP)
        require_whole(self, "every", self.every, 1, LAST_STEP)

    def init(self, params):
        return RingState(copies_of(params, self.count), jnp.zeros((), jnp.int32))

    def update(self, state, params, step, where=True):
        taken = _is_taken(step, 0, self.every)
        # Until the first is taken, its place holds the current parameters.
        rate = jnp.where(taken | (state.count == 0), 1.0, 0.0)
        ring = put(state.ring, params, state.count % self.count, rate, where)
        return RingState(ring, state.count + (taken & where))

    def value(self, state):
        held = jnp.clip(state.count, 1, self.count)
        return combined(state.ring, jnp.where(jnp.arange(self.count) < held, 1 / held, 0.0))


def _is_taken(step: chex.Numeric, start: int, every: int) -> jax.Array:
    """Whether the update `step` is one of every so many after the first `start`."""
    since = jnp.asarray(step) - start
    return (since >= 0) & (since % every == every - 1)
