"""One batch as several micro-batches: the same update in less memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_lrreg.training.convolutions import traced


class Sums(NamedTuple):
    """What has been added up so far."""

    weight: jax.Array
    values: Any  # loss, metrics and gradient, in float32 at least


def accumulated(
    gradient: Callable, params: Any, model_state: Any, batch: Any, key: jax.Array, accumulate: int
) -> Any:
    """The loss with its metrics and the model state, and the gradient, of a batch in `accumulate` pieces.

        gradient = sum over micro-batches of weight * gradient / sum of weights

    with the weight of a micro-batch the sum of its `mask`, and 1 where the batch has none. What has no
    weight does not count, also where it is not a number. The sums are kept in float32 at least, and so is
    the gradient; the model state goes from one micro-batch to the next.

    Args:
        gradient: `(params, model_state, batch, key) -> (loss, (metrics, model_state)), gradient`.
        params: of the model.
        model_state: before the first micro-batch.
        batch: a tree of arrays with the examples along axis 0.
        key: micro-batch `i` gets `fold_in(key, i)`.
        accumulate: how many micro-batches.
    """
    if accumulate == 1:
        return gradient(params, model_state, batch, key)

    def split(x: jax.Array) -> jax.Array:
        size = jnp.shape(x)[0] if jnp.ndim(x) else 0
        if size == 0 or size % accumulate:
            raise ValueError(
                f"make_step: `accumulate`={accumulate} must divide the batch, got {size} examples"
            )
        return jnp.reshape(x, (accumulate, size // accumulate, *jnp.shape(x)[1:]))

    micro_batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    gradient = jax.jit(gradient)  # traced once, for the shapes and for the loop
    ((loss_shape, (named_shapes, _)), grad_shapes), slow = traced(
        gradient, params, model_state, first, key
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, _wide(x.dtype)), (loss_shape, named_shapes, grad_shapes)
    )

    def one(carry: tuple[Sums, Any], item: Any) -> tuple[tuple[Sums, Any], None]:
        sums, model_state = carry
        index, micro = item
        (loss, (named, model_state)), grads = gradient(
            params, model_state, micro, jax.random.fold_in(key, index)
        )
        weight = _weight(micro)

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            value = value.astype(total.dtype)
            return total + (value if weight is None else jnp.where(weight > 0, weight * value, 0))

        values = jax.tree.map(add, sums.values, (loss, named, grads))
        return (Sums(sums.weight + (1.0 if weight is None else weight), values), model_state), None

    start = (Sums(jnp.zeros(()), zeros), model_state)
    items = (jnp.arange(accumulate), micro_batches)
    (sums, model_state), _ = jax.lax.scan(one, start, items, unroll=accumulate if slow else 1)
    loss, named, grads = jax.tree.map(lambda total: total / sums.weight, sums.values)
    return (loss, (named, model_state)), grads


def _weight(micro: Any) -> jax.Array | None:
    return (
        jnp.sum(micro["mask"], dtype=jnp.float32)
        if isinstance(micro, dict) and "mask" in micro
        else None
    )


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
