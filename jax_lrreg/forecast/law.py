"""The multi-power law: the loss at every step as a function of the schedule."""

from collections.abc import Callable
from dataclasses import KW_ONLY, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg._struct import pytree, static
from jax_lrreg.forecast.best import Box, Plan, search
from jax_lrreg.forecast.evidence import NUMBERS, Evidence
from jax_lrreg.forecast.memory import felt, felt_at_the_end
from jax_lrreg.forecast.rates import Number, Rates, rates_of
from jax_lrreg.schedules.base import Constant, Schedule

WARMUPS = ("counted", "left out")


@pytree
class MultiPower:
    """The multi-power law of the loss, seven numbers that `fit` finds from a few short runs.

        loss(t) = floor + A S(t)^-alpha
                  - B sum over k <= t of (e_{k-1} - e_k) (1 - (1 + C e_k^-gamma X)^-beta)
        S(t) = e_0 + ... + e_t,    X = S(t) - S(k - 1)

    with the rates e_t of the schedule. The first term falls with the rates that were spent; the
    second is what the drops of the rate have brought, each little by little. As the rate before
    step 0 is 0, it is the same to say that the loss is floor + A S^-alpha + B times the rate that
    it still feels.

    Within a warmup the law says nothing of use: S(t) counts one step at the highest rate at least,
    so that the loss is a number there.

    Attributes:
        floor: the loss after endless training, at a rate that has gone down to 0.
        A: positive, in units of the loss times those of the rate to the power alpha.
        alpha: positive.
        B: positive, in units of the loss over those of the rate.
        C: positive, in units of the rate to the power gamma - 1.
        beta: positive.
        gamma: positive.
        warmup: "counted", as the paper's numbers are made: the rises before the first drop count
            as negative drops. "left out", as `fit` makes its own: they are felt at once.
        evidence: what the law was fitted to, for intervals; None for numbers from elsewhere.

    Reference:
        Luo et al., A multi-power law for loss curve prediction across learning rate schedules,
        2025, equation 1 (arXiv:2503.12811). Later theory derives such laws: Li et al., Functional
        scaling laws, 2025 (arXiv:2509.19189).

    Example:
        >>> law = MultiPower(3.04, A=0.525, alpha=0.508, B=364.0, C=2.07, beta=0.583, gamma=0.641)
        >>> lr = Constant(3e-4).warmup(2159).cooldown(4000, at=20_000, end_value=3e-5)
        >>> print(law(lr, steps=24_000)[-1].round(3))
        3.265
    """

    floor: Number
    _: KW_ONLY
    A: Number
    alpha: Number
    B: Number
    C: Number
    beta: Number
    gamma: Number
    warmup: str = static(default="counted")
    evidence: Evidence | None = None

    def __post_init__(self):
        require_number(self, "floor", self.floor, "a number", np.isfinite)
        for name in ("A", "alpha", "B", "C", "beta", "gamma"):
            require_number(self, name, getattr(self, name), "a positive number", lambda x: x > 0)
        require_choice(self, "warmup", self.warmup, WARMUPS)
        known = isinstance(self.evidence, Evidence | None)
        require(known, self, "evidence", self.evidence, "what a fit says, or None", TypeError)

    def __call__(self, schedule: Rates, *, steps: int | None = None) -> jax.Array:
        """The loss at the steps 0, ..., steps - 1, each after its own update, [steps].

        Args:
            schedule: a schedule, any function of the step, or an array of rates.
            steps: how many; an array has its own number.
        """
        return _curve(self, rates_of("law", schedule, steps))

    def final(self, schedule: Rates, *, steps: int | None = None) -> jax.Array:
        """The loss after the last of `steps` steps alone, the fastest to compute and differentiate.

        >>> law = MultiPower(3.0, A=0.5, alpha=0.5, B=400.0, C=2.0, beta=0.6, gamma=0.6)
        >>> rates = jnp.full(1000, 3e-4).at[900:].set(0)
        >>> slope = jax.grad(lambda rates: law.final(rates))(rates)
        >>> bool(jnp.all(slope[:850] < 0))  # with a longer run before it, the same drop is at less
        True
        """
        return _last(self, rates_of("law", schedule, steps))

    def interval(
        self, schedule: Rates, *, steps: int | None = None, level: float = 0.9
    ) -> jax.Array:
        """The lower and the upper bound of the loss at each step, [2, steps].

        Three errors are in it: of the seven numbers; the misfit, by which the law missed the
        curves it was fitted to, and more beyond their length; and where the peak is none that a
        curve had, all that the law says it changes.

        Raises:
            ValueError: the law was not fitted, and has no `evidence`.
        """
        from scipy.special import stdtrit  # here, as it is slow to import

        rates = rates_of("law", schedule, steps)
        one = lambda x: x.ndim == 0 and 0 < x < 1  # noqa: E731
        require_number("interval", "level", level, "a number in (0, 1)", one)
        # Student's t: of three curves that were left out in turn, the misfit is known but roughly.
        deviations = stdtrit(self._fitted("interval").judged, (1 + level) / 2)
        return _interval(self, rates, deviations)

    def moved(self, error: jax.Array) -> "MultiPower":
        """The law with an error [7] added to the floor and to the logarithms of the others."""
        names = ("A", "alpha", "B", "C", "beta", "gamma")
        factors = zip(names, jnp.exp(error[1:]), strict=True)
        return replace(
            self,
            floor=self.floor + error[0],
            **{name: getattr(self, name) * factor for name, factor in factors},
        )

    def best(
        self, template: Callable[..., Schedule], *, steps: int, **ranges: tuple[float, float]
    ) -> Plan:
        """The schedule of the lowest loss after `steps` steps, among those of a template.

        Args:
            template: makes a schedule of numbers by name, which are traced: their durations are
                real numbers, `Constant(peak).cooldown(n, at=1000 - n)`.
            steps: of the run.
            ranges: for each number `(low, high)`; of two ints, whole numbers are tried.

        Returns:
            A `Plan`. A fitted law takes no peak beyond those of its curves: it has each higher one
            better than the last, on no evidence.

        Raises:
            ValueError: a range is upside down; the template takes other names; every peak in the
                ranges is above, or below, those of the curves.

        Example:
            >>> law = MultiPower(3.0, A=0.5, alpha=0.5, B=400.0, C=2.0, beta=0.6, gamma=0.6)
            >>> def shape(n, p):
            ...     return Constant(3e-4).cooldown(n, at=5000 - n, shape="power", power=p)
            >>> plan = law.best(shape, steps=5000, n=(100, 4000), p=(0.5, 3.0))
            >>> bool(plan.loss < law.final(shape(4000, 1.0), steps=5000))
            True
        """
        steps, box = require_whole("best", "steps", steps), Box(ranges)
        numbers = search(partial(_judged, self), template, steps, box)
        schedule = template(**numbers)
        self._require_known_peak(schedule, steps)

        def loss(numbers: dict[str, float]) -> float:
            return float(_last(self, rates_of("best", template(**numbers), steps)))

        matters = {
            name: tuple(loss(box.moved(numbers, name, factor)) for factor in (0.5, 2.0))
            for name in numbers
        }
        interval = None
        if self.evidence is not None:
            low, high = np.asarray(self.interval(schedule, steps=steps))[:, -1].tolist()
            interval = (low, high)
        return Plan(schedule, loss(numbers), interval, numbers, matters, steps)

    def extrapolate(self, *, steps: int) -> Plan:
        """What a run of another length than those fitted would come to, by its best cooldown.

        The peak is the highest of the curves and the warmup the longest; searched for are the
        length of the cooldown and its power. Beyond the length of the curves the interval widens.

        Raises:
            ValueError: the law was not fitted.
        """
        known, steps = self._fitted("extrapolate"), require_whole("extrapolate", "steps", steps, 10)
        peak, warmup = known.peaks[1], round(min(known.warmup, steps / 10))

        def shape(n: Any, power: Any) -> Schedule:
            base = Constant(peak).warmup(warmup) if warmup else Constant(peak)
            return base.cooldown(n, at=steps - n, shape="power", power=power)

        most = steps - warmup
        return self.best(shape, steps=steps, n=(max(1, steps // 100), most), power=(0.5, 3.0))

    def _fitted(self, owner: str) -> Evidence:
        allowed = "that of a fitted law: numbers from elsewhere say nothing of their error"
        require(self.evidence is not None, owner, "evidence", None, allowed)
        assert self.evidence is not None
        return self.evidence

    def _require_known_peak(self, schedule: Schedule, steps: int) -> None:
        if self.evidence is not None:
            low, high = self.evidence.peaks
            peak = float(jnp.max(rates_of("best", schedule, steps)))
            allowed = f"such that the peak is one of the curves', {low:g} to {high:g}"
            require(0.99 * low <= peak <= 1.01 * high, "best", "ranges", peak, allowed)


@jax.jit
def _curve(law: MultiPower, rates: jax.Array) -> jax.Array:
    """The formula."""
    rate, spent = felt(rates, law.C, law.beta, law.gamma, law.warmup == "counted")
    power = jnp.power(jnp.maximum(spent, jnp.max(rates)), -law.alpha)
    return jnp.asarray(law.floor + law.A * power + law.B * rate)


@jax.jit
def _last(law: MultiPower, rates: jax.Array, each: Number = 1.0) -> jax.Array:
    """Its last entry; a rate may stand for `each` so many steps."""
    counted = law.warmup == "counted"
    rate, spent = felt_at_the_end(rates, law.C, law.beta, law.gamma, counted, each)
    return jnp.asarray(law.floor + law.A * jnp.power(spent, -law.alpha) + law.B * rate)


def _judged(law: MultiPower, rates: jax.Array, each: jax.Array) -> jax.Array:
    """The loss, but what the law promises of a peak that no curve had is taken for a loss."""
    loss = _last(law, rates, each)
    if law.evidence is None:
        return loss
    known = _last(law, law.evidence.within(rates), each)
    return known + jnp.abs(loss - known)


@jax.jit
def _interval(law: MultiPower, rates: jax.Array, deviations: Number) -> jax.Array:
    evidence = law.evidence
    assert evidence is not None

    def log_curve(error: jax.Array) -> jax.Array:
        return jnp.log(_curve(law.moved(error), rates))

    # By the slopes along the seven directions of error: the curve is smooth in all of them.
    still = jnp.zeros(NUMBERS, jnp.float32)
    slope = jax.vmap(lambda direction: jax.jvp(log_curve, (still,), (direction,))[1])
    own = jnp.sum(slope(evidence.directions.T) ** 2, axis=0)
    beyond = jnp.log(jnp.maximum(jnp.arange(1, rates.size + 1) / evidence.steps, 1.0))
    half = deviations * jnp.sqrt(own + (evidence.misfit * (1 + beyond)) ** 2)
    curve = _curve(law, rates)
    half = half + jnp.abs(jnp.log(curve / _curve(law, evidence.within(rates))))
    return jnp.stack([curve * jnp.exp(-half), curve * jnp.exp(half)])
