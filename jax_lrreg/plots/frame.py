"""What all pictures share: one style, axes, titles and legends, and the figure to save."""

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# A grey with a contrast of 4.2 to white and of 4.4 to the dark pages of notebooks and of the site:
# a picture without a background reads on both.
GREY = "#7b7b7b"
FAINT = "#7b7b7b50"
# Okabe and Ito's colours, which colour-blind people tell apart too; their black would be lost on a
# dark page, their yellow on a light one.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GREY)
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), GREY),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
WIDE = 64  # characters of a title over axes of the usual width, beside a legend
NARROW = 26  # characters of a line in a legend, which takes its room from the axes

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws in the one style of all pictures, whatever the user's is."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        # A notebook's backend turns interaction on when the first figure loads it. In the context
        # that would end with it, and no later figure of the notebook would be shown.
        plt.draw_if_interactive()
        with plt.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)  # of axes that come from another style
    return ax


def cycle(count: int) -> list[str]:
    """A colour for each of so many lines."""
    return [COLORS[index % len(COLORS)] for index in range(count)]


def legend(ax: Axes, title: str | None = None) -> None:
    """A legend of what has a name, beside the axes, where it hides no line; long names wrap."""
    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    names = ["\n".join(textwrap.wrap(name, NARROW)) or name for name in names]
    # In the upper corner, not in the middle: the first name is beside the first line to look at.
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    ax.legend(handles, names, title=title, title_fontsize=8, borderaxespad=0, **place)


def shortened(texts: Sequence[str]) -> str:
    """As many of the texts as have room in a title; dots stand for the rest."""
    shown = list(texts)
    while len(shown) > 1 and len(",  ".join(shown)) > WIDE:
        shown.pop()
    return ",  ".join(shown) + (", ..." if len(shown) < len(texts) else "")


def plain_logarithm(axis: Axis, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis that goes from `low` to `high`."""
    # Matplotlib writes 4 x 10^-1 there, over one another on a low panel, and nothing at all
    # between 0.33 and 0.39.
    few, factor = MaxNLocator(5, steps=[1, 2, 5, 10]), high / low
    locator = LogLocator(subs=(1, 2, 5) if factor < 100 else (1,)) if factor > 5 else few
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes are in, to save or close."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def formats() -> list[str]:
    """The endings of files that a picture can be saved to."""
    return sorted(FigureCanvasBase.get_supported_filetypes())
