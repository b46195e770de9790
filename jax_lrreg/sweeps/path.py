"""Regularization paths: the solution at each of many strengths, to a certificate."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import leaves
from jax_lrreg._check import require, require_choice, require_number, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.base import shrunk
from jax_lrreg.sweeps.program import hashed
from jax_lrreg.sweeps.solver import (
    CERTAIN,
    Batch,
    Limits,
    Loss,
    curvatures,
    minimise,
    norm,
    require_solvable,
)

Strengths = int | chex.ArrayNumpy | list[float]
Start = tuple[optax.Params, jax.Array]  # where a solution begins, and how steep it is there

COLUMNS = ("objective", "certificate", "sparsity", "iterations")
MODES = ("warm", "parallel")
WEAKEST = 1e-3  # of the strongest strength, as scikit-learn has it


@dataclasses.dataclass(frozen=True, repr=False)
class Path:
    """The solutions along a regularization path, from the strongest strength to the weakest.

    Attributes:
        strengths: the factors in front of the penalty, falling.
        params: a tree like the parameters, with a leading axis along the path.
        objective: loss + strength * penalty.
        certificate: the distance of each solution from solving, over all parameters, divided by the
            strength at which all that is penalised becomes 0.
        sparsity: the fraction of exact zeros among what is penalised.
        iterations: steps of the method.
        penalised: the paths of the parameters that the penalty is on.
    """

    strengths: np.ndarray
    params: Any
    objective: np.ndarray
    certificate: np.ndarray
    sparsity: np.ndarray
    iterations: np.ndarray
    penalised: tuple[str, ...]

    def __repr__(self) -> str:
        first, last = self.strengths[0], self.strengths[-1]
        text = f"{len(self.strengths)} strengths from {first:.4g} to {last:.4g}"
        worst, steps = self.certificate.max(), self.iterations.sum()
        return f"Path({text}; certificate <= {worst:.1e} after {steps} iterations)"

    def at(self, strength: float) -> Any:
        """The parameters at the strength of the path that is nearest, by its logarithm."""
        one = lambda x: x.ndim == 0 and x > 0  # noqa: E731
        require_number("at", "strength", strength, "a number > 0", one)
        nearest = int(np.argmin(np.abs(np.log(self.strengths / strength))))
        return jax.tree.map(lambda x: x[nearest], self.params)


def path(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    *,
    strengths: Strengths = 100,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
    mode: str = "warm",
) -> Path:
    """Minimises `loss(params) + strength * penalty(params)` at many strengths.

    The method is an accelerated proximal
    gradient with restarts, its step found by backtracking; it ends at the `certificate` of the
    penalty, the distance of the gradient to the subdifferential, and not where it merely becomes
    slow. All is one compiled program.

    Args:
        loss: a smooth function of the parameters, such as half the mean of squares. With a convex
            one the solutions are the minima.
        params: where to begin, which decides shapes and dtypes. Those that the penalty is not on,
            such as an intercept, are free.
        penalty: one with a prox and a certificate.
        strengths: how many, from the least at which all that is penalised is 0 down to a thousandth
            of it, in geometric progression; or an array of them.
        tolerance: of the certificate, relative to the strength at which all is 0. In float32
            rounding may end it above that, at some 1e-6 for an intercept of 100.
        max_iterations: at each strength; where it is reached the certificate says so.
        mode: "warm" begins each solution at that of the next stronger one. "parallel" begins all at
            the strongest one, side by side: more iterations, in products of matrices for all of
            them, until the slowest is done.

    Returns:
        A `Path`.

    Raises:
        ValueError: the penalty has no certificate or no prox; or `strengths` is a number, and there
            is no strength at which all is 0, as for `L2`.

    Source:
        Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009; O'Donoghue and
        Candes, Adaptive restart for accelerated gradient schemes, 2015.

    Example:
        >>> from jax_lrreg import penalties, sweeps
        >>> loss = lambda w: jnp.sum((w - jnp.array([3.0, 1.0])) ** 2) / 2
        >>> lasso = sweeps.path(loss, jnp.zeros(2), penalties.L1(1.0), strengths=[2.0, 0.5])
        >>> print(lasso.params)
        [[1.  0. ]
         [2.5 0.5]]
    """
    require_solvable("path", loss, params, (), penalty, tolerance, max_iterations)
    require_choice("path", "mode", mode, MODES)
    limits = Limits(jnp.float32(tolerance), jnp.int32(max_iterations))
    return solved("path", hashed(loss), params, penalty, (), strengths, limits, mode)


def solved(
    owner: str,
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    batch: tuple[Batch, ...],
    strengths: Strengths,
    limits: Limits,
    mode: str,
) -> Path:
    """The path of a loss on some data."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), params)
    start, strongest, curvature = begun(loss, params, penalty, batch, limits)
    allowed = "a function that has a finite slope where all that is penalised is 0"
    require(not np.isnan(float(strongest)), owner, "loss", loss, allowed)
    chosen = strengths_of(
        owner, strengths, float(strongest), jnp.result_type(*jax.tree.leaves(params))
    )
    scale = strongest if np.isfinite(float(strongest)) else jnp.float32(chosen[0])
    found = along(loss, mode, start, penalty, batch, curvature, jnp.asarray(chosen), scale, limits)
    columns = {name: np.asarray(getattr(found, name)) for name in COLUMNS}
    penalised = tuple(penalty.sparsity(start).leaves)
    return Path(strengths=chosen, params=found.params, penalised=penalised, **columns)


def strengths_of(owner: str, strengths: Strengths, strongest: float, dtype: np.dtype) -> np.ndarray:
    """Strengths from the strongest to the weakest."""
    dtype = np.promote_types(dtype, np.float32)  # of a product with parameters of float32 or wider
    if isinstance(strengths, list | tuple | np.ndarray | jax.Array):
        values = np.asarray(strengths)
        allowed = "a whole number, or an array of numbers > 0"
        require(values.ndim == 1 and values.size > 0, owner, "strengths", strengths, allowed)
        require_number(owner, "strengths", values, allowed, lambda x: x > 0)
        with np.errstate(over="ignore", under="ignore"):
            held = values.astype(dtype)
        allowed = f"numbers > 0 in the range of {dtype}"
        require_number(owner, "strengths", held, allowed, lambda x: x >= np.finfo(dtype).tiny)
        return np.sort(held)[::-1]
    count = require_whole(owner, "strengths", strengths)
    allowed = "an array for a penalty under which no strength makes all parameters 0"
    require(np.isfinite(strongest) and strongest > 0, owner, "strengths", strengths, allowed)
    return np.geomspace(strongest, WEAKEST * strongest, count).astype(dtype)


class Solution(NamedTuple):
    """A point of a path, the fields as in `Path`."""

    params: optax.Params
    objective: jax.Array
    certificate: jax.Array
    sparsity: jax.Array
    iterations: jax.Array


@partial(jax.jit, static_argnums=0)
def begun(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    batch: Batch,
    limits: Limits,
) -> tuple[optax.Params, jax.Array, optax.Params]:
    """The solution with all that is penalised at 0, the least strength for it, and curvatures."""
    slopes = jax.grad(loss)
    curvature = curvatures(slopes, params, batch)
    params = shrunk(penalty * CERTAIN, params, 1.0)
    scale = norm(slopes(params, *batch))
    moved = minimise(slopes, params, penalty * CERTAIN, batch, curvature, scale, limits)
    grads = slopes(moved.here, *batch)
    penalised = penalty.sparsity(params).leaves

    def solves(strength: jax.Array) -> jax.Array:
        rest = (penalty * strength).certificate(moved.here, grads)
        return norm([x.value for x in leaves(rest) if x.path in penalised]) == 0

    # Any penalty says by its certificate where 0 solves: the least such strength lies between two
    # neighbouring powers of 2. A constraint has none, though at 1e33 its distance is rounded to 0.
    size = norm(grads)
    limit = jnp.maximum(CERTAIN * size, 1)
    high = jax.lax.while_loop(
        lambda s: ~solves(s) & (s < limit), lambda s: 2 * s, jnp.float32(1e-30)
    )

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = solves(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    found = jax.lax.fori_loop(0, 30, halve, (high / 2, high))[1]
    every = (high < limit) & (penalty.sparsity(moved.here).overall == 1)
    strongest = jnp.where(every, found, jnp.inf)
    return moved.here, jnp.where(jnp.isfinite(size), strongest, jnp.nan), curvature


@partial(jax.jit, static_argnums=(0, 1))
def along(
    loss: Loss,
    mode: str,
    start: optax.Params,
    penalty: Penalty,
    batch: Batch,
    curvature: optax.Params,
    strengths: jax.Array,
    scale: jax.Array,
    limits: Limits,
) -> Solution:
    """The solutions at each strength, each begun at the one before, or all at the start."""
    slopes = jax.grad(loss)

    def one(carry: Start, strength: jax.Array) -> tuple[Start, Solution]:
        here, steepness = carry
        term = penalty * strength
        moved = minimise(slopes, here, term, batch, curvature, scale, limits, steepness)
        here = moved.here
        objective = loss(here, *batch) + term(here)
        found = Solution(here, objective, moved.rest, penalty.sparsity(here).overall, moved.count)
        return (here, moved.steepness / 2), found

    first = (start, jnp.float32(1))
    if mode == "parallel":
        return jax.vmap(lambda strength: one(first, strength)[1])(strengths)
    return jax.lax.scan(one, first, strengths)[1]
