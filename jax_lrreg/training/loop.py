"""The loop: many steps per call on the device, host work only between calls."""

from collections.abc import Generator, Iterable, Sequence

import jax
import numpy as np

from jax_lrreg._check import require, require_whole
from jax_lrreg._optax_state import tell
from jax_lrreg._processes import agreed, ending_together
from jax_lrreg.training.accumulate import is_slow_in_a_loop
from jax_lrreg.training.chunks import Chunk, Evaluation, Run
from jax_lrreg.training.data import ArrayData, Batch
from jax_lrreg.training.history import History, Logger, names_of, zero_sums
from jax_lrreg.training.interrupts import Interrupts
from jax_lrreg.training.mesh import around
from jax_lrreg.training.program import place_of, platform_of, program_of
from jax_lrreg.training.progress import Progress
from jax_lrreg.training.resume import Checkpoint, Unkept, kept
from jax_lrreg.training.sources import ArraySource, source_of
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step
from jax_lrreg.training.stop import Best, Deadline, Stop, check_stopping, judged, name_of

ALL = "all steps are made"


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
    checkpoint: Checkpoint | None = None,
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
        checkpoint: a folder, or a `checkpoints.Folder`: the run is kept there, and goes on from
            there when it is called again, bit for bit, whatever ended it. `steps` and `until` count
            from the state given. A run that has ended returns at once; another plan is refused.
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
        ValueError: if the data ends early, or a batch has another structure than the first; if the
            run in `checkpoint` is another one, by the name of what differs, with both values.
        OSError: a checkpoint cannot be written.
        Damaged: the newest checkpoint is not what was written.

    Where an error of the data, an evaluation or a logger ends the run, its attribute `history` is
    the history so far, and `state` the state after the last call of the device, which is after
    every batch before a bad one; an error at the first batch has none, and leaves the state that
    was given as it was. Of an iterator, the batches of one more call have been drawn by then.

    Ctrl-C and SIGTERM end the run cleanly: the call of the device and an evaluation are waited for,
    the checkpoint is written, and `history["interrupted"]` is the signal's name. A second one stops
    at once. Threads other than the main one leave the signals alone. Of several processes it is
    enough that one has the signal, and all end where the entry of the history does. An error in one
    ends the others, with a line on it, since their devices would wait for ever.

    Example:
        >>> import jax.numpy as jnp, optax
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
    with ending_together("fit", begins=True):
        history = History(loggers)
        eval_every = _checked_evaluation(eval_every, eval_fn)
        check_stopping(stop, keep_best, eval_fn, eval_every)
        if (steps is None) == (until is None):
            given = f"steps={steps}, until={until}"
            raise TypeError(f"fit: one of `steps` and `until` must be given, got {given}")
        options = {"chunk": chunk, "log_every": log_every, "eval_every": eval_every}
        run = Run("fit", step, state, data, steps, until, **options)
    keeping = kept(checkpoint, run, history, data, stop, keep_best, control_on)
    try:
        with ending_together("fit"), Interrupts() as interrupts, keeping as keeper:
            if keeper.finished:
                return run.now.state, history.arrays()
            run.noticed = interrupts.noticed
            run.control(control_on, eval_fn, stop, keep_best, keeper.best)
            with Progress(progress, run.now.step, run.end) as bar:
                for now in run.chunks():
                    if now.interval.closed:
                        bar.update(*history.write(now.interval))
                    values, stopped = {}, False
                    if run.evaluates(now.step):
                        _, entry = history.write()
                        if eval_fn is not None:
                            values = _evaluate(now, eval_fn, control_on, history)
                            stopped = judged(stop, keep_best, now.step, values, now.state)
                        bar.update(now.step, entry | values)
                    due = keeper.is_due(values)
                    stopped, why, due = _decided(run, stopped, stop, interrupts, due)
                    if _ends(run, history, keeper, values, why, stopped, due):
                        history.interrupted = interrupts.came
                        bar.stopped(now.step, history.ended)
                        break
            history.ended = history.ended or f"after step {run.now.step}: {ALL}"
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
        A `Chunk` after each call: `.step`, `.state`, and `.metrics`, which are fetched when they
        are looked at. To edit the state, assign `.state`. Where the loop is left early, the last
        chunk's state is alive and goes on; of an iterator, one more call's batches have been drawn
        by then. An error in the loop, and Ctrl-C, has it as its attribute `state`.

    Raises:
        FloatingPointError: as in `fit`, and also where the metrics are looked at.
        ValueError: as in `fit`.

    Example:
        >>> import jax.numpy as jnp, optax
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
    with ending_together("steps", begins=True):
        run = Run("steps", step, state, data, steps, chunk=chunk, log_every=log_every)
        run.control()
    return _read_late(run)


def lower(
    step: Step, state: State, data: ArrayData | Iterable[Batch], *, chunk: int = 100
) -> jax.stages.Lowered:
    """The program of one call in `fit`, which makes up to `chunk` steps, lowered but not compiled.

    Nothing runs, and no device need be there: `.compile()` has its cost, memory and text.

    Args:
        step: from `make_step`.
        state: from `init`, or its shapes with shardings, as of a mesh of
            `jax.experimental.topologies`, for devices that are elsewhere.
        data: as in `fit`; of an iterable the first batch is drawn, which is that of all processes.
        chunk: how many steps a call has room for.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jax_lrreg import training
        >>> apply, tx = lambda params, x: x @ params, optax.sgd(0.1)
        >>> state = training.init(apply, tx, key=jax.random.key(0), params=jnp.zeros(2))
        >>> step = training.make_step(apply, lambda model, x: jnp.mean(model(x) ** 2), tx)
        >>> program = lower(step, state, [np.eye(2, dtype=np.float32)], chunk=1)
        >>> "while" in program.as_text()
        True
    """
    if not isinstance(step, Step):
        raise TypeError(f"lower: `step` must come from make_step, got {step!r}")
    chunk = require_whole("lower", "chunk", chunk)
    source, place = source_of(data, "lower"), place_of(state, "lower")
    example = source.example(0)
    with around(state, "lower"):
        state = place.shapes(jax.eval_shape(step.complete, state), state)
        trace = step.body.trace(state, example)
        loops = chunk > 1 or not is_slow_in_a_loop(trace, platform_of(state))
        before: tuple[int, ...] = (chunk,) if loops else ()
        if isinstance(source, ArraySource):
            rows = jax.ShapeDtypeStruct((*before, source.data.batch_size), np.int32)
        else:
            rows = place.row_shapes(example, before)
        sums = place.shapes(zero_sums(names_of(trace.out_info[1])))
        arrays = place.shapes(source.arrays)
        program = program_of(step, loops, state)
        return program.lower(state, sums, arrays, rows, np.int32(chunk), gather=source.gather)


def _read_late(run: Run) -> Generator[Chunk, None, None]:
    """The chunks of a run; an update that is not finite raises, one interval late."""
    late: Chunk | None = None
    try:
        with ending_together("steps"):
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


def _ends(
    run: Run,
    history: History,
    keeper: Unkept,
    values: dict[str, float],
    why: str,
    stopped: bool,
    due: bool,
) -> bool:
    """Whether the run ends here before its time; writes what is to be kept, here or there."""
    if stopped:
        run.close(history)
    at_end = run.now.step == run.end
    if stopped or at_end:
        history.end(run.now.step, why)
    if due or why:
        keeper.save(values, stopped)
    if at_end or not why:
        return False
    if keeper.keeps:
        # What only the interruption cuts short is not kept, nor logged: the run that goes on writes
        # the whole entry.
        history.loggers = ()
    run.close(history)
    history.end(run.now.step, why)
    return True


def _decided(
    run: Run, stopped: bool, stop: Stop | None, interrupts: Interrupts, due: bool
) -> tuple[bool, str, bool]:
    """Whether `stop` ends the run, why it ends here or "", and whether it is to be saved.

    Several processes decide it together, where an entry of the history ends: between two of them
    the host of one may be some calls ahead of another's.
    """
    over = stopped or (isinstance(stop, Deadline) and stop.is_over())
    if jax.process_count() > 1 and not (run.now.interval.closed or run.evaluates(run.now.step)):
        return False, "", False
    *said, interrupts.number = agreed(stopped, over, due, interrupts.noted)
    stopped, over, due = map(bool, said)
    at_end = ALL if run.now.step == run.end else interrupts.came
    return stopped, f"{name_of(stop)} said so" if over else at_end, due


def _checked_evaluation(eval_every: int | None, eval_fn: Evaluation | None) -> int | None:
    if eval_every is not None:
        allowed = "a whole number >= 1 or None"
        eval_every = require_whole("fit", "eval_every", eval_every, allowed=allowed)
        require(eval_fn is not None, "fit", "eval_fn", None, "given where `eval_every` is")
    fits = eval_fn is None or callable(eval_fn)
    require(fits, "fit", "eval_fn", eval_fn, "a function state -> {name: number}")
    return eval_every
