"""The small form of the battery, and two processes that are one run: see README.md."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from orbax.checkpoint import multihost

from jax_lrreg import _processes

BATTERY = Path(__file__).parent / "battery.py"


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_the_small_form_holds():
    done = subprocess.run([sys.executable, str(BATTERY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 5


def losses(count, folder, steps):
    script = BATTERY.parent / "devices.py"
    command = [sys.executable, "-W", "ignore", str(script), str(count), str(folder), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_a_run_of_eight_devices_goes_on_on_eight_four_and_one(tmp_path):
    losses(8, tmp_path / "run", 20)
    expected = losses(8, tmp_path / "whole", 20) and losses(8, tmp_path / "whole", 40)
    for count in (8, 4, 1):
        shutil.copytree(tmp_path / "run", tmp_path / str(count))
        found = losses(count, tmp_path / str(count), 40)
        if count == 8:
            assert found == expected
        assert found == pytest.approx(expected, rel=1e-5)


PROCESSES = BATTERY.parent / "processes.py"


def run_two(folder, *what):
    """The exit code, output, errors and seconds of each of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(PROCESSES)]
    both = [
        subprocess.Popen([*command, str(rank), str(port), str(folder), *what], **pipes)
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    return [(one.returncode, *texts) for one, texts in zip(both, ends, strict=True)]


def test_two_processes_are_one_run_which_one_process_goes_on_with(tmp_path):
    ends = run_two(tmp_path)
    for code, _, errors in ends:
        assert code == 0, errors[-3000:]
    first, second = (json.loads(output.splitlines()[-1]) for _, output, _ in ends)
    refused = "make_eval: `data` must be the same batches on every process"
    assert first.pop("own evaluated") == second.pop("own evaluated") == refused[:58]
    assert first == second
    assert not {"uneven", "steps", "sweep of each"} & first.keys()  # refused, on both
    assert isinstance(first["all evaluated"], float)
    np.testing.assert_allclose(first["scan"], first["whole"][:-1], rtol=1e-5)
    np.testing.assert_allclose(first["step"][-1], first["whole"][-1], rtol=1e-5)
    *rungs, total = first["swept"]
    assert rungs == [10] * 6 + [30, 30, 90]
    assert total == pytest.approx(200, rel=1e-5)
    assert first["elsewhere"].startswith(" of [12, -1] on each (-1: none)")
    for kind in ("whole", "whole, rows", "cut", "cut, rows"):  # rows that each one gives
        np.testing.assert_allclose(first[kind], first["whole"], rtol=1e-5, err_msg=kind)
    assert first["signal"] == "SIGTERM"  # of one of the two: both end, and save
    lines = {file.stem: len(file.read_text().splitlines()) for file in tmp_path.glob("*.csv")}
    assert lines == {"whole": 4, "whole rows": 4, "cut": 4, "cut rows": 4, "kept": 7}
    command = [sys.executable, "-W", "ignore", str(PROCESSES), "alone", "-", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    alone = json.loads(done.stdout.splitlines()[-1])
    assert alone["back"] == pytest.approx(first["back"], rel=1e-6)
    np.testing.assert_allclose(alone["kept"], alone["whole"], rtol=1e-5)


@pytest.mark.parametrize("what", ["error", "kill"])
def test_a_process_that_ends_ends_the_other_which_says_why(tmp_path, what):
    (code, _, errors), (other, _, own) = run_two(tmp_path, what)
    assert code not in (0, None)
    assert other not in (0, None)
    if what == "error":
        assert "fit: process 1 of 2 ended by ValueError: row 17 is broken; process 0" in errors
        assert "ValueError: row 17 is broken\n" in own
    else:
        # Once in a while the network does not say so, and JAX ends the process at its time-out.
        note = "fit: process 0 of 2 may have lost another one: call the script again"
        assert note in errors or "JAX distributed service detected fatal errors" in errors
    # Within a minute: of the other one's end, or of the last line that it has written.
    entry = (tmp_path / f"{what}.csv").stat()
    assert time.time() - entry.st_mtime < 60


def test_an_error_before_a_run_is_told_where_the_others_look(monkeypatch):
    told = {}
    client = SimpleNamespace(key_value_set=told.__setitem__, key_value_dir_get=lambda _: [])
    monkeypatch.setattr(multihost, "get_jax_distributed_client", lambda: client)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    first = _processes._runs
    for number in (first, first + 1):  # all may have the error, and go on
        with pytest.raises(ValueError, match="few"), _processes.ending_together("fit", begins=True):
            raise ValueError("too few")
        assert list(told.popitem()) == [
            f"jax_lrreg/{number}/process 0",
            "process 0 of 2 ended by ValueError: too few",
        ]
    with _processes.ending_together("fit", begins=True):
        assert _processes._runs == first + 2
    with _processes.ending_together("fit"):
        assert _processes._runs == first + 3
