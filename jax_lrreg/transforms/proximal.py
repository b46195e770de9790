"""Real zeros with any optimizer: the prox of a penalty in the optimizer's own metric."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter
from jax_lrreg._check import require_number
from jax_lrreg._optax_state import applied_rate
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.base import shrunk
from jax_lrreg.transforms.metric import Metric
from jax_lrreg.transforms.probe import measure


class ProximalState(NamedTuple):
    """How many updates have been made, the mean learning rate where it lags, and the inner optimizer's state."""

    count: jax.Array
    rate: jax.Array
    inner: Any


def proximal(
    inner: optax.GradientTransformation,
    penalty: Penalty,
    learning_rate: Any,
    metric: Metric | Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Follows each update of `inner` by the prox of a penalty, in the metric that the update was made in.

        z      = params + update of inner
        params <- argmin over w of sum (w - z)^2 / (2 step_size) + penalty(w)

    with step_size as in `Metric`, one for each parameter. For Adam that is
    learning_rate / (sqrt(v corrected) + eps), so that the optimum of loss + penalty is where it stands
    still. Thresholding by `learning_rate * strength` would stand still elsewhere. A parameter that the
    prox sets to zero is exactly zero, in any dtype; others are right up to the rounding of a sum. Nothing may rescale
    the update afterwards: it is the last of a chain, or the whole optimizer. Nothing may clip either. With L1 the
    gradient of the loss at the optimum is `strength` in size at each parameter that is not zero: clipping that acts
    there moves the optimum. Inside `inner` it is refused, at whatever size, since how large gradients are is not known
    beforehand; before `proximal` in a chain it does the same harm and is not seen. With an explicit `metric=` it is
    your own choice.

    Args:
        inner: an Optax optimizer, its learning rate included.
        penalty: one with a prox; its strengths may be schedules of the number of updates.
        learning_rate: the number or schedule that `inner` uses. Another one is refused where it can be seen. Where
            `inner` is made by `optax.inject_hyperparams`, the rate in its state counts, which may be edited.
        metric: a `Metric`, or a function `(state of inner after its update, learning rate) -> scalar or tree` of step
            sizes. By default it is measured. That is known for SGD with and without momentum, Adam, AdamW, NAdam,
            NAdamW, AMSGrad, AdaBelief, RMSProp (centered too) and Adagrad; others are refused by name. So are masks,
            as of AdamW's decay, since what they leave out is not seen; the message has the metric of the rest.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Raises:
        ValueError: if the metric is not known, the learning rate is another than `inner`'s, or `inner` clips.

    Reference:
        Yun, Lozano and Yang, Adaptive proximal gradient methods for structured neural networks, 2021.

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
        require_number(
            "proximal",
            "learning_rate",
            learning_rate,
            "a number > 0 or a schedule",
            lambda x: x > 0,
        )
    if metric is not None and not callable(metric):
        raise TypeError(
            f"proximal: `metric` must be a Metric or a function of the inner state, got {metric!r}"
        )

    def rate_at(count: Any) -> jax.Array:
        return jnp.asarray(
            learning_rate(count) if callable(learning_rate) else learning_rate, jnp.float32
        )

    inner = optax.with_extra_args_support(inner)
    metric = measure(inner, rate_at) if metric is None else metric
    lag = metric.lag if isinstance(metric, Metric) else 0.0

    def init(params: Any) -> ProximalState:
        return ProximalState(jnp.zeros((), jnp.int32), jnp.zeros(()), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, ProximalState]:
        if params is None:
            raise ValueError("proximal: `params` must be given to `update`, got None")
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        # Optax takes None for no gradient: what has none is not moved.
        params = jax.tree.map(
            lambda u, p: None if u is None else p, updates, params, is_leaf=lambda x: x is None
        )
        moved = jax.tree.map(
            lambda p, u: p + u.astype(p.dtype) if is_parameter(p) else p, params, updates
        )
        now = applied_rate(inner_state)
        rate = lag * state.rate + (1 - lag) * (rate_at(state.count) if now is None else now)
        kept = shrunk(penalty, moved, metric(inner_state, rate), state.count)

        def change(update: Any, before: Any, after: Any, final: Any) -> Any:
            if not is_parameter(before):
                return update
            # An update that the prox left alone stays as it was: before + (after - before) would round it. The
            # difference is 0 there, but not its derivative by the strength.
            dtype = jnp.promote_types(
                update.dtype, before.dtype
            )  # a narrower one would miss the zeros
            unmoved = update + (final - after).astype(update.dtype)
            return jnp.where(final == after, unmoved.astype(dtype), (final - before).astype(dtype))

        changes = jax.tree.map(change, updates, params, moved, kept)
        return changes, ProximalState(
            jnp.asarray(optax.safe_increment(state.count)), rate, inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)
