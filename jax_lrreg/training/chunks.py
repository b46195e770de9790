"""A run under way: one call of the device after the other, and where it has come to."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg._optax_state import hears_metrics, listen
from jax_lrreg._processes import agreed
from jax_lrreg.checkpoints.notes import Json
from jax_lrreg.training.accumulate import is_slow_in_a_loop
from jax_lrreg.training.data import ArrayData, Batch
from jax_lrreg.training.history import (
    Entry,
    History,
    Interval,
    check_values,
    names_of,
    zero_sums,
)
from jax_lrreg.training.interrupts import handled_signals, held_back
from jax_lrreg.training.mesh import around
from jax_lrreg.training.program import edited, place_of, platform_of, program_of, settled
from jax_lrreg.training.sources import ArraySource, Draw, require_same, source_of
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step
from jax_lrreg.training.stop import Best, Deadline, Stop, names_asked

Evaluation = Callable[[State], Mapping[str, chex.Numeric]]


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


class Run:
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
        further = require_whole(owner, "steps", steps, most=LAST_STEP) if until is None else 0
        goal = 0 if until is None else require_whole(owner, "until", until, 0, LAST_STEP)
        if chunk != "auto":
            require_whole(owner, "chunk", chunk, allowed="'auto' or a whole number >= 1")
        self.log_every = require_whole(owner, "log_every", log_every)
        self.eval_every, self.chunk, self.owner, self.step = eval_every, chunk, owner, step
        with around(state, owner):
            state = settled(step.complete(state))
        self.place = place_of(state, owner)
        state = self.place.settled(state)
        self.start = int(jax.device_get(state.step))
        self.end = max(self.start + further, goal)
        self.source = source_of(data, owner, self.end - self.start, self.place)
        self.now = Chunk(self.start, state, Interval(self.start, self.start, [], True, False))
        self.position: Json = None  # of the data after the latest chunk, where a checkpoint asks
        self.noticed: Sequence[int] = ()  # signals that are noted, and need not be held back

    def go_on(self, state: State, interval: Interval, position: Json) -> None:
        """Takes the place of a run that has come so far."""
        self.now = Chunk(interval.end, state, interval)
        self.position = position
        self.source.go_to(interval.end - self.start, position)

    def control(
        self,
        control_on: str | None = None,
        eval_fn: Evaluation | None = None,
        stop: Stop | None = None,
        keep_best: Best | None = None,
        best: str | None = None,
    ) -> None:
        """Lets the controllers hear a metric of `eval_fn`, or each update's loss where None.

        The names that these speak of are held against those that `eval_fn` returns.
        """
        self._require_same_plan()
        state = self.now.state
        if control_on is not None:
            allowed = "a name that `eval_fn` returns, or None"
            require(isinstance(control_on, str), "fit", "control_on", control_on, allowed)
            if self.eval_every is None or eval_fn is None:
                require(False, "fit", "eval_every", None, "given where `control_on` is")
            allowed = "None for an optimizer without transforms.scale_by_controller"
            require(hears_metrics(state.opt_state), "fit", "control_on", control_on, allowed)
        if best is not None:
            require(eval_fn is not None, "fit", "eval_fn", None, "given where `best` is")
        named = {"stop": stop, "keep_best": keep_best, "control_on": control_on}
        asked = names_asked(**named, checkpoint=best)
        if asked and eval_fn is not None and self.now.step < self.end:
            found = eval_fn(state)
            check_values(found)
            names = sorted(found)
            for argument, name in asked.items():
                require_choice("fit", argument, name, names)
        if isinstance(stop, Deadline):
            stop.begin()
        listening = listen(state.opt_state, control_on is not None)
        self.now = Chunk(self.now.step, state.replace(opt_state=listening), self.now.interval)

    def _require_same_plan(self) -> None:
        """Refuses numbers that differ between processes: one would wait for another for ever."""
        plan = [self.end - self.start, self.log_every, self.eval_every or 0]
        plan.append(0 if self.chunk == "auto" else int(self.chunk))
        names = ("steps", "log_every", "eval_every", "chunk")
        said = agreed(*plan, *(-n for n in plan))
        for name, own, most, least in zip(names, plan, said[:4], said[4:], strict=True):
            allowed = f"the same on every process, where it is {-least} to {most}"
            require(most == -least, self.owner, name, own, allowed)

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
        if self.now.step >= self.end:
            return
        example = self.source.example(self.now.step)
        require_same(self.source, example, self.now.step, self.owner)
        with around(self.now.state, self.owner):
            trace = self.step.body.trace(self.now.state, example)
        _, metrics = trace.out_info
        slow = is_slow_in_a_loop(trace, platform_of(self.now.state))
        loops = not slow or self.chunk not in ("auto", 1)
        program, names = program_of(self.step, loops, self.now.state), names_of(metrics)
        self._check_names(names)
        signals = [number for number in handled_signals() if number not in self.noticed]
        zeros = self.place.whole(zero_sums(names))
        draws = self._draws(self._size(example) if loops else None)
        draw = next(draws)
        while draw.steps:
            self._call(program, draw, names, zeros, signals)
            # The call has returned at once, so this is as fast as a thread that draws ahead: 23.5
            # and 23.5 ms a step of 20 from a loader that sleeps, 25.3 and 25.2 from one that holds
            # the interpreter.
            draw = next(draws)
            self.position = draw.position
            yield self.now
        if draw.error is not None:
            raise draw.error

    def _check_names(self, names: list[str]) -> None:
        """Refuses to add up other metrics than those whose sums a checkpoint kept."""
        before = self.now.interval
        allowed = f"one with the metrics of the run in `checkpoint`, {', '.join(before.names)}"
        require(before.closed or before.names == names, self.owner, "step", names, allowed)

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
            around(state, self.owner),
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
        now, error = self.now.step, None
        while now < self.end and error is None:
            every = (self.log_every, self.eval_every or self.log_every)
            room = (n - (now - self.start) % n for n in every)  # no call goes beyond an interval
            draw = self.source.draw(now, min(size or 1, self.end - now, *room), size)
            now, error = now + draw.steps, draw.error
            if draw.steps:
                yield draw
        yield Draw(0, error=error, position=self.source.position())

    def leave(self, error: BaseException, history: History | None = None) -> None:
        """Hands the state and the history to the error that ends the run."""
        interrupted = not isinstance(error, Exception)
        lost = isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
        if lost:
            # A message that does not arrive is all that the device knows of a peer that died. Where
            # it waits instead, JAX ends the process at the heartbeat time-out, naming the peer.
            own = f"process {jax.process_index()} of {jax.process_count()}"
            error.add_note(
                f"{self.owner}: {own} may have lost another one: call the script again on all, and "
                "with `checkpoint` it goes on"
            )
        with contextlib.suppress(AttributeError):  # an error may have no place for attributes
            if history is not None:
                if not interrupted and not lost:  # of a sum with a lost one nothing may ever come
                    with contextlib.suppress(Exception):  # the first error is the one to tell
                        history.write()
                error.history = history.arrays()  # type: ignore[attr-defined]
            now = self.now
            begun = interrupted or now.step > self.start
            if begun and not now.state.step.is_deleted():
                error.state = now.state  # type: ignore[attr-defined]
                where = f"the attribute `state` of this error is that after step {now.step}"
                error.add_note(f"{self.owner}: {where}")
