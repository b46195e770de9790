"""What checkpoints cost: a network on digits, one save in 100 calls of the device, and none."""

import argparse
import statistics
import tempfile
import time

import flax.linen as nn
import jax
import optax
from sklearn.datasets import load_digits

from jax_lrreg import checkpoints, training


class Net(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x):
        for width in (128, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunk", type=int, default=100, help="steps in a call (default: 100)")
    parser.add_argument("--calls", type=int, default=600, help="calls in a run (default: 600)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="for a test of this script")
    options = parser.parse_args()
    if options.tiny:
        options.chunk, options.calls, options.repeats = 2, 100, 1
    digits, tx = load_digits(), optax.adam(1e-3)
    arrays = {"x": digits.data.astype("float32") / 16, "y": digits.target.astype("int32")}
    data, module = training.ArrayData(arrays, 64, jax.random.key(0)), Net()
    step = training.make_step(module, loss_fn, tx)
    steps = options.chunk * options.calls

    def seconds(every=None):
        state = training.init(module, tx, key=jax.random.key(1), example=arrays["x"][:1])
        with tempfile.TemporaryDirectory() as place:
            kept = {} if every is None else {"checkpoint": checkpoints.Folder(place, every=every)}
            began = time.perf_counter()
            training.fit(step, state, data, steps=steps, log_every=options.chunk, **kept)
            return time.perf_counter() - began

    saves, rest = 100 * options.chunk, 10**9
    seconds(), seconds(saves)
    pairs = [(seconds(), seconds(saves), seconds(rest)) for _ in range(options.repeats)]
    bare, kept, once = (statistics.median(column) for column in zip(*pairs, strict=True))
    count, fixed = options.calls // 100, once - bare
    per_save = (kept - once) / max(count - 1, 1)
    hundred = 100 * bare / options.calls
    print("| | |\n|---|---|")
    print(f"| a step without checkpoints | {1e6 * bare / steps:.1f} us |")
    share = f"{1e3 * per_save:.1f} ms, {per_save / hundred:.1%}"
    print(f"| a save, and the share of 100 calls | {share} |")
    print(f"| once a run: opening the folder, one save | {1e3 * fixed:.0f} ms |")


if __name__ == "__main__":
    main()
