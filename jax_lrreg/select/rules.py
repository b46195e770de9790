"""Rules: ordered patterns, or a function, that give each path a multiplier or a factor."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY
from typing import Any, TypeAlias

import chex
import numpy as np

from jax_lrreg._arrays import known
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text, pytree, static
from jax_lrreg.select.patterns import matcher, require_alive

Selection: TypeAlias = "Rules | Predicate"
Factor: TypeAlias = "chex.Numeric | Callable[[chex.Numeric], chex.Numeric]"
RulesLike: TypeAlias = "str | Sequence[tuple[str, Factor]] | Callable | Factors | FactorFunction"

_OWNER = "scale_by_rules"  # whose argument factors are


@pytree
class Rules:
    """Ordered rules `(pattern, multiplier)`; the first pattern that matches a path decides.

    A pattern is a glob in which `*` and `?` stay within a name, `**` crosses names and `[...]` is a
    set of characters, `[!...]` all others; `**/kernel` also matches a top-level `kernel`. It takes
    one look at each character of a path. One that begins with `re:` is a regular expression that
    must match the whole path: as it may take time without end, it should come from someone you
    trust. A path that no rule covers is left out.

    Attributes:
        rules: pairs of a pattern and a multiplier >= 0.

    Raises:
        ValueError: a set of characters or a regular expression is none, or a multiplier is
            negative.
        TypeError: it is no list of pairs, or a pattern is no text of 1 to 256 characters.

    Example:
        >>> Rules((("**/bias", 0.0), ("**", 1.0))).multiplier("head/bias", None)
        0.0
    """

    rules: tuple[tuple[str, float], ...] = static()

    def __post_init__(self):
        allowed = "at least one pair (pattern, multiplier)"
        listed = isinstance(self.rules, tuple | list)
        require(listed, "on", "rules", self.rules, f"a list of {allowed}", error=TypeError)
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

    def multiplier(self, path: str, value: chex.Array | None) -> float | None:  # noqa: ARG002
        """The multiplier of `path`, or None where no rule covers it."""
        rule = self.rule(path)
        return None if rule is None else rule[1]

    def reason(self, path: str, value: chex.Array | None) -> str:  # noqa: ARG002
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

    function: Callable[[str, chex.Array], bool | float] = static()

    def __post_init__(self):
        allowed = "a function (path, value)"
        require(callable(self.function), self, "function", self.function, allowed, TypeError)

    def multiplier(self, path: str, value: chex.Array) -> float:
        """What the function says of `path`."""
        # A bool is no number to `require_number`, but it is the natural answer of a predicate.
        number = self.function(path, value)
        flag = isinstance(number, bool | np.bool_)
        return _multiplier(
            "predicate", float(number) if flag else number, "a bool or a number >= 0"
        )

    def reason(self, path: str, value: chex.Array) -> str:
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
    if callable(spec) and not isinstance(spec, type):
        return Predicate(spec)
    allowed = "a pattern, a list of rules (pattern, multiplier) or a function (path, value)"
    raise TypeError(f"on: `pattern` must be {allowed}, got {spec!r}")


@pytree
class Factors:
    """Ordered rules `(pattern, factor)`; the first pattern that matches a path decides.

    Unlike the multipliers of `Rules`, factors are data: they may be traced, swept and
    differentiated, and they may be schedules. It prints as the list of its rules, and iterates over
    them: `[*rules, ("**", 1.0)]` has one more.

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
        for name in ("patterns", "factors"):
            listed = isinstance(getattr(self, name), tuple)
            require(listed, _OWNER, name, getattr(self, name), "a tuple", error=TypeError)
        require(self.patterns != (), _OWNER, "rules", [], "at least one pair (pattern, factor)")
        count, allowed = len(self.patterns), "as many as `patterns`"
        require(len(self.factors) == count, _OWNER, "factors", self.factors, allowed)
        for pattern, factor in zip(self.patterns, self.factors, strict=True):
            matcher(pattern, _OWNER)  # refused here, not at the first tree
            require_factor(factor)

    def of(self, path: str, value: chex.Array) -> Factor:  # noqa: ARG002 - rules look at paths only
        """The factor of `path`, which a rule must cover: a rate is not left out in silence."""
        index = self._rule(path)
        if index is None:
            hint = "end the list with ('**', 1.0) to leave the rest as it is"
            raise ValueError(f"{_OWNER}: no rule covers the parameter {path!r}; {hint}")
        return self.factors[index]

    def reason(self, path: str, value: chex.Array) -> str:  # noqa: ARG002
        """Which rule decided about `path`, in words."""
        index = self._rule(path)
        return "no rule" if index is None else f"by {self.patterns[index]!r}"

    def check(self, paths: Sequence[str]) -> None:
        """Raises unless every pattern matches one of `paths`, or there are none."""
        for pattern in self.patterns:
            require_alive(_OWNER, pattern, paths)

    def __iter__(self) -> Iterator[tuple[str, Factor]]:
        return zip(self.patterns, self.factors, strict=True)

    def __len__(self) -> int:
        return len(self.patterns)

    def _rule(self, path: str) -> int | None:
        found = (n for n, pattern in enumerate(self.patterns) if matcher(pattern)(path))
        return next(found, None)

    def __repr__(self):
        return f"[{', '.join(f'({pattern!r}, {number_text(x)})' for pattern, x in self)}]"


@pytree
class FactorFunction:
    """A function `(path, value) -> factor`.

    Attributes:
        function: called with each path and its array, while tracing; it returns what a rule may
            hold.
    """

    function: Callable[[str, chex.Array], Factor] = static()

    def __post_init__(self):
        allowed = "a function (path, value)"
        require(callable(self.function), self, "function", self.function, allowed, TypeError)

    def of(self, path: str, value: chex.Array) -> Factor:
        """What the function says of `path`."""
        factor = self.function(path, value)
        require_factor(factor)
        return factor

    def reason(self, path: str, value: chex.Array) -> str:  # noqa: ARG002
        """Which function decided about `path`, in words."""
        return f"by {number_text(self.function)}"

    def check(self, paths: Sequence[str]) -> None:
        """A function has no pattern that could match nothing."""


def factors(spec: "RulesLike") -> Factors | FactorFunction:
    """A pattern, a list of rules or a function as the object that applies it, factors as data."""
    if isinstance(spec, Factors | FactorFunction):
        return spec
    if isinstance(spec, str):
        spec = [(spec, 1.0)]
    if isinstance(spec, list | tuple):
        for rule in spec:
            pair = isinstance(rule, tuple | list) and len(rule) == 2
            require(pair, _OWNER, "rules", rule, "pairs (pattern, factor)")
        return Factors(tuple(r[0] for r in spec), factors=tuple(r[1] for r in spec))
    if not _takes_path_and_value(spec):
        why = " (the first that matches decides, and a dict says nothing of order)"
        pairs = f"a list of pairs (pattern, factor){why * isinstance(spec, dict)}"
        allowed = f"{pairs}, or a function (path, value)"
        raise TypeError(f"{_OWNER}: `rules` must be {allowed}, got {spec!r:.300}")
    function: Any = spec
    return FactorFunction(function)


def _multiplier(argument: str, value: object, allowed: str) -> float:
    """The number of a rule. It is structure, which a traced number is not: it has no value yet."""
    require(known(value), "on", argument, value, allowed, error=TypeError)
    require_number("on", argument, value, allowed, lambda x: x.ndim == 0 and x >= 0)
    return float(np.asarray(value).item())


def require_factor(factor: Factor) -> None:
    """Refuses all but a number >= 0, an array of them, or a function of the count."""
    if not callable(factor) or isinstance(factor, type):
        allowed = "a number >= 0, an array of them, or a schedule"
        # What float32 takes for infinite would make NaN of an update that is 0.
        most = float(np.finfo(np.float32).max)
        require_number(_OWNER, "factor", factor, allowed, lambda x: (x >= 0) & (x <= most))


def _takes_path_and_value(spec: object) -> bool:
    """Whether it is a function `(path, value)`: a schedule and a class are called otherwise."""
    if not callable(spec) or isinstance(spec, type):
        return False
    try:
        inspect.signature(spec).bind("", None)
    except TypeError:
        return False
    except ValueError:  # some callables written in C have no signature
        return True
    return True
