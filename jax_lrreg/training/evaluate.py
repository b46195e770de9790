"""Evaluation: the mean of metrics over a data set, jitted."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.training.data import ArrayData
from jax_lrreg.training.modules import adapt
from jax_lrreg.training.state import State
from jax_lrreg.training.stream import as_array, examples, require_batches


def make_eval(
    module: Any, metrics_fn: Callable[[Callable, Any], dict[str, Any]], data: Any
) -> Callable[[State], dict]:
    """An `eval_fn` for `fit`: the mean of `metrics_fn(model, batch)` over all of `data`, jitted.

    Args:
        module: as in `init`. The model is in evaluation form: nothing mutable, no dropout in NNX; Linen
            modules take their own arguments, such as `train=False`.
        metrics_fn: `(model, batch) -> {name: mean over the batch}`.
        data: an `ArrayData`, of which every example counts once whatever its order and remainder, or a list
            of batches; batches count by their number of examples, or by the sum of their `mask` if they have one.

    Returns:
        A function `state -> {name: float}`.

    Example:
        >>> data = ArrayData(np.arange(5.0), batch_size=2, shuffle=False)
        >>> evaluate = make_eval(lambda params, x: params * x, lambda model, x: {"val_mean": model(x).mean()}, data)
        >>> import optax, jax.numpy as jnp
        >>> from jax_lrreg import training
        >>> evaluate(training.init(lambda p, x: x, optax.sgd(1.0), key=jax.random.key(0), params=jnp.float32(2)))
        {'val_mean': 4.0}
    """
    adapter = adapt(module)
    if not isinstance(data, ArrayData):
        require_batches(data, "make_eval")

    @jax.jit
    def metrics(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        found = metrics_fn(adapter.evaluate(params, model_state), batch)
        scalars = isinstance(found, dict) and all(jnp.ndim(value) == 0 for value in found.values())
        shapes = jax.tree.map(jnp.shape, found)
        require(
            scalars,
            "make_eval",
            "metrics_fn",
            shapes,
            "a function that returns {name: mean over the batch}",
        )
        return found

    def batches() -> Iterator[Any]:
        if not isinstance(data, ArrayData):
            yield from (jax.tree.map(as_array, batch) for batch in data)
            return
        arrays = jax.tree.map(
            np.asarray, data.arrays
        )  # a slice of a device's array would be a program for each place
        if data.remainder == "pad":
            arrays = {
                **arrays,
                "mask": np.ones(data.size, np.float32),
            }  # as in training; none of them is padding
        for begin in range(0, data.size, data.batch_size):
            yield jax.tree.map(lambda x: x[begin : begin + data.batch_size], arrays)  # noqa: B023

    def evaluate(state: State) -> dict[str, float]:
        sizes, results = [], []
        for batch in batches():
            size = _weight(batch)
            if size > 0:  # what is nothing but padding does not count, also where its mean is 0 / 0
                sizes.append(size)
                results.append(metrics(state.params, state.model_state, batch))
        require(
            len(sizes) > 0,
            "make_eval",
            "data",
            data,
            "at least one batch; an iterator can be read only once",
        )
        results = jax.device_get(results)
        return {
            name: float(np.average([r[name] for r in results], weights=sizes))
            for name in results[0]
        }

    return evaluate


def _weight(batch: Any) -> float:
    """How many examples a batch has, those of weight 0 left out."""
    if isinstance(batch, dict) and "mask" in batch:
        return float(np.sum(batch["mask"]))
    count = examples(batch)
    require(
        count is not None, "make_eval", "data", batch, "batches with their examples along axis 0"
    )
    return count  # type: ignore[return-value]
