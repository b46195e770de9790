"""One jitted update: loss, penalty, gradient, optimizer, and the metrics of exactly this update."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._struct import require, require_number
from jax_lrreg.penalties import Penalty
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.control import GROUP, applied_scales
from jax_lrreg.training.guard import is_sound, kept
from jax_lrreg.training.modules import adapt
from jax_lrreg.training.state import State, resolve

Metrics = dict[str, jax.Array]
RESERVED = (
    "loss",
    "data_loss",
    "penalty",
    "learning_rate",
    "grad_norm",
    "param_norm",
    "update_norm",
    "skipped",
    "step",
)
MONITORS = ("grad_norm", "param_norm", "update_norm")


class Step:
    """A compiled update `step(state, batch) -> (state, metrics)`; made by `make_step`.

    Attributes:
        body: the same as a pure function, not compiled and without donation, for your own `scan` or `vmap`.
        on_nonfinite: what happens to an update that is not finite.
    """

    def __init__(self, body: Callable, donate: bool, on_nonfinite: str, ema: bool):
        self.body = jax.jit(body)  # traced once, also where a loop calls it
        self.on_nonfinite = on_nonfinite
        self.donate = donate
        self.programs: dict[str, Any] = {}
        self._ema = ema
        self._call = jax.jit(self.body, donate_argnums=0 if donate else ())

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]:
        """One update. The given state is donated: go on with the one returned."""
        state, metrics = self._call(self.prepare(state), batch)
        if self.on_nonfinite == "raise" and metrics["skipped"]:
            raise FloatingPointError(nonfinite_message(int(state.step) - 1, metrics) + _culprit(metrics))
        return state, metrics

    def prepare(self, state: State) -> State:
        """The state with the fields that this step needs: its average of parameters, from the first call on."""
        if self._ema and state.ema is None:
            return state.replace(ema=jax.tree.map(jnp.copy, state.params))
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
            scale of the controllers in `tx`, which are `transforms.scale_by_controller` and `hypergradient`.
            Those in a group of `optax.partition` are reported apart, as `metrics["scale/<label>"]`.
        accumulate: into how many micro-batches a batch is split; their gradients are averaged in float32,
            weighted by the sum of `batch["mask"]` where the batch has one. It is one update.
        on_nonfinite: for a loss or gradient that is not finite: "skip" leaves parameters, optimizer, model
            state and average as they were; "raise" does so and raises; "keep" goes on regardless. Where an
            optimizer that estimates its own step size divides 0 by 0, as D-Adaptation and Prodigy do while
            the learning rate is 0, all the same is done but the optimizer's counters go on, since it is
            their schedule that leads out of there.
        ema: decay of a moving average of the parameters, in [0, 1), or None.
        donate: whether the memory of the given state is reused for the new one.
        monitors: norms to report, of "grad_norm", "param_norm" and "update_norm".

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
    _check_arguments(penalty, accumulate, on_nonfinite, ema, monitors)

    def body(state: State, batch: Any) -> tuple[State, Metrics]:
        optimizer = resolve(tx, state.hyper, "tx")
        term = penalty if penalty is None or isinstance(penalty, Penalty) else penalty(state.hyper)
        count = update_count(state)
        key = jax.random.fold_in(state.key, state.step)

        def data_loss_of(params: Any, model_state: Any, micro: Any, key: jax.Array) -> Any:
            bound = adapter.bind(params, model_state, key)
            loss, named = _checked_loss(loss_fn(bound.model, micro))
            return loss, (named, bound.model_state())

        def penalty_of(params: Any) -> jax.Array:
            return jnp.zeros(()) if term is None else term(params, count)

        gradient = jax.value_and_grad(data_loss_of, has_aux=True)
        if accumulate == 1:
            (data_loss, (named, model_state)), grads = gradient(state.params, state.model_state, batch, key)
        else:
            data_loss, named, model_state, grads = _accumulated(gradient, state, batch, key, accumulate)
        cost = penalty_of(state.params)
        if term is not None:
            grads = jax.tree.map(lambda g, p: g + p.astype(g.dtype), grads, term.gradient(state.params, count))
        loss = data_loss + cost.astype(data_loss.dtype)
        grad_norm = optax.tree.norm(grads)

        def value_fn(params: Any) -> jax.Array:
            return data_loss_of(params, state.model_state, batch, key)[0] + penalty_of(params)

        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=loss, grad=grads, value_fn=value_fn
        )
        new = state.replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state, model_state=model_state
        )
        if ema is not None:
            new = new.replace(
                ema=jax.tree.map(lambda a, p: ema * a + (1 - ema) * p.astype(a.dtype), state.ema, new.params)
            )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if on_nonfinite != "keep":
            sound = finite & is_sound(updates, opt_state, state.opt_state)
            new, finite = kept(finite, sound, new, state), sound
        norms = {"grad_norm": grad_norm}
        if "param_norm" in monitors:
            norms["param_norm"] = optax.tree.norm(state.params)
        if "update_norm" in monitors:
            norms["update_norm"] = optax.tree.norm(updates)
        scales = applied_scales(new.opt_state)
        metrics = {"loss": loss, "data_loss": data_loss, "penalty": cost}
        if learning_rate is not None:
            metrics["learning_rate"] = _applied(learning_rate, state.hyper, count) * scales.pop("", 1.0)
        metrics |= {name: scale for name, scale in scales.items() if name}
        metrics |= {name: norms[name] for name in monitors}
        metrics["skipped"] = jnp.zeros((), jnp.int32) if on_nonfinite == "keep" else 1 - finite.astype(jnp.int32)
        return new.replace(step=optax.safe_increment(state.step)), metrics | named

    return Step(body, donate, on_nonfinite, ema is not None)


def update_count(state: State) -> jax.Array:
    """The optimizer's own count of the updates it has made: what its schedules see in this update.

    It differs from `state.step` where updates were skipped, or where several steps make one update.
    """
    found: dict[str, jax.Array] = {}

    def look(node: Any) -> None:
        if hasattr(node, "_fields"):
            for name in ("count", "gradient_step", "step_count"):
                if name in node._fields and jnp.ndim(getattr(node, name)) == 0:
                    kind = "schedule" if type(node).__name__ == "ScaleByScheduleState" else name
                    found.setdefault(kind, getattr(node, name))
        if isinstance(node, tuple | list):
            for child in node:
                look(child)
        elif isinstance(node, dict):
            for child in node.values():
                look(child)

    look(state.opt_state)
    for kind in ("schedule", "gradient_step", "count", "step_count"):
        if kind in found:
            return found[kind]
    return state.step


class _Sums(NamedTuple):
    weight: jax.Array
    values: Any  # loss, metrics and gradients, in float32


def _accumulated(gradient: Callable, state: State, batch: Any, key: jax.Array, accumulate: int) -> Any:
    """Loss, metrics, model state and gradient of a batch, micro-batch after micro-batch."""

    def split(x: jax.Array) -> jax.Array:
        size = jnp.shape(x)[0] if jnp.ndim(x) else 0
        if size == 0 or size % accumulate:
            raise ValueError(f"make_step: `accumulate`={accumulate} must divide the batch, got {size} examples")
        return jnp.reshape(x, (accumulate, size // accumulate, *jnp.shape(x)[1:]))

    micro_batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shape, grad_shape = jax.eval_shape(gradient, state.params, state.model_state, first, key)
    (loss_shape, (named_shape, _)) = shape
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, _accumulator(x.dtype)), (loss_shape, named_shape, grad_shape))

    def one(carry: tuple[_Sums, Any], item: Any) -> tuple[tuple[_Sums, Any], None]:
        sums, model_state = carry
        index, micro = item
        (loss, (named, model_state)), grads = gradient(state.params, model_state, micro, jax.random.fold_in(key, index))
        weight = jnp.sum(micro["mask"], dtype=jnp.float32) if isinstance(micro, dict) and "mask" in micro else 1.0
        values = jax.tree.map(lambda s, x: s + weight * x.astype(s.dtype), sums.values, (loss, named, grads))
        return (_Sums(sums.weight + weight, values), model_state), None

    start = (_Sums(jnp.zeros(()), zero), state.model_state)
    (sums, model_state), _ = jax.lax.scan(one, start, (jnp.arange(accumulate), micro_batches))
    mean = jax.tree.map(
        lambda s, x: (s / sums.weight).astype(x.dtype), sums.values, (loss_shape, named_shape, grad_shape)
    )
    loss, named, grads = mean
    return loss, named, model_state, grads


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _applied(learning_rate: Any, hyper: Any, count: jax.Array) -> jax.Array:
    if callable(learning_rate) and not isinstance(learning_rate, Schedule) and hyper is not None:
        learning_rate = learning_rate(hyper)
    value = learning_rate(count) if callable(learning_rate) else learning_rate
    return jnp.asarray(value, jnp.float32)


def _checked_loss(output: Any) -> tuple[jax.Array, Metrics]:
    loss, named = output if isinstance(output, tuple) and len(output) == 2 else (output, {})
    loss = jnp.asarray(loss)
    scalar = loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
    require(scalar, "make_step", "loss_fn", f"{loss.dtype}{list(loss.shape)}", "a function that returns a real scalar")
    require(isinstance(named, dict), "make_step", "loss_fn", type(named).__name__, "(loss, {name: scalar})")
    metrics = {}
    for name, value in named.items():
        free = name not in RESERVED and not name.startswith(GROUP)
        require(free, "make_step", "loss_fn", name, "metrics by other names than the step's own")
        try:
            value = jnp.asarray(value)
        except TypeError:
            raise TypeError(f"make_step: metric {name!r} of `loss_fn` must be an array, got {value!r}") from None
        require(value.ndim == 0, "make_step", f"loss_fn: {name}", list(value.shape), "a scalar")
        metrics[name] = value
    return loss, metrics


def _check_arguments(penalty: Any, accumulate: Any, on_nonfinite: Any, ema: Any, monitors: Any) -> None:
    if penalty is not None and not callable(penalty):
        raise TypeError(f"make_step: `penalty` must be a Penalty or a function hyper -> Penalty, got {penalty!r}")
    whole = isinstance(accumulate, int) and not isinstance(accumulate, bool) and accumulate >= 1
    require(whole, "make_step", "accumulate", accumulate, "a whole number >= 1")
    known = ("skip", "raise", "keep")
    require(on_nonfinite in known, "make_step", "on_nonfinite", on_nonfinite, f"one of {', '.join(known)}")
    if ema is not None:
        require_number("make_step", "ema", ema, "a number in [0, 1), or None", lambda x: (x >= 0) & (x < 1))
    for name in monitors:
        require(name in MONITORS, "make_step", "monitors", name, f"names among {', '.join(MONITORS)}")


def nonfinite_message(step: int, metrics: Any) -> str:
    """What went wrong in an update that was not finite."""
    texts = [
        f"{name}={float(metrics[name]):g}" for name in ("loss", "data_loss", "penalty", "grad_norm") if name in metrics
    ]
    return f"the update at step {step} is not finite ({', '.join(texts)}); the state before it was kept"


def _culprit(metrics: Any) -> str:
    """A hint for the case that neither the loss nor the gradient is to blame."""
    if "grad_norm" not in metrics or not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["grad_norm"]):
        return ""
    return (
        "; loss and gradient are finite, so it is the optimizer: D-Adaptation and Prodigy divide 0 by 0 while the "
        "learning rate is 0 or after a first gradient of 0"
    )
