"""Which parameters are meant: paths, patterns, rules and predicates, and a report of what they chose.

A parameter's path is its names joined by `/`, as in `encoder/layer_0/kernel`, the same for Linen
variables, NNX states and modules, and plain trees. A selection gives each path a multiplier;
0 leaves the parameter out.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from jax_lrreg._arrays import leaves as leaves
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree, static


@pytree
class Rules:
    """Ordered rules `(pattern, multiplier)`; the first pattern that matches a path decides.

    A pattern is a glob in which `*` and `?` stay within a name, `**` crosses names and `[...]` is a set of
    characters; `**/kernel` also matches a top-level `kernel`. One that begins with `re:` is a regular
    expression that must match the whole path. A path that no rule covers is left out.

    Attributes:
        rules: pairs of a pattern and a multiplier >= 0.

    Example:
        >>> Rules((("**/bias", 0.0), ("**", 1.0))).multiplier("head/bias", None)
        0.0
    """

    rules: tuple[tuple[str, float], ...] = static()

    def __post_init__(self):
        require(
            len(self.rules) > 0,
            "on",
            "rules",
            self.rules,
            "at least one pair (pattern, multiplier)",
        )
        for rule in self.rules:
            pair = isinstance(rule, tuple | list) and len(rule) == 2
            require(pair, "on", "rules", rule, "pairs (pattern, multiplier)")
            _regex(rule[0])
            require_number("on", "multiplier", rule[1], "a number >= 0", lambda x: x >= 0)
        object.__setattr__(
            self, "rules", tuple((pattern, float(number)) for pattern, number in self.rules)
        )

    def multiplier(self, path: str, value: Any) -> float | None:  # noqa: ARG002 - rules look at the path only
        """The multiplier of `path`, or None where no rule covers it."""
        return next(
            (number for pattern, number in self.rules if _regex(pattern).fullmatch(path)), None
        )

    def check(self, paths: Sequence[str]) -> None:
        """Raises unless every pattern matches one of `paths`, or there are none."""
        for pattern, _ in self.rules:
            if paths and not any(_regex(pattern).fullmatch(path) for path in paths):
                raise ValueError(
                    f"on: pattern {pattern!r} matches no parameter; {_nearest(pattern, paths)}"
                )

    def __repr__(self):
        if len(self.rules) == 1 and self.rules[0][1] == 1:
            return repr(self.rules[0][0])
        return repr(
            [
                (pattern, int(number) if number == int(number) else number)
                for pattern, number in self.rules
            ]
        )


@pytree
class Predicate:
    """A function `(path, value) -> bool or multiplier`.

    Attributes:
        function: called with each path and its array, while tracing.
    """

    function: Callable[[str, Any], Any] = static()

    def multiplier(self, path: str, value: Any) -> float | None:
        """What the function says of `path`."""
        number = self.function(path, value)
        require_number(
            "on", "predicate", float(number), "a bool or a number >= 0", lambda x: x >= 0
        )
        return float(number)

    def check(self, paths: Sequence[str]) -> None:
        """A function may choose nothing."""

    def __repr__(self):
        return repr(self.function)


def selection(spec: Any) -> Rules | Predicate:
    """A pattern, a list of rules, or a predicate, as the object that applies it."""
    if isinstance(spec, Rules | Predicate):
        return spec
    if isinstance(spec, str):
        return Rules(((spec, 1.0),))
    if isinstance(spec, list | tuple):
        return Rules(tuple(spec))
    if callable(spec):
        return Predicate(spec)
    raise TypeError(
        f"on: `pattern` must be a pattern, a list of rules or a function (path, value), got {spec!r}"
    )


def _regex(pattern: Any) -> re.Pattern:
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 256:
        raise TypeError(f"on: a pattern must be a text of 1 to 256 characters, got {pattern!r}")
    if pattern.startswith("re:"):
        try:
            return re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(f"on: {pattern!r} is no regular expression: {error}") from None
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    texts = []
    for part in parts:
        if part in special:
            texts.append(special[part])
        elif part.startswith("[") and part.endswith("]"):
            texts.append(
                "[" + part[1:-1].replace("\\", r"\\").replace("!", "^", part[1] == "!") + "]"
            )
        else:
            texts.append(re.escape(part))
    return re.compile("".join(texts), re.DOTALL)


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, pattern.replace("*", "").strip("/"), path).ratio()

    ranked = sorted(paths, key=likeness, reverse=True)
    more = f", and {len(ranked) - 8} more" if len(ranked) > 8 else ""
    return f"the parameters are, nearest first: {', '.join(ranked[:8])}{more}"


class Report:
    """What a selection did with each parameter: prints as a table, and is a list of rows in `rows`.

    Attributes:
        rows: tuples (path, shape, what applies to it, why).
    """

    def __init__(self, title: str, rows: list[tuple[str, str, str, str]]):
        self.title, self.rows = title, rows

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", title_style="bold")
        for heading in ("parameter", "shape", "penalty", "why"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*row, style=None if row[2] else "dim")
        return table

    def __str__(self) -> str:
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    __repr__ = __str__
