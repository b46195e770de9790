"""A learning rate driven by the loss, or by the gradient: controllers as Optax transformations."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter, widened
from jax_lrreg._check import require
from jax_lrreg._optax_state import Tree
from jax_lrreg.schedules import Controller, HypergradientDescent
from jax_lrreg.transforms.learning_rate import require_one


class ScaleByControllerState(NamedTuple):
    """The state of `scale_by_controller`, scalars all.

    Attributes:
        controller: the state of the controller.
        scale: what the latest update was multiplied by.
        metric: a metric that `training.fit(control_on=)` has left for the next update.
        waiting: whether there is one.
        external: whether the controller hears these only, and not `value=`.
    """

    controller: Any
    scale: jax.Array
    metric: jax.Array
    waiting: jax.Array
    external: jax.Array


def scale_by_controller(controller: Controller) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by the scale of a controller, which hears the loss of each update.

        state <- controller.update(state, value)
        update <- controller.scale(state) update

    In this order, as in Optax: a cut that a loss brings about is in force in that loss's own
        update. It goes behind a learning rate of any kind, constant or scheduled, which it
        multiplies. Under `optax.masked` and `optax.partition` each group of parameters has a
        controller of its own. The loss is the `value=` of `update`, which `training.make_step`
        gives: under `accumulate=` the mean over the micro-batches. `optax.MultiSteps` would pass on
        that of the last one: see `mean_value`. With `training.fit(control_on=)` an evaluation
        metric takes the place of the loss.

    Args:
        controller: such as `schedules.ReduceOnPlateau`.

    Returns:
        An Optax transformation whose `update` needs `value=`, a real scalar.

    Example:
        >>> from jax_lrreg.schedules import ReduceOnPlateau
        >>> tx = optax.chain(optax.sgd(1.0), scale_by_controller(ReduceOnPlateau(0.1, patience=0)))
        >>> state, gradient = tx.init(jnp.zeros(1)), jnp.ones(1)
        >>> for loss in (3.0, 2.0, 2.0):
        ...     update, state = tx.update(gradient, state, value=loss)
        >>> print(update)
        [-0.1]
    """
    name, allowed = "scale_by_controller", "a controller"
    if isinstance(controller, HypergradientDescent):
        allowed += " that a metric drives; by the gradient it is transforms.hypergradient_descent"
    fits = isinstance(controller, Controller) and not isinstance(controller, HypergradientDescent)
    require(fits, name, "controller", controller, allowed, error=TypeError)

    def init(params: Tree) -> ScaleByControllerState:
        del params
        state, no = controller.init(), jnp.zeros((), bool)
        zero = jnp.zeros((), jnp.float32)
        return ScaleByControllerState(state, _scale(controller, state), zero, no, no)

    def update(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value: chex.Numeric | None = None,
        **extra: object,
    ) -> tuple[Tree, ScaleByControllerState]:
        del params, extra
        loss = _loss(name, value)
        metric = jnp.where(state.external, state.metric, loss)
        # Both branches at every update, and one is kept: the state has one form whether an
        # evaluation or the loss is heard, so that `control_on` compiles nothing anew.
        heard: Any = ~state.external | state.waiting
        new = controller.update(state.controller, metric)
        new = jax.tree.map(lambda x, old: jnp.where(heard, x, old), new, state.controller)
        scale, waiting = _scale(controller, new), state.waiting & ~state.external
        state = state._replace(controller=new, scale=scale, waiting=waiting)
        return _scaled(updates, scale), state

    return optax.GradientTransformationExtraArgs(init, update)


class MeanValueState(NamedTuple):
    """The state of `optax.MultiSteps`, and the sum of the losses of its window so far."""

    multi_steps: Any
    total: jax.Array


def mean_value(tx: optax.MultiSteps) -> optax.GradientTransformationExtraArgs:
    """`optax.MultiSteps` whose optimizer hears the mean loss of the window, not its last.

    `optax.MultiSteps` hands `value=` on as it comes, so that an optimizer inside sees the loss of
    the last micro-batch of each window only; and its `gradient_transformation()` drops it
    altogether. A micro-batch that its `should_skip_update_fn` rejects is left out of the mean.

    Args:
        tx: an `optax.MultiSteps`.

    Returns:
        An Optax transformation whose `update` needs `value=`.

    Example:
        >>> from jax_lrreg.schedules import ReduceOnPlateau
        >>> plateau = scale_by_controller(ReduceOnPlateau(0.1, patience=0))
        >>> tx = mean_value(optax.MultiSteps(optax.chain(optax.sgd(1.0), plateau), 2))
        >>> state, gradient = tx.init(jnp.zeros(1)), jnp.ones(1)
        >>> for loss in (7.0, 1.0, 5.0, 1.0):  # the means are 4 and 3: still falling
        ...     update, state = tx.update(gradient, state, jnp.zeros(1), value=loss)
        >>> print(update)
        [-1.]
    """
    # `gradient_transformation()` is bound to one: take that too, before it drops the loss.
    windows = getattr(getattr(tx, "update", None), "__self__", None)
    if not isinstance(windows, optax.MultiSteps):
        raise TypeError(f"mean_value: `tx` must be an optax.MultiSteps, got {tx!r}")

    def init(params: Tree) -> MeanValueState:
        return MeanValueState(windows.init(params), jnp.zeros((), jnp.float32))

    def update(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        value: chex.Numeric | None = None,
        **extra: object,
    ) -> tuple[Tree, MeanValueState]:
        loss, before = _loss("mean_value", value), state.multi_steps
        # The running mean at each micro-batch: only at the last of a window does the optimizer
        # inside look, and by then it is the mean of all.
        total = jnp.where(before.mini_step == 0, 0.0, state.total) + loss
        mean = total / (before.mini_step + 1)
        updates, after = windows.update(updates, before, params, value=mean, **extra)
        counted = lambda x: (x.mini_step, x.gradient_step)  # noqa: E731
        (micro, window), (micro_before, window_before) = counted(after), counted(before)
        # A rejected micro-batch moves neither count, and an accepted one always moves one of them.
        rejected = (micro == micro_before) & (window == window_before)
        return updates, MeanValueState(after, jnp.where(rejected, state.total, total))

    return optax.GradientTransformationExtraArgs(init, update)


class HypergradientDescentControl(NamedTuple):
    """The controller's state in `hypergradient_descent`, and the latest update's factor."""

    controller: Any
    scale: jax.Array


class HypergradientDescentState(NamedTuple):
    """The state of `hypergradient_descent`.

    Attributes:
        inner_state: of the optimizer.
        control: of the controller.
        previous: the optimizer's latest update, before it was scaled.
    """

    inner_state: Any
    control: HypergradientDescentControl
    previous: Any


def hypergradient_descent(
    inner: optax.GradientTransformation, controller: HypergradientDescent
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that learns the scale of its learning rate by gradient descent.

        scale <- controller rule(gradient, previous update)
        update <- scale inner(gradient)

    The derivative of the loss by the scale is the product of the gradient with the previous update,
    for any optimizer inside. So it goes around the whole of it, learning rate included, and inside
    `optax.MultiSteps`, `optax.masked` and `optax.partition`. It keeps one more copy of the
    parameters.

    Args:
        inner: an optimizer, its learning rate constant or scheduled.
        controller: the rule.

    Example:
        >>> from jax_lrreg.schedules import HypergradientDescent
        >>> tx = hypergradient_descent(optax.sgd(0.01), HypergradientDescent(0.1, init_scale=1.0))
        >>> x = jnp.ones(2)
        >>> state = tx.init(x)
        >>> for _ in range(40):
        ...     update, state = tx.update(x, state, x)  # the gradient of |x|^2 / 2 is x
        ...     x = optax.apply_updates(x, update)
        >>> print(f"{state.control.scale:.1f} {x[0]:.3f}")  # a fixed rate comes to 0.669
        41.1 0.006
    """
    name = "hypergradient_descent"
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{name}: `inner` must be an Optax transformation, got {inner!r}")
    allowed = "a schedules.HypergradientDescent"
    fits = isinstance(controller, HypergradientDescent)
    require(fits, name, "controller", controller, allowed, error=TypeError)
    optimizer = optax.with_extra_args_support(inner)

    def init(params: Tree) -> HypergradientDescentState:
        state = controller.init()
        control = HypergradientDescentControl(state, _scale(controller, state))
        previous = optax.tree.zeros_like(params)
        return HypergradientDescentState(optimizer.init(params), control, previous)

    def update(
        updates: Tree, state: Tree, params: Tree = None, **extra: object
    ) -> tuple[Tree, HypergradientDescentState]:
        before = state.previous
        products = ((updates, before), (updates, updates), (before, before))
        metric = controller.agreement(*(_product(*pair) for pair in products))
        new = controller.update(state.control.controller, metric)
        control = HypergradientDescentControl(new, _scale(controller, new))
        steps, after = optimizer.update(updates, state.inner_state, params, **extra)
        # Before it is scaled: the derivative by the scale is of the update at scale 1.
        previous = jax.tree.map(lambda step, old: jnp.asarray(step, old.dtype), steps, before)
        return _scaled(steps, control.scale), HypergradientDescentState(after, control, previous)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale(controller: Controller, state: Tree) -> jax.Array:
    return jnp.asarray(controller.scale(state), jnp.float32)


def _scaled(updates: Tree, scale: jax.Array) -> Tree:
    """The updates times `scale`, in float32 at least: bfloat16 does not round the scale."""

    def times(update: jax.Array) -> jax.Array:
        if not is_parameter(update):
            return update
        return (widened(update) * scale).astype(jnp.result_type(update))

    return jax.tree.map(times, updates)


def _product(first: Tree, second: Tree) -> jax.Array:
    """The sum over all parameters of their products, in float32 at least."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    # A TPU would multiply in bfloat16, and the sign of a small product be that of its rounding.
    dot = partial(jnp.vdot, precision="highest")
    products = [dot(widened(a), widened(b)) for a, b in pairs if is_parameter(a)]
    zero = jnp.zeros((), jnp.float32)
    return sum((jnp.real(x).astype(jnp.float32) for x in products), start=zero)


def _loss(owner: str, value: chex.Numeric | None) -> jax.Array:
    if value is None:
        raise ValueError(
            f"{owner}: `value` must be given to `update`, got None. training.make_step gives the "
            "loss; optax.MultiSteps(...).gradient_transformation() drops it: wrap the MultiSteps "
            "in transforms.mean_value"
        )
    require_one(owner, "value", value)
    return jnp.asarray(value, jnp.float32)
