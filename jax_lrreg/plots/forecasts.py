"""A picture of what a law expects of several schedules, and which of them to run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jax_lrreg._check import require, require_whole
from jax_lrreg.forecast.best import Plan
from jax_lrreg.forecast.law import MultiPower
from jax_lrreg.plots.curves import columns, plain_steps
from jax_lrreg.plots.frame import GREY, axes_of, cycle, legend, styled
from jax_lrreg.schedules import Schedule

BEGIN = 0.1  # of the run: the losses before are so high that they would flatten all others


@styled
def forecast(
    law: MultiPower,
    schedules: Mapping[str, Schedule | Plan],
    *,
    curves: Mapping[str, Any] | None = None,
    steps: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the loss that a law expects of each schedule; the best is thick, in its interval.

    Args:
        law: from `forecast.fit`. One of numbers from elsewhere has no interval.
        schedules: by name, schedules, or plans of `law.best`.
        curves: by name, losses that were measured, in the forms that `forecast.fit` takes: thin, in
            the colour of the schedule of that name, or grey.
        steps: how far; by default as far as a plan, or as the longest curve of the fit.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. The legend has the expected losses at the end, the best first, and the title which
        schedule that is.
    """
    known = isinstance(law, MultiPower)
    require(known, "plots.forecast", "law", type(law).__name__, "a law of `forecast`", TypeError)
    named = isinstance(schedules, Mapping) and len(schedules) > 0
    require(named, "plots.forecast", "schedules", schedules, "a dict {name: schedule}", TypeError)
    steps = require_whole("plots.forecast", "steps", _until(law, schedules, steps), 2)
    plain = {name: _schedule_of(one) for name, one in schedules.items()}
    losses = {name: np.asarray(law(one, steps=steps)) for name, one in plain.items()}
    order = sorted(losses, key=lambda name: losses[name][-1])
    best, colors = order[0], dict(zip(order, cycle(len(order)), strict=True))
    ax, x, title = axes_of(ax, (7.0, 4.0)), columns(steps - 1), f"lowest: {best}"
    shown = [_measured(ax, name, one, colors) for name, one in (curves or {}).items()]
    for name in order:
        style: dict[str, Any] = {"linewidth": 1.4, "color": colors[name]}
        style |= {"linewidth": 2.8, "zorder": 4} if name == best else {}
        ax.plot(x, losses[name][x], label=f"{losses[name][-1]:.4f}  {name}", **style)
        seen = losses[name][int(BEGIN * steps) :]
        shown.append((float(seen.min()), float(seen[0])))
    if law.evidence is not None:
        low, high = np.asarray(law.interval(plain[best], steps=steps))[:, x]
        # Of the very beginning the law knows nothing, and says so by a wall of the whole height.
        late = x >= BEGIN * steps
        band = {"color": colors[best], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(x[late], low[late], high[late], **band)
        title += f",  {low[-1]:.4f} to {high[-1]:.4f} nine times in ten"
    ax.set_title(title)
    least, most = min(low for low, _ in shown), max(high for _, high in shown)
    room = 0.05 * (most - least)
    ax.set(xlim=(0, steps), ylim=(least - room, most + room), xlabel="step", ylabel="loss")
    plain_steps(ax, steps)
    legend(ax, "expected at the end")
    return ax


def _schedule_of(one: Schedule | Plan) -> Schedule:
    return one.schedule if isinstance(one, Plan) else one


def _until(
    law: MultiPower, schedules: Mapping[str, Schedule | Plan], steps: int | None
) -> int | None:
    """How far to draw."""
    fitted = [] if law.evidence is None else [int(law.evidence.steps)]
    planned = [one.steps for one in schedules.values() if isinstance(one, Plan)]
    return max(planned or fitted, default=None) if steps is None else steps


def _measured(
    ax: Axes, name: str, curve: ArrayLike | tuple[ArrayLike, ArrayLike], colors: Mapping[str, str]
) -> tuple[float, float]:
    """Draws losses that were measured, and returns the least and the first one that is shown."""
    pair: Any = curve
    sparse = isinstance(pair, tuple) and len(pair) == 2
    y = np.asarray(pair[1] if sparse else pair, float)
    x = np.asarray(pair[0]) if sparse else np.arange(len(y))
    require(x.shape == y.shape and y.ndim == 1, "plots.forecast", "curves", name, "losses [steps]")
    # Dots would hide the lines, and what the law missed with them.
    ax.plot(x, y, color=colors.get(name, GREY), linewidth=0.9, alpha=0.6, zorder=1)
    shown = y[x >= BEGIN * x[-1]]
    return float(shown.min()), float(np.median(shown[:5]))
