"""Real zeros with any optimizer: the prox of a penalty in the optimizer's own metric."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import is_parameter, known
from jax_lrreg._check import require, require_number
from jax_lrreg._optax_state import Tree, applied_rate, memories
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.base import shrunk
from jax_lrreg.schedules import Schedule
from jax_lrreg.transforms.learning_rate import schedule_of_one
from jax_lrreg.transforms.metric import Metric, filled, step_sizes
from jax_lrreg.transforms.recognition import decays_of, recognise, stand_in

MetricFunction: TypeAlias = Callable[[Tree, chex.Numeric], Tree]


class ProximalState(
    NamedTuple("ProximalState", [("count", jax.Array), ("sums", Any), ("inner", Any)])
):
    """The state of `proximal`.

    Attributes:
        count: how many updates have been made.
        sums: what a unit of gradient has added up to where `inner` sums updates that are divided or
            multiplied by the learning rate already, as RMSProp's momentum; empty for most.
        inner: the state of the inner optimizer.
    """


def proximal(
    inner: optax.GradientTransformation,
    penalty: Penalty,
    learning_rate: optax.ScalarOrSchedule,
    metric: Metric | MetricFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Follows each update of `inner` by the prox of a penalty, in the metric of that update.

        z      = params + update of inner
        params <- argmin over w of sum (w - z)^2 / (2 step_size) + penalty(w)

    with one step size for each parameter: what a unit of gradient, held for long, moves it in one
        update. For Adam that is learning_rate / (sqrt(v corrected) + eps), so that the optimum of
        loss + penalty is where it stands still. Thresholding by `learning_rate * strength` would
        stand still elsewhere. A parameter that the prox sets to zero is exactly zero, in any dtype;
        others are right up to the rounding of a sum.

    Nothing may rescale the update afterwards: it is the last of a chain, or the whole optimizer.
        Nothing may clip either. With L1 the gradient of the loss at the optimum is `strength` in
        size at each parameter that is not
    zero: clipping that acts there moves the optimum. Inside `inner` it is refused, at whatever
        size, since how large gradients are is not known beforehand; before `proximal` in a chain it
        does the same harm and is not seen. With an explicit `metric=` it is your own choice.

    Args:
        inner: an Optax optimizer, its learning rate included. Known are SGD with and without
            momentum, Adam, AdamW, NAdam, NAdamW, AMSGrad, AdaBelief, RMSProp and Adagrad, also in
            `optax.partition`, under masks, with weight decay and penalties of any kind, and with
            traced numbers. Where the gradient hardly varies, RMSProp's `centered=True` divides by
            the rounding of a difference: give it an `eps` of 1e-6 or more.
        penalty: one with a prox; its strengths may be schedules of the number of updates.
        learning_rate: the number or schedule that `inner` uses; where groups of parameters have
            their own, that of one of them. Without `metric=` it is compared with what `inner` does,
            and that counts: also the number in the state of `optax.inject_hyperparams`, which may
            be edited.
        metric: a `Metric`, or a function `(state of inner after its update, learning rate) ->
            scalar or tree` of step sizes. By default `inner` itself is asked, by a second update of
            arrays that hold one number each.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Raises:
        ValueError: here, or at `init` where it depends on the parameters: the metric is not known,
            the learning rate is another than `inner`'s, `inner` clips, or the penalty has no prox.

    Reference:
        Yun, Lozano and Yang, Adaptive proximal gradient methods for structured neural networks,
        2021.

    Example:
        >>> from jax_lrreg.penalties import L1
        >>> tx = proximal(optax.sgd(0.1), L1(1.0), learning_rate=0.1)
        >>> params = jnp.array([1.0, 0.05])
        >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [0.9 0. ]
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"proximal: `inner` must be an Optax transformation, got {inner!r}")
    if not isinstance(penalty, Penalty):
        raise TypeError(f"proximal: `penalty` must be a Penalty, got {penalty!r}")
    if not callable(learning_rate):
        allowed = "a number > 0 or a schedule"
        require_number("proximal", "learning_rate", learning_rate, allowed, lambda x: x > 0)
    rate_at = schedule_of_one("proximal", "learning_rate", learning_rate)
    inner = optax.with_extra_args_support(inner)
    measure = _own(inner, rate_at) if metric is None else _given(metric, rate_at)

    def kept(moved: Tree, before: ProximalState, after: Tree, value: Any) -> Any:
        sizes, sums = measure.update(moved, before, after, value)
        return shrunk(penalty, moved, sizes, before.count), sums

    def init(params: Tree) -> ProximalState:
        state = inner.init(params)
        new = ProximalState(jnp.zeros((), jnp.int32), measure.init(params, state), state)
        try:
            jax.eval_shape(kept, params, new, state, 0.0)  # what has no prox is found now
        except NotImplementedError as error:
            raise ValueError(f"proximal: `penalty` must have a prox, but {error}") from None
        return new

    def update(
        updates: Tree, state: Tree, params: Tree = None, **extra: object
    ) -> tuple[Tree, ProximalState]:
        if params is None:
            raise ValueError("proximal: `params` must be given to `update`, got None")
        updates, after = inner.update(updates, state.inner, params, **extra)
        # Optax takes None for no gradient: what has none is not moved.
        params = jax.tree.map(
            lambda u, p: None if u is None else p, updates, params, is_leaf=lambda x: x is None
        )
        moved = jax.tree.map(
            lambda p, u: p + u.astype(p.dtype) if is_parameter(p) else p, params, updates
        )
        shrunken, sums = kept(moved, state, after, extra.get("value", 0.0))
        changes = jax.tree.map(_change, updates, params, moved, shrunken)
        count = jnp.asarray(optax.safe_increment(state.count))
        return changes, ProximalState(count, sums, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _change(update: jax.Array, before: jax.Array, moved: jax.Array, kept: jax.Array) -> jax.Array:
    """The update that makes `before` what the prox has `kept` of it."""
    if not is_parameter(before):
        return update
    # One that the prox left alone stays as it was: before + (kept - before) would round it. The
    # difference is 0 there, but not its derivative by the strength.
    dtype = jnp.promote_types(update.dtype, before.dtype)  # a narrower one would miss the zeros
    unmoved = update + (kept - moved).astype(update.dtype)
    return jnp.where(kept == moved, unmoved.astype(dtype), (kept - before).astype(dtype))


class _Measure(NamedTuple):
    """How step sizes are found, and what has to be kept for it.

    `init(params, state of inner) -> sums` `update(gradients, state, state of inner after its
    update, value of the loss) -> (step sizes, sums)`
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Tree, Any]]


def _own(inner: optax.GradientTransformationExtraArgs, rate_at: Schedule) -> _Measure:
    """The step sizes that `inner` itself takes; refuses what needs no parameters to see."""
    # It is tried some twenty times, and a schedule of traced numbers has hundreds of operations.
    inner = inner._replace(update=jax.jit(inner.update))
    alone = stand_in(inner)
    known_at_once = None if alone is None else recognise(inner, rate_at, alone)

    def init(params: Tree, state: Tree) -> list[Any]:
        found = known_at_once or recognise(inner, rate_at, stand_in(inner, params))
        held = zip(memories(state), found.lags, strict=True)
        return [filled(node.trace, 0) if lags else None for node, lags in held]

    def update(
        like: Tree, before: ProximalState, after: Tree, value: chex.Numeric
    ) -> tuple[Tree, list[Any]]:
        decaying = known_at_once.decays if known_at_once else None
        if decaying is None:
            decaying = decays_of(inner, alone or stand_in(inner, like))
        states = before.inner, after
        return step_sizes(inner, like, states, before.sums, decaying, {"value": value})

    return _Measure(init, update)


def _given(metric: Metric | MetricFunction, rate_at: Schedule) -> _Measure:
    """The step sizes by a formula of the user's."""
    if not callable(metric):
        allowed = "a Metric or a function of the inner state"
        require(False, "proximal", "metric", metric, allowed, error=TypeError)
    lag = 0.0
    if isinstance(metric, Metric):
        alone = all(jnp.ndim(x) == 0 for x in jax.tree.leaves(metric))
        allowed = "of one number in each field; several are swept with `vmap`"
        require(alone, "proximal", "metric", metric, allowed)
        lag = metric.lag
    lags = not known(lag) or np.any(np.asarray(lag) != 0)

    def init(params: Tree, state: Tree) -> Any:
        del params
        return jax.tree.map(jnp.zeros_like, metric(state, jnp.zeros(()))) if lags else []

    def update(
        like: Tree, before: ProximalState, after: Tree, value: chex.Numeric
    ) -> tuple[Tree, Any]:
        del like, value
        rate = applied_rate(after)
        sizes = metric(after, rate_at(before.count) if rate is None else rate)
        if not lags:
            return sizes, before.sums
        sizes = jax.tree.map(lambda old, new: lag * old + (1 - lag) * new, before.sums, sizes)
        return sizes, sizes

    return _Measure(init, update)
