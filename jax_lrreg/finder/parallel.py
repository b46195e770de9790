"""The parallel test: many constant learning rates side by side, from the same parameters."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import widened
from jax_lrreg._check import require_whole
from jax_lrreg.finder.preparation import (
    Batch,
    Loss,
    Preconditioner,
    agreement,
    check_range,
    prepared,
    refuse_ascent,
)
from jax_lrreg.finder.suggestions import Found, fell
from jax_lrreg.penalties import Penalty
from jax_lrreg.training import ArrayData, State
from jax_lrreg.training.modules import Module
from jax_lrreg.training.sources import source_of


def parallel_test(
    module: Module,
    loss_fn: Loss,
    preconditioner: Preconditioner,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    low: float = 1e-5,
    high: float = 1.0,
    rates: int = 16,
    steps: int = 50,
    seeds: int = 3,
    penalty: Penalty | None = None,
    max_parallel: int | None = None,
) -> Found:
    """Trains at many constant learning rates, from the same parameters, and compares the ends.

    The rates are in geometric progression and run at once, on the same batches, so that they differ
    in nothing but the rate; each seed has batches and keys of its own. What a rate does is not
    mixed with what smaller ones did before, as it is along a range test; it costs `rates * seeds`
    times as much. One more run for each seed, at the rate 0, tells the loss without training on the
    same batches.

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
        "smallest": the smallest rate whose median loss over the seeds comes within a tenth of the
        fall to the lowest one, so that there is room above; "lowest": the rate whose median loss is
        least.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply = lambda params, x: x @ params
        >>> state = training.init(apply, optax.sgd(1.0), key=jax.random.key(0), params=jnp.zeros(4))
        >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1) ** 2)
        >>> data = [np.eye(4, dtype=np.float32)] * 150
        >>> found = parallel_test(apply, loss_fn, optax.identity(), state, data, high=1e2)
        >>> found.losses.shape, list(found.suggestions)
        ((3, 16), ['smallest', 'lowest'])
    """
    check_range("parallel_test", state, low, high)
    counts = {"rates": (rates, 3), "steps": (steps, 4), "seeds": (seeds, 1)}
    if max_parallel is not None:
        counts["max_parallel"] = (max_parallel, 1)
    for name, (count, least) in counts.items():
        require_whole("parallel_test", name, count, least)
    tried = np.geomspace(low, high, rates).astype(np.float32)
    pairs = [(rate, seed) for seed in range(seeds) for rate in (np.float32(0), *tried)]

    source = source_of(data, "parallel_test")
    # Drawn once and stacked: the seeds differ in their batches, the rates of a seed do not, so that
    # what differs between rates is not the luck of the draw.
    first = int(state.step)
    source.example(first)
    batches = [source.payload(first + seed * steps, steps, steps) for seed in range(seeds)]
    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def run(
        pair: tuple[jax.Array, jax.Array], start: State, arrays: Batch, rows: Batch
    ) -> tuple[jax.Array, jax.Array]:
        rate, seed = pair
        step, start = prepared(module, loss_fn, preconditioner, start, penalty, rate)
        start = start.replace(key=jax.random.fold_in(start.key, seed))

        def one(now: State, row: Batch) -> tuple[State, jax.Array]:
            now, metrics = step.body(now, source.gather(arrays, row))
            return now, widened(metrics["loss"])

        end, losses = jax.lax.scan(one, start, jax.tree.map(lambda x: x[seed], rows))
        return jnp.mean(losses[-(steps // 4) :]), agreement(end)

    @jax.jit
    def all_runs(start: State, arrays: Batch, rows: Batch) -> tuple[jax.Array, jax.Array]:
        size = min(max_parallel or len(pairs), len(pairs))
        columns = tuple(map(jnp.asarray, zip(*pairs, strict=True)))
        one = lambda pair: run(pair, start, arrays, rows)  # noqa: E731
        return jax.lax.map(one, columns, batch_size=size)

    ends, agreements = jax.device_get(all_runs(state, source.arrays, rows))
    refuse_ascent("parallel_test", float(np.min(agreements)))
    # A run that diverged is worst of all: as NaN it would make the median of its rate NaN.
    ends = np.where(np.isfinite(ends), ends, np.inf).reshape(seeds, 1 + rates)
    own, *typical = np.median(ends, axis=0)
    typical = np.array(typical)
    least = int(np.argmin(typical))
    suggestions = {}
    if fell(own, typical[least]):
        near = np.flatnonzero(typical <= typical[least] + 0.1 * (own - typical[least]))
        suggestions = {"smallest": float(tried[near[0]]), "lowest": float(tried[least])}
    return Found(tried, ends[:, 1:], typical, suggestions, False)
