"""Draws README's picture, train.png: what the first block of Python there draws."""

import re
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
README = (HERE.parent.parent / "README.md").read_text()

block = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
exec(compile(block[1], "README.md", "exec"))
plt.savefig(HERE / "train.png", dpi=130)
