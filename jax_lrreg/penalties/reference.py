"""Penalties that pull parameters towards given ones, and the Fisher information as weights."""

from collections.abc import Callable
from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import numpy as np

from jax_lrreg._arrays import Leaf, is_key, known, widened
from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg._struct import pytree
from jax_lrreg.penalties.base import ArrayPenalty, is_object, require_strength
from jax_lrreg.penalties.lift import Strength, Tree, parameters, require_broadcast
from jax_lrreg.penalties.norms import direction, divided, half_square, modulus, norm, square
from jax_lrreg.penalties.separable import smooth_distance


@pytree
class L2SP(ArrayPenalty):
    """Ridge towards a starting point, for fine-tuning; decay to the reference.

        value(w) = strength / 2 sum |w - reference|^2
        shrink(w, step_size) = (w + step_size strength reference) / (1 + step_size strength)

    Attributes:
        strength: lambda, not negative.
        reference: the point, a tree like the parameters it is on, or an array like a parameter.

    Reference:
        Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional
        networks, 2018.

    Example:
        >>> print(L2SP(1.0, reference={"kernel": jnp.ones(2)})({"kernel": jnp.array([1.0, 3.0])}))
        2.0
    """

    strength: Strength
    _: KW_ONLY
    reference: Strength

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def _fits(self, leaf):
        _require_same(self, leaf, "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * half_square(w - self.reference))

    def shrink(self, w, step_size):
        pull = step_size * self.strength
        # Not as the one fraction of the formula: `pull * reference` may overflow.
        return divided(w, 1 + pull) + self.reference * (pull / (1 + pull))

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)

    def zeros(self, w):
        return w == self.reference


@pytree
class L1SP(ArrayPenalty):
    """The lasso towards a starting point: few parameters leave it.

    Its `sparsity` counts those that did not.

        value(w) = strength sum |w - reference|
        shrink(w, step_size) = reference + soft(w - reference, step_size strength)

    Attributes:
        strength: lambda, not negative.
        reference: the point, a tree like the parameters it is on, or an array like a parameter.

    Reference:
        Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional
        networks, 2018.

    Example:
        >>> print(L1SP(1.0, reference=jnp.ones(3)).prox(jnp.array([1.0, 3.0, 0.5]), step_size=1.0))
        [1. 2. 1.]
    """

    strength: Strength
    _: KW_ONLY
    reference: Strength

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def _fits(self, leaf):
        _require_same(self, leaf, "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * modulus(w - self.reference))

    def shrink(self, w, step_size):
        move, limit = w - self.reference, step_size * self.strength
        near = (jnp.abs(move) <= limit) & (limit > 0)
        # Taking off from w, not adding to the reference: a step size of 0 must give w itself.
        return jnp.where(near, self.reference, w - direction(move) * limit)

    def distance(self, w, gradient):
        elsewhere = jnp.abs(gradient + jnp.conj(jax.grad(self.value)(w)))
        kept = jnp.maximum(jnp.abs(gradient) - self.strength, 0)
        return norm(jnp.where(self.zeros(w), kept, elsewhere))

    def zeros(self, w):
        return w == self.reference


@pytree
class EWC(ArrayPenalty):
    """Elastic weight consolidation: ridge towards a former solution.

    It pulls most where the former task depended on a parameter.

        value(w) = strength / 2 sum importance |w - reference|^2
        shrink(w, step_size) = (w + pull reference) / (1 + pull)
        pull = step_size strength importance

    Attributes:
        strength: lambda, not negative.
        importance: the diagonal of the Fisher information there, from `fisher`; a tree like the
            parameters, >= 0.
        reference: the former solution, a tree like the parameters.

    Reference:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017, eq. 3.

    Example:
        >>> penalty = EWC(1.0, importance=jnp.array([0.0, 4.0]), reference=jnp.ones(2))
        >>> print(penalty(jnp.array([9.0, 2.0])))
        2.0
    """

    strength: Strength
    _: KW_ONLY
    importance: Strength
    reference: Strength

    def __post_init__(self):
        require_strength(self, "strength")
        _require_arrays(self, "importance", "a tree of numbers >= 0 like the parameters")
        require_strength(self, "importance")
        _require_arrays(self, "reference", "a tree of numbers like the parameters")

    def _fits(self, leaf):
        _require_same(self, leaf, "importance", "reference")
        require_broadcast(self, leaf, jnp.shape(leaf.value), "strength")

    def value(self, w):
        return jnp.sum(self.strength * self.importance * half_square(w - self.reference))

    def shrink(self, w, step_size):
        pull = step_size * self.strength * self.importance
        return divided(w, 1 + pull) + self.reference * (pull / (1 + pull))

    def distance(self, w, gradient):
        return smooth_distance(self, w, gradient)


def fisher(
    loss: Callable[..., jax.Array], params: Tree, examples: Tree, *, batch_size: int = 32
) -> Tree:
    """The diagonal of the empirical Fisher information.

    It is the mean of the squared gradients of single examples.

        fisher = 1/n sum over examples of |gradient of loss(params, example)|^2

    The square of the mean gradient, which a batch gives at once, is another thing and near 0 at a
    solution.

    Args:
        loss: the negative log-likelihood of one example, `loss(params, example) -> scalar`.
        params: where; a tree.
        examples: a tree of arrays whose first axis runs over the examples.
        batch_size: how many examples are worked on at a time; each needs memory like `params`.

    Returns:
        A tree like `params` in float32 or wider, zero for what is no parameter.

    Reference:
        Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017; Kunstner,
        Balles and Hennig, Limitations of the empirical Fisher approximation, 2019, on how it
        differs from the Fisher information itself.

    Example:
        >>> print(fisher(lambda w, x: w * x, jnp.float32(1.0), jnp.array([-1.0, 1.0, 2.0])))
        2.0
    """
    allowed = "a tree of arrays with the same number of examples, at least one, along axis 0"
    lengths = {jnp.shape(array)[:1] for array in jax.tree.leaves(examples)}
    fits = len(lengths) == 1 and lengths != {()} and lengths != {(0,)}
    require(fits, "fisher", "examples", sorted(lengths), allowed)
    batch_size = require_whole("fisher", "batch_size", batch_size)
    items, rebuilt = parameters("fisher", params)
    arrays = [jnp.asarray(item.value) for item in items]

    # `vmap` within a batch and `scan` over batches: all examples at once would need memory for as
    # many gradients, one after the other would leave an accelerator idle.
    def squares(example: Tree) -> list[jax.Array]:
        gradients = jax.grad(lambda given: loss(rebuilt(given), example))(arrays)
        return [square(widened(gradient)) for gradient in gradients]

    def add(total: list[jax.Array], batch: Tree) -> tuple[list[jax.Array], None]:
        found = jax.vmap(squares)(batch)
        return [t + jnp.sum(s, axis=0) for t, s in zip(total, found, strict=True)], None

    ((length,),) = lengths
    # What fills no batch goes first: padding it would need examples of weight 0, whose gradients
    # may be NaN.
    rest = length % batch_size
    total = [jnp.zeros(w.shape, jnp.finfo(widened(w).dtype).dtype) for w in arrays]
    if rest:
        total, _ = add(total, jax.tree.map(lambda x: x[:rest], examples))
    batched = lambda x: jnp.reshape(x[rest:], (-1, batch_size, *jnp.shape(x)[1:]))  # noqa: E731
    total, _ = jax.lax.scan(add, total, jax.tree.map(batched, examples))
    return rebuilt([t / length for t in total], lambda x: jnp.zeros(jnp.shape(x), jnp.float32))


def _require_arrays(penalty: ArrayPenalty, name: str, allowed: str) -> None:
    value = getattr(penalty, name)
    given = jax.tree.leaves(value, is_leaf=is_object)
    given = [array for array in given if not is_key(array)]  # a whole model state may stand here
    require(len(given) > 0, penalty, name, value, allowed)
    for array in given:
        finite = np.iscomplexobj(array) and (not known(array) or np.all(np.isfinite(array)))
        if not finite:
            require_number(penalty, name, array, allowed, lambda _: True)


def _require_same(penalty: ArrayPenalty, leaf: Leaf, *names: str) -> None:
    shape = jnp.shape(leaf.value)
    for name in names:
        value = getattr(penalty, name)
        own, dtype = f"shape {jnp.shape(value)}", jnp.result_type(value).name
        require(jnp.shape(value) == shape, penalty, name, own, f"of shape {shape} at {leaf.path!r}")
        fits = jnp.iscomplexobj(leaf.value) or not jnp.iscomplexobj(value)
        require(fits, penalty, name, dtype, f"real at {leaf.path!r}, as the parameter is")
