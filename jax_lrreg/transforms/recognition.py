"""Whether an optimizer is one whose step sizes are known, and whether it is what it is taken for.

Its states say what it keeps. The rest is tried: updates of a stand-in of few numbers, from states
of our choice, must be those that `metric.step_sizes` claims.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxpr_as_fun

from jax_lrreg import _optax_state as held
from jax_lrreg._arrays import is_parameter, known, leaves
from jax_lrreg.transforms.metric import (
    UNIT,
    Decay,
    Held,
    Optimizer,
    decays,
    filled,
    placed,
    response,
    scaled,
    step_sizes,
)

Rate: TypeAlias = Callable[[chex.Numeric], chex.Numeric]
T = TypeVar("T")

# States that change no direction: what holds them is read through, or ignored.
TRANSPARENT = (
    "ApplyIfFiniteState",
    "EmptyState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MonitorState",
    "ScaleByLearningRateState",
    "ScaleByScheduleState",
    "ScheduledState",
    "SnapshotState",
    "WeightDecaySchedule",
    "WrappedScheduleState",
    "ZeroNansState",
)
# As those, but parameters differ by their paths: nothing but the whole tree can stand in for it.
BY_PATH = ("AddPenaltyState", "MaskedState", "PartitionState", "ScaleByRulesState")
STEPS = (0, 1, 10, 100, 1000, 10_000, 100_000)  # at which learning rates are compared
TINY, HUGE = (
    1e-12,
    1e10,
)  # gradients; whatever clips will clip the latter, whose square is a float32
LARGE = 2.0**40  # a second moment beside which no eps is seen, nor the square of its inverse
EXTRA = {"value": 0.0}  # what a controller asks for


class Trial(NamedTuple):
    """What an update is made from: a number for all gradients, one for all memories, ..."""

    gradient: chex.Numeric
    memory: chex.Numeric
    second: chex.Numeric
    params: chex.Numeric = 0.0


# What goes by the size of the parameters shows at small ones, where a small gradient is large
# beside them.
SMALL = (Trial(1e-4, 0.0, 1.0, 1e-6), Trial(TINY, 0.0, 0.0), Trial(0.0, TINY, 1.0))
LARGER = (Trial(HUGE, 0.0, 1e30), Trial(HUGE, 0.0, 0.0), Trial(0.0, HUGE, 1.0))


class Evidence(NamedTuple):
    """What a stand-in did. Trees are like the parameters, with an axis of trials or steps.

    Attributes:
        decays: of the memories.
        trials: the updates of `SMALL` and `LARGER`, what is claimed of them, and what no gradient
            is needed for.
        late: the update by a gradient that has been the same 1000 times, and what is claimed of it.
        sent: what a unit of gradient adds to each sum of past updates; None for other memories.
        rates: learning rates at `STEPS`, times what each parameter is divided by.
        scale: of the controllers.
    """

    decays: list[Decay]
    trials: tuple[Any, Any, Any]
    late: tuple[Any, Any]
    sent: list[Any]
    rates: Any
    scale: dict[str, jax.Array]


def stand_in(inner: Optimizer, params: held.Tree = None) -> held.Tree:
    """Shapes as small as may be on which `inner` does what it does on `params`.

    That is one array if it treats all parameters alike. Else it is the whole tree, in small arrays
    or in those of `params`, since some ask for them: the reference that a penalty pulls to. Without
    `params`, None.

    Raises:
        ValueError: `inner` holds a state that is not known, or runs on none of them.
    """

    def run(values: Any) -> Any:
        state = inner.init(values)
        return inner.update(filled(values, 0), state, filled(values, 0), **EXTRA)[1]

    reason = ""
    alone, *trees = _shapes(params)
    for shapes in (alone, *trees):
        try:
            state = jax.eval_shape(run, shapes)
        except Exception as error:  # from any function of the user's, such as one that labels
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        _require_known(state)
        if shapes is not alone or not any(_name(x) in BY_PATH for x in held.nodes(state)):
            return shapes
    if params is None:
        return None
    raise ValueError(_unknown(f"it cannot be run on the parameters ({reason})"))


def _shapes(params: held.Tree) -> Iterator[held.Tree]:
    """One array; then the tree in arrays of two entries along each axis, and in its own.

    Of one entry alone, the mean of a row that is subtracted would leave nothing.
    """
    # float64 where it is switched on: b2 and the like are read from these.
    wide = jnp.result_type(float)

    def like(x: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            shape, jnp.promote_types(x.dtype, wide) if is_parameter(x) else x.dtype
        )

    yield jax.ShapeDtypeStruct((2, 2), wide)
    if params is not None:
        yield jax.tree.map(lambda x: like(x, (2,) * jnp.ndim(x)), params)
        yield jax.tree.map(lambda x: like(x, jnp.shape(x)), params)


class Recognised(NamedTuple):
    """Which memories sum what is divided or scaled already; their decays, where not traced."""

    lags: list[bool]
    decays: list[Decay] | None


def recognise(inner: Optimizer, learning_rate: Rate, shapes: held.Tree) -> Recognised:
    """What `metric.step_sizes` has to know of `inner`.

    Raises:
        ValueError: the step sizes of `inner` are not known, it clips, or its learning rate is
            another.
    """
    state = jax.eval_shape(inner.init, shapes)
    found, exact = _evaluated(lambda: _evidence(inner, shapes))
    names = [_name(node) for node in held.memories(state)]
    for name, decay in zip(names, found.decays, strict=True):
        if name in held.AVERAGED and not 0 < decay.decay < 1:
            raise ValueError(_unknown(f"its {name} does not decay as a mean does"))
    _require_claimed(found, names)
    if exact:
        _require_rate(_own_rates(found, state), learning_rate)
    lags = [any(np.any(x != 1) for x in jax.tree.leaves(sent)) for sent in found.sent]
    return Recognised(lags, found.decays if exact else None)


def decays_of(inner: Optimizer, shapes: held.Tree) -> list[Decay]:
    """The decays of the memories of `inner`, in numbers where they are known."""
    found, exact = _evaluated(lambda: decays(inner, _zeros(shapes), EXTRA))
    return found if exact else decays(inner, _zeros(shapes), EXTRA)


def runs_alone(tx: optax.GradientTransformation) -> bool:
    """Whether `tx` treats all parameters alike, so that no parameters are needed to try it."""
    try:
        return stand_in(optax.with_extra_args_support(tx)) is not None
    except ValueError:
        return False


def require_own_rate(
    owner: str, tx: optax.GradientTransformation, learning_rate: Rate, params: held.Tree = None
) -> None:
    """Refuses a learning rate that `tx` does not use, where it can be seen; else says nothing.

    It is seen where the optimizer is one that `proximal` knows, behind clipping of any kind too,
    and neither it nor the rate holds traced numbers. Without `params`, it must run alone.
    """
    inner = optax.with_extra_args_support(tx)
    inner = inner._replace(update=jax.jit(inner.update))  # traced a few times, not at each trial
    try:
        shapes = stand_in(inner, params)
    except ValueError:
        return
    if shapes is None:
        return
    found, exact = _evaluated(lambda: _evidence(inner, shapes))
    wrong, _ = _wrong(found)
    if exact and not np.any(wrong[: len(SMALL)]):
        own = _own_rates(found, jax.eval_shape(inner.init, shapes))
        # One that goes by the loss, as Polyak's step does, stands still at the loss 0 it is tried
        # with: a rate that is 0 throughout tells nothing.
        if np.any(own):
            _refuse_other(owner, own, learning_rate, "that of `tx`, or None")


def _require_known(state: held.Tree) -> None:
    strange = [
        _name(node)
        for node in held.nodes(state)
        if not (_name(node) in (*TRANSPARENT, *BY_PATH) or held.remembers(node))
        and not held.is_driven(node)
    ]
    found: dict[str, list[str]] = {}
    for node in held.memories(state):
        for leaf in leaves(held.remembered(node)):
            found.setdefault(leaf.path, []).append(_name(node))
    for names in found.values():
        if names.count("TraceState") > 1:
            raise ValueError(_unknown("it sums past updates twice"))
        moments = [name for name in names if name != "TraceState"]
        strange = strange or (moments if len(moments) > 1 else [])
    if strange:
        names = " with ".join(dict.fromkeys(strange))
        raise ValueError(_unknown(f"the step size of {names} is not known"))


def _evidence(inner: Optimizer, shapes: held.Tree) -> Evidence:
    params = _zeros(shapes)
    fresh = inner.init(params)
    decaying = decays(inner, params, EXTRA)
    nothing = [filled(x.trace, 0) if held.sums(x) else None for x in held.memories(fresh)]

    def put(state: held.Tree, contents: Callable[[Decay], dict[str, Any]]) -> optax.OptState:
        pairs = zip(held.memories(fresh), decaying, strict=True)
        return held.with_memories(state, [placed(node, **contents(d)) for node, d in pairs])

    def tried(trial: Trial) -> tuple[Any, Any, Any]:
        gradient, memory, second, size = trial
        signs = jax.tree.map(lambda x: jnp.where(gradient == 0, 1, _alternating(x)), params)

        def updated(part: float) -> tuple[Any, tuple[Any, Any]]:
            given = {"mean": part * memory, "second": second, "trace": part * memory}
            before = put(fresh, lambda _: given)
            gradients = jax.tree.map(jnp.multiply, filled(params, part * gradient), signs)
            update, after = inner.update(gradients, before, filled(params, size), **EXTRA)
            return update, (before, after)

        (update, states), (offset, _) = updated(1), updated(0)
        all_held = Held(gradient, memory, [memory] * len(decaying))
        unit = jnp.where(
            second > 1, 1, UNIT
        )  # beside a large second moment a small answer would be 0
        moved, _ = response(inner, all_held, params, states, decaying, EXTRA, unit)
        claimed = jax.tree.map(lambda u, sign: u / unit * sign, moved, signs)
        return jax.tree.map(jnp.subtract, update, offset), claimed, offset

    def late() -> tuple[Any, Any]:
        def contents(decay: Decay) -> dict[str, Any]:
            mean = TINY * (1 - decay.mean**999)
            return {"mean": mean, "second": 1e-2, "trace": 0, "count": 999}

        before = put(held.without_penalties(fresh), contents)
        update, after = inner.update(filled(params, TINY), before, params, **EXTRA)
        sizes, _ = step_sizes(inner, params, (before, after), nothing, decaying, EXTRA)
        return update, scaled(sizes, -TINY)

    def rates(step: jax.Array) -> tuple[Any, list[Any]]:
        def counted(x: Any) -> Any:  # but not what a controller counts, which would cut the rate
            return x if held.is_control(x) or is_parameter(x) else jnp.full_like(x, step)

        before = jax.tree.map(counted, fresh, is_leaf=held.is_control)
        states = before, put(before, lambda _: {"mean": 0, "second": LARGE, "trace": 0})
        sizes = partial(step_sizes, inner, params, states, decaying=decaying, extra=EXTRA)
        _, sent = sizes(nothing, unit=1 / LARGE)
        pairs = zip(sent, decaying, strict=True)
        ends = [x if x is None else scaled(x, 1 / (1 - d.decay)) for x, d in pairs]
        return sizes(ends, unit=1 / LARGE)[0], sent

    _, after = inner.update(params, fresh, params, **EXTRA)
    trials = Trial(*map(jnp.array, zip(*SMALL, *LARGER, strict=True)))
    own, sent = jax.vmap(rates)(jnp.array(STEPS))
    scale = held.applied_scales(after)
    return Evidence(decaying, jax.vmap(tried)(trials), late(), sent, own, scale)


def _evaluated(function: Callable[[], T]) -> tuple[T, bool]:
    """What `function` returns, in numbers, and whether they are its own, not stand-ins.

    What is claimed holds at any learning rate, decay or eps, so it may be tried at any.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)()
    numbers = [_number_for(x, 0.37 + 0.01 * i) for i, x in enumerate(closed.consts)]
    # Compiled ahead of time it runs while something else is traced. Its operations one by one would
    # each have to be compiled, which takes 5 times as long.
    program = jax.jit(jaxpr_as_fun(closed.replace(consts=numbers)))
    run = lambda: jax.device_get(program.lower().compile()())  # noqa: E731
    if jax.sharding.get_abstract_mesh().empty:
        found = run()
    else:
        # The devices of a mesh may not be here, where a step is compiled for them ahead of time;
        # and only another thread has no mesh, as inside a trace none can be set.
        with ThreadPoolExecutor(1) as other:
            found = other.submit(run).result()
    return jax.tree.unflatten(jax.tree.structure(shapes), found), known(*closed.consts)


def _number_for(value: jax.Array, unit: float) -> Any:
    """A number for what is traced: from 0 to 1, as rates, decays and eps are; many, of steps."""
    if known(value):
        return value
    number = 1000 if jnp.issubdtype(value.dtype, jnp.integer) else unit
    return np.full(value.shape, number, value.dtype)


def _require_claimed(found: Evidence, names: list[str]) -> None:
    wrong, unclear = _wrong(found)
    if np.any((wrong & ~unclear)[: len(SMALL)]):
        raise ValueError(_unknown("its updates are not in proportion to the gradient"))
    if np.any(wrong):
        raise ValueError(
            "proximal: `inner` must not clip, since the optimum moves if it does so there, where "
            "the gradient "
            "of the loss is not 0; leave it out, or where it never acts late in training give "
            f"`metric={_constants(found.decays, names)}`"
        )
    for update, claimed in zip(*map(jax.tree.leaves, found.late), strict=True):
        if not np.all(np.abs(update - claimed) <= 2e-3 * np.abs(claimed)):
            raise ValueError(_unknown("it does not divide by the root of its second moment"))


def _wrong(found: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Which trials are not as claimed; none where a norm that clips has no derivative."""
    wrong, unclear = np.zeros((2, len(SMALL) + len(LARGER)), bool)
    for update, claimed, offset in zip(*map(jax.tree.leaves, found.trials), strict=True):
        with np.errstate(
            invalid="ignore"
        ):  # at a rate of 1e30 both are infinite: it cannot be seen
            near = np.abs(update - claimed) <= 1e-3 * (np.abs(offset) + np.abs(claimed))
        wrong |= ~np.all(near.reshape(len(wrong), -1), 1)
        unclear |= np.any(np.isnan(claimed).reshape(len(wrong), -1), 1)
    return wrong, unclear


def _constants(decaying: list[Decay], names: list[str]) -> str:
    """A `Metric` with the numbers that are known; its eps would have to be solved for."""
    texts = []
    for name, decay in zip(names, decaying, strict=True):
        if name == "TraceState":
            texts.append(f"momentum={decay.decay:.7g}")
        else:
            texts += [f"b2={decay.decay:.7g}"] * (name in held.CORRECTED) + ["eps=..."]
    return f"Metric({', '.join(texts)})"


def _own_rates(found: Evidence, state: held.Tree) -> np.ndarray:
    """The learning rates of the parameters, in a row for each of `STEPS`."""
    scale = found.scale.get("", 1.0)
    # A controller that is at its end already, as `LossDecay` may be, hides every rate.
    if scale == 0:
        return np.zeros((len(STEPS), 0))
    factors: dict[str, float] = {}
    for node, decay in zip(held.memories(state), found.decays, strict=True):
        factor = float(1 - decay.decay) if held.sums(node) else LARGE**0.5
        for leaf in leaves(held.remembered(node)):
            factors[leaf.path] = factors.get(leaf.path, 1.0) * factor
    own = [x.value.reshape(len(STEPS), -1) * factors.get(x.path, 1.0) for x in leaves(found.rates)]
    return np.concatenate(own or [np.zeros((len(STEPS), 0))], 1) / scale


def _require_rate(own: np.ndarray, learning_rate: Rate) -> None:
    """Refuses a learning rate of `proximal` that is that of no parameter, or of no use."""
    given, exact = _rates_given(learning_rate)
    if not exact or not own.size:
        return
    if np.max(given) <= 0:
        raise ValueError(
            f"proximal: `learning_rate` must be positive at some step up to {STEPS[-1]}, got 0 at "
            "each tried"
        )
    if np.any(own < 0):
        raise ValueError(
            "proximal: `inner` must go downhill, but moves some parameters up the gradient; what "
            "optax.masked leaves out it passes on as it is: use optax.partition"
        )
    _refuse_other("proximal", own, learning_rate, "that of the inner optimizer")


def _rates_given(learning_rate: Rate) -> tuple[np.ndarray, bool]:
    rate_at = jax.jit(lambda step: jnp.asarray(learning_rate(step)))
    found, exact = _evaluated(lambda: jnp.stack([rate_at(step) for step in STEPS]))
    return np.asarray(found), exact


def _refuse_other(owner: str, own: np.ndarray, learning_rate: Rate, allowed: str) -> None:
    """Refuses a learning rate that is that of no parameter, at the first step where it is not."""
    given, exact = _rates_given(learning_rate)
    # The same schedule by another library may round 1 - cos, which leaves 6e-8 of its peak at the
    # end.
    least = 1e-6 * np.max(np.abs(given))
    for step, rate, rates in zip(STEPS, given, own, strict=True):
        if exact and rates.size and not np.any(np.abs(rates - rate) <= 2e-3 * abs(rate) + least):
            uses = " and ".join(f"{x:g}" for x in np.unique(rates))
            raise ValueError(
                f"{owner}: `learning_rate` must be {allowed}, got {rate:g} at step {step} where "
                f"the optimizer uses {uses}"
            )


def _zeros(shapes: held.Tree) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _alternating(x: jax.Array) -> jax.Array:
    return (-1.0) ** jnp.arange(x.size).reshape(x.shape)


def _name(node: Any) -> str:
    return type(node).__name__


def _unknown(reason: str) -> str:
    return f"proximal: the metric of `inner` cannot be read: {reason}; give it as `metric=`"
