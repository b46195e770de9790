"""Pictures with Matplotlib: each function takes data and axes, draws, and returns the axes."""

import matplotlib.pyplot as plt  # noqa: F401  to show, save and close the pictures
from matplotlib.axes import Axes as Axes

from jax_lrreg.plots.curves import columns as columns
from jax_lrreg.plots.curves import history as history
from jax_lrreg.plots.curves import penalty as penalty
from jax_lrreg.plots.curves import phases as phases
from jax_lrreg.plots.curves import range_test as range_test
from jax_lrreg.plots.curves import samples_of as samples_of
from jax_lrreg.plots.curves import schedule as schedule
from jax_lrreg.plots.forecasts import forecast as forecast
from jax_lrreg.plots.frame import COLORS as COLORS
from jax_lrreg.plots.frame import FAINT as FAINT
from jax_lrreg.plots.frame import STYLE as STYLE
from jax_lrreg.plots.frame import figure_of as figure_of
from jax_lrreg.plots.frame import formats as formats
from jax_lrreg.plots.sweeps import heatmap as heatmap
from jax_lrreg.plots.sweeps import path as path
from jax_lrreg.plots.sweeps import sweep as sweep
