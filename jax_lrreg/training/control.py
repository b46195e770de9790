"""The controllers inside an optimizer's state: what they multiplied, and how an evaluation metric reaches them.

They are known by their fields, wherever they stand in the tree, as `transforms` is not below this package.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

GROUP = "scale/"  # begins the names of the metrics of groups of parameters


def applied_scales(opt_state: Any) -> dict[str, jax.Array]:
    """What the controllers have multiplied the latest update by.

    Under "" stands the product of those that are in no group of an `optax.partition`, if there are any,
    and under "scale/<label>" that of each group.
    """
    scales: dict[str, jax.Array] = {}
    for path, node in jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=is_control)[0]:
        if is_control(node):
            name = _group(path)
            scales[name] = scales[name] * node.scale if name in scales else node.scale
    return scales


def hears_metrics(opt_state: Any) -> bool:
    """Whether there is a controller that a metric drives."""
    return any(map(_is_driven, jax.tree.leaves(opt_state, is_leaf=is_control)))


def listen(opt_state: Any, external: bool) -> Any:
    """The state whose controllers hear what `tell` gives them and nothing else, or the loss of each update again."""
    flags = jax.device_get([node.external for node in _driven(opt_state)])
    if all(flag == external for flag in flags):
        return opt_state
    return _map(opt_state, lambda node: node._replace(external=_like(node.external, external)))


def tell(opt_state: Any, metric: float) -> Any:
    """The state whose controllers will hear `metric` at the next update that is made."""
    return _map(
        opt_state,
        lambda node: node._replace(
            metric=_like(node.metric, metric), waiting=_like(node.waiting, True)
        ),
    )


def _map(opt_state: Any, change: Callable[[Any], Any]) -> Any:
    return jax.tree.map(
        lambda node: change(node) if _is_driven(node) else node, opt_state, is_leaf=is_control
    )


def _driven(opt_state: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_control) if _is_driven(node)]


def _like(old: jax.Array, value: Any) -> jax.Array:
    """`value` in the type and the place of `old`, so that nothing is compiled anew."""
    return jnp.full_like(old, value)


def is_control(node: Any) -> bool:
    """Whether `node` is the state of a controller and the scale that came of it."""
    return hasattr(node, "_fields") and {"controller", "scale"} <= set(node._fields)


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
