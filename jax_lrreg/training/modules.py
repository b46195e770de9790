"""Linen modules, NNX modules and plain functions behind one small interface.

Flax is not imported here: whoever passes one of its modules has imported it already.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import numpy as np
import optax

from jax_lrreg._arrays import leaves
from jax_lrreg._check import require

Module = Any  # of Linen or NNX, neither of which need be installed; or a function of parameters
Model = Callable[..., Any]  # what a `loss_fn` calls: it returns whatever the module does
ModelState = Any  # everything but the parameters that a module carries
Example = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword inputs of a module


class Bound(NamedTuple):
    """A callable model, and a function that returns its model state after the calls."""

    model: Model
    model_state: Callable[[], ModelState]


@runtime_checkable
class Adapter(Protocol):
    """What the step needs of a module."""

    def init(
        self, key: chex.PRNGKey, example: Example | None, params: optax.Params | None
    ) -> tuple[optax.Params, ModelState]:
        """Parameters and model state."""
        ...

    def bind(self, params: optax.Params, model_state: ModelState, key: chex.PRNGKey) -> Bound:
        """The model as it is trained."""
        ...

    def evaluate(self, params: optax.Params, model_state: ModelState) -> Model:
        """The model as it is evaluated."""
        ...

    def merge(self, params: optax.Params, model_state: ModelState) -> Any:
        """What a user goes on with."""
        ...

    def split(self, merged: Any) -> tuple[optax.Params, ModelState]:
        """The parameters and the model state that were merged."""
        ...


def adapter_of(module: Module) -> Adapter:
    """The adapter of a module; what `mixed_precision` makes is one already."""
    if isinstance(module, type):
        name = module.__name__
        raise TypeError(f"`module` must be made, got the class {name}: write {name}(...)")
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(module, linen.Module):
        return Linen(module)
    if nnx is not None and isinstance(module, nnx.Module):
        return _split(module)
    if isinstance(module, Adapter):
        return module
    if not callable(module):
        allowed = "a Linen module, an NNX module or a function"
        raise TypeError(f"`module` must be {allowed}, got {module!r}")
    return Function(module)


class Inputs(NamedTuple):
    """The inputs of a Linen module without their arrays, which alone are traced.

    Attributes:
        structure: of the tree of all inputs.
        rest: what is no array, such as `train=True`, which steers Python: place, type and value.
    """

    structure: Any
    rest: tuple[tuple[int, type, object], ...]

    def filled(self, arrays: dict[int, jax.Array]) -> Example:
        """All inputs, with these arrays at their places."""
        leaves = {**arrays, **{i: x for i, _, x in self.rest}}
        return jax.tree.unflatten(self.structure, [leaves[i] for i in range(len(leaves))])


class _Same(NamedTuple):
    """An object as a key: as itself, for one with equal fields may have 1 where it has True."""

    itself: Any

    def __hash__(self) -> int:
        return id(self.itself)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.itself is other.itself


# Compiling the numbers that a network of three layers begins with takes longer than training it:
# 1.4 s on a CPU, which the next run of the same module saves.
@functools.lru_cache(maxsize=8)
def _initial(module: _Same, inputs: Inputs) -> Callable:
    """A Linen module's collections, of keys and of the arrays among its inputs, compiled once."""

    def init(keys: dict[str, chex.PRNGKey], arrays: dict[int, jax.Array]) -> Any:
        args, kwargs = inputs.filled(arrays)
        return module.itself.init(keys, *args, **kwargs)

    return jax.jit(init)


class Linen(NamedTuple):
    """A Linen module: its collections are carried, but for `params` and what is sown."""

    module: Any

    def init(
        self, key: chex.PRNGKey, example: Example | None, params: optax.Params | None
    ) -> tuple[optax.Params, ModelState]:
        """Parameters and the other collections, from an example input."""
        if example is None:
            allowed = "an input of the Linen module, by position or by name"
            raise TypeError(f"init: `example` or `example_kwargs` must be {allowed}, got None")
        given, structure = jax.tree.flatten(example)
        arrays = {i: x for i, x in enumerate(given) if hasattr(x, "dtype")}
        rest = tuple((i, type(x), x) for i, x in enumerate(given) if i not in arrays)
        inputs = Inputs(structure, rest)

        def again(keys: dict[str, chex.PRNGKey], arrays: dict[int, jax.Array]) -> Any:
            args, kwargs = inputs.filled(arrays)
            return self.module.apply(made, *args, **kwargs, rngs=keys, mutable=list(state))[1]

        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        try:
            initial = _initial(_Same(self.module), inputs)
        except TypeError:  # among the rest is what has no hash
            initial = _initial.__wrapped__(_Same(self.module), inputs)
        made = initial(keys, arrays)
        state = {name: value for name, value in made.items() if name != "params"}
        after = jax.eval_shape(again, keys, arrays)
        # What is sown grows at every call: it is an output, not a state.
        kept = {
            name: value
            for name, value in state.items()
            if jax.tree.structure(value) == jax.tree.structure(after.get(name))
        }
        own = made.get("params", {})
        if params is not None:
            _require_own(params, own)
        return (own if params is None else params), kept

    def bind(self, params: optax.Params, model_state: ModelState, key: chex.PRNGKey) -> Bound:
        """The model as it is trained: every PRNG stream is drawn from `key`.

        `rngs=` and `mutable=` are Flax's own: streams that are given go before ours, and what is
        asked for is returned beside the output. What the module carries is carried all the same,
        unless `mutable=False`.
        """
        scope = sys.modules["flax.core"].scope
        state, calls = dict(model_state), [0]

        def model(*args: Any, rngs: Any = None, mutable: Any = None, **kwargs: Any) -> Any:
            # Linen draws a stream that it is not given from `params`, so one key serves them all.
            own = {"params": jax.random.fold_in(key, calls[0])}
            calls[0] += 1
            given = rngs if isinstance(rngs, dict) or rngs is None else {"params": rngs}
            if kwargs.get("capture_intermediates"):
                mutable = scope.union_filters(mutable or False, "intermediates")
            changing = False if mutable is False else scope.union_filters(mutable or [], [*state])
            options = {"rngs": own | (given or {}), "mutable": changing}
            output = self.module.apply({"params": params, **state}, *args, **options, **kwargs)
            if mutable is False:
                return output
            output, changed = output
            state.update({name: changed[name] for name in state if name in changed})
            if mutable is None:
                return output
            return output, {n: x for n, x in changed.items() if scope.in_filter(mutable, n)}

        return Bound(model, lambda: {name: state[name] for name in model_state})

    def evaluate(self, params: optax.Params, model_state: ModelState) -> Model:
        """The model as it is evaluated: nothing mutable, no keys."""
        variables = self.merge(params, model_state)
        return lambda *args, **kwargs: self.module.apply(variables, *args, **kwargs)

    def merge(self, params: optax.Params, model_state: ModelState) -> dict[str, Any]:
        """Linen's variables."""
        return {"params": params, **model_state}

    def split(self, merged: dict[str, Any]) -> tuple[optax.Params, ModelState]:
        """The parameters, and the other collections."""
        rest = dict(merged)
        return rest.pop("params", {}), rest


class Nnx(NamedTuple):
    """An NNX module, split once: its values travel as plain dicts; `jax.jit` is all it needs.

    `nnx.jit` would walk through the module at each call: 14 times the time of a small step.
    """

    graph: Any
    params: optax.Params
    model_state: ModelState

    def init(
        self, key: chex.PRNGKey, example: Example | None, params: optax.Params | None
    ) -> tuple[optax.Params, ModelState]:
        """The values that the module has already."""
        del key, example
        nnx = sys.modules["flax.nnx"]
        given = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
        if given is not None:
            _require_own(given, self.params)
        return (self.params if given is None else given), self.model_state

    def bind(self, params: optax.Params, model_state: ModelState, key: chex.PRNGKey) -> Bound:
        """The module itself, in training mode as it was given, with its own PRNG streams.

        One that takes `rngs` when it is called gets them from `key`, where the call gives none.
        """
        module = self.merge(params, model_state)
        model = _WithRngs(module, key) if "rngs" in _arguments(module) else module
        return Bound(model, lambda: _split(module).model_state)

    def evaluate(self, params: optax.Params, model_state: ModelState) -> Model:
        """The module in evaluation mode: deterministic, with running averages."""
        module = self.merge(params, model_state)
        module.eval()
        rngs = _arguments(module).get("rngs")
        # It must be called with some, though in this mode it draws nothing from them.
        needed = rngs is not None and rngs.default is inspect.Parameter.empty
        return _WithRngs(module, jax.random.key(0)) if needed else module

    def merge(self, params: optax.Params, model_state: ModelState) -> Any:
        """A module with these values."""
        return sys.modules["flax.nnx"].merge(self.graph, params, model_state)

    def split(self, merged: Any) -> tuple[optax.Params, ModelState]:
        """The values of a module."""
        return _split(merged)[1:]


class _WithRngs:
    """An NNX module whose calls get new `rngs` from a key, unless they are given some."""

    def __init__(self, module: Any, key: chex.PRNGKey):
        self._module, self._key, self._calls = module, key, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(self._module.__call__).bind_partial(*args, **kwargs)
        if call.arguments.get("rngs") is None:
            key = jax.random.fold_in(self._key, self._calls)
            call.arguments["rngs"] = sys.modules["flax.nnx"].Rngs(key)
            self._calls += 1
        return self._module(*call.args, **call.kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Function(NamedTuple):
    """A function `apply(params, *args, **kwargs)`."""

    function: Model

    def init(
        self, key: chex.PRNGKey, example: Example | None, params: optax.Params | None
    ) -> tuple[optax.Params, ModelState]:
        """The parameters as given."""
        del key, example
        if params is not None:
            return params, {}
        if jax.tree_util.all_leaves([self.function]):
            raise TypeError("init: `params` must be given for a plain function, got None")
        # Equinox's modules, and others that are trees of their parameters.
        raise TypeError(
            "init: `module` must be a function of parameters, got a tree that holds them itself, "
            "as Equinox's "
            "modules are: write init(lambda params, x: params(x), ..., params=module). What is no "
            "array in it must be taken out of `params`: equinox.partition, equinox.combine"
        )

    def bind(self, params: optax.Params, model_state: ModelState, key: chex.PRNGKey) -> Bound:
        """The function with its parameters; a function that needs a key takes it from the batch."""
        del key
        return Bound(self.evaluate(params, model_state), lambda: model_state)

    def evaluate(self, params: optax.Params, model_state: ModelState) -> Model:
        """The function with its parameters."""
        del model_state
        return lambda *args, **kwargs: self.function(params, *args, **kwargs)

    def merge(self, params: optax.Params, model_state: ModelState) -> optax.Params:
        """The parameters."""
        del model_state
        return params

    def split(self, merged: optax.Params) -> tuple[optax.Params, ModelState]:
        """The parameters, and no state."""
        return merged, {}


def _split(module: Any) -> Nnx:
    nnx = sys.modules["flax.nnx"]
    if jax.tree.leaves(nnx.state(module, nnx.Intermediate)):
        # What was sown is an output of one call, not a state that goes on to the next.
        module = nnx.clone(module)
        nnx.pop(module, nnx.Intermediate)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return Nnx(graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest))


def paths_of_type(adapter: Adapter | None, kind: type) -> set[str] | None:
    """The paths of an NNX module's parameters of a type of variable; None for other modules."""
    if not isinstance(adapter, Nnx):
        return None
    nnx = sys.modules["flax.nnx"]
    module = adapter.merge(adapter.params, adapter.model_state)
    return {leaf.path for leaf in leaves(nnx.to_pure_dict(nnx.state(module, kind)))}


def _require_own(params: optax.Params, own: optax.Params) -> None:
    """Refuses parameters without those that the module has, or in other shapes, by their paths."""
    given = {leaf.path: np.shape(leaf.value) for leaf in leaves(params)}
    for path, value in leaves(own):
        name, shape = f"params/{path}" if path else "params", f"an array of shape {np.shape(value)}"
        allowed = f"{shape}, as the module's own"
        require(path in given, "init", name, sorted(given)[:8], f"given: {allowed}")
        require(given[path] == np.shape(value), "init", name, given[path], allowed)


def statistics_of(adapter: Adapter, model_state: ModelState) -> list[int]:
    """Which leaves of a model's state are means and variances that batch normalisation collects."""
    paths = [leaf.path for leaf in leaves(model_state)]
    if isinstance(adapter, Nnx):
        nnx = sys.modules["flax.nnx"]
        held = paths_of_type(adapter, nnx.BatchStat) or set()
    else:
        held = {path for path in paths if path.startswith("batch_stats/")}
    names = ("mean", "var")  # spectral normalisation keeps other things there
    return [i for i, path in enumerate(paths) if path in held and path.split("/")[-1] in names]


def _arguments(module: Any) -> dict[str, inspect.Parameter]:
    call = getattr(module, "__call__", None)  # noqa: B004  a module may have other methods only
    return {} if call is None else dict(inspect.signature(call).parameters)


def register_with_flax(cls: type, to_dict: Callable, from_dict: Callable) -> None:
    """Lets `flax.serialization` write and read objects of a class, where it is loaded."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is not None:
        serialization.register_serialization_state(cls, to_dict, from_dict, override=True)
