"""What a loss function returned, looked at before anything is computed; and the loss times a scale."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._arrays import widened
from jax_lrreg._check import require
from jax_lrreg.training.report import is_reserved


def checked(output: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, in float32 at least, and the metrics, of what `loss_fn` returned."""
    loss, named = output if isinstance(output, tuple) and len(output) == 2 else (output, {})
    try:
        loss = jnp.asarray(loss)
    except (TypeError, ValueError):
        raise TypeError(
            f"make_step: `loss_fn` must be a function that returns a real scalar, got {loss!r}"
        ) from None
    scalar = loss.ndim == 0 and jnp.issubdtype(loss.dtype, jnp.floating)
    require(
        scalar,
        "make_step",
        "loss_fn",
        f"{loss.dtype}{list(loss.shape)}",
        "a function that returns a real scalar",
    )
    require(
        isinstance(named, dict),
        "make_step",
        "loss_fn",
        type(named).__name__,
        "(loss, {name: scalar})",
    )
    return widened(loss), {name: _metric(name, named[name]) for name in named}


def _metric(name: Any, value: Any) -> jax.Array:
    free = isinstance(name, str) and not is_reserved(name)
    require(free, "make_step", "loss_fn", name, "metrics by other names than the step's own")
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"make_step: metric {name!r} of `loss_fn` must be an array, got {value!r}"
        ) from None
    real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    text = f"{value.dtype}{list(value.shape)}"
    require(value.ndim == 0 and real, "make_step", f"loss_fn: {name}", text, "a scalar, and real")
    return value


def scaled_gradient(objective: Callable, loss_scale: Any) -> Callable:
    """`jax.value_and_grad(objective, has_aux=True)`, by way of the loss times a scale.

        gradient = gradient of (scale * loss) / scale

    divided in float32, so that what would be 0 in float16 is not. Without a scale it is the gradient as it is.
    """
    if loss_scale is None:
        return jax.value_and_grad(objective, has_aux=True)

    def scaled(params: Any, *rest: Any) -> tuple[jax.Array, Any]:
        loss, extra = objective(params, *rest)
        return loss * loss_scale.scale, (loss, extra)

    def gradient(params: Any, *rest: Any) -> Any:
        (_, value), grads = jax.value_and_grad(scaled, has_aux=True)(params, *rest)
        return value, jax.tree.map(lambda g: widened(g) / loss_scale.scale, grads)

    return gradient


def adapted(loss_scale: Any, finite: jax.Array) -> Any:
    """The scale after an update: its own rule, asked with a gradient of one number that is finite or not.

    Its rule is inside its `value_and_grad`, which would read every gradient once more to see what is known here.
    """
    witness = jnp.where(finite, 0.0, jnp.nan)
    return loss_scale.value_and_grad(lambda x: x * witness)(jnp.ones(())).dynamic_scale


def check_loss_scale(loss_scale: Any, on_nonfinite: str) -> None:
    """Refuses what is no scale of Flax's kind, and a step that does not skip."""
    if not (hasattr(loss_scale, "scale") and callable(getattr(loss_scale, "value_and_grad", None))):
        raise TypeError(
            f"make_step: `loss_scale` must be a flax.training.dynamic_scale.DynamicScale or None, got {loss_scale!r}"
        )
    allowed = "'skip' where `loss_scale` is given: it is found by skipping the updates for which it is too large"
    require(on_nonfinite == "skip", "make_step", "on_nonfinite", on_nonfinite, allowed)
