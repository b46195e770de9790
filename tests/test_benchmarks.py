"""Every benchmark runs: a script that nothing runs rots."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
# `gpu.py` goes through all workloads of these two.
LESS = {"floor.py": ["--workloads", "article"], "peers.py": ["--workloads", "article"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_with_tiny_sizes(script):
    command = [sys.executable, "-W", "error", str(FOLDER / script), "--tiny", *LESS.get(script, [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout, "it prints a table"


def test_the_readme_names_each_script():
    text = (FOLDER / "README.md").read_text()
    assert [script for script in SCRIPTS if script not in text] == []
