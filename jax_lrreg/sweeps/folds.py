"""Cross-validation: how strong a penalty should be, by data that was left out."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._check import require, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.sweeps.path import Path, along, begun, solved
from jax_lrreg.sweeps.program import hashed
from jax_lrreg.sweeps.solver import Batch, Limits, Loss, require_solvable
from jax_lrreg.training.batch import count_examples
from jax_lrreg.training.data import gather


@dataclasses.dataclass(frozen=True, repr=False)
class CrossValidation:
    """What was found at each strength, on data that was left out.

    Attributes:
        strengths: the factors in front of the penalty, falling.
        scores: the loss on what was left out, [strengths, folds].
        mean: over the folds, each counting alike.
        error: its standard error.
        path: the solutions on all data.
        best: the strength of the least mean.
        one_standard_error: the strongest one whose mean is at most one standard error above that.
    """

    strengths: np.ndarray
    scores: np.ndarray
    path: Path

    def __repr__(self) -> str:
        least = int(np.argmin(self.mean))
        score = f"{self.mean[least]:.6g} ± {self.error[least]:.2g}"
        found = f"best={self.best:.6g}, one_standard_error={self.one_standard_error:.6g}"
        return f"CrossValidation({found}; loss {score} over {self.scores.shape[1]} folds)"

    @property
    def mean(self) -> np.ndarray:
        return self.scores.mean(axis=1)

    @property
    def error(self) -> np.ndarray:
        return self.scores.std(axis=1, ddof=1) / self.scores.shape[1] ** 0.5

    @property
    def best(self) -> float:
        return float(self.strengths[np.argmin(self.mean)])

    @property
    def one_standard_error(self) -> float:
        least = np.argmin(self.mean)
        near = self.mean <= self.mean[least] + self.error[least]
        return float(self.strengths[np.argmax(near)])  # the first one, which is the strongest


def cross_validate(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    data: Batch,
    *,
    folds: int | chex.ArrayNumpy | list[int] = 5,
    strengths: int | chex.ArrayNumpy | list[float] = 100,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> CrossValidation:
    """Chooses the strength of a penalty by the loss on examples that were left out.

    Each fold is left out once, while the path of all others is found; folds of one size are solved
    side by side. The strengths are those of the path of all data.

    Args:
        loss: `loss(params, batch)`, a smooth mean over the examples of the batch.
        params: as in `path`.
        penalty: as in `path`.
        data: a tree of arrays with equally many examples along axis 0.
        folds: how many blocks of neighbours, as scikit-learn's `KFold` cuts them; or the number of
            the fold that each example belongs to.
        strengths: as in `path`.
        tolerance: as in `path`.
        max_iterations: as in `path`.

    Returns:
        A `CrossValidation`.

    Raises:
        ValueError: as in `path`; or there are fewer than two folds, or more than examples.

    Source:
        Hastie, Tibshirani and Friedman, The elements of statistical learning, 2009, section 7.10.

    Example:
        >>> from jax_lrreg import penalties, sweeps
        >>> x = jax.random.normal(jax.random.key(0), (40, 3))
        >>> y = x[:, 0] + 0.1 * jax.random.normal(jax.random.key(1), (40,))
        >>> loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2
        >>> cv = sweeps.cross_validate(loss, jnp.zeros(3), penalties.L1(1.0), (x, y), strengths=20)
        >>> cv.scores.shape, cv.best <= cv.one_standard_error
        ((20, 5), True)
    """
    count = count_examples(data, "cross_validate", "data") or 0
    require(count > 1, "cross_validate", "data", count, "of two examples or more")
    numbers = _folds(folds, count)
    data = jax.tree.map(jnp.asarray, data)
    require_solvable("cross_validate", loss, params, (data,), penalty, tolerance, max_iterations)
    limits = Limits(jnp.float32(tolerance), jnp.int32(max_iterations))
    loss = hashed(loss)
    whole = solved("cross_validate", loss, params, penalty, (data,), strengths, limits, "warm")
    scores = np.zeros((len(whole.strengths), numbers.max() + 1))
    sizes = np.bincount(numbers)
    for size in np.unique(sizes):  # side by side go folds of one size, blocks being of one or two
        same = np.flatnonzero(sizes == size)
        test = np.stack([np.flatnonzero(numbers == fold) for fold in same])
        train = np.stack([np.flatnonzero(numbers != fold) for fold in same])
        start = jax.tree.map(lambda x: x[0], whole.params)
        found = _scores(loss, start, penalty, data, train, test, whole.strengths, limits)
        scores[:, same] = np.asarray(found).T
    return CrossValidation(whole.strengths, scores, whole)


def _folds(folds: int | chex.ArrayNumpy | list[int], count: int) -> np.ndarray:
    """The fold of each example, numbers from 0 without gaps."""
    if not isinstance(folds, list | tuple | np.ndarray | jax.Array):
        allowed = f"a whole number from 2 to the {count} examples, or a fold for each example"
        number = require_whole("cross_validate", "folds", folds, 2, count, allowed)
        blocks = np.array_split(np.arange(count), number)  # the first ones have one more
        return np.repeat(np.arange(number), [len(block) for block in blocks])
    given = np.asarray(folds)
    allowed = f"a whole number for each of {count} examples"
    whole = given.shape == (count,) and np.issubdtype(given.dtype, np.integer)
    require(whole, "cross_validate", "folds", folds, allowed)
    names, numbers = np.unique(given, return_inverse=True)
    require(len(names) > 1, "cross_validate", "folds", folds, "two different ones or more")
    return numbers


@partial(jax.jit, static_argnums=0)
def _scores(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    data: Batch,
    train: jax.Array,
    test: jax.Array,
    strengths: jax.Array,
    limits: Limits,
) -> jax.Array:
    """The loss of each fold on its examples along the path of all others, [folds, strengths]."""

    def one(train: jax.Array, test: jax.Array) -> jax.Array:
        kept, left = (gather(data, train),), gather(data, test)
        start, strongest, curvature = begun(loss, params, penalty, kept, limits)
        scale = jnp.where(jnp.isfinite(strongest), strongest, strengths[0])
        found = along(loss, "warm", start, penalty, kept, curvature, strengths, scale, limits)
        return jax.vmap(lambda p: loss(p, left))(found.params)

    return jax.vmap(one)(train, test)
