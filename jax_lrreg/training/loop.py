"""The loop: many steps per call on the device, host work only between calls."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import require
from jax_lrreg.training.data import ArrayData
from jax_lrreg.training.modules import adapt
from jax_lrreg.training.progress import Progress
from jax_lrreg.training.state import State
from jax_lrreg.training.step import RESERVED, Step, nonfinite_message

Logger = Callable[[int, dict[str, float]], None]
_AUTO_CHUNK = 1000  # steps in one call at most; a call costs the host as much as one small step
_STREAM_BYTES = 64 * 2**20  # of stacked batches in one call, for data that comes from an iterable


def fit(
    step: Step,
    state: State,
    data: ArrayData | Iterable[Any],
    *,
    steps: int,
    chunk: int | str = "auto",
    log_every: int = 100,
    eval_every: int | None = None,
    eval_fn: Callable[[State], dict[str, Any]] | None = None,
    progress: bool = False,
    loggers: Sequence[Logger] = (),
) -> tuple[State, dict[str, np.ndarray]]:
    """Runs `steps` steps from `state`, in chunks that stay on the device.

    The result does not depend on `chunk`, bit for bit. Metrics are summed up on the device and fetched once
    per log interval, one interval late, so the device never waits for the host.

    Args:
        step: from `make_step`.
        state: from `init`, or from an earlier call. It is donated: go on with the one returned.
        data: an `ArrayData`, whose batch is found by `state.step`, or any iterable of batches, from its beginning.
        steps: how many steps to make.
        chunk: steps in one call. "auto" makes it as long as the log interval, up to 1000; where a loop on
            the device is slow (convolutions on the CPU), "auto" makes single calls.
        log_every: steps between two entries of the history.
        eval_every: steps between two evaluations; None with an `eval_fn` evaluates at the end only.
        eval_fn: any function `state -> {name: number}`; see `make_eval`.
        progress: shows a progress bar on a terminal or in a notebook, and plain lines elsewhere.
        loggers: functions `(step, {name: number})`, called for each entry.

    Returns:
        The state, and a history of NumPy arrays. An entry at `history["step"]` is made of the steps since
        the entry before: the learning rate as applied in the last of them, the number of skipped ones, and
        the mean of every other metric over those that were not skipped. What `eval_fn` returns stands beside
        `history["eval_step"]`.

    Raises:
        FloatingPointError: with `on_nonfinite="raise"`, when an update is not finite.
        ValueError: if the data ends early, or a batch has another structure than the first.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply, tx = lambda params, x: x @ params, optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> step = training.make_step(apply, lambda model, batch: jnp.mean((model(batch) - 1) ** 2), tx)
        >>> data = ArrayData(np.eye(2, dtype=np.float32), batch_size=2, key=jax.random.key(1))
        >>> state, history = fit(step, state, data, steps=100, log_every=50)
        >>> history["step"], bool(history["loss"][-1] < 1e-3)
        (array([ 50, 100]), True)
    """
    _check_arguments(step, steps, chunk, log_every, eval_every, eval_fn)
    state = step.prepare(state)
    start = int(state.step)
    end = start + steps
    source = _ArraySource(data) if isinstance(data, ArrayData) else _StreamSource(data)
    example = source.example(start)
    shapes = jax.eval_shape(step.body, state, example)[1]
    if chunk == "auto":
        loops = not _slow_in_a_loop(step, state, example)
        size = min(log_every, steps, _AUTO_CHUNK, source.most(example)) if loops else 1
    else:
        loops, size = True, min(int(chunk), steps)
    run = step.programs.setdefault("many" if loops else "one", _program(step, loops))
    history = _History(step, loggers)
    with Progress(progress, start, end) as bar:
        sums, pending, now = _zero_sums(shapes), None, start
        while now < end:
            count = min(size, end - now, log_every - (now - start) % log_every)
            if eval_every:
                count = min(count, eval_every - (now - start) % eval_every)
            payload = source.payload(now, count, size)
            if not loops:
                payload = jax.tree.map(lambda x: x[0], payload)
            state, sums = run(state, sums, source.arrays, payload, np.int32(count), gather=source.gather)
            now += count
            evaluate = eval_fn is not None and (now == end or (eval_every and (now - start) % eval_every == 0))
            if (now - start) % log_every == 0 or now == end:
                if pending is not None:
                    bar.update(*history.add(*pending))
                pending, sums = (now, sums), _zero_sums(shapes)
            if evaluate:
                bar.update(now, history.add_evaluation(now, eval_fn(state)))  # type: ignore[misc]
        if pending is not None:
            bar.update(*history.add(*pending))
    return state, history.arrays()


def make_eval(module: Any, metrics_fn: Callable[[Callable, Any], dict[str, Any]], data: Any) -> Callable[[State], dict]:
    """An `eval_fn` for `fit`: the mean of `metrics_fn(model, batch)` over all of `data`, jitted.

    Args:
        module: as in `init`. The model is in evaluation form: nothing mutable, no dropout in NNX; Linen
            modules take their own arguments, such as `train=False`.
        metrics_fn: `(model, batch) -> {name: mean over the batch}`.
        data: an `ArrayData`, of which every example counts once whatever its order and remainder, or a list
            of batches; batches count by their number of examples.

    Returns:
        A function `state -> {name: float}`.

    Example:
        >>> data = ArrayData(np.arange(5.0), batch_size=2, shuffle=False)
        >>> evaluate = make_eval(lambda params, x: params * x, lambda model, x: {"val_mean": model(x).mean()}, data)
        >>> import optax
        >>> from jax_lrreg import training
        >>> evaluate(training.init(lambda p, x: x, optax.sgd(1.0), key=jax.random.key(0), params=jnp.float32(2)))
        {'val_mean': 4.0}
    """
    adapter = adapt(module)

    @jax.jit
    def metrics(params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        return metrics_fn(adapter.evaluate(params, model_state), batch)

    def batches() -> Iterator[Any]:
        if not isinstance(data, ArrayData):
            yield from data
            return
        for begin in range(0, data.size, data.batch_size):
            yield jax.tree.map(lambda x: x[begin : begin + data.batch_size], data.arrays)  # noqa: B023

    def evaluate(state: State) -> dict[str, float]:
        sizes, results = [], []
        for batch in batches():
            sizes.append(len(jax.tree.leaves(batch)[0]))
            results.append(metrics(state.params, state.model_state, batch))
        require(len(sizes) > 0, "make_eval", "data", data, "at least one batch; an iterator can be read only once")
        results = jax.device_get(results)
        return {name: float(np.average([r[name] for r in results], weights=sizes)) for name in results[0]}

    return evaluate


def _check_arguments(step: Any, steps: Any, chunk: Any, log_every: Any, eval_every: Any, eval_fn: Any) -> None:
    if not isinstance(step, Step):
        raise TypeError(f"fit: `step` must come from make_step, got {step!r}")

    def whole(x: Any) -> bool:
        return isinstance(x, int | np.integer) and not isinstance(x, bool) and x >= 1

    require(whole(steps), "fit", "steps", steps, "a whole number >= 1")
    require(chunk == "auto" or whole(chunk), "fit", "chunk", chunk, "'auto' or a whole number >= 1")
    require(whole(log_every), "fit", "log_every", log_every, "a whole number >= 1")
    require(eval_every is None or whole(eval_every), "fit", "eval_every", eval_every, "a whole number >= 1 or None")
    require(eval_fn is None or callable(eval_fn), "fit", "eval_fn", eval_fn, "a function state -> {name: number}")
    needs = eval_every is None or eval_fn is not None
    require(needs, "fit", "eval_fn", eval_fn, "given where `eval_every` is")


def _program(step: Step, loops: bool) -> Callable:
    """The compiled call that makes `count` steps; the number is data, so every chunk is one and the same program."""

    def one(carry: tuple[State, Any], batch: Any) -> tuple[State, Any]:
        state, metrics = step.body(carry[0], batch)
        return state, _add(carry[1], metrics)

    def single(state, sums, arrays, row, count, *, gather):
        del count
        return one((state, sums), gather(arrays, row))

    def many(state, sums, arrays, rows, count, *, gather):
        def body(index, carry):
            return one(carry, gather(arrays, jax.tree.map(lambda x: x[index], rows)))

        return jax.lax.fori_loop(0, count, body, (state, sums))

    donated = (0, 1) if step.donate else (1,)
    return jax.jit(many if loops else single, donate_argnums=donated, static_argnames="gather")


def _zero_sums(shapes: dict[str, Any]) -> dict[str, Any]:
    zeros = {name: np.float32(0) for name in shapes if name not in ("skipped", "learning_rate")}
    last = {name: np.float32(0) for name in ("learning_rate",) if name in shapes}
    return {"mean": zeros, "last": last, "steps": np.int32(0), "skipped": np.int32(0)}


def _add(sums: dict[str, Any], metrics: dict[str, jax.Array]) -> dict[str, Any]:
    skipped = metrics["skipped"]
    mean = {
        name: total + jnp.where(skipped > 0, 0, metrics[name].astype(jnp.float32))
        for name, total in sums["mean"].items()
    }
    last = {name: metrics[name] for name in sums["last"]}
    return {"mean": mean, "last": last, "steps": sums["steps"] + 1, "skipped": sums["skipped"] + skipped}


class _History:
    """Fetches the sums of an interval, hands them to the loggers, and collects them."""

    def __init__(self, step: Step, loggers: Sequence[Logger]):
        self.raises = step.on_nonfinite == "raise"
        self.loggers = loggers
        self.entries: dict[str, list[float]] = {"step": []}
        self.evaluations: dict[str, list[float]] = {}

    def add(self, now: int, sums: Any) -> tuple[int, dict[str, float]]:
        sums = jax.device_get(sums)
        good = int(sums["steps"] - sums["skipped"])
        entry = {name: float(total) / good if good else float("nan") for name, total in sums["mean"].items()}
        entry |= {name: float(value) for name, value in sums["last"].items()}
        entry["skipped"] = int(sums["skipped"])
        if self.raises and entry["skipped"]:
            raise FloatingPointError(nonfinite_message(now - 1, entry).replace("at step", "at or before step"))
        self._log(self.entries, "step", now, entry)
        return now, entry

    def add_evaluation(self, now: int, values: dict[str, Any]) -> dict[str, float]:
        entry = {name: float(value) for name, value in values.items()}
        for name in entry:
            taken = name in RESERVED or name in self.entries or name == "eval_step"
            require(not taken, "fit", "eval_fn", name, "a function whose names differ from the training metrics'")
        self._log(self.evaluations, "eval_step", now, entry)
        return entry

    def _log(self, table: dict[str, list[float]], index: str, now: int, entry: dict[str, float]) -> None:
        for name, value in {index: now, **entry}.items():
            table.setdefault(name, []).append(value)
        for logger in self.loggers:
            logger(now, entry)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(values) for name, values in (self.entries | self.evaluations).items()}


class _ArraySource:
    """Batches from arrays on the device: only the numbers of the examples travel."""

    def __init__(self, data: ArrayData):
        self.data, self.arrays, self.gather = data, data.device_arrays, data.gather

    def example(self, now: int) -> Any:
        return jax.eval_shape(self.gather, self.arrays, self.data.indices(now))

    def most(self, example: Any) -> int:
        del example
        return _AUTO_CHUNK

    def payload(self, now: int, count: int, size: int) -> np.ndarray:
        rows = np.zeros((size, self.data.batch_size), np.int32)
        for index in range(count):
            rows[index] = self.data.indices(now + index)
        return rows


class _StreamSource:
    """Batches from an iterable, stacked for each call."""

    def __init__(self, data: Iterable[Any]):
        try:
            self.iterator = iter(data)
        except TypeError:
            raise TypeError(f"fit: `data` must be an ArrayData or an iterable of batches, got {data!r}") from None
        self.arrays, self.drawn = (), 0

    @staticmethod
    def gather(arrays: Any, row: Any) -> Any:
        del arrays
        return row

    def example(self, now: int) -> Any:
        self.start = now
        first = next(self.iterator, None)
        require(first is not None, "fit", "data", first, "an iterable of at least one batch")
        self.iterator = itertools.chain([first], self.iterator)
        self.shapes = _shapes(first)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype), first)

    def most(self, example: Any) -> int:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(example))
        return max(1, _STREAM_BYTES // max(size, 1))

    def payload(self, now: int, count: int, size: int) -> Any:
        batches = list(itertools.islice(self.iterator, count))
        for offset, batch in enumerate(batches):
            if _shapes(batch) != self.shapes:
                raise ValueError(
                    f"fit: batch {now - self.start + offset} of `data` is {_shapes(batch)}, but the first was "
                    f"{self.shapes}; drop or pad what does not fill a batch"
                )
        if len(batches) < count:
            raise ValueError(
                f"fit: `data` ended after {now - self.start + len(batches)} batches, before `steps` were made; "
                "give a longer iterable or fewer steps"
            )
        batches += [batches[-1]] * (size - count)
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *batches)


def _shapes(batch: Any) -> Any:
    pairs = jax.tree_util.tree_flatten_with_path(batch)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(value)) for path, value in pairs}


def _slow_in_a_loop(step: Step, state: State, example: Any) -> bool:
    """Whether the step has a convolution and runs on the CPU, where XLA makes them 15 times slower inside a loop."""
    if jax.default_backend() != "cpu":
        return False
    return _has_convolution(jax.make_jaxpr(step.body)(state, example).jaxpr)


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and _has_convolution(inner):
                return True
    return False
