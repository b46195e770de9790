"""Pictures of many runs: regularization paths, heat maps, and a metric along one axis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jax_lrreg._arrays import is_key, leaves
from jax_lrreg._check import require, require_choice
from jax_lrreg.plots.frame import (
    COLORS,
    FAINT,
    GREY,
    axes_of,
    cycle,
    figure_of,
    legend,
    plain_logarithm,
    styled,
)

if TYPE_CHECKING:
    from jax_lrreg.sweeps import CrossValidation, Path, Result


@styled
def path(
    strengths: "ArrayLike | Path | CrossValidation",
    coefficients: ArrayLike | None = None,
    *,
    names: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draws a regularization path: each coefficient against the strength.

    The axis above counts the coefficients that are not zero.

    Args:
        strengths: [points], positive; or what `sweeps.path` or `sweeps.cross_validate` returns, of
            which what is penalised is drawn, and the strengths that were chosen are marked.
        coefficients: [points, coefficients], with strengths that are an array.
        names: of the coefficients, for a legend; none by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.
    """
    found: Any = strengths
    whole = getattr(found, "path", found)  # of a cross-validation, the solutions on all data
    if coefficients is None:
        strengths, coefficients = _solutions(whole, type(found).__name__)
    # In float64, as Matplotlib has them: a tick at the end would be rounded out of the picture.
    strengths, coefficients = np.asarray(strengths, float), np.asarray(coefficients)
    shape, allowed = coefficients.shape, f"of shape [{strengths.size}, coefficients]"
    fits = strengths.ndim == 1 and len(shape) == 2 and shape[0] == len(strengths)
    require(fits, "plots.path", "coefficients", shape, allowed)
    require(np.all(strengths > 0), "plots.path", "strengths", strengths, "numbers > 0")
    count = shape[1]
    require(len(names) in (0, count), "plots.path", "names", len(names), f"{count} names or none")
    ax = axes_of(ax, (7.0, 3.6))
    for index, color in enumerate(cycle(count)):
        dashes = ("-", "--", ":", "-.")[index // len(COLORS) % 4]
        label = names[index] if names else None
        ax.plot(strengths, coefficients[:, index], dashes, color=color, linewidth=1.5, label=label)
    ax.axhline(0, color=FAINT, linewidth=1.0, zorder=0)
    ax.set(xscale="log", xlabel="strength", ylabel="coefficient")
    ax.set_xlim(strengths.min(), strengths.max())
    left = np.count_nonzero(coefficients, axis=1)
    top = ax.secondary_xaxis("top")
    chosen = np.unique(np.linspace(0, len(strengths) - 1, 7).round().astype(int))
    top.set_xticks(strengths[chosen], [str(left[index]) for index in chosen])
    top.minorticks_off()
    top.set_xlabel("coefficients that are not zero")
    ax.set_title(f"{left[strengths.argmin()]} of {count} are left at the least strength")
    if whole is not found:
        _mark_choices(ax, {"best": found.best, "one standard error": found.one_standard_error})
    legend(ax)
    return ax


def _solutions(path: "Path", kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The strengths of a path, and what is penalised of its solutions, [points, coefficients]."""
    known = hasattr(path, "penalised")
    allowed = "what sweeps.path returns, or an array with `coefficients`"
    require(known, "plots.path", "strengths", kind, allowed, error=TypeError)
    columns = [x.value for x in leaves(path.params) if x.path in path.penalised]
    rows = [np.reshape(x, (len(path.strengths), -1)) for x in columns]
    return path.strengths, np.concatenate(rows, 1)


def _mark_choices(ax: Axes, choices: Mapping[str, float]) -> None:
    """The strengths that a cross-validation chooses."""
    for (label, mark), dashes in zip(choices.items(), ("-", "--"), strict=True):
        name = f"{label} {mark:.3g}"
        ax.axvline(mark, color=GREY, linewidth=1.0, linestyle=dashes, label=name)


@styled
def heatmap(
    result: "Result", name: str, *, mode: str = "min", log: bool = False, ax: Axes | None = None
) -> Axes:
    """Draws a metric of a sweep over its two axes; a star marks the best point.

    Args:
        result: of `sweeps.run`, with two axes beside those of seeds, over which the mean is drawn.
        name: of the metric.
        mode: whether "min" or "max" of it is best.
        log: whether the colours go by the logarithm.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. Members that diverged are grey.
    """
    names = _shown("plots.heatmap", result)
    require(len(names) == 2, "plots.heatmap", "result", names, "of two axes beside those of seeds")
    seeds = [axis for axis in result.axes if axis not in names]
    values = result.mean(name, seeds, "plots.heatmap")[0].reshape([*_lengths(result, names)])
    best = result.best(name, mode, over=seeds).index
    at = [where for where in best if not isinstance(where, slice)]
    ax = axes_of(ax, (1.5 + 0.7 * values.shape[1], 1.5 + 0.5 * values.shape[0]))
    # What diverged is grey, not the background: on a dark page blank would be the lowest colour.
    map_ = colormaps["viridis"].with_extremes(bad=FAINT)
    image = ax.imshow(values, map_, aspect="auto", norm="log" if log else "linear")
    ax.plot(at[1], at[0], "*", color="white", markeredgecolor="black", markersize=14)
    for axis, of in zip((ax.yaxis, ax.xaxis), names, strict=True):
        texts = _texts(result, of)
        axis.set_ticks(range(len(texts)), texts)
        axis.set_label_text(_label(result, of))
    ax.tick_params("x", rotation=45 if values.shape[1] > 6 else 0)
    metric = name.replace("_", " ")
    bar = figure_of(ax).colorbar(image, ax=ax, label=metric)
    bar.outline.set_visible(False)
    if log:
        plain_logarithm(bar.ax.yaxis, *image.get_clim())
    ax.spines[:].set_visible(False)
    ax.set_title(f"{'lowest' if mode == 'min' else 'highest'} {metric}: {values[*at]:.4g} (star)")
    return ax


@styled
def sweep(result: "Result", name: str, *, over: str | None = None, ax: Axes | None = None) -> Axes:
    """Draws a metric of a sweep along one axis, with an interval of two standard errors over seeds.

    Args:
        result: of `sweeps.run`, with one or two axes beside those of seeds; of two, each point of
            the other makes a line.
        name: of the metric.
        over: the axis to draw along; the first one by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.
    """
    names = _shown("plots.sweep", result)
    few = len(names) in (1, 2)
    require(few, "plots.sweep", "result", names, "of one or two axes beside those of seeds")
    along = names[0] if over is None else over
    require_choice("plots.sweep", "over", along, names)
    others = [axis for axis in names if axis != along]
    seeds = [axis for axis in result.axes if axis not in names]
    mean, error = result.mean(name, seeds, "plots.sweep")
    order = [result.axes.index(axis) for axis in (*others, along, *seeds)]
    shape = (-1, _lengths(result, [along])[0])
    lines = np.transpose(mean, order).reshape(shape)
    halves = None if error is None else 2 * np.transpose(error, order).reshape(shape)
    x, ax = _numbers(result, along), axes_of(ax, (7.0, 3.6))
    titles = [text for other in others for text in _texts(result, other)]
    _draw_lines(ax, x, lines, halves, titles)
    _place_ticks(ax, x, _texts(result, along))
    metric, count = name.replace("_", " "), int(np.prod(_lengths(result, seeds)))
    ax.set(xlabel=_label(result, along), ylabel=metric)
    over_seeds = f",  mean and two standard errors over {count} seeds" if count > 1 else ""
    ax.set_title(f"{metric} along {along}{over_seeds}")
    legend(ax, " ".join(_label(result, other) for other in others))
    return ax


def _place_ticks(ax: Axes, x: np.ndarray | None, texts: Sequence[str]) -> None:
    if x is None:
        ax.set_xticks(range(len(texts)), texts)
    # Rates and strengths are tried by factors: over less than e^2, a plain axis is read as well.
    elif np.all(x > 0) and np.ptp(np.log(x)) > 2:
        ax.set_xscale("log")


def _draw_lines(
    ax: Axes,
    x: np.ndarray | None,
    lines: np.ndarray,
    halves: np.ndarray | None,
    texts: Sequence[str],
) -> None:
    """Lines, each in a band of so much on both sides, if any."""
    for number, (line, color) in enumerate(zip(lines, cycle(len(lines)), strict=True)):
        places, label = np.arange(len(line)) if x is None else x, texts[number] if texts else None
        ax.plot(places, line, color=color, marker="o", markersize=3, linewidth=1.5, label=label)
        if halves is not None:
            low, high = line - halves[number], line + halves[number]
            ax.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _shown(owner: str, result: "Result") -> list[str]:
    """The names of the axes that are no seeds."""
    known = hasattr(result, "grid") and hasattr(result, "axes")
    require(known, owner, "result", type(result).__name__, "what sweeps.run returns")
    parts = zip(result.axes, result.grid.parts, strict=True)
    return [name for name, part in parts if not all(map(is_key, jax.tree.leaves(part.points)))]


def _lengths(result: "Result", names: Sequence[str]) -> list[int]:
    return [result.shape[result.axes.index(name)] for name in names]


def _moving(result: "Result", name: str) -> list[tuple[str, Any]]:
    """The numbers that change along an axis, by their paths."""
    points = result.grid.parts[result.axes.index(name)].points
    pairs, _ = jax.tree_util.tree_flatten_with_path(points)
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator=".")  # noqa: E731
    return [(path(keys), leaf) for keys, leaf in pairs if jnp.ndim(leaf)]


def _numbers(result: "Result", name: str) -> np.ndarray | None:
    """The places along an axis where one number changes; None where it is several."""
    moving = _moving(result, name)
    alone = len(moving) == 1 and np.ndim(moving[0][1]) == 1
    return np.asarray(moving[0][1], float) if alone else None


def _label(result: "Result", name: str) -> str:
    """An axis by its name, and the field of its object that changes."""
    moving = _moving(result, name)
    if len(moving) > 1:
        return name
    ends = moving[0][0].split(".")  # the name and the field, without what wraps it, as `on` does
    return " ".join(dict.fromkeys([ends[0], ends[-1]])).replace("_", " ")


def _texts(result: "Result", name: str) -> list[str]:
    numbers = _numbers(result, name)
    if numbers is not None:
        return [f"{number:.3g}" for number in numbers]
    labels = result.grid.labels(result.axes.index(name))
    return [", ".join(f"{value}" for value in row.values()) for row in labels]
