"""What does an average of the parameters add to a step, of a small model and of a large one?

    python benchmarks/average_cost.py [--tiny] [--rounds N] [--workloads transformer digits]

`training.fit` with each kind of average, beside `fit` without one, of the same model and batches.
An average reads the new parameters, and reads and writes its own copy: its share of a step falls
with the size of the batch.
"""

import argparse
from typing import Any

from _timing import interleaved, machine, show
from _workloads import workloads
from floor import ours

from jax_lrreg import averages

ROUNDS = {"digits": 25, "transformer": 9}


def kinds(steps: int) -> dict[str, Any]:
    return {
        "none": None,
        "EMA": averages.EMA(0.999),
        "Uniform": averages.Uniform(),
        "Latest, 4": averages.Latest(4, every=max(1, steps // 8)),
        "Cooldown, 8 bins": averages.Cooldown(steps // 2, bins=8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--workloads", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    arguments = parser.parse_args()
    print(machine())
    for name in arguments.workloads:
        work = workloads(arguments.tiny)[name]
        runs = {kind: ours(work, average=average) for kind, average in kinds(work.steps).items()}
        rounds = arguments.rounds or (2 if arguments.tiny else ROUNDS[name])
        print(f"\n## {name}: {work.steps} steps\n")
        print(show(interleaved(runs, rounds=rounds), baseline="none", each=work.steps), flush=True)


if __name__ == "__main__":
    main()
