"""What a test of learning rates found, and the rules by which it suggests one."""

import numpy as np

from jax_lrreg._struct import pytree


@pytree
class Found:
    """What a test of learning rates measured, and what it suggests.

    Attributes:
        learning_rates: the rates that were tried, in rising order, [rates].
        losses: for `range_test`, the loss at each rate, [rates]; for `parallel_test`, the mean loss at the
            end of each run, [seeds, rates], infinite where a run diverged.
        smoothed: for `range_test`, the running mean of the losses; for `parallel_test`, the median over
            the seeds; [rates].
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
        """The first of the suggestions. There is none where the loss fell at no rate."""
        if not self.suggestions:
            low, high = self.learning_rates[[0, -1]]
            raise ValueError(
                f"the loss fell at no learning rate from {low:.3g} to {high:.3g}: test a wider range, `low` to `high`, "
                "or look at the losses"
            )
        return next(iter(self.suggestions.values()))


def suggest(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """The suggestions that a curve of smoothed losses makes; none where it never falls."""
    if len(losses) < 3:
        return {}
    start, least = float(np.median(losses[:5])), int(np.argmin(losses))
    if least == 0 or not losses[least] < start:
        return {}
    half = int(np.argmax(losses <= (start + losses[least]) / 2))
    slope = np.gradient(losses, np.log(rates))[: least + 1]
    begin, end = longest_fall(losses)
    return {
        "halfway": float(rates[half]),
        "valley": float(np.sqrt(rates[begin] * rates[end])),
        "steepest": float(rates[np.argmin(slope)]),
        "minimum": float(rates[least] / 10),
    }


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
