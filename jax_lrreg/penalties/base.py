"""`Penalty`, what users call on trees, and `ArrayPenalty`, the mathematics on one array."""

from __future__ import annotations  # so that `help` shows `params: Tree`, not a union of six types

import abc
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import Leaf, Parameters, is_key, is_parameter, leaves, widened
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text
from jax_lrreg.penalties.lift import (
    Step,
    Tree,
    aligned,
    cast,
    parameters,
    replaced,
    require_broadcast,
    resolved,
)
from jax_lrreg.penalties.norms import norm
from jax_lrreg.schedules import Schedule
from jax_lrreg.select import Predicate, Report, Rules, selection

Pattern: TypeAlias = str | Sequence[tuple[str, float]] | Callable[..., Any] | Rules | Predicate


EVERY = "every parameter"  # why an array has a penalty that nobody selected


class Term(NamedTuple):
    """A penalty on one array, times a number."""

    penalty: ArrayPenalty
    multiplier: chex.Numeric


class Sparsity(NamedTuple):
    """The fraction of exact zeros, over all chosen parameters and for each of their paths."""

    overall: jax.Array
    leaves: dict[str, jax.Array]


class Penalty(abc.ABC):
    """A function of the parameters to keep small, summed over a tree's arrays: `penalty(params)`.

    Integers, booleans, PRNG keys and None in a tree are skipped. A tree without parameters costs 0.
    Where a gradient does not exist, the subgradient of least norm stands for it.

    A strength may be a number, an array of numbers like a parameter, a tree of numbers like the
    parameters, or a `Schedule`; then `step` is asked for.

    It counts as one term of the whole loss: add it once, to the loss that is already averaged over
    examples, devices and micro-batches, not to each of their parts.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def __call__(self, params: Tree, step: Step = None) -> jax.Array:
        """The penalty of all `params`, a float32 scalar (float64 if a parameter is)."""
        items, _ = parameters(self, params)
        return _total(self._applied(items, step), [item.value for item in items])

    def gradient(self, params: Tree, step: Step = None) -> Tree:
        """The gradient, of the parameters' structure and dtypes; zero for what is no parameter."""
        return self.value_and_gradient(params, step)[1]

    def value_and_gradient(self, params: Tree, step: Step = None) -> tuple[jax.Array, Tree]:
        """The penalty of all `params` together with its gradient, worked out once."""
        items, rebuilt = parameters(self, params)
        applied = self._applied(items, step)
        total = jax.value_and_grad(lambda arrays: _total(applied, arrays))
        value, gradients = total([item.value for item in items])
        return value, rebuilt(gradients, lambda x: x if is_key(x) else jnp.zeros_like(x))

    def prox(self, params: Tree, step_size: Tree, step: Step = None) -> Tree:
        """`argmin over z of 1/2 sum |z - params|^2 / step_size + penalty(z)`.

        The result has the parameters' structure and dtypes.
        `step_size` is a scalar >= 0, or a tree of numbers or arrays like the parameters.
        """
        allowed = "a number >= 0, or a tree of them like `params`"
        for size in [None] if step_size is None else jax.tree.leaves(step_size):
            require_number("prox", "step_size", size, allowed, lambda x: x >= 0)
        return shrunk(self, params, step_size, step)

    def on(self, pattern: Pattern) -> Penalty:
        """This penalty on what a pattern, a list of rules or a function chooses; see `select`."""
        return algebra.Selected(self, selection=selection(pattern))

    def report(self, params: Tree) -> Report:
        """Which parameter gets what, and why the others get nothing; prints as a table."""
        items, _ = parameters(self, params)
        terms = iter(self._terms(items))
        rows = []
        for leaf in leaves(params):
            rows.append(_row(self, leaf, next(terms) if is_parameter(leaf.value) else None))
        return Report(repr(self), rows)

    def certificate(self, params: Tree, grads: Tree, step: Step = None) -> Tree:
        """How far each array is from solving the problem of loss and penalty.

        That is the distance of `-grads` to the subdifferential of the penalty.
        `grads` is the gradient of the loss without the penalty, from `jax.grad`. The distances,
        float32 scalars in a tree like `params`, are all 0 at an optimum and only there where loss
        and penalty are convex.
        """
        items, rebuilt = parameters(self, params)
        slopes, results = aligned("certificate", "grads", grads, items), []
        for item, terms, slope in zip(items, self._applied(items, step), slopes, strict=True):
            slope = jnp.conj(widened(slope))
            rest = norm(slope)
            for penalty, multiplier in _at_most_one("certificate", "subdifferential", item, terms):
                applies, divisor = _divisor(multiplier)
                distance = divisor * penalty._residual(item.value, slope / divisor)
                rest = jnp.where(applies, distance, rest)
            results.append(rest)
        return rebuilt(results, lambda _: jnp.zeros((), jnp.float32))

    def sparsity(self, params: Tree) -> Sparsity:
        """The fraction of exact zeros among the parameters, or groups, that this penalty is on."""
        items, _ = parameters(self, params)
        zero, every, fractions = jnp.zeros((), jnp.float32), 0, {}
        for item, terms in zip(items, self._applied(items, None, scheduled=False), strict=True):
            w = widened(item.value)
            if terms:
                found = terms[0].penalty.zeros(w) if len(terms) == 1 else w == 0
                count = jnp.sum(found, dtype=jnp.float32)
                zero, every = zero + count, every + found.size
                fractions[item.path] = count / found.size
        return Sparsity(zero / max(every, 1), fractions)

    def max_strength(self, grads: Tree, step: Step = None) -> jax.Array:
        """The smallest strength for which zero solves, given the gradient of the loss at zero.

        It is where a regularization path starts. It stands for the first argument, but for
        `SparseGroupLasso` it is `group` at the given `l1`. Multiples and selections are taken into
        account.
        """
        items, _ = parameters(self, grads, "grads")
        largest = jnp.zeros((), jnp.float32)
        for item, terms in zip(items, self._applied(items, step), strict=True):
            for penalty, multiplier in _at_most_one("max_strength", "subdifferential", item, terms):
                applies, divisor = _divisor(multiplier)
                needed = penalty.threshold(widened(item.value) / divisor)
                alone = jnp.where(jnp.any(item.value != 0), jnp.inf, 0)  # 0 times any strength is 0
                largest = jnp.maximum(largest, jnp.where(applies, needed, alone))
        return largest

    def advance(self, params: Tree) -> Penalty:
        """This penalty with the state that it carries, if any, brought up to `params`."""
        items, _ = parameters(self, params)
        copy = _each(replaced, self)  # a penalty that stands on two selections has a state on each
        reached: dict[int, list[Leaf]] = {}
        for item, terms in zip(items, copy._terms(items), strict=True):
            for penalty, _ in terms:
                reached.setdefault(id(penalty), []).append(item)
        return _each(lambda penalty: penalty._advanced(reached.get(id(penalty), [])), copy)

    def __add__(self, other: Penalty) -> Penalty:
        """The sum of two penalties."""
        return algebra.added(self, other) if isinstance(other, Penalty) else NotImplemented

    def __radd__(self, other: object) -> Penalty:
        """This penalty itself after the 0 that `sum` begins with."""
        return self if type(other) is int and other == 0 else NotImplemented

    def __mul__(self, factor: chex.Numeric) -> Penalty:
        """A multiple of this penalty."""
        return algebra.Scaled(self, factor=factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: chex.Numeric) -> Penalty:
        """This penalty divided by a number, as in `L1(lam) / m` with m examples in the data set."""
        require_number(self, "/", divisor, "a positive number", lambda x: x > 0)
        return self * (1 / divisor)

    @abc.abstractmethod
    def _terms(self, items: Parameters) -> list[list[Term]]:
        """The penalties on each array, as they were written."""

    @abc.abstractmethod
    def _reason(self, path: str, value: chex.Array) -> str:
        """Why the parameter at `path` gets what it gets."""

    def _applied(self, items: Parameters, step: Step, scheduled: bool = True) -> list[list[Term]]:
        """The penalties on each array, with what depends on step, path or dtype filled in."""
        kind = getattr(step, "dtype", type(step))
        number = step is None or kind in (int, float) or jnp.issubdtype(kind, jnp.integer)
        number = number or jnp.issubdtype(kind, jnp.floating)
        require(number, self, "step", step, "a number, or None", error=TypeError)
        found: dict[tuple[int, str], Any] = {}
        applied = []
        for item, terms in zip(items, self._terms(items), strict=True):
            chosen = []
            for penalty, number in terms if np.size(item.value) else []:
                allowed = "one number; several are swept with `vmap`"
                require(jnp.ndim(number) == 0, "Penalty", "*", number, allowed)
                number = cast("Penalty", "*", number, item)
                chosen.append(Term(resolved(penalty, item, step, found, scheduled), number))
            applied.append(chosen)
        return applied


class ArrayPenalty(Penalty):
    """The mathematics of a penalty on one array `w`, which comes in float32 or wider.

    A penalty of your own subclasses it and writes `value` and, where the prox has a closed form,
    `shrink`:

        shrink(w, step_size) = argmin over z of 1/2 sum |z - w|^2 / step_size + value(z)

    for a scalar `step_size` or an array like `w`, the diagonal metric of an adaptive optimizer. The
    gradient is that of `value`. The other methods are optional.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # each subclass is a `pytree`

    @abc.abstractmethod
    def value(self, w: jax.Array) -> jax.Array:
        """The penalty of one array."""

    def shrink(self, w: jax.Array, step_size: chex.Numeric) -> jax.Array:
        """The prox of one array."""
        raise NotImplementedError(
            f"{_name(self)} has no prox in closed form; use it as a loss term"
        )

    def distance(self, w: jax.Array, gradient: jax.Array) -> jax.Array:
        """The norm of the difference between `-gradient` and the nearest subgradient at `w`.

        `gradient` is that of the rest of the loss and points uphill; for a complex `w` it is the
        conjugate of JAX's.
        """
        raise NotImplementedError(
            f"{_name(self)} has no certificate: its subdifferential has no simple form"
        )

    def threshold(self, gradient: jax.Array) -> jax.Array:
        """The smallest strength for which a zero array solves, given the gradient there."""
        raise NotImplementedError(
            f"{_name(self)} has no strength from which on all parameters are zero"
        )

    def zeros(self, w: jax.Array) -> jax.Array:
        """Which units of one array are exactly zero, a boolean for each entry or group."""
        return w == 0

    def _fits(self, leaf: Leaf) -> None:
        """Refuses, by its path, an array that the penalty has no meaning for."""
        names = [field.name for field in fields(self)]
        require_broadcast(self, leaf, np.shape(leaf.value), *names)

    # Only what may be infinite overrides these two. To multiply after would make NaN of 0 times
    # infinity, and a constraint allows for the rounding of the parameter's own dtype, of which a
    # widened array no longer tells.

    def _cost(self, w: chex.Numeric, multiplier: chex.Numeric) -> jax.Array:
        """`multiplier * value` of an array of any precision."""
        return self.value(widened(w)) * multiplier

    def _residual(self, w: chex.Numeric, gradient: jax.Array) -> jax.Array:
        """`distance` at an array of any precision."""
        return self.distance(widened(w), gradient)

    def _advanced(self, items: Sequence[Leaf]) -> ArrayPenalty:
        """This penalty with its state brought up to the arrays that it is on."""
        del items  # most carry no state
        return self

    def _terms(self, items):
        return [[Term(self, 1)] for _ in items]

    def _reason(self, path, value):  # noqa: ARG002
        return EVERY


def shrunk(penalty: Penalty, params: Tree, step_size: Tree, step: Step = None) -> Tree:
    """`penalty.prox` with step sizes that are not looked at."""
    # `prox` refuses NaN, and outside `jit` an optimizer's own step sizes are NaN where its gradient
    # is: that is for whoever guards the step to judge.
    items, rebuilt = parameters(penalty, params)
    given = jax.tree.leaves(step_size)
    one = jax.tree_util.all_leaves([step_size]) and jnp.ndim(given[0]) == 0
    sizes = given * len(items)
    sizes = sizes if one else aligned("prox", "step_size", step_size, items, scalars=True)
    results = []
    for item, terms, size in zip(items, penalty._applied(items, step), sizes, strict=True):
        z = widened(item.value)
        for term, multiplier in _at_most_one("prox", "prox", item, terms):
            z = term.shrink(z, multiplier * jnp.asarray(size, jnp.finfo(z.dtype).dtype))
        results.append(z.astype(jnp.result_type(item.value)))
    return rebuilt(results)


def require_strength(penalty: ArrayPenalty, *names: str) -> None:
    """Checks that the named fields are numbers >= 0, trees of them, or schedules."""
    allowed = "a number >= 0, a tree of them, or a schedule"
    for name in names:
        value = getattr(penalty, name)
        if not isinstance(value, Schedule):
            numbers = [None] if value is None else jax.tree.leaves(value, is_leaf=is_object)
            for number in numbers:
                require_number(penalty, name, number, allowed, lambda x: x >= 0)


def is_object(x: object) -> bool:
    """Whether `x`, where numbers are asked for, holds numbers but is no tree of them."""
    # JAX would take such an object apart and find its numbers, and `L1(L2(0.1))` would pass.
    return isinstance(x, Schedule | Penalty)


def _total(applied: Sequence[Sequence[Term]], arrays: Sequence[chex.Numeric]) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for terms, w in zip(applied, arrays, strict=True):
        for penalty, multiplier in terms:
            total = total + penalty._cost(w, multiplier)
    return total


def _each(make: Callable[[ArrayPenalty], ArrayPenalty], penalty: Penalty) -> Penalty:
    """`penalty` with `make(p)` for each `ArrayPenalty` p that it is made of."""

    def own(x: object) -> bool:
        return isinstance(x, ArrayPenalty)

    return jax.tree.map(lambda x: make(x) if own(x) else x, penalty, is_leaf=own)


def _divisor(multiplier: chex.Numeric) -> tuple[jax.Array, jax.Array]:
    """Whether a multiple is more than nothing, and what to divide by."""
    applies = jnp.asarray(multiplier) > 0
    return applies, jnp.where(applies, multiplier, 1)


def _at_most_one(owner: str, what: str, item: Leaf, terms: list[Term]) -> list[Term]:
    if len(terms) > 1:
        names = " and ".join(_name(term.penalty) for term in terms)
        raise ValueError(
            f"{owner}: {names} both apply to {item.path!r}, and the {what} of a sum is not known; "
            "select disjoint parameters, or use one penalty such as ElasticNet"
        )
    return terms


def _name(penalty: Penalty) -> str:
    return type(penalty).__name__


def _row(penalty: Penalty, leaf: Leaf, terms: list[Term] | None) -> tuple[str, str, str, str]:
    """A row of a report: path, shape, what applies to it, and why."""
    shape = "x".join(map(str, jnp.shape(leaf.value))) or "scalar"
    if terms is None:
        kind = getattr(leaf.value, "dtype", type(leaf.value).__name__)
        return leaf.path, shape, "", f"holds no real numbers ({kind})"
    texts, why = [], penalty._reason(leaf.path, leaf.value)
    for term, number in terms:
        try:
            term = resolved(term, leaf, None, {}, scheduled=False)
        except ValueError as error:
            why = f"refused: {error}"
        texts.append(_times(number, repr(term)))
    return leaf.path, shape, " + ".join(texts), why


def _times(number: chex.Numeric, text: str) -> str:
    if jnp.ndim(number):
        return f"{number_text(number)} * {text}"
    return text if float(number) == 1 else f"{float(number):g} * {text}"


# The operators make sums, multiples and selections, which are penalties: those need it first.
from jax_lrreg.penalties import algebra  # noqa: E402
