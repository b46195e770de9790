"""One version, wherever it is written; workflows and templates that parse."""

import re
import tomllib
from pathlib import Path

import pytest

import jax_lrreg

ROOT = Path(__file__).parent.parent
SAYS = {
    "CHANGELOG.md": r"^## (\d\S*) - \d{4}-\d\d-\d\d$",
    "CITATION.cff": r"^version: (\S+)$",
    "README.md": r"^Version (\d+\.\d+\.\d+);",
}


@pytest.mark.parametrize("file", SAYS)
def test_the_version_is_the_same_everywhere(file):
    found = re.search(SAYS[file], (ROOT / file).read_text(), re.MULTILINE)
    assert found
    assert found[1] == jax_lrreg.__version__


def test_the_day_is_the_same_everywhere():
    day = re.search(r"^## \S+ - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert f'date-released: "{day}"' in (ROOT / "CITATION.cff").read_text()


def test_pythons_are_those_that_readme_has():
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert f"| Python | {', '.join(classifiers)} |" in (ROOT / "README.md").read_text()


def test_links_of_readme_lead_to_the_repository_on_the_package_index():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    shown = (ROOT / "README.md").read_text()
    for one in hook["substitutions"]:
        shown = re.sub(one["pattern"], one["replacement"], shown)
    places = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", shown)
    repository = project["project"]["urls"]["Source"] + "/blob/"
    pictures = repository.replace("github.com", "raw.githubusercontent.com").replace("/blob", "")
    assert sum(mark == "!" for mark, _ in places) == 1
    assert all(place.startswith(pictures if mark else repository) for mark, place in places)


def test_workflows_and_templates_parse_and_pin_what_they_use():
    yaml = pytest.importorskip("yaml")
    for path in sorted((ROOT / ".github").rglob("*.yml")):
        assert yaml.safe_load(path.read_text())
        used = re.findall(r"uses: (\S+)", path.read_text())
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used), used
