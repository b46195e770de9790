"""What a step reports: its own names, the applied rate, and monitors by their cost."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import Leaf, is_parameter, leaves, widened
from jax_lrreg._check import require
from jax_lrreg._optax_state import GROUP
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.state import State

EACH_STEP = ("grad_norm", "update_norm")
AT_END = ("param_norm", "param_norm/*", "sparsity", "sparsity/*")
RESERVED = (
    "loss",
    "data_loss",
    "penalty",
    "learning_rate",
    "loss_scale",
    "skipped",
    "step",
    "eval_step",
    *EACH_STEP,
    *AT_END,
)
LAST = ("learning_rate", "loss_scale")  # of several steps the last one counts, not the mean


def is_reserved(name: str) -> bool:
    """Whether a metric of this name is the step's own."""
    return name in RESERVED or name.startswith((GROUP, "param_norm/", "sparsity/"))


def check_monitors(monitors: Any) -> None:
    """Refuses names that are no monitors."""
    known = (*EACH_STEP, *AT_END)
    allowed = f"a tuple of names among {', '.join(known)}"
    require(
        isinstance(monitors, tuple | list),
        "make_step",
        "monitors",
        monitors,
        allowed,
        error=TypeError,
    )
    for name in monitors:
        require(name in known, "make_step", "monitors", name, f"names among {', '.join(known)}")


def at_end(state: State, monitors: Sequence[str]) -> dict[str, jax.Array]:
    """The monitors that are read from a state, each of which costs a pass over the parameters."""
    found = [leaf for leaf in leaves(state.params) if is_parameter(leaf.value)]
    results: dict[str, jax.Array] = {}
    for name in monitors:
        if name == "param_norm":
            results[name] = norm(state.params)
        elif name == "param_norm/*":
            results |= {f"param_norm/{leaf.path}": norm(leaf.value) for leaf in found}
        elif name == "sparsity":
            results[name] = _sparsity(found)
        elif name == "sparsity/*":
            results |= {f"sparsity/{leaf.path}": _sparsity([leaf]) for leaf in found}
    return results


def norm(tree: Any) -> jax.Array:
    """The root of the sum of squares, added in float32 at least: in float16 it would overflow at 256."""
    return jnp.asarray(
        optax.tree.norm([widened(x) for x in jax.tree.leaves(tree) if is_parameter(x)])
    )


def _sparsity(found: list[Leaf]) -> jax.Array:
    """The share of exact zeros, counted in integers within an array."""
    zeros = sum(
        (jnp.sum(leaf.value == 0).astype(jnp.float32) for leaf in found), start=jnp.zeros(())
    )
    return zeros / max(1, sum(jnp.size(leaf.value) for leaf in found))


def applied_rate(learning_rate: Any, hyper: Any, count: jax.Array) -> jax.Array:
    """What the schedule, or `hyper -> schedule`, gives at the optimizer's count."""
    if callable(learning_rate) and not isinstance(learning_rate, Schedule) and hyper is not None:
        try:
            learning_rate = learning_rate(hyper)
        except Exception as error:
            error.add_note(
                "make_step: `learning_rate` was called with the hyperparameters of the state; wrap a function of the "
                "step, such as Optax's schedules, in schedules.Function"
            )
            raise
    value = learning_rate(count) if callable(learning_rate) else learning_rate
    return jnp.asarray(value, jnp.float32)


def nonfinite_message(step: int, metrics: Any) -> str:
    """What went wrong in an update that was not finite."""
    names = ("loss", "data_loss", "penalty", "grad_norm")
    texts = [f"{name}={float(metrics[name]):g}" for name in names if name in metrics]
    return f"the update at step {step} is not finite ({', '.join(texts)}); the state before it was kept"


def culprit(metrics: Any) -> str:
    """A hint for the case that neither the loss nor the gradient is to blame."""
    if (
        "grad_norm" not in metrics
        or not math.isfinite(metrics["loss"])
        or not math.isfinite(metrics["grad_norm"])
    ):
        return ""
    return (
        "; loss and gradient are finite, so it is the optimizer: D-Adaptation and Prodigy divide 0 by 0 while the "
        "learning rate is 0 or after a first gradient of 0"
    )
