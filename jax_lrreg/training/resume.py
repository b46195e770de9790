"""What a run keeps in its checkpoints, and how it goes on from them, bit for bit.

Beside the state these are the rows of the history, the sums of the interval that is under way, the
best state and what `stop` has seen, and where an iterator stands.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg._processes import together
from jax_lrreg.checkpoints.fingerprint import BRANCH, Fingerprint, refuse_difference
from jax_lrreg.checkpoints.folder import Folder, Saved, restored
from jax_lrreg.checkpoints.writer import Writer
from jax_lrreg.training.chunks import Run
from jax_lrreg.training.history import History, Interval, zero_sums
from jax_lrreg.training.identity import DataLike, identity, versions
from jax_lrreg.training.program import settled
from jax_lrreg.training.state import ADDED, State
from jax_lrreg.training.stop import Best, Stop, settings_of

Checkpoint = str | os.PathLike[str] | Folder


class Unkept:
    """A run without a checkpoint: nothing to go on from, nothing to keep."""

    keeps = finished = False
    best: str | None = None

    def is_due(self, values: Mapping[str, float]) -> bool:
        """Asked after each call of the device, with what an evaluation there found."""
        del values
        return False

    def save(self, values: Mapping[str, float], finished: bool) -> None:
        """Writes a checkpoint."""


@contextlib.contextmanager
def kept(
    checkpoint: Checkpoint | None,
    run: Run,
    history: History,
    data: DataLike,
    stop: Stop | None,
    keep_best: Best | None,
    control_on: str | None,
) -> Iterator[Unkept]:
    """Brings a run to where its newest checkpoint is, and holds its folder meanwhile."""
    if checkpoint is None:
        yield Unkept()
        return
    folder = folder_of(checkpoint)
    run.source.keep()
    control = control_on and [control_on, run.eval_every]
    plan = identity(run.step, run.now.state, data, run.start, control)
    writer = Writer(folder)
    try:
        keeper = Kept(writer, run, history, stop, keep_best, plan)
        keeper.go_on()
        yield keeper
        writer.wait()
        # Only now the last checkpoint is there for whoever reads it next, on any process.
        together(0)
    finally:
        writer.close()


def refuse_other(
    owner: str, notes: Fingerprint, plan: Fingerprint, here: dict[str, str], way: str = BRANCH
) -> None:
    """Refuses another plan than that in a checkpoint, and tells of other versions."""
    changed = {
        name: (notes["versions"].get(name), version)
        for name, version in here.items()
        if notes["versions"].get(name) != version
    }
    # Another version may write the same program in another way.
    same = not changed.keys() - {"numpy", "orbax-checkpoint", "devices"}
    refuse_difference(owner, notes["plan"], plan, same, way)
    if changed:
        texts = (f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        message = "the run goes on, but not bit for bit as it would have"
        warnings.warn(f"{owner}: since the checkpoint {', '.join(texts)}: {message}", stacklevel=6)


def folder_of(checkpoint: object, owner: str = "fit") -> Folder:
    """A `Folder`, or the one that a path is short for."""
    if isinstance(checkpoint, Folder):
        return checkpoint
    allowed = "a path, a checkpoints.Folder, or None"
    fits = isinstance(checkpoint, str | os.PathLike) and bool(os.fspath(checkpoint))
    require(fits, owner, "checkpoint", checkpoint, allowed, TypeError)
    path = Path(checkpoint)  # type: ignore[arg-type]
    file = path.exists() and not path.is_dir()
    require(not file, owner, "checkpoint", str(path), "a folder, not a file")
    return Folder(path)


def _fitted(state: State, fresh: State) -> State:
    """The state of another plan without what this one keeps in another form: it begins anew."""
    for name in ADDED:
        old, new = getattr(state, name), getattr(fresh, name)
        same = _form(old) == _form(new)
        if name == "average":
            same = same and state.averaging == fresh.averaging
        if new is not None and not same:
            state = state.replace(**{name: None})
    return state


def _form(tree: chex.ArrayTree) -> tuple:
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]


class Kept(Unkept):
    """A run with a checkpoint.

    Attributes:
        finished: whether `stop` ended it, in this call or an earlier one.
        best: the metric whose best checkpoint is kept.
    """

    def __init__(
        self,
        writer: Writer,
        run: Run,
        history: History,
        stop: Stop | None,
        keep_best: Best | None,
        plan: Fingerprint,
    ):
        self.writer, self.run, self.history, self.plan = writer, run, history, plan
        self.stop, self.keep_best, self.best = stop, keep_best, writer.folder.best
        self.keeps = True
        self.versions = versions()

    def go_on(self) -> None:
        """Takes up the newest checkpoint, if there is one."""
        saved, run = self.writer.latest(), self.run
        if saved is None:
            if self.writer.begun:  # a run that was killed before its first checkpoint
                self.history.go_on({"step": []}, {}, run.start)
            return
        notes = saved.notes
        if "branched" not in notes:
            refuse_other("fit", notes, self.plan, self.versions)
            allowed = f"a state of at most the {saved.step} steps of the run in `checkpoint`"
            given = f"one of {run.start} steps"
            require(run.start <= saved.step, "fit", "state", given, allowed)
        # Without what the checkpoint has nothing of, or says itself how to make a place for.
        told = {n for n in ADDED if notes["added"].get(n) or not saved.holds("state", f".{n}")}
        if "average" in told:
            told.add("averaging")
        like = dataclasses.replace(run.now.state, **dict.fromkeys(told))
        state = restored(saved, like, "fit")
        if "branched" in notes:  # any other run keeps what its checkpoint does
            state = _fitted(state, run.step.complete(like))
        state = settled(run.step.complete(state))
        if notes.get("keep"):
            run.go_on(state, run.now.interval, None)
            return
        run.go_on(state, self._interval(saved), notes["position"])
        self.history.go_on(notes["entries"], notes["evaluations"], min(run.start, saved.step))
        same = notes.get("settings", settings_of(self.stop)) == settings_of(self.stop)
        self.finished = notes["finished"] and same and "branched" not in notes
        self.history.ended = notes["ended"] if self.finished else ""
        self._take_up(saved)

    def _interval(self, saved: Saved) -> Interval:
        """The steps of the entry that is under way."""
        begin, names = saved.notes["begin"], saved.notes["names"]
        raises, open_ = self.run.step.on_nonfinite == "raise", saved.holds("sums")
        interval = Interval(begin, saved.step, names, not open_, raises)
        if open_:
            zeros = zero_sums(names)
            interval.sums = self.run.place.whole(np.asarray(saved.load("sums", zeros, "fit")))
        return interval

    def _take_up(self, saved: Saved) -> None:
        take_up = getattr(self.stop, "set_state", None)
        if saved.notes["stop"] is not None and take_up is not None:
            take_up(saved.notes["stop"])
        if saved.notes["best"] is not None and self.keep_best is not None:
            state = saved.load("best", self.run.now.state, "fit") if saved.holds("best") else None
            self.keep_best.set_state(saved.notes["best"], state)

    def _metric(self, values: Mapping[str, float]) -> float | None:
        return values.get(self.best) if self.best else None

    def is_due(self, values: Mapping[str, float]) -> bool:
        """Whether a checkpoint is to be written here, even if the run does not end."""
        return self.writer.is_due(self.run.now.step, self._metric(values))

    def save(self, values: Mapping[str, float], finished: bool) -> None:
        """Writes a checkpoint of where the run is."""
        self.history.write()  # the rows up to here are read, so that they can be kept
        interval, state = self.run.now.interval, self.run.now.state
        trees: dict[str, Any] = {"state": state}
        if not interval.closed:
            trees["sums"] = interval.sums
        if self.keep_best is not None and self.keep_best.state is not None:
            trees["best"] = self.keep_best.state
        kept_by_stop = getattr(self.stop, "get_state", None)
        about = {
            "plan": self.plan,
            "versions": self.versions,
            "added": state.added,
            "entries": self.history.entries,
            "evaluations": self.history.evaluations,
            "begin": interval.begin,
            "names": interval.names,
            "position": self.run.position,
            "settings": settings_of(self.stop),
            "stop": kept_by_stop() if kept_by_stop is not None else None,
            "best": self.keep_best and self.keep_best.get_state(),
            "ended": self.history.ended,
            "finished": finished,
        }
        self.writer.save(self.run.now.step, trees, about, self._metric(values))
