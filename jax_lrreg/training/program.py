"""The compiled calls of the loop: one step, or many in a loop on the device."""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import jax

from jax_lrreg.training.history import add
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
