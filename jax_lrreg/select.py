"""Which parameters are meant: paths, patterns, rules and predicates, and a report of what they chose.

A parameter's path is its names joined by `/`, as in `encoder/layer_0/kernel`, the same for Linen
variables, NNX states and modules, and plain trees. A selection gives each path a multiplier;
0 leaves the parameter out.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import TypeAlias

import chex
import jax
import numpy as np

from jax_lrreg._arrays import known, leaves
from jax_lrreg._check import require, require_number
from jax_lrreg._patterns import matcher, require_alive
from jax_lrreg._struct import number_text, pytree, static

_WIDTH = 80  # of a report

Selection: TypeAlias = "Rules | Predicate"
Factor: TypeAlias = "chex.Numeric | Callable[[chex.Numeric], chex.Numeric]"
RulesLike: TypeAlias = "str | Sequence[tuple[str, Factor]] | Callable | Factors | FactorFunction"
Layer: TypeAlias = "str | tuple[str, ...]"


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
            matcher(rule[0])
        rules = ((text, _multiplier("multiplier", x, "a number >= 0")) for text, x in self.rules)
        object.__setattr__(self, "rules", tuple(rules))

    def rule(self, path: str) -> tuple[str, float] | None:
        """The rule that decides about `path`, or None where none covers it."""
        return next((rule for rule in self.rules if matcher(rule[0])(path)), None)

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
            require_alive("on", pattern, paths)

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


@pytree
class Factors:
    """Ordered rules `(pattern, factor)`, of which the first that matches a path gives the parameter its factor.

    Unlike the multipliers of `Rules`, factors are data: they may be traced, swept and differentiated, and they may
    be schedules. It prints as the list of its rules.

    Attributes:
        patterns: as in `Rules`.
        factors: as many: numbers >= 0, arrays of them, or functions of the number of updates.

    Raises:
        ValueError: there is no rule, a pattern is none, or a factor is negative.
        TypeError: a factor is neither a number nor a function.

    Example:
        >>> Factors(("head/**", "**"), factors=(1.0, 0.1))
        [('head/**', 1.0), ('**', 0.1)]
    """

    patterns: tuple[str, ...] = static()
    _: KW_ONLY
    factors: tuple[Factor, ...]

    def __post_init__(self):
        require(self.patterns != (), "rules", "rules", [], "at least one pair (pattern, factor)")
        for pattern, factor in zip(self.patterns, self.factors, strict=True):
            matcher(pattern)
            require_factor(factor)

    def of(self, path: str, value: jax.Array) -> Factor:  # noqa: ARG002 - rules look at paths only
        """The factor of `path`, which a rule must cover: a rate is not left out in silence."""
        index = self._rule(path)
        if index is None:
            hint = "end the list with ('**', 1.0) to leave the rest as it is"
            raise ValueError(f"rules: no rule covers the parameter {path!r}; {hint}")
        return self.factors[index]

    def reason(self, path: str, value: jax.Array) -> str:  # noqa: ARG002
        """Which rule decided about `path`, in words."""
        index = self._rule(path)
        return "no rule" if index is None else f"by {self.patterns[index]!r}"

    def check(self, paths: Sequence[str]) -> None:
        """Raises unless every pattern matches one of `paths`, or there are none."""
        for pattern in self.patterns:
            require_alive("rules", pattern, paths)

    def _rule(self, path: str) -> int | None:
        found = (n for n, pattern in enumerate(self.patterns) if matcher(pattern)(path))
        return next(found, None)

    def __repr__(self):
        pairs = zip(self.patterns, self.factors, strict=True)
        return f"[{', '.join(f'({pattern!r}, {number_text(x)})' for pattern, x in pairs)}]"


@pytree
class FactorFunction:
    """A function `(path, value) -> factor`.

    Attributes:
        function: called with each path and its array, while tracing; it returns what a rule may hold.
    """

    function: Callable[[str, jax.Array], Factor] = static()

    def of(self, path: str, value: jax.Array) -> Factor:
        """What the function says of `path`."""
        factor = self.function(path, value)
        require_factor(factor)
        return factor

    def reason(self, path: str, value: jax.Array) -> str:  # noqa: ARG002
        """Which function decided about `path`, in words."""
        return f"by {number_text(self.function)}"

    def check(self, paths: Sequence[str]) -> None:
        """A function has no pattern that could match nothing."""


def factors(spec: "RulesLike") -> Factors | FactorFunction:
    """A pattern, a list of rules whose numbers are data, or a function, as the object that applies it."""
    if isinstance(spec, Factors | FactorFunction):
        return spec
    if isinstance(spec, str):
        spec = [(spec, 1.0)]
    if isinstance(spec, list | tuple):
        for rule in spec:
            pair = isinstance(rule, tuple | list) and len(rule) == 2
            require(pair, "rules", "rules", rule, "pairs (pattern, factor)")
        return Factors(tuple(r[0] for r in spec), factors=tuple(r[1] for r in spec))
    if isinstance(spec, dict) or not callable(spec):
        why = " (the first that matches decides, and a dict says nothing of order)"
        allowed = f"a list of pairs (pattern, factor){why * isinstance(spec, dict)}, or a function"
        raise TypeError(f"rules: `rules` must be {allowed}, got {spec!r:.300}")
    return FactorFunction(spec)


def layer_decay(params: chex.ArrayTree, decay: chex.Numeric, *, order: Sequence[Layer]) -> Factors:
    """Smaller learning rates for lower layers: rules for `transforms.scale_by_rules`.

        factor = decay^(layers - 1 - layer),    layer = 0 for the first in `order`, layers - 1 for the last

    Args:
        params: a tree with the parameters' paths, as arrays or shapes.
        decay: a number in (0, 1].
        order: patterns from the first layer to the last. One with a `*` stands for a layer for each text that the
            `*` takes, in natural order (`block_2` before `block_10`); several patterns in a tuple are one layer.

    Raises:
        ValueError: a parameter is outside `order`, or a pattern matches none.

    Source:
        Bao et al., BEiT: BERT pre-training of image transformers, 2021, as in timm's `param_groups_layer_decay`.

    Example:
        >>> params = {"embed": {"w": 1.0}, "block_2": {"w": 1.0}, "block_10": {"w": 1.0}, "head": {"w": 1.0}}
        >>> layer_decay(params, 0.5, order=["embed/**", "block_*/**", "head/**"])
        [('embed/**', 0.125), ('block_2/**', 0.25), ('block_10/**', 0.5), ('head/**', 1.0)]
    """
    allowed = "a number in (0, 1]"
    require_number("layer_decay", "decay", decay, allowed, lambda x: (x > 0) & (x <= 1))
    layers = _layers("layer_decay", params, order)
    return _by_layer(layers, [decay ** (len(layers) - 1 - n) for n in range(len(layers))])


def spread(
    params: chex.ArrayTree, low: chex.Numeric, high: chex.Numeric, *, order: Sequence[Layer]
) -> Factors:
    """Factors from `low` at the first layer to `high` at the last, in equal ratios: discriminative rates.

        factor = low (high / low)^(layer / (layers - 1))

    It is fastai's `slice(low, high)`; a single layer gets `high`.

    Args:
        params: a tree with the parameters' paths, as arrays or shapes.
        low: a positive number.
        high: a positive number.
        order: as in `layer_decay`.

    Source:
        Howard and Ruder, Universal language model fine-tuning for text classification, 2018, section 3.2.

    Example:
        >>> params = {"embed": 1.0, "body": 1.0, "head": 1.0}
        >>> spread(params, 0.01, 1.0, order=["embed", "body", "head"])
        [('embed', 0.01), ('body', 0.1), ('head', 1.0)]
    """
    for name, value in (("low", low), ("high", high)):
        require_number("spread", name, value, "a positive number", lambda x: x > 0)
    layers = _layers("spread", params, order)
    last = max(len(layers) - 1, 1)
    ends = {0: low, len(layers) - 1: high}  # exactly
    return _by_layer(
        layers, [ends.get(n, low * (high / low) ** (n / last)) for n in range(len(layers))]
    )


def _by_layer(layers: list[tuple[str, ...]], values: list[chex.Numeric]) -> Factors:
    pairs = [(p, value) for layer, value in zip(layers, values, strict=True) for p in layer]
    return Factors(tuple(p for p, _ in pairs), factors=tuple(value for _, value in pairs))


def _layers(owner: str, params: chex.ArrayTree, order: Sequence[Layer]) -> list[tuple[str, ...]]:
    """The patterns of each layer, a `*` in one expanded; every parameter is in one of them."""
    listed = isinstance(order, list | tuple) and len(order) > 0
    require(listed, owner, "order", order, "a list of patterns, from the first layer to the last")
    paths = [leaf.path for leaf in leaves(params)]
    layers: list[tuple[str, ...]] = []
    for layer in order:
        several = isinstance(layer, list | tuple)
        layers += [tuple(layer)] if several else [(one,) for one in _expanded(layer, paths)]
    for pattern in itertools.chain.from_iterable(layers):
        require_alive(owner, pattern, paths)
    for path in paths:
        inside = any(matcher(pattern)(path) for layer in layers for pattern in layer)
        require(inside, owner, "order", order, f"such that {path!r} is in one of its layers")
    return layers


def _expanded(pattern: str, paths: Sequence[str]) -> list[str]:
    """A pattern for each layer that `pattern` stands for: its names up to the last with a `*` are written out."""
    matcher(pattern)
    names = pattern.split("/")
    starred = [n for n, name in enumerate(names) if "*" in name.replace("**", "")]
    if pattern.startswith("re:") or not starred:
        return [pattern]
    head, rest = "/".join(names[: starred[-1] + 1]), names[starred[-1] + 1 :]
    found = set()
    for path in filter(matcher(pattern), paths):
        parts = path.split("/")
        prefixes = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        found.add(next(filter(matcher(head), prefixes)))
    escaped = (re.sub(r"([*?\[])", r"[\1]", prefix) for prefix in sorted(found, key=_natural))
    return ["/".join([prefix, *rest]) for prefix in escaped] or [pattern]


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in a text by their size."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", text)]


def _multiplier(argument: str, value: object, allowed: str) -> float:
    """The number of a rule. It is structure, which a traced number is not: it has no value yet."""
    require(known(value), "on", argument, value, allowed, error=TypeError)
    require_number("on", argument, value, allowed, lambda x: x.ndim == 0 and x >= 0)
    return float(np.asarray(value).item())


def require_factor(factor: Factor) -> None:
    """Refuses what is no factor: not a number >= 0, an array of them, or a function of the count."""
    if not callable(factor):
        allowed = "a number >= 0, an array of them, or a schedule"
        require_number("rules", "factor", factor, allowed, lambda x: x >= 0)


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
