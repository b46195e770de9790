"""The exponential moving average, and decays that rise."""

from dataclasses import KW_ONLY
from typing import Any

import chex
import jax.numpy as jnp

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require_number, require_whole
from jax_lrreg._struct import pytree, static
from jax_lrreg.averages.base import Average, MeanState, copies_of, moved
from jax_lrreg.schedules.base import Schedule, require_positive

_DECAY = "a number in [0, 1)"


@pytree
class EMA(Average):
    """The exponential moving average, debiased.

        weight <- decay weight + (1 - decay),    from 0
        mean <- mean + (1 - decay) / weight (params - mean)

    The parameters k updates ago count (1 - decay) decay^k, divided by the sum of these weights, as
    in Adam's means; those before the first update do not count at all.

    Attributes:
        decay: a number in [0, 1), or a schedule of them; see `like_timm`, `like_tensorflow`.
        start: how many updates are made before the average begins; a whole number >= 0.

    Raises:
        ValueError: a decay is outside [0, 1): a schedule is asked at its two ends.

    Source:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992, for
        averages at all; Kingma and Ba, Adam, 2015, sec. 3, for the weights.

    Example:
        >>> ema = EMA(0.5)
        >>> state = ema.init(jnp.float32(8.0))
        >>> for step, params in enumerate((1.0, 2.0, 2.0)):
        ...     state = ema.update(state, jnp.float32(params), step)
        >>> print(ema.value(state))  # (0.125 * 1 + 0.25 * 2 + 0.5 * 2) / 0.875
        1.8571429
    """

    decay: chex.Numeric | Schedule
    _: KW_ONLY
    start: int = static(default=0)

    def __post_init__(self):
        require_whole(self, "start", self.start, 0, LAST_STEP)
        values, allowed = [self.decay], f"{_DECAY}, or a schedule of them"
        if isinstance(self.decay, Schedule):
            values = [self.decay(step) for step in (self.start, LAST_STEP)]
        for value in values:
            require_number(self, "decay", value, allowed, lambda x: (x >= 0) & (x < 1))

    @classmethod
    def like_timm(
        cls,
        decay: chex.Numeric = 0.9999,
        *,
        update_after_step: int = 0,
        warmup_gamma: chex.Numeric = 1.0,
        warmup_power: chex.Numeric = 2 / 3,
    ) -> "EMA":
        """That of `timm.utils.ModelEmaV3(use_warmup=True)`, by its own names.

            decay at step = min(1 - (1 + n / warmup_gamma)^-warmup_power, decay)

        with n = step - update_after_step and steps from 0; timm counts from 1 and takes 1 off.

        Example:
            >>> EMA.like_timm(0.999)
            EMA(RisingDecay(0.999))
        """
        owner = "EMA.like_timm"
        after = require_whole(owner, "update_after_step", update_after_step, 0, LAST_STEP)
        _require_decay(owner, "decay", decay)
        require_positive(owner, warmup_gamma=warmup_gamma, warmup_power=warmup_power)
        rising = RisingDecay(decay, timescale=warmup_gamma, exponent=warmup_power)
        return cls(rising.shift(after) if after else rising, start=after)

    @classmethod
    def like_tensorflow(cls, decay: chex.Numeric) -> "EMA":
        """That of `tf.train.ExponentialMovingAverage(decay, num_updates=step)`, debiased.

            decay at step = min((1 + step) / (10 + step), decay)

        Example:
            >>> print(EMA.like_tensorflow(0.999).decay(8))
            0.5
        """
        _require_decay("EMA.like_tensorflow", "decay", decay)
        return cls(RisingDecay(decay, init_value=0.1, timescale=10, exponent=1))

    def init(self, params):
        return MeanState(copies_of(params), jnp.zeros((), jnp.float32))

    def update(self, state, params, step, where=True):
        decay: Any = self.decay(step) if isinstance(self.decay, Schedule) else self.decay
        # The weight that the parameters have in it so far, as Adam's 1 - b2^t but for any schedule:
        # divided by it, the mean does not lean towards where it began.
        grown = decay * state.weight + (1 - decay)
        # As a function it is total: a schedule that goes on to 1 stands still.
        begun = (jnp.asarray(step) >= self.start) & (grown > 0)
        weight = jnp.where(begun, grown, 0.0)
        rate = jnp.where(begun, (1 - decay) / jnp.where(begun, grown, 1.0), 1.0)
        mean = moved(state.mean, params, rate, where)
        return MeanState(mean, jnp.where(where, weight, state.weight))


@pytree
class RisingDecay(Schedule):
    """A decay that rises as the run grows longer, so that an EMA spans a part of what has been.

        value(step) = min(1 - (1 - init_value) (1 + step / timescale)^-exponent, peak_value)

    Attributes:
        peak_value: the highest decay; in [0, 1).
        init_value: what it rises from; in [0, 1).
        timescale: how many updates make the decay rise; positive.
        exponent: how fast it nears 1; positive. 1 is a mean of all, 2/3 is meant for runs of a
            million updates, 3/4 for shorter ones.

    Source:
        Crowson's warmup of averages, as in timm and diffusers.

    Example:
        >>> print(RisingDecay(0.9999)(7))
        0.75
    """

    peak_value: chex.Numeric
    _: KW_ONLY
    init_value: chex.Numeric = 0.0
    timescale: chex.Numeric = 1.0
    exponent: chex.Numeric = 2 / 3

    def __post_init__(self):
        for name in ("peak_value", "init_value"):
            _require_decay(self, name, getattr(self, name))
        require_positive(self, timescale=self.timescale, exponent=self.exponent)

    def value_at(self, clock):
        fallen = jnp.exp(-(self.exponent * jnp.log1p(clock.position() / self.timescale)))
        return jnp.minimum(1 - (1 - self.init_value) * fallen, self.peak_value)


def _require_decay(owner: object, name: str, value: object) -> None:
    require_number(owner, name, value, _DECAY, lambda x: (x >= 0) & (x < 1))
