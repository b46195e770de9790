"""The loop: many steps per call on the device, host work only between calls."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg._optax_state import hears_metrics, listen, tell
from jax_lrreg.training.chunk import Chunk, settled
from jax_lrreg.training.convolutions import traced
from jax_lrreg.training.data import ArrayData, source_of
from jax_lrreg.training.history import History, Logger, add, read, rows, zero_sums
from jax_lrreg.training.progress import Progress
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step


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

    The result does not depend on `chunk`, bit for bit, but where "auto" makes single calls: there several steps in
    one call are another program, whose sums may round in another order. Metrics are summed up on the device and
    fetched once per log interval, one interval late, so the device never waits for the host.

    Args:
        step: from `make_step`.
        state: from `init`, or from an earlier call. It is donated: go on with the one returned.
        data: an `ArrayData`, whose batch is found by `state.step`, or any iterable of batches, from its beginning
            (see `Stream`). A thread draws them while the device works, and never more than `steps`.
        steps: how many steps to make.
        chunk: steps in one call. "auto" makes it as long as the log interval, up to 1000; where a loop on
            the device is slow (convolutions on the CPU), "auto" makes single calls.
        log_every: steps between two entries of the history.
        eval_every: steps between two evaluations; None with an `eval_fn` evaluates at the end only.
        eval_fn: any function `state -> {name: number}`; see `make_eval`.
        progress: shows a progress bar on a terminal or in a notebook, and plain lines elsewhere.
        loggers: functions `(step, {name: number})`, called for each entry; see `log_csv`, `log_jsonl` and
            `log_tensorboard`.
        control_on: a name that `eval_fn` returns. The controllers in the optimizer then hear that metric,
            once per evaluation, instead of the loss of each update; what they make of it is in force from
            the next update on. To see its names, `eval_fn` is called once before the first step.

    Returns:
        The state, and a history of NumPy arrays. An entry at `history["step"]` is made of the steps since
        the entry before: the learning rate and the scales as applied in the last of them, the monitors that are
        read from the state after it, the number of skipped ones, and the mean of every other metric over those
        that were not skipped. What `eval_fn` returns stands beside `history["eval_step"]`.

    Raises:
        FloatingPointError: with `on_nonfinite="raise"`, when an update is not finite: up to two intervals later, as the
            metrics tell it. The update is left out, the steps after it are made.
        ValueError: if the data ends early, or a batch has another structure than the first.

    Where an error of the data, an evaluation or a logger ends the run, its attribute `history` is the history so far,
    and `state` the state after the last call of the device, which is after every batch before a bad one; an error at
    the first batch has none, and leaves the state that was given as it was. Of an iterator, the batches of up to two
    more calls have been drawn by then. Ctrl-C has both too, unless it comes during a call of the device, when the
    state before is given away and the one after is not there yet.

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
    _check_arguments("fit", step, steps, chunk, log_every)
    _check_evaluation(eval_every, eval_fn)
    state = settled(step.prepare(state))
    _check_control(state, control_on, eval_every, eval_fn)
    state = state.replace(opt_state=listen(state.opt_state, control_on is not None))
    start = int(jax.device_get(state.step))
    end = start + steps
    history, pending, now = History(loggers), None, None

    def written() -> dict[str, float]:
        """The entry that has waited for an interval, now in the history."""
        nonlocal pending
        if pending is None:
            return {}
        chunk, pending = pending, None
        return history.add(chunk.step, chunk.metrics)

    calls = _chunks("fit", step, state, data, start, steps, chunk, log_every, eval_every)
    try:
        with Progress(progress, start, end) as bar, contextlib.closing(calls):
            for now in calls:
                made = now.step - start
                evaluate = eval_fn is not None and (
                    now.step == end or (eval_every is not None and made % eval_every == 0)
                )
                if made % log_every == 0 or now.step == end:
                    if pending is not None:
                        bar.update(pending.step, written())
                    pending = now
                if evaluate or now.step == end:
                    entry = written()
                    if evaluate:
                        with jax.profiler.TraceAnnotation("evaluate"):
                            values = eval_fn(now.state)  # type: ignore[misc]
                            values = history.add_evaluation(now.step, values, now.names)
                        if control_on is not None:
                            now.state = now.state.replace(
                                opt_state=tell(now.state.opt_state, values[control_on])
                            )
                        entry = entry | values
                    bar.update(now.step, entry)
    except BaseException as error:
        if isinstance(error, Exception):
            with contextlib.suppress(Exception):  # the first error is the one to tell
                written()
        _keep_work(error, now, history)
        raise
    return now.state, history.arrays()  # type: ignore[union-attr]


def steps(
    step: Step,
    state: State,
    data: ArrayData | Iterable[Any],
    *,
    steps: int,
    chunk: int | str = "auto",
    log_every: int = 100,
) -> Generator[Chunk, None, None]:
    """The loop of `fit` as a generator: its body, between two calls of the device, is yours.

    Args:
        step: from `make_step`.
        state: donated at the first call of the device, as each one that is yielded is at the next.
        data: as in `fit`.
        steps: how many steps to make.
        chunk: steps in one call, as in `fit`; no call crosses a multiple of `log_every`.
        log_every: steps between two beginnings of the metrics.

    Yields:
        A `Chunk` after each call: `.step`, `.state`, and `.metrics`, which are fetched when they are looked at.
        To edit the state, assign `.state`. Where the loop is left early, or by an error, the last chunk's state
        is alive and goes on; of an iterator, up to two more calls' batches have been drawn by then.

    Raises:
        FloatingPointError: as in `fit`, and also where the metrics are looked at.
        ValueError: as in `fit`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply, tx = lambda params, x: x @ params, lambda hyper: optax.sgd(hyper["rate"])
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2), hyper={"rate": 0.1})
        >>> step = training.make_step(apply, lambda model, batch: jnp.mean((model(batch) - 1) ** 2), tx)
        >>> data = ArrayData(np.eye(2, dtype=np.float32), batch_size=2, key=jax.random.key(1))
        >>> for now in training.steps(step, state, data, steps=200, log_every=100):
        ...     if now.metrics["loss"] > 1e-3:
        ...         now.state = now.state.replace(hyper={"rate": 0.5})
        >>> now.step, bool(now.metrics["loss"] < 1e-6)
        (200, True)
    """
    _check_arguments("steps", step, steps, chunk, log_every)
    state = settled(step.prepare(state))
    state = state.replace(opt_state=listen(state.opt_state, False))
    return _chunks(
        "steps", step, state, data, int(jax.device_get(state.step)), steps, chunk, log_every, None
    )


def _chunks(
    owner: str,
    step: Step,
    state: State,
    data: Any,
    start: int,
    steps: int,
    chunk: Any,
    log_every: int,
    eval_every: int | None,
) -> Generator[Chunk, None, None]:
    source = source_of(data, owner)
    example = source.example(start)
    (_, shapes), slow = traced(step.body, state, example)
    loops = not slow or chunk not in ("auto", 1)
    held = len(data) if isinstance(data, list | tuple) else steps
    require(
        held >= steps,
        owner,
        "data",
        f"{held} batches",
        f"at least {steps} batches, one for each step",
    )
    size = min(
        source.most(example) if chunk == "auto" else int(chunk), log_every, eval_every or log_every
    )
    if not isinstance(data, ArrayData):
        size = min(
            size, steps
        )  # rows of numbers cost little: without this, a shorter run compiles nothing anew
    kind = "many" if loops else "one"
    if kind not in step.programs:
        step.programs[kind] = _program(step, loops)
    run = step.programs[kind]
    counts = _counts(steps, size if loops else 1, log_every, eval_every)
    place = _placement(state)
    names, zeros = rows(shapes), place(zero_sums(shapes))
    sums, late, now = zeros, None, start
    with contextlib.closing(source.draw(start, counts, size if loops else None, place)) as draws:
        for count, payload, error in draws:
            if count:
                if error is not None and now == start:
                    state = jax.tree.map(jnp.copy, state)  # nothing that was given is lost
                with jax.profiler.StepTraceAnnotation("train", step_num=now):
                    state, sums = run(
                        state, sums, source.arrays, payload, np.int32(count), gather=source.gather
                    )
                now += count
                ends = (now - start) % log_every == 0 or now == start + steps
                at_end = step.at_end(state) if ends else {}
                done = Chunk(
                    now,
                    state,
                    names,
                    partial(read, now, names, sums, at_end, step.on_nonfinite == "raise"),
                )
                yield done
                state = done.state
                if ends:
                    if step.on_nonfinite == "raise" and late is not None:
                        late.metrics  # noqa: B018  looked at one interval late, like all metrics
                    late, sums = done, zeros
            if error is not None:
                raise error
    if late is not None and step.on_nonfinite == "raise":
        late.metrics  # noqa: B018


def _counts(steps: int, size: int, log_every: int, eval_every: int | None) -> Iterator[int]:
    """How many steps each call makes: at most `size`, and none beyond the end of an interval."""
    made = 0
    while made < steps:
        count = min(size, steps - made, log_every - made % log_every)
        if eval_every:
            count = min(count, eval_every - made % eval_every)
        yield count
        made += count


def _placement(state: State) -> Callable[[Any], Any]:
    """Sends stacked batches to where the state is; where it is on many devices, `jit` distributes them."""
    sharding = state.step.sharding
    if len(sharding.device_set) > 1 or jax.process_count() > 1:
        return lambda rows: rows
    return partial(jax.device_put, device=sharding if state.step.committed else None)


def _keep_work(error: BaseException, now: Chunk | None, history: History) -> None:
    """Hands the history to an error, and the state of the last chunk if it has not been given to the device already."""
    with contextlib.suppress(AttributeError):
        error.history = history.arrays()  # type: ignore[attr-defined]
        if now is None or now.state.step.is_deleted():
            return
        error.state = now.state  # type: ignore[attr-defined]
        error.add_note(
            f"fit: the state after step {now.step} is the attribute `state` of this error"
        )


def _check_arguments(owner: str, step: Any, steps: Any, chunk: Any, log_every: Any) -> None:
    if not isinstance(step, Step):
        raise TypeError(f"{owner}: `step` must come from make_step, got {step!r}")
    require(_whole(steps), owner, "steps", steps, "a whole number >= 1")
    require(
        chunk == "auto" or _whole(chunk), owner, "chunk", chunk, "'auto' or a whole number >= 1"
    )
    require(_whole(log_every), owner, "log_every", log_every, "a whole number >= 1")


def _check_evaluation(eval_every: Any, eval_fn: Any) -> None:
    require(
        eval_every is None or _whole(eval_every),
        "fit",
        "eval_every",
        eval_every,
        "a whole number >= 1 or None",
    )
    require(
        eval_fn is None or callable(eval_fn),
        "fit",
        "eval_fn",
        eval_fn,
        "a function state -> {name: number}",
    )
    needs = eval_every is None or eval_fn is not None
    require(needs, "fit", "eval_fn", eval_fn, "given where `eval_every` is")


def _whole(x: Any) -> Any:
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and x >= 1


def _check_control(state: State, control_on: Any, eval_every: Any, eval_fn: Any) -> None:
    if control_on is None:
        return
    require(
        isinstance(control_on, str),
        "fit",
        "control_on",
        control_on,
        "a name that `eval_fn` returns, or None",
    )
    require(eval_every is not None, "fit", "eval_every", eval_every, "given where `control_on` is")
    listens = hears_metrics(state.opt_state)
    allowed = "None for an optimizer without transforms.scale_by_controller"
    require(listens, "fit", "control_on", control_on, allowed)
    names = sorted(eval_fn(state))
    require(
        control_on in names,
        "fit",
        "control_on",
        control_on,
        f"one of the names that `eval_fn` returns: {names}",
    )


def _program(step: Step, loops: bool) -> Callable:
    """The compiled call that makes `count` steps; the number is data, so every chunk is one and the same program."""

    def one(carry: tuple[State, jax.Array], batch: Any) -> tuple[State, jax.Array]:
        state, metrics = step.body(carry[0], batch)
        return state, add(carry[1], metrics)

    def single(state, values, arrays, row, count, *, gather):
        del count
        return one((state, values), gather(arrays, row))

    def many(state, values, arrays, rows, count, *, gather):
        def body(index, carry):
            return one(carry, gather(arrays, jax.tree.map(lambda x: x[index], rows)))

        return jax.lax.fori_loop(0, count, body, (state, values))

    def program(state, sums, arrays, rows, count, *, gather):
        state, values = (many if loops else single)(
            state, sums["values"], arrays, rows, count, gather=gather
        )
        return state, {"values": values, "steps": sums["steps"] + count}

    donated = (
        (0,) if step.donate else ()
    )  # the sums are few, and whoever holds a chunk may read them later
    return jax.jit(program, donate_argnums=donated, static_argnames="gather")
