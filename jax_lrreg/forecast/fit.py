"""The law of a few runs: least squares of the log losses, and how sure its numbers are."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from jax_lrreg._check import require, require_whole
from jax_lrreg._struct import pytree
from jax_lrreg.forecast.curves import Curve, Curves, curves_of
from jax_lrreg.forecast.design import CLOSEST, Design
from jax_lrreg.forecast.evidence import NUMBERS, Evidence
from jax_lrreg.forecast.law import MultiPower
from jax_lrreg.forecast.rates import short
from jax_lrreg.schedules.base import require_positive

ROUNDS = 3  # of the scale of the residuals
UNSEEN = 2.5  # misfit of another curve over that of those fitted, where none can be left out
BLOCKS = 8  # of a curve, in which residuals go together
# Of the floor, then the logarithms of A, alpha, B, C, beta, gamma, in units of the least loss and
# of the peak. Beyond these, two terms are alike or one is nothing, and a step of the search would
# be lost.
LOWEST = np.array([0.0, -20, np.log(0.05), -14, np.log(1e-4), np.log(0.05), np.log(0.02)])
HIGHEST = np.array([1.5, 20, np.log(3.0), 6, np.log(1e2), np.log(4.0), np.log(3.0)])


@pytree
class Prior:
    """What is known of a law before its curves: normal in the logarithm of three numbers.

    Drops of a few shapes tell C, beta and gamma poorly apart; these are near to each other in what
    the paper fitted to models of 25M, 100M and 400M parameters. Floor, A, alpha and B have no
    prior.

    Attributes:
        pace: how fast a drop is felt at the peak, C peak^(1 - gamma), per step.
        beta: its power.
        gamma: that of the rate.
        deviations: of the three logarithms; positive.
    """

    pace: float = 0.117
    _: KW_ONLY
    beta: float = 0.6
    gamma: float = 0.65
    deviations: tuple[float, float, float] = (0.5, 0.05, 0.05)

    def __post_init__(self):
        require_positive(self, pace=self.pace, beta=self.beta, gamma=self.gamma)
        three = np.shape(self.deviations) == (3,)
        require(three, self, "deviations", self.deviations, "three numbers")
        for deviation in self.deviations:
            require_positive(self, deviations=deviation)

    @property
    def means(self) -> np.ndarray:
        return np.log([self.pace, self.beta, self.gamma])


USUAL = Prior()


def fit(
    curves: Curves, *, each: str = "step", skip: int | None = None, prior: Prior | None = USUAL
) -> MultiPower:
    """Fits the multi-power law to the losses of two runs or more.

        minimum over the seven numbers of   sum of huber(log law - log loss) + prior

    Three runs that differ do well: a constant rate, a decay, and a sudden drop. Their noise is
    averaged out over neighbouring steps, and losses of more noise weigh less.

    Args:
        curves: `{schedule: losses}`, or a list of such pairs, where seeds may share a schedule. The
            losses of all steps, [steps], each after its update; or a pair `(steps, losses)` of the
            steps that have one. They are positive: of held-out examples, or of training where no
            example comes twice.
        each: what a loss of a pair is: "step", its own, or "interval", the mean since the step of
            the loss before it.
        skip: steps at the beginning that are left out; by default the warmup, and 5 % at least.
        prior: of C, beta and gamma; None for none.

    Returns:
        A law with `evidence`. The rises of a warmup are no drops in it (`warmup="left out"`).

    Raises:
        ValueError: the curves cannot tell the numbers apart (one curve, no drop of the rate, all
            the same rates), are of another length than their schedule, or hold what is no positive
            number; named by the schedule.
        TypeError: `curves` is no dict and no list of pairs.

    Example:
        >>> from jax_lrreg.schedules import Constant, Cosine
        >>> law = MultiPower(2.0, A=0.5, alpha=0.5, B=80.0, C=2.0, beta=0.6, gamma=0.65)
        >>> runs = [Constant(1e-3), Constant(1e-3).cooldown(100, at=300), Cosine(1e-3, steps=400)]
        >>> found = fit({lr: law(lr, steps=400) for lr in runs})
        >>> lr = Constant(1e-3).cooldown(200, at=200, shape="1-sqrt")
        >>> bool(abs(found.final(lr, steps=400) - law.final(lr, steps=400)) < 0.002)
        True
    """
    allowed = "a Prior, or None"
    require(isinstance(prior, Prior | None), "fit", "prior", prior, allowed, error=TypeError)
    skip = None if skip is None else require_whole("fit", "skip", skip, least=0)
    runs = curves_of(curves, each, skip)
    lowest = min(run.losses.min() for run in runs)
    peak = max(run.rates.max() for run in runs)
    highest = max(run.losses.max() for run in runs)
    problem = _Problem([Design.of(run, peak, lowest) for run in runs], prior)
    numbers = problem.solution(highest / lowest)
    for _ in range(ROUNDS):
        # Where the law does not hold to within the noise, Huber's loss would take the one curve
        # that is missed for an outlier, and be content with the others.
        problem = problem.rescaled(numbers)
        numbers = problem.descended(numbers).x
    return problem.law(numbers, lowest, peak, runs)


class _Problem:
    """The residuals of all curves in units of their scale, and behind them those of the prior."""

    def __init__(self, designs: Sequence[Design], prior: Prior | None):
        self.designs = designs
        self.prior = prior
        self.count = sum(len(design.log_loss) for design in designs)
        self.wanted, self.weight = np.zeros(NUMBERS), np.zeros(NUMBERS)
        if prior is not None:
            self.wanted[4:], self.weight[4:] = prior.means, 1 / np.asarray(prior.deviations)

    def rescaled(self, numbers: np.ndarray) -> "_Problem":
        """The problem whose scale is at least the size of its residuals."""
        errors = [design.slopes(numbers)[0] - design.log_loss for design in self.designs]
        size = float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))
        designs = [d._replace(scale=max(CLOSEST, d.scale, size)) for d in self.designs]
        return _Problem(designs, self.prior)

    def residuals(self, numbers: np.ndarray) -> np.ndarray:
        own = [(d.slopes(numbers)[0] - d.log_loss) / d.scale for d in self.designs]
        return np.concatenate([*own, self.weight * (numbers - self.wanted)])

    def jacobian(self, numbers: np.ndarray) -> np.ndarray:
        own = [d.slopes(numbers)[1] / d.scale for d in self.designs]
        return np.concatenate([*own, np.diag(self.weight)])

    def huber(self, squares: np.ndarray) -> np.ndarray:
        """Huber's loss of the curves' residuals, given squared, and its two slopes."""
        # Of the prior's, plain squares.
        far = (squares > 1) & (np.arange(len(squares)) < self.count)
        root = np.sqrt(np.where(far, squares, 1.0))
        zero = np.where(far, 2 * root - 1, squares)
        return np.stack([zero, 1 / root, np.where(far, -0.5 / root**3, 0.0)])

    def solution(self, highest: float) -> np.ndarray:
        """The numbers of the least loss, from a few starts."""
        fall = max(highest - 1, 1e-6)
        middle = np.median(self.designs[0].spent)
        found = []
        for alpha in (0.3, 0.6):  # the one minimum of the public curves is found from each
            own = np.log([fall / 2 * middle**alpha, alpha, fall / 10])
            start = np.concatenate([[1 - 0.3 * fall], own, USUAL.means])
            found.append(self.descended(np.clip(start, LOWEST + 1e-6, HIGHEST - 1e-6)))
        return min(found, key=lambda one: one.cost).x

    def descended(self, start: np.ndarray):
        """What `least_squares` finds from here."""
        # Imported here, as every text that is read looks at this file, and SciPy takes its time.
        from scipy.optimize import least_squares

        options: dict[str, Any] = {"jac": self.jacobian, "loss": self.huber}
        options |= {"bounds": (LOWEST, HIGHEST), "x_scale": "jac", "max_nfev": 200}
        return least_squares(self.residuals, start, **options)

    def law(
        self, numbers: np.ndarray, unit: float, peak: float, runs: Sequence[Curve]
    ) -> MultiPower:
        """The law in the units of the schedules, and what is to be said of it."""
        floor, (A, alpha, B, C, beta, gamma) = numbers[0], np.exp(numbers[1:])
        # Of what is fitted, in units of the least loss and of the peak, to what is printed.
        change = np.eye(NUMBERS)
        change[0, 0] = unit
        change[1, 2], change[4, 6] = alpha * np.log(peak), gamma * np.log(peak)
        root, misfit = self.spread(numbers)
        others, judged = self.left_out(numbers, runs)
        # Of the root and not of the covariance, which rounding may leave without one.
        lower = np.asarray(np.linalg.qr((change @ root).T, mode="r")).T
        peaks = [float(run.rates.max()) for run in runs]
        evidence = Evidence(
            (short(min(peaks), 7), short(max(peaks), 7)),
            steps=max(len(run.rates) for run in runs),
            warmup=max(run.warmup for run in runs),
            misfit=short(others if judged else UNSEEN * misfit, 3),
            judged=max(judged, 2),
            spread=tuple(short(x, 6) for x in lower[np.tril_indices(NUMBERS)]),
        )
        return MultiPower(
            short(unit * floor),
            A=short(unit * A * peak**alpha),
            alpha=short(alpha),
            B=short(unit * B / peak),
            C=short(C * peak ** (gamma - 1)),
            beta=short(beta),
            gamma=short(gamma),
            warmup="left out",
            evidence=evidence,
        )

    def left_out(self, numbers: np.ndarray, runs: Sequence[Curve]) -> tuple[float, int]:
        """By how much a law of the other schedules misses the curve of one, and of how many it is.

        The misfit of the curves that were fitted says little of another: the seven numbers have
        bent to them.
        """
        own = np.array([hash(run.rates.tobytes()) for run in runs])
        falls = np.array([np.any(run.drops > 0) for run in runs])
        every = np.unique(own) if len(np.unique(own)) > 2 else []
        errors = [
            self.error_without(own == one, numbers) for one in every if falls[own != one].any()
        ]
        return float(np.sqrt(np.mean(errors))) if errors else 0.0, len(errors)

    def error_without(self, out: np.ndarray, numbers: np.ndarray) -> float:
        """The mean square of the log law, fitted without some curves, about these; in blocks."""
        kept = [design for design, away in zip(self.designs, out, strict=True) if not away]
        found = _Problem(kept, self.prior).descended(numbers).x
        means = []
        for design in (design for design, away in zip(self.designs, out, strict=True) if away):
            error = design.slopes(found)[0] - design.log_loss
            means += [block.mean() for block in np.array_split(error, BLOCKS)]
        return float(np.mean(np.square(means)))

    def spread(self, numbers: np.ndarray) -> tuple[np.ndarray, float]:
        """A square root of the covariance [7, errors], and the misfit left in blocks of residuals.

        Neighbouring residuals go together, as the law misses a curve by stretches: counted as
        independent they would make an interval many times too narrow. So the gradient's covariance
        is that of its sums over blocks (the sandwich), as a bootstrap over blocks would have it.
        """
        residuals, jacobian = self.residuals(numbers), self.jacobian(numbers)
        weight = self.huber(residuals**2)[1]
        hessian = (jacobian * weight[:, None]).T @ jacobian
        gradients, means, begin = [], [], 0
        for design in self.designs:
            for block in np.array_split(np.arange(len(design.log_loss)) + begin, BLOCKS):
                gradients.append((weight * residuals)[block] @ jacobian[block])
                means.append(residuals[block].mean() * design.scale)
            begin += len(design.log_loss)
        # What nothing holds, such as B where no drop matters, is unknown, not infinite.
        inverse = np.linalg.inv(hessian + 1e-9 * np.trace(hessian) * np.eye(NUMBERS))
        root = inverse @ np.concatenate([np.stack(gradients), np.diag(self.weight)]).T
        return root, float(np.sqrt(np.mean(np.square(means))))
