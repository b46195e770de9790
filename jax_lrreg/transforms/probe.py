"""Measures the metric of an Optax optimizer.

Optimizers differ in what they divide by. For all that are known here the step size of a parameter is

    learning_rate / (1 - momentum) / (sqrt(v + eps_root) + eps)

with v a second moment that the optimizer's state holds. The state does not hold eps, eps_root, momentum, or
the decay b2 that corrects v for its start from 0. So the optimizer is run on one number, from states of our
choice; the constants are solved for, and checked on other states. An optimizer that fails the check is refused.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jax_lrreg._optax_state import SECOND_MOMENTS, nodes, second_moments
from jax_lrreg.transforms.metric import Metric

# States that change no direction: what holds them is read through, or ignored.
TRANSPARENT = (
    "AddPenaltyState",
    "ApplyIfFiniteState",
    "EmptyState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MonitorState",
    "ScaleByScheduleState",
    "SnapshotState",
    "WeightDecaySchedule",
    "WrappedScheduleState",
    "ZeroNansState",
)
PROBE = (
    1e-12  # a gradient whose square vanishes beside any second moment that is put into the state
)
STEPS = (0, 1, 10, 100, 1000, 10_000, 100_000)  # at which learning rates are compared
HUGE = 1e10  # one that whatever clips will clip; its square is still a float32


def measure(inner: optax.GradientTransformation, learning_rate: Callable[[Any], Any]) -> Metric:
    """The metric of `inner`, measured and checked; raises `ValueError` for one that is not known."""
    with jax.ensure_compile_time_eval():
        optimizer = _Probed(inner)
        known = (*SECOND_MOMENTS, *TRANSPARENT, "TraceState", "MaskedState")
        masked = [node for node in nodes(optimizer.fresh) if type(node).__name__ == "MaskedState"]
        strange = [
            type(node).__name__
            for node in nodes(optimizer.fresh)
            if type(node).__name__ not in known
        ]
        if any(
            type(node).__name__ in (*SECOND_MOMENTS, "TraceState")
            for mask in masked
            for node in nodes(mask)
        ):
            strange.append("MaskedState")
        if strange or len(second_moments(optimizer.fresh)) > 1:
            names = strange or [type(node).__name__ for node in second_moments(optimizer.fresh)]
            raise ValueError(_refusal(f"the step size of {' with '.join(names)} is not known"))
        traces = sum(type(node).__name__ == "TraceState" for node in nodes(optimizer.fresh))
        if traces > 1:
            raise ValueError(_refusal("it sums past updates twice"))
        step, rate = _first_rate(learning_rate)
        decay, lead, lag = _momentum(optimizer, step, rate) if traces else (0.0, 1.0, 0.0)
        metric = dataclasses.replace(_solved(optimizer, step, rate * lead), momentum=decay, lag=lag)
        _check(optimizer, metric, learning_rate, lead)
        _check_clipping(optimizer, metric, learning_rate)
        if masked:  # a mask that leaves our single number out would hide a change of the step size
            reason = f"what is masked in it is not seen; where that is weight decay alone, it is {metric!r}"
            raise ValueError(_refusal(reason))
    return metric


class _Answer(NamedTuple):
    update: Any
    state: Any
    v: Any  # the second moment after the update, corrected as after very many updates
    trace: Any  # the sum of past updates


class _Probed:
    """An optimizer of one number, run from states of our choice."""

    def __init__(self, inner: optax.GradientTransformation):
        inner = optax.with_extra_args_support(inner)
        try:
            self.fresh = inner.init(jnp.zeros(1))
            self._run = jax.jit(inner.update)
            self()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(_refusal(f"it cannot be run on a single number ({reason})")) from None

    def __call__(
        self, gradient=0.0, mean=0.0, v=0.0, trace=0.0, count=10**6, step=0, param=0.0
    ) -> _Answer:
        fields = {"mu": mean, "nu": v, "nu_max": v, "sum_of_squares": v, "trace": trace}

        def placed(node: Any) -> Any:
            name = type(node).__name__
            if name in SECOND_MOMENTS or name == "TraceState":
                given = {f: jnp.full(1, fields[f]) for f in node._fields if f in fields}
                return node._replace(
                    **given, **({"count": jnp.int32(count)} if "count" in node._fields else {})
                )
            if isinstance(node, dict):
                return {key: placed(child) for key, child in node.items()}
            if isinstance(node, tuple):
                children = [placed(child) for child in node]
                return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
            whole = jnp.ndim(node) == 0 and jnp.issubdtype(jnp.result_type(node), jnp.integer)
            return jnp.asarray(step, jnp.result_type(node)) if whole else node

        update, state = self._run(jnp.full(1, gradient), placed(self.fresh), jnp.full(1, param))
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((update, state))):
            raise ValueError(_refusal("it holds traced numbers, as in a function hyper -> tx"))
        moment, trace = 0.0, 0.0
        for node in nodes(state):
            name = type(node).__name__
            if name in SECOND_MOMENTS:
                moment = float(getattr(node, SECOND_MOMENTS[name])[0])
                if "RStdDev" in name:
                    moment -= float(node.mu[0]) ** 2
            if name == "TraceState":
                trace = float(node.trace[0])
        return _Answer(float(update[0]), state, moment, trace)


def _momentum(optimizer: _Probed, step: int, rate: float) -> tuple[float, float, float]:
    """The decay of the sum of past updates, what the first update is multiplied by, and the lag of the rate."""
    decay = optimizer(trace=1.0).trace
    first = optimizer(
        gradient=PROBE, v=1.0, mean=PROBE, step=step
    )  # so small that nothing clips it
    second = optimizer(trace=first.trace, v=1.0, step=step)
    ratio = abs(
        second.update / first.update
    )  # decay, or decay^2 / (1 + decay) for Nesterov's, which looks ahead
    nesterov = abs(ratio - decay**2 / (1 + decay)) < abs(ratio - decay)
    sent = (
        abs(optimizer(trace=PROBE, v=1.0, step=step).update)
        / PROBE
        / (decay**2 if nesterov else decay)
    )
    late = abs(sent - 1) < abs(
        sent - rate
    )  # what the sum holds is not multiplied by the rate any more
    return decay, 1 + decay if nesterov else 1.0, decay if late else 0.0


def _first_rate(learning_rate: Callable[[Any], Any]) -> tuple[int, float]:
    for step in STEPS:
        rate = learning_rate(step)
        if isinstance(rate, Tracer):
            raise ValueError(_refusal("`learning_rate` is traced, as in a function hyper -> tx"))
        if float(rate) > 0:
            return step, float(rate)
    raise ValueError(
        "proximal: `learning_rate` must be positive at some step up to 100000, got 0 at each one tried"
    )


def _solved(optimizer: _Probed, step: int, rate: float) -> Metric:
    """The constants, from the optimizer's answers at second moments that are tiny, and of the size of eps."""
    holder = _only(second_moments(optimizer.fresh))
    if holder is None:
        return Metric()
    b2 = None
    if "count" in holder._fields and "nu_max" not in holder._fields:
        answers = (optimizer(v=v).state for v in (1.0, 0.0))
        one, zero = (float(_only(second_moments(state)).nu[0]) for state in answers)
        b2 = one - zero
        if not 0 <= b2 < 1:
            raise ValueError(_refusal(f"its {type(holder).__name__} does not decay as a mean does"))

    def divisor(v: float) -> tuple[float, float]:
        answer = optimizer(gradient=PROBE, mean=PROBE, v=v, step=step)
        return answer.v, rate * PROBE / abs(answer.update) if answer.update else np.inf

    v1, d1 = divisor(0.0)
    v2, d2 = divisor(max(d1, 1e-12) ** 2)
    root = ((v2 - v1) / (d2 - d1) - (d2 - d1)) / 2 if d2 > d1 else 0.0
    eps_root, eps = max(root**2 - v1, 0.0), max(d1 - root, 0.0)
    small = 1e-4 * d1  # what is left of the other one is rounding
    return Metric(
        b2=b2, eps=eps if eps > small else 0.0, eps_root=eps_root if eps_root > small**2 else 0.0
    )


def _check_clipping(
    optimizer: _Probed, metric: Metric, learning_rate: Callable[[Any], Any]
) -> None:
    """Refuses updates that, divided by the step size, are not in proportion to the gradients that they are made of."""
    step = max(STEPS, key=lambda step: float(learning_rate(step)))

    def proportion(size: float, name: str, v: float) -> float:
        answer = optimizer(**{name: size, "v": v}, step=step)  # type: ignore[arg-type]
        return answer.update / size / float(jnp.ravel(jnp.asarray(metric(answer.state, 1.0)))[0])

    # A second moment of 1e30 is too large for the square of the gradient to matter, one of 0 is nothing else.
    for name, v in (("gradient", 1e30), ("gradient", 0.0), ("mean", 1.0), ("trace", 1.0)):
        small, large = (proportion(size, name, v) for size in (PROBE, HUGE))
        if small and _differs(large, small):
            raise ValueError(
                "proximal: `inner` must not clip, since the optimum moves if it does so there, where the gradient of "
                f"the loss is not 0; leave it out, or where it never acts late in training give `metric={metric!r}`"
            )


def _check(
    optimizer: _Probed, metric: Metric, learning_rate: Callable[[Any], Any], lead: float
) -> None:
    """Compares the optimizer's updates with the metric at other steps, moments, counts and parameters."""
    alone = dataclasses.replace(metric, momentum=0.0)  # a probe starts with no sum of past updates

    def expected(answer: _Answer, rate: float) -> float:
        return -PROBE * float(jnp.ravel(jnp.asarray(alone(answer.state, rate * lead)))[0])

    for step in STEPS:
        rate = float(learning_rate(step))
        answer = optimizer(gradient=PROBE, mean=PROBE, v=1.0, step=step)
        wanted = expected(answer, rate)
        if _differs(answer.update, wanted):
            used = f"{rate * answer.update / wanted:g}" if wanted else "another"
            raise ValueError(
                f"proximal: `learning_rate` must be that of the inner optimizer, got {rate:g} at step {step} "
                f"where the optimizer uses {used}; if it is right, the step size is not known: give `metric=`"
            )
    step, rate = _first_rate(learning_rate)
    for v in (1e-10, 1e-4, 1e2):
        answer = optimizer(gradient=PROBE, mean=PROBE, v=v, step=step)
        if _differs(answer.update, expected(answer, rate)):
            raise ValueError(
                _refusal("its updates are not divided by the root of its second moment")
            )
    holder = _only(second_moments(optimizer.fresh))
    if holder is not None and "mu" in holder._fields and "RStdDev" not in type(holder).__name__:
        # From a small gradient, as the mean may be in bfloat16.
        b1 = 1 - float(_only(second_moments(optimizer(gradient=PROBE).state)).mu[0]) / PROBE
        for t in (
            3,
            10,
            100,
        ):  # the first updates, in which means are corrected for their start from 0
            answer = optimizer(
                gradient=PROBE, mean=PROBE * (1 - b1 ** (t - 1)), v=1e-2, count=t - 1, step=step
            )
            plain = expected(answer, rate)
            nesterov = plain * (b1 * (1 - b1**t) / (1 - b1 ** (t + 1)) + (1 - b1) / (1 - b1**t))
            if all(
                _differs(answer.update, other) for other in (plain, nesterov, plain * (1 - b1**t))
            ):
                raise ValueError(_refusal("its first updates are not those of Adam"))
    small, double = (
        optimizer(gradient=g, mean=g, v=1.0, step=step).update for g in (PROBE, 2 * PROBE)
    )
    if _differs(double, 2 * small):
        raise ValueError(_refusal("its updates do not grow with the gradient"))
    at = [
        optimizer(gradient=1.0, mean=1.0, v=1.0, step=step, param=param).update
        for param in (0.0, 3.0, -3.0)
    ]
    if abs(at[1] + at[2] - 2 * at[0]) > 1e-3 * max(
        map(abs, at)
    ):  # weight decay is odd in the parameter
        raise ValueError(_refusal("its updates depend on the size of the parameters"))


def _differs(update: float, other: float) -> bool:
    return not abs(update - other) <= 2e-3 * abs(other)


def _only(found: list[Any]) -> Any:
    return found[0] if found else None


def _refusal(reason: str) -> str:
    return f"proximal: the metric of `inner` cannot be read: {reason}; give it as `metric=`"
