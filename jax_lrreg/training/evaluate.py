"""Evaluation: the mean of metrics over a data set, jitted."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jax_lrreg._arrays import is_key, is_real_scalar
from jax_lrreg._check import require
from jax_lrreg._processes import differing
from jax_lrreg.training.batch import is_own
from jax_lrreg.training.data import (
    ArrayData,
    Batch,
    as_array,
    check_mask,
    count_examples,
    gather,
    outline,
    require_batches,
)
from jax_lrreg.training.mesh import around, cut, refuse_elsewhere
from jax_lrreg.training.modules import Module, adapter_of
from jax_lrreg.training.state import State


def make_eval(
    module: Module,
    metrics_fn: Callable[[Callable, Batch], dict[str, jax.Array]],
    data: ArrayData | Iterable[Batch],
) -> Callable[[State], dict[str, float]]:
    """An `eval_fn` for `fit`: the mean of `metrics_fn(model, batch)` over all of `data`, jitted.

        mean = sum over batches of examples * metric / sum of examples

    Args:
        module: as in `init`. The model is in evaluation form: nothing mutable, no dropout in NNX;
            Linen modules take their own arguments, such as `train=False`.
        metrics_fn: `(model, batch) -> {name: mean over the batch}`.
        data: an `ArrayData`, of which every example counts once whatever its order and remainder,
            or a list of batches, the same on every process; batches count by their number of
            examples, or by the sum of their `mask` if they have one.

    Returns:
        A function `state -> {name: float}`.

    Raises:
        ValueError: when it is called, if the arrays of a batch differ in the number of examples, a
            mask does not weigh them, or there are none.

    Example:
        >>> data = ArrayData(np.arange(5.0), batch_size=2, shuffle=False)
        >>> mean = lambda model, x: {"val_mean": model(x).mean()}
        >>> evaluate = make_eval(lambda params, x: params * x, mean, data)
        >>> import optax, jax.numpy as jnp
        >>> from jax_lrreg import training
        >>> start = {"key": jax.random.key(0), "params": jnp.float32(2)}
        >>> evaluate(training.init(lambda p, x: x, optax.sgd(1.0), **start))
        {'val_mean': 4.0}
    """
    adapter = adapter_of(module)
    if not isinstance(data, ArrayData):
        require_batches(data, "make_eval")

    @jax.jit
    def metrics(params: Any, model_state: Any, batch: Batch) -> dict[str, jax.Array]:
        batch = cut(batch, "make_eval", divides=False)
        found = metrics_fn(adapter.evaluate(params, model_state), batch)
        scalars = isinstance(found, dict) and all(map(is_real_scalar, found.values()))
        allowed = "a function that returns {name: mean over the batch}"
        require(scalars, "make_eval", "metrics_fn", outline(found) or found, allowed)
        return found

    def evaluate(state: State) -> dict[str, float]:
        sizes, results = [], []
        for number, batch in enumerate(_batches(data)):
            if number == 0 and not isinstance(data, ArrayData):
                _require_same(batch, state)
            size = weight_of(batch, "make_eval", f"data[{number}]")
            if size > 0:  # what is nothing but padding does not count, also where its mean is 0 / 0
                sizes.append(size)
                batch = jax.tree.map(as_array, batch)
                with around(state, "make_eval"):
                    refuse_elsewhere(batch, state, "make_eval", f"data[{number}]")
                    results.append(metrics(state.params, state.model_state, batch))
        allowed = "at least one batch whose examples have a weight; an iterator is read only once"
        require(len(sizes) > 0, "make_eval", "data", data, allowed)
        results = jax.device_get(results)
        names = list(results[0])
        for found in results:
            allowed = f"a function that returns the same names for each batch, {names}"
            require(
                found.keys() == results[0].keys(), "make_eval", "metrics_fn", list(found), allowed
            )
        columns = {name: [found[name] for found in results] for name in names}
        return {name: float(np.average(each, weights=sizes)) for name, each in columns.items()}

    return evaluate


def _require_same(batch: Batch, state: State) -> None:
    """Refuses rows that each process has of its own: the batch is taken for one that all have."""
    alone = jax.process_count() == 1 or getattr(state.step, "is_fully_addressable", True)
    own = [] if alone else [x for x in jax.tree.leaves(batch) if is_own(x) and not is_key(x)]
    if own:
        others = differing(b"".join(np.asarray(x).tobytes() for x in own))
        got, allowed = f"others on processes {others}", "the same batches on every process"
        require(not others, "make_eval", "data", got, allowed)


def _batches(data: ArrayData | Iterable[Batch]) -> Iterator[Batch]:
    if not isinstance(data, ArrayData):
        yield from data
        return
    arrays = data.host_arrays
    if data.remainder == "pad":  # as in training; none of them is padding
        arrays = {**arrays, "mask": np.ones(data.size, np.float32)}
    for begin in range(0, data.size, data.batch_size):
        yield gather(arrays, slice(begin, begin + data.batch_size))


def weight_of(batch: Batch, owner: str, name: str) -> float:
    """How many examples a batch has, those of weight 0 left out."""
    check_mask(batch, owner, name, wait=True)  # its sum is waited for below
    count = count_examples(batch, owner, name)
    require(count is not None, owner, name, outline(batch), "examples along axis 0")
    if isinstance(batch, dict) and "mask" in batch:
        return float(np.sum(as_array(batch["mask"])))
    return float(count or 0)
