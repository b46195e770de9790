"""What text and dictionaries may name: classes, what makes their objects, and arguments."""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from jax_lrreg import averages, forecast, penalties, schedules, select
from jax_lrreg._check import nearest
from jax_lrreg._struct import is_pytree

T = TypeVar("T")
C = TypeVar("C", bound=type)

HOLD_FUNCTIONS = ("Function", "Predicate", "FactorFunction")
MAX_DEPTH = 150  # of calls and brackets within each other: Python's own stack ends near 1000
MAX_DIGITS = 40  # of a whole number, whose arithmetic takes longer the more it has

_NAMESPACES = (schedules, penalties, averages, select)
# Only the objects: a text that may come from anyone is not to fit a law or to search with one.
_LAWS = (forecast.MultiPower, forecast.Evidence, forecast.Prior, forecast.Plan)
_registered: dict[str, type] = {}


def register(cls: C) -> C:
    """Lets the objects of a class of one's own read back: by `parse`, `to_dict` and `from_dict`.

    Its methods and class methods are no part of the text, but for those that it inherits from ours.
    A cell of a notebook that is run again replaces its class. It returns the class, so it may
    decorate it.

    Args:
        cls: a class made by `jax_lrreg.pytree`, such as a schedule or a penalty.

    Raises:
        TypeError: it is no such class.
        ValueError: its name is that of another class or function.

    Example:
        >>> import jax_lrreg
        >>> @register
        ... @jax_lrreg.pytree
        ... class Half(schedules.Schedule):
        ...     value: float
        ...     def value_at(self, clock):
        ...         return self.value / 2
        >>> from jax_lrreg.text import parse
        >>> parse("Half(0.1).warmup(5)")
        Half(0.1).warmup(5)
    """
    if not is_pytree(cls):
        raise TypeError(f"register: `cls` must be a class made by jax_lrreg.pytree, got {cls!r}")
    name = cls.__name__
    other = names().get(name)
    rerun = other in _registered.values() and cls.__module__ == "__main__" == other.__module__
    if name in HOLD_FUNCTIONS or (other not in (None, cls) and not rerun):
        raise ValueError(f"register: the name {name!r} is taken by {other or 'one of ours'!r}")
    _registered[name] = cls  # the one thing in the library that a call changes for all
    names.cache_clear()
    return cls


@functools.cache
def names() -> dict[str, Callable]:
    """The closed set: classes of ours and functions that make one, with and without namespace."""
    found: dict[str, Callable] = {cls.__name__: cls for cls in _LAWS} | dict(_registered)
    for namespace in _NAMESPACES:
        short = namespace.__name__.rpartition(".")[2]
        for name, thing in vars(namespace).items():
            public = not name.startswith("_") and name not in HOLD_FUNCTIONS
            if public and (is_pytree(thing) or _makes_ours(thing)):
                found.setdefault(name, thing)
                found[f"{short}.{name}"] = thing
    return found


def name_of(cls: type) -> str:
    """The name of a class of ours; one that two namespaces have is qualified in the second."""
    name = cls.__name__
    for full in (name, ".".join([*cls.__module__.split(".")[1:2], name])):
        if names().get(full) is cls:
            return full
    why = "it holds a function" if name in HOLD_FUNCTIONS else f"see text.register({name})"
    raise ValueError(f"{name} has no text: {why}")


def methods(value: object) -> dict[str, Callable]:
    """The public methods of an object of ours that make another one."""
    return _methods(type(value)) if is_pytree(type(value)) else {}


@functools.cache
def _methods(cls: type) -> dict[str, Callable]:
    public = (pair for pair in inspect.getmembers(cls, inspect.isfunction) if pair[0][0] != "_")
    return {name: function for name, function in public if _makes_ours(function)}


def constructors(cls: object) -> dict[str, Callable]:
    """The public class methods of a class of ours that make its objects."""
    own = vars(cls) if isinstance(cls, type) else {}
    made = {
        name: getattr(cls, name) for name, thing in own.items() if isinstance(thing, classmethod)
    }
    return {name: thing for name, thing in made.items() if name[0] != "_" and _makes_ours(thing)}


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments of a function, a class or a bound method."""
    # Not cached by the bound method, whose hash is that of its object and goes through all of it.
    own = getattr(function, "__func__", None)
    return dict([*_parameters(own).items()][1:]) if own else dict(_parameters(function))


@functools.cache
def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def made(
    name: str, function: Callable, given: Mapping[str, T], read: Callable[[T, bool], Any]
) -> Any:
    """What `function` makes of the arguments `given`, once each is read.

    `read` is told whether a list is a tuple in that argument, or an array of numbers as elsewhere.
    """
    known = parameters(function)
    _require_known(name, known, given)
    arguments = {key: read(value, takes_tuple(known[key])) for key, value in given.items()}
    try:
        return function(**arguments)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise
    except Exception as error:  # an OverflowError and its like
        raise ValueError(f"{name} cannot be made: {error}") from error


def _require_known(name: str, known: Mapping[str, inspect.Parameter], given: Iterable[str]) -> None:
    its = f"its arguments are {', '.join(known) or '(none)'}"
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no argument {snippet(str(key))}; {its}")
    required = (key for key, p in known.items() if p.default is p.empty)
    missing = [f"`{key}`" for key in required if key not in given]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}; {its}")


def takes_tuple(parameter: inspect.Parameter) -> bool:
    """Whether a list that fills this argument is a tuple, such as that of boundaries."""
    return re.search(r"\b(tuple|Sequence|list)\b", str(parameter.annotation)) is not None


def array_of(value: object) -> Any:
    """A list of numbers, or of such lists of one length, as an array; anything else as it is."""
    if not isinstance(value, list) or not _numeric(value):
        return value
    try:
        array = np.asarray(value, None if value else np.float64)
    except (ValueError, OverflowError):  # lists of several lengths; 10^400 beside a float
        return value
    # The dtype that JAX gives them. Longer ones stay as they are, since JAX would cut them.
    small = array.dtype.kind in "iu" and np.all(np.abs(array) < 2**31)
    return array.astype(np.int32) if small else array


def _numeric(value: list) -> bool:
    return all(_numeric(x) if isinstance(x, list) else isinstance(x, int | float) for x in value)


def is_number(value: object) -> bool:
    """Whether `value` is a Python number, True and False aside."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not there, with the nearest ones that are."""
    known = [key for key in known if "." not in key] or sorted(known)
    near = " or ".join(f"`{key}`" for key in nearest(name, known))
    # Whoever registers classes of their own may have hundreds of them.
    names = textwrap.shorten(", ".join(sorted(known)) or "(none)", 800, placeholder=" ...")
    hint = f"did you mean {near}?" if near else f"known are {names}"
    return ValueError(f"unknown {what} {snippet(name)}; {hint}")


def snippet(text: str) -> str:
    """As much of a text as a message shows, in one line."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text[:1000].split()))
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def kind(value: object) -> str:
    """What `value` is, in words."""
    name = type(value).__name__
    return name if is_pytree(type(value)) else f"of type {name}"


def is_whole(value: object) -> bool:
    """Whether `value` stands for itself, as a schedule or a penalty does, and is no part of one."""
    cls = type(value)
    return is_pytree(cls) and not cls.__module__.startswith(select.__name__)


def _makes_ours(thing: object) -> bool:
    """Whether a function or method of the library's own promises an object of ours."""
    # A function of a program that is run by `exec` may have None for its module.
    module = getattr(thing, "__module__", None) or ""
    if isinstance(thing, type) or not module.startswith("jax_lrreg."):
        return False
    promised = getattr(thing, "__annotations__", {}).get("return")
    words = re.findall(r"\w+", str(promised))  # as of "Greedy | Smoothed"
    made = (vars(space).get(word) for space in _NAMESPACES for word in words)
    return not {"Self", "Schedule", "Penalty"}.isdisjoint(words) or any(map(is_pytree, made))
