"""Kills, signals, damage: what a run that is kept outlasts. `python tests/reliability/battery.py`.

The small form is part of the tests; `--full` is the long one. Each trial is a process that is
forked from this one, which has imported JAX and not begun with it: a start takes a tenth of a
second. Every trial is drawn from a seed that is printed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

CACHE = tempfile.mkdtemp(prefix="jax_lrreg_battery_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import cases
import orbax.checkpoint  # noqa: F401  before the fork

from jax_lrreg import checkpoints


def start(folder, out, case, *, asynchronous=True, event=None):
    """A process that runs a case and writes its sum to `out`; it kills itself at an event."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT), 2)
        if event is not None:
            _die_at(event, str(folder))
        found = cases.run(case, folder, asynchronous)
        Path(out).write_text(found)
        code = 130 if found == "interrupted" else 0
    except BaseException as error:
        Path(f"{out}.error").write_text(repr(error))
        code = 1
    os._exit(code)


def _die_at(number, folder):
    """Kills this process at an event of a file below a folder, as the interpreter sees them."""
    names = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.listdir"}
    count = 0

    def hook(event, args):
        nonlocal count
        if event in names and args and str(args[0]).startswith(folder):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def ended(child):
    """The exit code of a process that has ended by itself, or minus the signal."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Expected(dict):
    """What each case that is drawn gives without interruption, and how long that takes."""

    def __init__(self, place):
        self.place = place

    def __missing__(self, case):
        for _ in range(2):  # the first compiles
            began = time.monotonic()
            assert ended(start(None, self.place / case, case)) == 0, case
        self[case] = ((self.place / case).read_text(), time.monotonic() - began)
        return self[case]


def trial_of_kills(rng, place, expected, kills, number=signal.SIGKILL):
    """Whether a run that is killed at random moments, and called again, ends as the others."""
    case = rng.choice(cases.CASES)
    wanted, seconds = expected[case]
    folder, out, made = place / "run", place / "out", 0
    shutil.rmtree(folder, ignore_errors=True)
    out.unlink(missing_ok=True)
    options = {"asynchronous": rng.random() < 0.5}
    codes = []
    for _ in range(kills):
        child = start(folder, out, case, **options)
        time.sleep(rng.uniform(0.05, 1.3 * seconds))
        os.kill(child, number)
        codes.append(ended(child))
        made += codes[-1] in (-number, 130)
    code = ended(start(folder, out, case, **options))
    same = code == 0 and out.read_text() == wanted
    if not same:
        print(f"  differs: {case}, {options}, codes {codes}, at last {code}", flush=True)
    return same, made, codes


def kills(rng, place, expected, trials):
    """Trials of one to three kill -9 each."""
    good = total = 0
    for _ in range(trials):
        same, made, _ = trial_of_kills(rng, place, expected, rng.randint(1, 3))
        good, total = good + same, total + made
    return f"kill -9 at random moments: {good} of {trials} runs bit-identical, {total} kills", (
        good == trials
    )


def signals(rng, place, expected, trials):
    """One SIGTERM or SIGINT at a random moment, in compiling, evaluating and saving too."""
    good = 0
    for index in range(trials):
        number = (signal.SIGTERM, signal.SIGINT)[index % 2]
        same, _, codes = trial_of_kills(rng, place, expected, 1, number)
        # Before `fit` begins, the signal does what it always does.
        clean = all(code in (0, 130, -number, 1) for code in codes)
        good += same and clean
    return f"signals at random moments: {good} of {trials} runs bit-identical", good == trials


def events(place, expected, stride):
    """A kill at every event of a file, of which there are some hundred in the first saves."""
    good = total = 0
    case = "linen"
    for asynchronous in (False, True):
        number = 1
        while True:
            shutil.rmtree(place / "run", ignore_errors=True)
            options = {"asynchronous": asynchronous}
            child = start(place / "run", place / "out", case, event=number, **options)
            code = ended(child)
            if code == 0 or number > MOST_EVENTS:
                break
            (place / "out").unlink(missing_ok=True)
            code = ended(start(place / "run", place / "out", case, **options))
            good += code == 0 and (place / "out").read_text() == expected[case][0]
            total, number = total + 1, number + stride
    return f"kill -9 at events of files: {good} of {total} runs bit-identical", good == total


def damage(rng, place, flips, cuts):
    """Bits flipped and files cut: whether a restore gives something else in silence."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    child = os.fork()
    if child:
        code, text = ended(child), (place / "damage").read_text()
        return text, code == 0
    import jax
    import numpy as np

    cases.run("linen", folder, asynchronous=False)
    step, state, _ = cases.make("linen")
    like = step.complete(state)
    leaves = lambda s: jax.tree.leaves(s.replace(key=None))  # noqa: E731
    right = leaves(checkpoints.restore(folder, like=like))
    files = [p for p in (folder / str(cases.STEPS)).rglob("*") if p.is_file()]
    silent = named = 0
    for index in range(flips + cuts):
        file = rng.choice(files)
        whole = file.read_bytes()
        if not whole:
            file = max(files, key=lambda path: path.stat().st_size)
            whole = file.read_bytes()
        at = rng.randrange(len(whole))
        bad = bytearray(whole)
        bad[at] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(bad) if index < flips else whole[:at])
        try:
            found = leaves(checkpoints.restore(folder, like=like))
            pairs = zip(found, right, strict=True)
            silent += not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        except checkpoints.Damaged as error:
            named += file.name in str(error)
        file.write_bytes(whole)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        file = max(files, key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
        older = checkpoints.restore(folder, like=like, damaged="older")
        fell_back = int(older.step) < cases.STEPS and len(told) > 0
    text = (
        f"{flips} flipped bits and {cuts} cut files: {silent} wrong restores in silence, "
        f"{named} refused by the name of the file; an older one is taken when asked: {fell_back}"
    )
    (place / "damage").write_text(text)
    os._exit(0 if silent == 0 and named == flips + cuts and fell_back else 1)


def changed(rng, place, count):
    """Whether changed set-ups are refused by the right name, and go on in a branch."""
    child = os.fork()
    if child:
        code = ended(child)
        return (place / "changed").read_text(), code == 0
    import setups

    base = place / "base"
    setups.run(base, setups.STEPS)
    wrong = []
    chosen = rng.sample(setups.CHANGES, min(count, len(setups.CHANGES)))
    for index, (name, what, change) in enumerate(chosen):
        try:
            found = setups.attempt(name, change, base, place / f"branch{index}")
        except Exception as error:
            found = repr(error)
        if found:
            wrong.append(f"\n  {name}, {what}: {found}")
    good = len(chosen) - len(wrong)
    held = f"{good} of {len(chosen)} refused by the right name, and gone on in a branch"
    (place / "changed").write_text(f"changed set-ups: {held}" + "".join(wrong))
    os._exit(len(wrong) > 0)


MOST_EVENTS = 160  # the first saves, and a deletion
SMALL = {"kills": 1, "signals": 1, "stride": 233, "flips": 100, "cuts": 20, "setups": 2}
FULL = {"kills": 200, "signals": 20, "stride": 1, "flips": 1000, "cuts": 200, "setups": 99}


def main(arguments=None):
    """Runs the battery; the exit code is 0 if all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--signals", type=int)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--setups", type=int)
    options = parser.parse_args(arguments)
    given = {k: v for k, v in vars(options).items() if k in SMALL and v is not None}
    size = (FULL if options.full else SMALL) | given
    rng, place = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="jax_lrreg_runs_"))
    good = True
    try:
        expected = Expected(place)
        parts = (
            lambda: damage(rng, place, size["flips"], size["cuts"]),
            lambda: changed(rng, place, size["setups"]),
            lambda: kills(rng, place, expected, size["kills"]),
            lambda: signals(rng, place, expected, size["signals"]),
            lambda: events(place, expected, size["stride"]),
        )
        for part in parts:
            began = time.monotonic()
            text, held = part()
            good &= held
            print(f"{text} ({time.monotonic() - began:.0f} s, seed {options.seed})", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(CACHE, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
