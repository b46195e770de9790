"""One of two processes on a mesh: `processes.py RANK PORT FOLDER [WHAT]` prints what it finds.

Without WHAT: whole states and cut ones, arrays and rows of its own, a signal to one of the two, and
a run that is kept. Then RANK "alone" is one process with one device, which goes on with that run.
With "error" the data of process 1 fail at step 40, with "kill" the system ends it there.
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import sys
from types import SimpleNamespace

rank, port, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
what = sys.argv[4] if len(sys.argv) > 4 else ""
alone = rank == "alone"
flags = f"{os.getenv('XLA_FLAGS', '')} --xla_force_host_platform_device_count={1 if alone else 2}"
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags + " --xla_backend_optimization_level=0"}

import jax

rank = 0 if alone else int(rank)
if not alone:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Of an error `fit` tells the other one after 10 s, before JAX does.
    limits = {
        "heartbeat_timeout_seconds": 10,
        "shutdown_timeout_seconds": 30 if what == "error" else 10,
    }
    jax.distributed.initialize(f"localhost:{port}", 2, rank, **limits)

import jax.numpy as jnp
import numpy as np
from regression import apply, begin, data, mesh, step

from jax_lrreg import checkpoints, sweeps, training
from jax_lrreg.sweeps import kept as kept_sweep
from jax_lrreg.sweeps import parts

STEPS, KEPT, LONGER = 6, 12, 16


def own_rows(steps, fewer=0, kind=np.asarray):
    for index in range(steps):
        if what and rank == 1 and index == 40:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("row 17 is broken")
        yield jax.tree.map(lambda a: kind(a[rank * 8 : rank * 8 + 8 - fewer]), data(index))


def fit(name, rule=None, kind=data, steps=STEPS, loggers=(), **options):
    """The losses, and the sum of the weights' sizes."""
    loggers = [training.log_csv(folder / f"{name}.csv"), *loggers]
    options |= {"until": steps, "log_every": 2, "loggers": loggers}
    state, history = training.fit(step, begin(sharding=rule), kind, **options)
    return [*history["loss"].tolist(), size(state)], str(history.get("interrupted", ""))


def size(state):
    return float(jax.jit(lambda p: jnp.sum(jnp.abs(p)))(state.params))


def terminate(now, entry):
    if now == 6 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def decayed(hp, x, steps):
    begun = jnp.ones(()) if x is None else x
    x = jax.lax.fori_loop(0, steps, lambda _, x: x - hp["rate"] * x, begun)
    return x, {"loss": x**2}


def wide(hp):
    """Of so many numbers that a program has few members."""
    x = jax.lax.fori_loop(0, 2, lambda _, x: x + hp["rate"], jnp.zeros(2**16))
    return {"mean": x.mean()}


def swept():
    """Nine points in rungs, and many in parts, by clocks that differ on the processes."""
    nine = sweeps.grid(rate=np.linspace(0.01, 0.09, 9, dtype=np.float32))
    rungs = sweeps.halving(decayed, nine, "loss", steps=[10, 30, 90])
    ticks = itertools.count()
    parts.time = SimpleNamespace(perf_counter=lambda: next(ticks) ** (1 + rank))
    kept_sweep.time = SimpleNamespace(monotonic=lambda: 2.0 * rank - 1)
    many = sweeps.grid(rate=np.linspace(0, 1, 200, dtype=np.float32))
    result = sweeps.run(wide, many, checkpoint=folder / "sweep")
    return [*rungs["steps"].tolist(), float(result["mean"].sum())]


found, cut = {}, training.fsdp("data", least=16)
kept = {"rule": cut, "checkpoint": checkpoints.Folder(folder / "run", every=4)}
with jax.set_mesh(mesh):
    if what:
        fit(what, cut, own_rows(10**6), 10**6)
    if alone:
        found["kept"], _ = fit("longer", steps=LONGER, **kept)
        found["whole"], _ = fit("again", steps=LONGER)
    else:
        for name, rule in (("whole", None), ("cut", cut)):
            found[name], _ = fit(name, rule)
            # JAX takes its arrays of each process for one that is the same on both.
            rows = own_rows(STEPS, kind=jnp.asarray if rule else np.asarray)
            found[f"{name}, rows"], _ = fit(f"{name} rows", rule, rows)
        rows = list(own_rows(STEPS))
        _, metrics = training.scan(step, begin(), rows, steps=STEPS)
        found["scan"] = np.mean(metrics["loss"].reshape(-1, 2), axis=1).tolist()
        state = begin()
        for batch in rows:
            state, metrics = step(state, batch)
        found["step"] = [float(metrics["loss"]), size(state)]
        with contextlib.suppress(ValueError):
            fit("longer here", steps=STEPS + 2 * rank)
            found["steps"] = "not refused"
        for uneven in (
            own_rows(1, fewer=2 * rank),
            training.ArrayData(data.arrays, 16, jax.random.key(rank)),
        ):
            with contextlib.suppress(ValueError):
                fit("uneven", kind=uneven)
                found["uneven"] = "not refused"
        one = lambda model, batch: {"size": jnp.mean(model(batch["x"]))}  # noqa: E731
        for name, kind in {"all": [data(0)], "own": rows[:1]}.items():
            try:
                found[f"{name} evaluated"] = training.make_eval(apply, one, kind)(state)["size"]
            except ValueError as error:
                found[f"{name} evaluated"] = str(error)[:58]
        found["swept"] = swept()
        _, found["signal"] = fit("kept", steps=KEPT, loggers=[terminate], **kept)
        found["kept"], _ = fit("kept", steps=KEPT, **kept)
        try:  # a folder on a disk that only this process sees
            fit("elsewhere", steps=KEPT, checkpoint=folder / ("run", "empty")[rank])
        except ValueError as error:
            found["elsewhere"] = str(error).partition("with the newest")[2]
    like = begin(sharding=cut)
    found["back"] = size(checkpoints.restore(folder / "run", like=like, step=KEPT))
with contextlib.suppress(ValueError):  # without a mesh each process has a sweep of its own
    if not alone:
        sweeps.run(wide, sweeps.grid(rate=[0.1]), checkpoint=folder / "sweep of each")
        found["sweep of each"] = "not refused"
print(json.dumps(found))
