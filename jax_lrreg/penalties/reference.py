"""Penalties that pull parameters towards given ones, and the Fisher information that weighs them."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._arrays import is_key
from jax_lrreg._check import require, require_number
from jax_lrreg._struct import pytree
from jax_lrreg.penalties.base import (
    Penalty,
    is_object,
    require_broadcast,
    require_strength,
    smooth_distance,
)
from jax_lrreg.penalties.lift import parameters, with_new
from jax_lrreg.penalties.norms import modulus, norm, square


@pytree
class L2SP(Penalty):
    """Ridge towards a starting point, for fine-tuning; decay to the reference.

        value(w) = strength / 2 sum |w - reference|^2
        shrink(w, step_size) = (w + step_size strength reference) / (1 + step_size strength)

    Attributes:
        strength: lambda, not negative.
        reference: the point, a tree like the parameters it is on, or an array like a parameter.

    Reference:
        Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional networks, 2018.

    Example:
        >>> print(L2SP(1.0, reference={"kernel": jnp.ones(2)})({"kernel": jnp.array([1.0, 3.0])}))
        2.0
    """

    strength: Any
    _: KW_ONLY
    reference: Any

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def fits(self, leaf):
        _require_same(self, leaf, "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * square(w - self.reference)) / 2

    def shrink(self, w, step_size):
        pull = step_size * self.strength
        return (w + pull * self.reference) / (1 + pull)

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)

    def zeros(self, w):
        return w == self.reference


@pytree
class L1SP(Penalty):
    """The lasso towards a starting point: few parameters leave it. Its `sparsity` counts those that did not.

        value(w) = strength sum |w - reference|
        shrink(w, step_size) = reference + soft(w - reference, step_size strength)

    Attributes:
        strength: lambda, not negative.
        reference: the point, a tree like the parameters it is on, or an array like a parameter.

    Reference:
        Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional networks, 2018.

    Example:
        >>> print(L1SP(1.0, reference=jnp.ones(3)).prox(jnp.array([1.0, 3.0, 0.5]), step_size=1.0))
        [1. 2. 1.]
    """

    strength: Any
    _: KW_ONLY
    reference: Any

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def fits(self, leaf):
        _require_same(self, leaf, "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * modulus(w - self.reference))

    def shrink(self, w, step_size):
        move, limit = w - self.reference, step_size * self.strength
        size = jnp.abs(move)
        near = size <= limit
        # Taking off from w, not adding to the reference: a step size of 0 must give w itself.
        return jnp.where(near, self.reference, w - move * (limit / jnp.where(near, 1, size)))

    def distance(self, w, gradient):
        elsewhere = jnp.abs(gradient + jnp.conj(jax.grad(self.value)(w)))
        return norm(
            jnp.where(self.zeros(w), jnp.maximum(jnp.abs(gradient) - self.strength, 0), elsewhere)
        )

    def zeros(self, w):
        return w == self.reference


@pytree
class EWC(Penalty):
    """Elastic weight consolidation: ridge towards a former solution, where it mattered for the former task.

        value(w) = strength / 2 sum importance |w - reference|^2
        shrink(w, step_size) = (w + pull reference) / (1 + pull), pull = step_size strength importance

    Attributes:
        strength: lambda, not negative.
        importance: the diagonal of the Fisher information there, from `fisher`; a tree like the parameters, >= 0.
        reference: the former solution, a tree like the parameters.

    Reference:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017, eq. 3.

    Example:
        >>> penalty = EWC(1.0, importance=jnp.array([0.0, 4.0]), reference=jnp.ones(2))
        >>> print(penalty(jnp.array([9.0, 2.0])))
        2.0
    """

    strength: Any
    _: KW_ONLY
    importance: Any
    reference: Any

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "importance", "a tree of numbers >= 0 like the parameters")
        require_strength(self, "importance")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def fits(self, leaf):
        _require_same(self, leaf, "importance", "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * self.importance * square(w - self.reference)) / 2

    def shrink(self, w, step_size):
        pull = step_size * self.strength * self.importance
        return (w + pull * self.reference) / (1 + pull)

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


def fisher(
    loss: Callable[[Any, Any], jax.Array], params: Any, examples: Any, *, batch_size: int = 32
) -> Any:
    """The diagonal of the empirical Fisher information: the mean of the squared gradients of single examples.

        fisher = 1/n sum over examples of |gradient of loss(params, example)|^2

    The square of the mean gradient, which a batch gives at once, is another thing and near 0 at a solution.

    Args:
        loss: the negative log-likelihood of one example, `loss(params, example) -> scalar`.
        params: where; a tree.
        examples: a tree of arrays whose first axis runs over the examples.
        batch_size: how many examples are worked on at a time; each needs memory like `params`.

    Returns:
        A tree like `params` in float32 or wider, zero for what is no parameter.

    Reference:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017; Kunstner, Balles and Hennig,
        Limitations of the empirical Fisher approximation, 2019, on how it differs from the Fisher information itself.

    Example:
        >>> print(fisher(lambda w, x: w * x, jnp.float32(1.0), jnp.array([-1.0, 1.0, 2.0])))
        2.0
    """
    lengths = {jnp.shape(array)[:1] for array in jax.tree.leaves(examples)}
    require(
        len(lengths) == 1 and lengths != {()} and lengths != {(0,)},
        "fisher",
        "examples",
        sorted(lengths),
        ONE_AXIS,
    )
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    require(whole, "fisher", "batch_size", batch_size, "a positive whole number")
    values, structure = jax.tree.flatten(params)
    where, items = parameters(params)

    def squares(example: Any) -> list[jax.Array]:
        def of(given: list[Any]) -> jax.Array:
            return loss(jax.tree.unflatten(structure, with_new(values, where, given)), example)

        return [
            square(g.astype(jnp.promote_types(g.dtype, jnp.float32))) for g in jax.grad(of)(arrays)
        ]

    def add(total: list[jax.Array], batch: Any) -> tuple[list[jax.Array], None]:
        return [
            t + jnp.sum(s, axis=0) for t, s in zip(total, jax.vmap(squares)(batch), strict=True)
        ], None

    arrays = [jnp.asarray(item.value) for item in items]
    (length,) = lengths.pop()
    rest = length % batch_size
    total = [
        jnp.zeros(s.shape, s.dtype)
        for s in jax.eval_shape(squares, jax.tree.map(lambda x: x[0], examples))
    ]
    if rest:
        total, _ = add(total, jax.tree.map(lambda x: x[:rest], examples))
    if length > rest:
        batches = jax.tree.map(
            lambda x: jnp.reshape(x[rest:], (-1, batch_size, *jnp.shape(x)[1:])), examples
        )
        total, _ = jax.lax.scan(add, total, batches)
    zeros = [jnp.zeros(jnp.shape(value), jnp.float32) for value in values]
    return jax.tree.unflatten(structure, with_new(zeros, where, [t / length for t in total]))


ONE_AXIS = "a tree of arrays with one and the same number of examples, at least one, along their first axis"


def _require_arrays(penalty: Penalty, name: str, allowed: str) -> None:
    value = getattr(penalty, name)
    given = jax.tree.leaves(value, is_leaf=is_object)
    given = [array for array in given if not is_key(array)]  # a whole model state may stand here
    require(len(given) > 0, penalty, name, value, allowed)
    for array in given:
        number = jnp.iscomplexobj(array) and jnp.all(jnp.isfinite(jnp.asarray(array)))
        if not number:
            require_number(penalty, name, array, allowed, lambda _: True)


def _require_same(penalty: Penalty, leaf: Any, *names: str) -> None:
    for name in names:
        value = getattr(penalty, name)
        allowed = f"of shape {jnp.shape(leaf.value)} at {leaf.path!r}"
        require(
            jnp.shape(value) == jnp.shape(leaf.value),
            penalty,
            name,
            f"shape {jnp.shape(value)}",
            allowed,
        )
        real = jnp.iscomplexobj(leaf.value) or not jnp.iscomplexobj(value)
        require(
            real,
            penalty,
            name,
            jnp.result_type(value).name,
            f"real at {leaf.path!r}, as the parameter is",
        )
