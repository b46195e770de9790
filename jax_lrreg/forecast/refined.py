"""The schedule that the gradient norms of a run ask for."""

import numpy as np
from numpy.typing import ArrayLike

from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg.forecast.rates import as_numbers, short
from jax_lrreg.schedules.base import require_positive
from jax_lrreg.schedules.stairs import PiecewiseLinear

WINDOW = 0.1  # of the run: the median over it is the norm
KNOTS = 60  # of the straight lines: as many as print
POWERS = {"sgd": 2, "adam": 1}


def refined(
    gradient_norms: ArrayLike, *, steps: int, peak_value: float, optimizer: str = "adam"
) -> PiecewiseLinear:
    """The refined schedule of Defazio et al.: low where gradients are large, and down to 0.

        rate(t) = peak_value r_t / max r,    r_t = w_t (w_t + ... + w_{T-1}),    w_t = norm_t^-p

    with p = 2 for SGD and 1 for Adam, and norms that are medians over a tenth of the run. Constant
    norms give linear decay; large ones at the beginning give a warmup, and such as grow at the end
    an earlier decay.

    Args:
        gradient_norms: of a run that is over, evenly spaced in it: `history["grad_norm"]`. For Adam
            the paper has their L1 norms; L2 norms, which are what `fit` logs, have about the same
            course.
        steps: T, of the new run; the norms are stretched to it.
        peak_value: its highest rate; positive.
        optimizer: "sgd" or "adam".

    Returns:
        A schedule of straight lines that prints.

    Reference:
        Defazio et al., Optimal linear decay learning rate schedules and further refinements, 2023,
        algorithm 1 (arXiv:2310.07831).

    Example:
        >>> lr = refined([2.0] * 50, steps=100, peak_value=0.1)
        >>> print(lr(0), lr(25), lr(50), lr(100))
        0.1 0.075 0.05 0.0
    """
    from scipy.ndimage import median_filter  # here, as it is slow to import

    steps = require_whole("refined", "steps", steps, 2)
    require_positive("refined", peak_value=peak_value)
    require_choice("refined", "optimizer", optimizer, POWERS)
    norms, allowed = as_numbers(gradient_norms), "numbers [steps], two at least"
    fits = norms.ndim == 1 and norms.size > 1
    require(fits, "refined", "gradient_norms", gradient_norms, allowed)
    require_number("refined", "gradient_norms", norms, "positive numbers", lambda x: x > 0)
    # Mirrored at both ends, where else the first and the last norm would count many times.
    smooth = median_filter(norms, size=max(1, round(WINDOW * norms.size)), mode="reflect")
    middle = (np.arange(norms.size) + 0.5) * steps / norms.size
    # In units of the least, as a square of what is very small or large has no number.
    weight = np.interp(np.arange(steps) + 0.5, middle, smooth / smooth.min()) ** -POWERS[optimizer]
    rates = np.append(weight * np.cumsum(weight[::-1])[::-1], 0.0)
    at = np.unique(np.linspace(0, steps, min(KNOTS, steps) + 1).round().astype(int))
    # The highest of what is left, as the highest of all may lie between two knots.
    first, *values = map(short, rates[at] * (peak_value / rates[at].max()))
    return PiecewiseLinear(first, boundaries=tuple(at[1:].tolist()), values=tuple(values))
