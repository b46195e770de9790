"""The loop: many steps per call on the device, host work only between calls."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._struct import require
from jax_lrreg.training.control import GROUP, hears_metrics, listen, tell
from jax_lrreg.training.data import ArrayData, source_of
from jax_lrreg.training.modules import adapt
from jax_lrreg.training.progress import Progress
from jax_lrreg.training.report import LAST, is_reserved, nonfinite_message
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step

Logger = Callable[[int, dict[str, float]], Any]


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
    control_on: str | None = None,
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
        control_on: a name that `eval_fn` returns. The controllers in the optimizer then hear that metric,
            once per evaluation, instead of the loss of each update; what they make of it is in force from
            the next update on. To see its names, `eval_fn` is called once before the first step.

    Returns:
        The state, and a history of NumPy arrays. An entry at `history["step"]` is made of the steps since
        the entry before: the learning rate and the scales as applied in the last of them, the monitors that are
        read from a state after it, the number of skipped
        ones, and the mean of every other metric over those that were not skipped. What `eval_fn` returns
        stands beside `history["eval_step"]`.

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
    _check_control(state, control_on, eval_every, eval_fn)
    state = state.replace(opt_state=listen(state.opt_state, control_on is not None))
    start = int(state.step)
    end = start + steps
    source = source_of(data)
    example = source.example(start)
    shapes = jax.eval_shape(step.body, state, example)[1]
    if chunk == "auto":
        loops = not slow_in_a_loop(step, state, example)
        size = min(log_every, steps, source.most(example)) if loops else 1
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
                    bar.update(pending[0], history.add(*pending))
                pending, sums = (now, sums | {"end": step.at_end(state)}), _zero_sums(shapes)
            if evaluate or now == end:
                entry = {} if pending is None else history.add(*pending)
                if evaluate:
                    values = history.add_evaluation(now, eval_fn(state))  # type: ignore[misc]
                    if control_on is not None:
                        state = state.replace(opt_state=tell(state.opt_state, values[control_on]))
                    entry |= values
                bar.update(now, entry)
                pending = None
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

    def whole(x: Any) -> Any:
        return isinstance(x, int | np.integer) and not isinstance(x, bool) and x >= 1

    require(whole(steps), "fit", "steps", steps, "a whole number >= 1")
    require(chunk == "auto" or whole(chunk), "fit", "chunk", chunk, "'auto' or a whole number >= 1")
    require(whole(log_every), "fit", "log_every", log_every, "a whole number >= 1")
    require(eval_every is None or whole(eval_every), "fit", "eval_every", eval_every, "a whole number >= 1 or None")
    require(eval_fn is None or callable(eval_fn), "fit", "eval_fn", eval_fn, "a function state -> {name: number}")
    needs = eval_every is None or eval_fn is not None
    require(needs, "fit", "eval_fn", eval_fn, "given where `eval_every` is")


def _check_control(state: State, control_on: Any, eval_every: Any, eval_fn: Any) -> None:
    if control_on is None:
        return
    require(isinstance(control_on, str), "fit", "control_on", control_on, "a name that `eval_fn` returns, or None")
    require(eval_every is not None, "fit", "eval_every", eval_every, "given where `control_on` is")
    listens = hears_metrics(state.opt_state)
    allowed = "None for an optimizer without transforms.scale_by_controller"
    require(listens, "fit", "control_on", control_on, allowed)
    names = sorted(eval_fn(state))
    require(control_on in names, "fit", "control_on", control_on, f"one of the names that `eval_fn` returns: {names}")


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
    last = {name: np.float32(0) for name in shapes if name in LAST or name.startswith(GROUP)}
    zeros = {name: np.float32(0) for name in shapes if name not in ("skipped", *last)}
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

    def add(self, now: int, sums: Any) -> dict[str, float]:
        sums = jax.device_get(sums)
        good = int(sums["steps"] - sums["skipped"])
        entry = {name: float(total) / good if good else float("nan") for name, total in sums["mean"].items()}
        entry |= {name: float(value) for name, value in (sums["last"] | sums["end"]).items()}
        entry["skipped"] = int(sums["skipped"])
        if self.raises and entry["skipped"]:
            raise FloatingPointError(nonfinite_message(now - 1, entry).replace("at step", "at or before step"))
        self._log(self.entries, "step", now, entry)
        return entry

    def add_evaluation(self, now: int, values: dict[str, Any]) -> dict[str, float]:
        entry = {name: float(value) for name, value in values.items()}
        for name in entry:
            taken = is_reserved(name) or name in self.entries or name == "eval_step"
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


def slow_in_a_loop(step: Step, state: State, example: Any) -> bool:
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
