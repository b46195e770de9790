"""The pictures of the site, drawn when it is built: `python docs/pictures.py` draws them alone.

They have no background and grey letters, so that one file reads on a light page and on a dark one.
Those of the galleries are drawn from the expressions that stand beside them on the pages.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes, load_digits

from jax_lrreg import finder, forecast, penalties, plots, schedules, sweeps, text, training

PAGES = Path(__file__).parent
FOLDER = PAGES / "pictures"


def digits(lr):
    """The run of the first page, at a rate of its own."""
    images, y = load_digits(return_X_y=True)
    arrays = {"x": (images[:1400] / 16).astype("float32"), "y": y[:1400]}
    data = training.ArrayData(arrays, batch_size=64, key=jax.random.key(1))
    module, tx = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)]), optax.adam(lr)

    def loss_fn(model, batch):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    reg = penalties.L2(1e-3).on("**/kernel")
    state = training.init(module, tx, key=jax.random.key(0), example=arrays["x"][:1])
    step = training.make_step(module, loss_fn, tx, penalty=reg, learning_rate=lr)
    return module, loss_fn, state, step, data


def ran(lr):
    _, _, state, step, data = digits(lr)
    return training.fit(step, state, data, steps=300, log_every=10)[1]


def histories():
    """At a rate that is too high to end with."""
    cosine = schedules.Cosine(0.02, steps=270).warmup(30)
    plots.history({"constant": ran(schedules.Constant(0.02)), "cosine": ran(cosine)})


def range_test():
    module, loss_fn, state, _, data = digits(1e-3)
    tx, ends = optax.scale_by_adam(), {"low": 1e-6, "high": 3.0}
    plots.range_test(finder.range_test(module, loss_fn, tx, state, data, **ends))


def diabetes():
    """Inputs of unit variance and centred targets of unit variance."""
    x, y = load_diabetes(return_X_y=True)
    return jnp.asarray(x / x.std(0), jnp.float32), jnp.asarray((y - y.mean()) / y.std())


def squares(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2) / 2


def path():
    start, lasso = {"w": jnp.zeros(10)}, penalties.L1(1.0)
    plots.path(sweeps.cross_validate(squares, start, lasso, diabetes(), folds=4, strengths=30))


@cache
def swept():
    """Gradient descent at several rates, strengths and beginnings."""
    x, y = diabetes()

    def run(hp):
        loss = lambda w: squares({"w": w}, (x[:300], y[:300])) + hp["decay"](w)  # noqa: E731
        w = jax.random.normal(hp["key"], (10,)) / 3
        down = lambda w, _: (w - hp["rate"] * jax.grad(loss)(w), None)  # noqa: E731
        w, _ = jax.lax.scan(down, w, length=60)
        return {"held_out_loss": squares({"w": w}, (x[300:], y[300:]))}

    rates, strengths = jnp.logspace(-2.5, -0.5, 6), jnp.logspace(-4, 0, 5)
    keys = jax.random.split(jax.random.key(0), 5)
    return sweeps.run(run, sweeps.grid(rate=rates, decay=penalties.L2(strengths), key=keys))


def law():
    """What a law of round numbers expects, near those of a model of 25M parameters."""
    numbers = [2.65, 0.6, 0.5, 300.0, 1.5, 0.5, 0.6]
    names = list(forecast.MultiPower.__dataclass_fields__)[:7]
    found = forecast.MultiPower(**dict(zip(names, numbers, strict=True)))
    peak = schedules.Constant(1e-3).warmup(100)
    shown = {
        "constant": peak,
        "cosine": schedules.Cosine(1e-3, steps=9900).warmup(100),
        "a cooldown over 2000": peak.cooldown(2000, at=8000, shape="1-sqrt"),
    }
    plots.forecast(found, shown, steps=10_000)


def compared():
    shown = {
        "cosine": schedules.Cosine(1e-3, steps=900).warmup(100),
        "linear": schedules.Linear(1e-3, steps=900).warmup(100),
        "warmup, stable, decay": schedules.Constant(1e-3).warmup(100).cooldown(300, at=700),
        "inverse square root": schedules.InverseSqrt(1e-3, timescale=100).warmup(100),
    }
    plots.schedule(shown, steps=1000)


def phases():
    plots.schedule(0.5 * schedules.Constant(1e-3).warmup(100).cooldown(200, at=800), steps=1000)


def shrunk():
    shown = {"L1": penalties.L1(0.7), "L2": penalties.L2(0.7), "MCP": penalties.MCP(0.7, gamma=3.0)}
    plots.penalty(shown)


def small():
    """Axes of a picture for a cell of a table."""
    with plt.rc_context(plots.STYLE):
        # Not laid out by Matplotlib: for fifty pictures that would take as long as all the others.
        ax = plt.figure(figsize=(2.0, 1.0)).add_axes((0.13, 0.18, 0.8, 0.75))
        ax.tick_params(labelsize=7)
    return ax


def gallery_schedule(expression):
    ax = plots.schedule(text.parse(expression), steps=1000, ax=small())
    for mark in ax.texts:
        mark.remove()
    ax.set_title("", loc="left")
    ax.set(xlabel="", ylabel="", ylim=(0, 0.105), xticks=[0, 1000], yticks=[0, 0.1])


def gallery_penalty(expression):
    """Its value in blue, and in orange where its prox leads from each number."""
    penalty, ax = text.parse(expression), small()
    w = jnp.linspace(-2, 2, 401)
    value = jax.vmap(lambda one: penalty(one[None]))(w)
    prox = jax.vmap(lambda one: penalty.prox(one[None], step_size=jnp.float32(1.0))[0])(w)
    ax.plot(w, w, color=plots.FAINT, linewidth=1)
    ax.plot(w, np.where(jnp.isfinite(value), value, np.nan), color=plots.COLORS[0])
    ax.plot(w, prox, color=plots.COLORS[1])
    ax.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[-2, 0, 2], yticks=[-2, 0, 2])


def gallery(page: str, draw: Callable) -> dict[str, Callable[[], object]]:
    """The pictures of a table whose rows are a picture and the expression that it shows."""
    rows = r"\]\(pictures/(\w+)\.svg\) \| `([^`]+)`"
    found = re.findall(rows, (PAGES / f"{page}.md").read_text())
    return {name: partial(draw, expression) for name, expression in found}


PICTURES: dict[str, Callable[[], object]] = {
    "history": lambda: plots.history(ran(schedules.Cosine(3e-3, steps=270).warmup(30))),
    "histories": histories,
    "range_test": range_test,
    "path": path,
    "heatmap": lambda: plots.heatmap(swept(), "held_out_loss", log=True),
    "sweep": lambda: plots.sweep(swept(), "held_out_loss"),
    "forecast": law,
    "compared": compared,
    "phases": phases,
    "penalty": shrunk,
    **gallery("schedules", gallery_schedule),
    **gallery("penalties", gallery_penalty),
}


def draw() -> None:
    """Draws the pictures that are older than what they are made of into `FOLDER`."""
    mpl.use("Agg")
    FOLDER.mkdir(exist_ok=True)
    sources = [
        Path(__file__),
        *map(PAGES.joinpath, ("schedules.md", "penalties.md")),
        *Path(plots.__file__).parent.glob("*.py"),
    ]
    changed = max(source.stat().st_mtime for source in sources)
    for name, picture in PICTURES.items():
        file = FOLDER / f"{name}.svg"
        if not file.exists() or file.stat().st_mtime < changed:
            picture()
            plt.savefig(file)
            plt.close("all")


if __name__ == "__main__":
    draw()
