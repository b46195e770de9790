"""Batches: from arrays in memory, as a pure function of key and step, or from any iterable."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import is_key
from jax_lrreg._check import require, require_choice, require_whole
from jax_lrreg.training.batch import (
    Batch,
    _require_no_mask,
    as_array,
    check_mask,
    count_examples,
    outline,
    require_batches,
)

NAMED = 6  # arrays of a batch that are printed
REMAINDERS = ("drop", "pad", "error")
DRAWN = 2**15  # examples whose order is drawn at once
Rows = TypeVar("Rows", np.ndarray, jax.Array)


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
        self._drawn: tuple[int, np.ndarray] = (0, np.zeros((0, batch_size), np.int32))

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
        """The numbers of the examples of `step` and of those after it that are drawn already."""
        first, rows = self._drawn
        if not 0 <= step - first < len(rows):
            # Drawn in advance for as many epochs as are small together, since asking JAX for each
            # takes longer than a step of a small model.
            epochs = max(DRAWN // self.size, 1)
            block = step // (self.steps_per_epoch * epochs)
            first, rows = self._drawn = self._draw(block * epochs, epochs)
        return rows[step - first :]

    def order(self, step: chex.Numeric, steps: int) -> jax.Array:
        """The numbers of the examples of `steps` steps from `step` on, which may be traced.

        An int32 array of shape [steps, batch_size]: what `indices` gives for each of these steps.
        """
        first, batch = jnp.divmod(jnp.asarray(step, jnp.int32), self.steps_per_epoch)
        # One more than is needed where `step` begins an epoch: a traced one may be anywhere in it.
        epochs = first + jnp.arange((steps - 1) // self.steps_per_epoch + 2, dtype=jnp.int32)
        lots = _lots(self._order_key, epochs, self.size)
        rows = self._batches(jnp.argsort(lots, axis=1, stable=True))
        return jax.lax.dynamic_slice_in_dim(rows, batch, steps)

    def _draw(self, epoch: int, epochs: int) -> tuple[int, np.ndarray]:
        # Lots by JAX, for the order that `order` gives, and not on the accelerator, where they
        # would wait behind the steps that are under way.
        with jax.ensure_compile_time_eval(), _on_the_host():
            lots = _lots(self._host_key, epoch + np.arange(epochs, dtype=np.int32), self.size)
        # Each with the number of its example behind it: NumPy sorts numbers 3 to 9 times as fast as
        # it finds their stable order, and that ten times as fast as XLA on a CPU.
        tickets = np.asarray(lots).astype(np.uint64) << 32 | np.arange(self.size, dtype=np.uint64)
        tickets.sort(axis=1)
        rows = self._batches((tickets & 0xFFFFFFFF).astype(np.int64))
        return epoch * self.steps_per_epoch, rows

    def _batches(self, order: Rows) -> Rows:
        """Epochs of [epochs, size] examples as [epochs * steps_per_epoch, batch_size]."""
        used = self.steps_per_epoch * self.batch_size
        place = np.arange(used)[None]
        rows = order[:, place[0] % self.size] + place // self.size * self.size
        return rows.astype(np.int32).reshape(-1, self.batch_size)

    @property
    def _order_key(self) -> chex.PRNGKey | None:
        return self.key if self.shuffle else None

    @cached_property
    def _host_key(self) -> chex.PRNGKey | None:
        if (key := self._order_key) is None:
            return None
        numbers: Any = np.asarray(jax.random.key_data(key))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(key))

    @cached_property
    def device_arrays(self) -> Batch:
        """The arrays on the device, sent once."""
        with jax.ensure_compile_time_eval():  # they outlive a trace in which they are asked for
            # Where a mesh is active `jnp.asarray` commits to it, and they are used on others too.
            sent = lambda x: x if isinstance(x, jax.Array) else jax.device_put(x)  # noqa: E731
            return jax.tree.map(sent, self.arrays)

    @property
    def host_arrays(self) -> Batch:
        """The arrays in the host's memory: there, a slice is no program."""
        return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), self.arrays)

    @property
    def gather(self) -> Callable[[Batch, Any], Batch]:
        """`(arrays, indices) -> batch`, to be called inside a compiled loop."""
        return gather_padded if self.remainder == "pad" else gather


@partial(jax.jit, static_argnums=2)
def _lots(key: chex.PRNGKey | None, epochs: jax.Array | np.ndarray, size: int) -> jax.Array:
    """What the examples draw for their places in epochs, [epochs, size]; all 0 without a key."""
    if key is None:
        return jnp.zeros((len(epochs), size), jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, epochs)
    return jax.vmap(lambda key: jax.random.bits(key, (size,), jnp.uint32))(keys)


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
