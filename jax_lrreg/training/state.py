"""The state of a training run: arrays only, in one tree."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jax_lrreg._arrays import is_key, is_parameter, known, leaves, path_of
from jax_lrreg._check import nearest, require, require_choice
from jax_lrreg._optax_state import nodes, update_count
from jax_lrreg._struct import is_pytree, pytree
from jax_lrreg.averages import Average
from jax_lrreg.checkpoints.notes import Json
from jax_lrreg.text import from_dict, to_dict
from jax_lrreg.training import noise
from jax_lrreg.training.modules import ModelState, Module, adapter_of, register_with_flax
from jax_lrreg.training.noise import NoiseState
from jax_lrreg.training.precision import scale_of_rules, scaling_rules
from jax_lrreg.training.sharding import Placement, made_on, mesh_for
from jax_lrreg.training.spikes import SpikeState
from jax_lrreg.training.trainable import Trainable, carried_over, chosen

Hyper = Any  # schedules, penalties and numbers, in any tree
Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]
ADDED = ("average", "loss_scale", "spikes", "noise")  # what a step adds to a state from `init`


@pytree
class State:
    """Everything that a step changes, and what it needs to go on exactly where it stopped.

    It holds arrays only, no optimizer and no function, so it can be donated, scanned, vmapped and
    saved as it is; `flax.serialization.to_bytes` and `from_bytes` take it too.

    Attributes:
        step: calls of the step so far, an int32: the position in the data. The optimizer's own
            counters are in `opt_state`, and stand still when an update is skipped.
        params: what is trained.
        opt_state: the state of the Optax transformation.
        model_state: everything else the module carries, such as batch statistics.
        key: a typed PRNG key; step `t` uses `jax.random.fold_in(key, t)`.
        average: what the average of a step made with `average=` keeps, or None; see `averaged`.
        hyper: hyperparameters as data (schedules, penalties, numbers), or None.
        loss_scale: of float16, for a step made with `loss_scale=`, or None.
        spikes: the window of a step made with `on_spike=`, or None.
        noise: what the monitor "noise_scale" has found so far, or None.
        begun: where some parameters were thawed, how many updates the optimizer had made before the
            first of each trained one; else None.
        trainable: which parameters are trained, as structure; None for all. The others have no
            place in `opt_state`, `average` and `begun`.
        averaging: which average that is, as structure; its numbers are the step's.
    """

    _: dataclasses.KW_ONLY
    step: jax.Array
    params: optax.Params
    opt_state: optax.OptState
    model_state: ModelState
    key: chex.PRNGKey
    average: chex.ArrayTree | None = None
    hyper: Hyper | None = None
    loss_scale: Any = None
    spikes: SpikeState | None = None
    noise: NoiseState | None = None
    begun: optax.Params | None = None
    trainable: Trainable | None = None
    averaging: Average | None = None

    @property
    def trained(self) -> optax.Params:
        """The parameters that are trained: all, or those of `trainable` with the others masked."""
        return self.params if self.trainable is None else self.trainable.part(self.params)

    def whole(self, trained: optax.Params) -> optax.Params:
        """All parameters, with other values for those that are trained."""
        return trained if self.trainable is None else self.trainable.whole(trained, self.params)

    def replace(self, **changes: object) -> "State":
        """A state with other values in the named fields; the other fields are shared with this one.

        The new arrays are copied, so that nothing that others hold is ever donated. A tree of
        another kind with the same names, such as Flax's `FrozenDict`, becomes one of the kind that
        is there. Numbers in `hyper` take the type of those they replace, so an edit in the middle
        of a run compiles nothing anew.

        Example:
            >>> start = {"key": jax.random.key(0), "params": 1.0, "hyper": 0.1}
            >>> state = init(lambda p, x: p * x, optax.sgd, **start)
            >>> state.replace(hyper=1).hyper
            Array(1., dtype=float32)
        """
        for name, value in changes.items():
            require_choice("State.replace", "name", name, vars(self))
            old = getattr(self, name)
            if name in ("params", "model_state"):
                value = _of_the_kind_of(value, old)
            changes[name] = _hyper_like(value, old) if name == "hyper" else _with_copies(value, old)
        return dataclasses.replace(self, **changes)

    @property
    def added(self) -> dict[str, Json]:
        """What a step may have added to a state from `init`, as JSON: see `completed`."""
        kind = None
        with contextlib.suppress(TypeError, ValueError):  # one of the user's own has no text
            kind = None if self.averaging is None else to_dict(self.averaging)
        window = None if self.spikes is None else list(self.spikes.values.shape)
        rules = scaling_rules(self.loss_scale)
        return {"average": kind, "spikes": window, "noise": bool(self.noise), "loss_scale": rules}

    def completed(self, added: dict[str, Json]) -> "State":
        """A state with places for what another has that says `added`: see `ADDED`."""
        new: dict[str, Any] = {}
        missing = {name for name in ADDED if added.get(name) and getattr(self, name) is None}
        if "average" in missing:
            # The numbers of an average are the step's: any will do to make its places.
            full = {k: 0.0 if x is None else x for k, x in added["average"].items()}
            kind = from_dict(full)
            new["average"] = kind.init(self.trained)
            new["averaging"] = jax.tree.map(lambda _: None, kind)
        if "spikes" in missing:
            zero = jnp.zeros((), jnp.int32)
            new["spikes"] = SpikeState(jnp.zeros(added["spikes"], jnp.float32), zero, zero)
        if "noise" in missing:
            new["noise"] = noise.init()
        if "loss_scale" in missing:
            new["loss_scale"] = scale_of_rules(added["loss_scale"])
        return dataclasses.replace(self, **new)

    def copy(self) -> "State":
        """A state that shares no array with this one: to keep it, or to go on from it twice.

        Example:
            >>> state = init(lambda p, x: p * x, optax.sgd(0.1), key=jax.random.key(0), params=1.0)
            >>> state.copy().params is state.params
            False
        """
        return jax.tree.map(_copied, self)


def init(
    module: Module,
    tx: Optimizer,
    *,
    key: chex.PRNGKey,
    example: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    params: optax.Params | None = None,
    hyper: Hyper | None = None,
    sharding: Placement | None = None,
    trainable: Any = None,
) -> State:
    """The state at step 0 of training `module` with `tx`.

    Args:
        module: a Linen module, an NNX module, or a function `apply(params, *args, **kwargs)`.
        tx: an Optax transformation, or a function `hyper -> tx`.
        key: a typed PRNG key, from `jax.random.key`.
        example: for Linen, an input to the module, or a tuple of its positional inputs.
        example_kwargs: for Linen, keyword inputs to the module, such as `{"train": True}`.
        params: for a function, its parameters; for a module, parameters to start from.
        hyper: hyperparameters that are kept as arrays in the state and given to `tx`.
        sharding: with an active mesh (`jax.set_mesh`), None for all of the state on each device; a
            rule such as `fsdp("data")`, or `{pattern: PartitionSpec}`, cuts the parameters, and
            what follows them (see `shardings`). Or a sharding for all of the state.
        trainable: a pattern, rules or a predicate, as in `Penalty.on`, or for an NNX module a type
            of its variables. The parameters outside are held as they are: no gradient, no moments,
            no average, no decay, and no place in `grad_norm`. See `thaw`.

    Returns:
        A `State` whose arrays are copies, so that nothing it shares with others is ever donated.

    Raises:
        TypeError: the module is a class or no module at all, or lacks what it is initialised from;
            a parameter is no floating or complex array, which is all that has a gradient.
        ValueError: `key` is not one typed key, or a parameter is not finite.

    Example:
        >>> start = {"key": jax.random.key(0), "params": jnp.ones(3)}
        >>> state = init(lambda params, x: x @ params, optax.sgd(0.1), **start)
        >>> state.params.shape, int(state.step)
        ((3,), 0)
    """
    adapter, mesh = adapter_of(module), mesh_for(sharding) if known(key) else None
    typed = isinstance(key, jax.Array) and is_key(key) and key.ndim == 0
    allowed = (
        "a single typed PRNG key, as from jax.random.key(0); wrap_key_data makes one of a raw key"
    )
    require(typed, "init", "key", key, allowed)
    named = example_kwargs is None or isinstance(example_kwargs, dict)
    allowed = "a dict of inputs by their names"
    require(named, "init", "example_kwargs", example_kwargs, allowed, error=TypeError)
    inputs = None
    if example is not None or example_kwargs is not None:
        args = () if example is None else example if isinstance(example, tuple) else (example,)
        inputs = (args, dict(example_kwargs or {}))
    if params is not None:
        _check_parameters(params)
    hyper = jax.tree.map(_copied, hyper)
    register_with_flax(State, _to_dict, _from_dict)

    def make(key: chex.PRNGKey, params: optax.Params | None) -> State:
        made, model_state = adapter.init(jax.random.fold_in(key, 0), inputs, params)
        _check_parameters(made)
        own = jax.tree.map(_copied, made)
        # What the optimizer starts from may be the parameters themselves: everything is copied.
        flags = chosen("init", trainable, own, adapter)
        opt_state = optimizer_of(tx, hyper).init(own if flags is None else flags.part(own))
        made = {"opt_state": opt_state, "model_state": model_state, "key": key}
        made |= {"step": jnp.zeros((), jnp.int32), "hyper": hyper}
        return State(params=own, trainable=flags, **jax.tree.map(_copied, made))

    if sharding is None and mesh is None:
        return make(key, params)
    state = made_on(make, (key, params), mesh, sharding)
    _check_parameters(state.params)
    return state


def thaw(state: State, tx: Optimizer, *, trainable: Any) -> State:
    """The state from which on other parameters are trained, more of them as a rule.

    What was trained keeps its moments and its place in the average; what is new begins, with
    updates as at the beginning of a run, whatever the optimizer's count: for Adam of the size of
    the rate. What is trained no more loses its moments. The next step is compiled anew.

    Args:
        state: of a run with `init(..., trainable=)`.
        tx: its optimizer, or the function `hyper -> tx`.
        trainable: a pattern, rules or a predicate, as in `init`; "**" for all.

    Returns:
        A state that shares its arrays with the one given, which is not to be used any more.

    Example:
        >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
        >>> tx, apply = optax.adam(0.1), lambda p, x: x @ p["body"] * p["head"]
        >>> state = init(apply, tx, key=jax.random.key(0), params=params, trainable="head")
        >>> [len(jax.tree.leaves(s.opt_state)) for s in (state, thaw(state, tx, trainable="**"))]
        [3, 5]
    """
    flags = chosen("thaw", trainable, state.params)
    optimizer = optimizer_of(tx, state.hyper)
    check_opt_state(optimizer, state, "thaw")
    new = dataclasses.replace(state, trainable=flags)
    opt_state = carried_over(optimizer.init(new.trained), state.opt_state)
    count = update_count(state.opt_state)
    count = state.step if count is None else count
    # All that is trained begins now, but for what was trained already.
    begun = jax.tree.map(lambda _: jnp.asarray(count, jnp.int32), new.trained)
    since = state.begun
    if since is None:
        since = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), state.trained)
    average = state.average
    if state.averaging is not None and average is not None:
        average = carried_over(state.averaging.init(new.trained), average)
    changed = (opt_state, carried_over(begun, since), average)
    opt_state, begun, average = jax.tree.map(_copied, changed)
    return dataclasses.replace(new, opt_state=opt_state, begun=begun, average=average)


def merge(module: Module, state: State) -> Any:
    """The trained model: Linen's variables, the NNX module, or a function's parameters.

    So one predicts by `module.apply(merge(module, state), x)` in Linen, as with
    `mixed_precision(module)` of any kind, by `merge(module, state)(x)` in NNX, and by
    `function(merge(function, state), x)`. The arrays are copies, so they outlive a later donation
    of the state.

    Example:
        >>> apply = lambda params, x: x @ params
        >>> state = init(apply, optax.sgd(0.1), key=jax.random.key(0), params=jnp.ones(3))
        >>> print(merge(apply, state))
        [1. 1. 1.]
    """
    copy = jax.tree.map(jnp.copy, (state.params, state.model_state))
    return adapter_of(module).merge(*copy)


def optimizer_of(
    tx: Optimizer, hyper: Hyper | None, argument: str = "tx"
) -> optax.GradientTransformationExtraArgs:
    """An Optax transformation as it is; a function `hyper -> tx` called with them."""
    require_optimizer(tx, argument)
    if isinstance(tx, optax.GradientTransformation):
        return optax.with_extra_args_support(tx)
    allowed = f"`{argument}` must be a function hyper -> Optax transformation"
    made = made_of(tx, hyper, optax.GradientTransformation, argument, allowed)
    return optax.with_extra_args_support(made)


def require_optimizer(tx: object, argument: str = "tx") -> None:
    """Refuses what is neither an Optax transformation nor a function that could make one."""
    if isinstance(tx, optax.GradientTransformation):
        return
    allowed = "an Optax transformation or a function hyper -> tx"
    if isinstance(tx, optax.MultiSteps):
        raise TypeError(
            f"`{argument}` must be an Optax transformation, got an optax.MultiSteps: use "
            "transforms.mean_value, "
            "or its own gradient_transformation(), which keeps the loss from the optimizer inside"
        )
    if not is_function(tx):
        near = nearest(tx, dir(optax)) if isinstance(tx, str) else []
        hint = f"; write optax.{near[0]}(...)" if near else ""
        raise TypeError(f"`{argument}` must be {allowed}, got {tx!r}{hint}")


def check_opt_state(
    optimizer: optax.GradientTransformation, state: State, owner: str = "step"
) -> None:
    """Refuses the state of another optimizer or of other parameters; a step, while traced."""
    expected = jax.eval_shape(optimizer.init, state.trained)
    forms = [
        (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        for tree in (expected, state.opt_state)
    ]
    names = [[type(node).__name__ for node in nodes(x)] for x in (expected, state.opt_state)]
    allowed = f"that of this {owner}'s optimizer for these parameters, of {', '.join(names[0])}"
    require(forms[0] == forms[1], owner, "state.opt_state", names[1], allowed)


def is_function(value: object) -> bool:
    """Whether `value` may be a function of hyperparameters: no class and no object of ours."""
    return callable(value) and not isinstance(value, type) and not is_pytree(type(value))


def made_of(
    function: Callable[[Hyper], Any], hyper: Hyper | None, kind: type, argument: str, allowed: str
) -> Any:
    """What an argument's function makes of the hyperparameters, which must be of this kind."""
    needed = f"given, because `{argument}` is a function of it"
    require(hyper is not None, "init", "hyper", hyper, needed)
    made = function(hyper)
    if not isinstance(made, kind):
        raise TypeError(f"{allowed}, but returned {made!r}")
    return made


def in_dtypes_of(new: optax.Params, old: optax.Params) -> optax.Params:
    """The new values in the dtypes of the old, so that a state keeps its types."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)

    def one(after: jax.Array, before: jax.Array) -> jax.Array:
        wanted, dtype = jnp.result_type(before), jnp.result_type(after)
        same = any(jnp.issubdtype(wanted, k) and jnp.issubdtype(dtype, k) for k in kinds)
        return jnp.asarray(after, wanted) if same else after

    return jax.tree.map(one, new, old)


def _check_parameters(params: optax.Params) -> None:
    """Refuses, by its path, what has no gradient and what is not finite."""
    # What was too large for memory is told of here: NumPy's view of it would abort the process.
    jax.block_until_ready([value for _, value in leaves(params) if known(value)])
    for path, value in leaves(params):
        name = f"params/{path}" if path else "params"
        allowed = "an array of floating or complex numbers"
        require(is_parameter(value), "init", name, value, allowed, error=TypeError)
        here = known(value) and getattr(value, "is_fully_addressable", True)
        if here and not isinstance(value, jax.ShapeDtypeStruct):
            # By NumPy: a program for each shape would take longer to compile than to run.
            require(bool(np.isfinite(np.asarray(value)).all()), "init", name, value, "finite")


def _copied(value: Any) -> Any:
    """A copy of an array or number, of a definite dtype: a weak one would change at an update.

    What is traced, and what is no number (a shape, a sharding), stays as it is.
    """
    numbers = jax.Array | np.ndarray | np.generic | float | int | complex
    if isinstance(value, Tracer) or not isinstance(value, numbers):
        return value
    return jnp.copy(value) if is_key(value) else jnp.array(value, jnp.asarray(value).dtype)


def _with_copies(value: object, old: object) -> Any:
    """`value` with copies of what `old` does not hold already: that is the state's own."""
    own = {id(leaf) for leaf in jax.tree.leaves(old)}
    return jax.tree.map(lambda x: x if id(x) in own else _copied(x), value)


def _hyper_like(value: object, old: object) -> Any:
    """Hyperparameters of the same structure in the dtypes of the old; others as they are."""
    if jax.tree.structure(value) == jax.tree.structure(old):
        return jax.tree.map(_in_place_of, value, old)
    return jax.tree.map(lambda x: _copied(x) if isinstance(x, jax.Array) else x, value)


def _in_place_of(value: object, old: object) -> Any:
    """A copy of `value` in the dtype and the place of `old`."""
    if not isinstance(old, jax.Array) or is_key(old):
        return _copied(value)
    whole = jnp.issubdtype(old.dtype, jnp.integer)
    fits = not whole or jnp.issubdtype(jnp.result_type(value), jnp.integer)
    allowed = f"a whole number where it was one, as {old.dtype} is"
    require(fits, "State.replace", "hyper", value, allowed)
    if not known(value, old):
        return jnp.asarray(value, old.dtype)
    copy = jnp.array(value, old.dtype)
    return jax.device_put(copy, old.sharding) if old.committed and copy.shape == old.shape else copy


def _of_the_kind_of(value: object, old: object) -> Any:
    """`value` as a tree of the same nodes as `old`, where their leaves have the same paths."""
    if jax.tree.structure(value) == jax.tree.structure(old):
        return value
    (new, _), (before, structure) = map(jax.tree_util.tree_flatten_with_path, (value, old))
    same = [path_of(path) for path, _ in new] == [path_of(path) for path, _ in before]
    return jax.tree.unflatten(structure, [leaf for _, leaf in new]) if same else value


def _to_dict(state: State) -> dict[str, Any]:
    """For Flax: the arrays by their paths, PRNG keys as their numbers."""
    pairs = jax.tree_util.tree_flatten_with_path(state)[0]
    numbers = ((path, jax.random.key_data(x) if is_key(x) else x) for path, x in pairs)
    return {jax.tree_util.keystr(path): x for path, x in numbers}


def _from_dict(state: State, found: dict[str, Any]) -> State:
    """For Flax: a state like this one, of the arrays in `found`; also where it was thawed."""
    if state.begun is None and any(path.startswith(".begun") for path in found):
        begun = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), state.trained)
        state = state.replace(begun=begun)
    pairs, structure = jax.tree_util.tree_flatten_with_path(state)
    own = {jax.tree_util.keystr(path): x for path, x in pairs}
    odd = sorted(own.keys() ^ found.keys())
    allowed = f"that of the bytes: {', '.join(odd[:3])} of {len(odd)} are in one of them only"
    allowed += "; step.complete(state) adds an average" if ".average" in str(odd) else ""
    require(not odd, "from_bytes", "target", state, allowed)

    def restored(path: str, old: Any) -> Any:
        new = found[path]
        if is_key(old):
            new = jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(old))
        same, shape = np.shape(new) == np.shape(old), f"shape {np.shape(new)}"
        require(same, "from_bytes", f"target{path}", np.shape(old), f"of {shape}, as the bytes are")
        return new

    return jax.tree.unflatten(structure, [restored(path, old) for path, old in own.items()])
