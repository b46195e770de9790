"""What a step reports: its names, what `loss_fn` returns, the applied rate, and monitors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import Leaf, is_parameter, known, leaves, widened
from jax_lrreg._check import require, require_choice, require_number
from jax_lrreg._optax_state import GROUP, applied_rate, applied_scales
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.state import Hyper, State, is_function
from jax_lrreg.transforms.learning_rate import require_one
from jax_lrreg.transforms.recognition import require_own_rate, runs_alone

Metrics = dict[str, jax.Array]  # scalars by name, on the device
Rate = chex.Numeric | Callable[[Any], Any]  # a number, a schedule, or a function of hyper to either

NORMS = ("grad_norm", "update_norm")
EACH_STEP = (*NORMS, "noise_scale")
AT_END = ("param_norm", "param_norm/*", "sparsity", "sparsity/*")
LOSSES = ("loss", "data_loss", "penalty")
LAST = (
    "learning_rate",
    "loss_scale",
    "noise_scale",
)  # of several steps the last one counts, not the mean
COUNTS = ("spikes",)  # of several steps the sum counts, skipped ones too
GROUPS = "learning_rate/"  # begins the names of the rates of rules
RESERVED = (
    *LOSSES,
    *LAST,
    *COUNTS,
    "examples",
    "skipped",
    "step",
    "eval_step",
    *EACH_STEP,
    *AT_END,
)


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
