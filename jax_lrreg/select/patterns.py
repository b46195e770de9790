"""Which paths a pattern means: a glob, in linear time, or a regular expression."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


def matcher(pattern: object, owner: str = "on") -> Callable[[str], bool]:
    """Whether a path is meant by `pattern`, as a function of the path."""
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 256:
        allowed = "a pattern must be a text of 1 to 256 characters"
        raise TypeError(f"{owner}: {allowed}, got {pattern!r:.300}")
    try:
        return _expression(pattern) if pattern.startswith("re:") else _glob(pattern)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> Callable[[str], bool]:
    try:
        expression = re.compile(pattern[3:])
    except (re.error, OverflowError, RecursionError) as error:  # `a{99999999999}` overflows
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return lambda path: expression.fullmatch(path) is not None


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> Callable[[str], bool]:
    # Not by Python's regular expressions: they try every way to share a path among the stars, and
    # "?*?*?*?*?*?*?*?*?*?*?*?*X" takes them 10^8 steps for a path of 30 characters. Here all places
    # of the pattern that the characters so far lead to are kept at once, and each character is
    # looked at once.
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
    """A place between the characters of a pattern: what leads away from it, and where to."""

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
        raise ValueError(f"pattern {pattern!r} holds the set of characters {token!r}, {why}")
    sign, characters = inside.groups()
    pieces = re.findall("(.)-(.)|(.)", characters, re.DOTALL)
    ranges = tuple((low or one, high or one) for low, high, one in pieces)
    for low, high in ranges:
        wrong = low > high or low <= "/" <= high
        why = "which runs backwards" if low > high else "but no set takes the '/' between names"
        if wrong:
            raise ValueError(f"pattern {pattern!r} holds the range '{low}-{high}', {why}")
    return _Place(ranges + _SLASH, True) if sign else _Place(ranges)


def require_alive(owner: str, pattern: str, paths: Sequence[str]) -> None:
    """Refuses a pattern that matches none of `paths`, where there are any."""
    if paths and not any(map(matcher(pattern, owner), paths)):
        near = _nearest(pattern, paths)
        raise ValueError(f"{owner}: pattern {pattern!r} matches no parameter; {near}")


def _nearest(pattern: str, paths: Sequence[str]) -> str:
    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, pattern.replace("*", "").strip("/"), path).ratio()

    ranked = sorted(paths, key=likeness, reverse=True)
    more = f", and {len(ranked) - 8} more" if len(ranked) > 8 else ""
    names = (path or "'' (an array alone)" for path in ranked[:8])
    return f"the parameters are, nearest first: {', '.join(names)}{more}"
