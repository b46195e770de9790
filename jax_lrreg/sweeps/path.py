"""Regularization paths: the solution at each of many strengths, to a certificate."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg._arrays import leaves
from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.base import shrunk

Loss = Callable[..., jax.Array]  # (params) or (params, batch) -> a smooth scalar
Batch = Any

CERTAIN = 1e15  # a strength at which all that is penalised is 0; its square is still a float32
COLUMNS = ("objective", "certificate", "sparsity", "iterations")
STALLED = 1000  # iterations without a smaller certificate
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
        require_number("at", "strength", strength, "a number > 0", lambda x: x > 0)
        nearest = int(np.argmin(np.abs(np.log(self.strengths / strength))))
        return jax.tree.map(lambda x: x[nearest], self.params)


def path(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    *,
    strengths: int | chex.ArrayNumpy | list[float] = 100,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> Path:
    """Minimises `loss(params) + strength * penalty(params)` at many strengths.

    Each solution begins at that of the next stronger one. The method is an accelerated proximal
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
    _check("path", params, penalty, tolerance, max_iterations)
    return _solved("path", loss, params, penalty, (), strengths, tolerance, max_iterations)


def _solved(
    owner: str,
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    batch: tuple[Batch, ...],
    strengths: Any,
    tolerance: float,
    max_iterations: int,
) -> Path:
    """The path of a loss on some data."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), params)
    limits = Limits(jnp.float32(tolerance), jnp.int32(max_iterations))
    start, strongest, curvature = _start(loss, params, penalty, batch, limits)
    chosen = strengths_of(owner, strengths, float(strongest))
    scale = strongest if np.isfinite(float(strongest)) else jnp.float32(chosen[0])
    found = _along(loss, start, penalty, batch, curvature, jnp.asarray(chosen), scale, limits)
    columns = {name: np.asarray(getattr(found, name)) for name in COLUMNS}
    penalised = tuple(penalty.sparsity(start).leaves)
    return Path(strengths=chosen, params=found.params, penalised=penalised, **columns)


def strengths_of(owner: str, strengths: Any, strongest: float) -> np.ndarray:
    """Strengths from the strongest to the weakest, in float32."""
    if isinstance(strengths, list | tuple | np.ndarray | jax.Array):
        values = np.asarray(strengths)
        allowed = "a whole number, or an array of numbers > 0"
        require(values.ndim == 1 and values.size > 0, owner, "strengths", strengths, allowed)
        require_number(owner, "strengths", values, allowed, lambda x: x > 0)
        return np.sort(values.astype(np.float32))[::-1]
    count = require_whole(owner, "strengths", strengths)
    allowed = "an array for a penalty under which no strength makes all parameters 0"
    require(np.isfinite(strongest) and strongest > 0, owner, "strengths", strengths, allowed)
    return np.geomspace(strongest, WEAKEST * strongest, count).astype(np.float32)


class Limits(NamedTuple):
    """Where the method stops: below this certificate, or after so many iterations."""

    tolerance: jax.Array
    iterations: jax.Array


class Solution(NamedTuple):
    """A point of a path, the fields as in `Path`."""

    params: optax.Params
    objective: jax.Array
    certificate: jax.Array
    sparsity: jax.Array
    iterations: jax.Array


class Moving(NamedTuple):
    """The method under way.

    Attributes:
        here: the latest point.
        ahead: where the next gradient is taken, beyond it.
        momentum: Nesterov's t.
        steepness: what the curvatures are multiplied by, found by backtracking.
        rest: the certificate here.
        count: of iterations.
        least: the smallest certificate so far.
        since: iterations after it.
    """

    here: optax.Params
    ahead: optax.Params
    momentum: jax.Array
    steepness: jax.Array
    rest: jax.Array
    count: jax.Array
    least: jax.Array
    since: jax.Array


@partial(jax.jit, static_argnums=0)
def _start(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    batch: Batch,
    limits: Limits,
) -> tuple[optax.Params, jax.Array, optax.Params]:
    """The solution with all that is penalised at 0, the least strength for it, and curvatures."""
    slopes, curvature = jax.grad(loss), _curvatures(loss, params, batch)
    params = shrunk(penalty * CERTAIN, params, 1.0)
    scale = norm(slopes(params, *batch))
    moved = _minimise(loss, params, penalty * CERTAIN, batch, curvature, scale, limits)
    grads = slopes(moved.here, *batch)
    penalised = penalty.sparsity(params).leaves

    def solves(strength: jax.Array) -> jax.Array:
        rest = (penalty * strength).certificate(moved.here, grads)
        return norm([x.value for x in leaves(rest) if x.path in penalised]) == 0

    # Any penalty says by its certificate where 0 solves: the least such strength lies between two
    # neighbouring powers of 2.
    high = jax.lax.while_loop(
        lambda s: ~solves(s) & jnp.isfinite(s), lambda s: 2 * s, jnp.float32(1e-30)
    )

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = solves(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return moved.here, jax.lax.fori_loop(0, 30, halve, (high / 2, high))[1], curvature


@partial(jax.jit, static_argnums=0)
def _along(
    loss: Loss,
    start: optax.Params,
    penalty: Penalty,
    batch: Batch,
    curvature: optax.Params,
    strengths: jax.Array,
    scale: jax.Array,
    limits: Limits,
) -> Solution:
    """The solutions at each strength, each begun at the one before."""

    def one(carry: Any, strength: jax.Array) -> tuple[Any, Solution]:
        here, steepness = carry
        term = penalty * strength
        moved = _minimise(loss, here, term, batch, curvature, scale, limits, steepness)
        here = moved.here
        objective = loss(here, *batch) + term(here)
        found = Solution(here, objective, moved.rest, penalty.sparsity(here).overall, moved.count)
        return (here, moved.steepness / 2), found

    return jax.lax.scan(one, (start, jnp.float32(1)), strengths)[1]


def _minimise(
    loss: Loss,
    params: optax.Params,
    term: Penalty,
    batch: Batch,
    curvature: optax.Params,
    scale: jax.Array,
    limits: Limits,
    steepness: chex.Numeric = 1.0,
) -> Moving:
    """Goes from `params` to the minimum of `loss + term`."""
    slopes = jax.grad(loss)

    def unsolved(now: Moving) -> jax.Array:
        # After a thousand iterations without progress rounding has the last word.
        going = (now.count < limits.iterations) & (now.since < STALLED)
        return (now.rest > limits.tolerance) & going

    def step(now: Moving) -> Moving:
        slope = slopes(now.ahead, *batch)

        def moved(steepness: jax.Array) -> tuple[optax.Params, optax.Params, jax.Array]:
            sizes = jax.tree.map(lambda c: 1 / (c * steepness), curvature)
            to = jax.tree.map(lambda x, g, size: x - size * g, now.ahead, slope, sizes)
            to = shrunk(term, to, sizes)
            new, way = slopes(to, *batch), minus(to, now.ahead)
            # By slopes, not by losses: near the minimum the difference of two losses is rounding.
            bent = dot(minus(new, slope), way)
            most = dot(jax.tree.map(lambda c, w: steepness * c * w, curvature, way), way)
            return to, new, bent <= most * (1 + 1e-3) + 1e-30

        def steeper(tried: Any) -> Any:
            steepness, _ = tried
            return 2 * steepness, moved(2 * steepness)

        # Half of it, as the loop doubles it at once: so `moved` is compiled in one place only. The
        # search has an end also where the loss is not finite.
        first = (now.steepness / 2, (now.ahead, slope, jnp.array(False)))
        steepness, (to, new, _) = jax.lax.while_loop(
            lambda tried: ~tried[1][2] & (tried[0] < CERTAIN), steeper, first
        )
        rest = norm(term.certificate(to, new)) / scale
        weighed = jax.tree.map(jnp.multiply, curvature, minus(now.ahead, to))
        back = dot(weighed, minus(to, now.here)) > 0  # the momentum points uphill: begin anew
        momentum = (1 + jnp.sqrt(1 + 4 * now.momentum**2)) / 2
        pull = jnp.where(back, 0.0, (now.momentum - 1) / momentum)
        ahead = jax.tree.map(lambda a, b: a + (pull * (a - b)).astype(a.dtype), to, now.here)
        since = jnp.where(rest < now.least, 0, now.since + 1)
        momentum, least = jnp.where(back, 1.0, momentum), jnp.minimum(rest, now.least)
        return Moving(to, ahead, momentum, steepness, rest, now.count + 1, least, since)

    rest = norm(term.certificate(params, slopes(params, *batch))) / scale
    rest, zero = jnp.float32(rest), jnp.int32(0)
    begin = (params, params, jnp.float32(1), jnp.float32(steepness), rest, zero, rest, zero)
    return jax.lax.while_loop(unsolved, step, Moving(*begin))


def _curvatures(loss: Loss, params: optax.Params, batch: Batch) -> optax.Params:
    """The mean curvature along each array, one number for each.

    An intercept of curvature 1 beside coefficients of 1/442, as of scikit-learn's diabetes data,
    would make 400 times as many iterations' worth of a problem, if both had one step size.
    """

    def probe(key: chex.PRNGKey) -> optax.Params:
        parts, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(parts))
        pairs = zip(parts, keys, strict=True)
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for x, k in pairs]
        signs = jax.tree.unflatten(structure, signs)
        _, bent = jax.jvp(lambda p: jax.grad(loss)(p, *batch), (params,), (signs,))
        return jax.tree.map(lambda s, b: jnp.mean(s * b), signs, bent)

    # Hutchinson's estimate of the trace, a few times: what is wrong in it is found by backtracking.
    samples = jax.vmap(probe)(jax.random.split(jax.random.key(0), 16))
    means = jax.tree.map(lambda x: jnp.mean(x, axis=0), samples)
    largest = jnp.maximum(jnp.max(jnp.stack(jax.tree.leaves(means))), 1e-30)
    return jax.tree.map(lambda x: jnp.maximum(x, 1e-6 * largest), means)


def minus(a: optax.Params, b: optax.Params) -> optax.Params:
    """The difference of two trees."""
    return jax.tree.map(jnp.subtract, a, b)


def dot(a: optax.Params, b: optax.Params) -> jax.Array:
    """The inner product of two trees, in float32 at least."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros((), jnp.float32))


def norm(tree: optax.Params) -> jax.Array:
    """The norm over all arrays of a tree."""
    return jnp.sqrt(dot(tree, tree)).astype(jnp.float32)


def _check(
    owner: str, params: optax.Params, penalty: Penalty, tolerance: float, max_iterations: int
) -> None:
    is_penalty = isinstance(penalty, Penalty)
    require(is_penalty, owner, "penalty", penalty, "a Penalty", error=TypeError)
    require_number(owner, "tolerance", tolerance, "a number > 0", lambda x: x > 0)
    require_whole(owner, "max_iterations", max_iterations)
    try:
        jax.eval_shape(penalty.certificate, params, params)
        jax.eval_shape(lambda p: shrunk(penalty, p, 1.0), params)
    except NotImplementedError as error:
        raise ValueError(
            f"{owner}: `penalty` must have a certificate and a prox, but {error}"
        ) from None
