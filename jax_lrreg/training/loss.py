"""The loss of a step: what a `loss_fn` is given and returns, and the penalty that is added."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jax_lrreg._arrays import LAST_STEP, widened
from jax_lrreg._check import require
from jax_lrreg.penalties import Penalty
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.metrics import Metrics, is_reserved
from jax_lrreg.training.modules import Model
from jax_lrreg.training.state import Hyper, is_function, made_of
from jax_lrreg.transforms.penalty import require_finite

LossFn = Callable[..., Any]  # (model, batch[, now]) -> loss, or (loss, {name: scalar})
PenaltyLike = Penalty | Callable[[Any], Penalty]
PENALTY = "make_step: `penalty` must be a Penalty or a function hyper -> Penalty"


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
        # They cannot have been written for `now`, which is ours.
        return False
    every = [(p.kind, p.default is p.empty) for p in signature.parameters.values()]
    kinds = inspect.Parameter
    placed = [
        need for kind, need in every if kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    fits = sum(placed) <= 3 and (len(placed) >= 2 or (kinds.VAR_POSITIONAL, True) in every)
    fits = fits and (kinds.KEYWORD_ONLY, True) not in every
    allowed = "a function of (model, batch) or (model, batch, now)"
    require(fits, "make_step", "loss_fn", signature, allowed, TypeError)
    return sum(placed) == 3


def called(loss_fn: LossFn, model: Model, batch: Batch, now: Now) -> Any:
    """What a `loss_fn` of two or three arguments returns."""
    if not takes_now(loss_fn):
        return loss_fn(model, batch)
    # Small numbers are folded into the keys of the module's own streams.
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


def check_penalty(penalty: PenaltyLike | None) -> None:
    """Refuses what is no penalty, and one that is infinite somewhere."""
    if isinstance(penalty, Penalty):
        require_finite("make_step", penalty)
    elif penalty is not None and not is_function(penalty):
        raise TypeError(f"{PENALTY}, got {penalty!r}")


def penalty_of(penalty: PenaltyLike | None, hyper: Hyper | None) -> Penalty | None:
    """The penalty as it is, or made of the hyperparameters."""
    if penalty is None or isinstance(penalty, Penalty):
        return penalty
    made = made_of(penalty, hyper, Penalty, "penalty", PENALTY)
    require_finite("make_step", made)
    return made
