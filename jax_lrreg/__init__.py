"""Learning-rate schedules and regularization for JAX.

Schedules are pure functions `step -> value` that go wherever Optax takes a learning rate. Penalties
are functions of the parameters, usable as a loss term, as an Optax transform, or through their
prox. Both are data: frozen pytrees that print, compare, and pass through `jit`, `vmap` and `grad`.

Words, one meaning each:
    step: index of the update, from 0.
    steps: duration of this piece; a whole number is counted exactly, 500.0 has a gradient.
    warmup_steps, total_steps: duration of the warmup, and of the whole with the warmup included.
    init_value, peak_value, end_value: absolute values, as in Optax.
    strength: lambda, the weight of a penalty.
    params: a tree; w: one array of it.
    tx: an Optax transformation.
    key: a typed PRNG key.

Conventions:
    A schedule holds its first value before and its last value after its span.
    `L2` has the 1/2, so that its gradient is `strength * w`; `L1` and `L2` sum over all entries.
    prox(w, step_size) = argmin over z of 1/2 sum (z - w)^2 / step_size + value(z).
"""

__version__ = "0.2.0"

import importlib
from typing import TYPE_CHECKING

from jax_lrreg._struct import pytree as pytree
from jax_lrreg._struct import static as static

if TYPE_CHECKING:
    from types import ModuleType

    from jax_lrreg import averages as averages
    from jax_lrreg import checkpoints as checkpoints
    from jax_lrreg import controllers as controllers
    from jax_lrreg import finder as finder
    from jax_lrreg import forecast as forecast
    from jax_lrreg import interop as interop
    from jax_lrreg import penalties as penalties
    from jax_lrreg import plots as plots
    from jax_lrreg import schedules as schedules
    from jax_lrreg import select as select
    from jax_lrreg import sweeps as sweeps
    from jax_lrreg import text as text
    from jax_lrreg import training as training
    from jax_lrreg import transforms as transforms

_NAMESPACES = (
    "averages",
    "checkpoints",
    "controllers",
    "finder",
    "forecast",
    "interop",
    "penalties",
    "plots",
    "schedules",
    "select",
    "sweeps",
    "text",
    "training",
    "transforms",
)


def __getattr__(name: str) -> "ModuleType":
    """A namespace, loaded when it is first looked at: `import jax_lrreg` costs next to nothing."""
    if name in _NAMESPACES:
        return importlib.import_module(f"jax_lrreg.{name}")
    raise AttributeError(f"module 'jax_lrreg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMESPACES})
