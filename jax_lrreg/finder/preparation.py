"""The step that a test of learning rates makes, and what it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import require, require_number
from jax_lrreg.penalties import Penalty
from jax_lrreg.schedules.base import LARGEST
from jax_lrreg.training import State, make_step
from jax_lrreg.training.modules import Module
from jax_lrreg.training.state import optimizer_of
from jax_lrreg.training.step import Step

LEAST = float(np.finfo(np.float32).tiny)
Batch = optax.Params
Loss = Callable[[Callable, Batch], Any]
# The optimizer without its learning rate, or a function of the hyperparameters that makes it.
Preconditioner = (
    optax.GradientTransformation | Callable[[optax.Params], optax.GradientTransformation]
)


class _Watch(NamedTuple):
    """Whether the preconditioner's first update points along the gradient: positive if so."""

    begun: jax.Array
    agreement: jax.Array


def _watch() -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> _Watch:
        del params
        return _Watch(jnp.array(False), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None, **extra):
        del params
        # float32: the sum of squares overflows float16 beyond 65504.
        wide = (optax.tree.cast(tree, jnp.float32) for tree in (extra["grad"], updates))
        now = jnp.real(optax.tree.vdot(*wide))
        return updates, _Watch(jnp.array(True), jnp.where(state.begun, state.agreement, now))

    return optax.GradientTransformationExtraArgs(init, update)


def prepared(
    module: Module,
    loss_fn: Loss,
    preconditioner: Preconditioner,
    state: State,
    penalty: Penalty | None,
    rate: optax.ScalarOrSchedule,
) -> tuple[Step, State]:
    """The step at a learning rate, and the state with an optimizer's state for it."""

    def chained(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(tx, _watch(), optax.scale_by_learning_rate(rate))

    def from_hyper(hyper: optax.Params) -> optax.GradientTransformation:
        return chained(optimizer_of(preconditioner, hyper, "preconditioner"))

    now = optimizer_of(preconditioner, state.hyper, "preconditioner")
    tx = chained(now) if isinstance(preconditioner, optax.GradientTransformation) else from_hyper
    # "keep": what is not finite is to be seen, since it ends the test; nothing is donated, since
    # the caller keeps the state.
    options = {"penalty": penalty, "on_nonfinite": "keep", "donate": False, "monitors": ()}
    step = make_step(module, loss_fn, tx, **options)
    return step, state.replace(opt_state=chained(now).init(state.params), average=None)


def agreement(state: State) -> jax.Array:
    """The product of the first gradient and the preconditioner's first update."""
    watch: Any = state.opt_state
    return watch[1].agreement


def refuse_ascent(owner: str, agreement: float) -> None:
    """Refuses an optimizer with its learning rate in it: its minus sign would make it climb."""
    received = "one whose update opposes the gradient"
    allowed = (
        "an optimizer without its learning rate, such as optax.scale_by_adam() for optax.adam(lr)"
    )
    require(not agreement < 0, owner, "preconditioner", received, allowed)


def check_range(owner: str, state: State, low: float, high: float) -> None:
    """Refuses a wrong state or range."""
    if not isinstance(state, State):
        kind = type(state).__name__
        raise TypeError(f"{owner}: `state` must come from training.init, got {kind}")
    # Rates are float32: what is less than its least normal number is 0 to XLA, above it infinite.
    allowed = f"a positive number >= {LEAST:.3g}"
    require_number(owner, "low", low, allowed, lambda x: x >= LEAST)
    allowed = f"a number above low={low} and <= {LARGEST:.3g}"
    require_number(owner, "high", high, allowed, lambda x: (x > low) & (x <= LARGEST))
