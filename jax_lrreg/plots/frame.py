"""What all pictures share: axes, colours, and the figure to save."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size."""
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def cycle(count: int) -> list[str]:
    """A colour for each of so many lines."""
    return [COLORS[index % len(COLORS)] for index in range(count)]


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes are in, to save or close."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def formats() -> list[str]:
    """The endings of files that a picture can be saved to."""
    return sorted(FigureCanvasBase.get_supported_filetypes())
