"""`Controller`, a multiplier that listens to a metric, and wrappers that smooth what it hears."""

from dataclasses import KW_ONLY
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require, require_choice, require_number
from jax_lrreg._struct import pytree, static

State: TypeAlias = Any  # a NamedTuple of scalars, another one for each controller


class Controller:
    """A multiplier of the learning rate that a metric drives.

        update: (state, metric) -> state
        scale: state -> multiplier

    A controller is configuration: a frozen tree of numbers that prints, compares, and may be traced
    or batched. What evolves is the state, a tuple of scalar arrays, so both go through `jit`,
    `scan` and `vmap`. In an optimizer it stands in `transforms.scale_by_controller`, behind any
    schedule, which it multiplies.

    Every controller keeps these promises: a metric that is NaN or infinite never counts as an
    improvement, never becomes the best value, and is counted in `state.nonfinite`; and metrics of
    any sign are fine.

    Example:
        >>> from jax_lrreg.schedules import ReduceOnPlateau
        >>> plateau = ReduceOnPlateau(0.5, patience=1)
        >>> state = plateau.init()
        >>> for loss in (1.0, 0.9, 0.9, 0.9):
        ...     state = plateau.update(state, loss)
        >>> print(plateau.scale(state))
        0.5
    """

    def init(self) -> State:
        """The state before any metric."""
        raise NotImplementedError

    def update(self, state: State, metric: chex.Numeric) -> State:
        """The state after one more metric, a real scalar."""
        raise NotImplementedError

    def scale(self, state: State) -> jax.Array:
        """What the learning rate is multiplied by, a float32 scalar >= 0."""
        return state.scale


class Best(NamedTuple):
    """The best metric so far, and whether the latest one set it."""

    value: jax.Array
    improved: jax.Array


def best_of(controller: Any, best: jax.Array, metric: jax.Array) -> Best:
    """The better of the two: `metric`, if by more than `threshold |best| + min_delta`, or `best`.

    |best|, so that the margin is one for a negative best too. The first finite metric is always
    better than none, which is written as an infinite `best`.
    """
    # One rule for both modes, on what is reported: a metric that is negated beforehand would be
    # kept, and printed, with the wrong sign.
    sign = 1 if controller.mode == "min" else -1
    nothing = ~jnp.isfinite(best)
    reference = jnp.where(nothing, 0.0, best)
    margin = controller.threshold * jnp.abs(reference) + controller.min_delta
    improved = jnp.isfinite(metric) & (nothing | (sign * (reference - metric) > margin))
    return Best(jnp.where(improved, metric, best), improved)


def worst(mode: str) -> jax.Array:
    """The value that stands for no metric yet."""
    return jnp.float32(np.inf if mode == "min" else -np.inf)


def as_metric(controller: "Controller", metric: chex.Numeric) -> jax.Array:
    """A metric in the type that controllers reckon in."""
    # An array would broadcast through the whole state, which then fails in a scan far away.
    require(np.ndim(metric) == 0, controller, "metric", metric, "one number")
    given: Any = metric
    dtype = given.dtype if hasattr(given, "dtype") else np.asarray(given).dtype
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    require(real, controller, "metric", metric, "one real number", error=TypeError)
    return jnp.asarray(metric, jnp.float32)


def count(counter: jax.Array, event: chex.Numeric) -> jax.Array:
    """The counter after one more possible event; it stays at 2^31 - 1 rather than wrap."""
    return counter + (jnp.asarray(event) & (counter < LAST_STEP)).astype(jnp.int32)


def zero() -> jax.Array:
    """A counter at 0."""
    return jnp.zeros((), jnp.int32)


def whole(value: chex.Numeric) -> jax.Array:
    """A number of updates, as it is kept in a state."""
    return jnp.asarray(value).astype(jnp.int32)


def require_mode(owner: Any) -> None:
    """Refuses anything but "min" and "max"."""
    # An array is compared number by number, and has no one answer.
    fits = isinstance(owner.mode, str) and owner.mode in ("min", "max")
    require(fits, owner, "mode", owner.mode, "'min' or 'max'")


def require_counts(owner: object, least: int, *names: str) -> None:
    """Refuses anything but whole numbers from `least` to 2^31 - 1."""

    def fits(x: np.ndarray) -> np.ndarray:
        return (x >= least) & (x <= LAST_STEP) & (x == np.rint(x))

    for name in names:
        require_number(owner, name, getattr(owner, name), f"a whole number >= {least}", fits)


def require_ranges(owner: object, **fields: str) -> None:
    """Refuses numbers outside the ranges that are named, such as `factor="in (0, 1)"`."""
    for name, bounds in fields.items():
        require_number(owner, name, getattr(owner, name), f"a number {bounds}", RANGES[bounds])


RANGES = {
    "in (0, 1)": lambda x: (x > 0) & (x < 1),
    "in [0, 1)": lambda x: (x >= 0) & (x < 1),
    "in [0, 1]": lambda x: (x >= 0) & (x <= 1),
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    "> 0": lambda x: x > 0,
}


def require_controller(owner: object, value: object) -> None:
    """Refuses anything but a controller."""
    allowed = "a controller such as ReduceOnPlateau"
    require(isinstance(value, Controller), owner, "controller", value, allowed, error=TypeError)


def margins(owner: str, threshold: chex.Numeric, threshold_mode: str) -> dict[str, chex.Numeric]:
    """PyTorch's one threshold, relative or absolute, as the two that add up here."""
    require_choice(owner, "threshold_mode", threshold_mode, ("rel", "abs"))
    require_number(owner, "threshold", threshold, "a number >= 0", lambda x: x >= 0)
    used, unused = ("threshold", "min_delta")[:: 1 if threshold_mode == "rel" else -1]
    return {used: threshold, unused: 0.0}


def fraction(
    rate: chex.Numeric, base: chex.Numeric, owner: str, argument: str, most: bool = False
) -> chex.Numeric:
    """A learning rate as a part of the base rate; `most` if it may not be above that."""
    require_number(owner, argument, rate, "a number >= 0", lambda x: x >= 0)
    require_number(owner, "learning_rate", base, "a positive number", lambda x: x > 0)
    if most and known(base):
        allowed = f"at most learning_rate={base}"
        require_number(owner, argument, rate, allowed, lambda x: x <= np.asarray(base, float))
    return rate / base


def one_less(owner: str, argument: str, value: chex.Numeric, least: int) -> chex.Numeric:
    """A count of those libraries that act one update earlier than this one."""
    allowed = f"a whole number >= {least}"
    require_number(owner, argument, value, allowed, lambda x: (x >= least) & (x == np.rint(x)))
    return max(value - 1, 0) if isinstance(value, int | float) else jnp.maximum(value - 1, 0)


class AveragedState(NamedTuple):
    """The state of the controller inside, and the sum of the metrics of the window so far."""

    inner: State
    total: jax.Array
    seen: jax.Array


@pytree
class Averaged(Controller):
    """A controller that hears the mean of each `window` metrics, once per window.

    The loss of a single batch is noisy, and the best of many noisy values is a lucky one; a mean is
    not. A metric that is not finite spoils its own window only.

    Attributes:
        controller: what is driven by the means.
        window: metrics in a window; a whole number >= 1.

    Example:
        >>> from jax_lrreg.schedules import ReduceOnPlateau
        >>> Averaged(ReduceOnPlateau(0.5, patience=3), window=100)
        Averaged(ReduceOnPlateau(0.5, patience=3), window=100)
    """

    controller: Controller
    _: KW_ONLY
    window: chex.Numeric

    def __post_init__(self):
        require_controller(self, self.controller)
        require_counts(self, 1, "window")

    def init(self):
        return AveragedState(self.controller.init(), jnp.zeros((), jnp.float32), zero())

    def update(self, state, metric):
        # Asked at each update and kept once per window: a `cond` would be run both ways under vmap.
        total, seen = state.total + as_metric(self, metric), count(state.seen, True)
        full = seen >= self.window
        new = self.controller.update(state.inner, total / seen)
        inner = jax.tree.map(lambda after, before: jnp.where(full, after, before), new, state.inner)
        return AveragedState(inner, jnp.where(full, 0.0, total), jnp.where(full, 0, seen))

    def scale(self, state):
        return self.controller.scale(state.inner)


class SmoothedState(NamedTuple):
    """The state of the controller inside, and the latest finite metrics in a ring."""

    inner: State
    ring: jax.Array
    seen: jax.Array


@pytree
class Smoothed(Controller):
    """A controller that hears, at every update, the mean of the latest `window` metrics.

    A metric that is not finite is passed on as it is, and stays out of the mean.

    Attributes:
        controller: what is driven by the running mean.
        window: metrics in the mean, fewer at the beginning; a whole number >= 1, and structure: it
            is the size of the state.

    Example:
        >>> from jax_lrreg.schedules import Greedy
        >>> smoothed = Smoothed(Greedy(0.9, patience=2), window=50)
        >>> smoothed.init().ring.shape
        (50,)
    """

    controller: Controller
    _: KW_ONLY
    window: int = static()

    def __post_init__(self):
        require_controller(self, self.controller)
        whole = isinstance(self.window, int)  # as structure it is never traced
        require(whole, self, "window", self.window, "a whole number >= 1")
        require_counts(self, 1, "window")

    def init(self):
        return SmoothedState(self.controller.init(), jnp.zeros(self.window, jnp.float32), zero())

    def update(self, state, metric):
        metric = as_metric(self, metric)
        good = jnp.isfinite(metric)
        ring = state.ring.at[state.seen % self.window].set(metric, mode="promise_in_bounds")
        ring = jnp.where(good, ring, state.ring)
        # Kept below two rounds, so that it never overflows and its remainder goes on.
        seen = state.seen + good
        seen = jnp.where(seen >= 2 * self.window, seen - self.window, seen).astype(jnp.int32)
        mean = jnp.sum(ring) / jnp.clip(seen, 1, self.window)
        inner = self.controller.update(state.inner, jnp.where(good, mean, metric))
        return SmoothedState(inner, ring, seen)

    def scale(self, state):
        return self.controller.scale(state.inner)
