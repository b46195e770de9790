"""What do the step and the loop cost, beside a hand-written scan doing the same arithmetic?

The four workloads of `_workloads.py`, each run by `training.fit` and by raw JAX with the data on
the device: same batches, same final parameters. Raw JAX makes one scan over all steps, or one
jitted call a step.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _timing import interleaved, machine, show
from _workloads import Workload, order, workloads

from jax_lrreg import training

ROUNDS = {"article": 41, "digits": 25, "transformer": 7, "cnn": 5}


def ours(work: Workload, **options: Any) -> Callable[[], Any]:
    """`training.fit` from the same start each time, with more options of `make_step`."""
    data, start = work.data(), work.start()
    options |= {"penalty": work.penalty, "learning_rate": work.lr}
    step = training.make_step(work.module, work.loss, work.tx, **options)

    def run():
        state = jax.tree.map(jnp.copy, start)
        state, history = training.fit(step, state, data, steps=work.steps, log_every=work.steps)
        return state.params, history["loss"][-1]

    return run


def raw(work: Workload, scan: bool) -> Callable[[], Any]:
    """The same arithmetic written by hand: one scan over all steps, or one jitted call a step."""
    data, start = work.data(), work.start()
    arrays = jax.tree.map(jnp.asarray, work.arrays)

    def body(carry, row):
        params, opt_state = carry
        batch = jax.tree.map(lambda a: a[row], arrays)

        def loss_of(params):
            loss = work.loss(lambda x: work.module.apply({"params": params}, x), batch)
            return loss + work.penalty(params)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = work.tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    whole = jax.jit(lambda carry, rows: jax.lax.scan(body, carry, rows), donate_argnums=0)
    single = jax.jit(body, donate_argnums=0)

    def run():
        carry, rows = (
            jax.tree.map(jnp.copy, (start.params, start.opt_state)),
            order(data, work.steps),
        )
        if scan:
            carry, losses = whole(carry, rows)
            return carry[0], losses.mean()
        for row in rows:
            carry, loss = single(carry, row)
        return carry[0], loss

    return run


def table(work: Workload, rounds: int) -> str:
    """The contenders of one workload, which must end with the same parameters."""
    runs = {
        "raw scan": raw(work, scan=True),
        "raw, one call a step": raw(work, scan=False),
        "fit": ours(work),
    }
    params = [run()[0] for run in runs.values()]
    for other in params[1:]:
        worst = max(
            jax.tree.leaves(
                jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params[0], other)
            )
        )
        assert worst < 5e-2, f"the contenders end {worst} apart"
    return show(interleaved(runs, rounds=rounds), baseline="raw scan", each=work.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--workloads", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    arguments = parser.parse_args()
    print(machine())
    for name in arguments.workloads:
        work = workloads(arguments.tiny)[name]
        print(f"\n## {name}: {work.steps} steps\n")
        print(table(work, arguments.rounds or (2 if arguments.tiny else ROUNDS[name])), flush=True)


if __name__ == "__main__":
    main()
