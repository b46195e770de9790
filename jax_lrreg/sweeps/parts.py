"""The parts of a sweep: how wide they are, and how they are gone through."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_lrreg.sweeps.program import Made, Programs

# Of the parameters and moments that one core goes through in each step. What is more lies in
# memory: 32 networks of 26,000 weights with Adam, 10 MB, take no less together than one by one.
IN_CACHE = 2**20
TRIAL = 20  # times its compilation: the least work left for which another width is tried
BETTER = 0.95  # of the time for a member: less may be noise


class Part(NamedTuple):
    """Members that have been run.

    Attributes:
        count: how many.
        width: of the programs that ran them.
        made: what each one goes on from, and its metrics as NumPy arrays.
    """

    count: int
    width: int
    made: Made


class Widths:
    """How many members a program has, by what is measured on the way.

    Where a sweep is long, its first parts have different widths, and the others the one that took
    least time for a member. Each part counts: nothing is run twice.
    """

    def __init__(self, first: int, most: int):
        self.now, self.most = first, most
        self.seconds: dict[int, float] = {}  # for a member, by width

    def told(self, members: int, seconds: float, left: int, compilation: float) -> None:
        """Chooses the next width after a part of `members`, with so many `left`."""
        known = self.seconds.get(self.now, math.inf)
        self.seconds[self.now] = min(known, seconds / members)
        best = self._best()
        near = (min(4 * best, self.most), max(1, best // 4))
        untried = [width for width in near if width not in self.seconds]
        worth = self.seconds[best] * left >= TRIAL * compilation
        self.now = untried[0] if untried and worth else best

    def _best(self) -> int:
        """The narrowest of those that take hardly longer than the quickest."""
        limit = min(self.seconds.values()) / BETTER
        return min(width for width, seconds in self.seconds.items() if seconds <= limit)


class Given:
    """A width that is said, and stays."""

    def __init__(self, width: int):
        self.now = self.most = width

    def told(self, *_: float) -> None:
        """Changes nothing."""


def parts(
    programs: Programs,
    rows: np.ndarray,
    carried: chex.ArrayTree = (),
    limit: int | None = None,
    width: int | None = None,
) -> Iterator[Part]:
    """Runs the members of these rows, some at once, in their order.

    Args:
        programs: of the function.
        rows: the place of each member along the axes.
        carried: what each member goes on from.
        limit: the most members at once; as many as have room where None.
        width: of the programs, as of the parts before; found where None.
    """
    size, place, end = len(rows), programs.place, 0
    calls = min(place.calls, limit or place.calls)
    if limit is not None:
        most = max(1, limit // (calls * place.devices))
        width = min(width, most) if width else _even(size, calls * place.devices, most)
    widths = Given(width) if width else _widths(programs, size, carried)
    with ThreadPoolExecutor(calls) as threads:
        while end < size:
            widths.now = place.agreed(widths.now)
            program, width = programs.fitting(widths.now, carried)
            if width < widths.now:  # for which there was no room
                widths.now = widths.most = width
            together = width * place.devices
            call = partial(_call, program, programs.points, rows, carried, place.mesh, together)
            began = time.perf_counter()
            made = list(threads.map(call, range(end, size, together)[:calls]))
            seconds = time.perf_counter() - began
            count = min(together * len(made), size - end)
            end += count
            widths.told(count, seconds, size - end, programs.seconds)
            real = itemgetter(slice(count))  # without what was run twice to fill the last program
            yield Part(count, width, jax.tree.map(real, jax.tree.map(joined, *made)))


def _widths(programs: Programs, size: int, carried: chex.ArrayTree) -> Widths:
    """Those of an earlier sweep of this form and size, or what a first look says."""

    def new() -> Widths:
        lanes = programs.place.lanes
        first = most = math.ceil(size / lanes)
        if programs.place.device.platform == "cpu":
            # Other devices hide the way to memory: there the widest is the first to be tried.
            wanted = max(1, IN_CACHE // max(1, programs.bytes_in_turn(carried)))
            first = _filled(size, lanes, min(wanted, most))
        return Widths(first, most)

    return programs.remembered(size, new)


def _filled(size: int, lanes: int, wanted: int) -> int:
    """A width from `wanted` to twice that, the one that has the fewest members run twice."""
    rounds = range(math.ceil(size / (2 * wanted * lanes)), math.ceil(size / (wanted * lanes)) + 1)
    widths = {n: math.ceil(size / (n * lanes)) for n in rounds}
    return widths[min(widths, key=lambda n: (n * widths[n], -n))]


def _even(size: int, lanes: int, most: int) -> int:
    """The least width that makes as few rounds as `most` does."""
    return math.ceil(size / (math.ceil(size / (lanes * most)) * lanes))


def _call(
    program: Callable[..., Made],
    points: dict[str, chex.ArrayTree],
    rows: np.ndarray,
    carried: chex.ArrayTree,
    mesh: Mesh,
    count: int,
    begin: int,
) -> Made:
    """What becomes of `count` members from `begin` on."""
    # The last part is as wide as the others, so that it is the same program.
    index = np.minimum(np.arange(begin, begin + count), len(rows) - 1)
    states, metrics = program(points, rows[index], _members(carried, index, mesh))
    return states, jax.device_get(metrics)


def _members(carried: chex.ArrayTree, index: np.ndarray, mesh: Mesh) -> chex.ArrayTree:
    """What those at `index` go on from."""
    if mesh.empty or not jax.tree.leaves(carried):
        return _at(carried, index)
    # What has been chosen may be whole on each device, which a compiled program does not take.
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(_at, out_shardings=where)(carried, index)


def _at(tree: chex.ArrayTree, index: np.ndarray) -> chex.ArrayTree:
    return jax.tree.map(lambda x: x[index], tree)


def joined(*arrays: chex.Array) -> chex.Array:
    """The members of several programs or parts, one behind the other, where they are."""
    return (np if isinstance(arrays[0], np.ndarray) else jnp).concatenate(arrays)
