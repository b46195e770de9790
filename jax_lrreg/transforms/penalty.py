"""A penalty as an Optax gradient transformation, and the ways in which weight decay is decoupled.

Complex parameters: Optax follows updates as they are, so gradients of `jax.grad` have to be
    conjugated before they go into a chain. Each transformation here takes updates of that kind, and
    adds the conjugate of `penalty.gradient`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, widened
from jax_lrreg._check import require, require_number
from jax_lrreg._optax_state import Tree
from jax_lrreg.penalties import ArrayPenalty, Penalty
from jax_lrreg.penalties.norms import norm
from jax_lrreg.transforms.learning_rate import require_one, schedule_of_one

Change: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class AddPenaltyState(NamedTuple("AddPenaltyState", [("count", jax.Array | None)])):
    """How many updates have been made, so that a strength may become a schedule later."""


def add_penalty(penalty: Penalty) -> optax.GradientTransformation:
    """Adds the gradient of a penalty to the updates.

        update <- update + gradient of penalty(params)

    Before the preconditioner it is coupled, as in PyTorch's `Adam(weight_decay)`; after it and
    before the learning rate it is decoupled, as in AdamW. With `L2SP` it decays toward a reference.
    For complex parameters it is the direction of steepest ascent that is added, the conjugate of
    JAX's gradient, as `optax.chain` needs it: conjugate the gradient of the loss too before it gets
    here. Parameters in bfloat16 stand still under a decay of less than about 0.2 % a step, since
    the sum rounds back: see `master_weights`.

    Args:
        penalty: its strengths may be schedules of the number of updates made so far.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2
        (arXiv:1711.05101).

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> tx = optax.chain(add_penalty(L2(0.1)), optax.sgd(1.0))
        >>> params = {"kernel": jnp.array([2.0])}
        >>> print(tx.update({"kernel": jnp.array([0.5])}, tx.init(params), params)[0]["kernel"])
        [-0.7]
    """
    return _adding("add_penalty", penalty, lambda update, gradient, _: update + gradient)


def add_penalty_and_clip(penalty: Penalty, max_norm: chex.Numeric) -> optax.GradientTransformation:
    """Adds the gradient of a penalty and clips the sum by its norm, without storing the sum.

        total = update + gradient of penalty(params)
        update <- total min(1, max_norm / |total|)

    The same as `add_penalty` before `optax.clip_by_global_norm`, up to rounding, but faster where
    memory is the limit: on a CPU, XLA writes that sum and its quotient by the norm to memory, where
    this reads `params` again.

    Args:
        penalty: as in `add_penalty`.
        max_norm: the largest norm, over all parameters together; positive.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013,
        algorithm 1.

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> params, tx = jnp.array([20.0, 30.0]), add_penalty_and_clip(L2(0.1), max_norm=1.0)
        >>> print(tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)[0])
        [0.6 0.8]
    """
    allowed, name = "a positive number", "add_penalty_and_clip"
    require_number(name, "max_norm", max_norm, allowed, lambda x: x > 0)
    require_one(name, "max_norm", max_norm)
    adding = _adding(name, penalty, lambda update, gradient, _: update + gradient)

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        total, after = adding.update(updates, state, params)
        # One sum for two uses would be stored, since the library that sums squares on a CPU takes
        # stored arrays only; behind the barrier the norm has a sum of its own, of which one array
        # at a time is alive: 0.6 times the time of Optax's chain without a penalty, where memory is
        # the limit.
        apart = jax.lax.optimization_barrier((updates, state, params))

        def norm_by(one: Callable[[jax.Array], jax.Array]) -> jax.Array:
            again = [x for x in jax.tree.leaves(adding.update(*apart)[0]) if is_parameter(x)]
            return one(jnp.stack([one(widened(x)) for x in again])) if again else jnp.zeros(())

        # Squares overflow beyond 1.8e19; dividing by the largest first takes one more pass.
        plain = norm_by(lambda x: jnp.sqrt(jnp.sum(jnp.real(x * jnp.conj(x)))))
        size = jax.lax.cond(jnp.isfinite(plain), lambda: plain, lambda: norm_by(norm))
        scale = jnp.where(size < max_norm, 1, max_norm / size)

        def clip(value: jax.Array) -> jax.Array:
            return (value * scale).astype(value.dtype) if is_parameter(value) else value

        return jax.tree.map(clip, total), after

    return optax.GradientTransformation(adding.init, update)


def add_cautious_penalty(penalty: Penalty) -> optax.GradientTransformation:
    """Adds the gradient of a penalty where it points the way the update goes already.

        update <- update + gradient    where update * gradient > 0, else update

    For complex parameters, where the real part of `update * conj(gradient)` is positive. Its place
    is after the preconditioner and before the learning rate, where updates still point uphill.

    Args:
        penalty: as in `add_penalty`.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Chen et al., Cautious weight decay, 2025 (arXiv:2510.12402).

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> params, tx = jnp.array([2.0, 2.0]), add_cautious_penalty(L2(0.1))
        >>> print(tx.update(jnp.array([1.0, -1.0]), tx.init(params), params)[0])
        [ 1.2 -1. ]
    """

    def change(update: jax.Array, gradient: jax.Array, count: jax.Array) -> jax.Array:
        del count
        return jnp.where(jnp.real(update * jnp.conj(gradient)) > 0, update + gradient, update)

    return _adding("add_cautious_penalty", penalty, change)


def add_corrected_penalty(
    penalty: Penalty, learning_rate: optax.ScalarOrSchedule, *, peak_value: chex.Numeric
) -> optax.GradientTransformation:
    """Adds a penalty's gradient in proportion to the rate, as AdamC does before normalization.

        update <- update + learning_rate(count) / peak_value * gradient

    Its place is after the preconditioner and before the learning rate, so that the decay in one
    step is learning_rate^2 / peak_value * strength.

    Args:
        penalty: as in `add_penalty`; choose the layers that a normalization follows.
        learning_rate: the schedule of the optimizer.
        peak_value: its largest value; positive.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Defazio, Why gradients rapidly increase near the end of training, 2025 (arXiv:2506.02285).

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> from jax_lrreg.schedules import Constant
        >>> tx = add_corrected_penalty(L2(0.1), Constant(0.5), peak_value=1.0)
        >>> params = jnp.array([2.0])
        >>> print(tx.update(jnp.array([1.0]), tx.init(params), params)[0])
        [1.1]
    """
    name = "add_corrected_penalty"
    schedule = schedule_of_one(name, "learning_rate", learning_rate)
    require_number(name, "peak_value", peak_value, "a number > 0", lambda x: x > 0)
    require_one(name, "peak_value", peak_value)

    def change(update: jax.Array, gradient: jax.Array, count: jax.Array) -> jax.Array:
        return update + schedule(count) / peak_value * gradient

    return _adding(name, penalty, change)


def add_independent_penalty(
    penalty: Penalty, schedule: optax.ScalarOrSchedule = 1.0
) -> optax.GradientTransformation:
    """Takes a step down the gradient of a penalty that does not depend on the learning rate.

        update <- update - schedule(count) * gradient

    Its place is after the learning rate, where updates point downhill. `L2(decay)` shrinks the
    parameters by the factor `1 - decay * schedule(count)`.

    Args:
        penalty: as in `add_penalty`.
        schedule: a number or schedule, usually from 1 down to 0 like the learning rate's shape.

    Returns:
        An Optax transformation whose `update` needs `params`.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, eta_t of algorithm 2
        (arXiv:1711.05101).

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> params, tx = jnp.array([2.0]), add_independent_penalty(L2(0.1))
        >>> print(tx.update(jnp.array([0.0]), tx.init(params), params)[0])
        [-0.2]
    """
    name = "add_independent_penalty"
    factor = schedule_of_one(name, "schedule", schedule)
    return _adding(name, penalty, lambda update, uphill, count: update - factor(count) * uphill)


def require_finite(owner: str, penalty: Penalty) -> None:
    """Refuses a penalty with an infinite part: inside its set the gradient says nothing."""

    def is_infinite(part: object) -> bool:
        return isinstance(part, ArrayPenalty) and type(part)._cost is not ArrayPenalty._cost

    allowed = "finite: what holds parameters within bounds is a prox, for transforms.proximal"
    for part in jax.tree.leaves(penalty, is_leaf=is_infinite):
        require(not is_infinite(part), owner, "penalty", part, allowed)


def _adding(name: str, penalty: Penalty, change: Change) -> optax.GradientTransformation:
    """A transformation that changes updates given the penalty's gradient and the count."""
    if not isinstance(penalty, Penalty):
        raise TypeError(f"{name}: `penalty` must be a Penalty, got {penalty!r}")
    require_finite(name, penalty)

    def init(params: Tree) -> Tree:
        count = jnp.zeros((), jnp.int32)
        # A pattern that matches nothing, or a strength that does not fit, is found now and not
        # after an hour of data.
        jax.eval_shape(penalty.gradient, params, count)
        return AddPenaltyState(count)

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        if params is None:
            raise ValueError(f"{name}: `params` must be given to `update`, got None")
        if (
            state.count is None
        ):  # what the optimizer makes of a gradient alone is asked: see `metric`
            return updates, state
        gradients = penalty.gradient(params, state.count)

        def one(update: jax.Array, gradient: jax.Array) -> jax.Array:
            if not is_parameter(update):
                return update
            uphill = jnp.conj(gradient)  # JAX's own is conjugated
            return change(update, uphill, state.count).astype(update.dtype)

        # Optax takes None for no gradient.
        changed = jax.tree.map(one, updates, gradients, is_leaf=lambda x: x is None)
        return changed, AddPenaltyState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(init, update)
