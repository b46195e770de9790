"""README: every block of Python runs, in order, and every file that it links to is there."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the blocks before have defined."""
    yield {}
    plt.close("all")


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_a_block_runs_after_those_before_it(index, names, capsys):
    code = compile(BLOCKS[index], f"README.md, block {index}", "exec")
    imported = set(re.findall(r"^(?:from \S+ )?import (.*)", BLOCKS[index], re.MULTILINE))
    assert imported, "each block says what it imports"
    exec(code, names)
    if index == 0:
        accuracy = (names["digits"] == names["y"][1400:]).mean()
        assert 0.88 < accuracy < 0.95, "as the text says"
    capsys.readouterr()


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []
