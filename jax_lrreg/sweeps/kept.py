"""What a sweep has found so far, and how it is kept for one that goes on."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_lrreg._check import require
from jax_lrreg._processes import agreed, together
from jax_lrreg.checkpoints.fingerprint import Fingerprint
from jax_lrreg.checkpoints.folder import Folder
from jax_lrreg.checkpoints.writer import Writer
from jax_lrreg.sweeps.parts import Part
from jax_lrreg.training.identity import versions
from jax_lrreg.training.resume import folder_of, refuse_other

OFTEN = 20  # times what the last save took: a twentieth of the time at most goes into saves
WAY = "another sweep has another folder"


class Found:
    """The metrics of the members so far.

    Attributes:
        values: by name, in the order of the members.
        end: how many members there are.
        width: of the programs, None before the first part.
    """

    def __init__(self):
        self.values: dict[str, np.ndarray] = {}
        self.end = 0
        self.width: int | None = None

    def add(self, part: Part) -> None:
        """Takes up what a part has found."""
        new = jax.tree.map(np.asarray, part.made[1])
        before = self.values or {name: column[:0] for name, column in new.items()}
        self.values = {name: np.concatenate([before[name], new[name]]) for name in new}
        self.end, self.width = self.end + part.count, part.width


class Kept(Found):
    """The same, in the folder of a sweep, and what one before has left there."""

    def __init__(self, writer: Writer, plan: Fingerprint):
        super().__init__()
        self._writer, self._plan, self._versions = writer, plan, versions()
        self._saved, self._due = 0, 0.0
        saved = writer.latest()
        if saved is not None:
            refuse_other("run", saved.notes, plan, self._versions, WAY)
            self.end = self._saved = saved.step
            self.width, types = saved.notes["width"], saved.notes["types"]
            like = {name: np.zeros(self.end, jnp.dtype(kind)) for name, kind in types.items()}
            self.values = jax.tree.map(np.asarray, saved.load("metrics", like, "run"))

    def add(self, part: Part) -> None:
        super().add(part)
        every = self._writer.folder.every
        timely = every is None and agreed(time.monotonic() >= self._due)[0]
        if timely if every is None else self.end // every > self._saved // every:
            self.save()

    def save(self) -> None:
        """Writes all there is, if it is more than was written."""
        if self.end == self._saved:
            return
        began = time.monotonic()
        types = {name: column.dtype.name for name, column in self.values.items()}
        about = {"plan": self._plan, "versions": self._versions}
        about |= {"width": self.width, "types": types}
        self._writer.save(self.end, {"metrics": self.values}, about)
        self._writer.wait()
        self._saved, now = self.end, time.monotonic()
        self._due = now + OFTEN * (now - began)


@contextlib.contextmanager
def kept(
    checkpoint: str | os.PathLike[str] | Folder | None, plan: Callable[[], Fingerprint], mesh: Mesh
) -> Iterator[Found]:
    """What has been found so far, of nothing or of the folder of a sweep with the same plan."""
    if checkpoint is None:
        yield Found()
        return
    allowed = "None, or used under jax.set_mesh, where several processes make one sweep"
    one = jax.process_count() == 1 or not mesh.empty
    require(one, "run", "checkpoint", checkpoint, allowed)
    writer = Writer(folder_of(checkpoint, "run"), "run")
    try:
        found = Kept(writer, plan())
        try:
            yield found
        except BaseException:  # an interrupt, too, leaves all parts that are done
            if jax.process_count() == 1:  # of several, one would wait for the others to save
                found.save()
            raise
        found.save()
        together(0)  # only now the others see what process 0 has written
    finally:
        writer.close()
