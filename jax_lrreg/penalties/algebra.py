"""The algebra of penalties: multiples, sums and selections."""

from dataclasses import KW_ONLY
from typing import Any

from jax_lrreg._check import require_number
from jax_lrreg._struct import number_text, pytree
from jax_lrreg.penalties.base import Penalty, Term
from jax_lrreg.penalties.lift import replaced
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
    factor: Any

    def __post_init__(self):
        require_number("Penalty", "*", self.factor, "a number >= 0", lambda x: x >= 0)

    def terms(self, items):
        return [[Term(p, self.factor * m) for p, m in terms] for terms in self.penalty.terms(items)]

    def advanced(self, items):
        return replaced(self, penalty=self.penalty.advanced(items))

    def reason(self, path, value):
        return self.penalty.reason(path, value)

    def __repr__(self):
        inner = (
            f"({self.penalty!r})" if isinstance(self.penalty, Sum | Scaled) else repr(self.penalty)
        )
        return f"{number_text(self.factor)} * {inner}"


@pytree
class Sum(Penalty):
    """The sum of penalties, written `p + q`. It has a prox where no parameter belongs to two of them.

    Attributes:
        penalties: two or more.

    Example:
        >>> from jax_lrreg.penalties import L1, L2
        >>> L1(0.5).on("head/*") + L2(0.1)
        L1(0.5).on('head/*') + L2(0.1)
    """

    penalties: tuple[Penalty, ...]

    def terms(self, items):
        every = [penalty.terms(items) for penalty in self.penalties]
        return [[term for terms in of_one for term in terms] for of_one in zip(*every, strict=True)]

    def advanced(self, items):
        return replaced(
            self, penalties=tuple(penalty.advanced(items) for penalty in self.penalties)
        )

    def reason(self, path, value):
        return "; ".join(penalty.reason(path, value) for penalty in self.penalties)

    def __repr__(self):
        return " + ".join(map(repr, self.penalties))


def added(first: Penalty, second: Penalty) -> Sum:
    """The sum, with the terms of a sum taken apart, so that `(p + q) + r == p + (q + r)`."""
    parts = [p.penalties if isinstance(p, Sum) else (p,) for p in (first, second)]
    return Sum((*parts[0], *parts[1]))


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

    def terms(self, items):
        self.selection.check([item.path for item in items])
        chosen = []
        for item, terms in zip(items, self.penalty.terms(items), strict=True):
            number = self.selection.multiplier(item.path, item.value)
            chosen.append([Term(p, number * m) for p, m in terms] if number else [])
        return chosen

    def advanced(self, items):
        self.selection.check([item.path for item in items])
        chosen = [item for item in items if self.selection.multiplier(item.path, item.value)]
        return replaced(self, penalty=self.penalty.advanced(chosen))

    def reason(self, path, value):
        last = not self.selection.multiplier(path, value)
        nested = isinstance(self.penalty, Selected) and not last
        return (self.penalty if nested else self.selection).reason(path, value)

    def __repr__(self):
        inner = (
            f"({self.penalty!r})" if isinstance(self.penalty, Sum | Scaled) else repr(self.penalty)
        )
        return f"{inner}.on({self.selection!r})"
