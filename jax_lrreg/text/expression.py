"""`parse`: an expression over the closed set of names, read node by node."""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_lrreg._struct import LONGEST_ARRAY, is_pytree
from jax_lrreg.text import vocabulary
from jax_lrreg.text.vocabulary import array_of, kind, snippet, unknown

MAX_CHARACTERS = 10_000

_OPERATORS = {
    ast.Add: ("+", operator.add),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_ALLOWED = "only calls, methods, numbers, strings, lists, tuples, + * / and unary minus may be used"
_SHAPE = re.compile(r"<[a-zA-Z]")  # <function ...>, <float32[100]>
_WITHOUT_TEXT = (
    f"functions, traced values, arrays of more than {LONGEST_ARRAY} numbers and long trees have no "
    "text; see to_dict"
)


def parse(text: str) -> Any:
    """The schedule or penalty that `text` describes: the inverse of `repr`.

    Nothing is evaluated, and it takes time in proportion to the text, so the text may come from
    anyone. A pattern in it that begins with `re:` is only looked at here; it may take time without
    end once it meets a parameter.

    Args:
        text: an expression such as `0.5 * Cosine(1e-3, steps=100).warmup(10)` or
            `L1(0.1).on("**/kernel")`, of at most 10,000 characters. Names may be qualified, as in
            `schedules.Cosine`. A list of numbers is an array of hyperparameters. A tuple of numbers
            is a tree, one number a parameter.

    Raises:
        ValueError: it is no such expression; the message names the piece and what is allowed there.
            What the classes themselves refuse passes through, as a ValueError or a TypeError.

    Example:
        >>> parse("0.5 * Cosine(1e-3, steps=100).warmup(10)")
        0.5 * Cosine(0.001, steps=100).warmup(10)
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: `text` must be a string, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        allowed = f"more than the {MAX_CHARACTERS} allowed"
        raise ValueError(f"the text has {len(text)} characters, {allowed}")
    text = text.strip()
    try:
        with warnings.catch_warnings():  # of odd escapes and the like, which Python would print
            warnings.simplefilter("error")
            tree = ast.parse(text, mode="eval").body
        value = _Reader(text).value(tree)
    except SyntaxError as error:
        shape = _SHAPE.search(text)
        if shape:
            found = snippet(text[shape.start() :])
            raise ValueError(f"{found} cannot be read: {_WITHOUT_TEXT}") from None
        where = f" at column {error.offset}" if error.offset else ""
        raise ValueError(f"cannot read {snippet(text)}: {error.msg}{where}") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{snippet(text)} is nested too deeply") from None
    except (UnicodeError, Warning) as error:
        raise ValueError(f"cannot read {snippet(text)}: {snippet(str(error))}") from None
    if not vocabulary.is_whole(value):
        raise ValueError(f"{snippet(text)} is {kind(value)}, not a schedule or a penalty")
    return value


class _Reader:
    """Turns the syntax tree of `text` into values, one method per kind of node."""

    def __init__(self, text: str):
        self.text, self.depth = text, 0
        self.lines = text.encode().splitlines()  # ast counts bytes, from the beginning of a line

    def value(self, node: ast.expr) -> Any:
        read = getattr(self, f"read_{type(node).__name__}", None)
        if read is None:
            raise self.error(node, _ALLOWED)
        # Below this Python's own limit would do it, in the middle of a constructor.
        self.depth += 1
        if self.depth > vocabulary.MAX_DEPTH:
            raise self.error(node, f"is nested deeper than {vocabulary.MAX_DEPTH} levels")
        result = read(node)
        self.depth -= 1
        return result

    def argument(self, node: ast.expr, is_tuple: bool) -> Any:
        """An argument as it is passed on: a list of numbers is an array where no tuple is meant."""
        value = self.value(node)
        tuple_of = is_tuple and isinstance(value, list)
        return [array_of(item) for item in value] if tuple_of else array_of(value)

    def read_Constant(self, node: ast.Constant) -> Any:
        value = node.value
        if not (value is None or isinstance(value, int | float | str)):
            raise self.error(node, "is not a number or a string")
        if isinstance(value, float) and value == 0:  # 1e-400, too
            digits = self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]
            if re.match(b"[^eE]*[1-9]", digits):
                raise self.error(node, "does not fit a floating-point number")
        return self.number(node, value)

    def read_Name(self, node: ast.Name) -> Any:
        if node.id in ("inf", "nan"):
            return float(node.id)
        if node.id in vocabulary.names():
            raise self.error(node, f"must be called: `{node.id}(...)`")
        raise unknown("name", node.id, vocabulary.names())

    def read_List(self, node: ast.List) -> list:
        return [self.value(item) for item in node.elts]

    def read_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(array_of(self.value(item)) for item in node.elts)

    def read_Dict(self, node: ast.Dict) -> dict:
        keys = [None if key is None else self.value(key) for key in node.keys]
        if not all(isinstance(key, str | int) for key in keys):
            raise self.error(node, "must have strings as keys")
        items = [array_of(self.value(item)) for item in node.values]
        return dict(zip(keys, items, strict=True))

    def read_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or not vocabulary.is_number(value):
            raise self.error(node, "only a minus before a number may be used")
        return -value

    def read_BinOp(self, node: ast.BinOp) -> Any:
        sign, operation = _OPERATORS.get(type(node.op), ("", None))
        if operation is None:
            raise self.error(node, "only the operators + * / may be used")
        left, right = array_of(self.value(node.left)), array_of(self.value(node.right))
        try:
            if not _may_meet(left, right):
                raise TypeError("unsupported operand")  # as Python says of two objects
            return self.number(node, operation(left, right))
        except ZeroDivisionError:
            raise self.error(node, "divides by zero") from None
        except OverflowError:
            raise self.error(node, "does not fit a floating-point number") from None
        except TypeError as error:
            if "unsupported operand" not in str(error):
                raise
        both = f"between what is {kind(left)} and what is {kind(right)}"
        raise self.error(node, f"`{sign}` is not defined {both}")

    def read_Call(self, node: ast.Call) -> Any:
        name, function = self.function(node.func)
        return vocabulary.made(name, function, self.arguments(node, name, function), self.argument)

    def arguments(self, node: ast.Call, name: str, function: Callable) -> dict[str, ast.expr]:
        """The arguments of a call by their names."""
        takes = [
            p.name for p in vocabulary.parameters(function).values() if p.kind is not p.KEYWORD_ONLY
        ]
        if len(node.args) > len(takes):
            by_position = f"it takes {', '.join(takes) or 'none'} by position"
            count = len(node.args)
            raise ValueError(f"{name} got {count} arguments without a name; {by_position}")
        given = dict(zip(takes, node.args, strict=False))
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.error(node, "arguments must be written out, without `**`")
            if keyword.arg in given:
                raise ValueError(f"{name} got `{keyword.arg:.60}` twice")
            given[keyword.arg] = keyword.value
        return given

    def function(self, node: ast.expr) -> tuple[str, Callable]:
        """What is called: a name, a method of an object or a named constructor of a class."""
        if isinstance(node, ast.Name):
            if node.id in vocabulary.HOLD_FUNCTIONS:
                raise ValueError(f"`{node.id}` holds a Python function, which has no text")
            if node.id not in vocabulary.names():
                raise unknown("name", node.id, vocabulary.names())
            return node.id, vocabulary.names()[node.id]
        if not isinstance(node, ast.Attribute):
            raise self.error(node, "cannot be called")
        if isinstance(node.value, ast.Name):
            return self.qualified(node.value.id, node.attr)
        value = self.value(node.value)
        if node.attr not in vocabulary.methods(value):
            raise unknown(f"method of what is {kind(value)},", node.attr, vocabulary.methods(value))
        return node.attr, getattr(value, node.attr)

    def qualified(self, owner: str, name: str) -> tuple[str, Callable]:
        """`schedules.Cosine` or `InverseSqrt.t5`."""
        both = f"{owner}.{name}"
        if both in vocabulary.names():
            return name, vocabulary.names()[both]
        if owner in vocabulary.names():
            known = vocabulary.constructors(vocabulary.names()[owner])
            if name not in known:
                raise unknown(f"constructor of {owner},", name, known)
            return both, known[name]
        within = [known for known in vocabulary.names() if known.startswith(f"{owner}.")]
        raise unknown("name", both if within else owner, within or vocabulary.names())

    def number(self, node: ast.expr, value: object) -> object:
        if isinstance(value, int) and abs(value) >= 10**vocabulary.MAX_DIGITS:
            raise self.error(node, f"has more than {vocabulary.MAX_DIGITS} digits")
        if isinstance(value, float) and math.isinf(value):
            raise self.error(node, "does not fit a floating-point number")
        return value

    def error(self, node: ast.expr, message: str) -> ValueError:
        source = ast.get_source_segment(self.text, node) or ""
        return ValueError(f"{snippet(source)}, column {node.col_offset + 1}: {message}")


def _may_meet(left: object, right: object) -> bool:
    """Whether two operands are both numbers, or an object and a number, an array or an object.

    No array meets a number: by NumPy, [2] * 2000000000 is negative without a word.
    """
    ours = [is_pytree(type(side)) for side in (left, right)]
    arrays = [any(ours) and isinstance(side, np.ndarray) for side in (left, right)]
    numbers = [vocabulary.is_number(side) for side in (left, right)]
    return all(map(any, zip(ours, arrays, numbers, strict=True)))
