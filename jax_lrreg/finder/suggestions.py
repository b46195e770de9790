"""What a test of learning rates found, and the rules by which it suggests one."""

import numpy as np

from jax_lrreg._struct import pytree


@pytree
class Found:
    """What a test of learning rates measured, and what it suggests.

    Attributes:
        learning_rates: the rates that were tried, in rising order, [rates].
        losses: for `range_test`, the loss at each rate, [rates]; for `parallel_test`, the mean loss
            at the end of each run, [seeds, rates], infinite where a run diverged.
        smoothed: for `range_test`, the running mean of the losses; for `parallel_test`, the median
            over the seeds; [rates].
        suggestions: learning rates by the name of the rule that suggests them.
        stopped: whether the test ended early because the loss diverged.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestions: dict[str, float]
    stopped: bool

    @property
    def suggestion(self) -> float:
        """The first suggestion; ValueError where the loss fell by no more than its noise."""
        if not self.suggestions:
            low, high = self.learning_rates[[0, -1]]
            last = "" if np.isfinite(self.losses).all() else "; it was not finite at some rate"
            fell = f"the loss fell at no learning rate from {low:.3g} to {high:.3g}"
            way = "test a wider range, `low` to `high`, take larger batches, or look at the losses"
            raise ValueError(f"{fell} by more than its noise{last}: {way}")
        return next(iter(self.suggestions.values()))


def suggest(
    rates: np.ndarray, smoothed: np.ndarray, losses: np.ndarray, diverged: bool = False
) -> dict[str, float]:
    """The suggestions that a curve of smoothed losses makes; none where the losses do not fall."""
    if len(smoothed) < 3:
        return {}
    # A median: the first loss alone may be that of an odd batch.
    start, least = float(np.median(smoothed[:5])), int(np.argmin(smoothed))
    if not fell(start, float(smoothed[least])) or not stands_out(losses[: least + 1], diverged):
        return {}
    half = int(np.argmax(smoothed <= (start + smoothed[least]) / 2))
    # Only up to the minimum: behind it, noise on the way up may be steeper.
    slope = np.gradient(smoothed, np.log(rates))[: least + 1]
    begin, end = longest_fall(smoothed)
    return {
        "halfway": float(rates[half]),
        "valley": float(np.sqrt(rates[begin] * rates[end])),
        "steepest": float(rates[np.argmin(slope)]),
        # At the minimum itself the loss has stopped to fall: a tenth of it is fastai's rule.
        "minimum": float(rates[least] / 10),
    }


def fell(before: float, after: float) -> bool:
    """Whether a loss fell by more than the rounding of float32: 100 units in the last place."""
    return before - after > 1e-5 * max(abs(before), abs(after))


def stands_out(losses: np.ndarray, diverged: bool = False) -> bool:
    """Whether the later losses are below the earlier ones by more than their noise explains.

    The losses are cut where the difference of the two means is largest, in units of its own
    standard deviation. Of independent losses that is above 5 about once in 400 tests; above 4 once
    in 50, which will do where the loss diverged in the end, since the rates have then passed all
    that matter. Second differences measure the noise, as a steady fall adds nothing to them: of
    independent numbers their variance is 6 times theirs.
    """
    count = len(losses)
    if count < 8:
        return False
    noise = np.sqrt(np.mean(np.diff(losses, 2) ** 2) / 6)
    left = np.arange(4, count - 3)  # at least four on either side
    sums = np.cumsum(losses)
    difference = sums[left - 1] / left - (sums[-1] - sums[left - 1]) / (count - left)
    deviation = noise * np.sqrt(1 / left + 1 / (count - left))
    return bool(np.any(difference > (4 if diverged else 5) * deviation))


def longest_fall(losses: np.ndarray) -> tuple[int, int]:
    """The ends of the longest falling subsequence, which may leave out points between."""
    length, begin = np.ones(len(losses), int), np.arange(len(losses))
    for index in range(1, len(losses)):
        above = np.flatnonzero(losses[:index] > losses[index])
        if len(above):
            before = above[np.argmax(length[above])]
            length[index], begin[index] = length[before] + 1, begin[before]
    end = int(np.argmax(length))
    return int(begin[end]), end
