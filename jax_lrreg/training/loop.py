"""The loop: many steps per call on the device, host work only between calls."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg._optax_state import hears_metrics, listen, tell
from jax_lrreg.training.accumulate import is_slow_in_a_loop
from jax_lrreg.training.data import ArrayData, ArraySource, Batch, Draw, source_of
from jax_lrreg.training.history import Entry, History, Interval, Logger, names_of, zero_sums
from jax_lrreg.training.program import edited, placement, program_of, settled
from jax_lrreg.training.progress import Progress
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step
from jax_lrreg.training.stop import (
    Best,
    Deadline,
    Stop,
    check_stopping,
    handled_signals,
    held_back,
    judged,
    name_of,
    names_asked,
)

Evaluation = Callable[[State], Mapping[str, chex.Numeric]]


def fit(
    step: Step,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    steps: int | None = None,
    until: int | None = None,
    chunk: int | str = "auto",
    log_every: int = 100,
    eval_every: int | None = None,
    eval_fn: Evaluation | None = None,
    stop: Stop | None = None,
    keep_best: Best | None = None,
    progress: bool = False,
    loggers: Sequence[Logger] = (),
    control_on: str | None = None,
) -> tuple[State, dict[str, np.ndarray]]:
    """Runs `steps` steps from `state`, or `until` it has made so many, in chunks on the device.

    The result does not depend on `chunk`, bit for bit, but where "auto" makes single calls: there
    several steps in one call are another program, whose sums may round in another order. Metrics
    are summed up on the device and fetched once per log interval, one interval late, so the device
    never waits for the host.

    Args:
        step: from `make_step`.
        state: from `init`, or from an earlier call. It is donated: go on with the one returned.
        data: an `ArrayData`, whose batch is found by `state.step`, or any iterable of batches, from
            its beginning (see `Stream`). Those of a call are drawn while the device works on the
            call before, and never more than `steps`.
        steps: how many steps to make; this or `until` is given.
        until: the `state.step` to reach. One that has been reached already is no error.
        chunk: steps in one call. "auto" makes it as long as the log interval, up to 1000; where a
            loop on the device is slow (convolutions on the CPU), "auto" makes single calls.
        log_every: steps between two entries of the history.
        eval_every: steps between two evaluations; None with an `eval_fn` evaluates at the end only.
        eval_fn: any function `state -> {name: number}`; see `make_eval`.
        stop: any function `(step, {name: number}) -> bool`, called after each evaluation with what
            `eval_fn` returned: where it says True the run ends. See `Patience` and `Deadline`.
        keep_best: a `Best`, which holds a copy of the state at the best evaluation.
        progress: shows a progress bar on a terminal or in a notebook, and at most 20 plain lines
            elsewhere.
        loggers: functions `(step, {name: number})`, called for each entry; see `log_csv`,
            `log_jsonl` and `log_tensorboard`.
        control_on: a name that `eval_fn` returns. The controllers in the optimizer then hear that
            metric, once per evaluation, instead of the loss of each update; what they make of it is
            in force from the next update on.

    To see the names that `control_on`, `Patience` and `Best` speak of, `eval_fn` is called once
    before the first step.

    Returns:
        The state, and a history of NumPy arrays. An entry at `history["step"]` is made of the steps
        since the entry before: the learning rate and the scales as applied in the last of them, the
        monitors that are read from the state after it, the number of skipped ones, and the mean of
        every other metric over those that were not skipped. What `eval_fn` returns stands beside
        `history["eval_step"]`. `history["ended"]` says after which step the run ended, and why.

    Raises:
        FloatingPointError: with `on_nonfinite="raise"`, when an update is not finite: it names the
            first such step, up to two intervals later. The update is left out, the steps after it
            are made.
        ValueError: if the data ends early, or a batch has another structure than the first.

    Where an error of the data, an evaluation or a logger ends the run, its attribute `history` is
    the history so far, and `state` the state after the last call of the device, which is after
    every batch before a bad one; an error at the first batch has none, and leaves the state that
    was given as it was. Of an iterator, the batches of one more call have been drawn by then.
    Ctrl-C has both at any moment: it waits for the call of the device to return, unless it is
    pressed twice.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply, tx = lambda params, x: x @ params, optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> loss_fn = lambda model, batch: jnp.mean((model(batch) - 1) ** 2)
        >>> step = training.make_step(apply, loss_fn, tx)
        >>> data = ArrayData(np.eye(2, dtype=np.float32), batch_size=2, key=jax.random.key(1))
        >>> state, history = fit(step, state, data, steps=100, log_every=50)
        >>> history["step"], bool(history["loss"][-1] < 1e-3)
        (array([ 50, 100]), True)
    """
    history = History(loggers)
    eval_every = _checked_evaluation(eval_every, eval_fn)
    check_stopping(stop, keep_best, eval_fn, eval_every)
    if (steps is None) == (until is None):
        given = f"steps={steps}, until={until}"
        raise TypeError(f"fit: one of `steps` and `until` must be given, got {given}")
    options = {"chunk": chunk, "log_every": log_every, "eval_every": eval_every}
    run = _Run("fit", step, state, data, steps, until, **options)
    stopped = False
    try:
        run.control(control_on, eval_fn, stop, keep_best)
        with Progress(progress, run.start, run.end) as bar:
            for now in run.chunks():
                if now.interval.closed:
                    bar.update(*history.write(now.interval))
                if run.evaluates(now.step):
                    _, entry = history.write()
                    if eval_fn is not None:
                        values = _evaluate(now, eval_fn, control_on, history)
                        stopped = judged(stop, keep_best, now.step, values, now.state)
                        entry |= values
                    bar.update(now.step, entry)
                stopped = stopped or (isinstance(stop, Deadline) and stop.is_over())
                if stopped:
                    run.close(history)
                    break
            why = f"{name_of(stop)} said so" if stopped else "all steps are made"
            history.end(run.now.step, why)
            if stopped:
                bar.stopped(run.now.step, history.ended)
        return run.now.state, history.arrays()
    except BaseException as error:
        run.leave(error, history)
        raise


def steps(
    step: Step,
    state: State,
    data: ArrayData | Iterable[Batch],
    *,
    steps: int,
    chunk: int | str = "auto",
    log_every: int = 100,
) -> Generator["Chunk", None, None]:
    """The loop of `fit` as a generator: its body, between two calls of the device, is yours.

    Args:
        step: from `make_step`.
        state: donated at the first call of the device, as each one that is yielded is at the next.
        data: as in `fit`.
        steps: how many steps to make.
        chunk: steps in one call, as in `fit`; no call crosses a multiple of `log_every`.
        log_every: steps between two beginnings of the metrics.

    Yields:
        A `Chunk` after each call: `.step`, `.state`, and `.metrics`, which are fetched when they
        are looked at. To edit the state, assign `.state`. Where the loop is left early, the last
        chunk's state is alive and goes on; of an iterator, one more call's batches have been drawn
        by then. An error in the loop, and Ctrl-C, has it as its attribute `state`.

    Raises:
        FloatingPointError: as in `fit`, and also where the metrics are looked at.
        ValueError: as in `fit`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> apply, tx = lambda params, x: x @ params, lambda hyper: optax.sgd(hyper["rate"])
        >>> options = {"params": jnp.zeros(2), "hyper": {"rate": 0.1}}
        >>> state = training.init(apply, tx, key=jax.random.key(0), **options)
        >>> loss_fn = lambda model, batch: jnp.mean((model(batch) - 1) ** 2)
        >>> step = training.make_step(apply, loss_fn, tx)
        >>> data = ArrayData(np.eye(2, dtype=np.float32), batch_size=2, key=jax.random.key(1))
        >>> for now in training.steps(step, state, data, steps=200, log_every=100):
        ...     if now.metrics["loss"] > 1e-3:
        ...         now.state = now.state.replace(hyper={"rate": 0.5})
        >>> now.step, bool(now.metrics["loss"] < 1e-6)
        (200, True)
    """
    run = _Run("steps", step, state, data, steps, chunk=chunk, log_every=log_every)
    run.control()
    return _read_late(run)


class Chunk:
    """Where `steps` has come to after a call of the device.

    Attributes:
        step: how many steps the state has made, from the very first.
        state: the state after them. It is alive until the loop is asked for the next chunk. Assign
            another one to go on with that: a changed number costs nothing, another structure, shape
            or dtype is refused.
        names: of the metrics of a step.
        metrics: what `fit` would write as an entry of its history: the metrics of the steps since
            the last multiple of `log_every`. The first look at it waits for the device and fetches
            them. Look at it one chunk later, and the device never waits for you.
    """

    def __init__(self, step: int, state: State, interval: Interval):
        self.step, self._state, self.interval = step, state, interval

    def __repr__(self) -> str:
        return f"Chunk(step={self.step}, names={self.names})"

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, new: State) -> None:
        self._state = edited(self._state, new)

    @property
    def names(self) -> list[str]:
        return [*self.interval.names, "skipped"]

    @property
    def metrics(self) -> Entry:
        return self.interval.read()


class _Run:
    """A run under way.

    All that changes is the latest chunk. Whatever ends the run, and whenever it does, its state
    goes on.
    """

    def __init__(
        self,
        owner: str,
        step: Step,
        state: State,
        data: ArrayData | Iterable[Batch],
        steps: int | None,
        until: int | None = None,
        *,
        chunk: int | str,
        log_every: int,
        eval_every: int | None = None,
    ):
        if not isinstance(step, Step):
            raise TypeError(f"{owner}: `step` must come from make_step, got {step!r}")
        further = require_whole(owner, "steps", steps) if until is None else 0
        goal = 0 if until is None else require_whole(owner, "until", until, least=0)
        if chunk != "auto":
            require_whole(owner, "chunk", chunk, allowed="'auto' or a whole number >= 1")
        self.log_every = require_whole(owner, "log_every", log_every)
        self.eval_every, self.chunk, self.owner, self.step = eval_every, chunk, owner, step
        state = settled(step.complete(state))
        self.start = int(jax.device_get(state.step))
        self.end = max(self.start + further, goal)
        self.place = placement(state)
        self.source = source_of(data, owner, self.end - self.start, self.place)
        self.now = Chunk(self.start, state, Interval(self.start, self.start, [], True, False))

    def control(
        self,
        control_on: str | None = None,
        eval_fn: Evaluation | None = None,
        stop: Stop | None = None,
        keep_best: Best | None = None,
    ) -> None:
        """Lets the controllers hear a metric of `eval_fn`, or each update's loss where None.

        The names that these speak of are held against those that `eval_fn` returns.
        """
        state = self.now.state
        if control_on is not None:
            allowed = "a name that `eval_fn` returns, or None"
            require(isinstance(control_on, str), "fit", "control_on", control_on, allowed)
            if self.eval_every is None or eval_fn is None:
                require(False, "fit", "eval_every", None, "given where `control_on` is")
            allowed = "None for an optimizer without transforms.scale_by_controller"
            require(hears_metrics(state.opt_state), "fit", "control_on", control_on, allowed)
        asked = names_asked(stop=stop, keep_best=keep_best, control_on=control_on)
        if asked and eval_fn is not None and self.start < self.end:
            names = sorted(eval_fn(state))
            for argument, name in asked.items():
                require_choice("fit", argument, name, names)
        if isinstance(stop, Deadline):
            stop.begin()
        listening = listen(state.opt_state, control_on is not None)
        self.now = Chunk(self.start, state.replace(opt_state=listening), self.now.interval)

    def evaluates(self, step: int) -> bool:
        """Whether the state after so many steps is to be evaluated."""
        every = self.eval_every
        return step == self.end or (every is not None and (step - self.start) % every == 0)

    def close(self, history: History) -> None:
        """Ends the history's last entry here, where the run is stopped in the middle of it."""
        interval = self.now.interval
        if not interval.closed:
            interval.closed, interval.at_end = True, self.step.at_end(self.now.state)
            history.write(interval)
        history.write()

    def chunks(self) -> Generator["Chunk", None, None]:
        """One call of the device after the other; meanwhile the next batches are drawn."""
        if self.start == self.end:
            return
        example = self.source.example(self.start)
        trace = self.step.body.trace(self.now.state, example)
        _, metrics = trace.out_info
        loops = not is_slow_in_a_loop(trace) or self.chunk not in ("auto", 1)
        program, names = program_of(self.step, loops), names_of(metrics)
        zeros, signals = self.place(zero_sums(names)), handled_signals()
        draws = self._draws(self._size(example) if loops else None)
        draw = next(draws)
        while draw.steps:
            self._call(program, draw, names, zeros, signals)
            # The call has returned at once, so this is as fast as a thread that draws ahead: 23.5
            # and 23.5 ms a step of 20 from a loader that sleeps, 25.3 and 25.2 from one that holds
            # the interpreter.
            draw = next(draws)
            yield self.now
        if draw.error is not None:
            raise draw.error

    def _call(
        self, program: Callable, draw: Draw, names: list[str], zeros: chex.Array, signals: list[int]
    ) -> None:
        before, state, source = self.now.interval, self.now.state, self.source
        if draw.error is not None and self.now.step == self.start:
            state = jax.tree.map(jnp.copy, state)  # the first call: nothing that was given is lost
        begin, sums = (before.end, zeros) if before.closed else (before.begin, before.sums)
        end, made = self.now.step + draw.steps, self.now.step + draw.steps - self.start
        closed = end == self.end or made % self.log_every == 0
        interval = Interval(begin, end, names, closed, self.step.on_nonfinite == "raise")
        rows = (source.arrays, draw.payload, np.int32(draw.steps))
        with (
            jax.profiler.StepTraceAnnotation("train", step_num=self.now.step),
            held_back(signals),
        ):
            # The state is given away here: an interrupt before the new one has its name would lose
            # both.
            state, interval.sums = program(state, sums, *rows, gather=source.gather)
            self.now = Chunk(end, state, interval)
        if closed:
            interval.at_end = self.step.at_end(state)

    def _size(self, example: Batch) -> int:
        """The most steps that one call makes."""
        most = self.source.most(example) if self.chunk == "auto" else int(self.chunk)
        size = min(most, self.log_every, self.eval_every or self.log_every)
        if isinstance(self.source, ArraySource):
            # Rows of numbers cost little: without the end of the run, a shorter one compiles
            # nothing anew.
            return size
        return min(size, self.end - self.start)

    def _draws(self, size: int | None) -> Iterator[Draw]:
        """What each call needs; at last nothing, and the error in place of a batch, if any."""
        now, error = self.start, None
        while now < self.end and error is None:
            every = (self.log_every, self.eval_every or self.log_every)
            room = (n - (now - self.start) % n for n in every)  # no call goes beyond an interval
            draw = self.source.draw(now, min(size or 1, self.end - now, *room), size)
            now, error = now + draw.steps, draw.error
            if draw.steps:
                yield draw
        yield Draw(0, error=error)

    def leave(self, error: BaseException, history: History | None = None) -> None:
        """Hands the state and the history to the error that ends the run."""
        interrupted = not isinstance(error, Exception)
        with contextlib.suppress(AttributeError):  # an error may have no place for attributes
            if history is not None:
                if not interrupted:
                    with contextlib.suppress(Exception):  # the first error is the one to tell
                        history.write()
                error.history = history.arrays()  # type: ignore[attr-defined]
            now = self.now
            begun = interrupted or now.step > self.start
            if begun and not now.state.step.is_deleted():
                error.state = now.state  # type: ignore[attr-defined]
                where = f"the attribute `state` of this error is that after step {now.step}"
                error.add_note(f"{self.owner}: {where}")


def _read_late(run: _Run) -> Generator[Chunk, None, None]:
    """The chunks of a run; an update that is not finite raises, one interval late."""
    late: Chunk | None = None
    try:
        for now in run.chunks():
            yield now
            if now.interval.closed and run.step.on_nonfinite == "raise":
                if late is not None:
                    late.interval.read()
                late = now
        if late is not None:
            late.interval.read()
    except GeneratorExit:
        raise
    except BaseException as error:
        run.leave(error)
        raise


def _evaluate(
    now: Chunk, eval_fn: Evaluation, control_on: str | None, history: History
) -> dict[str, float]:
    """What `eval_fn` finds, told to the history, and to the controllers where they listen."""
    with jax.profiler.TraceAnnotation("evaluate"):
        values = history.add_evaluation(now.step, eval_fn(now.state), now.names)
    if control_on is not None:
        now.state = now.state.replace(opt_state=tell(now.state.opt_state, values[control_on]))
    return values


def _checked_evaluation(eval_every: int | None, eval_fn: Evaluation | None) -> int | None:
    if eval_every is not None:
        allowed = "a whole number >= 1 or None"
        eval_every = require_whole("fit", "eval_every", eval_every, allowed=allowed)
        require(eval_fn is not None, "fit", "eval_fn", None, "given where `eval_every` is")
    fits = eval_fn is None or callable(eval_fn)
    require(fits, "fit", "eval_fn", eval_fn, "a function state -> {name: number}")
    return eval_every
