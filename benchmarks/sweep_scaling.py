"""Many runs as one program: what does a member cost, by how many there are and how wide they are?

    python benchmarks/sweep_scaling.py [--tiny] [--rounds 3] [--widths 8,128] [--members 1,32,1024]
                                       [--peers]

A network with two hidden layers of one width learns the digits by Adam, at every point of a grid of
rates and of strengths of L2, from the same parameters over the same batches. `sweeps.run` chooses
how many members go side by side. It is held against the same function compiled once and called for
one member after the other, against all members as one program, and with `--peers` against
hyperoptax, PyTorch in a study of Optuna and `fit` of Keras (on JAX) in a loop, each where it is
installed, of the same trials.
Compiling is told apart. "Of processor" is the ratio of the seconds of the processor, which other
work on the machine changes little; by the clock two cores may halve it.
"""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from _timing import machine
from _workloads import Mlp, cross_entropy, workloads

from jax_lrreg import penalties, sweeps, training

Call = Callable[[], np.ndarray]


class Task:
    """What each contender does: `steps` of Adam on the digits at each point of a grid."""

    def __init__(self, width: int, members: int, steps: int):
        work = workloads(tiny=False)["digits"]
        self.steps, self.module = steps, Mlp((width, width, 10))
        self.data = training.ArrayData(work.arrays, 64, jax.random.key(1))
        self.order = np.stack([self.data.indices(step) for step in range(steps)])
        rates = max(1, 2 ** (int(np.log2(members)) + 1 >> 1))
        self.rates = np.geomspace(1e-4, 1e-2, rates).astype(np.float32)
        self.strengths = np.geomspace(1e-6, 1e-2, members // rates).astype(np.float32)
        tx, example = optax.adam(1e-3), work.arrays["x"][:1]
        self.start = training.init(self.module, tx, key=jax.random.key(0), example=example).params

    def points(self) -> list[tuple[float, float]]:
        return [(float(lr), float(reg)) for lr in self.rates for reg in self.strengths]

    def run(self, hp: Any) -> dict[str, jax.Array]:
        """The loss of the last batch, penalty left out."""
        tx = optax.adam(hp["lr"])
        state = training.init(self.module, tx, key=jax.random.key(0), example=self.data(0)["x"][:1])
        penalty = penalties.L2(hp["strength"]).on("**/kernel")
        step = training.make_step(self.module, cross_entropy, tx, penalty=penalty)
        _, metrics = training.scan(step, state, self.data, steps=self.steps)
        return {"loss": metrics["data_loss"][-1]}


def one_by_one(task: Task) -> Call:
    single = jax.jit(task.run)
    hyper = [{"lr": np.float32(lr), "strength": np.float32(reg)} for lr, reg in task.points()]
    return lambda: np.array([float(single(hp)["loss"]) for hp in hyper])


def swept(task: Task) -> Call:
    grid, function = sweeps.grid(lr=task.rates, strength=task.strengths), task.run
    return lambda: sweeps.run(function, grid)["loss"].ravel()


def as_one_program(task: Task) -> Call:
    """`jax.vmap` over all members at once, by hand."""
    many = jax.jit(jax.vmap(task.run))
    lr, strength = map(np.float32, zip(*task.points(), strict=True))
    return lambda: np.asarray(many({"lr": lr, "strength": strength})["loss"])


def with_hyperoptax(task: Task) -> Call:
    from hyperoptax.grid import GridSearch
    from hyperoptax.spaces import DiscreteSpace

    space = {"lr": DiscreteSpace(task.rates), "strength": DiscreteSpace(task.strengths)}
    state, search = GridSearch.init(space, n_parallel=len(task.points()))

    def function(_: jax.Array, hp: Any) -> jax.Array:
        return task.run(hp)["loss"]

    @jax.jit
    def search_all() -> jax.Array:
        return search.optimize_scan(state, jax.random.key(0), function, 1)[1][1]

    return lambda: np.asarray(search_all()).ravel()


def with_optuna(task: Task) -> Call:
    """A trial is a loop of PyTorch, eager, over batches that lie in memory."""
    import optuna
    import torch
    from torch import nn

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)  # products this small are slower on two
    x, y = (torch.tensor(task.data.arrays[name]) for name in "xy")
    order = torch.tensor(task.order)
    layers = [task.start[f"Dense_{number}"] for number in range(3)]

    def train(lr: float, strength: float) -> float:
        dense = []
        for layer in layers:
            dense.append(nn.Linear(*np.shape(layer["kernel"])))
            dense[-1].weight.data = torch.tensor(np.asarray(layer["kernel"]).T.copy())
            dense[-1].bias.data = torch.tensor(np.asarray(layer["bias"]))
        net = nn.Sequential(dense[0], nn.ReLU(), dense[1], nn.ReLU(), dense[2])
        decayed = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": strength}, {"params": others}]
        adam, loss = torch.optim.Adam(groups, lr=lr), torch.zeros(())
        for rows in order:
            adam.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows].long())
            loss.backward()
            adam.step()
        return float(loss.detach())

    def study() -> np.ndarray:
        space = {"lr": task.rates.tolist(), "strength": task.strengths.tolist()}
        made = optuna.create_study(sampler=optuna.samplers.GridSampler(space, seed=0))
        found: dict[tuple[float, float], float] = {}

        def objective(trial: Any) -> float:
            point = tuple(trial.suggest_categorical(name, values) for name, values in space.items())
            found[point] = train(*point)
            return found[point]

        made.optimize(objective, n_trials=len(task.points()))
        return np.array([found[point] for point in task.points()])

    return study


def with_keras(task: Task) -> Call:
    """A trial is a model of Keras, built, compiled and fitted as its guides show."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    x, y = (task.data.arrays[name] for name in "xy")
    *rows, last = task.order
    x_train, y_train = x[np.concatenate(rows)], y[np.concatenate(rows)]
    width = np.shape(task.start["Dense_0"]["bias"])[0]
    start = [np.asarray(task.start[f"Dense_{n}"][k]) for n in range(3) for k in ("kernel", "bias")]

    def train(lr: float, strength: float) -> float:
        sizes, activations = (width, width, 10), ("relu", "relu", None)
        decay = keras.regularizers.L2(strength / 2)  # Keras leaves out the half
        layers = [
            keras.layers.Dense(size, activation=activation, kernel_regularizer=decay)
            for size, activation in zip(sizes, activations, strict=True)
        ]
        net = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        net.set_weights(start)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        plain = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="plain")
        net.compile(keras.optimizers.Adam(lr), loss, metrics=[plain])
        net.fit(x_train, y_train, batch_size=len(last), shuffle=False, verbose=0)
        return net.evaluate(x[last], y[last], verbose=0, return_dict=True)["plain"]

    return lambda: np.array([train(lr, strength) for lr, strength in task.points()])


OURS = {"one after another": one_by_one, "one program": as_one_program, "sweeps.run": swept}
PEERS = {"hyperoptax": with_hyperoptax, "optuna": with_optuna, "keras": with_keras}
NEEDS = {"hyperoptax": ("hyperoptax",), "optuna": ("optuna", "torch"), "keras": ("keras",)}


def measured(task: Task, contenders: dict[str, Callable], rounds: int) -> list[str]:
    """A row for each contender: the first call, then the later ones, by clock and processor."""
    calls, firsts, losses = {}, {}, {}
    for name, make in contenders.items():
        began = time.perf_counter()
        calls[name] = make(task)
        losses[name] = calls[name]()
        firsts[name] = time.perf_counter() - began
    # After thousands of steps the losses are near 0, and what was rounding is half of them.
    near = 1e-2 if task.steps > 1000 else 0.0
    for name, found in losses.items():
        # Others round otherwise at each step, which the largest rates make more of.
        far = 0.1 if name in ("optuna", "keras") else 1e-3
        medians = np.median(found), np.median(losses["sweeps.run"])
        np.testing.assert_allclose(*medians, rtol=far, atol=near)
    clock: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: 1 if index % 2 else -1]:
            began, before = time.perf_counter(), time.process_time()
            calls[name]()
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - before)
    rows, members = [], len(task.points())
    base = np.array(clock["one after another"])
    for name in calls:
        ratios = np.array(clock[name]) / base
        low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        each = 1e3 * np.median(clock[name]) / members
        own = np.median(processor[name]) / np.median(processor["one after another"])
        extra = firsts[name] - np.median(clock[name])
        rows.append(
            f"| {members} | {name} | {each:.4g} | {middle:.3g} ({low:.3g} to {high:.3g}) "
            f"| {own:.3g} | {extra:.3g} |"
        )
    return rows


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=220, help="of a member: 10 epochs")
    parser.add_argument("--widths", type=numbers, default=[8, 32, 128])
    parser.add_argument("--members", type=numbers, default=[1, 4, 32, 256, 1024])
    parser.add_argument("--peers", action="store_true", help="what is installed of them")
    options = parser.parse_args()
    if options.tiny:
        options.rounds, options.steps, options.widths, options.members = 1, 3, [4], [4]
    contenders = dict(OURS)
    for name, needed in NEEDS.items() if options.peers else ():
        missing = [module for module in needed if importlib.util.find_spec(module) is None]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} is not installed")
        else:
            contenders[name] = PEERS[name]
    print(machine())
    for width in options.widths:
        print(f"\n64 -> {width} -> {width} -> 10, {options.steps} steps of 64 examples\n")
        print("| members | contender | ms a member | times one by one | of processor | first, s |")
        print("|---|---|---|---|---|---|")
        for members in options.members:
            for row in measured(Task(width, members, options.steps), contenders, options.rounds):
                print(row, flush=True)


if __name__ == "__main__":
    main()
