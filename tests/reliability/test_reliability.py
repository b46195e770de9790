"""The small form of the battery: see README.md."""

import subprocess
import sys
from pathlib import Path

import pytest

BATTERY = Path(__file__).parent / "battery.py"


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_the_small_form_holds():
    done = subprocess.run([sys.executable, str(BATTERY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4
