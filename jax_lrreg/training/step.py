"""One jitted update: loss, penalty, gradient, optimizer, and the metrics of exactly this update."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jax_lrreg._arrays import widened
from jax_lrreg._check import require, require_number
from jax_lrreg._optax_state import applied_scales, update_count
from jax_lrreg.penalties import NonNegativeL1, Penalty
from jax_lrreg.penalties.constraints import Constraint
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.accumulate import accumulated
from jax_lrreg.training.guard import guarded
from jax_lrreg.training.loss import adapted, check_loss_scale, checked, scaled_gradient
from jax_lrreg.training.modules import adapt
from jax_lrreg.training.report import (
    AT_END,
    applied_rate,
    at_end,
    check_monitors,
    culprit,
    nonfinite_message,
    norm,
)
from jax_lrreg.training.state import State, of_hyper, resolve

Metrics = dict[str, jax.Array]
PENALTY = "make_step: `penalty` must be a Penalty or a function hyper -> Penalty"
# What a step gives back. A key that goes in and out costs the host as much as the rest of a small call.
CHANGING = ("step", "params", "opt_state", "model_state", "ema", "loss_scale")
changing_of = attrgetter(*CHANGING)


class Step:
    """A compiled update `step(state, batch) -> (state, metrics)`; made by `make_step`.

    Attributes:
        body: the same as a pure function, not compiled and without donation, for your own `scan` or `vmap`;
            without the monitors of `at_end`. It takes a state that went through `prepare`.
        at_end: `state -> {name: scalar}`, compiled: the monitors that are read from a state.
        on_nonfinite: what happens to an update that is not finite.
    """

    def __init__(
        self,
        body: Callable,
        donate: bool,
        on_nonfinite: str,
        ema: bool,
        loss_scale: Any,
        monitors: Any,
    ):
        self.body = jax.jit(body)  # traced once, also where a loop calls it
        read = jax.jit(lambda state: at_end(state, monitors))
        self.at_end = read if set(monitors) & set(AT_END) else lambda _: {}
        self.on_nonfinite = on_nonfinite
        self.donate = donate
        self._ema = ema
        self._loss_scale = loss_scale

        def call(changing: tuple, key: jax.Array, hyper: Any, batch: Any) -> tuple[tuple, Metrics]:
            state, metrics = self.body(_assembled(changing, key, hyper), batch)
            metrics |= at_end(state, monitors)
            if not donate:  # what the step left alone would be the same array in both states
                state = jax.tree.map(jnp.copy, state)
            return changing_of(state), metrics

        self._call = jax.jit(call, donate_argnums=0 if donate else ())

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]:
        """One update. The given state is donated: go on with the one returned."""
        state = self.prepare(state)
        key, hyper = state.key, state.hyper
        changing, metrics = self._call(changing_of(state), key, hyper, batch)
        state = _assembled(
            changing, *((key, hyper) if self.donate else jax.tree.map(jnp.copy, (key, hyper)))
        )
        if self.on_nonfinite == "raise" and metrics["skipped"]:
            error = FloatingPointError(
                nonfinite_message(int(state.step) - 1, metrics) + culprit(metrics)
            )
            error.state = state  # type: ignore[attr-defined]  the one that was given is given away
            error.add_note("step: it is the attribute `state` of this error")
            raise error
        return state, metrics

    def prepare(self, state: State) -> State:
        """The state with the fields that this step needs, from the first call on: its average, its loss scale."""
        if not isinstance(state, State):
            raise TypeError(
                f"step: `state` must be a State, from `init`, got {type(state).__name__}"
            )
        held = [
            x
            for x in (state.step, state.key)
            if isinstance(x, jax.Array) and not isinstance(x, Tracer)
        ]
        if any(x.is_deleted() for x in held):
            raise ValueError(
                "step: `state` must be the latest one, got one whose memory an earlier call was given: go on with the "
                "state that was returned, or keep a state.copy()"
            )
        if self._ema and state.ema is None:
            # In bfloat16 an average would stand still from a decay of 0.996 on.
            state = state.replace(ema=jax.tree.map(widened, state.params))
        if self._loss_scale is not None and state.loss_scale is None:
            state = state.replace(loss_scale=self._loss_scale)
        return state


def make_step(
    module: Any,
    loss_fn: Callable[[Callable, Any], Any],
    tx: Any,
    *,
    penalty: Any = None,
    learning_rate: Any = None,
    accumulate: int = 1,
    on_nonfinite: str = "skip",
    ema: Any = None,
    loss_scale: Any = None,
    donate: bool = True,
    monitors: Sequence[str] = ("grad_norm",),
) -> Step:
    """A jitted training step for a Linen module, an NNX module or a plain function.

    The update is that of `loss = data_loss + penalty`, where `data_loss` is what `loss_fn` returns. The
    optimizer gets `value=loss`, `grad=` and `value_fn=` if it asks for them.

    Args:
        module: as in `init`.
        loss_fn: `loss_fn(model, batch) -> loss`, or `(loss, {name: scalar})`. `model` is callable: its
            parameters, mutable state and keys are bound to it.
        tx: an Optax transformation, or `hyper -> tx`.
        penalty: a `Penalty`, or `hyper -> penalty`, added to the loss once per update. Penalties placed in
            `tx` are your own choice and not added again.
        learning_rate: what `tx` uses (a number, a schedule, or `hyper -> either`), to be reported in
            `metrics["learning_rate"]` as applied: it is read at the optimizer's own count, and times the
            scale of the controllers in `tx`, which are `transforms.scale_by_controller` and `hypergradient_descent`.
            Those in a group of `optax.partition` are reported apart, as `metrics["scale/<label>"]`.
        accumulate: into how many micro-batches a batch is split; their gradients are averaged in float32,
            weighted by the sum of `batch["mask"]` where the batch has one. It is one update.
        on_nonfinite: for a loss, gradient or `learning_rate` that is not finite: "skip" leaves parameters,
            optimizer, model state and average as they were; "raise" does so and raises; "keep" goes on regardless.
            Where an optimizer that estimates its own step size divides 0 by 0, as D-Adaptation and Prodigy do
            while the learning rate is 0, all the same is done but the optimizer's counters go on, since it is
            their schedule that leads out of there.
        ema: decay of a moving average of the parameters, in [0, 1), or None. It is kept in float32 at least.
        loss_scale: for float16, a `flax.training.dynamic_scale.DynamicScale`: the loss is multiplied by it before it
            is differentiated, the gradient divided by it in float32, and it adapts, in `state.loss_scale`: an update
            that overflows is skipped and lowers it. The loss and the gradient norm are reported without it.
        donate: whether the memory of the given state is reused for the new one.
        monitors: what else to report. At each step, "grad_norm", which costs nothing more, and "update_norm". Of
            the state, "param_norm" and "sparsity", the share of exact zeros, and for each parameter by its path
            "param_norm/*" and "sparsity/*": `fit` reads those at the end of a log interval only.

    Returns:
        `step(state, batch) -> (state, metrics)`, where `metrics` has `loss`, `data_loss`, `penalty`,
        `skipped` (1 if this update was), the monitors, and the names that `loss_fn` returns.

    Example:
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> tx = optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> step = make_step(apply, lambda model, batch: jnp.mean((model(batch) - 1) ** 2), tx)
        >>> state, metrics = step(state, jnp.eye(2))
        >>> print(metrics["loss"], state.params)
        1.0 [0.1 0.1]
    """
    adapter = adapt(module)
    _check_arguments(
        loss_fn, penalty, learning_rate, accumulate, on_nonfinite, ema, loss_scale, monitors
    )
    if isinstance(penalty, Penalty):
        # A reference in it may be the parameters of a state that is going to be donated.
        penalty = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, penalty)

    def body(state: State, batch: Any) -> tuple[State, Metrics]:
        optimizer = resolve(tx, state.hyper, "tx")
        term = _penalty(penalty, state.hyper)
        scale = None if loss_scale is None else state.loss_scale
        count = update_count(state.opt_state)
        count = state.step if count is None else count
        key = jax.random.fold_in(state.key, state.step)

        def data_loss_of(params: Any, model_state: Any, micro: Any, key: jax.Array) -> Any:
            bound = adapter.bind(params, model_state, key)
            loss, named = checked(loss_fn(bound.model, micro))
            return loss, (named, _typed_as(bound.model_state(), model_state))

        def penalty_of(params: Any) -> jax.Array:
            return jnp.zeros(()) if term is None else term(params, count)

        gradient = scaled_gradient(data_loss_of, scale)
        (data_loss, (named, model_state)), grads = accumulated(
            gradient, state.params, state.model_state, batch, key, accumulate
        )
        cost = penalty_of(state.params)
        if term is not None:
            grads = jax.tree.map(
                lambda g, p: g + p.astype(g.dtype), grads, term.gradient(state.params, count)
            )
        loss = data_loss + cost.astype(data_loss.dtype)
        grad_norm = norm(grads)
        # JAX's gradient of a complex parameter is the conjugate of the direction that Optax expects.
        grads = jax.tree.map(jnp.conj, grads)
        rate = None if learning_rate is None else applied_rate(learning_rate, state.hyper, count)

        def value_fn(params: Any) -> jax.Array:
            return data_loss_of(params, state.model_state, batch, key)[0] + penalty_of(params)

        def make() -> tuple[State, Any]:
            updates, opt_state = optimizer.update(
                grads, state.opt_state, state.params, value=loss, grad=grads, value_fn=value_fn
            )
            params = optax.apply_updates(state.params, updates)
            opt_state = _typed_as(opt_state, state.opt_state)
            new = state.replace(params=params, opt_state=opt_state, model_state=model_state)
            if ema is not None:
                mean = jax.tree.map(
                    lambda a, p: ema * a + (1 - ema) * p.astype(a.dtype), state.ema, params
                )
                new = new.replace(ema=mean)
            return new, updates

        def size(updates: Any) -> jax.Array | None:
            return norm(updates) if "update_norm" in monitors else None

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if rate is not None:
            finite &= jnp.isfinite(rate)
        if on_nonfinite == "keep":
            new, updates = make()
            update_norm, sound = size(updates), jnp.array(True)
        else:
            new, update_norm, sound = guarded(finite, make, size, state)
        metrics = {"loss": loss, "data_loss": data_loss, "penalty": cost}
        if scale is not None:
            metrics["loss_scale"] = scale.scale
            new = new.replace(loss_scale=adapted(scale, finite))
        scales = applied_scales(new.opt_state)
        if rate is not None:
            metrics["learning_rate"] = rate * scales.pop("", 1.0)
        metrics |= {name: scale for name, scale in scales.items() if name}
        if "grad_norm" in monitors:
            metrics["grad_norm"] = grad_norm
        if "update_norm" in monitors:
            metrics["update_norm"] = update_norm
        metrics["skipped"] = 1 - sound.astype(jnp.int32)
        return new.replace(step=optax.safe_increment(state.step)), metrics | named

    return Step(body, donate, on_nonfinite, ema is not None, loss_scale, tuple(monitors))


def _assembled(changing: tuple, key: jax.Array, hyper: Any) -> State:
    state = object.__new__(
        State
    )  # its constructor would take a tenth of a small step's time on the host
    vars(state).update(zip(CHANGING, changing, strict=True), key=key, hyper=hyper)
    return state


def _typed_as(new: Any, old: Any) -> Any:
    """The new values in the dtypes of the old, so that a state has the same types after every step."""

    def one(after: Any, before: Any) -> Any:
        wanted, dtype = jnp.result_type(before), jnp.result_type(after)
        same_kind = any(
            jnp.issubdtype(wanted, kind) and jnp.issubdtype(dtype, kind)
            for kind in (jnp.floating, jnp.complexfloating, jnp.integer)
        )
        return jnp.asarray(after, wanted) if same_kind else after

    return jax.tree.map(one, new, old)


def _penalty(penalty: Any, hyper: Any) -> Penalty | None:
    """The penalty as it is, or made of the hyperparameters."""
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    return of_hyper(penalty, hyper, Penalty, "penalty", PENALTY)


def _is_infinite(x: Any) -> bool:
    return isinstance(x, Constraint | NonNegativeL1)


def _check_arguments(
    loss_fn: Any,
    penalty: Any,
    learning_rate: Any,
    accumulate: Any,
    on_nonfinite: Any,
    ema: Any,
    loss_scale: Any,
    monitors: Any,
) -> None:
    if not callable(loss_fn):
        raise TypeError(
            f"make_step: `loss_fn` must be a function (model, batch) -> loss, got {loss_fn!r}"
        )
    if penalty is not None and (not callable(penalty) or isinstance(penalty, Schedule)):
        raise TypeError(f"{PENALTY}, got {penalty!r}")
    if learning_rate is not None and not callable(learning_rate):
        allowed = "a number >= 0, a schedule or a function hyper -> either"
        require_number("make_step", "learning_rate", learning_rate, allowed, lambda x: x >= 0)
    whole = isinstance(accumulate, int) and not isinstance(accumulate, bool) and accumulate >= 1
    require(whole, "make_step", "accumulate", accumulate, "a whole number >= 1")
    known = ("skip", "raise", "keep")
    require(
        on_nonfinite in known,
        "make_step",
        "on_nonfinite",
        on_nonfinite,
        f"one of {', '.join(known)}",
    )
    if ema is not None:
        require_number(
            "make_step", "ema", ema, "a number in [0, 1), or None", lambda x: (x >= 0) & (x < 1)
        )
    for one in jax.tree.leaves(penalty, is_leaf=_is_infinite):
        allowed = "finite: what holds parameters within bounds is a prox, for transforms.proximal"
        require(not _is_infinite(one), "make_step", "penalty", one, allowed)
    if loss_scale is not None:
        check_loss_scale(loss_scale, on_nonfinite)
    check_monitors(monitors)
