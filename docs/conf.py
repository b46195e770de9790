"""The site: `sphinx-build -W --keep-going docs site` from the top of the repository.

Pages are Markdown whose Python runs in test_pages.py; the reference is made of docstrings, the
pictures by pictures.py. Nothing is fetched, neither by the build nor by a reader's browser: no CDN,
no remote font, no inventory of another project.
"""

import re
import sys
from pathlib import Path

import jax_lrreg

sys.path.insert(0, str(Path(__file__).parent))
import pictures

project = "jax_lrreg"
author = "The jax_lrreg developers"
version = release = jax_lrreg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True

html_theme = "furo"
html_title = f"jax_lrreg {version}"
html_copy_source = html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["site.css"]

myst_heading_anchors = 3  # a link to a heading is written as for GitHub, `page.md#heading`

autodoc_member_order = "groupwise"
# Docstrings say what an argument takes; the type of a number, ten types long, would bury it.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # an overridden method is described once, on its base class
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source", ("Attributes", "params_style")]  # "Variables" it would say

SECTION = re.compile(r"[A-Z][a-z]+:$")


def escaped(text):
    """A paragraph of Markdown as reStructuredText: `code` is literal, |w| and w* are no markup."""
    code, rest = r"(`[^`]+`)", r"([|*]|(?<=\w)_\b(?!\w))"
    parts = re.split(code, text)
    plain = [re.sub(rest, r"\\\1", part) for part in parts[::2]]
    literal = [rf"\ `{part}`\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(plain, [*literal, ""], strict=True))


def from_markdown(app, what, name, obj, options, lines):
    """Rewrites a docstring before napoleon reads its sections; formulas and examples stay."""
    blocks, section = [], False
    for block in "\n".join(lines).split("\n\n"):
        first = block.splitlines()[0] if block else ""
        section = bool(SECTION.match(first)) or (section and first.startswith(" "))
        if ">>> " in block:
            blocks.append(block)
        elif first.startswith("    ") and not section:
            blocks.append(f".. code-block:: text\n\n{block}")
        else:
            blocks.append(escaped(block))
    # Behind an empty comment: napoleon takes what is before a colon in a first line for a type.
    lines[:] = ["..", "", *"\n\n".join(blocks).splitlines()]


def foreign(app, what, name, obj, skip, options):
    """Leaves out what a namespace only passes on, such as Matplotlib's `Axes`."""
    return skip or not getattr(obj, "__module__", "jax_lrreg").startswith("jax_lrreg") or None


def within_the_site(app, name, source):
    """Leads a link that is right in the repository to the page of the site with that text."""
    for there, page in (("README", "benchmarks"), ("scaling", "scaling")):
        source[0] = source[0].replace(f"](../benchmarks/{there}.md", f"](more/{page}.md")


def draw(app):
    pictures.draw()


def setup(app):
    app.connect("builder-inited", draw)
    app.connect("source-read", within_the_site)
    app.connect("autodoc-skip-member", foreign)
    app.connect("autodoc-process-docstring", from_markdown, priority=100)
