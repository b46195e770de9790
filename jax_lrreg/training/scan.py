"""The pure loop: the steps of `fit` as a function, for `jit`, `vmap` and `grad` to go through."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._arrays import LAST_STEP, known
from jax_lrreg._check import require_whole
from jax_lrreg._optax_state import listen
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.data import ArrayData
from jax_lrreg.training.mesh import around
from jax_lrreg.training.metrics import Metrics
from jax_lrreg.training.program import place_of
from jax_lrreg.training.sources import HERE, require_same, source_of
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step


def scan(
    step: Step,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    steps: int,
    checkpoint: int | None = None,
) -> tuple[State, Metrics]:
    """Makes `steps` steps as one pure function, which may be compiled, batched and differentiated.

    They are the steps of `fit`, on the same batches. Nothing is donated, saved, printed or raised
    on the way: an update that is not finite is skipped or kept, as the step was made.

    Args:
        step: from `make_step`. It may be made of traced numbers, inside the function.
        state: from `init`, or from an earlier run.
        data: an `ArrayData`, whose batch is found by `state.step`, or any iterable of batches, of
            which the first `steps` are drawn and held in memory.
        steps: how many steps to make.
        checkpoint: for gradients in reverse mode, which keep what each step has computed: the
            states after every so many steps are kept instead, and the steps between are made a
            second time. The square root of `steps` takes least memory.

    Returns:
        The state, and the metrics of each step, arrays of shape (steps,).

    Raises:
        TypeError: `step` is not from `make_step`, or `state` not from `init`.
        ValueError: `steps` or `checkpoint` is no whole number >= 1, the data ends early, or the
            state is that of several runs: put `scan` into `jax.vmap`, or see `sweeps.run`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> loss_fn = lambda model, batch: jnp.mean((model(batch) - 1) ** 2)
        >>> data = training.ArrayData(jnp.eye(2), batch_size=2, key=jax.random.key(1))
        >>> def last_loss(rate):
        ...     tx = optax.sgd(rate)
        ...     state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        ...     step = training.make_step(apply, loss_fn, tx)
        ...     return training.scan(step, state, data, steps=20)[1]["loss"][-1]
        >>> print(jax.vmap(last_loss)(jnp.array([0.0, 0.5])).round(4))
        [1. 0.]
        >>> bool(jax.grad(last_loss)(0.1) < 0)
        True
    """
    if not isinstance(step, Step):
        raise TypeError(f"scan: `step` must come from make_step, got {step!r}")
    steps = require_whole("scan", "steps", steps, most=LAST_STEP)
    size = None if checkpoint is None else require_whole("scan", "checkpoint", checkpoint)
    state = step.complete(state)
    # As in `fit` without `control_on`, controllers hear each update's loss.
    state = state.replace(opt_state=listen(state.opt_state, external=False))
    # A carry keeps its types, and a Python number's is weak.
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
    with around(state, "scan"):
        return _scanned(step, state, data, steps, size)


def _scanned(
    step: Step, state: State, data: ArrayData | Iterable[Batch], steps: int, size: int | None
) -> tuple[State, Metrics]:
    """The steps of a state that can be carried, whose mesh is active."""
    # Of several processes each gives its own rows, as in `fit`.
    several = jax.process_count() > 1 and known(state.step)
    source = source_of(data, "scan", steps, place_of(state, "scan") if several else HERE)
    if isinstance(data, ArrayData):
        rows: Any = data.order(state.step, steps)
    else:
        require_same(source, source.example(0), 0, "scan")
        rows = source.payload(0, steps, steps)

    def one(state: State, row: Any) -> tuple[State, Metrics]:
        state, metrics = step.body(state, source.gather(source.arrays, row))
        return state, metrics | step.at_end(state)

    def many(state: State, rows: Any) -> tuple[State, Metrics]:
        return jax.lax.scan(one, state, rows)

    if size is None or size >= steps:
        return many(state, rows) if size is None else jax.checkpoint(many)(state, rows)
    # Whole pieces in a loop around the loop, and what is left over in one more.
    whole = steps // size
    head = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), rows)
    state, metrics = jax.lax.scan(jax.checkpoint(many), state, head)
    metrics = jax.tree.map(lambda x: x.reshape(whole * size, *x.shape[2:]), metrics)
    if whole * size == steps:
        return state, metrics
    state, rest = jax.checkpoint(many)(state, jax.tree.map(lambda x: x[whole * size :], rows))
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), metrics, rest)
