"""The algebra of penalties: multiples, sums and selections."""

from dataclasses import KW_ONLY

import chex

from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text, pytree
from jax_lrreg.penalties.base import EVERY, Penalty, Term
from jax_lrreg.select import Predicate, Rules


@pytree
class Scaled(Penalty):
    """A multiple of a penalty, written `c * penalty` or `penalty / m`.

    Attributes:
        penalty: any penalty; a constraint stays what it is.
        factor: one number >= 0.

    Example:
        >>> from jax_lrreg.penalties import L1
        >>> L1(0.5) / 200
        0.005 * L1(0.5)
    """

    penalty: Penalty
    _: KW_ONLY
    factor: chex.Numeric

    def __post_init__(self):
        _require_penalty(self, self.penalty)
        require_number("Penalty", "*", self.factor, "a number >= 0", lambda x: x >= 0)

    def _terms(self, items):
        # A factor stays beside its penalty: not every one has a single strength to put it into, and
        # `report` shows it as it was written.
        every, factor = self.penalty._terms(items), self.factor
        return [[Term(p, factor * m) for p, m in terms] for terms in every]

    def _reason(self, path, value):
        return self.penalty._reason(path, value)

    def __repr__(self):
        return f"{number_text(self.factor)} * {_factor_text(self.penalty)}"


@pytree
class Sum(Penalty):
    """The sum of penalties, written `p + q`.

    It has a prox where no parameter belongs to two of them.

    Attributes:
        penalties: a tuple of two or more.

    Example:
        >>> from jax_lrreg.penalties import L1, L2
        >>> L1(0.5).on('head/*') + L2(0.1)
        L1(0.5).on('head/*') + L2(0.1)
    """

    penalties: tuple[Penalty, ...]

    def __post_init__(self):
        several = isinstance(self.penalties, tuple) and len(self.penalties) > 1
        allowed = "a tuple of two or more penalties"
        require(several, self, "penalties", self.penalties, allowed, error=TypeError)
        for penalty in self.penalties:
            require(isinstance(penalty, Penalty), self, "penalties", penalty, allowed, TypeError)

    def _terms(self, items):
        every = [penalty._terms(items) for penalty in self.penalties]
        return [[term for terms in of_one for term in terms] for of_one in zip(*every, strict=True)]

    def _reason(self, path, value):
        return "; ".join(penalty._reason(path, value) for penalty in self.penalties)

    def __repr__(self):
        return " + ".join(map(repr, self.penalties))


@pytree
class Selected(Penalty):
    """A penalty on chosen parameters only, written `penalty.on(pattern)`.

    Attributes:
        penalty: what applies to them.
        selection: `select.Rules` or `select.Predicate`; a pattern that matches nothing raises.

    Example:
        >>> from jax_lrreg.penalties import L2
        >>> L2(1e-4).on([("**/bias", 0), ("**", 1)])
        L2(0.0001).on([('**/bias', 0), ('**', 1)])
    """

    penalty: Penalty
    _: KW_ONLY
    selection: Rules | Predicate

    def __post_init__(self):
        _require_penalty(self, self.penalty)
        known = isinstance(self.selection, Rules | Predicate)
        allowed = "select.Rules or select.Predicate, as `.on(pattern)` makes it"
        require(known, self, "selection", self.selection, allowed, error=TypeError)

    def _terms(self, items):
        # Of all paths at once: each pattern must match somewhere, not everywhere.
        self.selection.check(items.paths)
        chosen = []
        for item, terms in zip(items, self.penalty._terms(items), strict=True):
            number = self.selection.multiplier(item.path, item.value)
            chosen.append([Term(p, number * m) for p, m in terms] if number else [])
        return chosen

    def _reason(self, path, value):
        inner = self.penalty._reason(path, value)
        # Of nested selections the one that decided speaks: this one where it leaves out, or where
        # nobody within chose.
        decided = not self.selection.multiplier(path, value) or inner == EVERY
        return self.selection.reason(path, value) if decided else inner

    def __repr__(self):
        return f"{_factor_text(self.penalty)}.on({self.selection!r})"


def added(first: Penalty, second: Penalty) -> Sum:
    """The sum, with the terms of a sum taken apart, so that `(p + q) + r == p + (q + r)`."""
    parts = [p.penalties if isinstance(p, Sum) else (p,) for p in (first, second)]
    return Sum((*parts[0], *parts[1]))


def _require_penalty(owner: Penalty, penalty: object) -> None:
    require(isinstance(penalty, Penalty), owner, "penalty", penalty, "a penalty", error=TypeError)


def _factor_text(penalty: Penalty) -> str:
    return f"({penalty!r})" if isinstance(penalty, Sum | Scaled) else repr(penalty)
