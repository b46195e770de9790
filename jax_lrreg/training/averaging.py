"""The average of the parameters that a step keeps: how it is read, and statistics that fit it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._check import require, require_number
from jax_lrreg.averages import EMA, Average
from jax_lrreg.training.batch import Batch, require_batches
from jax_lrreg.training.data import ArrayData, as_array
from jax_lrreg.training.evaluate import weight_of
from jax_lrreg.training.loss import Now, called, loss_and_metrics
from jax_lrreg.training.mesh import around, cut, refuse_elsewhere
from jax_lrreg.training.modules import Module, adapter_of, statistics_of
from jax_lrreg.training.state import State, in_dtypes_of
from jax_lrreg.transforms.learning_rate import require_one

Statistics = Sequence[jax.Array]


def averaged(state: State) -> State:
    """A state whose parameters are the average that its step keeps, in their own dtypes.

    It is for evaluation and for `merge`; training goes on from the state given, with which it
    shares all else. Before the average begins its parameters are the current ones. Batch statistics
    stay those of the current parameters: see `refresh_statistics`.

    Raises:
        ValueError: the state has no average: its step is made without `average=`, or was not called
            yet.

    Example:
        >>> from jax_lrreg import averages, training
        >>> apply, tx = lambda params, x: x @ params, optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> loss_fn = lambda model, batch: jnp.mean((model(batch) - 1) ** 2)
        >>> step = training.make_step(apply, loss_fn, tx, average=averages.Uniform())
        >>> for _ in range(2):
        ...     state, _ = step(state, jnp.eye(2))
        >>> print(state.params, averaged(state).params)
        [0.19 0.19] [0.145 0.145]
    """
    _require_state("averaged", state)
    allowed = "one with an average, which a step made with `average=` keeps from its first call on"
    require(state.average is not None, "averaged", "state", state, allowed)
    value = _value(state.averaging, state.average, state.trained)
    return state.replace(params=state.whole(value))


@jax.jit
def _value(average: Average, held: chex.ArrayTree, params: optax.Params) -> optax.Params:
    return in_dtypes_of(average.value(held), params)


def refresh_statistics(
    module: Module,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    loss_fn: Callable[..., Any],
) -> State:
    """A state whose batch statistics are the means over `data` for its own parameters.

        statistic = sum over batches of examples * (that of the batch) / sum of examples

    Averaged parameters see other activations than those that the statistics were collected from.
    One pass over the data in training mode collects them anew; the keys of dropout are those of
    training, and nothing else of the state changes.

    Args:
        module: as in `init`: a Linen module with a collection `batch_stats`, or an NNX module with
            `nnx.BatchStat` variables. What is renewed are their `mean` and `var`.
        state: a state of it, as from `averaged`.
        data: an `ArrayData`, of which one epoch is drawn, or a list of batches. They count by their
            number of examples, or by the sum of their `mask`.
        loss_fn: that of training: it calls the model as training does.

    Raises:
        ValueError: the module has no batch statistics, `loss_fn` leaves them as they are, or there
            is no example.

    Example:
        >>> import flax.linen as nn
        >>> from jax_lrreg import training
        >>> norm, x, tx = nn.BatchNorm(use_running_average=False), jnp.ones((4, 1)), optax.sgd(0.0)
        >>> state = training.init(norm, tx, key=jax.random.key(0), example=x)
        >>> loss_fn = lambda model, batch: model(batch).mean()
        >>> state = refresh_statistics(norm, state, [3 * x, 5 * x], loss_fn=loss_fn)
        >>> print(state.model_state["batch_stats"]["mean"].round(3))
        [4.]
    """
    _require_state("refresh_statistics", state)
    if not isinstance(data, ArrayData):
        require_batches(data, "refresh_statistics")
    adapter = adapter_of(module)
    places = statistics_of(adapter, state.model_state)
    allowed = "a module with batch statistics: `batch_stats` in Linen, `nnx.BatchStat` in NNX"
    require(len(places) > 0, "refresh_statistics", "module", type(module).__name__, allowed)

    own = leaves_at(state.model_state, places)

    @jax.jit
    def after(old: Statistics, state: State, batch: Batch) -> Statistics:
        batch = cut(batch, "refresh_statistics", divides=False)
        held = with_leaves(state.model_state, places, old)
        now = Now(state.step, jax.random.fold_in(state.key, state.step))
        bound = adapter.bind(state.params, held, now.key)
        loss_and_metrics(called(loss_fn, bound.model, batch, now))
        return leaves_at(bound.model_state(), places)

    total, size, left, zeros = None, 0.0, None, own
    batches = map(data, range(data.steps_per_epoch)) if isinstance(data, ArrayData) else data
    for number, batch in enumerate(batches):
        weight = weight_of(batch, "refresh_statistics", f"data[{number}]")
        if weight == 0:
            continue
        batch, now = jax.tree.map(as_array, batch), state.replace(step=state.step + number)
        with around(state, "refresh_statistics"):
            refuse_elsewhere(batch, state, "refresh_statistics", f"data[{number}]")
            if left is None:
                left, zeros = _left_over(partial(after, state=now, batch=batch), own)
            new = after(zeros, now, batch)
        found = [weight * x / part for x, part in zip(new, left, strict=True)]
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        size += weight
    allowed = "at least one batch whose examples have a weight; an iterator is read only once"
    require(total is not None, "refresh_statistics", "data", data, allowed)
    means = [jnp.asarray(x / size, old.dtype) for x, old in zip(total or [], own, strict=True)]
    return state.replace(model_state=with_leaves(state.model_state, places, means))


def _left_over(
    after: Callable[[Statistics], Statistics], own: Statistics
) -> tuple[list[jax.Array], Statistics]:
    """What part of a batch's own statistics a call leaves, beginning with which statistics.

    new = momentum old + (1 - momentum) batch, so that from 0 there is a part of 1 - momentum. What
    a layer does not renew is used by the layers after it: it begins as it is, and is left whole.
    """
    on = [bool(jnp.any(new != old)) for new, old in zip(after(own), own, strict=True)]
    allowed = "a function that calls the model as in training, so that it renews its statistics"
    got = "one that leaves them as they are"
    require(any(on), "refresh_statistics", "loss_fn", got, allowed)
    pairs = list(zip(own, on, strict=True))
    # Not the slope: NNX stops the gradient. So large that what the batch adds does not round it.
    far = 2.0**14
    zeros, large = ([jnp.full_like(x, y) if o else x for x, o in pairs] for y in (0.0, far))
    ends = zip(after(zeros), after(large), on, strict=True)
    return [1 - (high - low) / far if o else jnp.ones(()) for low, high, o in ends], zeros


def leaves_at(tree: chex.ArrayTree, places: list[int]) -> Statistics:
    """Some of the leaves of a tree."""
    leaves = jax.tree.leaves(tree)
    return [leaves[place] for place in places]


def with_leaves(tree: chex.ArrayTree, places: list[int], values: Statistics) -> chex.ArrayTree:
    """The tree with other values at these leaves."""
    leaves, structure = jax.tree.flatten(tree)
    for place, value in zip(places, values, strict=True):
        leaves[place] = value
    return jax.tree.unflatten(structure, leaves)


def average_of(ema: chex.Numeric | None, average: Average | None) -> Average | None:
    """What the arguments of `make_step` ask for."""
    if ema is None:
        if average is None:
            return None
        allowed = "one of jax_lrreg.averages, such as EMA(0.999), or None"
        require(isinstance(average, Average), "make_step", "average", average, allowed, TypeError)
        for value in jax.tree.leaves(average):
            require_one("make_step", "average", value)
        return average
    allowed = "left out where `average` is given, for which it is short"
    require(average is None, "make_step", "ema", ema, allowed)
    allowed = "a number in [0, 1), or None"
    require_number("make_step", "ema", ema, allowed, lambda x: (x >= 0) & (x < 1))
    require_one("make_step", "ema", ema)
    return EMA(ema)


def kind_of(average: Average) -> Average:
    """The structure of an average, without its numbers: a state may be scanned and compared."""
    return jax.tree.map(lambda _: None, average, is_leaf=lambda x: x is not average)


def with_average(state: State, average: Average, kind: Average | None) -> State:
    """The state with what the average keeps: it is begun, or must be of this kind already."""
    if state.average is None:
        return state.replace(average=average.init(state.trained), averaging=kind)
    # Most calls get the object back that they gave.
    same = state.averaging is kind or state.averaging == kind
    allowed = f"that of {kind!r}; state.replace(average=None) begins a new one"
    require(same, "step", "state.average", state.averaging, allowed)
    return state


def _require_state(owner: str, state: Any) -> None:
    require(isinstance(state, State), owner, "state", state, "a State", error=TypeError)
