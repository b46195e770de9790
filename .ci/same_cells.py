"""Fails unless two notebooks have the same cells, whatever their outputs."""

import json
import sys


def cells(path: str) -> list[tuple[str, str]]:
    """The kind and text of each cell."""
    with sys.stdin if path == "-" else open(path) as file:
        return [
            (cell["cell_type"], "".join(cell["source"]).strip())
            for cell in json.load(file)["cells"]
        ]


if cells(sys.argv[1]) != cells(sys.argv[2]):
    sys.exit(f"{sys.argv[2]} differs from its script; run: jupytext --sync {sys.argv[2]}")
