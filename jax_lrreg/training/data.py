"""Batches from arrays in memory: the batch of a step is a pure function of the key and the step."""

import math
from collections.abc import Callable, Generator, Iterable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.training.stream import Draw, StreamSource

MOST_STEPS = 1000  # in one call of the device; a call costs the host as much as one small step
INDEX_BYTES = 4 * 2**20  # of numbers of examples in one call


class ArrayData:
    """A data set in memory, cut into batches; every epoch has its own order.

    Nothing about the position is kept: `data(step)` is the batch of any step, so a run goes on after an
    interruption without replaying or saving anything. `fit` keeps the arrays on the device and sends
    only the numbers of the examples.

    Attributes:
        arrays: a tree of arrays with equally many examples along axis 0.
        batch_size: examples per batch.
        key: a typed PRNG key for the order; needed where `shuffle` is true.
        shuffle: whether each epoch is in a random order.
        remainder: what becomes of examples that fill no batch at the end of an epoch: "drop" leaves them
            out, "pad" fills the batch up with other examples and adds `mask` (1.0 for real ones) to a
            batch, which must be a dict, and "error" refuses data that does not divide.
        steps_per_epoch: batches in an epoch.
        size: number of examples.

    Example:
        >>> data = ArrayData({"x": np.arange(6.0)}, batch_size=2, key=jax.random.key(0))
        >>> data.steps_per_epoch, data(0)["x"].shape
        (3, (2,))
    """

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        key: Any = None,
        shuffle: bool = True,
        remainder: str = "drop",
    ):
        values = jax.tree.leaves(arrays)
        require(len(values) > 0, self, "arrays", arrays, "a tree with at least one array")
        sizes = {name: np.shape(value)[:1] for name, value in _named(arrays)}
        first = next(iter(sizes.values()))
        require(
            len(first) == 1 and first[0] > 0,
            self,
            "arrays",
            sizes,
            "arrays with examples along axis 0",
        )
        require(
            len(set(sizes.values())) == 1,
            self,
            "arrays",
            sizes,
            "arrays with equally many examples",
        )
        self.size = first[0]
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1
        require(whole, self, "batch_size", batch_size, "a whole number >= 1")
        known = ("drop", "pad", "error")
        require(remainder in known, self, "remainder", remainder, f"one of {', '.join(known)}")
        if remainder == "drop":
            require(
                batch_size <= self.size,
                self,
                "batch_size",
                batch_size,
                f"at most the {self.size} examples",
            )
        if remainder == "error":
            require(
                self.size % batch_size == 0,
                self,
                "batch_size",
                batch_size,
                f"a divisor of {self.size} examples",
            )
        if remainder == "pad":
            free = isinstance(arrays, dict) and "mask" not in arrays
            require(
                free,
                self,
                "arrays",
                type(arrays).__name__,
                "a dict without `mask`, which remainder='pad' adds",
            )
        if shuffle:
            typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            require(typed, self, "key", key, "a typed PRNG key, as from jax.random.key(0)")
        self.arrays, self.batch_size, self.key = arrays, batch_size, key
        self.shuffle, self.remainder = shuffle, remainder
        self.steps_per_epoch = (
            math.ceil(self.size / batch_size) if remainder == "pad" else self.size // batch_size
        )
        self._order: tuple[int, np.ndarray] = (-1, np.zeros((0, batch_size), np.int32))

    def __call__(self, step: int) -> Any:
        """The batch of `step`, as NumPy arrays."""
        return self.gather(jax.tree.map(np.asarray, self.arrays), self.indices(int(step)))

    def indices(self, step: int) -> np.ndarray:
        """The numbers of the examples in the batch of `step`; those past the end of an epoch are `size` and more."""
        return self.rows(step)[0]

    def rows(self, step: int) -> np.ndarray:
        """The numbers of the examples in the batch of `step` and in those after it until the epoch ends."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        return self._order[1][batch:]

    def _epoch(self, epoch: int) -> np.ndarray:
        order = np.arange(self.size, dtype=np.int32)
        if self.shuffle:
            order = np.random.default_rng([*self._seed, epoch]).permutation(order)
        missing = self.steps_per_epoch * self.batch_size - self.size
        padding = self.size + order[np.arange(max(missing, 0)) % self.size]
        order = np.concatenate([order, padding])[: self.steps_per_epoch * self.batch_size]
        return order.astype(np.int32).reshape(-1, self.batch_size)

    @cached_property
    def _seed(self) -> list[int]:
        return np.asarray(jax.random.key_data(self.key)).ravel().tolist()

    @cached_property
    def device_arrays(self) -> Any:
        """The arrays on the device, sent once."""
        return jax.tree.map(jnp.asarray, self.arrays)

    @property
    def gather(self) -> Callable[[Any, Any], Any]:
        """`(arrays, indices) -> batch`, to be called inside a compiled loop."""
        return gather_padded if self.remainder == "pad" else gather


def gather(arrays: Any, indices: Any) -> Any:
    """The examples with these numbers."""
    return jax.tree.map(lambda x: x[indices], arrays)


def gather_padded(arrays: Any, indices: Any) -> Any:
    """The examples with these numbers, where a number past the end is padding, and a mask that says so."""
    size = len(jax.tree.leaves(arrays)[0])
    return {**gather(arrays, indices % size), "mask": (indices < size).astype(np.float32)}


def _named(arrays: Any) -> list[tuple[str, Any]]:
    pairs = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), value) for path, value in pairs
    ]


def source_of(data: Any, owner: str = "fit") -> "ArraySource | StreamSource":
    """What the loop draws the batches of `data` from."""
    return ArraySource(data) if isinstance(data, ArrayData) else StreamSource(data, owner)


class ArraySource:
    """Batches from arrays on the device: only the numbers of the examples travel."""

    def __init__(self, data: ArrayData):
        self.data, self.arrays, self.gather = data, data.device_arrays, data.gather

    def example(self, now: int) -> Any:
        """A batch as shapes and dtypes."""
        del now
        size = self.data.batch_size
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), self.arrays
        )
        if self.gather is gather_padded:
            batch["mask"] = jax.ShapeDtypeStruct((size,), np.float32)
        return batch

    def most(self, example: Any) -> int:
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

    def draw(
        self, now: int, counts: Iterable[int], size: int | None, place: Callable
    ) -> Generator[Draw, None, None]:
        """What each call of the device needs; `size` rows, or one batch without rows where it is None."""
        del place  # they are so small that they travel with the call
        for count in counts:
            rows = self.payload(now, count, size or 1)
            yield Draw(count, rows if size else rows[0])
            now += count
