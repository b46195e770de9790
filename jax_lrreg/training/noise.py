"""How large a batch is worth its cost: the gradient noise scale, from micro-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, widened
from jax_lrreg.training.modules import ModelState

SQUARE = "noise_scale/square"  # among the metrics of a micro-batch: its gradient's squared norm
DECAY = 0.99  # of the means of both estimates; each is noise alone in a single update


class NoiseState(NamedTuple):
    """Means of both estimates over the latest updates, float32.

    Attributes:
        signal: of the squared norm of the true gradient.
        noise: of the trace of the covariance of one example's gradient.
    """

    signal: jax.Array
    noise: jax.Array


class Squares(NamedTuple):
    """Squared norms of gradients: the mean over micro-batches, and that of their mean."""

    small: jax.Array
    large: jax.Array


def init() -> NoiseState:
    """Before the first update. Their ratio is asked for, so both may begin at 0 undebiased."""
    return NoiseState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def square(grads: optax.Updates) -> jax.Array:
    """The squared norm, in float32 at least."""
    wide = [widened(g) for g in jax.tree.leaves(grads) if is_parameter(g)]
    return jnp.asarray(optax.tree.norm(wide, squared=True), jnp.float32)


def measured(gradient: Callable) -> Callable:
    """A gradient that reports its squared norm among its metrics, to be averaged with them."""

    def measure(
        params: optax.Params, model_state: ModelState, batch: Any, key: chex.PRNGKey
    ) -> Any:
        (loss, (named, model_state)), grads = gradient(params, model_state, batch, key)
        named = {**named, SQUARE: square(grads)}
        return (loss, (named, model_state)), grads

    return measure


def squares(named: dict[str, jax.Array], grads: optax.Updates) -> Squares | None:
    """The two norms of an update whose gradient was `measured`, one of them from the metrics."""
    small = named.pop(SQUARE, None)
    return None if small is None else Squares(small, square(grads))


def updated(
    state: NoiseState | None,
    squares: Squares,
    examples: chex.Numeric,
    k: chex.Numeric,
    sound: jax.Array,
) -> NoiseState:
    """The means after an update whose gradient is the mean of `k` micro-batches' gradients.

        E |gradient of n examples|^2 = signal + noise / n

    for n the examples of a micro-batch and of all k: two equations for two unknowns.

    Args:
        state: before it; None before the first.
        squares: the mean of the micro-batches' squared norms, and that of their mean.
        examples: in the k micro-batches together.
        k: how many micro-batches; with one alone nothing is learnt.
        sound: whether the update was made; else nothing is learnt.

    Reference:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1
        (arXiv:1812.06162).
    """
    state = init() if state is None else state
    # A schedule of micro-batches makes k data, so all is reckoned in float32.
    k, whole = jnp.asarray(k, jnp.float32), jnp.asarray(examples, jnp.float32)
    others = jnp.maximum(k - 1, 1)
    # One estimate alone may be negative, and their quotient is biased: the means are taken of both,
    # and divided at the end, as the paper does.
    signal = (k * squares.large - squares.small) / others
    noise = (squares.small - squares.large) * whole / others
    usable = sound & (k > 1) & jnp.isfinite(signal) & jnp.isfinite(noise)

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(usable, DECAY * old + (1 - DECAY) * new, old)

    return NoiseState(mean(state.signal, signal), mean(state.noise, noise))


def scale(state: NoiseState) -> jax.Array:
    """The noise scale, in examples; NaN while the signal is lost in the noise."""
    known = state.signal > 0
    return jnp.where(known, state.noise / jnp.where(known, state.signal, 1.0), jnp.nan)
