"""The parallel test: many constant learning rates side by side, from the same parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import require
from jax_lrreg.finder.preparation import check, prepared, refuse_ascent, whole
from jax_lrreg.finder.suggestions import Found
from jax_lrreg.training import ArrayData, State
from jax_lrreg.training.data import source_of


def parallel_test(
    module: Any,
    loss_fn: Callable[[Callable, Any], Any],
    preconditioner: Any,
    state: State,
    data: ArrayData | Iterable[Any],
    *,
    low: float = 1e-5,
    high: float = 1.0,
    rates: int = 16,
    steps: int = 50,
    seeds: int = 3,
    penalty: Any = None,
    max_parallel: int | None = None,
) -> Found:
    """Trains at each of many constant learning rates, from the same parameters, and compares the ends.

    The rates are in geometric progression and run at once, on the same batches, so that they differ in
    nothing but the rate; each seed has batches and keys of its own. What a rate does is not mixed with
    what smaller ones did before, as it is along a range test; it costs `rates * seeds` times as much.

    Args:
        module: as in `training.init`.
        loss_fn: as in `training.make_step`.
        preconditioner: as in `range_test`.
        state: where every run begins; left as it is.
        data: as in `training.fit`; seed s takes the batches from `s * steps` on.
        low: first learning rate, positive.
        high: last learning rate, above `low`.
        rates: how many; at least 3.
        steps: length of each run; at least 4.
        seeds: runs for each rate.
        penalty: as in `make_step`.
        max_parallel: how many runs at most are in memory at once; None for all of them.

    Returns:
        A `Found` whose losses are the means over the last quarter of each run, with the suggestions
        "smallest": the smallest rate whose median loss over the seeds comes within a tenth of the fall to
        the lowest one, so that there is room above;
        "lowest": the rate whose median loss is least.

    Example:
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> state = training.init(apply, optax.sgd(1.0), key=jax.random.key(0), params=jnp.zeros(4))
        >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1) ** 2)
        >>> data = [np.eye(4, dtype=np.float32)] * 150
        >>> found = parallel_test(apply, loss_fn, optax.identity(), state, data, high=1e2)
        >>> found.losses.shape, list(found.suggestions)
        ((3, 16), ['smallest', 'lowest'])
    """
    check("parallel_test", state, low, high, rates, 3, "rates")
    for name, value, least in (
        ("steps", steps, 4),
        ("seeds", seeds, 1),
        ("max_parallel", max_parallel or 1, 1),
    ):
        require(whole(value, least), "parallel_test", name, value, f"a whole number >= {least}")
    tried = np.geomspace(low, high, rates).astype(np.float32)

    source = source_of(data, "parallel_test")
    first = int(state.step)
    source.example(first)
    batches = [source.payload(first + seed * steps, steps, steps) for seed in range(seeds)]
    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def run(pair: tuple[jax.Array, jax.Array], start: State, arrays: Any, rows: Any) -> Any:
        rate, seed = pair
        step, start = prepared(
            module,
            loss_fn,
            preconditioner,
            start,
            penalty,
            lambda: optax.scale_by_learning_rate(rate),
        )
        start = start.replace(key=jax.random.fold_in(start.key, seed))

        def one(now: State, row: Any) -> tuple[State, jax.Array]:
            now, metrics = step.body(now, source.gather(arrays, row))
            return now, metrics["loss"].astype(jnp.float32)

        end, losses = jax.lax.scan(one, start, jax.tree.map(lambda x: x[seed], rows))
        return losses[0], jnp.mean(losses[-(steps // 4) :]), end.opt_state[1].agreement

    def all_runs(start: State, arrays: Any, rows: Any) -> Any:
        pairs = (jnp.tile(jnp.asarray(tried), seeds), jnp.repeat(jnp.arange(seeds), rates))
        size = min(max_parallel or rates * seeds, rates * seeds)
        return jax.lax.map(lambda pair: run(pair, start, arrays, rows), pairs, batch_size=size)

    before, losses, agreement = jax.device_get(jax.jit(all_runs)(state, source.arrays, rows))
    refuse_ascent("parallel_test", float(np.min(agreement)))
    losses = np.where(np.isfinite(losses), losses, np.inf).reshape(seeds, rates)
    typical = np.median(losses, axis=0)
    own = float(np.median(before.reshape(seeds, rates)[:, 0]))
    least = int(np.argmin(typical))
    suggestions = {}
    if typical[least] < own:
        near = np.flatnonzero(typical <= typical[least] + 0.1 * (own - typical[least]))
        suggestions = {"smallest": float(tried[near[0]]), "lowest": float(tried[least])}
    return Found(tried, losses, typical, suggestions, False)
