"""Batches from an iterable: drawn, checked and stacked in a thread, one call of the device ahead."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require

STREAM_BYTES = 64 * 2**20  # of stacked batches in one call; up to four calls' worth are in memory
PATIENCE = 5.0  # seconds to wait for an iterable that does not return, when an error ends the loop


class Stream:
    """An iterable of batches, of which some are too short to fill one.

    The first batch tells how many examples fill a batch; the others are counted along axis 0. Each batch is
    taken when it is asked for, so an iterator can be used again afterwards.

    Attributes:
        batches: an iterable of batches, such as a data loader or `(b for _ in range(epochs) for b in loader)`.
        remainder: what becomes of a batch that is too short: "drop" leaves it out, "pad" fills it up with its
            own examples and adds `mask` (1.0 for real ones) to every batch, which must be a dict, and "error"
            refuses it, as an iterable without this wrapper does.

    Example:
        >>> batches = [{"x": np.ones(4)}, {"x": np.ones(3)}]
        >>> [len(batch["x"]) for batch in Stream(batches)]
        [4]
        >>> print([batch["mask"] for batch in Stream(batches, remainder="pad")][-1])
        [1. 1. 1. 0.]
    """

    def __init__(self, batches: Iterable[Any], remainder: str = "drop"):
        if not isinstance(batches, Iterable):
            raise TypeError(f"Stream: `batches` must be an iterable of batches, got {batches!r}")
        known = ("drop", "pad", "error")
        require(remainder in known, self, "remainder", remainder, f"one of {', '.join(known)}")
        self.batches, self.remainder = batches, remainder
        self._size = 0

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            count = examples(batch) or 0
            self._size = self._size or count
            if self.remainder == "pad":
                yield self._padded(batch, count)
            elif count == self._size:
                yield batch
            elif count > self._size or self.remainder == "error":
                allowed = f"a batch of {self._size} examples, as the first, or fewer with remainder='drop' or 'pad'"
                require(False, self, f"batches[{number}]", count, allowed)

    def _padded(self, batch: Any, count: int) -> Any:
        free = isinstance(batch, dict) and "mask" not in batch
        require(
            free,
            self,
            "batches",
            type(batch).__name__,
            "dicts without `mask`, which remainder='pad' adds",
        )
        require(
            0 < count <= self._size,
            self,
            "batches",
            count,
            f"batches of 1 to {self._size} examples",
        )
        if count < self._size:
            index = np.arange(self._size) % count
            batch = jax.tree.map(lambda x: np.asarray(x)[index] if np.ndim(x) else x, batch)
        return {**batch, "mask": (np.arange(self._size) < count).astype(np.float32)}


class Draw(NamedTuple):
    """The batches of one call of the device, and the error that came instead of the next one, if one did."""

    count: int
    payload: Any
    error: BaseException | None = None


class StreamSource:
    """Batches from an iterable, stacked for each call."""

    def __init__(self, data: Iterable[Any], owner: str = "fit"):
        require_batches(data, owner)
        self.iterator = iter(data)
        self.arrays, self.drawn, self.owner = (), 0, owner

    @staticmethod
    def gather(arrays: Any, row: Any) -> Any:
        """The batch as it came."""
        del arrays
        return row

    def example(self, now: int) -> Any:
        """The first batch as shapes and dtypes."""
        del now
        first = next(self.iterator, None)
        require(first is not None, self.owner, "data", first, "an iterable of at least one batch")
        self.iterator = itertools.chain([first], self.iterator)
        leaves, self.structure = _leaves(first)
        self.form = [(leaf.shape, leaf.dtype) for leaf in leaves]
        for shape, dtype in self.form:
            known = any(
                jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.extended)
            )
            require(known, self.owner, "data", f"{dtype}{list(shape)}", "batches of numbers")
        self.text = _text(first)
        shapes = [
            jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype, True))
            for shape, dtype in self.form
        ]
        return jax.tree.unflatten(self.structure, shapes)

    def most(self, example: Any) -> int:
        """How many batches fit into one call."""
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(example))
        return max(1, STREAM_BYTES // max(size, 1))

    def payload(self, now: int, count: int, size: int) -> Any:
        """The next `count` batches, stacked in `size` rows."""
        del now
        draw = self._pack(count, size, lambda rows: rows, lambda: False)
        if draw.error is not None:
            raise draw.error
        return self._finished(draw).payload

    def draw(
        self, now: int, counts: Iterable[int], size: int | None, place: Callable
    ) -> Generator[Draw, None, None]:
        """What each call of the device needs, put in its place while the device works on the call before.

        A thread draws exactly `counts` batches and ends when this generator is closed. What the iterable
        raises comes behind the batches before it.
        """
        del now
        ready: queue.Queue[Draw | None] = queue.Queue(maxsize=1)
        stop = threading.Event()
        # The contexts of JAX belong to a thread.
        wide, device = jax.config.jax_enable_x64, jax.config.jax_default_device  # type: ignore[attr-defined]

        def work() -> None:
            with jax.enable_x64(wide), jax.default_device(device):
                for count in counts:
                    with jax.profiler.TraceAnnotation("stack batches"):
                        draw = self._pack(count, size, place, stop.is_set)
                    ready.put(draw)
                    if draw.error is not None or stop.is_set():
                        return
            ready.put(None)

        thread = threading.Thread(target=work, name="jax_lrreg batches", daemon=True)
        thread.start()
        try:
            while (draw := ready.get()) is not None:
                yield self._finished(draw)
                if draw.error is not None:
                    return
        finally:
            stop.set()
            while not ready.empty():
                ready.get()
            thread.join(PATIENCE)

    def _pack(
        self, count: int, size: int | None, place: Callable, stopped: Callable[[], bool]
    ) -> Draw:
        done, error, rows = 0, None, _Rows(self.form, size, place)
        try:
            while done < count and not stopped():
                rows.put(done, self._next())
                done += 1
        except BaseException as caught:  # it belongs to the caller, who may be in another thread
            error = caught
        try:
            rows.send()
        except BaseException as caught:
            done, error = 0, caught
        return Draw(done, rows if done else None, error)

    def _finished(self, draw: Draw) -> Draw:
        if draw.payload is None:
            return draw
        return draw._replace(payload=jax.tree.unflatten(self.structure, draw.payload.leaves()))

    def _next(self) -> list[Any]:
        for batch in self.iterator:
            leaves, structure = _leaves(batch)
            same = structure == self.structure and all(map(_alike, leaves, self.form))
            if not same:
                raise ValueError(
                    f"{self.owner}: batch {self.drawn} of `data` is {_text(batch)}, but the first was {self.text}; "
                    "training.Stream drops or pads what does not fill a batch"
                )
            self.drawn += 1
            return leaves
        raise ValueError(
            f"{self.owner}: `data` ended after {self.drawn} batches, before `steps` were made; "
            "give a longer iterable or fewer steps"
        )


class _Rows:
    """Batches under each other. NumPy's are copied at once, as a loader may use their memory for the next.

    Those that are on a device already are stacked by a program, which `leaves` calls and `send` does not: where
    two threads start programs on several devices, each device may take them in another order, and they wait for
    one another for ever.
    """

    def __init__(self, form: list[Any], size: int | None, place: Callable[[Any], Any]):
        self.size, self.place = size, place
        self.columns: list[Any] = [None] * len(form)

    def put(self, index: int, leaves: list[Any]) -> None:
        for column, leaf in enumerate(leaves):
            if index == 0:
                on_device = isinstance(leaf, jax.Array)
                self.columns[column] = (
                    [] if on_device else np.zeros((self.size or 1, *leaf.shape), leaf.dtype)
                )
            rows = self.columns[column]
            if isinstance(rows, list):
                rows.append(leaf)
            else:
                rows[index] = leaf

    def send(self) -> None:
        """Puts NumPy's in their place."""
        for column, rows in enumerate(self.columns):
            if isinstance(rows, np.ndarray):
                self.columns[column] = self.place(rows if self.size is not None else rows[0])

    def leaves(self) -> list[Any]:
        """All of them; only for the thread that starts the programs of the loop."""
        return [
            self.place(self._stacked(rows)) if isinstance(rows, list) else rows
            for rows in self.columns
        ]

    def _stacked(self, rows: list[jax.Array]) -> jax.Array:
        return (
            rows[0] if self.size is None else jnp.stack(rows + [rows[-1]] * (self.size - len(rows)))
        )


def as_array(leaf: Any) -> Any:
    """A leaf of a batch as an array: tensors of other libraries are read as NumPy's."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _leaves(batch: Any) -> tuple[list[Any], Any]:
    """The arrays of a batch, and its structure."""
    leaves, structure = jax.tree.flatten(batch)
    return [as_array(leaf) for leaf in leaves], structure


def _alike(leaf: Any, form: tuple[Any, Any]) -> bool:
    return leaf.shape == form[0] and leaf.dtype == form[1]


def _text(batch: Any) -> dict[str, str]:
    pairs = jax.tree_util.tree_flatten_with_path(batch)[0]
    arrays = [(path, as_array(leaf)) for path, leaf in pairs]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in arrays
    }


def require_batches(data: Any, owner: str) -> None:
    """Refuses what is no iterable, and arrays, which would be iterated by their rows."""
    if isinstance(data, dict | str | np.ndarray | jax.Array):
        raise TypeError(
            f"{owner}: `data` must be an ArrayData or an iterable of batches; make an ArrayData of arrays"
        )
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            f"{owner}: `data` must be an ArrayData or an iterable of batches, got {data!r}"
        )


def examples(batch: Any) -> int | None:
    """How many examples lie along axis 0 of a batch; None where no leaf has that axis."""
    return next((np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)), None)
