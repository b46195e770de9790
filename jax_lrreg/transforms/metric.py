"""How far an optimizer moves each parameter for a unit of gradient: its prox's metric.

The optimizers that are known divide a sum of past gradients by the root of a second moment. So at a
fixed second moment their update is linear in the gradients, and what a small gradient that never
changes is multiplied by is the step size. The optimizer itself is asked, by one more update of
arrays that hold one number each, so that nothing has to be known of its constants, and schedules,
masks, groups and traced numbers take part as they are. What has to be known is where its state
keeps what: see `_optax_state`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, leaves, path_of, widened
from jax_lrreg._check import require_number
from jax_lrreg._optax_state import (
    CENTERED,
    CORRECTED,
    SECOND_MOMENTS,
    Path,
    Tree,
    memories,
    nodes,
    remembered,
    sums,
    with_memories,
    without_penalties,
)
from jax_lrreg._struct import pytree

Optimizer: TypeAlias = optax.GradientTransformationExtraArgs

LATE = 2**30  # a number of updates after which no mean is corrected any more for its start from 0
# A gradient whose square is 0 in float32, and nothing beside any eps in float64, so that it leaves
# second moments as they are. A power of two: dividing by it rounds nothing.
UNIT = 2.0**-76


@pytree
class Metric:
    """The constants of an optimizer's step size, for `proximal(..., metric=)`.

        step size = learning_rate / (1 - momentum) / (sqrt(v / (1 - b2^t) + eps_root) + eps)

    where v is the second moment in the optimizer's state after t updates; without one, as in SGD,
    the denominator is 1.

    Attributes:
        b2: decay of v, in [0, 1), for the correction of its start from 0; None where the optimizer
            makes none.
        eps: added to the square root; >= 0.
        eps_root: added inside it; >= 0.
        momentum: decay of a sum of past updates (heavy ball, Nesterov), in [0, 1).
        lag: the same decay where that sum holds updates already multiplied by the learning rate, as
            in `optax.rmsprop(momentum=)`: what counts is then the mean of the step sizes that went
            into it.

    Example:
        >>> Metric(b2=0.999, eps=1e-8)  # Adam
        Metric(0.999, eps=1e-08)
    """

    b2: chex.Numeric | None = None
    eps: chex.Numeric = 0.0
    eps_root: chex.Numeric = 0.0
    momentum: chex.Numeric = 0.0
    lag: chex.Numeric = 0.0

    def __post_init__(self):
        for name in ("eps", "eps_root"):
            require_number(self, name, getattr(self, name), "a number >= 0", lambda x: x >= 0)
        for name in ("b2", "momentum", "lag"):
            value, allowed = getattr(self, name), "a number in [0, 1)"
            if value is not None:
                require_number(self, name, value, allowed, lambda x: (x >= 0) & (x < 1))

    def __call__(self, state: optax.OptState, learning_rate: chex.Numeric) -> Tree:
        """The step sizes, a scalar or a tree like the parameters, from a state after its update."""
        rate = learning_rate / (1 - self.momentum)
        held = [node for node in nodes(state) if type(node).__name__ in SECOND_MOMENTS]
        if not held:
            return rate
        seconds = _second_moments(held[0], self.b2)

        def size(v: jax.Array) -> chex.Numeric:
            return rate / (jnp.sqrt(jnp.maximum(v, 0) + self.eps_root) + self.eps)

        return jax.tree.map(size, seconds)


class Decay(NamedTuple):
    """How a memory goes on without a gradient: `decay * memory + floor`, a mean `mean * itself`."""

    decay: chex.Numeric
    floor: chex.Numeric
    mean: chex.Numeric


class Held(NamedTuple):
    """A gradient, the means of past ones, and each memory's sums of updates, in a unit."""

    gradient: chex.Numeric
    mean: chex.Numeric
    sums: Sequence[Any]


def decays(inner: Optimizer, params: Tree, extra: Mapping[str, object]) -> list[Decay]:
    """How each memory of `inner` decays, found by updates of a few `params` without a gradient."""
    before = inner.init(params)
    least = 2.0**-40  # so small that AdaBelief's floor of 1e-16 is seen beside it

    def after(x: jax.Array, trace: jax.Array) -> list[Any]:
        new = [placed(node, mean=x, second=least + x, trace=trace) for node in memories(before)]
        _, state = inner.update(filled(params, 0), with_memories(before, new), params, **extra)
        return memories(state)

    # One at a time: moments are sent on to a trace behind them.
    values, moments = jax.jvp(after, (0.0, 0.0), (1.0, 0.0))
    _, traces = jax.jvp(after, (0.0, 0.0), (0.0, 1.0))
    found = []
    for value, moment, trace in zip(values, moments, traces, strict=True):
        decay = _first(remembered(trace if sums(value) else moment))
        floor = jnp.maximum(_first(remembered(value)) - decay * least, 0)
        mean = _first(getattr(moment, "mu", None))
        found.append(Decay(decay, floor, mean))
    return found


def step_sizes(
    inner: Optimizer,
    like: Tree,
    states: tuple[optax.OptState, optax.OptState],
    sent: Sequence[Tree],
    decaying: Sequence[Decay],
    extra: Mapping[str, object],
    unit: chex.Numeric = UNIT,
) -> tuple[Tree, list[Any]]:
    """How far each parameter moves in an update for a unit of gradient, held for long.

    Args:
        inner: the optimizer.
        like: a tree of the structure and shapes of the gradients.
        states: before the update and after it.
        sent: for each memory that sums updates divided or multiplied by a rate already, what a unit
            of gradient has added up to in it so far; None for the others.
        decaying: the `decays` of `inner`.
        extra: the other arguments of that update, such as `value`.
        unit: the gradient that is tried.

    Returns:
        The step sizes, in a tree like the parameters, and `sent` after the update.
    """
    after = memories(states[1])
    # A sum of gradients alone has come to its end: 1 + decay + decay^2 + ...
    given = [
        1 / (1 - decay.decay) if own is None and sums(node) else own
        for node, decay, own in zip(after, decaying, sent, strict=True)
    ]
    moved, left = response(inner, Held(1, 1, given), like, states, decaying, extra, unit)
    pairs = zip(sent, left, strict=True)
    sent = [None if own is None else scaled(node.trace, 1 / unit) for own, node in pairs]
    paths = _uneven(after, sent)
    by_entry = any(type(node).__name__ == "ScaleByRulesState" for node in nodes(states[0]))

    def size(keys: Path, update: jax.Array) -> jax.Array:
        if not is_parameter(update):
            return jnp.zeros(())
        # One number where all entries move alike, as with SGD: some penalties have a prox only
        # then.
        alike = update.size and not by_entry and path_of(keys) not in paths
        return -jnp.real(update.ravel()[0] if alike else update) / unit

    return jax.tree_util.tree_map_with_path(size, moved), sent


def _uneven(memories: Sequence[Any], sent: Sequence[Tree]) -> set[str]:
    """The paths of parameters whose entries may move by different step sizes."""
    # All but plain momentum: a second moment differs from entry to entry, and so does what is
    # summed after it was divided by one.
    pairs = zip(memories, sent, strict=True)
    several = [node for node, own in pairs if own is not None or not sums(node)]
    return {leaf.path for node in several for leaf in leaves(remembered(node))}


def response(
    inner: Optimizer,
    held: Held,
    like: Tree,
    states: tuple[optax.OptState, optax.OptState],
    decaying: Sequence[Decay],
    extra: Mapping[str, object],
    unit: chex.Numeric,
) -> tuple[Tree, list[Any]]:
    """The update that `inner` makes of `unit` times what is `held`, and its memories after.

    It is made at the second moments after an update, at parameters of 0, with no penalty added, and
    with all else as it was before.
    """
    before, after = states
    # The update lets a second moment decay before it is used; so what goes in is what comes out as
    # it should.
    seconds = [_undone(node, decay) for node, decay in zip(memories(after), decaying, strict=True)]
    new = [
        placed(node, mean=held.mean * unit, second=second, trace=scaled(total, unit))
        for node, second, total in zip(memories(before), seconds, held.sums, strict=True)
    ]
    state = with_memories(without_penalties(before), new)
    gradient = filled(like, held.gradient * unit)
    moved, left = inner.update(gradient, state, filled(like, 0), **extra)
    return moved, memories(left)


def placed(node: Any, *, mean: Tree, second: Tree, trace: Tree, count: int = LATE) -> Any:
    """A memory with other contents, each one a number for all parameters or a tree."""
    if sums(node):
        return node._replace(trace=filled(node.trace, trace))
    name = type(node).__name__
    # RMSProp centers by its mean, which is subtracted in `second` already. AMSGrad's own nu goes
    # into its largest.
    given = {"mu": 0 if name in CENTERED else mean, "nu": 0, SECOND_MOMENTS[name]: second}
    new = {
        field: filled(getattr(node, field), given[field]) for field in given if hasattr(node, field)
    }
    if "count" in node._fields:
        new["count"] = jnp.asarray(count, jnp.int32)
    return node._replace(**new)


def filled(tree: Tree, value: Tree) -> Any:
    """A tree of the same shapes that holds one number, or a `value` that is a tree, as it is."""
    if not jax.tree_util.all_leaves([value]):
        return value

    def one(leaf: jax.Array) -> jax.Array:
        if not is_parameter(leaf):
            return leaf
        return jnp.full(jnp.shape(leaf), value, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(one, tree)


def scaled(tree: Tree, factor: chex.Numeric) -> Any:
    """A number, or a tree of them, times a number."""
    return jax.tree.map(lambda x: x * factor, tree)


def _second_moments(node: Any, b2: chex.Numeric | None) -> Any:
    """What the optimizer divides by the root of: corrected for its start from 0, and centered."""
    correction = 1.0 if b2 is None else 1 - b2 ** jnp.asarray(node.count, jnp.float32)

    def one(v: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        # Beside a complex parameter Optax keeps v complex, without an imaginary part.
        v = jnp.real(widened(v)) / correction
        if mean is None:
            return v
        # In the order of Optax. Where the gradient hardly varies the difference is that of two
        # roundings, and in another order would be another.
        mean = mean / correction
        return v - jnp.real(jnp.conj(mean) * mean)

    means = (node.mu,) if type(node).__name__ in CENTERED else ()
    return jax.tree.map(one, remembered(node), *means)


def _undone(node: Any, decay: Decay) -> Any:
    """The second moments that one update without a gradient turns into those of `node`."""
    if sums(node):
        return None
    seconds = _second_moments(node, decay.decay if type(node).__name__ in CORRECTED else None)
    return jax.tree.map(lambda v: (v - decay.floor) / decay.decay, seconds)


def _first(tree: Tree) -> jax.Array:
    found = jax.tree.leaves(tree)
    return jnp.real(jnp.ravel(found[0])[0]) if found else jnp.zeros(())
