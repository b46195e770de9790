"""How long the loss remembers a rate: the sum over the drops in the multi-power law."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from jax_lrreg.forecast.rates import Number
from jax_lrreg.schedules.digits import two_sum

LEAST = 1e-8  # of the highest rate: a drop to less is felt as one to this, as 0^-gamma is infinite
NODES = 64  # exponentials that a power is made of: right to 1e-6 where they span 30 e-folds


def drops(rates: jax.Array, counted: bool) -> jax.Array:
    """How far the rate falls at each step, less than 0 where it rises; from 0 before step 0.

    Unless they are `counted`, the rises before the first fall are no drops.
    """
    fall = -jnp.diff(rates, prepend=0.0)
    return fall if counted else jnp.where(jnp.cumsum(fall > 0) > 0, fall, 0.0)


def felt(
    rates: jax.Array, C: Number, beta: Number, gamma: Number, counted: bool
) -> tuple[jax.Array, jax.Array]:
    """The rate that the loss feels at each step, and the sum of the rates up to it.

        felt(t) = e_t + sum over k <= t of (e_{k-1} - e_k) (1 + C e_k^-gamma (S(t) - S(k-1)))^-beta
        S(t) = e_0 + ... + e_t

    In one pass over the steps, whose memory is that of its result. A power is a mixture of
    exponentials,

        (1 + c x)^-beta = integral of u^(beta - 1) c^-beta exp(-u / c - u x) / Gamma(beta) du,

    and a sum of drops that fade exponentially is carried from step to step. The nodes u are evenly
    spaced in log u, where the trapezoidal rule converges exponentially.
    """
    rates = jnp.asarray(rates, jnp.float32)
    fall = drops(rates, counted)
    log_c = _log_pace(rates, C, gamma)
    span = jnp.sum(rates)
    # From where a node has lost 1e-4 of a drop at the end, to where the fastest drop is forgotten.
    low = jnp.log(1e-4 / span)
    high = jnp.maximum(jnp.max(jnp.where(fall != 0, log_c, -jnp.inf)) + 3.0, low + 1.0)
    log_u, width = jnp.linspace(low, high, NODES), (high - low) / (NODES - 1)
    # An infinite node would be no number where the rate is 0.
    nodes = jnp.append(jnp.exp(jnp.minimum(log_u, 80.0)), 0.0)

    def one(carry: Any, now: Any) -> tuple[Any, Any]:
        held, lost, total, missed = carry
        rate, drop, pace = now
        ratio = log_u - pace
        weight = width * jnp.exp(beta * ratio - jnp.exp(jnp.minimum(ratio, 80.0)) - gammaln(beta))
        # What the nodes leave out is slower than all of them: it does not fade within the run. So
        # each drop is felt in full at its own step, whatever the nodes are.
        weight = jnp.append(weight, 1.0 - jnp.sum(weight))
        # Plain sums in float32 would lose 1 % of 10^6 small drops.
        held, lost = two_sum(held, drop * weight + lost)
        total, missed = two_sum(total, rate + missed)
        fade = jnp.exp(-nodes * rate)
        held, lost = held * fade, lost * fade
        return (held, lost, total, missed), (rate + jnp.sum(held), total)

    zeros, zero = jnp.zeros(NODES + 1, jnp.float32), jnp.float32(0)
    _, found = jax.lax.scan(one, (zeros, zeros, zero, zero), (rates, fall, log_c), unroll=4)
    return found


def felt_at_the_end(
    rates: jax.Array,
    C: Number,
    beta: Number,
    gamma: Number,
    counted: bool,
    each: Number = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The last entries of `felt`, by its formula; a rate may stand for `each` so many steps."""
    rates = jnp.asarray(rates, jnp.float32)
    # Summed from the end, so that what is left near it is no difference of large sums.
    left = jnp.cumsum((rates * each)[::-1])[::-1]
    kept = jnp.exp(-beta * jnp.log1p(jnp.exp(_log_pace(rates, C, gamma)) * left))
    return rates[-1] + jnp.sum(drops(rates, counted) * kept), left[0]


def _log_pace(rates: jax.Array, C: Number, gamma: Number) -> jax.Array:
    """Of C e_k^-gamma, the logarithm: at small rates the pace itself has no float32."""
    least = LEAST * jax.lax.stop_gradient(jnp.max(rates))
    return jnp.log(C) - gamma * jnp.log(jnp.maximum(rates, least))
