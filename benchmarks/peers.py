"""How long do the libraries that one would use instead take for the same training?

The four workloads of `_workloads.py`, from the same parameters over the same batches in the same
order, to the same final loss (it is checked). Each contender has a process of its own; the rounds
take turns. A round is the whole training. "First" is what the first round took longer than the
later ones: tracing, compiling, building. Keras shuffles by itself, so it gets the batches in their
order: as one long epoch, the least it can be asked to do between steps, and with a call of `fit`
for each epoch. PyTorch gets batches that lie in memory one after the other, and on the CPU one
thread for the article's model.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np
from _timing import machine
from _workloads import Workload, final_loss, flat, unflat, workloads

FOLDER = pathlib.Path(__file__).parent
LIBRARIES = ("torch", "keras", "tensorflow")
ROUNDS = {"article": 7, "digits": 9, "transformer": 3, "cnn": 5}


class Contender(NamedTuple):
    """A command, what must be installed for it, and what it needs in the environment."""

    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


KERAS_JAX = ("keras",), {"KERAS_BACKEND": "jax"}
KERAS_TENSORFLOW = (
    ("keras", "tensorflow"),
    {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
)
CONTENDERS = {
    "fit": Contender(("_peer_jax.py", "fit")),
    "raw JAX, one scan": Contender(("_peer_jax.py", "scan")),
    "raw JAX, one call a step": Contender(("_peer_jax.py", "single")),
    "Flax loop, host batches": Contender(("_peer_jax.py", "flax")),
    "NNX, ours, one call a step": Contender(("_peer_jax.py", "nnx ours")),
    "NNX, a donated step by hand": Contender(("_peer_jax.py", "nnx by hand")),
    "the same, with ours' metrics and guard": Contender(("_peer_jax.py", "nnx with metrics")),
    "NNX, `nnx.jit`": Contender(("_peer_jax.py", "nnx.jit")),
    "PyTorch eager": Contender(("_peer_torch.py", "eager"), ("torch",)),
    "PyTorch compiled": Contender(
        ("_peer_torch.py", "compiled"), ("torch",), {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    ),
    "Keras on JAX, one long epoch": Contender(("_peer_keras.py", "whole"), *KERAS_JAX),
    "Keras on JAX, a `fit` an epoch": Contender(("_peer_keras.py", "epochs"), *KERAS_JAX),
    "Keras on TensorFlow, one long epoch": Contender(
        ("_peer_keras.py", "whole"), *KERAS_TENSORFLOW
    ),
    "Keras on TensorFlow, a `fit` an epoch": Contender(
        ("_peer_keras.py", "epochs"), *KERAS_TENSORFLOW
    ),
}


class Child:
    """A contender at work."""

    def __init__(self, contender: Contender, folder: pathlib.Path, python: str):
        self.errors = (folder.parent / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [
                python if contender.needs else sys.executable,
                str(FOLDER / contender.command[0]),
                *contender.command[1:],
                str(folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **contender.environment},
        )

    def hear(self) -> dict[str, float]:
        """Its next answer."""
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args} ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, float]:
        """What it answers to a line."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


def write_problem(work: Workload, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    rows = work.order().ravel()
    (folder / "recipe.json").write_text(
        json.dumps(work.recipe | {"epoch": work.data().steps_per_epoch})
    )
    np.savez(folder / "data.npz", **{name: values[rows] for name, values in work.arrays.items()})
    np.savez(folder / "start.npz", **flat(work.start().params))


def ends(work: Workload, folder: pathlib.Path) -> float:
    """The final loss of the contender that has just trained there."""
    with np.load(folder / "end.npz") as arrays:
        return final_loss(work, unflat(dict(arrays), work.start().params))


def versions(python: str) -> dict[str, str]:
    """Those of the other libraries that an interpreter has."""
    code = (
        "import json; from importlib.metadata import packages_distributions, version; "
        "known = packages_distributions(); "
        f"found = {{name: version(known[name][0]) for name in {LIBRARIES} if name in known}}; "
        "print(json.dumps(found))"
    )
    return json.loads(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def installed(names: list[str], python: str = sys.executable) -> list[str]:
    """The contenders whose libraries are there; names the others."""
    known = versions(python)
    for name in names:
        missing = [library for library in CONTENDERS[name].needs if library not in known]
        if missing:
            print(f"left out: {name} ({', '.join(missing)} not installed)")
    return [name for name in names if set(CONTENDERS[name].needs) <= set(known)]


def table(
    name: str, work: Workload, contenders: list[str], rounds: int, python: str = sys.executable
) -> str:
    """The contenders of one workload, by their median time."""
    with tempfile.TemporaryDirectory() as scratch:
        children, first, losses = {}, {}, {}
        try:
            for index, contender in enumerate(contenders):
                folder = pathlib.Path(scratch) / str(index) / name
                write_problem(work, folder)
                children[contender] = Child(CONTENDERS[contender], folder, python)
                first[contender] = children[contender].hear()[
                    "first"
                ]  # one after the other: it is timed
                losses[contender] = ends(work, folder)
            check(losses, final_loss(work, work.start().params))
            seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
            for index in range(rounds):
                for contender in contenders[:: 1 if index % 2 else -1]:
                    seconds[contender].append(children[contender].ask("go")["seconds"])
            peaks = {contender: child.ask("end")["peak"] for contender, child in children.items()}
        finally:
            for child in children.values():
                child.close()
    lines = [
        "| what | microseconds a step | x ours | from | to | first, seconds "
        "| peak MB | final loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    timed = {contender: np.asarray(values) for contender, values in seconds.items()}
    for contender in sorted(contenders, key=lambda one: float(np.median(timed[one]))):
        low, middle, high = np.quantile(timed[contender] / timed[contenders[0]], [0.1, 0.5, 0.9])
        median = float(np.median(timed[contender]))
        lines.append(
            f"| {contender} | {1e6 * median / work.steps:.4g} "
            f"| {middle:.3g} | {low:.3g} | {high:.3g} | "
            f"{first[contender] - median:.2f} | {peaks[contender]:.0f} | {losses[contender]:.4g} |"
        )
    return "\n".join(lines)


def check(losses: dict[str, float], before: float) -> None:
    """Refuses contenders that did not come down as far as the first one did."""
    aim = next(iter(losses.values()))
    for contender, loss in losses.items():
        assert abs(loss - aim) <= 0.05 * abs(before - aim) + 1e-4, (
            f"{contender} ends at {loss}, not at {aim}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each contender trains")
    parser.add_argument("--workloads", nargs="+", choices=ROUNDS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="an interpreter that has PyTorch, Keras and TensorFlow",
    )
    arguments = parser.parse_args()
    tiny = arguments.tiny
    print(
        machine()
        + "".join(f", {name} {number}" for name, number in versions(arguments.python).items())
    )
    known = installed(arguments.contenders, arguments.python)
    for name in arguments.workloads or (["article", "transformer"] if tiny else list(ROUNDS)):
        contenders = (
            known[:1] + known[4:8] if tiny and name == "transformer" else known
        )  # a process each takes time
        work = workloads(tiny, jax.default_backend())[name]
        print(f"\n## {name}: {work.steps} steps\n")
        rounds = arguments.rounds or (2 if tiny else ROUNDS[name])
        print(table(name, work, contenders, rounds, arguments.python), flush=True)


if __name__ == "__main__":
    main()
