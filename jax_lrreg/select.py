"""Which parameters are meant: paths, patterns, rules and predicates, and a report of what they chose.

A parameter's path is its names joined by `/`, as in `encoder/layer_0/kernel`, the same for Linen
variables, NNX states and modules, and plain trees. A selection gives each path a multiplier;
0 leaves the parameter out.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text, pytree, static

_WIDTH = 80  # of a report

Selection: TypeAlias = "Rules | Predicate"


@pytree
class Rules:
    """Ordered rules `(pattern, multiplier)`; the first pattern that matches a path decides.

    A pattern is a glob in which `*` and `?` stay within a name, `**` crosses names and `[...]` is a set of
    characters, `[!...]` all others; `**/kernel` also matches a top-level `kernel`. It takes one look at each
    character of a path. One that begins with `re:` is a regular expression that must match the whole path: as it
    may take time without end, it should come from someone you trust. A path that no rule covers is left out.

    Attributes:
        rules: pairs of a pattern and a multiplier >= 0.

    Raises:
        ValueError: a set of characters or a regular expression is none, or a multiplier is negative.
        TypeError: it is no list of pairs, or a pattern is no text of 1 to 256 characters.

    Example:
        >>> Rules((("**/bias", 0.0), ("**", 1.0))).multiplier("head/bias", None)
        0.0
    """

    rules: tuple[tuple[str, float], ...] = static()

    def __post_init__(self):
        allowed = "at least one pair (pattern, multiplier)"
        require(len(self.rules) > 0, "on", "rules", self.rules, allowed)
        for rule in self.rules:
            pair = isinstance(rule, tuple | list) and len(rule) == 2
            require(pair, "on", "rules", rule, "pairs (pattern, multiplier)")
            _matcher(rule[0])
        rules = ((text, _multiplier("multiplier", x, "a number >= 0")) for text, x in self.rules)
        object.__setattr__(self, "rules", tuple(rules))

    def rule(self, path: str) -> tuple[str, float] | None:
        """The rule that decides about `path`, or None where none covers it."""
        return next((rule for rule in self.rules if _matcher(rule[0])(path)), None)

    def multiplier(self, path: str, value: jax.Array | None) -> float | None:  # noqa: ARG002
        """The multiplier of `path`, or None where no rule covers it. Rules look at the path only."""
        rule = self.rule(path)
        return None if rule is None else rule[1]

    def reason(self, path: str, value: jax.Array | None) -> str:  # noqa: ARG002
        """Which rule decided about `path`, in words."""
        rule = self.rule(path)
        if rule is not None:
            return f"{'chosen' if rule[1] else 'left out'} by {rule[0]!r}"
        count = len(self.rules)
        return f"not covered by {repr(self) if count == 1 else f'any of the {count} rules'}"

    def check(self, paths: Sequence[str]) -> None:
        """Raises unless every pattern matches one of `paths`, or there are none."""
        for pattern, _ in self.rules:
            if paths and not any(map(_matcher(pattern), paths)):
                near = _nearest(pattern, paths)
                raise ValueError(f"on: pattern {pattern!r} matches no parameter; {near}")

    def __repr__(self):
        if len(self.rules) == 1 and self.rules[0][1] == 1:
            return repr(self.rules[0][0])
        # Python would write 1e41 in full, and `parse` takes no whole number of that length.
        short = (f"({p!r}, {int(x) if x.is_integer() and x < 2**53 else x})" for p, x in self.rules)
        return f"[{', '.join(short)}]"


@pytree
class Predicate:
    """A function `(path, value) -> bool or multiplier`.

    Attributes:
        function: called with each path and its array, while tracing.
    """

    function: Callable[[str, jax.Array], bool | float] = static()

    def multiplier(self, path: str, value: jax.Array) -> float:
        """What the function says of `path`."""
        number = self.function(path, value)
        flag = isinstance(number, bool | np.bool_)
        return _multiplier(
            "predicate", float(number) if flag else number, "a bool or a number >= 0"
        )

    def reason(self, path: str, value: jax.Array) -> str:
        """What the function said of `path`, in words."""
        return f"{'chosen' if self.multiplier(path, value) else 'left out'} by {self!r}"

    def check(self, paths: Sequence[str]) -> None:
        """A function may choose nothing."""

    def __repr__(self):
        return number_text(self.function)


def selection(spec: "str | Sequence[tuple[str, float]] | Callable | Selection") -> Selection:
    """A pattern, a list of rules, or a predicate, as the object that applies it."""
    if isinstance(spec, Rules | Predicate):
        return spec
    if isinstance(spec, str):
        return Rules(((spec, 1.0),))
    if isinstance(spec, list | tuple):
        return Rules(tuple(spec))
    if callable(spec):
        return Predicate(spec)
    allowed = "a pattern, a list of rules (pattern, multiplier) or a function (path, value)"
    raise TypeError(f"on: `pattern` must be {allowed}, got {spec!r}")


def _multiplier(argument: str, value: object, allowed: str) -> float:
    """The number of a rule. It is structure, which a traced number is not: it has no value yet."""
    require(known(value), "on", argument, value, allowed, error=TypeError)
    require_number("on", argument, value, allowed, lambda x: x.ndim == 0 and x >= 0)
    return float(np.asarray(value).item())


def _matcher(pattern: object) -> Callable[[str], bool]:
    """Whether a path is meant by `pattern`, as a function of the path."""
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 256:
        raise TypeError(
            f"on: a pattern must be a text of 1 to 256 characters, got {pattern!r:.300}"
        )
    return _expression(pattern) if pattern.startswith("re:") else _glob(pattern)


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> Callable[[str], bool]:
    try:
        expression = re.compile(pattern[3:])
    except (re.error, OverflowError, RecursionError) as error:  # `a{99999999999}` overflows
        raise ValueError(f"on: {pattern!r} is no regular expression: {error}") from None
    return lambda path: expression.fullmatch(path) is not None


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> Callable[[str], bool]:
    # Not by Python's regular expressions: they try every way to share a path among the stars, and
    # "?*?*?*?*?*?*?*?*?*?*?*?*X" takes them 10^7 steps for a path of 30 characters. Here all places of the pattern
    # that the characters so far lead to are kept at once, and each character is looked at once.
    places = _places(pattern)

    def reached(found: Iterable[int]) -> frozenset[int]:
        order = [*found]
        for place in order:  # it grows meanwhile
            order += [place + n for n in places[place].skips if place + n not in order]
        return frozenset(order)

    @functools.lru_cache(maxsize=4096)  # few sets of places ever come up: one look-up a character
    def after(found: frozenset[int], character: str) -> frozenset[int]:
        taken = [place for place in found if places[place].takes(character)]
        return reached(place if places[place].stays else place + 1 for place in taken)

    @functools.lru_cache(maxsize=4096)
    def matches(path: str) -> bool:
        return len(places) - 1 in functools.reduce(after, path, reached([0]))

    return matches


class _Place(NamedTuple):
    """A place before, between or after the characters of a pattern: what leads away from it, and where to."""

    ranges: tuple[tuple[str, str], ...] = ()  # one of these characters leads on to the next place,
    negated: bool = False  # or any but these,
    stays: bool = False  # or back here;
    skips: tuple[int, ...] = ()  # and so many places further lies one that needs no character.

    def takes(self, character: str) -> bool:
        return self.negated != any(low <= character <= high for low, high in self.ranges)


_SLASH = (("/", "/"),)
_TOKENS = re.compile(r"(?:(?<=/)|^)\*\*/|\*+|\?|\[!?\]?[^\]]*\]?|.", re.DOTALL)


def _places(pattern: str) -> list[_Place]:
    places: list[_Place] = []
    for token in _TOKENS.findall(pattern):
        if token == "**/":  # nothing, or any characters and a slash
            any_names = _Place(negated=True, stays=True, skips=(1,))
            places += [_Place(skips=(1, 3)), any_names, _Place(_SLASH)]
        elif token[0] == "*":
            places.append(_Place(_SLASH if token == "*" else (), True, stays=True, skips=(1,)))
        elif token[0] == "[":
            places.append(_set(pattern, token))
        else:
            places.append(_Place(_SLASH, True) if token == "?" else _Place(((token, token),)))
    return [*places, _Place()]


def _set(pattern: str, token: str) -> _Place:
    """The place of a set of characters such as `[a-z_]` or `[!0-9]`."""
    inside = re.fullmatch(r"\[(!?)(.+)\]", token, re.DOTALL)
    if inside is None:
        why = "which is empty or never closed; the bracket itself is '[[]'"
        raise ValueError(f"on: pattern {pattern!r} holds the set of characters {token!r}, {why}")
    sign, characters = inside.groups()
    pieces = re.findall("(.)-(.)|(.)", characters, re.DOTALL)
    ranges = tuple((low or one, high or one) for low, high, one in pieces)
    for low, high in ranges:
        wrong = low > high or low <= "/" <= high
        why = "which runs backwards" if low > high else "but no set takes the '/' between names"
        if wrong:
            raise ValueError(f"on: pattern {pattern!r} holds the range '{low}-{high}', {why}")
    return _Place(ranges + _SLASH, True) if sign else _Place(ranges)


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, pattern.replace("*", "").strip("/"), path).ratio()

    ranked = sorted(paths, key=likeness, reverse=True)
    more = f", and {len(ranked) - 8} more" if len(ranked) > 8 else ""
    return f"the parameters are, nearest first: {', '.join(ranked[:8])}{more}"


class Report:
    """What was decided for each parameter: prints as a table 80 columns wide.

    Attributes:
        title: what it is a report of.
        rows: one tuple of texts a parameter, its path first.
        headings: of the columns.
    """

    def __init__(
        self,
        title: str,
        rows: list[tuple[str, ...]],
        headings: Sequence[str] = ("parameter", "shape", "penalty", "why"),
    ):
        self.title, self.rows, self.headings = title, rows, tuple(headings)

    def __repr__(self) -> str:
        pieces = [
            [_pieces(cell, " /" if c == 0 else " ") for c, cell in enumerate(row)]
            for row in (self.headings, *self.rows)
        ]
        columns = list(zip(*pieces, strict=True))
        widths = [max(len("".join(cell)) for cell in column) for column in columns]
        least = [max(len(piece) for cell in column for piece in cell) for column in columns]
        while sum(widths) + 2 * len(widths) - 2 > _WIDTH and widths != least:
            # The widest column that has something to break gives way.
            spare = [w if w > least[c] else 0 for c, w in enumerate(widths)]
            widths[spare.index(max(spare))] -= 1
        pieces.insert(1, [["-" * width] for width in widths])
        lines = []
        for row in pieces:
            cells = [_filled(cell, width) for cell, width in zip(row, widths, strict=True)]
            for parts in itertools.zip_longest(*cells, fillvalue=""):
                texts = (f"{part:{width}}" for part, width in zip(parts, widths, strict=True))
                lines.append("  ".join(texts).rstrip())
        return "\n".join([*_filled(_pieces(self.title, " "), _WIDTH), "", *lines])


def _pieces(text: str, breaks: str) -> list[str]:
    """`text` in pieces that may stand on lines of their own: nothing is broken within a word or a pattern."""
    return re.findall(f"[^{breaks}]*[{breaks}]|[^{breaks}]+", text) or [""]


def _filled(pieces: Sequence[str], width: int) -> list[str]:
    """The lines that `pieces` fill."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return lines
