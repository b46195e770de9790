"""What a law was fitted to, and how sure that makes it."""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree

NUMBERS = 7  # of the law


@pytree
class Evidence:
    """What a law was fitted to: it says where the law may be trusted, and how far.

    Attributes:
        peaks: the lowest and the highest peak among the schedules of the curves.
        steps: of the longest curve.
        warmup: steps of the longest warmup among them.
        misfit: by how much the logarithm of the loss is off, in the root mean square, on the curve
            of a schedule that was left out of the fit, once single steps' noise is averaged out.
        judged: by how many such schedules that is known; few make an interval wider.
        spread: of the floor and of the logarithms of the other six numbers, a square root of the
            covariance, row by row of its lower triangle: 28 numbers.
    """

    peaks: tuple[float, float]
    _: KW_ONLY
    steps: float
    warmup: float
    misfit: float
    judged: float
    spread: tuple[float, ...]

    def __post_init__(self):
        count = NUMBERS * (NUMBERS + 1) // 2
        require(len(self.peaks) == 2, self, "peaks", self.peaks, "a pair (lowest, highest)")
        require(len(self.spread) == count, self, "spread", len(self.spread), f"{count} numbers")
        require_number(self, "misfit", self.misfit, "a number >= 0", lambda x: x >= 0)

    @property
    def directions(self) -> jax.Array:
        """The lower triangle [7, 7]: its columns are independent errors of one deviation each."""
        rows, columns = np.tril_indices(NUMBERS)
        lower = jnp.zeros((NUMBERS, NUMBERS), jnp.float32)
        return jnp.asarray(lower.at[rows, columns].set(jnp.asarray(self.spread, jnp.float32)))

    def within(self, rates: jax.Array) -> jax.Array:
        """The rates scaled to the nearest peak that a curve had; as they are where one had theirs.

        No curve says what a higher peak does: the law calls each better than the last, until a
        real run diverges.
        """
        peak = jnp.max(rates)
        return rates * jnp.clip(peak, *self.peaks) / peak
