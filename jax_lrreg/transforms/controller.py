"""Controllers as Optax gradient transformations: a learning rate driven by the loss, or by the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import is_parameter
from jax_lrreg.schedules import Controller, HypergradientDescent


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
    update. It goes behind a learning rate of any kind, constant or scheduled, which it multiplies;
    under `optax.masked` and `optax.partition` each group of parameters has a controller of its own.
    The loss is the `value=` of `update`, which `training.make_step` gives: under `accumulate=` that
    is the mean over the micro-batches. `optax.MultiSteps` would pass on that of the last one: see
    `mean_value`. With `training.fit(control_on=)` an evaluation metric takes the place of the loss.

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
    if not isinstance(controller, Controller):
        raise TypeError(
            f"scale_by_controller: `controller` must be a controller, got {controller!r}"
        )
    if isinstance(controller, HypergradientDescent):
        raise TypeError(
            "scale_by_controller: `controller` must be driven by a metric; HypergradientDescent is driven by the gradient: "
            "write transforms.hypergradient_descent(optimizer, controller)"
        )

    def init(params: Any) -> ScaleByControllerState:
        del params
        state, no = controller.init(), jnp.zeros((), bool)
        return ScaleByControllerState(
            state, _scale(controller, state), jnp.zeros((), jnp.float32), no, no
        )

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **extra: Any
    ) -> tuple[Any, ScaleByControllerState]:
        del params, extra
        _require_value("scale_by_controller", value)
        metric = jnp.where(state.external, state.metric, jnp.asarray(value, jnp.float32))
        heard = ~state.external | state.waiting
        new = controller.update(state.controller, metric)
        new = jax.tree.map(
            lambda after, before: jnp.where(heard, after, before), new, state.controller
        )
        scale = _scale(controller, new)
        new = state._replace(controller=new, scale=scale, waiting=state.waiting & ~state.external)
        return _scaled(updates, scale), new

    return optax.GradientTransformationExtraArgs(init, update)


class MeanValueState(NamedTuple):
    """The state of `optax.MultiSteps`, and the sum of the losses of its window so far."""

    multi_steps: Any
    total: jax.Array


def mean_value(tx: Any) -> optax.GradientTransformationExtraArgs:
    """`optax.MultiSteps` whose optimizer is told the mean loss of the window, as it is given its mean gradient.

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
        >>> tx = mean_value(optax.MultiSteps(optax.chain(optax.sgd(1.0), plateau), every_k_schedule=2))
        >>> state, gradient = tx.init(jnp.zeros(1)), jnp.ones(1)
        >>> for loss in (7.0, 1.0, 5.0, 1.0):  # the means are 4 and 3: still falling
        ...     update, state = tx.update(gradient, state, jnp.zeros(1), value=loss)
        >>> print(update)
        [-1.]
    """
    multi_steps = getattr(getattr(tx, "update", None), "__self__", None)
    if not isinstance(multi_steps, optax.MultiSteps):
        raise TypeError(f"mean_value: `tx` must be an optax.MultiSteps, got {tx!r}")

    def init(params: Any) -> MeanValueState:
        return MeanValueState(multi_steps.init(params), jnp.zeros((), jnp.float32))

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **extra: Any
    ) -> tuple[Any, MeanValueState]:
        _require_value("mean_value", value)
        before = state.multi_steps
        total = jnp.where(before.mini_step == 0, 0.0, state.total) + jnp.asarray(value, jnp.float32)
        updates, after = multi_steps.update(
            updates, before, params, value=total / (before.mini_step + 1), **extra
        )
        rejected = (after.mini_step == before.mini_step) & (
            after.gradient_step == before.gradient_step
        )
        return updates, MeanValueState(after, jnp.where(rejected, state.total, total))

    return optax.GradientTransformationExtraArgs(init, update)


class HypergradientDescentControl(NamedTuple):
    """The state of the controller in `hypergradient_descent`, and what the latest update was multiplied by."""

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
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"hypergradient_descent: `inner` must be an Optax transformation, got {inner!r}"
        )
    if not isinstance(controller, HypergradientDescent):
        raise TypeError(
            f"hypergradient_descent: `controller` must be a schedules.HypergradientDescent, got {controller!r}"
        )
    optimizer = optax.with_extra_args_support(inner)

    def init(params: Any) -> HypergradientDescentState:
        state = controller.init()
        control = HypergradientDescentControl(state, _scale(controller, state))
        return HypergradientDescentState(
            optimizer.init(params), control, optax.tree.zeros_like(params)
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, HypergradientDescentState]:
        metric = controller.agreement(
            _product(updates, state.previous),
            _product(updates, updates),
            _product(state.previous, state.previous),
        )
        new = controller.update(state.control.controller, metric)
        scale = _scale(controller, new)
        steps, inner_state = optimizer.update(updates, state.inner_state, params, **extra)
        previous = jax.tree.map(
            lambda step, old: jnp.asarray(step, old.dtype), steps, state.previous
        )
        return _scaled(steps, scale), HypergradientDescentState(
            inner_state, HypergradientDescentControl(new, scale), previous
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scale(controller: Controller, state: Any) -> jax.Array:
    return jnp.asarray(controller.scale(state), jnp.float32)


def _scaled(updates: Any, scale: jax.Array) -> Any:
    """The updates times `scale`: reckoned in float32 at least, so that a bfloat16 update does not round the scale."""

    def times(update: Any) -> Any:
        if not is_parameter(update):
            return update
        update = jnp.asarray(update)
        return (update * scale.astype(jnp.promote_types(update.dtype, jnp.float32))).astype(
            update.dtype
        )

    return jax.tree.map(times, updates)


def _product(first: Any, second: Any) -> jax.Array:
    """The sum over all parameters of their products, in float32 at least."""

    def one(a: Any, b: Any) -> Any:
        if not is_parameter(a):
            return jnp.zeros((), jnp.float32)
        a, b = jnp.asarray(a), jnp.asarray(b)
        wide = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.real(jnp.vdot(a.astype(wide), b.astype(wide))).astype(jnp.float32)

    return sum(jax.tree.leaves(jax.tree.map(one, first, second)), start=jnp.zeros((), jnp.float32))


def _require_value(owner: str, value: Any) -> None:
    if value is None:
        raise ValueError(
            f"{owner}: `value` must be given to `update`, got None. training.make_step gives the loss; "
            "optax.MultiSteps(...).gradient_transformation() drops it: wrap the MultiSteps in transforms.mean_value"
        )
