"""What text and dictionaries may name: our classes, the functions and methods that return one, and their arguments."""

import dataclasses
import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jax_lrreg import penalties, schedules, select

_NAMESPACES = (schedules, penalties, select)
HOLD_FUNCTIONS = ("Function", "Predicate")


@functools.cache
def names() -> dict[str, Callable]:
    """The closed set: classes of ours and functions that return one, alone and with their namespace."""
    found: dict[str, Callable] = {}
    for namespace in _NAMESPACES:
        for name, thing in vars(namespace).items():
            if name.startswith("_") or name in HOLD_FUNCTIONS:
                continue
            if is_class_of_ours(thing) or (
                isinstance(thing, types.FunctionType) and _returns_ours(thing)
            ):
                found.setdefault(name, thing)
                found[f"{namespace.__name__.rpartition('.')[2]}.{name}"] = thing
    return found


def name_of(cls: type) -> str:
    """The name of a class of ours; one that two namespaces have is qualified in the second."""
    name = cls.__name__
    if names().get(name) is not cls:
        name = f"{cls.__module__.split('.')[1]}.{name}"
    if names().get(name) is not cls:
        raise ValueError(
            f"{cls.__name__} has no text: it holds a function, or is not one of the library's own classes"
        )
    return name


def is_class_of_ours(thing: Any) -> bool:
    """Whether `thing` is a class whose objects are data: a schedule, a penalty, or a part of one."""
    return (
        isinstance(thing, type)
        and dataclasses.is_dataclass(thing)
        and thing.__module__.startswith("jax_lrreg.")
    )


def is_ours(value: Any) -> bool:
    """Whether `value` is a schedule, a penalty, or a part of one."""
    return is_class_of_ours(type(value))


def is_whole_object(value: Any) -> bool:
    """Whether `value` is a schedule or a penalty."""
    return is_ours(value) and not type(value).__module__.startswith(select.__name__)


def methods(value: Any) -> list[str]:
    """The public methods of an object of ours that make another one."""
    found = {
        name: thing for base in reversed(type(value).__mro__) for name, thing in vars(base).items()
    }
    made = [
        name for name, thing in found.items() if inspect.isfunction(thing) and _returns_ours(thing)
    ]
    return [name for name in made if not name.startswith("_")] if is_ours(value) else []


def constructors(cls: Any) -> dict[str, Callable]:
    """The public class methods of a class of ours, such as `InverseSqrt.noam`."""
    found = vars(cls).items() if isinstance(cls, type) else ()
    return {
        name: getattr(cls, name)
        for name, thing in found
        if isinstance(thing, classmethod) and not name.startswith("_")
    }


def check_arguments(name: str, function: Callable, given: Iterable[str]) -> None:
    """Refuses unknown and missing arguments by name."""
    parameters = inspect.signature(function).parameters
    for key in given:
        if key not in parameters:
            raise ValueError(
                f"{name} has no argument `{key}`; its arguments are {', '.join(parameters) or '(none)'}"
            )
    missing = [
        f"`{key}`" for key, p in parameters.items() if p.default is p.empty and key not in given
    ]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}; its arguments are {', '.join(parameters)}"
        )


def call(name: str, function: Callable, arguments: Mapping[str, Any]) -> Any:
    """Calls with arguments by name; whatever goes wrong is a ValueError or a TypeError."""
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update(arguments)
    try:
        return function(*bound.args, **bound.kwargs)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be made: {error}") from error


def place(function: Callable, name: str) -> str:
    """What a list is that fills this argument: an `array` of numbers, a `tuple`, or `static` structure."""
    fields = getattr(function, "__dataclass_fields__", {})
    if name in fields and fields[name].metadata.get("static"):
        return "static"
    annotation = str(inspect.signature(function).parameters[name].annotation)
    return "tuple" if re.search("tuple|Sequence|list|Iterable", annotation) else "array"


def arrays(value: Any) -> Any:
    """A list of numbers, or of such lists of one length, as an array; anything else as it is."""
    if not isinstance(value, list):
        return value
    items = [arrays(item) for item in value]
    regular = (
        len({np.shape(item) for item in items if is_number(item) or isinstance(item, np.ndarray)})
        <= 1
    )
    if not regular or not all(is_number(item) or isinstance(item, np.ndarray) for item in items):
        return value
    array = np.asarray(items, None if items else np.float64)
    small = array.dtype.kind in "iu" and np.all(np.abs(array) < 2**31)
    return array.astype(np.int32) if small else array


def is_number(value: Any) -> bool:
    """Whether `value` is a Python number, True and False aside."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not there, with the nearest ones that are."""
    known = [key for key in known if "." not in key] or sorted(known)
    lower = {key.lower(): f"`{key}`" for key in known}
    near = [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"known are {', '.join(known) or '(none)'}"
    )
    return ValueError(f"unknown {what} `{name[:60]}`; {hint}")


def kind(value: Any) -> str:
    """What `value` is, in words."""
    return type(value).__name__ if is_ours(value) else f"of type {type(value).__name__}"


@functools.cache
def _class_names() -> frozenset[str]:
    classes = [
        thing for space in _NAMESPACES for thing in vars(space).values() if isinstance(thing, type)
    ]
    return frozenset(
        {"Self"} | {cls.__name__ for cls in classes if cls.__module__.startswith("jax_lrreg.")}
    )


def _returns_ours(function: Callable) -> bool:
    """Whether the annotation of `function` promises an object of ours."""
    annotation = getattr(function, "__annotations__", {}).get("return")
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text in _class_names() and function.__module__.startswith("jax_lrreg.")
