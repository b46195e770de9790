"""`Average`, and what averages do to trees of parameters: copy, move towards, keep in a ring."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, widened


class Average:
    """An average of the parameters, as data: what it keeps is in a state of arrays.

    `training.make_step(average=)` keeps the state in `state.average`, and `training.averaged` reads
    it. A loop of your own does as in the example.

    The average is kept in float32 at least: in bfloat16 an EMA would stand still from a decay of
    0.996 on. Before it begins it is the current parameters. What is no parameter, such as an
    integer or a key, is the latest one; None and what Optax masks stay.

    One of your own is a `pytree` with these three methods. Its `value` may read the state and those
    fields that are `static()`: a number may be traced, and belongs to the update.

    Example:
        >>> from jax_lrreg import averages
        >>> average = averages.Uniform(start=1)
        >>> state = average.init({"w": jnp.zeros(2)})
        >>> for step, w in enumerate((5.0, 1.0, 2.0)):  # the parameters after each update
        ...     state = average.update(state, {"w": jnp.full(2, w)}, step)
        >>> print(average.value(state)["w"])
        [1.5 1.5]
    """

    def init(self, params: optax.Params) -> chex.ArrayTree:
        """The state before any update, which shares no array with `params`."""
        raise NotImplementedError

    def update(
        self, state: Any, params: optax.Params, step: chex.Numeric, where: chex.Numeric = True
    ) -> chex.ArrayTree:
        """The state after the update `step`, counted from 0, which led to `params`.

        Where `where` is False it is the state given. Whoever chose between two states instead would
        read and write all copies of a ring at each step, not one.
        """
        raise NotImplementedError

    def value(self, state: Any) -> chex.ArrayTree:
        """The averaged parameters, in float32 at least."""
        return state.mean


class MeanState(NamedTuple):
    """A mean of parameters, and how much went into it: a sum of weights or a count."""

    mean: chex.ArrayTree
    weight: jax.Array


class RingState(NamedTuple):
    """Parameters, or means of some, in a ring along axis 0, and how many have come in so far."""

    ring: chex.ArrayTree
    count: jax.Array


def copies_of(params: optax.Params, *count: int) -> chex.ArrayTree:
    """A copy of `params`, or so many along axis 0; one of what is no parameter."""

    def one(value: chex.Array) -> jax.Array:
        if not is_parameter(value):
            return jnp.copy(value)
        return jnp.broadcast_to(widened(value), (*count, *jnp.shape(value))).copy()

    return jax.tree.map(one, params)


def moved(
    mean: chex.ArrayTree, params: optax.Params, rate: chex.Numeric, where: chex.Numeric
) -> chex.ArrayTree:
    """`mean` moved towards `params` by a rate; of 1, all the way."""

    def one(old: jax.Array, value: chex.Array) -> jax.Array:
        if is_parameter(value):
            value = widened(value)
            # An old number that was not finite would stay for ever: 0 times NaN is NaN.
            value = jnp.where(rate == 1, value, old + rate * (value - old))
        return jnp.where(where, value, old)

    return jax.tree.map(one, mean, params)


def put(
    ring: chex.ArrayTree,
    params: optax.Params,
    slot: jax.Array,
    rate: chex.Numeric,
    where: chex.Numeric,
) -> chex.ArrayTree:
    """The ring with one slot moved towards `params`; no other copy is read or written."""

    def one(copies: jax.Array, value: chex.Array) -> jax.Array:
        if not is_parameter(value):
            return jnp.where(where, value, copies)
        old = jax.lax.dynamic_index_in_dim(copies, slot, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(copies, moved(old, value, rate, where), slot, 0)

    return jax.tree.map(one, ring, params)


def combined(ring: chex.ArrayTree, weights: jax.Array) -> chex.ArrayTree:
    """The weighted sum of the copies in a ring."""

    def one(copies: jax.Array) -> jax.Array:
        if not is_parameter(copies):
            return copies
        # No matrix product, which a TPU would round to bfloat16.
        return jnp.sum(copies * weights.reshape(-1, *(1,) * (copies.ndim - 1)), axis=0)

    return jax.tree.map(one, ring)
