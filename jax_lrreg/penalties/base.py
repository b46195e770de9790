"""`Penalty`: mathematics on one array, lifted to trees here."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import Leaf, is_key, leaves, widened
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import number_text
from jax_lrreg.penalties.lift import aligned, parameters, precision, resolved, with_new
from jax_lrreg.penalties.norms import norm
from jax_lrreg.schedules import Schedule
from jax_lrreg.select import Report, selection


class Term(NamedTuple):
    """A penalty on one array, times a number."""

    penalty: "Penalty"
    multiplier: Any


class Sparsity(NamedTuple):
    """The fraction of exact zeros, over all chosen parameters and for each of their paths."""

    overall: jax.Array
    leaves: dict[str, jax.Array]


class Penalty:
    """A function of the parameters to keep small, summed over the arrays of a tree: `penalty(params)`.

    A subclass writes the mathematics on one array `w`: its `value(w)`, and where it has a closed form
    its `shrink(w, step_size)`, the prox

        shrink(w, step_size) = argmin over z of 1/2 sum |z - w|^2 / step_size + value(z)

    for a scalar `step_size` or an array like `w`, the diagonal metric of an adaptive optimizer. Where a
    gradient does not exist, that of `value` is the subgradient of least norm. `distance(w, gradient)` is
    how far `-gradient` is from the subdifferential. Arrays come in float32 or wider. Integers, booleans,
    PRNG keys and None in a tree are skipped. A tree without parameters costs 0.

    A strength may be a number, an array of numbers like a parameter, a tree of numbers like the parameters,
    or a `Schedule`; then `step` is asked for.

    It counts as one term of the whole loss: add it once, to the loss that is already averaged over
    examples, devices and micro-batches, not to each of their parts.
    """

    __array_ufunc__ = None  # a NumPy number to the left of an operator leaves the operation to us

    def value(self, w: jax.Array) -> jax.Array:
        """The penalty of one array."""
        raise NotImplementedError

    def shrink(self, w: jax.Array, step_size: Any) -> jax.Array:
        """The prox of one array."""
        raise NotImplementedError(
            f"{type(self).__name__} has no prox in closed form; use it as a loss term"
        )

    def distance(self, w: jax.Array, gradient: jax.Array) -> jax.Array:
        """The norm of the difference between `-gradient` and the nearest subgradient at `w`.

        `gradient` is that of the rest of the loss and points uphill; for a complex `w` it is the conjugate of JAX's.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no certificate: its subdifferential has no simple form"
        )

    def zeros(self, w: jax.Array) -> jax.Array:
        """Which units of one array are exactly zero, a boolean for each entry or group."""
        return w == 0

    def threshold(self, gradient: jax.Array) -> jax.Array:
        """The smallest strength for which a zero array solves, given the gradient there."""
        raise NotImplementedError(
            f"{type(self).__name__} has no strength from which on all parameters are zero"
        )

    def cost(self, w: Any, multiplier: Any) -> jax.Array:
        """`multiplier * value` of an array of any precision. Only what may be infinite overrides this."""
        return multiplier * self.value(widened(w))

    def residual(self, w: Any, gradient: jax.Array) -> jax.Array:
        """`distance` at an array of any precision. Only constraints override this: they allow for rounding."""
        return self.distance(widened(w), gradient)

    def fits(self, leaf: Leaf) -> None:
        """Refuses, by its path, an array that the penalty has no meaning for."""
        require_broadcast(self, leaf, np.shape(leaf.value), *(field.name for field in fields(self)))  # type: ignore[arg-type]

    def terms(self, items: Sequence[Leaf]) -> list[list[Term]]:
        """What applies to each array. Only the algebra of penalties overrides this."""
        return [[Term(self, 1)] for _ in items]

    def advanced(self, items: Sequence[Leaf]) -> "Penalty":  # noqa: ARG002 - most penalties carry no state
        """What `advance` returns. Only the algebra, and penalties that carry state, override this."""
        return self

    def reason(self, path: str, value: Any) -> str:  # noqa: ARG002 - a bare penalty takes every parameter
        """Why the parameter at `path` gets what it gets. Only the algebra of penalties overrides this."""
        return "every parameter"

    def __call__(self, params: Any, step: Any = None) -> jax.Array:
        """The penalty of all `params`, a float32 scalar (float64 if a parameter is)."""
        total = jnp.zeros((), jnp.float32)
        for item, terms in self._applied(parameters(params)[1], step):
            for penalty, multiplier in terms:
                total = total + penalty.cost(item.value, multiplier)
        return total

    def gradient(self, params: Any, step: Any = None) -> Any:
        """The gradient, of the parameters' structure and dtypes; zero for what is no parameter."""
        values, structure = jax.tree.flatten(params)
        where, items = parameters(params)

        def total(given: list[Any]) -> jax.Array:
            return self(jax.tree.unflatten(structure, with_new(values, where, given)), step)

        gradients = jax.grad(total)([item.value for item in items])
        zeros = [value if is_key(value) else jnp.zeros_like(value) for value in values]
        return jax.tree.unflatten(structure, with_new(zeros, where, gradients))

    def prox(self, params: Any, step_size: Any, step: Any = None) -> Any:
        """`argmin over z of 1/2 sum |z - params|^2 / step_size + penalty(z)`, of the parameters' dtypes.

        `step_size` is a scalar >= 0, or a tree of numbers or arrays like the parameters.
        """
        allowed = "a number >= 0, or a tree of them like `params`"
        for size in [None] if step_size is None else jax.tree.leaves(step_size):
            require_number("prox", "step_size", size, allowed, lambda x: x >= 0)
        return self.trusted_prox(params, step_size, step)

    def trusted_prox(self, params: Any, step_size: Any, step: Any = None) -> Any:
        """`prox` with a step size that is not looked at: an optimizer's own, which is NaN where the gradient is."""
        values, structure = jax.tree.flatten(params)
        where, items = parameters(params)
        scalar = jax.tree_util.all_leaves([step_size]) and jnp.ndim(step_size) == 0
        sizes = (
            [step_size] * len(items)
            if scalar
            else aligned("prox", "step_size", step_size, items, scalars=True)
        )
        results = []
        for (item, terms), size in zip(self._applied(items, step), sizes, strict=True):
            result = widened(item.value)
            for penalty, multiplier in _at_most_one("prox", "prox", item, terms):
                result = penalty.shrink(
                    result, multiplier * jnp.asarray(size, jnp.real(result).dtype)
                )
            results.append(result.astype(jnp.result_type(item.value)))
        return jax.tree.unflatten(structure, with_new(values, where, results))

    def certificate(self, params: Any, grads: Any, step: Any = None) -> Any:
        """How far `params` are from solving their problem: per array, the distance of `-grads` to the subdifferential.

        `grads` is the gradient of the loss without the penalty, from `jax.grad`. The distances, float32 scalars in a
        tree like `params`, are all 0 at an optimum and only there where loss and penalty are convex.
        """
        values, structure = jax.tree.flatten(params)
        where, items = parameters(params)
        slopes = aligned("certificate", "grads", grads, items)
        results = []
        for (item, terms), slope in zip(self._applied(items, step), slopes, strict=True):
            slope = jnp.conj(widened(slope))
            rest = norm(slope)
            for penalty, multiplier in _at_most_one("certificate", "subdifferential", item, terms):
                applies = jnp.asarray(multiplier, rest.dtype) > 0
                divisor = jnp.where(applies, multiplier, 1)
                rest = jnp.where(
                    applies, divisor * penalty.residual(item.value, slope / divisor), rest
                )
            results.append(rest)
        return jax.tree.unflatten(
            structure, with_new([jnp.zeros((), jnp.float32)] * len(values), where, results)
        )

    def sparsity(self, params: Any) -> Sparsity:
        """The fraction of exact zeros among the parameters, or groups of them, that this penalty is on."""
        zero, every, fractions = jnp.zeros((), jnp.float32), 0, {}
        for item, terms in self._applied(parameters(params)[1], None, scheduled=False):
            if terms:
                penalty = terms[0].penalty if len(terms) == 1 else Penalty()
                found = penalty.zeros(widened(item.value))
                count = jnp.sum(found, dtype=jnp.float32)
                zero, every = zero + count, every + found.size
                fractions[item.path] = count / found.size
        return Sparsity(zero / max(every, 1), fractions)

    def max_strength(self, grads: Any, step: Any = None) -> jax.Array:
        """The smallest strength for which zero solves, given the gradient of the loss at zero.

        It is where a regularization path starts. It stands for the first argument, but for `SparseGroupLasso` it is
        `group` at the given `l1`. Multiples and selections are taken into account.
        """
        largest = jnp.zeros((), jnp.float32)
        for item, terms in self._applied(parameters(grads)[1], step):
            for penalty, multiplier in _at_most_one("max_strength", "subdifferential", item, terms):
                applies = jnp.asarray(multiplier) > 0
                needed = penalty.threshold(widened(item.value) / jnp.where(applies, multiplier, 1))
                alone = jnp.where(
                    jnp.any(item.value != 0), jnp.inf, 0
                )  # no strength of 0 times the penalty is enough
                largest = jnp.maximum(largest, jnp.where(applies, needed, alone))
        return largest

    def advance(self, params: Any) -> "Penalty":
        """This penalty with the state that it carries brought up to `params`; itself where it carries none."""
        return self.advanced(parameters(params)[1])

    def on(self, pattern: Any) -> "Penalty":
        """This penalty on the parameters chosen by a pattern, a list of rules, or a function; see `select`."""
        from jax_lrreg.penalties.algebra import Selected  # the algebra is made of penalties

        return Selected(self, selection=selection(pattern))

    def report(self, params: Any) -> Report:
        """Which parameter gets what, and why the others get nothing; prints as a table."""
        where, items = parameters(params)
        chosen = dict(zip(where, self.terms(items), strict=True))
        rows = []
        for index, leaf in enumerate(leaves(params)):
            shape = "x".join(map(str, jnp.shape(leaf.value))) or "scalar"
            if index not in chosen:
                kind = getattr(leaf.value, "dtype", type(leaf.value).__name__)
                rows.append((leaf.path, shape, "", f"holds no real numbers ({kind})"))
                continue
            texts, why = [], self.reason(leaf.path, leaf.value)
            for penalty, number in chosen[index]:
                try:
                    penalty = resolved(penalty, leaf, None, {}, scheduled=False)
                except ValueError as error:
                    why = f"refused: {error}"
                texts.append(_times(number, repr(penalty)))
            rows.append((leaf.path, shape, " + ".join(texts), why))
        return Report(repr(self), rows)

    def __add__(self, other: "Penalty") -> "Penalty":
        """The sum of two penalties."""
        from jax_lrreg.penalties.algebra import added

        return added(self, other) if isinstance(other, Penalty) else NotImplemented

    def __radd__(self, other: Any) -> "Penalty":
        """This penalty itself after the 0 that `sum` begins with."""
        return self if type(other) is int and other == 0 else NotImplemented

    def __mul__(self, factor: Any) -> "Penalty":
        """A multiple of this penalty."""
        from jax_lrreg.penalties.algebra import Scaled

        return Scaled(self, factor=factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Penalty":
        """This penalty divided by a number, as in `L1(lam) / m` with m examples in the data set."""
        require_number(self, "/", divisor, "a positive number", lambda x: x > 0)
        return self * (1 / divisor)

    def _applied(
        self, items: Sequence[Leaf], step: Any, scheduled: bool = True
    ) -> list[tuple[Leaf, list[Term]]]:
        """What applies to each array, with all that depends on the step or on the path filled in."""
        kind = getattr(step, "dtype", type(step))
        number = (
            kind in (type(None), int, float)
            or jnp.issubdtype(kind, jnp.integer)
            or jnp.issubdtype(kind, jnp.floating)
        )
        require(number, self, "step", step, "a number, or None", error=TypeError)
        found: dict[Any, Any] = {}
        result = []
        for item, terms in zip(items, self.terms(items), strict=True):
            known = []
            for penalty, number in terms:
                require(
                    jnp.ndim(number) == 0,
                    "Penalty",
                    "*",
                    number,
                    "one number; several are swept with `vmap`",
                )
                if type(number) not in (
                    int,
                    float,
                ):  # NumPy's and JAX's would raise the precision of the value
                    number = jnp.asarray(number, precision(item.value, number))
                known.append(Term(resolved(penalty, item, step, found, scheduled), number))
            result.append((item, known if np.size(item.value) else []))
        return result


def require_strength(penalty: Any, *names: str) -> None:
    """Checks that the named fields are numbers >= 0, trees of them, or schedules."""
    for name in names:
        value = getattr(penalty, name)
        if isinstance(value, Schedule):
            continue
        for number in [None] if value is None else jax.tree.leaves(value, is_leaf=is_object):
            require_number(
                penalty,
                name,
                number,
                "a number >= 0, a tree of them, or a schedule",
                lambda x: x >= 0,
            )


def require_broadcast(penalty: Any, leaf: Leaf, shape: Sequence[int], *names: str) -> None:
    """Checks that the named fields are numbers, or arrays that broadcast to `shape`."""
    for name in names:
        own = (
            jnp.shape(getattr(penalty, name))
            if isinstance(getattr(penalty, name), jax.Array | np.ndarray)
            else ()
        )
        fits = len(own) <= len(shape) and all(
            a in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)
        )
        allowed = f"a number or of a shape that broadcasts to {tuple(shape)} at {leaf.path!r}; see `vmap` for sweeps"
        require(fits, penalty, name, f"shape {own}", allowed)


def smooth_distance(penalty: Penalty, w: jax.Array, gradient: jax.Array) -> jax.Array:
    """`distance` of a penalty that has a gradient everywhere."""
    return norm(gradient + jnp.conj(jax.grad(penalty.value)(w)))


def is_object(x: Any) -> bool:
    """Whether what stands where numbers are asked for is a tree that holds some, but no tree of them."""
    return isinstance(x, Schedule | Penalty)


def _at_most_one(owner: str, what: str, item: Leaf, terms: list[Term]) -> list[Term]:
    if len(terms) > 1:
        names = " and ".join(type(term.penalty).__name__ for term in terms)
        raise ValueError(
            f"{owner}: {names} both apply to {item.path!r}, and the {what} of a sum is not known; "
            "select disjoint parameters, or use one penalty such as ElasticNet"
        )
    return terms


def _times(number: Any, text: str) -> str:
    if jnp.ndim(number):
        return f"{number_text(number)} * {text}"
    return text if float(number) == 1 else f"{float(number):g} * {text}"
