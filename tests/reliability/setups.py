"""Changed set-ups: each is refused by the name of what differs, and goes on in a branch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import loss_fn
from flax.training.dynamic_scale import DynamicScale

from jax_lrreg import averages, checkpoints, penalties, schedules, training, transforms

STEPS, LONGER = 20, 30
LR = schedules.Cosine(0.05, steps=200).warmup(10)
RULES = [("w", 0.5), ("**", 1.0)]


def arrays(size=96):
    """Examples of a line."""
    x = np.random.default_rng(0).normal(size=(size, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}


def apply(params, x):
    return x @ params["w"] + params["b"]


def data(size=96, batch_size=16, seed=5, **options):
    key = jax.random.key(seed) if options.get("shuffle", True) else None
    return training.ArrayData(arrays(size), batch_size, key, **options)


def ruled(tx, rules=RULES):
    return optax.chain(tx, transforms.scale_by_rules(rules))


# What `make_step` is given, but for `tx` and those of the state and the data; one change at a time.
PLAIN = {
    "tx": ruled(optax.adam(LR)),
    "learning_rate": LR,
    "penalty": penalties.L2(1e-3),
    "accumulate": 2,
    "average": averages.EMA(0.9),
    "on_spike": training.Spike(sigma=6.0, window=8),
}


def rate(lr):
    return {"tx": ruled(optax.adam(lr)), "learning_rate": lr}


def optimizer(make, lr=LR, **numbers):
    return {"tx": ruled(make(lr, **numbers))}


def batches():
    return [data()(step) for step in range(3 * LONGER)]


# By what is to be named, and what is changed of it: for the step, the state, the data.
CHANGES = [
    ("learning_rate", "a peak", rate(schedules.Cosine(0.04, steps=200).warmup(10))),
    ("learning_rate", "a length", rate(schedules.Cosine(0.05, steps=300).warmup(10))),
    ("learning_rate", "a warmup", rate(schedules.Cosine(0.05, steps=200).warmup(20))),
    ("learning_rate", "an end", rate(schedules.Cosine(0.05, steps=200, end_value=0.01).warmup(10))),
    ("learning_rate", "a shape", rate(schedules.Linear(0.05, steps=200).warmup(10))),
    ("learning_rate", "one of Optax", rate(optax.cosine_decay_schedule(0.05, 200))),
    ("penalty", "a strength", {"penalty": penalties.L2(2e-3)}),
    ("penalty", "a kind", {"penalty": penalties.L1(1e-3)}),
    ("penalty", "a selection", {"penalty": penalties.L2(1e-3).on("w")}),
    ("penalty", "a schedule", {"penalty": penalties.L2(schedules.Linear(1e-3, steps=9))}),
    ("penalty", "none", {"penalty": None}),
    ("tx", "b1", optimizer(optax.adam, b1=0.8)),
    ("tx", "b2", optimizer(optax.adam, b2=0.99)),
    ("tx", "eps", optimizer(optax.adam, eps=1e-6)),
    ("tx", "Nesterov", optimizer(optax.adam, nesterov=True)),
    ("tx", "AMSGrad's neighbour", optimizer(optax.adamax)),
    ("tx state", "weight decay", optimizer(optax.adamw)),
    ("tx state", "SGD", optimizer(optax.sgd)),
    ("tx state", "momentum", optimizer(optax.sgd, momentum=0.9)),
    ("tx state", "Lion", optimizer(optax.lion)),
    ("tx state", "clipping", {"tx": optax.chain(optax.clip(1.0), PLAIN["tx"])}),
    ("rules", "a factor", {"tx": ruled(optax.adam(LR), [("w", 0.4), ("**", 1.0)])}),
    ("rules", "a pattern", {"tx": ruled(optax.adam(LR), [("b", 0.5), ("**", 1.0)])}),
    ("trainable", "a part", {"trainable": "w"}),
    ("accumulate", "a number", {"accumulate": 4}),
    ("accumulate", "none", {"accumulate": 1}),
    ("average", "a decay", {"average": averages.EMA(0.8)}),
    ("average", "a kind", {"average": averages.Uniform(start=0)}),
    ("average", "none", {"average": None}),
    ("loss_scale", "one", {"loss_scale": DynamicScale(scale=8.0)}),
    ("on_spike", "sigma", {"on_spike": training.Spike(sigma=5.0, window=8)}),
    ("on_spike", "a window", {"on_spike": training.Spike(sigma=6.0, window=16)}),
    ("on_spike", "none", {"on_spike": None}),
    ("on_nonfinite", "keep", {"on_nonfinite": "keep"}),
    ("key", "a seed", {"key": jax.random.key(9)}),
    ("data.batch_size", "a size", {"data": lambda: data(batch_size=8)}),
    ("data.key", "a seed", {"data": lambda: data(seed=6)}),
    ("data.shuffle", "none", {"data": lambda: data(shuffle=False)}),
    ("data.size", "more", {"data": lambda: data(size=112)}),
    ("data.remainder", "another", {"data": lambda: data(remainder="error")}),
    ("data", "a list", {"data": batches}),
]


def run(folder, steps, change=None):
    """A run of this many steps, with its evaluation."""
    given = {**PLAIN, **(change or {})}
    source = given.pop("data", data)()
    key, trainable = given.pop("key", jax.random.key(0)), given.pop("trainable", None)
    tx = given.pop("tx")
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    state = training.init(apply, tx, key=key, params=params, trainable=trainable)
    step = training.make_step(apply, loss_fn, tx, **given)
    return training.fit(step, state, source, until=steps, log_every=10, checkpoint=folder)


def attempt(name, change, base, branch):
    """What went wrong with a change, or None."""
    try:
        run(base, LONGER, change)
    except ValueError as error:
        if not str(error).startswith(f"fit: `{name}` must be that of the run in `checkpoint`"):
            return f"refused by another name: {error}"
    else:
        return "not refused"
    # Where the optimizer keeps other arrays, the weights alone go on.
    keep = ("params",) if name in ("tx state", "trainable") else None
    checkpoints.branch(base, into=branch, keep=keep)
    state, history = run(branch, LONGER, change)
    ended = int(state.step) == LONGER and history["step"][-1] == LONGER
    return None if ended else "did not go on"
