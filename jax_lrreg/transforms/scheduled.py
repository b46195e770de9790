"""Any number of an Optax transformation as a schedule: momentum against the rate, say."""

import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import nearest, require
from jax_lrreg.schedules import Schedule


class ScheduledState(NamedTuple):
    """The state of `scheduled`.

    Attributes:
        count: how many updates have been made.
        hyperparams: by name, the numbers that the latest update was made with; before the first,
            those it will be.
        inner_state: of the transformation inside.
    """

    count: jax.Array
    hyperparams: dict[str, jax.Array]
    inner_state: optax.OptState


def scheduled(
    factory: Callable[..., optax.GradientTransformation],
    **arguments: chex.Numeric | Callable | str | None,
) -> optax.GradientTransformationExtraArgs:
    """`factory(**arguments)`, in which any number may be a schedule of the number of updates.

        update <- factory(name=schedule(count), ...) update

    Unlike `optax.inject_hyperparams` it refuses a name that the factory does not have, and takes
    its numbers from the schedules as they are at each update: those of `hyper`, changed in the
    middle of a run, are in force at the next, and nothing is compiled anew. What is neither a
    number nor a schedule (a mask, a dtype, a flag) goes through as it is.

    Args:
        factory: of an Optax transformation, such as `optax.scale_by_adam`.
        arguments: its arguments, all by name; numbers, schedules, or functions of the count where
            the factory expects a number.

    Returns:
        An Optax transformation, whose state records the numbers applied.

    Raises:
        ValueError: the factory has no argument of a name.
        TypeError: it lacks one that it needs, or gets a text or a flag where it takes a float.

    Example:
        >>> from jax_lrreg.schedules import Linear
        >>> momentum = Linear(0.9, steps=2, end_value=0.5)
        >>> tx = scheduled(optax.sgd, learning_rate=0.1, momentum=momentum)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     update, state = tx.update(jnp.ones(1), state)
        >>> print(update, state.hyperparams["momentum"])
        [-0.17] 0.7
    """
    allowed = "a function that makes a transformation, such as optax.sgd"
    made = isinstance(factory, optax.GradientTransformation) or not callable(factory)
    require(not made, "scheduled", "factory", factory, allowed, error=TypeError)
    make: Any = factory  # what is not a function has been refused
    signature = inspect.signature(make)
    which, known = getattr(factory, "__name__", repr(factory)), signature.parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name in arguments:
        if name not in known and not free:
            near = [*nearest(name, known), *known][0]
            raise ValueError(
                f"scheduled: `{name}` must be an argument of {which}, which has "
                f"{', '.join(known)}; did you mean {near!r}?"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TypeError(f"scheduled: {which} has {error}") from None
    numbers = {
        name: value for name, value in arguments.items() if _varies(name, value, known.get(name))
    }
    fixed = {name: value for name, value in arguments.items() if name not in numbers}

    def at(count: jax.Array) -> tuple[dict[str, jax.Array], optax.GradientTransformationExtraArgs]:
        values = {name: x(count) if callable(x) else x for name, x in numbers.items()}
        # A rate written as 1 is the float: in a state, or a sweep, it may become 0.5.
        now = {n: jnp.asarray(float(x) if isinstance(x, int) else x) for n, x in values.items()}
        return now, optax.with_extra_args_support(make(**fixed, **now))

    def init(params: optax.Params) -> ScheduledState:
        count = jnp.zeros((), jnp.int32)
        now, inner = at(count)
        return ScheduledState(count, now, inner.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, ScheduledState]:
        now, inner = at(state.count)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, ScheduledState(count, now, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _varies(name: str, value: object, parameter: inspect.Parameter | None) -> bool:
    """Whether an argument is a number that may change, or a schedule of one.

    A whole number is a size, as of a memory, and a function may be a mask, but not where the
    factory says that it takes a float.
    """
    if isinstance(value, float | np.floating | jax.Array | Schedule):
        return True
    if parameter is None:
        return False
    default, kinds = parameter.default, typing.get_args(parameter.annotation)
    number = isinstance(default, float) or float in (parameter.annotation, *kinds)
    bare = default is inspect.Parameter.empty and not kinds  # a factory of one's own
    if callable(value) and not isinstance(value, type):
        return number or bare
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    wrong = isinstance(default, float) and not whole and value is not None
    require(not wrong, "scheduled", name, value, "a number or a schedule", error=TypeError)
    return number and whole
