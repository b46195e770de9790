"""The state of a training run: arrays only, in one tree."""

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jax_lrreg._check import require
from jax_lrreg._struct import pytree
from jax_lrreg.training.modules import adapt


@pytree
class State:
    """Everything that a step changes, and what it needs to go on exactly where it stopped.

    It holds arrays only, no optimizer and no function, so it can be donated, scanned, vmapped and
    saved as it is.

    Attributes:
        step: calls of the step so far, an int32: the position in the data. The optimizer's own counters
            are in `opt_state`, and stand still when an update is skipped.
        params: what is trained.
        opt_state: the state of the Optax transformation.
        model_state: everything else the module carries, such as batch statistics.
        key: a typed PRNG key; step `t` uses `jax.random.fold_in(key, t)`.
        ema: moving average of the parameters, or None.
        hyper: hyperparameters as data (schedules, penalties, numbers), or None.
        loss_scale: of float16, for a step made with `loss_scale=`, or None.
    """

    _: KW_ONLY
    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    key: jax.Array
    ema: Any = None
    hyper: Any = None
    loss_scale: Any = None

    def replace(self, **changes: Any) -> "State":
        """A state with other values in the named fields; the other fields are shared with this one.

        The new arrays are copied, so that nothing that others hold is ever donated. Numbers in `hyper` take the
        type of those they replace, so an edit in the middle of a run compiles nothing anew.

        Example:
            >>> state = init(lambda p, x: p * x, optax.sgd, key=jax.random.key(0), params=1.0, hyper=0.1)
            >>> state.replace(hyper=1).hyper
            Array(1., dtype=float32)
        """
        if "hyper" in changes and jax.tree.structure(changes["hyper"]) == jax.tree.structure(
            self.hyper
        ):
            changes["hyper"] = jax.tree.map(_in_place_of, changes["hyper"], self.hyper)
        for name in changes.keys() - {"hyper"}:
            # What this field holds already is this state's own: only what is new is copied.
            own = {id(leaf) for leaf in jax.tree.leaves(getattr(self, name, None))}
            changes[name] = jax.tree.map(lambda x: x if id(x) in own else _copied(x), changes[name])  # noqa: B023
        return dataclasses.replace(self, **changes)

    def copy(self) -> "State":
        """A state that shares no array with this one: to keep it, or to go on from it twice.

        Example:
            >>> state = init(lambda p, x: p * x, optax.sgd(0.1), key=jax.random.key(0), params=1.0)
            >>> state.copy().params is state.params
            False
        """
        return jax.tree.map(_copied, self)


def init(
    module: Any,
    tx: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation],
    *,
    key: jax.Array,
    example: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    params: Any = None,
    hyper: Any = None,
    sharding: Any = None,
) -> State:
    """The state at step 0 of training `module` with `tx`.

    Args:
        module: a Linen module, an NNX module, or a function `apply(params, *args, **kwargs)`.
        tx: an Optax transformation, or a function `hyper -> tx`.
        key: a typed PRNG key, from `jax.random.key`.
        example: for Linen, an input to the module, or a tuple of its positional inputs.
        example_kwargs: for Linen, keyword inputs to the module, such as `{"train": True}`.
        params: for a function, its parameters; for a Linen module, parameters to start from.
        hyper: hyperparameters that are kept as arrays in the state and given to `tx`.
        sharding: a sharding for all of the state, or a function `state -> tree of shardings`.

    Returns:
        A `State` whose arrays are copies, so that nothing it shares with others is ever donated.

    Example:
        >>> state = init(lambda params, x: x @ params, optax.sgd(0.1), key=jax.random.key(0), params=jnp.ones(3))
        >>> state.params.shape, int(state.step)
        ((3,), 0)
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    require(typed, "init", "key", key, "a typed PRNG key, as from jax.random.key(0)")
    hyper = jax.tree.map(_copied, hyper)
    if example is not None:
        example = (
            example if isinstance(example, tuple) else (example,),
            dict(example_kwargs or {}),
        )
    params, model_state = adapt(module).init(jax.random.fold_in(key, 0), example, params)
    params = jax.tree.map(_copied, params)
    # What the optimizer starts from may be the parameters themselves.
    opt_state, model_state, key = jax.tree.map(
        _copied, (resolve(tx, hyper, "tx").init(params), model_state, key)
    )
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        model_state=model_state,
        key=key,
        hyper=hyper,
    )
    if sharding is None:
        return state
    return jax.device_put(state, sharding(state) if callable(sharding) else sharding)


def merge(module: Any, state: State) -> Any:
    """The trained model: Linen's variables, the NNX module with its trained values, a function's parameters.

    The arrays are copies, so they outlive a later donation of the state.

    Example:
        >>> apply = lambda params, x: x @ params
        >>> print(merge(apply, init(apply, optax.sgd(0.1), key=jax.random.key(0), params=jnp.ones(3))))
        [1. 1. 1.]
    """
    copy = jax.tree.map(jnp.copy, (state.params, state.model_state))
    return adapt(module).merge(*copy)


def resolve(value: Any, hyper: Any, argument: str) -> Any:
    """An Optax transformation as it is; a function `hyper -> tx` called with the hyperparameters."""
    if isinstance(value, optax.GradientTransformation):
        return optax.with_extra_args_support(value)
    if isinstance(value, optax.MultiSteps):
        raise TypeError(
            f"{argument} must be an Optax transformation, got an optax.MultiSteps: use transforms.mean_value, "
            "or its own gradient_transformation(), which keeps the loss from the optimizer inside"
        )
    if not callable(value):
        raise TypeError(
            f"{argument} must be an Optax transformation or a function hyper -> tx, got {value!r}"
        )
    allowed = f"{argument} must be a function hyper -> Optax transformation"
    return optax.with_extra_args_support(
        of_hyper(value, hyper, optax.GradientTransformation, argument, allowed)
    )


def of_hyper(
    function: Callable[[Any], Any], hyper: Any, kind: type, argument: str, allowed: str
) -> Any:
    """What the function of an argument makes of the hyperparameters, which must be there, and it of this kind."""
    require(
        hyper is not None,
        "init",
        "hyper",
        hyper,
        f"given, because `{argument}` is a function of it",
    )
    made = function(hyper)
    if not isinstance(made, kind):
        raise TypeError(f"{allowed}, but returned {made!r}")
    return made


def _copied(value: Any) -> Any:
    """A copy of an array or number, of a definite dtype: a weak one would change type at the first update.

    What is traced, and what is no number (a shape, a sharding), stays as it is.
    """
    if isinstance(value, Tracer) or not isinstance(
        value, jax.Array | np.ndarray | np.generic | float | int | complex
    ):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return jnp.copy(value)
    return jnp.array(value, jnp.asarray(value).dtype)


def _in_place_of(value: Any, old: Any) -> Any:
    """A copy of `value` in the dtype and the place of `old`."""
    if not isinstance(old, jax.Array) or jnp.issubdtype(old.dtype, jax.dtypes.extended):
        return _copied(value)
    whole = jnp.issubdtype(old.dtype, jnp.integer)
    fits = not whole or jnp.issubdtype(jnp.result_type(value), jnp.integer)
    require(
        fits, "State.replace", "hyper", value, f"a whole number where it was one, as {old.dtype} is"
    )
    if isinstance(value, Tracer) or isinstance(old, Tracer):
        return jnp.asarray(value, old.dtype)
    copy = jnp.array(value, old.dtype)
    return jax.device_put(copy, old.sharding) if old.committed and copy.shape == old.shape else copy
