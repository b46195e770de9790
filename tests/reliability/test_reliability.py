"""The small form of the battery: see README.md."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
