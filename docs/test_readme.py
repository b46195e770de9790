"""README: every block of Python runs, in order, and every file that it links to is there."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_blocks_run_one_after_another(capsys):
    names = {}
    for index, block in enumerate(BLOCKS):
        imported = set(re.findall(r"^(?:from \S+ )?import (.*)", block, re.MULTILINE))
        assert imported, "each block says what it imports"
        exec(compile(block, f"README.md, block {index}", "exec"), names)
        if index == 0:
            accuracy = (names["digits"] == names["y"][1400:]).mean()
            assert 0.88 < accuracy < 0.95, "as the text says"
    plt.close("all")
    capsys.readouterr()


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []
