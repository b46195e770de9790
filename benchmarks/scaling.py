"""What does a step send and hold on each chip, by the number of chips and by the penalty?

    python benchmarks/scaling.py [--tiny] [--only WORDS] [--limit 600] [--kept FILE] > scaling.md

It writes the whole page; with `--tiny`, the table of a small transformer alone.

Nothing is run: a step of a transformer of a thousand million parameters, its layers scanned, its
state cut by `training.fsdp`, is compiled for TPUs by PyPI's libtpu (the extra `tpu-aot`), and its
messages are counted in the program: those of a loop as often as it turns. Each chip has one row of
1,024 tokens, so that what it does is the same on any number of chips. A program is compiled in a
process of its own, which is given up after `--limit` seconds. All take an hour.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import _ahead  # before JAX
import jax
import jax.numpy as jnp
import optax
from _timing import machine
from jax.sharding import PartitionSpec as P

from jax_lrreg import penalties, training, transforms
from jax_lrreg.penalties import spectral

CHIPS = ("v5p:1x1x1", "v5p:2x2x1", "v5e:4x4", "v5e:16x16", "v5p:8x8x16")
MIDDLE = "v5e:4x4"  # where all penalties are looked at
SCALED = ("none", "L1, prox")
SIDES = (64, 128, 256, 512)  # of the matrices whose decomposition is compiled
RATE = 1e-3

TEXT = """Of one step and one chip, read from programs compiled by `python benchmarks/scaling.py`;
nothing was run. A transformer of 973 million parameters, its state cut by `training.fsdp("data")`,
one row of 1,024 tokens a chip, Adam. Messages of a loop count each time it turns; bytes are those
that a chip has in the end. "State" is what a chip holds between steps, "work" what it takes during
one. Penalties are on the 906 million parameters of the layers, those of groups on the units of each
matrix; "kept whole" is `training.fsdp("data", keep_groups=penalty)`. How long a program compiles
depends on what else the machine does.
"""


class Size(NamedTuple):
    """Of the transformer: 973 million parameters."""

    width: int = 2048
    layers: int = 18
    symbols: int = 32768
    tokens: int = 1024
    heads: int = 16


SIZE, TINY = Size(), Size(64, 2, 512, 32, 2)


class Case(NamedTuple):
    """A penalty in the loss, or its prox after the update, and how the state is cut."""

    penalty: Any = None
    prox: bool = False
    keeps: bool = False  # its groups whole
    held: bool = True  # the activations of each layer, to the data axis


def on_layers(penalty: penalties.Penalty) -> penalties.Penalty:
    return penalty.on("layers/**")


GROUPS = {"axis": -2, "stacked": 1}
LASSO = penalties.GroupLasso(1e-4, **GROUPS)
CASES = {
    "none": Case(),
    "none, activations free": Case(held=False),
    "L1": Case(penalties.L1(1e-4)),
    "L1, prox": Case(penalties.L1(1e-4), prox=True),
    "MCP, prox": Case(penalties.MCP(1e-4, gamma=3.0), prox=True),
    "GroupLasso": Case(LASSO),
    "GroupLasso, prox": Case(LASSO, prox=True),
    "GroupLasso, kept whole": Case(LASSO, keeps=True),
    "GroupLasso, prox, kept whole": Case(LASSO, prox=True, keeps=True),
    "LInf, prox": Case(penalties.LInf(1e-4, **GROUPS), prox=True),
    "LInf, prox, kept whole": Case(penalties.LInf(1e-4, **GROUPS), prox=True, keeps=True),
    "L1Ball, prox": Case(penalties.L1Ball(1.0, **GROUPS), prox=True),
    "L1Ball, prox, kept whole": Case(penalties.L1Ball(1.0, **GROUPS), prox=True, keeps=True),
    "Simplex, prox": Case(penalties.Simplex(**GROUPS), prox=True),
    "Simplex, prox, kept whole": Case(penalties.Simplex(**GROUPS), prox=True, keeps=True),
    "MaxNorm, prox": Case(penalties.MaxNorm(1.0, **GROUPS), prox=True),
    "MaxNorm, prox, kept whole": Case(penalties.MaxNorm(1.0, **GROUPS), prox=True, keeps=True),
    "Orthogonal": Case(penalties.Orthogonal(1e-4, stacked=1)),
    "SpectralNorm, 50 iterations": Case(penalties.SpectralNorm(1e-4, stacked=1)),
    "SpectralNorm, 1 iteration": Case(penalties.SpectralNorm(1e-4, iterations=1, stacked=1)),
    "TotalVariation": Case(penalties.TotalVariation(1e-4, axis=-2, stacked=1)),
    "NuclearNorm": Case(penalties.NuclearNorm(1e-4, stacked=1)),
}


def parameters(size: Size) -> dict[str, Any]:
    d, n = size.width, size.layers
    matrices = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    layers = {name: jnp.zeros((n, *shape)) for name, shape in matrices.items()}
    return {"embed": jnp.zeros((size.symbols, d)), "layers": layers}


def model(size: Size, held: bool) -> Any:
    """A transformer without biases, in bfloat16, whose layers are computed again on the way back.

    The activations of each layer are held to the data axis. Without that XLA may leave the weights
    where they lie and send the activations of all rows to them: more with each chip.
    """

    def scaled(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def hold(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, P("data")) if held else x

    def layer(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        x = hold(x)
        w = jax.tree.map(lambda a: a.astype(jnp.bfloat16), w)
        heads = (scaled(x) @ w["qkv"]).reshape(*x.shape[:2], 3, size.heads, -1)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(heads, 2, 0), is_causal=True)
        x += mixed.reshape(x.shape) @ w["out"]
        return x + jax.nn.gelu(scaled(x) @ w["up"]) @ w["down"], None

    def apply(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
        embed = params["embed"].astype(jnp.bfloat16)
        x, _ = jax.lax.scan(jax.checkpoint(layer), embed[tokens], params["layers"])
        x = hold(scaled(x))
        return (x @ embed.T).astype(jnp.float32)

    return apply


def loss_fn(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def compiled(name: str, chips: str, size: Size) -> dict[str, Any]:
    """What one program sends and holds."""
    case, mesh = CASES[name], _ahead.mesh_of(chips)
    apply = model(size, case.held)
    tx, penalty = optax.adam(RATE), case.penalty and on_layers(case.penalty)
    if case.prox:
        tx = transforms.proximal(tx, penalty, learning_rate=RATE)
    step = training.make_step(apply, loss_fn, tx, penalty=None if case.prox else penalty)
    least = 2**16 if size == SIZE else 2**10
    rule = training.fsdp("data", least=least, keep_groups=penalty if case.keeps else None)

    def make() -> training.State:
        return training.init(apply, tx, key=jax.random.key(0), params=parameters(size))

    state = _ahead.shapes_on(mesh, make, rule)
    rows = jax.ShapeDtypeStruct((mesh.size, size.tokens), jnp.int32)
    began = time.perf_counter()
    program = step.lower(state, {"x": rows, "y": rows}).compile()
    seconds, memory = time.perf_counter() - began, program.memory_analysis()
    return {
        "chips": mesh.size,
        "messages": _ahead.messages(program.as_text(), mesh.size),
        "state": memory.argument_size_in_bytes,
        "work": memory.temp_size_in_bytes,
        "seconds": seconds,
    }


def decomposed(side: int) -> float:
    """Seconds of the processor to compile a step with the prox of one matrix's NuclearNorm."""
    spectral.LARGEST_ON_TPUS = max(SIDES)  # the limit is what is looked for
    apply = lambda params, x: x @ params["w"]  # noqa: E731
    norm = penalties.NuclearNorm(1e-4)
    tx = transforms.proximal(optax.sgd(RATE), norm, learning_rate=RATE)
    step = training.make_step(apply, lambda model, x: jnp.mean(model(x) ** 2), tx)

    def make() -> training.State:
        params = {"w": jnp.zeros((side, side))}
        return training.init(apply, tx, key=jax.random.key(0), params=params)

    state = _ahead.shapes_on(_ahead.mesh_of("v5e:2x2"), make)
    lowered = step.lower(state, jax.ShapeDtypeStruct((8, side), jnp.float32))
    began = time.process_time()
    lowered.compile()
    return time.process_time() - began


def in_a_process(limit: float, *words: str) -> Any:
    """What this script prints of these words, in a process of its own, or why it does not."""
    command = [sys.executable, __file__, *words]
    # Or the last line of an error is a note about its traceback.
    options = {"env": {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}, "timeout": limit}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired:
        return f"not compiled within {limit:g} s"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:300]
    return json.loads(done.stdout.splitlines()[-1])


def row(label: str, found: dict[str, Any] | str) -> str:
    if isinstance(found, str):
        return f"| {label} | {found} |"
    sent = [f"{count}" for count, _ in found["messages"].values()]
    total = sum(size for _, size in found["messages"].values())
    sizes = [f"{number / 2**30:.3g}" for number in (total, found["state"], found["work"])]
    return f"| {label} | {' | '.join([*sent, *sizes, format(found['seconds'], '.0f')])} |"


def table(title: str, rows: list[tuple[str, dict[str, Any] | str]]) -> None:
    columns = [*_ahead.COLLECTIVES, "GiB sent", "GiB state", "GiB work", "s to compile"]
    print(f"\n## {title}\n\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for label, found in rows:
        print(row(label, found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds for one program; 0 for those kept only"
    )
    parser.add_argument("--kept", type=Path, help="JSON lines of programs: go on from there")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        print("| nothing is compiled for TPUs without the extra `tpu-aot` |")
    elif options.one or options.side:
        print(json.dumps(compiled(*options.one, SIZE) if options.one else decomposed(options.side)))
    else:
        page(options)


def page(options: argparse.Namespace) -> None:
    names = [name for name in CASES if options.only in name]
    lines = options.kept.read_text().splitlines() if options.kept and options.kept.exists() else []
    kept = {tuple(key): value for key, value in map(json.loads, lines)}

    def found(name: str, where: str) -> dict[str, Any] | str:
        if (name, where) not in kept and options.limit:
            kept[name, where] = in_a_process(options.limit, "--one", name, where)
            if options.kept:
                with options.kept.open("a") as file:
                    print(json.dumps([[name, where], kept[name, where]]), file=file)
        return kept.get((name, where), "not compiled this time")

    made = f"Made with libtpu {version('libtpu')} on {machine()}."
    print(f"# {__doc__.splitlines()[0]}\n\n{TEXT}\n{made}")
    if not options.tiny:
        for name in [name for name in SCALED if name in names]:
            rows = [
                (f"{_ahead.mesh_of(where).size}, {where}", found(name, where)) for where in CHIPS
            ]
            table(f"By chips, penalty: {name}", rows)
        large = [name for name in names if options.limit or (name, MIDDLE) in kept]
        table(f"By penalty, chips: {MIDDLE}", [(name, found(name, MIDDLE)) for name in large])
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: parameters(TINY))))
    small = [(name, compiled(name, MIDDLE, TINY)) for name in names]
    table(f"By penalty, of {count:,} parameters instead (`--tiny`), chips: {MIDDLE}", small)
    if not options.tiny:
        print("\n## NuclearNorm's prox on one square matrix, 4 chips of v5e")
        print("\n| side | s of the processor to compile |\n|---|---|")
        for side in SIDES:
            seconds = in_a_process(600, "--side", str(side))
            print(f"| {side} | {seconds if isinstance(seconds, str) else format(seconds, '.1f')} |")


if __name__ == "__main__":
    main()
