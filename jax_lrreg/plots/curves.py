"""Pictures of schedules, histories, penalties and range tests."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike

from jax_lrreg._arrays import LAST_STEP
from jax_lrreg._check import require, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.plots.frame import (
    COLORS,
    FAINT,
    GREY,
    axes_of,
    cycle,
    legend,
    plain_logarithm,
    shortened,
    styled,
)
from jax_lrreg.schedules import Function, Schedule
from jax_lrreg.training.history import best_of, evaluated

if TYPE_CHECKING:
    from jax_lrreg.finder import Found

History = Mapping[str, np.ndarray]  # as `training.fit` returns it
COLUMNS = 2000  # more than a picture is wide in pixels
SAMPLES = 64  # steps looked at in each column of more than that


@styled
def schedule(
    schedule: Callable | Mapping[str, Callable],
    *,
    steps: int,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws one schedule, or several by name, over `steps` steps.

    Args:
        schedule: a schedule, or a dict of them; any function `step -> value` will do. On an axis of
            more than 2000 steps the line is the mean over what lies side by side, in a band from
            the least to the largest value.
        steps: how far to draw.
        log: whether the values are on a logarithmic axis; values of 0 are left out of it.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. Dotted lines mark where one phase of a single schedule ends and the next begins.
    """
    steps = require_whole("plots.schedule", "steps", steps)
    named = schedule if isinstance(schedule, Mapping) else {"": schedule}
    require(len(named) > 0, "plots.schedule", "schedule", schedule, "at least one schedule")
    for one in named.values():
        drawable = callable(one) and not isinstance(one, type | Penalty)
        allowed = "a schedule, a function of the step, or a dict of them"
        require(drawable, "plots.schedule", "schedule", one, allowed, error=TypeError)
    ax = axes_of(ax, (7.0, 3.2))
    texts, rows = [], 0
    for (name, one), color in zip(named.items(), cycle(len(named)), strict=True):
        marks = {mark: label for mark, label in phases(one) if 0 < mark < steps}
        ends = _draw(ax, one, columns(steps, list(map(int, marks))), log, color, name)
        texts.append(_ends_text(name, *ends, steps))
        if named is not schedule:  # the marks of several would not say whose they are
            rows = _mark(ax, marks, steps)
    ax.set_title(shortened(texts), pad=6 + 10 * rows)
    ax.set(xlim=(0, steps), xlabel="step", ylabel="learning rate")
    ax.set(yscale="log") if log else ax.set_ylim(bottom=0)
    plain_steps(ax, steps)
    legend(ax)
    return ax


def _ends_text(name: str, step: int, peak: float, last: float, steps: int) -> str:
    """What to see in a line: where it is highest, and what is left at the end."""
    if name:
        return f"{name} ends at {last:.3g}"
    if peak == last and step == 0:
        return f"{last:.4g} at every step"
    return f"highest at step {step:,}: {peak:.4g};  at step {steps:,}: {last:.4g}"


def phases(schedule: Schedule | Callable) -> list[tuple[float, str]]:
    """Where the phases of a schedule begin, in steps, and what they are called."""
    return schedule.phases if isinstance(schedule, Schedule) else [(0.0, "")]


def _draw(
    ax: Axes, schedule: Callable, x: np.ndarray, log: bool, color: str, name: str
) -> tuple[int, float, float]:
    """One line, the mean over each column of the picture, in a band from least to largest.

    Returns:
        The step of the highest value, that value, and the last one.
    """
    samples = samples_of(x)
    # float64 as Matplotlib has it: the mean of 64 bfloat16 numbers is cut to three digits.
    y = np.asarray(_values(schedule, samples.ravel()), float).reshape(samples.shape)
    y = np.ma.masked_where((y <= 0) & log, y)
    ax.plot(x, y.mean(axis=1).filled(np.nan), color=color, label=name or None, linewidth=1.8)
    if samples.shape[1] > 1:
        ax.fill_between(x, y.min(axis=1), y.max(axis=1), color=color, alpha=0.35, linewidth=0)
    tops = y.max(axis=1).filled(0)
    return int(x[tops.argmax()]), float(tops.max()), float(y.filled(0)[-1, 0])


def _mark(ax: Axes, marks: Mapping[float, str], steps: int) -> int:
    """A dotted line where each phase begins, its name above the axes; the rows that these take."""
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ends: list[float] = []  # where the last name of each row ends
    for mark, label in marks.items():
        # A name that would be printed over its neighbour goes a row up. A letter is about a 90th
        # of the width.
        row = next((row for row, end in enumerate(ends) if end < mark), len(ends))
        ends[row : row + 1] = [mark + (len(label) + 1) / 90 * steps]
        ax.axvline(mark, color=GREY, linewidth=0.8, linestyle=":")
        ax.annotate(label, (mark, 1), xytext=(2, 2 + 10 * row), va="bottom", fontsize=8, **place)
    return len(ends)


def columns(steps: int, marks: Sequence[int] = ()) -> np.ndarray:
    """Where the columns of a picture begin: whole steps from 0 to `steps`.

    Both sides of each mark are among them: a jump is drawn upright, not as a slope between two
    columns.
    """
    even = np.linspace(0, steps, min(steps + 1, COLUMNS)).round().astype(np.int64)
    sides = [mark + side for mark in marks for side in (-1, 0)]
    every = np.unique(np.concatenate([even, np.asarray(sides, np.int64)]))
    return every[(every >= 0) & (every <= steps)]


def samples_of(columns: np.ndarray) -> np.ndarray:
    """Steps of each column, [columns, samples]: every one, or some at irregular distances.

    At regular ones a schedule whose period divides the distance, as of restarts, would be drawn as
    a constant.
    """
    width = np.diff(columns, append=columns[-1] + 1)[:, None]
    count = np.arange(min(width.max(), SAMPLES))
    # A fixed seed: the same schedule makes the same picture.
    jitter = np.random.default_rng(0).random((len(width), len(count)))
    irregular = ((count + jitter) * (width / len(count))).astype(np.int64)
    samples = columns[:, None] + np.where(width <= len(count), count % width, irregular)
    samples[-1, 1:] = samples[-2, 1:]  # the last column is one step, its neighbours are more
    return samples


@styled
def history(
    history: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]],
    *,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draws what `training.fit` recorded: of one run, or of several by name, one colour each.

    Args:
        history: as returned by `fit`, or a dict of such. Of one run, losses share a panel, and so
            do accuracies; of several, each metric has its own. Evaluations are dashed.
        axes: as many axes as there are panels; a new figure by default.

    Returns:
        The axes, from top to bottom. Each title says what the last value is, and of an evaluation
        the best one where that is another.
    """
    runs = _runs_of(history)
    several = "" not in runs
    panels = _panels_of_several(runs) if several else _panels(runs[""])
    axes = _panel_axes(len(panels)) if axes is None else axes
    require(len(axes) == len(panels), "plots.history", "axes", len(axes), f"{len(panels)} axes")
    for ax, (label, names) in zip(axes, panels.items(), strict=True):
        if several:
            text = _draw_runs(ax, label, runs)
        else:
            _draw_panel(ax, label, [(runs[""], name, name.replace("_", " ")) for name in names])
            text = _summary(runs[""], names)
            if len(names) > 1:
                legend(ax)
        ax.set_title(f"at the end: {text}")
    if several:
        legend(axes[0])  # one is enough: a run has the same colour in each panel
    last = max(int(np.max(one["step"], initial=1)) for one in runs.values())
    axes[-1].set(xlabel="step", xlim=(0, last))
    plain_steps(axes[-1], last)
    return axes


def _runs_of(history: Mapping[str, Any]) -> dict[str, History]:
    """Runs by their names; a single one has none."""
    given, allowed = isinstance(history, Mapping), "what training.fit returns, or {name: history}"
    require(given, "plots.history", "history", history, allowed, TypeError)
    several = bool(history) and all(isinstance(one, Mapping) for one in history.values())
    runs = dict(history) if several else {"": history}
    for name, one in runs.items():
        what = f"what training.fit returns{f' at {name!r}' if name else ''}"
        require("step" in one, "plots.history", "history", sorted(one), what)
    entries = sum(np.size(one["step"]) + np.size(one.get("eval_step", ())) for one in runs.values())
    allowed = "one with an entry: a run that had nothing left to do has none"
    require(entries > 0, "plots.history", "history", f"{entries} entries", allowed)
    return runs


def _panel_axes(count: int) -> list[Axes]:
    options = {"sharex": True, "layout": "constrained", "squeeze": False}
    size = (7.0, 1.2 + 1.7 * count)
    return list(plt.subplots(count, 1, figsize=size, **options)[1][:, 0])


def _draw_runs(ax: Axes, name: str, runs: Mapping[str, History]) -> str:
    """A metric of several runs, and what it was at the end of each."""
    having = {label: run for label, run in runs.items() if name in run}
    _draw_panel(ax, name, [(run, name, label) for label, run in having.items()])
    ends = ((label, np.asarray(run[name])) for label, run in having.items())
    return shortened([f"{label} {values[-1]:.4g}" for label, values in ends if values.size])


def _draw_panel(ax: Axes, label: str, lines: Sequence[tuple[History, str, str]]) -> None:
    """Lines of one panel: a run, the metric of it, and what to call the line."""
    for (run, name, title), color in zip(lines, cycle(len(lines)), strict=True):
        late = name in evaluated(run)
        style = {"linestyle": "--", "marker": ".", "markersize": 4} if late else {}
        style |= {"color": color, "label": title, "linewidth": 1.6}
        ax.plot(run["eval_step" if late else "step"], run[name], **style)
    _dress(ax, label, [np.asarray(run[name], float) for run, name, _ in lines])


def _dress(ax: Axes, label: str, drawn: Sequence[np.ndarray]) -> None:
    ax.set_ylabel(label.replace("_", " "))
    ax.spines[["top", "right"]].set_visible(False)
    high = max(map(_highest, drawn), default=0.0)
    if label in ("learning_rate", "penalty") and high > 0:
        # From 0 on: what is constant looks like it, not like its last digits.
        ax.set_ylim(0, 1.1 * high)
    # A loss falls by factors; one with a penalty or a likelihood in it may be below 0.
    elif "loss" in label and all(map(_positive, drawn)):
        ax.set_yscale("log")
        plain_logarithm(ax.yaxis, *ax.get_ylim())


def _highest(values: np.ndarray) -> float:
    return float(np.max(values[np.isfinite(values)], initial=0.0))


def _positive(values: np.ndarray) -> bool:
    """Whether there are numbers, all above 0; a run that was skipped whole has none."""
    numbers = values[np.isfinite(values)]
    return len(numbers) > 0 and bool(np.all(numbers > 0))


def _summary(run: History, names: Sequence[str]) -> str:
    """The last value of each metric, and of an evaluation the best one where that is another."""
    texts = []
    # The loss of the data last: beside the whole loss it is what a title can do without.
    for name in sorted(names, key=lambda name: name == "data_loss"):
        values, best, step = best_of(run, name)
        if best is None:
            continue
        text = f"{name.replace('_', ' ')} {values[-1]:.4g}"
        # Of batches the best value is a lucky one, and would take the room of an evaluation.
        judged = name in evaluated(run) and ("loss" in name or "accuracy" in name)
        if judged and f"{best:.4g}" != f"{values[-1]:.4g}":
            text += f" (best {best:.4g} at step {step:,})"
        texts.append(text)
    return shortened(texts)


def _panels_of_several(runs: Mapping[str, History]) -> dict[str, list[str]]:
    """One panel for each metric that any of the runs has."""
    grouped = [names for run in runs.values() for names in _panels(run).values()]
    order = ["loss", *itertools.chain.from_iterable(grouped)]
    order.sort(key=lambda name: name == "learning_rate")  # at the bottom, as of a single run
    return {name: [name] for name in dict.fromkeys(order)}


def _panels(history: History) -> dict[str, list[str]]:
    """The names that are drawn together, by the label of their panel."""
    # A penalty that is 0 throughout is none, and the loss is the data's: two lines in one.
    free = not np.any(history.get("penalty", True))
    shown = set(history) - ({"data_loss", "penalty"} if free else set())
    panels = {
        "loss": ["loss", "data_loss", *_having("loss", evaluated(history))],
        "accuracy": _having("accuracy", history),
        "penalty": ["penalty"],
        "learning_rate": ["learning_rate"],
    }
    there = {label: [n for n in names if n in shown] for label, names in panels.items()}
    return {label: names for label, names in there.items() if names}


def _having(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if word in name]


@styled
def penalty(
    penalty: Penalty | Mapping[str, Penalty],
    *,
    low: float = -3.0,
    high: float = 3.0,
    step_size: float = 1.0,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Draws one or several penalties of a single number: value, gradient and prox.

    Args:
        penalty: a penalty, or a dict of them. One without a prox is left out of the third panel.
        low: the least number drawn.
        high: the largest.
        step_size: of the prox.
        axes: three axes; a new figure by default.

    Returns:
        The axes of value, gradient and prox.
    """
    named = penalty if isinstance(penalty, Mapping) else {"": penalty}
    require(len(named) > 0, "plots.penalty", "penalty", penalty, "at least one penalty")
    for one in named.values():
        known, allowed = isinstance(one, Penalty), "a penalty, or a dict of them"
        require(known, "plots.penalty", "penalty", one, allowed, error=TypeError)
    require(low < high, "plots.penalty", "low", low, f"less than high={high}")
    if axes is None:
        axes = list(plt.subplots(1, 3, figsize=(9.0, 2.6), layout="constrained")[1])
    require(len(axes) == 3, "plots.penalty", "axes", len(axes), "three axes")
    w = jnp.linspace(low, high, 1001)
    axes[2].plot(w, w, color=FAINT, linewidth=1.0)  # no penalty
    for (name, one), color in zip(named.items(), cycle(len(named)), strict=True):
        style = {"color": color, "label": name or None, "linewidth": 1.8}
        axes[0].plot(w, _each(one, w), **style)
        axes[1].plot(w, _each(one.gradient, w)[:, 0], **style)
        with contextlib.suppress(NotImplementedError, ValueError):  # a sum has none
            prox = partial(one.prox, step_size=jnp.float32(step_size))
            axes[2].plot(w, _each(prox, w)[:, 0], **style)
    titles = ("value of a number w", "its gradient", f"its prox, step size {step_size:g}")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="w", xlim=(low, high))
        ax.axhline(0, color=FAINT, linewidth=1.0, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.dataLim.height < 1e-9:  # of a constraint, which is 0 wherever it is finite
            ax.set_ylim(-1, 1)
    legend(axes[2])
    return axes


def _each(function: Callable, w: jax.Array) -> jax.Array:
    """What a function of a tree makes of each number, as an array of one entry."""
    return jax.vmap(lambda x: function(x[None]))(w)


@styled
def range_test(found: "Found", ax: Axes | None = None) -> Axes:
    """Draws what a test of `finder` found: loss over learning rate, and the suggestions.

    Args:
        found: as `finder.range_test` or `finder.parallel_test` returns it.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. The default suggestion is the solid line.
    """
    known, kind = hasattr(found, "suggestions"), type(found).__name__
    require(known, "plots.range_test", "found", kind, "what the finder returns")
    ax = axes_of(ax, (7.0, 3.6))
    rates, marker = found.learning_rates, "." if found.losses.ndim > 1 else None
    losses = np.where(np.isfinite(found.losses), found.losses, np.nan)
    for one in np.atleast_2d(losses):
        ax.plot(rates, one, color=FAINT, linewidth=1.0, marker=marker)
    smoothed = np.where(np.isfinite(found.smoothed), found.smoothed, np.nan)
    ax.plot(rates, smoothed, color=COLORS[0], linewidth=1.8)
    labels = [f"{name} {rate:.2g}" for name, rate in found.suggestions.items()]
    for index, (rate, label) in enumerate(zip(found.suggestions.values(), labels, strict=True)):
        color, dashes = COLORS[1 + index % (len(COLORS) - 1)], "--" if index else "-"
        ax.axvline(rate, color=color, linewidth=1.4, linestyle=dashes, label=label)
    good = smoothed[np.isfinite(smoothed)]
    if len(good) and np.ptp(good) > 0:
        # The last losses of a run that diverged, four times the best and more, would flatten all
        # others.
        start, least = float(np.median(good[:5])), float(np.nanmin(losses))
        ax.set_ylim(least - 0.1 * abs(start - least), max(start, least) + 0.5 * abs(start - least))
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss", xlim=(rates[0], rates[-1]))
    ax.set_title(f"suggested: {labels[0]}" if labels else "no suggestion")
    legend(ax)
    return ax


def _values(schedule: Callable, steps: np.ndarray) -> ArrayLike:
    if isinstance(schedule, Schedule):
        # Steps are int32 on the device: 2^31 would wrap round to a step below 0.
        return schedule(np.minimum(steps, LAST_STEP))
    # One call for all steps: one for each would be up to 128,000 of them.
    with contextlib.suppress(Exception):
        return _values(Function(schedule), steps)
    return [float(schedule(int(step))) for step in steps]  # it may take one plain number only


def plain_steps(ax: Axes, steps: int) -> None:
    """Ticks at round steps, and at the last one in place of a round one close to it."""
    # The last step is what one looks for; a round one next to it would be printed over it.
    round_ones = MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]).tick_values(0, steps)
    ax.set_xticks([*(t for t in round_ones if 0 <= t <= 0.94 * steps), steps])
    if steps >= 10_000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
