"""`find-lr`: tries rising learning rates on real data, and suggests one."""

import sys
from typing import Any

import numpy as np
import optax
from rich.table import Table

from jax_lrreg import finder
from jax_lrreg.cli.options import PROGRAM, Found, needing
from jax_lrreg.cli.output import console, picture, save
from jax_lrreg.cli.problem import OPTIMIZERS, problem


def run(*, low: float, high: float, steps: int, out: str, **options: Any) -> tuple[int, Found]:
    """Prints what rising rates suggest and draws the losses to a file.

    Returns:
        The exit code, 1 where the loss falls at no rate; and what was found.
    """
    with needing("matplotlib", "find-lr"):
        from jax_lrreg import plots

    task = problem(**options)
    state = task.init(optax.identity(), options["seed"])
    # The optimizer without its rate; what it returns has the minus sign already, and the test puts
    # another one.
    direction = optax.chain(OPTIMIZERS[task.optimizer](1.0), optax.scale(-1.0))
    path = picture(out)
    found = finder.range_test(
        task.module,
        task.measure,
        direction,
        state,
        task.source,
        low=low,
        high=high,
        steps=steps,
        penalty=task.penalty,
    )
    save(plots.range_test(found), path)
    screen = console()
    rates, end = found.learning_rates, ", where the loss diverged" if found.stopped else ""
    screen.print(f"{task.optimizer} on {options['data']}: {task.dataset.task}; {task.network}")
    screen.print(f"Tried {len(rates)} rates from {rates[0]:.3g} to {rates[-1]:.3g}{end}.")
    try:
        suggested = found.suggestion
    except ValueError as none:
        print(f"Wrote {path}")
        print(f"{PROGRAM}: no suggestion: {none}", file=sys.stderr)
        return 1, {"suggestion": None, "suggestions": {}, "picture": str(path)}
    table = Table("rule")
    for name in ("learning rate", "smoothed loss there"):
        table.add_column(name, justify="right")
    for rule, rate in found.suggestions.items():
        nearest = np.argmin(np.abs(np.log(rates / rate)))
        table.add_row(rule, f"{rate:.3g}", f"{found.smoothed[nearest]:.4g}")
    screen.print(table)
    print(f"Suggested: {suggested:.3g}. Wrote {path}")
    rules = {rule: float(rate) for rule, rate in found.suggestions.items()}
    curve = {"rates": rates.tolist(), "losses": found.smoothed.tolist()}
    return 0, {"suggestion": float(suggested), "suggestions": rules, **curve, "picture": str(path)}
