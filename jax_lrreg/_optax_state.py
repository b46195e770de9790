"""What the states of Optax's transformations hold: counters, moments, rates, controllers, partitions.

An Optax state is a tree of named tuples, one for each transformation, inside each other as those are. This is
the one place that knows their names; everything else asks here. Our own transformations' states are known by
their fields too, wherever they stand in the tree.
"""

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter

COUNTERS = ("count", "step_count", "mini_step", "gradient_step")
GROUP = "scale/"  # begins the names of the metrics of groups of parameters

# The states that hold a second moment, and which of their fields it is.
SECOND_MOMENTS = {
    "ScaleByAdamState": "nu",
    "ScaleByBeliefState": "nu",
    "ScaleByAmsgradState": "nu_max",
    "ScaleByRmsState": "nu",
    "ScaleByRmsWithCountState": "nu",
    "ScaleByRStdDevState": "nu",
    "ScaleByRStdDevWithCountState": "nu",
    "ScaleByRssState": "sum_of_squares",
}
HOLDERS = (*SECOND_MOMENTS, "TraceState")  # their fields are trees of parameters


def nodes(state: optax.OptState) -> list[Any]:
    """The states of the transformations that an Optax state is made of, outermost first."""
    if not isinstance(state, tuple | list | dict):
        return []
    own = [state] if hasattr(state, "_fields") else []
    if own and type(state).__name__ in HOLDERS:
        return own
    children = state.values() if isinstance(state, dict) else state
    return own + [node for child in children for node in nodes(child)]


def second_moments(state: optax.OptState) -> list[Any]:
    """The parts of an optimizer's state that hold a second moment."""
    return [node for node in nodes(state) if type(node).__name__ in SECOND_MOMENTS]


def injected_rate(state: optax.OptState) -> jax.Array | None:
    """The learning rate that `optax.inject_hyperparams` keeps in an optimizer's state, or None."""
    held = [node.hyperparams for node in nodes(state) if "hyperparams" in node._fields]
    rates = [hyper["learning_rate"] for hyper in held if "learning_rate" in hyper]
    return rates[0] if rates else None


def update_count(state: optax.OptState) -> jax.Array | None:
    """The optimizer's own count of the updates it has made, which its schedules see; None if it counts nothing.

    It differs from the number of steps where updates were skipped, or where several steps make one update.
    That of a schedule goes first, then that of `optax.MultiSteps`, since an Adam inside counts windows too.
    """
    found: dict[str, jax.Array] = {}
    for node in nodes(state):
        for name in {"count", "gradient_step", "step_count"} & set(node._fields):
            if jnp.ndim(getattr(node, name)) == 0:
                scheduled = type(node).__name__ == "ScaleByScheduleState"
                found.setdefault("schedule" if scheduled else name, getattr(node, name))
    kinds = ("schedule", "gradient_step", "count", "step_count")
    return next((found[kind] for kind in kinds if kind in found), None)


def is_counter(path: Any, value: Any) -> bool:
    """Whether the leaf at JAX's key path `path` counts updates."""
    return getattr(path[-1], "name", None) in COUNTERS and jnp.ndim(value) == 0


def own_numbers(state: optax.OptState) -> list[jax.Array | None]:
    """The scalars that an optimizer estimates, such as D-Adaptation's step size; None in the place of all else.

    Controllers do not count: their numbers are never NaN.
    """
    without = jax.tree.map(
        lambda node: None if is_control(node) else node, state, is_leaf=is_control
    )
    return [
        leaf if jnp.ndim(leaf) == 0 and is_parameter(leaf) else None
        for leaf in jax.tree.leaves(without)
    ]


# Controllers: the state of one stands beside the scale that came of it. Those that a metric drives hold three
# fields more, by which an evaluation metric reaches them: see `transforms.ScaleByControllerState`.


def is_control(node: Any) -> bool:
    """Whether `node` is the state of a controller and the scale that came of it."""
    return hasattr(node, "_fields") and {"controller", "scale"} <= set(node._fields)


def applied_scales(state: optax.OptState) -> dict[str, jax.Array]:
    """What the controllers have multiplied the latest update by.

    Under "" stands the product of those that are in no group of an `optax.partition`, if there are any,
    and under "scale/<label>" that of each group.
    """
    scales: dict[str, jax.Array] = {}
    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_control)[0]:
        if is_control(node):
            name = _group(path)
            scales[name] = scales[name] * node.scale if name in scales else node.scale
    return scales


def hears_metrics(state: optax.OptState) -> bool:
    """Whether there is a controller that a metric drives."""
    return any(map(_is_driven, jax.tree.leaves(state, is_leaf=is_control)))


def listen(state: optax.OptState, external: bool) -> optax.OptState:
    """The state whose controllers hear what `tell` gives them only, or the loss of each update again."""
    driven = [node for node in jax.tree.leaves(state, is_leaf=is_control) if _is_driven(node)]
    flags = jax.device_get([node.external for node in driven])
    if all(flag == external for flag in flags):
        return state
    return _map(state, lambda node: node._replace(external=_like(node.external, external)))


def tell(state: optax.OptState, metric: float) -> optax.OptState:
    """The state whose controllers will hear `metric` at the next update that is made."""
    return _map(
        state,
        lambda node: node._replace(
            metric=_like(node.metric, metric), waiting=_like(node.waiting, True)
        ),
    )


def _map(state: optax.OptState, change: Callable[[Any], Any]) -> optax.OptState:
    return jax.tree.map(
        lambda node: change(node) if _is_driven(node) else node, state, is_leaf=is_control
    )


def _like(old: jax.Array, value: chex.Numeric) -> jax.Array:
    """`value` in the type and the place of `old`, so that nothing is compiled anew."""
    return jnp.full_like(old, value)


def _is_driven(node: Any) -> bool:
    return is_control(node) and "waiting" in node._fields


def _group(path: Any) -> str:
    """The labels of the `optax.partition`s on the way, as the name of a metric; "" where there are none."""
    labels = [
        str(below.key)
        for above, below in itertools.pairwise(path)
        if getattr(above, "name", None) == "inner_states" and hasattr(below, "key")
    ]
    return GROUP + "/".join(labels) if labels else ""
