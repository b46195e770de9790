"""`parse`: an expression over the closed set of names, read node by node."""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np

from jax_lrreg.text.names import (
    HOLD_FUNCTIONS,
    arrays,
    call,
    check_arguments,
    constructors,
    is_number,
    is_ours,
    is_whole_object,
    kind,
    methods,
    names,
    place,
    unknown,
)

MAX_CHARACTERS = 10_000
MAX_DEPTH = 150
MAX_DIGITS = 40

_OPERATORS = {
    ast.Add: ("+", operator.add),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_WITHOUT_TEXT = re.compile(r"<[a-zA-Z]")  # <function ...>, <float32[100]>
_ALLOWED = "only calls, methods, numbers, strings, lists, tuples, + * / and unary minus may be used"


def parse(text: str) -> Any:
    """The schedule or penalty that `text` describes: the inverse of `repr`.

    Args:
        text: an expression such as `0.5 * Cosine(1e-3, steps=100).warmup(10)` or `L1(0.1).on("**/kernel")`.
            Names may be qualified, as in `schedules.Cosine`. A list of numbers is an array of hyperparameters.
            A tuple of numbers is a tree, one number a parameter.

    Raises:
        ValueError: it is no such expression; the message names the piece and what is allowed there. What the
            classes themselves refuse passes through, as a ValueError or a TypeError.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: `text` must be a string, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"the text has {len(text)} characters, more than the {MAX_CHARACTERS} allowed"
        )
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = ast.parse(text, mode="eval").body
        value = _Reader(text).value(tree)
    except SyntaxError as error:
        found = _WITHOUT_TEXT.search(text)
        if found:
            rest = "functions, traced values and arrays of more than 64 numbers have no text"
            raise ValueError(f"{_snippet(text[found.start() :])} cannot be read: {rest}") from None
        where = f" at column {error.offset}" if error.offset else ""
        raise ValueError(f"cannot read {_snippet(text)}: {error.msg}{where}") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{_snippet(text)} is nested too deeply") from None
    except (UnicodeError, Warning) as error:
        raise ValueError(f"cannot read {_snippet(text)}: {_snippet(str(error))}") from None
    if not is_whole_object(value):
        raise ValueError(f"{_snippet(text)} is {kind(value)}, not a schedule or a penalty")
    return value


class _Reader:
    """Turns the syntax tree of `text` into values, one method per kind of node."""

    def __init__(self, text: str):
        self.text = text
        self.depth = 0

    def value(self, node: ast.AST) -> Any:
        read = getattr(self, f"read_{type(node).__name__}", None)
        if read is None:
            raise self.error(node, _ALLOWED)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"{_snippet(self.text)} is nested deeper than {MAX_DEPTH} levels")
        result = read(node)
        self.depth -= 1
        return result

    def read_Constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, bytes | complex) or value is Ellipsis:
            raise self.error(node, "is not a number or a string")
        if (
            value == 0
            and isinstance(value, float)
            and re.search(r"^[^eE]*[1-9]", self.source(node))
        ):
            raise self.error(node, "does not fit a floating-point number")
        return self.number(node, value)

    def read_Name(self, node: ast.Name) -> Any:
        if node.id in ("inf", "nan"):
            return float(node.id)
        if node.id in names():
            raise self.error(node, f"must be called: `{node.id}(...)`")
        raise unknown("name", node.id, names())

    def read_List(self, node: ast.List) -> list:
        return [self.value(item) for item in node.elts]

    def read_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(arrays(self.value(item)) for item in node.elts)

    def read_Dict(self, node: ast.Dict) -> dict:
        keys = [None if key is None else self.value(key) for key in node.keys]
        if not all(isinstance(key, str | int) for key in keys):
            raise self.error(node, "must have strings as keys")
        return {key: arrays(self.value(item)) for key, item in zip(keys, node.values, strict=True)}

    def read_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or not is_number(value):
            raise self.error(node, "only a minus before a number may be used")
        return -value

    def read_BinOp(self, node: ast.BinOp) -> Any:
        sign, operation = _OPERATORS.get(type(node.op), ("", None))
        if operation is None:
            raise self.error(node, "only the operators + * / may be used")
        left, right = arrays(self.value(node.left)), arrays(self.value(node.right))
        others = [side for side in (left, right) if not is_ours(side)]
        if all(
            is_number(side) or (len(others) < 2 and isinstance(side, np.ndarray)) for side in others
        ):
            try:
                return self.number(node, operation(left, right))
            except ZeroDivisionError:
                raise self.error(node, "divides by zero") from None
            except OverflowError:
                raise self.error(node, "does not fit a floating-point number") from None
            except TypeError as error:
                if "unsupported operand" not in str(error):
                    raise
        raise self.error(
            node, f"`{sign}` is not defined between what is {kind(left)} and what is {kind(right)}"
        )

    def read_Call(self, node: ast.Call) -> Any:
        name, function = self.function(node.func)
        parameters = signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        if any(isinstance(item, ast.Starred) for item in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            raise self.error(node, "arguments must be written out, without `*` or `**`")
        if len(node.args) > len(positional):
            takes = f"it takes {', '.join(positional) or 'none'} by position"
            raise ValueError(f"{name} got {len(node.args)} arguments without a name; {takes}")
        given: dict[str, ast.AST] = dict(zip(positional, node.args, strict=False))
        for keyword in node.keywords:
            if keyword.arg in given:
                raise ValueError(f"{name} got `{keyword.arg}` twice")
            given[str(keyword.arg)] = keyword.value
        check_arguments(name, function, given)
        return call(
            name,
            function,
            {key: _fill(self.value(item), place(function, key)) for key, item in given.items()},
        )

    def function(self, node: ast.AST) -> tuple[str, Callable]:
        """What is called: a name, a method of an object or a named constructor of a class."""
        if isinstance(node, ast.Name):
            if node.id in HOLD_FUNCTIONS:
                raise ValueError(f"`{node.id}` holds a Python function, which has no text")
            if node.id not in names():
                raise unknown("name", node.id, names())
            return node.id, names()[node.id]
        if not isinstance(node, ast.Attribute):
            raise self.error(node, "cannot be called")
        if isinstance(node.value, ast.Name):
            return self.qualified(node.value.id, node.attr)
        value = self.value(node.value)
        if node.attr not in methods(value):
            raise unknown(f"method of what is {kind(value)},", node.attr, methods(value))
        return node.attr, getattr(value, node.attr)

    def qualified(self, owner: str, name: str) -> tuple[str, Callable]:
        """`schedules.Cosine` or `InverseSqrt.noam`."""
        both = f"{owner}.{name}"
        if both in names():
            return name, names()[both]
        if owner in names():
            known = constructors(names()[owner])
            if name not in known:
                raise unknown(f"constructor of {owner},", name, known)
            return both, known[name]
        within = [known for known in names() if known.startswith(f"{owner}.")]
        raise unknown("name", both, within) if within else unknown("name", owner, names())

    def number(self, node: ast.AST, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise self.error(node, f"has more than {MAX_DIGITS} digits")
        if isinstance(value, float) and math.isinf(value):
            raise self.error(node, "does not fit a floating-point number")
        return value

    def source(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or ""

    def error(self, node: ast.AST, message: str) -> ValueError:
        return ValueError(
            f"{_snippet(self.source(node))}, column {getattr(node, 'col_offset', 0) + 1}: {message}"
        )


def _fill(value: Any, where: str) -> Any:
    """An argument as it is passed on: a list of numbers is an array, unless a tuple is asked for."""
    if where == "array" or not isinstance(value, list):
        return arrays(value)
    return value if where == "static" else [arrays(item) for item in value]


def _snippet(text: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"
