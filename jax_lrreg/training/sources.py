"""What each call of the device is given: batches drawn, checked, placed, and where data stands."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg._processes import differing
from jax_lrreg.checkpoints.notes import Json
from jax_lrreg.training.batch import (
    Batch,
    _form,
    _leaves,
    check_mask,
    count_examples,
    outline,
    require_batches,
)
from jax_lrreg.training.data import ArrayData, Stream, gather
from jax_lrreg.training.mesh import active_mesh, replicated
from jax_lrreg.training.program import Place

MOST_STEPS = 1000  # in one call of the device; a call costs the host as much as one small step
INDEX_BYTES = 4 * 2**20  # of numbers of examples in one call
HERE = Place(None, "", None, spread=True)  # arrays stay where they are
STREAM_BYTES = 64 * 2**20  # of stacked batches in one call; up to three calls' worth are in memory


class Draw(NamedTuple):
    """The batches of one call of the device, and the error that came instead of the next.

    Where a run is kept, `position` is where the data stood before them.
    """

    steps: int
    payload: Any = None
    error: Exception | None = None
    position: Any = None


def source_of(
    data: ArrayData | Iterable[Batch],
    owner: str,
    steps: int = 0,
    place: Place = HERE,
) -> "ArraySource | StreamSource":
    """What a run's batches are drawn from; messages begin with `owner`, the user's function.

    A list of fewer batches than `steps` is refused at once. `place` is where the run is.
    """
    if isinstance(data, ArrayData):
        return ArraySource(data, place)
    require_batches(data, owner)
    held = len(data) if isinstance(data, list | tuple) else steps
    allowed = f"at least {steps} batches, one for each step"
    require(held >= steps, owner, "data", f"{held} batches", allowed)
    return StreamSource(data, owner, place)


def require_same(
    source: "ArraySource | StreamSource", example: Batch, now: int, owner: str
) -> None:
    """Refuses batches of another form, or another order, than on other processes.

    Each process would compile a program of its own, and train on wrong data in silence.
    """
    if jax.process_count() == 1 or source.place.mesh is None:
        return
    form = str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", example))
    others = differing(form.encode() + source.order(now))
    if others:
        allowed = "give batches of one form on every process, and an ArrayData in one order"
        given = f"{form}, of the rows of all, here, and others on processes {others}"
        raise ValueError(f"{owner}: `data` must {allowed}, got {given}")


class ArraySource:
    """Batches from arrays on the device: only the numbers of the examples travel."""

    def __init__(self, data: ArrayData, place: Place):
        # On a mesh from where the user has them, or one device would hold them twice.
        arrays = data.device_arrays if place.mesh is None else data.arrays
        self.data, self.arrays, self.gather = data, place.whole(arrays), data.gather
        self.place = place

    def keep(self) -> None:
        """A position is the number of the step: there is nothing to keep."""

    def position(self) -> None:
        """None to tell."""

    def go_to(self, drawn: int, position: Json) -> None:
        """And none to go to."""

    def example(self, now: int) -> Batch:
        """A batch as shapes and dtypes."""
        del now
        size, shape = self.data.batch_size, jax.ShapeDtypeStruct
        batch = jax.tree.map(
            lambda x: shape((size, *x.shape[1:]) if x.ndim else (), x.dtype), self.arrays
        )
        return batch if self.gather is gather else {**batch, "mask": shape((size,), np.float32)}

    def order(self, now: int) -> bytes:
        """Which examples are drawn from step `now` on: the same on every process."""
        return self.payload(now, 1, 1).tobytes()

    def most(self, example: Batch) -> int:
        """How many batches one call may take."""
        del example
        return max(1, min(MOST_STEPS, INDEX_BYTES // (4 * self.data.batch_size)))

    def payload(self, now: int, count: int, size: int) -> np.ndarray:
        """The numbers of the examples of `count` batches from step `now` on, in `size` rows."""
        rows = np.zeros((size, self.data.batch_size), np.int32)
        done = 0
        while done < count:
            some = self.data.rows(now + done)[: count - done]
            rows[done : done + len(some)] = some
            done += len(some)
        return rows

    def draw(self, now: int, count: int, size: int | None) -> Draw:
        """What a call of `count` steps needs: `size` rows, or one batch where it is None."""
        # Numbers are so few that they travel with the call: to place them first would only cost
        # time.
        rows = self.payload(now, count, size or 1)
        return Draw(count, rows if size else rows[0])


class StreamSource:
    """Batches from an iterable, checked against the first one and stacked for each call."""

    def __init__(self, data: Iterable[Batch], owner: str, place: Place):
        self.data, self.owner, self.place = data, owner, place
        self.stream = data if isinstance(data, Stream) else None
        self.inner = iter(data if self.stream is None else self.stream.batches)
        self.iterator = self.inner if self.stream is None else self.stream.cut(self.inner)
        self.arrays, self.drawn, self.kept = (), 0, False
        self.before: Any = None  # the position before the batch that `example` has drawn

    def keep(self) -> None:
        """From now on each draw says where the data stood before it."""
        data = self.data if self.stream is None else self.stream.batches
        held = isinstance(data, list | tuple)
        again = held or (self.stream is not None and self.stream.skip)
        allowed = (
            "data that can go on from a checkpoint: an ArrayData, a list, an iterator with "
            "get_state and set_state, or training.Stream(..., skip=True), which draws again what "
            "was used before"
        )
        require(again or self._tells(), self.owner, "data", data, allowed)
        self.kept = True

    def go_to(self, drawn: int, position: Json) -> None:
        """Goes to where a kept position was, or draws so many batches and leaves them out."""
        if position is not None and self._tells():
            self.inner.set_state(position["state"])  # type: ignore[attr-defined]
            if self.stream is not None:
                self.stream.size = position["size"]
        else:
            for _ in itertools.islice(self.iterator, drawn):
                pass
        self.drawn = drawn

    def _tells(self) -> bool:
        return all(callable(getattr(self.inner, f"{verb}_state", None)) for verb in ("get", "set"))

    def position(self) -> Any:
        if not (self.kept and self._tells()):
            return None
        size = 0 if self.stream is None else self.stream.size
        return {"state": self.inner.get_state(), "size": size}  # type: ignore[attr-defined]

    @staticmethod
    def gather(arrays: Batch, row: Batch) -> Batch:
        """The batch as it came."""
        del arrays
        return row

    def example(self, now: int) -> Batch:
        """The first batch as shapes and dtypes."""
        del now
        self.before = self.position()
        drawn = list(itertools.islice(self.iterator, 1))
        require(len(drawn) > 0, self.owner, "data", drawn, "an iterable of at least one batch")
        (first,), self.iterator = drawn, itertools.chain(drawn, self.iterator)
        count = count_examples(first, self.owner, "data[0]")
        require(count != 0, self.owner, "data[0]", outline(first), "a batch of 1 example or more")
        leaves, self.structure = _leaves(first)
        self.form, self.outline = _form(leaves), outline(first)
        self.places = [leaf.sharding if isinstance(leaf, jax.Array) else None for leaf in leaves]
        shapes = [
            jax.ShapeDtypeStruct(
                self.place.global_shape(leaf, shape), jax.dtypes.canonicalize_dtype(dtype, True)
            )
            for leaf, (shape, dtype) in zip(leaves, self.form, strict=True)
        ]
        return jax.tree.unflatten(self.structure, shapes)

    def order(self, now: int) -> bytes:
        """Nothing that is the same: each process draws rows of its own."""
        del now
        return b""

    def most(self, example: Batch) -> int:
        """How many batches fit into one call."""
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(example))
        return max(1, STREAM_BYTES // max(size, 1))

    def payload(self, now: int, count: int, size: int) -> Batch:
        """The next `count` batches, stacked in `size` rows."""
        draw = self.draw(now, count, size)
        if draw.error is not None:
            raise draw.error
        return draw.payload

    def draw(self, now: int, count: int, size: int | None) -> Draw:
        """The next `count` batches, stacked in `size` rows, or one without rows where it is None.

        What the iterable raises comes behind the batches before it, so that those are not lost.
        """
        del now
        position, self.before = self.before or self.position(), None
        columns: list[Any] = [
            np.zeros((size or 1, *shape), dtype) if place is None else []
            for place, (shape, dtype) in zip(self.places, self.form, strict=True)
        ]
        done, error = 0, None
        try:
            with jax.profiler.TraceAnnotation("stack batches"):
                while done < count:
                    self._fill(columns, done)
                    done += 1
        except Exception as caught:
            error = caught
        if not done:
            return Draw(0, error=error, position=position)
        leaves = [self._sent(*pair, size) for pair in zip(columns, self.places, strict=True)]
        return Draw(done, jax.tree.unflatten(self.structure, leaves), error, position)

    def _fill(self, columns: list[Any], row: int) -> None:
        for column, leaf in zip(columns, self._next(), strict=True):
            if isinstance(column, list):
                column.append(leaf)
            else:  # copied at once, as a loader may use its memory for the next batch
                column[row] = leaf

    def _sent(self, column: Any, place: Any, size: int | None) -> Any:
        if place is not None:  # the others may lie on other devices than the first
            column = jax.device_put(column, place)
        if size is None:
            return self.place.rows(column[0], 0, self.owner)
        if place is not None:  # as many rows as ever, so that nothing is compiled anew
            # Where a mesh is active JAX stacks nothing that lies on one device.
            if self.place.mesh is not None:
                column = [self.place.rows(leaf, 0, self.owner) for leaf in column]
            elif (mesh := active_mesh()) is not None:
                column = [replicated(leaf, mesh) for leaf in column]
            column = jnp.stack(column + [column[-1]] * (size - len(column)))
            if not column.is_fully_addressable:  # the rows of all
                return column
        return self.place.rows(column, 1, self.owner)

    def _next(self) -> list[Any]:
        owner, number = self.owner, self.drawn
        for batch in self.iterator:
            leaves, structure = _leaves(batch)
            if structure != self.structure or _form(leaves) != self.form:
                raise ValueError(
                    f"{owner}: batch {number} of `data` is {outline(batch)}, but the first was "
                    f"{self.outline}; training.Stream drops or pads what does not fill a batch"
                )
            check_mask(batch, owner, f"data[{number}]")
            self.drawn += 1
            return leaves
        raise ValueError(
            f"{owner}: `data` ended after {number} batches, before `steps` were made; "
            "give a longer iterable or fewer steps"
        )
