"""The guard against convolutions in a loop on the CPU."""

from typing import Any
from weakref import WeakKeyDictionary

import jax

from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step


def slow_in_a_loop(step: Step, state: State, example: Any) -> bool:
    """Whether the step has a convolution and runs on the CPU, where XLA makes them 15 times slower inside a loop."""
    return traced(step, state, example)[1]


_SLOW: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # of programs: a walk through one takes a millisecond


def traced(step: Step, state: State, example: Any) -> tuple[dict[str, Any], bool]:
    """The shapes of the metrics, and whether the step is slow in a loop."""
    trace = step.body.trace(state, example)
    program = trace.jaxpr.jaxpr
    if program not in _SLOW:
        _SLOW[program] = jax.default_backend() == "cpu" and _has_convolution(program)
    return trace.out_info[1], _SLOW[program]


def _has_convolution(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and _has_convolution(inner):
                return True
    return False
