"""What Optax's states hold: counters, moments, rates, controllers, partitions.

An Optax state is a tree of named tuples, one for each transformation, inside each other as those
are. This is the one place that knows their names and fields; everything else asks here. States of
our own are declared here where others must find them, or known by their fields, wherever they stand
in the tree.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, known

Path: TypeAlias = tuple[Any, ...]  # JAX's key path
# A tree of parameters, of updates, or a state. Optax's types for them and chex's do not fit
# together, and none has the fields of a state.
Tree: TypeAlias = Any

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
# Those that are divided by 1 - b2^t before use, since they start from 0. AMSGrad keeps what is
# divided already.
CORRECTED = (
    "ScaleByAdamState",
    "ScaleByBeliefState",
    "ScaleByRmsWithCountState",
    "ScaleByRStdDevWithCountState",
)
# From these the square of the mean is subtracted.
CENTERED = ("ScaleByRStdDevState", "ScaleByRStdDevWithCountState")
AVERAGED = (*CORRECTED, "ScaleByRmsState", "ScaleByRStdDevState")  # they decay as a mean does


# Fields are given in this form where one of them is a count, which is a method of every tuple too.
class ScaleByLearningRateState(
    NamedTuple("ScaleByLearningRateState", [("count", jax.Array), ("learning_rate", jax.Array)])
):
    """How many updates `transforms.scale_by_learning_rate` has made, and the rate of the latest.

    Before the first update it is the rate that this will have.
    """


def nodes(state: optax.OptState) -> list[Any]:
    """The states of the transformations that an Optax state is made of, outermost first."""
    return [node for _, node in _placed(state)]


def memories(state: optax.OptState) -> list[Any]:
    """The parts of an optimizer's state that remember past gradients."""
    return [node for node in nodes(state) if remembers(node)]


def remembers(node: object) -> bool:
    """Whether `node` remembers past gradients, in fields that are trees of parameters."""
    return type(node).__name__ in SECOND_MOMENTS or sums(node)


def sums(node: object) -> bool:
    """Whether `node` is a sum of past gradients or updates: momentum."""
    return type(node).__name__ == "TraceState"


def remembered(node: object) -> Any:
    """The second moments of a memory, or its sums; a tree of parameters."""
    return getattr(node, SECOND_MOMENTS.get(type(node).__name__, "trace"))


def with_memories(state: optax.OptState, new: Sequence[Any]) -> optax.OptState:
    """The state with others in the place of its `memories`."""
    rest = iter(new)
    return _changed(state, lambda _, node: next(rest) if remembers(node) else node)


def without_penalties(state: optax.OptState) -> optax.OptState:
    """The state with which `transforms.add_penalty` and its kin add nothing."""

    def change(_: Path, node: Any) -> Any:
        return node._replace(count=None) if type(node).__name__ == "AddPenaltyState" else node

    return _changed(state, change)


def applied_rate(state: optax.OptState) -> jax.Array | None:
    """The learning rate of the latest update, where the state holds it as data; else None.

    `transforms.scale_by_learning_rate` and `optax.inject_hyperparams` do. In a state that `update`
    has returned, the number of the latter is the one that was used, edited before or not. Rates of
    several groups of an `optax.partition` are no one rate, so they give None.
    """
    rates: dict[str, jax.Array] = {}
    for path, node in _placed(state):
        hyper = getattr(node, "hyperparams", {})
        if isinstance(node, ScaleByLearningRateState):
            hyper = node._asdict()
        if "learning_rate" in hyper:  # the outermost counts: one inside was made of it
            rates.setdefault(_group(path), hyper["learning_rate"])
    return next(iter(rates.values())) if len(rates) == 1 else None


def update_count(state: optax.OptState) -> jax.Array | None:
    """The optimizer's own count of its updates, which its schedules see; None if it counts nothing.

    It differs from the number of steps where updates were skipped, or where several steps make one
    update. That of a schedule goes first, then that of `optax.MultiSteps`, since an Adam inside
    counts windows too.
    """
    found: dict[str, jax.Array] = {}
    for node in nodes(state):
        kind = type(node).__name__
        scheduled = kind in ("ScaleByScheduleState", "ScaleByLearningRateState")
        for name in {"count", "gradient_step", "step_count"} & set(node._fields):
            if jnp.ndim(getattr(node, name)) == 0:
                found.setdefault("schedule" if scheduled else name, getattr(node, name))
    kinds = ("schedule", "gradient_step", "count", "step_count")
    return next((found[kind] for kind in kinds if kind in found), None)


def made_one(new: optax.OptState, old: optax.OptState, params: optax.Params) -> jax.Array | bool:
    """Whether the optimizer has made an update: of several steps `optax.MultiSteps` makes one.

    One that is for some of the parameters only says nothing of the others, so it is not asked.
    """
    whole = jax.tree.structure(params)
    for after, before in zip(nodes(new), nodes(old), strict=True):
        windows = {"gradient_step", "acc_grads"} <= set(after._fields)
        if windows and jax.tree.structure(after.acc_grads) == whole:
            return after.gradient_step != before.gradient_step
    return True


def is_counter(path: Path, value: chex.Array) -> bool:
    """Whether the leaf at JAX's key path `path` counts updates."""
    return getattr(path[-1], "name", None) in COUNTERS and jnp.ndim(value) == 0


def schedules_gone_on(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """The old state with the new counters, but those that say how many gradients a moment holds."""

    def one(path: Path, after: Any, before: Any) -> Any:
        return after if not remembers(after) and is_counter(path, after) else before

    return jax.tree_util.tree_map_with_path(one, new, old, is_leaf=remembers)


def no_new_nan(new: optax.OptState, old: optax.OptState) -> jax.Array:
    """Whether no number that an optimizer estimates has become NaN: it would never recover."""
    sound = jnp.array(True)
    for after, before in zip(own_numbers(new), own_numbers(old), strict=True):
        if after is not None and before is not None:
            sound &= ~jnp.isnan(after) | jnp.isnan(before)
    return sound


def own_numbers(state: optax.OptState) -> list[jax.Array | None]:
    """The scalars that an optimizer estimates, as D-Adaptation does; None in the place of all else.

    Controllers do not count, since their numbers are never NaN; nor does a rate that came from a
    schedule.
    """

    def change(_: Path, node: Any) -> Any:
        if isinstance(node, ScaleByLearningRateState):
            return node._replace(learning_rate=None)
        return None if is_control(node) else node

    numbers = jax.tree.leaves(_changed(state, change))
    return [x if jnp.ndim(x) == 0 and is_parameter(x) else None for x in numbers]


def may_overflow(state: optax.OptState) -> list[jax.Array]:
    """The arrays of an optimizer's state that may overflow where all else is finite.

    An average of squares in float32 is below the square of the gradient's norm, which is looked at
    already. A sum of squares, as Adagrad's, grows; and the squares of float16 are infinite from 256
    on, where an update divided by them is 0 for ever.
    """

    def change(_: Path, node: Any) -> Any:
        if is_control(node):
            return None
        if not remembers(node) or type(node).__name__ == "ScaleByRssState":
            return node
        return [x for x in jax.tree.leaves(node) if x.dtype == jnp.float16]

    found = jax.tree.leaves(_changed(state, change))
    return [x for x in found if jnp.ndim(x) or jnp.result_type(x) == jnp.float16]


# Controllers: the state of one stands beside the scale that came of it. Those that a metric drives
# hold three fields more, by which an evaluation metric reaches them: see
# `transforms.ScaleByControllerState`.


def is_control(node: object) -> bool:
    """Whether `node` is the state of a controller and the scale that came of it."""
    return {"controller", "scale"} <= set(getattr(node, "_fields", ()))


def applied_scales(state: optax.OptState) -> dict[str, jax.Array]:
    """What the controllers have multiplied the latest update by.

    Under "" stands the product of those that are in no group of an `optax.partition`, if there are
    any, and under "scale/<label>" that of each group.
    """
    scales: dict[str, jax.Array] = {}
    for path, node in _placed(state):
        if is_control(node):
            name = _group(path)
            scales[name] = scales[name] * node.scale if name in scales else node.scale
    return scales


def hears_metrics(state: optax.OptState) -> bool:
    """Whether there is a controller that a metric drives."""
    return any(map(is_driven, nodes(state)))


def listen(state: optax.OptState, external: bool) -> optax.OptState:
    """The state whose controllers hear what `tell` gives them only, or each update's loss again."""
    flags = [node.external for node in nodes(state) if is_driven(node)]
    if known(*flags) and all(flag == external for flag in jax.device_get(flags)):
        return state
    return _told(state, external=external)


def tell(state: optax.OptState, metric: float) -> optax.OptState:
    """The state whose controllers will hear `metric` at the next update that is made."""
    return _told(state, metric=metric, waiting=True)


def _told(state: optax.OptState, **values: chex.Numeric) -> optax.OptState:
    def change(_: Path, node: Any) -> Any:
        if not is_driven(node):
            return node
        # In the type and the place of the old, so that nothing is compiled anew.
        new = {name: jnp.full_like(getattr(node, name), value) for name, value in values.items()}
        return node._replace(**new)

    return _changed(state, change)


def is_driven(node: object) -> bool:
    """Whether `node` is that of a controller which a metric drives."""
    return is_control(node) and "waiting" in getattr(node, "_fields", ())


def _group(path: Path) -> str:
    """The labels of the `optax.partition`s on the way, as the name of a metric; "" without any."""
    labels = [
        str(below.key)
        for above, below in itertools.pairwise(path)
        if getattr(above, "name", None) == "inner_states" and hasattr(below, "key")
    ]
    return GROUP + "/".join(labels) if labels else ""


def _placed(state: optax.OptState) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []

    def change(path: Path, node: Any) -> Any:
        found.append((path, node))
        return node

    _changed(state, change)
    return found


def _changed(state: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The state with `change(path, node)` for each transformation's own, outermost first.

    A node that `change` leaves as it is is gone into; but not a memory, which holds the user's
    trees, nor a controller, whose counters are its own.
    """
    if hasattr(state, "_fields") and not isinstance(state, optax.MaskedNode):
        new = change(path, state)
        if new is not state or remembers(state) or is_control(state):
            return new
    # One level at a time: whatever JAX takes for a node may hold states, a dataclass too.
    below, structure = jax.tree_util.tree_flatten_with_path(state, lambda x: x is not state)
    if jax.tree_util.treedef_is_leaf(structure):
        return state
    changed = [_changed(child, change, (*path, *keys)) for keys, child in below]
    return jax.tree.unflatten(structure, changed)
