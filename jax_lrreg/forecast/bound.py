"""What convex theory promises for the last iterate of SGD, and the peaks that it compares."""

import math

import jax
import jax.numpy as jnp

from jax_lrreg._check import require_number
from jax_lrreg.forecast.rates import Number, Rates, rates_of


def bound(
    schedule: Rates,
    *,
    steps: int | None = None,
    gradient_norms: Rates | None = None,
    distance: Number = 1.0,
) -> jax.Array:
    """A bound on the expected loss of the last iterate, above the least one, for a convex loss.

        D^2 / (2 E) + sum of e_t^2 G_t^2 / (2 E)
            + 1/2 sum over k < T of  e_k / E(k+1)  (sum from k on of e_t^2 G_t^2) / E(k)

    with the rates e_t, E(k) their sum from step k on, and E = E(0). Its curves resemble those of
    large models, which are not convex. It is differentiable by every rate: a descent over free ones
    comes to a linear decay.

    Args:
        schedule: a schedule, any function of the step, or an array of rates.
        steps: T, how many; an array has its own number. Steps at rate 0 at the end change nothing.
        gradient_norms: G_t, in the same forms; 1 by default.
        distance: D, of the start from the optimum, in units of rate times gradient; positive.

    Reference:
        Schaipp et al., The surprising agreement between convex optimization theory and
        learning-rate scheduling for large model training, 2025 (arXiv:2501.18965), theorem 1, after
        Defazio et al., 2023 (arXiv:2310.07831).

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> print(bound(Linear(0.05, steps=400), steps=400).round(4))
        0.1006
    """
    require_number("bound", "distance", distance, "a positive number", lambda x: x > 0)
    first, rest = _parts(schedule, steps, gradient_norms, "bound")
    return jnp.square(jnp.asarray(distance, jnp.float32)) * first + rest


def peak_for(
    shape: Rates, *, like: Rates, steps: int, gradient_norms: Rates | None = None
) -> float:
    """The peak for a shape, from that of another schedule which was tuned, by the bound's ratio.

        peak_for = best(shape) peak(like) / best(like),    best: the peak where the bound is least

    On public runs of a model of 124M it carries a tuned peak from one length of the cooldown to
    another within 15 %. It does not carry it from one horizon to another: from 15,000 steps to
    50,000 the real peak is times 0.75, where the bound says times 0.55. So both have these steps.

    Args:
        shape: its own peak does not matter.
        like: a schedule tuned already, for as many steps.
        steps: of both.
        gradient_norms: as in `bound`.

    Returns:
        The highest rate that the shape is to have.

    Example:
        >>> from jax_lrreg.schedules import Constant
        >>> tuned = Constant(1e-3).cooldown(100, at=900)
        >>> print(round(peak_for(Constant(1.0).cooldown(1000, at=0), like=tuned, steps=1000), 5))
        0.00218
    """
    best = [_best_peak(one, steps, gradient_norms) for one in (shape, like)]
    tuned = float(jnp.max(rates_of("peak_for", like, steps, "like")))
    return best[0] / best[1] * tuned


def _best_peak(schedule: Rates, steps: int, gradient_norms: Rates | None) -> float:
    """Where the bound is least: its first term falls with the peak, the others rise with it."""
    rates = rates_of("peak_for", schedule, steps)
    unit = rates / jnp.max(rates)
    first, rest = _parts(unit, steps, gradient_norms, "peak_for")
    return math.sqrt(float(first / rest))


def _parts(
    schedule: Rates, steps: int | None, gradient_norms: Rates | None, owner: str
) -> tuple[jax.Array, jax.Array]:
    """The term of the distance, at D = 1, and the sum of the others."""
    rates = rates_of(owner, schedule, steps)
    norms = 1.0 if gradient_norms is None else gradient_norms
    noise = jnp.square(rates * rates_of(owner, norms, rates.size, "gradient_norms"))
    # Summed from the end: near it, a difference of sums from the beginning has no digits left.
    left, noise_left = (jnp.cumsum(x[::-1])[::-1] for x in (rates, noise))
    after = jnp.append(left[1:], 0.0)
    # The last step, and such at rate 0 behind it, have nothing after them.
    there = after > 0
    share = jnp.where(there, rates / jnp.where(there, after, 1.0), 0.0)
    mean = jnp.where(there, noise_left / jnp.where(there, left, 1.0), 0.0)
    return 1 / (2 * left[0]), noise_left[0] / (2 * left[0]) + jnp.sum(share * mean) / 2
