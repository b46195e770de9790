"""The compiled calls of the loop, one step or many on the device, and the states they take."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._check import require
from jax_lrreg.training.history import add
from jax_lrreg.training.state import State
from jax_lrreg.training.step import Step

# Each lives as long as its step, which it does not hold.
_PROGRAMS: WeakKeyDictionary[Step, dict[bool, Callable]] = WeakKeyDictionary()


def program_of(step: Step, loops: bool) -> Callable:
    """The compiled call that makes `count` steps, or one step and no loop around it.

    The number is data, so chunks of every length are one and the same program.
    """
    made = _PROGRAMS.setdefault(step, {})
    if loops not in made:
        # The sums are few, and whoever holds a chunk may read them later: they are not donated.
        donated = (0,) if step.donate else ()
        function = partial(_many if loops else _single, step.body)
        made[loops] = jax.jit(function, donate_argnums=donated, static_argnames="gather")
    return made[loops]


def _single(body, state, sums, arrays, row, count, *, gather):
    del count
    state, metrics = body(state, gather(arrays, row))
    return state, add(sums, metrics)


def _many(body, state, sums, arrays, rows, count, *, gather):
    def one(index, carry):
        row = jax.tree.map(lambda x: x[index], rows)
        state, sums = carry
        return _single(body, state, sums, arrays, row, count, gather=gather)

    return jax.lax.fori_loop(0, count, one, (state, sums))


def placement(state: State) -> Callable:
    """Sends arrays to where the state is; where it is on many devices, `jit` distributes them."""
    sharding = state.step.sharding
    if len(sharding.device_set) > 1 or jax.process_count() > 1:
        return lambda rows: rows
    return partial(jax.device_put, device=sharding if state.step.committed else None)


def settled(state: State) -> State:
    """The state as arrays of definite dtypes, none twice: fit to be donated, compiling once."""
    seen: set[int] = set()

    def settle(leaf: chex.Numeric) -> jax.Array:
        # Through NumPy, as making a Python number definite is a program.
        own = leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.asarray(leaf))
        if jax.typeof(own).weak_type:
            own = jnp.asarray(own, own.dtype)
        if id(own) in seen:
            own = jnp.copy(own)
        seen.add(id(own))
        return own

    return jax.tree.map(settle, state)


def edited(old: State, new: State) -> State:
    """The new state, where it differs from the old one in copies of its dtypes and places."""
    structure = jax.tree.structure(old)
    if not isinstance(new, State) or jax.tree.structure(new) != structure:
        given = jax.tree.structure(new) if isinstance(new, State) else type(new).__name__
        allowed = f"of the structure that the run began with, {structure}"
        raise ValueError(f"Chunk: `state` must be {allowed}, got {given}")

    def edit(path: Any, leaf: Any, before: jax.Array) -> jax.Array:
        if leaf is before:
            return leaf
        number = isinstance(leaf, bool | int | float | np.number)
        kind = getattr(leaf, "dtype", None) == before.dtype
        if number:
            kind = np.can_cast(np.asarray(leaf).dtype, before.dtype, "same_kind")
        allowed = f"{before.dtype}{list(before.shape)} as before"
        name = f"state{jax.tree_util.keystr(path)}"
        require(kind and np.shape(leaf) == before.shape, "Chunk", name, leaf, allowed)
        value: Any = np.asarray(leaf, before.dtype) if number else jnp.copy(leaf)
        return jax.device_put(value, before.sharding if before.committed else None)

    return jax.tree_util.tree_map_with_path(edit, new, old)
