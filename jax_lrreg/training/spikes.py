"""Which updates are spikes: far above what was usual just before."""

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg._struct import pytree, static

JUDGED = ("loss", "data_loss", "grad_norm")
LASTING = 8  # spikes in a row are none: the loss has risen, and training has to go on from there
NO_SPREAD = 1e-3  # of the mean: the least deviation of a window, whose numbers may all be equal
NORMAL = 0.9332  # of a normal distribution lies below its mean and 1.5 deviations more


class SpikeState(NamedTuple):
    """The latest sound updates.

    Attributes:
        values: float32, a row for each metric, an entry for each update.
        count: how many there have been, taken modulo the window once it is full.
        row: how many spikes there have been in a row.
    """

    values: jax.Array
    count: jax.Array
    row: jax.Array


@pytree
class Spike:
    """Skips updates that stand out: `make_step(..., on_spike=Spike(sigma=6.0, window=128))`.

        spike  if  value > mean + sigma * deviation

    for any of the metrics, with mean and deviation over the last `window` sound updates. A spike is
    skipped whole, as an update that is not finite is, and does not enter the window. Nothing is
    judged before the window is full. The deviation is at least 1e-3 of the mean, and a rise that
    lasts, 8 spikes in a row, is none: the window begins anew.

    Attributes:
        sigma: how many deviations above the mean, above 0.
        window: how many updates, at least 2.
        metrics: among "loss", "data_loss" and "grad_norm".
        robust: the median instead of the mean, and as 1.5 deviations how far above it 93.32 % of
            them reach, which is the same for a normal distribution: a few spikes that were let
            through spoil a mean, and up to 6 % of them leave this as it is.

    Example:
        >>> on_spike = Spike(sigma=6.0, window=4, metrics=("loss",))
        >>> state, spikes = on_spike.init(), []
        >>> for loss in (2.0, 2.1, 1.9, 2.0, 2.1, 9.0, 2.0):
        ...     found = {"loss": jnp.float32(loss)}
        ...     spikes.append(bool(on_spike.judge(state, found)))
        ...     state = on_spike.update(state, found, spikes[-1], not spikes[-1])
        >>> spikes
        [False, False, False, False, False, True, False]
    """

    _: KW_ONLY
    sigma: chex.Numeric = 6.0
    window: int = static(default=128)
    metrics: tuple[str, ...] = static(default=("loss", "grad_norm"))
    robust: bool = static(default=False)

    def __post_init__(self):
        require_number("Spike", "sigma", self.sigma, "a number > 0", lambda x: x > 0)
        require_whole("Spike", "window", self.window, least=2)
        listed = isinstance(self.metrics, tuple | list) and self.metrics
        allowed = f"a tuple of names among {', '.join(JUDGED)}"
        require(listed, "Spike", "metrics", self.metrics, allowed, TypeError)
        for name in self.metrics:
            require_choice("Spike", "metrics", name, JUDGED)
        require(isinstance(self.robust, bool), "Spike", "robust", self.robust, "True or False")

    # The numbers of a full window are not kept in their order: all that is asked is how they are
    # spread, and one entry is written at each update instead of all.
    def init(self) -> SpikeState:
        """An empty window."""
        zero = jnp.zeros((), jnp.int32)
        shape = (len(self.metrics), self.window)
        return SpikeState(jnp.zeros(shape, jnp.float32), zero, jnp.copy(zero))

    def judge(self, state: SpikeState, found: Mapping[str, jax.Array]) -> jax.Array:
        """Whether an update with these metrics is a spike; one that is not finite is none."""
        values = self._values(found)
        if self.robust:
            # Losses and norms reach far above their median and never far below. A deviation to both
            # sides would call 3 % of the digits' good batches spikes, and one to where 84 % reach
            # 1 %: there the tail has hardly begun.
            center, above = jnp.quantile(state.values, jnp.array([0.5, NORMAL]), axis=1)
            spread = (above - center) / 1.5
        else:
            center, spread = jnp.mean(state.values, axis=1), jnp.std(state.values, axis=1)
        high = values > center + self.sigma * jnp.maximum(spread, NO_SPREAD * jnp.abs(center))
        return (state.count >= self.window) & jnp.all(jnp.isfinite(values)) & jnp.any(high)

    def update(
        self,
        state: SpikeState,
        found: Mapping[str, jax.Array],
        spike: jax.Array,
        sound: jax.Array,
    ) -> SpikeState:
        """The window after an update: a sound one enters it, a spike is counted."""
        sound = sound & jnp.all(jnp.isfinite(self._values(found)))  # "keep" calls all updates sound
        entered = state.values.at[:, state.count % self.window].set(self._values(found))
        count = state.count + sound
        count = jnp.where(count >= 2 * self.window, self.window, count)
        row = jnp.where(spike, state.row + 1, jnp.where(sound, 0, state.row))
        # A loss that stays high, as after a change of the data, must not stop training for ever.
        anew = row >= LASTING
        return SpikeState(
            jnp.where(sound, entered, state.values),
            jnp.where(anew, 0, count).astype(jnp.int32),
            jnp.where(anew, 0, row).astype(jnp.int32),
        )

    def complete(self, state: SpikeState | None) -> SpikeState:
        """The window, an empty one at first; refuses one of another size or of other metrics."""
        if state is None:
            return self.init()
        shape = (len(self.metrics), self.window)
        allowed = (
            f"for {len(self.metrics)} metrics and a window of {self.window}, as the state's: "
            "state.replace(spikes=None) begins a new one"
        )
        given = "x".join(map(str, jnp.shape(state.values)))
        require(jnp.shape(state.values) == shape, "make_step", "on_spike", given, allowed)
        return state

    def _values(self, found: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.stack([found[name].astype(jnp.float32) for name in self.metrics])


def check_spike(on_spike: object) -> None:
    """Refuses what is no `Spike`, and one of several thresholds, which is for a sweep."""
    allowed = "a training.Spike, or None"
    fits = on_spike is None or isinstance(on_spike, Spike)
    require(fits, "make_step", "on_spike", on_spike, allowed, TypeError)
    if isinstance(on_spike, Spike):
        given, allowed = jnp.shape(on_spike.sigma), "one number; several are swept with `vmap`"
        require(given == (), "make_step", "on_spike.sigma", f"shape {given}", allowed)


def judged(
    on_spike: Spike | None, state: SpikeState | None, found: Mapping[str, jax.Array]
) -> jax.Array | None:
    """Whether an update is a spike; None where nobody asks."""
    return None if on_spike is None or state is None else on_spike.judge(state, found)


def entered(
    on_spike: Spike | None,
    state: SpikeState | None,
    found: Mapping[str, jax.Array],
    spike: jax.Array,
    sound: jax.Array,
) -> SpikeState | None:
    """The window after an update."""
    if on_spike is None or state is None:
        return state
    return on_spike.update(state, found, spike, sound)
