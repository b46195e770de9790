"""Every benchmark runs: a script that nothing runs rots."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
# `gpu.py` goes through all workloads of these two.
LESS = {
    "average_cost.py": ["--workloads", "digits"],
    "floor.py": ["--workloads", "article"],
    "peers.py": ["--workloads", "article"],
    "scaling.py": ["--only", "L1, prox"],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.sampled(2)
def test_runs_with_tiny_sizes(script):
    # Another process may be writing a compiled program that this one would read.
    warnings = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache entry"]
    options = ["--tiny", *LESS.get(script, [])]
    command = [sys.executable, *warnings, str(FOLDER / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout, "it prints a table"


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_it_imports_is_there_and_its_options_are_read(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert "--tiny" in capsys.readouterr().out


def test_the_readme_names_each_script():
    text = (FOLDER / "README.md").read_text()
    assert [script for script in SCRIPTS if script not in text] == []
