"""The law at the losses of a curve, and its slopes by the seven numbers."""

from typing import NamedTuple

import numpy as np

from jax_lrreg.forecast.curves import Curve
from jax_lrreg.forecast.memory import LEAST

CLOSEST = 1e-3  # residual from which on Huber's loss is linear, as in the paper; at least the noise
BINS = 600  # of the drops of a run, between the steps where losses are


class Design(NamedTuple):
    """A curve as a fit needs it, with rates in units of the peak and losses in those of the least.

    The drops between two neighbouring places where the law is looked at are felt as a few.

    Attributes:
        spent: sum of the rates up to each place, [losses, places].
        rate: there.
        size: of the drops, [drops].
        log_rate: after them.
        since: what was spent from each drop to each place, [losses * places, drops]; below 0 where
            the drop is later.
        log_loss: [losses].
        scale: where Huber's loss becomes linear.
    """

    spent: np.ndarray
    rate: np.ndarray
    size: np.ndarray
    log_rate: np.ndarray
    since: np.ndarray
    log_loss: np.ndarray
    scale: float

    @classmethod
    def of(cls, run: Curve, peak: float, unit: float) -> "Design":
        # The mean over steps is that over three of them, the middles of thirds.
        wide = np.any(run.ends > run.begins)
        shares = np.array([1 / 6, 1 / 2, 5 / 6] if wide else [1.0])
        places = run.begins[:, None] + (run.ends - run.begins)[:, None] * shares
        places = places.round().astype(np.int64)
        rates, drops = run.rates / peak, run.drops / peak
        spent = np.cumsum(rates)
        edges = np.unique(np.append(0, places + 1))
        parts = max(1, BINS // len(edges))
        fine = np.arange((len(edges) - 1) * parts + 1) / parts
        begins = np.interp(fine, np.arange(len(edges)), edges).round().astype(np.int64)
        begins = np.unique(begins)[:-1]
        size = np.add.reduceat(np.abs(drops), begins)
        used = size > 0

        def centre(values: np.ndarray) -> np.ndarray:
            total = np.add.reduceat(np.abs(drops) * values, begins)
            return total[used] / size[used]

        log_rate = centre(np.log(np.maximum(rates, LEAST)))
        since = spent[places].reshape(-1, 1) - centre(spent - rates)
        # A bin that begins after a place has no part in it; none lies across one.
        since = np.where(begins[used] <= places.reshape(-1, 1), np.maximum(since, 0), -1.0)
        signed = np.add.reduceat(drops, begins)[used]
        scale, log_loss = max(CLOSEST, run.noise), np.log(run.losses / unit)
        spent = np.maximum(spent[places], rates.max())  # as in the law, also before the first rate
        return cls(spent, rates[places], signed, log_rate, since, log_loss, scale)

    def slopes(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of the law at each loss, [losses], and its slopes, [losses, 7]."""
        floor, (A, alpha, B, C, beta, gamma) = numbers[0], np.exp(numbers[1:])
        ratio = C * np.exp(-gamma * self.log_rate) * np.maximum(self.since, 0)
        grown = np.log1p(ratio)
        kept = np.where(self.since < 0, 0.0, np.exp(-beta * grown)) * self.size
        slow = -beta * B * kept * (ratio / (1 + ratio))  # by log C
        shape = self.rate.shape
        power = A * self.spent**-alpha
        memory = B * (self.rate + kept.sum(1).reshape(shape))
        by = [
            np.ones(shape),
            power,
            -alpha * np.log(self.spent) * power,
            memory,
            slow.sum(1).reshape(shape),
            (-beta * B * kept * grown).sum(1).reshape(shape),
            (slow @ (-gamma * self.log_rate)).reshape(shape),
        ]
        value = (floor + power + memory).mean(1)
        value = np.maximum(value, 1e-12)  # a floor far off must not end the search
        return np.log(value), np.stack(by).mean(2).T / value[:, None]
