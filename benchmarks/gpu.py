"""The other benchmarks at the size of a GPU, in one run of under eight minutes.

    python gpu.py

Floor: the four workloads, `fit` beside a hand-written scan. Update: 50 million parameters in 20 and
200 leaves beside PyTorch's fused AdamW, against the bandwidth of a copy. Peers: whatever is
installed, each in a process of its own. It prints its tables as they come, and leaves out the rest
of the parts when the time is up.
"""

import argparse
import os
import time

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # the peers' processes share the memory

import floor
import jax
import peers
import update_cost
from _timing import machine
from _workloads import workloads

SECONDS = 420
PEERS = {
    "article": ["fit", "Flax loop, host batches", "PyTorch eager", "PyTorch compiled"],
    "transformer": [
        "fit",
        "Flax loop, host batches",
        "PyTorch eager",
        "PyTorch compiled",
        "Keras on JAX, one long epoch",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    arguments = parser.parse_args()
    tiny, began = arguments.tiny, time.perf_counter()
    rounds = arguments.rounds or (2 if tiny else 7)
    print(machine())
    work = workloads(tiny, jax.default_backend())
    parts = [
        *(
            (f"floor, {name}", lambda name=name: floor.table(work[name], rounds))
            for name in (PEERS if tiny else work)
        ),
        *(
            (
                f"update, {leaves}",
                lambda leaves=leaves: update_cost.table(
                    leaves, 2000 if tiny else 50_000_000, rounds
                ),
            )
            for leaves in ((2,) if tiny else (20, 200))
        ),
        *(
            (
                f"peers, {name}",
                lambda name=name: peers.table(
                    name, work[name], peers.installed(PEERS[name]), rounds
                ),
            )
            for name in (["article"] if tiny else PEERS)
        ),
    ]
    for name, part in parts:
        if time.perf_counter() - began > SECONDS:
            print(f"\nleft out for want of time: {name}")
            continue
        print(f"\n## {name}\n\n{part()}", flush=True)


if __name__ == "__main__":
    main()
