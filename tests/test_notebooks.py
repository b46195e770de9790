"""The notebooks: what a reader of Colab meets first, and files that are there."""

import json
import re
from pathlib import Path

import pytest

COLAB = Path(__file__).parent.parent / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


def cells(path, kind):
    found = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_badge_and_installs_the_library(path):
    assert cells(path, "markdown")[0].count(f"/blob/main/colab/{path.name})") == 1
    first = cells(path, "code")[0]
    assert first == cells(NOTEBOOKS[0], "code")[0], "the first cell is the same in all"
    exec(first, names := {})
    assert "source" not in names, "nothing is done where the library is there"


def test_what_cannot_be_installed_is_told_in_one_line(monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(command[-1])
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", run)
    (tmp_path / "jax_lrreg").mkdir()
    (tmp_path / "jax_lrreg/__init__.py").touch()
    (tmp_path / "colab").mkdir()
    alone = tmp_path.parent
    for place, source in ((tmp_path / "colab", f"{tmp_path}[demo]"), (alone, "jax_lrreg[demo]")):
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit, match="pip found no jax_lrreg") as stop:
            exec(cells(NOTEBOOKS[0], "code")[0], {})
        assert "\n" not in str(stop.value)
        assert asked.pop() == source


def test_links_lead_to_files():
    texts = ["\n".join(cells(path, "markdown")) for path in NOTEBOOKS]
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(texts))
    assert len(links) >= 4
    assert [link for link in links if not (COLAB / link).exists()] == []
