"""The guard against convolutions in a loop on the CPU, where XLA makes them 15 times slower."""

from typing import Any
from weakref import WeakKeyDictionary

import jax

_SLOW: WeakKeyDictionary[Any, bool] = (
    WeakKeyDictionary()
)  # of programs: a walk through one takes a millisecond


def traced(function: Any, *arguments: Any) -> tuple[Any, bool]:
    """The shapes of what a jitted function returns, and whether it is slow in a loop."""
    trace = function.trace(*arguments)
    program = trace.jaxpr.jaxpr
    if program not in _SLOW:
        _SLOW[program] = jax.default_backend() == "cpu" and _has_convolution(program)
    return trace.out_info, _SLOW[program]


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and _has_convolution(inner):
                return True
    return False
