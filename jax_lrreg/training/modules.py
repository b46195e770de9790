"""Linen modules, NNX modules and plain functions behind one small interface.

Flax is not imported here: whoever passes one of its modules has imported it already.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax


class Bound(NamedTuple):
    """A callable model, and a function that returns its model state after the calls."""

    model: Callable[..., Any]
    model_state: Callable[[], Any]


@runtime_checkable
class Adapter(Protocol):
    """What the step needs of a module."""

    def init(self, key: jax.Array, example: Any, params: Any) -> tuple[Any, Any]:
        """Parameters and model state."""
        ...

    def bind(self, params: Any, model_state: Any, key: jax.Array) -> Bound:
        """The model as it is trained."""
        ...

    def evaluate(self, params: Any, model_state: Any) -> Callable[..., Any]:
        """The model as it is evaluated."""
        ...

    def merge(self, params: Any, model_state: Any) -> Any:
        """What a user goes on with."""
        ...


class Linen(NamedTuple):
    """A Linen module: its collections are mutable and carried, but for `params` and what is sown."""

    module: Any

    def init(self, key: jax.Array, example: Any, params: Any) -> tuple[Any, Any]:
        """Parameters and the other collections, from an example input."""
        if example is None:
            raise TypeError("init: `example` must be an input of the Linen module, got None")
        leaves, structure = jax.tree.flatten(example)
        arrays = {
            i: x for i, x in enumerate(leaves) if hasattr(x, "dtype")
        }  # the rest is for Python, such as `train`

        def inputs(arrays: dict[int, Any]) -> tuple[tuple, dict[str, Any]]:
            return jax.tree.unflatten(structure, [arrays.get(i, x) for i, x in enumerate(leaves)])

        def first(keys: Any, arrays: dict[int, Any]) -> Any:
            args, kwargs = inputs(arrays)
            return self.module.init(keys, *args, **kwargs)

        def again(keys: Any, arrays: dict[int, Any]) -> Any:
            args, kwargs = inputs(arrays)
            return self.module.apply(made, *args, rngs=keys, mutable=list(state), **kwargs)[1]

        keys = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        made = jax.jit(first)(keys, arrays)
        state = {name: value for name, value in made.items() if name != "params"}
        after = jax.eval_shape(again, keys, arrays)
        # What is sown grows at every call: it is an output, not a state.
        state = {
            name: x
            for name, x in state.items()
            if jax.tree.structure(x) == jax.tree.structure(after.get(name))
        }
        return (made.get("params", {}) if params is None else params), state

    def bind(self, params: Any, model_state: Any, key: jax.Array) -> Bound:
        """The model as it is trained: every PRNG stream is drawn from `key`."""
        state, calls = dict(model_state), [0]

        def model(*args: Any, **kwargs: Any) -> Any:
            # Linen draws a stream it is not given from `params`, so one key serves them all.
            rngs = {"params": jax.random.fold_in(key, calls[0])}
            calls[0] += 1
            asked = kwargs.pop("mutable", None)
            mutable = [*state, *([asked] if isinstance(asked, str) else asked or ())]
            variables = {"params": params, **state}
            output, changed = self.module.apply(
                variables, *args, rngs=rngs, mutable=mutable, **kwargs
            )
            state.update({name: changed[name] for name in state if name in changed})
            return (
                output
                if asked is None
                else (output, {name: x for name, x in changed.items() if name not in state})
            )

        return Bound(model, lambda: {name: state[name] for name in model_state})

    def evaluate(self, params: Any, model_state: Any) -> Callable[..., Any]:
        """The model as it is evaluated: nothing mutable, no keys."""
        return lambda *args, **kwargs: self.module.apply(
            {"params": params, **model_state}, *args, **kwargs
        )

    def merge(self, params: Any, model_state: Any) -> Any:
        """Linen's variables."""
        return {"params": params, **model_state}


class Nnx(NamedTuple):
    """An NNX module, split once: its values travel as plain dicts, so that `jax.jit` is all that is needed."""

    graph: Any
    params: Any
    model_state: Any

    def init(self, key: jax.Array, example: Any, params: Any) -> tuple[Any, Any]:
        """The values that the module has already."""
        del key, example
        return (self.params if params is None else params), self.model_state

    def bind(self, params: Any, model_state: Any, key: jax.Array) -> Bound:
        """The module itself, in training mode as it was given; it carries its own PRNG streams."""
        del key
        module = self.merge(params, model_state)
        return Bound(module, lambda: _split(module).model_state)

    def evaluate(self, params: Any, model_state: Any) -> Callable[..., Any]:
        """The module in evaluation mode: deterministic, with running averages."""
        module = self.merge(params, model_state)
        module.eval()
        return module

    def merge(self, params: Any, model_state: Any) -> Any:
        """A module with these values."""
        return sys.modules["flax.nnx"].merge(self.graph, params, model_state)


class Function(NamedTuple):
    """A function `apply(params, *args, **kwargs)`."""

    function: Callable[..., Any]

    def init(self, key: jax.Array, example: Any, params: Any) -> tuple[Any, Any]:
        """The parameters as given."""
        del key, example
        if params is None:
            raise TypeError("init: `params` must be given for a plain function, got None")
        return params, {}

    def bind(self, params: Any, model_state: Any, key: jax.Array) -> Bound:
        """The function with its parameters; a function that needs a key takes it from the batch."""
        del key
        return Bound(self.evaluate(params, model_state), lambda: model_state)

    def evaluate(self, params: Any, model_state: Any) -> Callable[..., Any]:
        """The function with its parameters."""
        del model_state
        return lambda *args, **kwargs: self.function(params, *args, **kwargs)

    def merge(self, params: Any, model_state: Any) -> Any:
        """The parameters."""
        del model_state
        return params


def adapt(module: Any) -> Adapter:
    """The adapter for `module`, which may be one already, as `mixed_precision` makes."""
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(module, linen.Module):
        return Linen(module)
    if nnx is not None and isinstance(module, nnx.Module):
        return _split(module)
    if isinstance(module, Adapter):
        return module
    if not callable(module):
        raise TypeError(
            f"`module` must be a Linen module, an NNX module or a function, got {module!r}"
        )
    return Function(module)


def _split(module: Any) -> Nnx:
    nnx = sys.modules["flax.nnx"]
    if jax.tree.leaves(nnx.state(module, nnx.Intermediate)):
        module = nnx.clone(
            module
        )  # what was sown is an output of one call, not a state that goes on to the next
        nnx.pop(module, nnx.Intermediate)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return Nnx(graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest))
