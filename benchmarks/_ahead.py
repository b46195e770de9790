"""Programs compiled for TPUs that are not here, by PyPI's libtpu, and what they send.

To be imported before JAX: libtpu reads its environment when it is loaded.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server that could be asked
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # by other tests at the same time
}

import jax
import numpy as np
from jax.experimental import topologies

from jax_lrreg import training

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def mesh_of(name: str) -> jax.sharding.Mesh:
    """A mesh of one axis, `data`, over the chips of a topology such as `v5e:16x16`."""
    sides = [int(side) for side in name.partition(":")[2].split("x")]
    # One chip is a part of a host, and has to be asked for as such.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sides) == 1 else {}
    chips = topologies.get_topology_desc(name, platform="tpu", **bounds).devices
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(chips), ("data",), axis_types=kinds)


def shapes_on(mesh: jax.sharding.Mesh, make: Callable[[], Any], rule: Any = None) -> Any:
    """The state that `make` would make, as shapes that lie on a mesh by a rule."""
    shapes = jax.eval_shape(make)
    lies = training.shardings(shapes, mesh, rule)
    one = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(one, shapes, lies)


class Messages(NamedTuple):
    """How many messages of a kind a program sends, those of a loop each time, and their bytes."""

    count: int
    bytes: float


def messages(text: str, chips: int) -> dict[str, Messages]:
    """What a compiled program sends, by kind: the bytes are those that a chip has in the end."""
    bodies, entry = _computations(text)
    times: Counter[str] = Counter()

    def walk(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            links = dict(re.findall(r"(\w+)=%?([\w.\-]+)", line))
            inside = count * _trips(bodies, links["condition"]) if " while(" in line else count
            for called in {links.get(word) for word in ("body", "calls", "condition")}:
                if called in bodies:
                    walk(called, inside)

    walk(entry, 1)
    # The parts of a message that is sent while something else is worked out share its number.
    found: dict[tuple[str, str], Messages] = {}
    for name, count in times.items():
        for line in bodies[name]:
            sent = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
            if sent:
                number = re.search(r"channel_id=(\d+)", line)
                size = _bytes(sent[1], whole=sent[3] is None or sent[2] == "all-reduce")
                size *= chips if sent[2] == "reduce-scatter" else 1
                found[sent[2], number[1] if number else line] = Messages(count, count * size)
    kinds = {kind: [m for (k, _), m in found.items() if k == kind] for kind in COLLECTIVES}
    return {
        kind: Messages(sum(m.count for m in sent), sum(m.bytes for m in sent))
        for kind, sent in kinds.items()
    }


def _trips(bodies: dict[str, list[str]], condition: str) -> int:
    """How often a loop runs: the number that its condition compares a counter with; 1 if none."""
    numbers = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(bodies[condition]))
    return max(map(int, numbers), default=1)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of a program, and the name of the one that begins."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if begins:
            name = begins[2]
            bodies[name] = []
            entry = name if begins[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _bytes(shapes: str, whole: bool) -> int:
    """The bytes of the arrays that a line returns; of one that has begun, those of the largest."""
    sizes = [
        math.prod(map(int, filter(None, numbers.split(",")))) * _bits(kind) // 8
        for kind, numbers in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return sum(sizes) if whole else max(sizes, default=0)


def _bits(kind: str) -> int:
    digits = re.search(r"\d+$", kind)
    return int(digits[0]) if digits else 8
