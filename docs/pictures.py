"""The pictures of the site, drawn when it is built: `python docs/pictures.py` draws them alone.

They have no background and grey letters, so that one file reads on a light page and on a dark one.
"""

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

from jax_lrreg import penalties, plots, schedules, training

FOLDER = Path(__file__).parent / "pictures"


def history() -> None:
    """The run of the first page."""
    images, y = load_digits(return_X_y=True)
    arrays = {"x": (images[:1400] / 16).astype("float32"), "y": y[:1400]}
    data = training.ArrayData(arrays, batch_size=64, key=jax.random.key(1))
    lr, reg = schedules.Cosine(3e-3, steps=270).warmup(30), penalties.L2(1e-3).on("**/kernel")
    module, tx = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)]), optax.adam(lr)

    def loss_fn(model, batch):
        logits = model(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    state = training.init(module, tx, key=jax.random.key(0), example=arrays["x"][:1])
    step = training.make_step(module, loss_fn, tx, penalty=reg, learning_rate=lr)
    plots.history(training.fit(step, state, data, steps=300, log_every=10)[1])


PICTURES: dict[str, Callable[[], object]] = {"history": history}


def draw() -> None:
    """Draws all pictures into `FOLDER`."""
    mpl.use("Agg")
    FOLDER.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        picture()
        plt.savefig(FOLDER / f"{name}.svg", transparent=True)
        plt.close("all")


if __name__ == "__main__":
    draw()
