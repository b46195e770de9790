"""The step that a test of learning rates makes, and what it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import require, require_number
from jax_lrreg.training import State, make_step
from jax_lrreg.training.state import resolve


class _Watch(NamedTuple):
    """Whether the preconditioner's first update points along the gradient: positive if so."""

    begun: jax.Array
    agreement: jax.Array


def _watch() -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> _Watch:
        del params
        return _Watch(jnp.array(False), jnp.zeros((), jnp.float32))

    def update(
        updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra: Any
    ) -> tuple[Any, _Watch]:
        del params, extra
        now = optax.tree.vdot(
            optax.tree.cast(grad, jnp.float32), optax.tree.cast(updates, jnp.float32)
        )
        return updates, _Watch(
            jnp.array(True), jnp.where(state.begun, state.agreement, jnp.real(now))
        )

    return optax.GradientTransformationExtraArgs(init, update)


def prepared(
    module: Any,
    loss_fn: Any,
    preconditioner: Any,
    state: State,
    penalty: Any,
    rate: Callable[[], Any],
) -> tuple[Any, State]:
    """The step with the learning rate that `rate` makes, and the state with an optimizer's state for it."""

    def chained(transformation: Any) -> Any:
        return optax.chain(transformation, _watch(), rate())

    plain = isinstance(preconditioner, optax.GradientTransformation)
    transformation = resolve(preconditioner, state.hyper, "preconditioner")
    tx = chained(transformation) if plain else lambda hyper: chained(preconditioner(hyper))
    step = make_step(
        module, loss_fn, tx, penalty=penalty, on_nonfinite="keep", donate=False, monitors=()
    )
    return step, state.replace(opt_state=chained(transformation).init(state.params), ema=None)


def refuse_ascent(owner: str, agreement: float) -> None:
    """An optimizer with its learning rate in it has the minus sign already, and would climb here."""
    require(
        not agreement < 0,
        owner,
        "preconditioner",
        "one whose update opposes the gradient",
        "an optimizer without its learning rate, such as optax.scale_by_adam() for optax.adam(lr)",
    )


def check(owner: str, state: Any, low: Any, high: Any, count: Any, least: int, name: str) -> None:
    """Refuses a wrong state, range or number of rates."""
    if not isinstance(state, State):
        raise TypeError(
            f"{owner}: `state` must come from training.init, got {type(state).__name__}"
        )
    require_number(owner, "low", low, "a positive number", lambda x: x > 0)
    require_number(owner, "high", high, f"a number above low={low}", lambda x: x > low)
    require(whole(count, least), owner, name, count, f"a whole number >= {least}")


def whole(value: Any, least: int) -> bool:
    """Whether `value` is a whole number and not below `least`."""
    return (
        isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
    )
