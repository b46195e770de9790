"""Batches: from arrays in memory, as a pure function of key and step, or from any iterable."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import is_key
from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg.checkpoints.notes import Json
from jax_lrreg.training.batch import (
    Batch,
    _form,
    _leaves,
    _require_no_mask,
    as_array,
    check_mask,
    count_examples,
    outline,
    require_batches,
)

MOST_STEPS = 1000  # in one call of the device; a call costs the host as much as one small step
INDEX_BYTES = 4 * 2**20  # of numbers of examples in one call
STREAM_BYTES = 64 * 2**20  # of stacked batches in one call; up to three calls' worth are in memory
NAMED = 6  # arrays of a batch that are printed
REMAINDERS = ("drop", "pad", "error")


class ArrayData:
    """A data set in memory, cut into batches; every epoch has its own order.

    Nothing about the position is kept: `data(step)` is the batch of any step, so a run goes on
    after an interruption without replaying or saving anything. `fit` keeps the arrays on the device
    and sends only the numbers of the examples.

    Attributes:
        arrays: a tree of arrays with equally many examples along axis 0; a scalar or a key is in
            every batch.
        batch_size: examples per batch.
        key: a typed PRNG key for the order; needed where `shuffle` is true.
        shuffle: whether each epoch is in a random order.
        remainder: what becomes of examples that fill no batch at the end of an epoch: "drop" leaves
            them out, "pad" fills the batch up with other examples and adds `mask` (1.0 for real
            ones) to a batch, which must be a dict, and "error" refuses data that does not divide.
        steps_per_epoch: batches in an epoch.
        size: number of examples.

    Example:
        >>> data = ArrayData({"x": np.arange(6.0)}, batch_size=2, key=jax.random.key(0))
        >>> data.steps_per_epoch, data(0)["x"].shape
        (3, (2,))
    """

    def __init__(
        self,
        arrays: Batch,
        batch_size: int,
        key: chex.PRNGKey | None = None,
        shuffle: bool = True,
        remainder: str = "drop",
    ):
        size = count_examples(arrays, "ArrayData", "arrays") or 0
        allowed = "a tree with at least one array of examples along axis 0"
        require(size > 0, self, "arrays", outline(arrays), allowed)
        check_mask(arrays, "ArrayData", "arrays", wait=True)
        require_choice(self, "remainder", remainder, REMAINDERS)
        most, allowed = None, "a whole number >= 1"
        if remainder == "drop":
            most, allowed = size, f"{allowed} and at most the {size} examples"
        batch_size = require_whole("ArrayData", "batch_size", batch_size, 1, most, allowed)
        if remainder == "error":
            allowed = f"a divisor of {size} examples"
            require(size % batch_size == 0, self, "batch_size", batch_size, allowed)
        if remainder == "pad":
            _require_no_mask(self, "arrays", arrays)
        if shuffle:
            typed = isinstance(key, jax.Array) and is_key(key) and key.ndim == 0
            require(typed, self, "key", key, "a typed PRNG key, as from jax.random.key(0)")
        self.arrays, self.batch_size, self.key, self.size = arrays, batch_size, key, size
        self.shuffle, self.remainder = shuffle, remainder
        padded = remainder == "pad"
        self.steps_per_epoch = math.ceil(size / batch_size) if padded else size // batch_size
        self._order: tuple[int, np.ndarray] = (-1, np.zeros((0, batch_size), np.int32))

    def __repr__(self) -> str:
        arrays = outline(self.arrays)
        if len(arrays) > NAMED and isinstance(arrays, dict):
            arrays = f"<{len(arrays)} arrays of {self.size} examples>"
        options = f"shuffle={self.shuffle}, remainder={self.remainder!r}"
        return f"ArrayData({arrays}, batch_size={self.batch_size}, {options})"

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, as NumPy arrays."""
        return self.gather(self.host_arrays, self.indices(require_whole(self, "step", step, 0)))

    def indices(self, step: int) -> np.ndarray:
        """The numbers of the examples of `step`; past the end of an epoch they are >= `size`."""
        return self.rows(step)[0]

    def rows(self, step: int) -> np.ndarray:
        """The numbers of the examples of `step` and of those after it until the epoch ends."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        return self._order[1][batch:]

    def order(self, step: chex.Numeric, steps: int) -> jax.Array:
        """The numbers of the examples of `steps` steps from `step` on, which may be traced.

        An int32 array of shape [steps, batch_size]: what `indices` gives for each of these steps.
        """
        first, batch = jnp.divmod(jnp.asarray(step, jnp.int32), self.steps_per_epoch)
        # One more than is needed where `step` begins an epoch: a traced one may be anywhere in it.
        epochs = first + jnp.arange((steps - 1) // self.steps_per_epoch + 2, dtype=jnp.int32)
        rows = jax.lax.map(lambda epoch: _epoch_order(self.key, epoch, *self._form), epochs)
        rows = rows.reshape(-1, self.batch_size)
        return jax.lax.dynamic_slice_in_dim(rows, batch, steps)

    def _epoch(self, epoch: int) -> np.ndarray:
        # Not on the accelerator, where it would wait behind the steps that are under way.
        with jax.ensure_compile_time_eval(), _on_the_host():
            return np.asarray(_epoch_order(self._host_key, np.int32(epoch), *self._form))

    @cached_property
    def _host_key(self) -> chex.PRNGKey | None:
        if self.key is None:
            return None
        numbers = np.asarray(jax.random.key_data(self.key))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(self.key))

    @property
    def _form(self) -> tuple[int, int, int, bool]:
        return self.size, self.batch_size, self.steps_per_epoch, self.shuffle

    @cached_property
    def device_arrays(self) -> Batch:
        """The arrays on the device, sent once."""
        with jax.ensure_compile_time_eval():  # they outlive a trace in which they are asked for
            return jax.tree.map(jnp.asarray, self.arrays)

    @property
    def host_arrays(self) -> Batch:
        """The arrays in the host's memory: there, a slice is no program."""
        return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), self.arrays)

    @property
    def gather(self) -> Callable[[Batch, Any], Batch]:
        """`(arrays, indices) -> batch`, to be called inside a compiled loop."""
        return gather_padded if self.remainder == "pad" else gather


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _epoch_order(
    key: chex.PRNGKey | None, epoch: chex.Numeric, size: int, batch: int, steps: int, shuffle: bool
) -> jax.Array:
    """The numbers of the examples of an epoch, [steps, batch], by its number and the key alone."""
    order = jnp.arange(size, dtype=jnp.int32)
    if shuffle:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), order)
    missing = max(steps * batch - size, 0)
    padding = size + order[jnp.arange(missing) % size]
    return jnp.concatenate([order, padding])[: steps * batch].reshape(steps, batch)


def _on_the_host() -> Any:
    """Where there is a CPU beside the accelerator, small programs run there."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS may have left it out
        return contextlib.nullcontext()


def gather(arrays: Batch, indices: Any) -> Batch:
    """The examples with these numbers, or in this slice, beside what is shared by all."""
    return jax.tree.map(lambda x: x[indices] if np.ndim(x) else x, arrays)


def gather_padded(arrays: Batch, indices: Any) -> Batch:
    """The examples with these numbers, and a mask; a number past the end is padding."""
    size = next(len(x) for x in jax.tree.leaves(arrays) if np.ndim(x))
    return {**gather(arrays, indices % size), "mask": (indices < size).astype(np.float32)}


class Stream:
    """An iterable of batches, of which some are too short to fill one.

    The first batch tells how many examples fill a batch; the others are counted along axis 0. Each
    batch is taken when it is asked for, so an iterator can be used again afterwards.

    Attributes:
        batches: an iterable of batches, such as a data loader or `(b for _ in range(epochs) for b
            in loader)`.
        remainder: what becomes of a batch that is too short: "drop" leaves it out, "pad" fills it
            up with its own examples and adds `mask` (1.0 for real ones) to every batch, which must
            be a dict, and "error" refuses it, as an iterable without this wrapper does.
        skip: whether a run that goes on from a checkpoint may draw the batches before it again, and
            leave them out. The iterable must then begin each time with the same ones. One that has
            `get_state` and `set_state`, as Grain's iterators do, needs no skipping.

    Example:
        >>> batches = [{"x": np.ones(4)}, {"x": np.ones(3)}]
        >>> [len(batch["x"]) for batch in Stream(batches)]
        [4]
        >>> print([batch["mask"] for batch in Stream(batches, remainder="pad")][-1])
        [1. 1. 1. 0.]
    """

    def __init__(self, batches: Iterable[Batch], remainder: str = "drop", skip: bool = False):
        require_batches(batches, "Stream", "batches", "an iterable of batches")
        require_choice(self, "remainder", remainder, REMAINDERS)
        require(isinstance(skip, bool), self, "skip", skip, "True or False", TypeError)
        self.batches, self.remainder, self.skip = batches, remainder, skip
        self.size = 0

    def __repr__(self) -> str:
        count = f" of {len(self.batches)}" if isinstance(self.batches, list | tuple) else ""
        return f"Stream(<{type(self.batches).__name__}{count}>, remainder={self.remainder!r})"

    def __iter__(self) -> Iterator[Batch]:
        return self.cut(iter(self.batches))

    def cut(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of one iterator over them, cut to the size of the first."""
        for number, batch in enumerate(batches):
            count = self._count(batch, f"batches[{number}]")
            if self.remainder == "pad":
                rows = np.arange(self.size)
                if count < self.size:
                    batch = gather(jax.tree.map(as_array, batch), rows % count)
                yield {**batch, "mask": (rows < count).astype(np.float32)}
            elif count == self.size:
                yield batch

    def _count(self, batch: Batch, name: str) -> int:
        """The examples of a batch to be given, padded or left out; the first one is full."""
        count = count_examples(batch, "Stream", name)
        require(bool(count), self, name, outline(batch), "a batch with examples along axis 0")
        self.size = size = self.size or count or 0
        fits = count == size if self.remainder == "error" else (count or 0) <= size
        allowed = (
            f"a batch of {size} examples, as the first, or fewer with remainder='drop' or 'pad'"
        )
        require(fits, self, name, count, allowed)
        if self.remainder == "pad":
            _require_no_mask(self, name, batch)
        return count or 0


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
    place: Callable = lambda arrays: arrays,
) -> "ArraySource | StreamSource":
    """What a run's batches are drawn from; messages begin with `owner`, the user's function.

    A list of fewer batches than `steps` is refused at once. `place` sends arrays to the device.
    """
    if isinstance(data, ArrayData):
        return ArraySource(data, place)
    require_batches(data, owner)
    held = len(data) if isinstance(data, list | tuple) else steps
    allowed = f"at least {steps} batches, one for each step"
    require(held >= steps, owner, "data", f"{held} batches", allowed)
    return StreamSource(data, owner, place)


class ArraySource:
    """Batches from arrays on the device: only the numbers of the examples travel."""

    def __init__(self, data: ArrayData, place: Callable):
        self.data, self.arrays, self.gather = data, place(data.device_arrays), data.gather

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

    def __init__(self, data: Iterable[Batch], owner: str, place: Callable):
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
            jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype, True))
            for shape, dtype in self.form
        ]
        return jax.tree.unflatten(self.structure, shapes)

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
                    for column, leaf in zip(columns, self._next(), strict=True):
                        if isinstance(column, list):
                            column.append(leaf)
                        else:  # copied at once, as a loader may use its memory for the next batch
                            column[done] = leaf
                    done += 1
        except Exception as caught:
            error = caught
        if not done:
            return Draw(0, error=error, position=position)
        leaves = [self._sent(*pair, size) for pair in zip(columns, self.places, strict=True)]
        return Draw(done, jax.tree.unflatten(self.structure, leaves), error, position)

    def _sent(self, column: Any, place: Any, size: int | None) -> Any:
        if place is not None:  # the others may lie on other devices than the first
            column = jax.device_put(column, place)
        if size is None:
            return self.place(column[0])
        if place is not None:  # as many rows as ever, so that nothing is compiled anew
            column = jnp.stack(column + [column[-1]] * (size - len(column)))
        return self.place(column)

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
