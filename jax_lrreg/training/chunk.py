"""What the loop hands out between two calls of the device, and how a state that was edited goes on."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.training.state import State


class Chunk:
    """Where `steps` has come to after a call of the device.

    Attributes:
        step: how many steps the state has made, from the very first.
        state: the state after them. It is alive until the loop is asked for the next chunk. Assign another
            one to go on with that: a changed number costs nothing, another structure, shape or dtype is refused.
        names: of the metrics of a step.
        metrics: what `fit` would write as an entry of its history: the metrics of the steps since the last
            multiple of `log_every`. The first look at it waits for the device and fetches them. Look at it one
            chunk later, and the device never waits for you.
    """

    def __init__(
        self, step: int, state: State, names: list[str], read: Callable[[], dict[str, float]]
    ):
        self.step, self._state, self.names, self._read = step, state, names, read

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, new: State) -> None:
        self._state = adopted(new, self._state)

    @cached_property
    def metrics(self) -> dict[str, float]:
        return self._read()


def settled(state: State) -> State:
    """The state as arrays of definite dtypes, none of them twice: fit to be donated, and compiling nothing anew."""
    seen: set[int] = set()

    def settle(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            leaf = jnp.asarray(
                np.asarray(leaf)
            )  # through NumPy, as making a Python number definite is a program
        if jax.typeof(leaf).weak_type:
            leaf = jnp.asarray(leaf, leaf.dtype)
        if id(leaf) in seen:
            leaf = jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(settle, state)


def adopted(new: State, old: State) -> State:
    """The edited state, its changed leaves as copies in the dtypes and places of the old ones."""
    if not isinstance(new, State) or jax.tree.structure(new) != jax.tree.structure(old):
        given = jax.tree.structure(new) if isinstance(new, State) else type(new).__name__
        raise ValueError(
            f"Chunk: `state` must be of the structure that the run began with, {jax.tree.structure(old)}, got {given}"
        )

    def adopt(path: Any, leaf: Any, before: jax.Array) -> jax.Array:
        if leaf is before:
            return leaf
        number = isinstance(leaf, bool | int | float | np.number)
        fits = np.shape(leaf) == before.shape and (
            np.can_cast(np.asarray(leaf).dtype, before.dtype, "same_kind")
            if number
            else getattr(leaf, "dtype", None) == before.dtype
        )
        if not fits:
            name = "state" + jax.tree_util.keystr(path)
            allowed = f"{before.dtype}{list(before.shape)} as before"
            require(False, "Chunk", name, leaf, allowed)
        value = np.asarray(leaf, before.dtype) if number else jnp.copy(leaf)
        return jax.device_put(value, before.sharding if before.committed else None)

    return jax.tree_util.tree_map_with_path(adopt, new, old)
