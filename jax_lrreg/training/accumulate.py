"""One batch as several micro-batches: the same update in less memory."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import LAST_STEP, known, widened
from jax_lrreg._check import require, require_whole
from jax_lrreg.schedules import Schedule
from jax_lrreg.training.batch import Batch
from jax_lrreg.training.mesh import micro_batches
from jax_lrreg.training.modules import ModelState


class Sums(NamedTuple):
    """What has been added up so far."""

    weight: jax.Array
    values: optax.Params  # loss, metrics and gradient, in float32 at least


def accumulated(
    gradient: Callable,
    params: optax.Params,
    model_state: ModelState,
    batch: Batch,
    key: chex.PRNGKey,
    accumulate: int,
    used: jax.Array | None = None,
) -> Any:
    """The loss with metrics and model state, and the gradient, of a batch in `accumulate` pieces.

        gradient = sum over micro-batches of weight * gradient / sum of weights

    with the weight of a micro-batch the sum of its `mask`, and 1 where the batch has none. What has
    no weight touches nothing, neither a sum nor the model state, also where it is not a number. The
    sums are kept in float32 at least, and so is the gradient; the model state goes from one
    micro-batch to the next.

    Args:
        gradient: `(params, model_state, batch, key) -> (loss, (metrics, model_state)), gradient`.
        params: of the model.
        model_state: before the first micro-batch.
        batch: a tree of arrays with the examples along axis 0; scalars and keys are in every
            micro-batch.
        key: micro-batch `i` gets `fold_in(key, i)`.
        accumulate: how many micro-batches: of neighbours, and on a mesh every so-manieth row.
        used: how many of them, from the first on, are used; None for all.
    """
    if accumulate == 1:
        return gradient(params, model_state, batch, key)
    leaves, structure = jax.tree.flatten(batch)
    examples = {i: x for i, x in enumerate(leaves) if jnp.ndim(x)}
    size = max((jnp.shape(x)[0] for x in examples.values()), default=0)
    if size == 0 or size % accumulate:
        allowed = f"`accumulate`={accumulate} must divide the batch"
        raise ValueError(f"make_step: {allowed}, got {size} examples")
    split = {i: micro_batches(jnp.asarray(x), accumulate) for i, x in examples.items()}

    def micro_batch(pieces: dict[int, jax.Array]) -> Batch:
        return jax.tree.unflatten(structure, [pieces.get(i, x) for i, x in enumerate(leaves)])

    gradient = jax.jit(gradient)  # traced once, for the shapes and for the loop
    first = micro_batch({i: x[0] for i, x in split.items()})
    trace = gradient.trace(params, model_state, first, key)
    (loss, (named, _)), grads = trace.out_info
    zeros = jax.tree.map(lambda x: widened(jnp.zeros(x.shape, x.dtype)), (loss, named, grads))

    def one(carry: tuple[Sums, ModelState], item: tuple) -> tuple[tuple[Sums, ModelState], None]:
        (sums, before), (index, pieces) = carry, item
        micro = micro_batch(pieces)
        own = jax.random.fold_in(key, index)
        (loss, (named, after)), grads = gradient(params, before, micro, own)
        masked = isinstance(micro, dict) and "mask" in micro
        weight = jnp.sum(micro["mask"], dtype=jnp.float32) if masked else jnp.ones((), jnp.float32)

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            # Chosen, not multiplied: 0 times NaN is NaN.
            return total + jnp.where(weight > 0, weight * value.astype(total.dtype), 0)

        values = jax.tree.map(add, sums.values, (loss, named, grads))
        kept = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, before)
        return (Sums(sums.weight + weight, values), kept), None

    # In float32 also where `jax_enable_x64` is on: float64 would not fit what is carried.
    start = (Sums(jnp.zeros((), jnp.float32), zeros), model_state)
    items = (jnp.arange(accumulate), split)
    if used is None:
        sums, model_state = _added_up(one, start, items, trace)
    else:  # a loop whose length is data: one program for every number
        sums, model_state = jax.lax.fori_loop(
            0, used, lambda i, carry: one(carry, jax.tree.map(lambda x: x[i], items))[0], start
        )
    loss, named, grads = jax.tree.map(lambda total: total / sums.weight, sums.values)
    return (loss, (named, model_state)), grads


def _added_up(
    one: Callable, start: tuple[Sums, ModelState], items: chex.ArrayTree, trace: jax.stages.Traced
) -> tuple[Sums, ModelState]:
    """What a loop over all micro-batches carries to its end."""
    loop = lambda unroll: jax.lax.scan(one, start, items, unroll=unroll)[0]  # noqa: E731
    if not is_slow_in_a_loop(trace, "cpu"):
        return loop(1)
    # The platform is that which is compiled for, and need not be that of this machine.
    count = len(jax.tree.leaves(items)[0])
    return jax.lax.platform_dependent(cpu=lambda: loop(count), default=lambda: loop(1))


def examples_in(batch: Batch, pieces: int, used: jax.Array | None) -> chex.Numeric:
    """How many examples count in the first `used` of so many micro-batches of a batch."""
    size = max((jnp.shape(x)[0] for x in jax.tree.leaves(batch) if jnp.ndim(x)), default=0)
    rows = size if used is None else size // pieces * used
    if not (isinstance(batch, dict) and "mask" in batch):
        return rows
    if used is None:
        return jnp.sum(batch["mask"], dtype=jnp.float32)
    weights = micro_batches(batch["mask"], pieces)
    within = jnp.arange(pieces)[:, None] < used
    return jnp.sum(jnp.where(within, weights, 0), dtype=jnp.float32)


def most_of(accumulate: int | Schedule) -> int:
    """The largest number of micro-batches; refuses what is neither whole nor a schedule of such."""
    if not isinstance(accumulate, Schedule):
        allowed = "a whole number >= 1, or a schedule of such numbers"
        return require_whole("make_step", "accumulate", accumulate, allowed=allowed)
    allowed = "a schedule that ends, such as PiecewiseConstant(1, boundaries=(100,), values=(2,))"
    horizon = accumulate.horizon
    ends = horizon is not None and known(horizon)
    require(ends, "make_step", "accumulate", accumulate, allowed)
    end = int(min(np.ceil(np.asarray(horizon, np.float64)), LAST_STEP))
    # Of whole numbers it is a staircase, and a million steps see every stair of a usual one.
    steps = np.unique(np.linspace(0, end, min(end + 1, 2**20)).astype(np.int64))
    with jax.ensure_compile_time_eval():  # a step may be made inside a traced function
        values = np.asarray(accumulate(steps.astype(np.int32)))
    wrong = values[(values != np.round(values)) | (values < 1)]
    allowed = "a schedule of whole numbers >= 1"
    value = f"{accumulate!r}, which is {wrong[0]:g} at one step" if len(wrong) else accumulate
    require(not len(wrong), "make_step", "accumulate", value, allowed)
    return int(values.max())


def used_of(accumulate: int | Schedule, count: jax.Array, most: int) -> jax.Array | None:
    """How many micro-batches an update uses, by the optimizer's count; None for all there are."""
    if not isinstance(accumulate, Schedule):
        return None
    return jnp.clip(jnp.round(accumulate(count)), 1, most).astype(jnp.int32)


# A walk through a program takes a millisecond, and a run asks at each call of `fit`.
_SLOW: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def is_slow_in_a_loop(trace: jax.stages.Traced, platform: str) -> bool:
    """Whether a traced function is to be written out on a platform rather than looped over.

    On the CPU, XLA runs a convolution inside a loop 15 times slower than outside (jax issue 12868).
    """
    program = trace.jaxpr.jaxpr
    if program not in _SLOW:
        _SLOW[program] = has_primitive(program, "conv_general_dilated")
    return platform == "cpu" and _SLOW[program]


def has_primitive(program: Any, *names: str) -> bool:
    """Whether a jaxpr, or one inside it, holds an operation of one of these names."""
    return any(equation.primitive.name in names for equation in equations(program))


def equations(program: Any) -> Iterator[Any]:
    """The operations of a jaxpr and of those inside it."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _is_program(value: object) -> bool:
    return hasattr(value, "jaxpr") or hasattr(value, "eqns")
