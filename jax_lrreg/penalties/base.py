"""`Penalty`: mathematics on one array, lifted to trees here; selection, multiples and sums."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_lrreg._struct import number_text, pytree, require, require_number
from jax_lrreg.schedules import Schedule
from jax_lrreg.select import Leaf, Predicate, Report, Rules, is_parameter, leaves, selection


class Term(NamedTuple):
    """A penalty on one array, times a number."""

    penalty: "Penalty"
    multiplier: Any


class Penalty:
    """A function of the parameters to keep small, summed over the arrays of a tree: `penalty(params)`.

    A subclass writes the mathematics on one array `w`: its `value(w)`, and where it has a closed form
    its `shrink(w, step_size)`, the prox

        shrink(w, step_size) = argmin over z of 1/2 sum (z - w)^2 / step_size + value(z)

    for a scalar `step_size` or an array like `w`, the diagonal metric of an adaptive optimizer. Where a
    gradient does not exist, that of `value` is the subgradient of least norm. Arrays come in float32 or
    wider. Integers, booleans, PRNG keys and None in a tree are skipped. A tree without parameters costs 0.

    A strength may be a number, a tree of numbers like the parameters, or a `Schedule`; then `step` is asked for.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def value(self, w: jax.Array) -> jax.Array:
        """The penalty of one array."""
        raise NotImplementedError

    def shrink(self, w: jax.Array, step_size: Any) -> jax.Array:
        """The prox of one array."""
        raise NotImplementedError(f"{type(self).__name__} has no prox in closed form; use it as a loss term")

    def terms(self, items: list[Leaf], step: Any) -> list[list[Term]]:
        """What applies to each array. Only the algebra of penalties overrides this."""
        return [[Term(penalty, 1)] for penalty in _resolved(self, items, step)]

    def __call__(self, params: Any, step: Any = None) -> jax.Array:
        """The penalty of all `params`, a float32 scalar (float64 if a parameter is)."""
        _, items = _parameters(params)
        total = jnp.zeros((), jnp.float32)
        for item, terms in zip(items, self.terms(items, step), strict=True):
            for term in terms:
                total = total + term.multiplier * jnp.real(term.penalty.value(_wide(item.value)))
        return total

    def gradient(self, params: Any, step: Any = None) -> Any:
        """The gradient, of the parameters' structure and dtypes; zero for what is no parameter."""
        values, structure = jax.tree.flatten(params)
        where, items = _parameters(params)

        def total(parameters: list[Any]) -> jax.Array:
            given = _with(values, where, parameters)
            return self(jax.tree.unflatten(structure, given), step)

        gradients = jax.grad(total)([item.value for item in items])
        zeros = [value if _is_key(value) else jnp.zeros_like(value) for value in values]
        return jax.tree.unflatten(structure, _with(zeros, where, gradients))

    def prox(self, params: Any, step_size: Any, step: Any = None) -> Any:
        """`argmin over z of 1/2 sum (z - params)^2 / step_size + penalty(z)`, of the parameters' dtypes.

        `step_size` is a scalar >= 0, or a tree of arrays like the parameters.
        """
        values, structure = jax.tree.flatten(params)
        sizes = jax.tree.leaves(step_size)
        for size in sizes:
            require_number("prox", "step_size", size, "a number >= 0, or a tree of them", lambda x: x >= 0)
        if len(sizes) == 1 and jnp.ndim(sizes[0]) == 0:
            sizes = sizes * len(values)
        require(len(sizes) == len(values), "prox", "step_size", step_size, "a scalar, or a tree like `params`")
        where, items = _parameters(params)
        results = []
        for index, item, terms in zip(where, items, self.terms(items, step), strict=True):
            if len(terms) > 1:
                names = " and ".join(type(term.penalty).__name__ for term in terms)
                raise ValueError(
                    f"prox: {names} both apply to {item.path!r}, and the prox of a sum is not known; "
                    "select disjoint parameters, or use one penalty such as ElasticNet"
                )
            result = _wide(item.value)
            for penalty, multiplier in terms:
                result = penalty.shrink(result, multiplier * jnp.asarray(sizes[index], jnp.real(result).dtype))
            results.append(result.astype(jnp.result_type(item.value)))
        return jax.tree.unflatten(structure, _with(values, where, results))

    def on(self, pattern: Any) -> "Penalty":
        """This penalty on the parameters chosen by a pattern, a list of rules, or a function; see `select`."""
        return Selected(self, selection=selection(pattern))

    def report(self, params: Any) -> Report:
        """Which parameter gets what, and why the others get nothing; prints as a table."""
        where, items = _parameters(params)
        chosen = dict(zip(where, self.terms(items, 0), strict=True))
        rows = []
        for index, (path, value) in enumerate(leaves(params)):
            shape = "x".join(map(str, jnp.shape(value))) or "scalar"
            if index not in chosen:
                kind = getattr(value, "dtype", type(value).__name__)
                rows.append((path, shape, "", f"holds no real numbers ({kind})"))
                continue
            texts = [_times(float(number), repr(penalty)) for penalty, number in chosen[index]]
            rows.append((path, shape, " + ".join(texts), self.reason(path, value)))
        return Report(repr(self), rows)

    def reason(self, path: str, value: Any) -> str:  # noqa: ARG002 - a bare penalty takes every parameter
        """Why the parameter at `path` gets what it gets. Only the algebra of penalties overrides this."""
        return "every parameter"

    def __add__(self, other: "Penalty") -> "Penalty":
        """The sum of two penalties."""
        return Sum((*_summands(self), *_summands(other))) if isinstance(other, Penalty) else NotImplemented

    def __mul__(self, factor: Any) -> "Penalty":
        """A multiple of this penalty."""
        return Scaled(self, factor=factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Penalty":
        """This penalty divided by a number, as in `L1(lam) / m` with m examples in the data set."""
        require_number(self, "/", divisor, "a positive number", lambda x: x > 0)
        return Scaled(self, factor=1 / divisor)


@pytree
class Scaled(Penalty):
    """A multiple of a penalty, written `c * penalty` or `penalty / m`.

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

    def terms(self, items, step):
        return [[Term(p, self.factor * m) for p, m in terms] for terms in self.penalty.terms(items, step)]

    def reason(self, path, value):
        return self.penalty.reason(path, value)

    def __repr__(self):
        inner = f"({self.penalty!r})" if isinstance(self.penalty, Sum) else repr(self.penalty)
        return f"{number_text(self.factor)} * {inner}"


@pytree
class Sum(Penalty):
    """The sum of penalties, written `p + q`. It has a prox where no parameter belongs to two of them.

    Example:
        >>> from jax_lrreg.penalties import L1, L2
        >>> L1(0.5).on("head/*") + L2(0.1)
        L1(0.5).on('head/*') + L2(0.1)
    """

    penalties: tuple[Penalty, ...]

    def terms(self, items, step):
        every = [penalty.terms(items, step) for penalty in self.penalties]
        return [[term for terms in of_one for term in terms] for of_one in zip(*every, strict=True)]

    def reason(self, path, value):
        return "; ".join(penalty.reason(path, value) for penalty in self.penalties)

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

    def terms(self, items, step):
        self.selection.check([item.path for item in items])
        chosen = []
        for item, terms in zip(items, self.penalty.terms(items, step), strict=True):
            number = self.selection.multiplier(item.path, item.value)
            chosen.append([Term(p, number * m) for p, m in terms] if number else [])
        return chosen

    def reason(self, path, value):
        number = self.selection.multiplier(path, value)
        if number is None:
            return f"not covered by {self.selection!r}"
        return f"left out by {self.selection!r}" if number == 0 else f"chosen by {self.selection!r}"

    def __repr__(self):
        inner = f"({self.penalty!r})" if isinstance(self.penalty, Sum | Scaled) else repr(self.penalty)
        return f"{inner}.on({self.selection!r})"


def subgradient_abs(w: jax.Array) -> jax.Array:
    """|w|, with the derivative 0 at 0 where `jnp.abs` has 1: training must not push an exact zero away."""
    if jnp.iscomplexobj(w):
        return jnp.abs(w)
    return w * jax.lax.stop_gradient(jnp.sign(w))


def _resolved(penalty: Penalty, items: Sequence[Leaf], step: Any) -> list[Penalty]:
    """The penalty of each item: scheduled fields at `step`, fields that are trees at the item's path."""
    changes: dict[str, Any] = {}
    trees: dict[str, dict[str, Any]] = {}
    for field in fields(penalty):  # type: ignore[arg-type]
        value = getattr(penalty, field.name)
        if isinstance(value, Schedule):
            if step is None:
                raise ValueError(f"{type(penalty).__name__}: `{field.name}` is a schedule, so `step` must be given")
            changes[field.name] = value(step)
        elif not field.metadata.get("static") and _is_tree(value):
            trees[field.name] = {leaf.path: leaf.value for leaf in leaves(value)}
    if changes:
        penalty = replace(penalty, **changes)  # type: ignore[type-var]
    if not trees:
        return [penalty] * len(items)
    for name, tree in trees.items():
        missing = [item.path for item in items if item.path not in tree]
        require(not missing, penalty, name, sorted(tree), f"a tree like the parameters; it has nothing at {missing}")
    return [replace(penalty, **{name: tree[item.path] for name, tree in trees.items()}) for item in items]  # type: ignore[type-var]


def _parameters(params: Any) -> tuple[list[int], list[Leaf]]:
    """The leaves of a tree that hold real or complex numbers, and where they stand among all leaves."""
    chosen = [(index, leaf) for index, leaf in enumerate(leaves(params)) if is_parameter(leaf.value)]
    return [index for index, _ in chosen], [leaf for _, leaf in chosen]


def _with(values: Sequence[Any], where: Sequence[int], new: Sequence[Any]) -> list[Any]:
    result = list(values)
    for index, value in zip(where, new, strict=True):
        result[index] = value
    return result


def _is_tree(value: Any) -> bool:
    return value is not None and not jax.tree_util.all_leaves([value])


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(getattr(value, "dtype", jnp.float32), jax.dtypes.prng_key)


def _wide(w: Any) -> jax.Array:
    """`w` in float32 or wider: sums of many small squares do not fit in 16 bits."""
    w = jnp.asarray(w)
    return w.astype(jnp.promote_types(w.dtype, jnp.float32))


def _summands(penalty: Penalty) -> tuple[Penalty, ...]:
    return penalty.penalties if isinstance(penalty, Sum) else (penalty,)


def _times(number: float, text: str) -> str:
    return text if number == 1 else f"{number:g} * {text}"
