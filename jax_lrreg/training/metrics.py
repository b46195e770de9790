"""What a step reports: its names, what `loss_fn` returns, the applied rate, and monitors."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import LAST_STEP, Leaf, is_parameter, known, leaves, widened
from jax_lrreg._check import require, require_choice, require_number
from jax_lrreg._optax_state import GROUP, applied_rate, applied_scales
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.state import Hyper, State, is_function
from jax_lrreg.transforms.learning_rate import require_one
from jax_lrreg.transforms.recognition import require_own_rate, runs_alone

Metrics = dict[str, jax.Array]  # scalars by name, on the device
Rate = chex.Numeric | Callable[[Any], Any]  # a number, a schedule, or a function of hyper to either

EACH_STEP = ("grad_norm", "update_norm")
AT_END = ("param_norm", "param_norm/*", "sparsity", "sparsity/*")
LOSSES = ("loss", "data_loss", "penalty")
LAST = ("learning_rate", "loss_scale")  # of several steps the last one counts, not the mean
COUNTS = ("spikes",)  # of several steps the sum counts, skipped ones too
GROUPS = "learning_rate/"  # begins the names of the rates of rules
RESERVED = (*LOSSES, *LAST, *COUNTS, "skipped", "step", "eval_step", *EACH_STEP, *AT_END)


def is_reserved(name: str) -> bool:
    """Whether a metric of this name is the step's own."""
    return name in RESERVED or name.startswith((GROUP, GROUPS, "param_norm/", "sparsity/"))


def check_monitors(monitors: Sequence[str]) -> None:
    """Refuses names that are no monitors."""
    names = (*EACH_STEP, *AT_END)
    listed, allowed = (
        isinstance(monitors, tuple | list),
        f"a tuple of names among {', '.join(names)}",
    )
    require(listed, "make_step", "monitors", monitors, allowed, error=TypeError)
    for name in monitors:
        require_choice("make_step", "monitors", name, names)


class Now(NamedTuple):
    """What a `loss_fn` of three arguments gets as its third.

    Attributes:
        step: int32, the number of the update by the optimizer's own count, which its schedules see.
        key: a PRNG key of this update and micro-batch.
    """

    step: jax.Array
    key: chex.PRNGKey


def takes_now(loss_fn: Callable) -> bool:
    """Whether a `loss_fn` has a third argument without a default; refuses any other number."""
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # some callables written in C have none
        return False
    kinds = inspect.Parameter
    every = list(signature.parameters.values())
    placed = [p for p in every if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in placed if p.default is kinds.empty]
    more = any(p.kind is kinds.VAR_POSITIONAL for p in every)
    named = any(p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty for p in every)
    fits = len(needed) <= 3 and (len(placed) >= 2 or more) and not named
    allowed = "a function of (model, batch) or (model, batch, now)"
    require(fits, "make_step", "loss_fn", signature, allowed, TypeError)
    return len(needed) == 3


def called(loss_fn: Callable, model: Callable, batch: Batch, now: Now) -> Any:
    """What a `loss_fn` of two or three arguments returns."""
    if not takes_now(loss_fn):
        return loss_fn(model, batch)
    # Small numbers are folded into the keys of the module's streams.
    return loss_fn(model, batch, now._replace(key=jax.random.fold_in(now.key, LAST_STEP)))


def loss_and_metrics(output: Any) -> tuple[jax.Array, Metrics]:
    """The loss, in float32 at least, and the metrics, of what a `loss_fn` returned."""
    loss, named = output if isinstance(output, tuple) and len(output) == 2 else (output, {})
    allowed = "a function that returns a real scalar"
    try:
        loss = jnp.asarray(loss)
    except (TypeError, ValueError):
        raise TypeError(f"make_step: `loss_fn` must be {allowed}, got {loss!r}") from None
    scalar = loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
    require(scalar, "make_step", "loss_fn", f"{loss.dtype}{list(loss.shape)}", allowed)
    allowed = "(loss, {name: scalar})"
    require(isinstance(named, dict), "make_step", "loss_fn", type(named).__name__, allowed)
    return widened(loss), {name: _metric(name, named[name]) for name in named}


def _metric(name: Any, value: Any) -> jax.Array:
    free = isinstance(name, str) and not is_reserved(name)
    require(free, "make_step", "loss_fn", name, "metrics by other names than the step's own")
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        allowed = f"make_step: metric {name!r} of `loss_fn` must be an array"
        raise TypeError(f"{allowed}, got {value!r}") from None
    real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    text = f"{value.dtype}{list(value.shape)}"
    require(value.ndim == 0 and real, "make_step", f"loss_fn: {name}", text, "a scalar, and real")
    return value


def check_rate(rate: Rate | None) -> None:
    """Refuses what is no rate: an array, which would be broadcast, or another object of ours."""
    allowed = "a number >= 0, a schedule or a function hyper -> either"
    if isinstance(rate, Schedule):
        require_one("make_step", "learning_rate", rate(0))
    elif rate is not None and not is_function(rate):
        require_number("make_step", "learning_rate", rate, allowed, lambda x: x >= 0)
        require_one("make_step", "learning_rate", rate)


def refuse_other_rate(tx: Any, rate: Rate | None, params: optax.Params | None = None) -> None:
    """Refuses a rate that is not the optimizer's, where that can be seen; all else is trusted.

    Without `params` it can be seen in an optimizer that treats all parameters alike; with them, in
    the others.
    """
    plain = not callable(rate) or isinstance(rate, Schedule)
    if rate is None or not plain or not isinstance(tx, optax.GradientTransformation):
        return
    used = rate if callable(rate) else lambda _: rate
    if known(*jax.tree.leaves(rate)) and (params is None or not runs_alone(tx)):
        require_own_rate("make_step", tx, used, params)


def given_rate(rate: Rate | None, hyper: Hyper | None, count: jax.Array) -> jax.Array | None:
    """What the schedule, or `hyper -> schedule`, of `make_step` gives at the optimizer's count."""
    if rate is None:
        return None
    if callable(rate) and not isinstance(rate, Schedule) and hyper is not None:
        try:
            rate = rate(hyper)
        except Exception as error:
            error.add_note(
                "make_step: `learning_rate` was called with the state's hyperparameters; wrap a "
                "function of the step, such as Optax's schedules, in schedules.Function"
            )
            raise
        check_rate(rate)
    return jnp.asarray(rate(count) if callable(rate) else rate, jnp.float32)


def rates(opt_state: optax.OptState, given: jax.Array | None) -> Metrics:
    """The learning rate as applied, and the scales of controllers in groups of parameters.

    The rate in the state counts before the one that was given: it may have been edited there.
    """
    scales, held = applied_scales(opt_state), applied_rate(opt_state)
    found = {name: scale for name, scale in scales.items() if name}
    rate = given if held is None else held
    return found if rate is None else {"learning_rate": rate * scales.get("", 1.0), **found}


def rates_of_rules(tables: Sequence[Any], metrics: Metrics, count: jax.Array) -> Metrics:
    """The applied rate of each rule of `transforms.scale_by_rules`: `learning_rate/<pattern>`.

    Of a factor for each of several stacked layers it is the mean.
    """
    if "learning_rate" not in metrics:
        return {}
    found: Metrics = {}
    for table in tables:
        pairs = (
            zip(table.patterns, table.factors, strict=True) if hasattr(table, "patterns") else ()
        )
        for pattern, factor in pairs:
            factor = jnp.mean(jnp.asarray(factor(count) if callable(factor) else factor))
            name = f"{GROUPS}{pattern}"
            found[name] = found.get(name, metrics["learning_rate"]) * factor
    return found


def at_end(state: State, monitors: Sequence[str]) -> Metrics:
    """The monitors that are read from a state, each of which costs a pass over the parameters."""
    found = [leaf for leaf in leaves(state.params) if is_parameter(leaf.value)]
    results: Metrics = {}
    for name in monitors:
        measure = {"param_norm": _norm_of, "sparsity": _sparsity}.get(name.removesuffix("/*"))
        if measure is not None and name.endswith("/*"):
            results |= {f"{name[:-1]}{leaf.path}": measure([leaf]) for leaf in found}
        elif measure is not None:
            results[name] = measure(found)
    return results


def norm(tree: optax.Params) -> jax.Array:
    """The root of the sum of squares, in float32 at least: float16 would overflow at 256."""
    wide = [widened(x) for x in jax.tree.leaves(tree) if is_parameter(x)]
    return jnp.asarray(optax.tree.norm(wide))


def _norm_of(found: list[Leaf]) -> jax.Array:
    return norm([leaf.value for leaf in found])


def _sparsity(found: list[Leaf]) -> jax.Array:
    """The share of exact zeros, counted in integers: float32 counts by ones up to 2^24 only."""
    zeros = (jnp.sum(leaf.value == 0).astype(jnp.float32) for leaf in found)
    return sum(zeros, start=jnp.zeros(())) / max(1, sum(jnp.size(leaf.value) for leaf in found))


def nonfinite_message(step: int, metrics: Mapping[str, chex.Numeric]) -> str:
    """What went wrong in an update that was not finite, and what is not to blame."""
    values = {name: float(metrics[name]) for name in (*LOSSES, "grad_norm") if name in metrics}
    texts = ", ".join(f"{name}={value:g}" for name, value in values.items())
    text = f"the update at step {step} is not finite ({texts}); the state before it was kept"
    if "grad_norm" in values and all(map(math.isfinite, values.values())):
        text += (
            "; loss and gradient are finite, so it is the optimizer: D-Adaptation and Prodigy "
            "divide 0 by 0 while the "
            "learning rate is 0 or after a first gradient of 0, others have a rate or a decay that "
            "is NaN or too large. Or it is the model's own state, such as a variance that overflows"
        )
    return text
