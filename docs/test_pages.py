"""The pages in docs: every block of Python runs, in order, and says what it means."""

import importlib
import importlib.util
import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

DOCS = Path(__file__).parent
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    for index, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {index}", "exec"), names)
    plt.close("all")
    capsys.readouterr()


BEFORE = [page for page in PAGES if "```py\n" in page.read_text()]


@pytest.mark.parametrize("page", BEFORE, ids=lambda page: page.stem)
def test_what_was_before_is_a_whole_program_where_its_library_is_installed(page, capsys):
    block = re.search(r"^```py\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)[1]
    for library in re.findall(r"^(?:import|from) (keras|timm|torch|transformers)\b", block, re.M):
        pytest.importorskip(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, page.name, "exec"), {})
    capsys.readouterr()


@pytest.fixture(scope="module")
def drawn():
    """The pictures that the build of the site draws, by their files."""
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    return {f"pictures/{name}.svg" for name in pictures.PICTURES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_to_pictures_that_are_drawn(page, drawn):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    dead = [link for link in links if link not in drawn and not (page.parent / link).exists()]
    assert dead == []


def prose(page):
    """A page without its programs."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(page):
    """What the headings of a page are called in a link, as GitHub and the site make it."""
    found = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_headings(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    dead = [(to, part) for to, part in links if part not in headings(DOCS / (to or page.name))]
    assert dead == []


SPACES = ("averages", "checkpoints", "finder", "forecast", "interop", "penalties", "plots")
SPACES += ("schedules", "select", "sweeps", "text", "training", "transforms")


@pytest.mark.parametrize("page", [*PAGES, DOCS.parent / "README.md"], ids=lambda page: page.stem)
def test_names_of_the_library_are_there(page):
    code = " ".join(re.findall(r"`[^`\n]+`", prose(page)))
    named = set(re.findall(rf"(?<![\w./])({'|'.join(SPACES)})\.(\w+)", code))
    named |= {("interop", name) for name in re.findall(r"`(from_(?!dict)\w+)`", code)}
    there = {space: dir(importlib.import_module(f"jax_lrreg.{space}")) for space in SPACES}
    assert {(space, name) for space, name in named if name not in there[space]} == set()


def test_every_page_and_namespace_is_in_the_table_of_contents():
    contents = (DOCS / "index.md").read_text()
    entries = set(re.findall(r"^(?:.* <)?([\w/]+)>?$", contents, re.MULTILINE))
    there = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert there - entries == {"index"}
