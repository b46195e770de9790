"""What makes two runs the same: texts by name, and a program's numbers, compared one by one."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.extend
import numpy as np

from jax_lrreg._arrays import NO_MESH, is_key
from jax_lrreg._struct import number_text
from jax_lrreg.checkpoints.notes import Json

Fingerprint = dict[str, Json]  # by the names of the arguments that say it
SHOWN = 6  # numbers of a program in a message
# The same run may go on over other devices, but the mesh on which a function's data lie stands in
# the types of what is computed of them.
_INSIDE = r"\((?:[^()]|\([^()]*\))*\)"
_MESH = rf"(?:Abstract)?Mesh{_INSIDE}"
PLACES = re.compile(rf"NamedSharding\(mesh={_MESH}, spec=P{_INSIDE}\)|{_MESH}")


def text_of(value: object) -> str:
    """The text of an object: as it prints, with a sum of the numbers that it does not print."""
    if is_key(value):
        key: Any = value
        numbers = np.asarray(jax.random.key_data(key)).ravel().tolist()
        return f"key {jax.random.key_impl(key)} {numbers}"
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value and callable(value):
        return f"function {getattr(value, '__name__', type(value).__name__)}"
    long = len(leaves) > 8 or any(np.size(leaf) > 8 for leaf in leaves)
    return number_text(value) + (f" #{_sum(leaves)}" if long else "")


def program_of(function: Callable, *args: chex.ArrayTree) -> dict[str, Any]:
    """What a function computes, as far as JAX can say: a sum of its program, and its numbers."""
    with jax.set_mesh(NO_MESH):  # an active one stands in the text of each `jnp.where`
        closed = jax.make_jaxpr(function)(*args)
    literals: list[float] = []
    held = list(closed.consts)
    _collect(closed.jaxpr, literals, held)
    # Of an array that lies on other hosts, too, this one knows no sum.
    held = [x for x in held if getattr(x, "is_fully_addressable", True)]
    literals += [float(x) for x in held if np.ndim(x) == 0 and not is_key(x)]
    digest = hashlib.sha256(PLACES.sub("None", str(closed.jaxpr)).encode())
    digest.update(_sum(held).encode())
    # In their order, so that the first that differs can be named.
    return {"sum": digest.hexdigest()[:16], "numbers": literals[:200]}


def _collect(jaxpr: jax.extend.core.Jaxpr, found: list[float], held: list[chex.Array]) -> None:
    """The numbers in the text of a program, and the arrays that those inside of it hold."""
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            value = getattr(variable, "val", None)
            if value is not None and np.ndim(value) == 0 and not is_key(value):
                number = complex(value)
                found.append(number.real if number.imag == 0 else float(abs(number)))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                held += getattr(inner, "consts", ())
                _collect(getattr(inner, "jaxpr", inner), found, held)


def _is_program(value: object) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _sum(leaves: Sequence[chex.Array]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:12]


BRANCH = "checkpoints.branch(run, into=) says that it is another run from here on"


def refuse_difference(
    owner: str, saved: Fingerprint, now: Fingerprint, same_versions: bool, way: str = BRANCH
) -> None:
    """Raises by the name of the first difference, with both values, and the `way` out.

    The program of an optimizer is compared only between the same versions of JAX and Optax, since
    another version may write the same arithmetic in another way.
    """
    for name in [*now, *(saved.keys() - now.keys())]:
        before, here = saved.get(name), now.get(name)
        if before == here or (isinstance(here, dict) and not same_versions):
            continue
        if isinstance(before, dict) and isinstance(here, dict):
            before, here = _differing(before["numbers"], here["numbers"])
        raise ValueError(
            f"{owner}: `{name}` must be that of the run in `checkpoint`, {_short(before)}, got "
            f"{_short(here)}; {way}"
        )


def _differing(before: list[float], here: list[float]) -> tuple[str, str]:
    """The numbers that only one of the two has, or else that the programs differ."""
    odd = [[x for x in mine if x not in other] for mine, other in ((before, here), (here, before))]
    if not any(odd):
        return "one that computes something else", "this one"
    return tuple(f"one with the numbers {x[:SHOWN]}" for x in odd)  # type: ignore[return-value]


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 300 else f"{text[:297]}..."
