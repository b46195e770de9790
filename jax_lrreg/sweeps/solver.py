"""The minimum of a smooth loss and a penalty, and its derivative by the strengths."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg.penalties import Penalty
from jax_lrreg.penalties.base import shrunk

Loss = Callable[..., jax.Array]  # (params) or (params, batch) -> a smooth scalar
Slopes = Callable[..., optax.Params]  # (params) or (params, batch) -> its gradient
Batch = Any

CERTAIN = 1e15  # a strength at which all that is penalised is 0; its square is still a float32
STALLED = 1000  # iterations without a smaller certificate


def solve(
    loss: Loss,
    params: optax.Params,
    penalty: Penalty,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> optax.Params:
    """The minimum of `loss(params) + penalty(params)`, with a derivative.

    The method is that of `path`. `jit`, `vmap` and `grad` go through it, also where strengths or
    what the loss is made of are traced: `hypergradient` and `tune` need no other mode for it. The
    derivative is that of the equation which the minimum solves,

        params = prox(params - step_size * slope of the loss),

    and not of the iterations that led there. It costs one solve of a linear system by conjugate
    gradients, of the size of the support, however many strengths there are: in reverse, one for all
    of them.

    Args:
        loss: a smooth function of the parameters, such as half the mean of squares. Its minimum
            with the penalty must be one.
        params: where to begin, which decides shapes and dtypes. Those that the penalty is not on
            are free.
        penalty: one with a prox and a certificate.
        tolerance: of the certificate, relative to the slope of the loss where all that is penalised
            is 0.
        max_iterations: after which it ends in any case.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: the penalty has no certificate or no prox.

    Source:
        Bertrand, Klopfenstein, Blondel, Vaiter, Gramfort and Salmon, Implicit differentiation of
        Lasso-type models for hyperparameter optimization, 2020.

    Example:
        >>> from jax_lrreg import penalties, sweeps
        >>> loss = lambda w: jnp.sum((w - jnp.array([3.0, 1.0])) ** 2) / 2
        >>> found = lambda lasso: jnp.sum(sweeps.solve(loss, jnp.zeros(2), lasso) ** 2)
        >>> print(found(penalties.L1(2.0)), jax.grad(found)(penalties.L1(2.0)))
        1.0 L1(-2.0)
    """
    require_solvable("solve", loss, params, (), penalty, tolerance, max_iterations)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), params)
    # What the loss is made of may be traced, too: it becomes an argument, to be held still.
    slopes, outer = jax.closure_convert(jax.grad(loss), params)
    start, term, held = jax.lax.stop_gradient((params, penalty, outer))
    curvature = curvatures(slopes, start, held)
    zero = shrunk(term * CERTAIN, start, 1.0)
    scale = jnp.maximum(norm(slopes(zero, *held)), 1e-30)
    limits = Limits(jnp.float32(tolerance), jnp.int32(max_iterations))
    moved = minimise(slopes, start, term, held, curvature, scale, limits)
    sizes = jax.tree.map(lambda c: 1 / (c * moved.steepness), curvature)
    return _with_derivative(slopes, moved.here, penalty, outer, sizes)


def _with_derivative(
    slopes: Slopes, here: optax.Params, penalty: Penalty, outer: Batch, sizes: optax.Params
) -> optax.Params:
    """A minimum, with its derivative by the penalty and by what the loss is made of."""
    here, sizes, term, held = jax.lax.stop_gradient((here, sizes, penalty, outer))

    def stepped(penalty: Penalty, outer: Batch) -> optax.Params:
        slope = slopes(here, *outer)
        return shrunk(penalty, jax.tree.map(lambda w, s, g: w - s * g, here, sizes, slope), sizes)

    slope, bend = jax.linearize(lambda w: slopes(w, *held), here)
    before = jax.tree.map(lambda w, s, g: w - s * g, here, sizes, slope)
    _, shrink = jax.linearize(lambda z: shrunk(term, z, sizes), before)
    # Of a move y of the step, the minimum moves by the x of x = D (x - S H x) + y: D the derivative
    # of the prox, H that of the slopes, S the step sizes. D is symmetric, as a prox is a gradient,
    # and commutes with S, one number for each array. With x = y + D R v and R the root of S,
    #     (D - D^2 + R D H D R) v = D (y / R - R H y)
    # is symmetric and not negative, and 0 where D is: conjugate gradients never leave the support.
    root = jax.tree.map(jnp.sqrt, sizes)

    def times(v: optax.Params, by: optax.Params) -> optax.Params:
        return jax.tree.map(jnp.multiply, v, by)

    def system(v: optax.Params) -> optax.Params:
        kept = shrink(v)
        bent = times(shrink(bend(times(kept, root))), root)
        return jax.tree.map(lambda k, kk, b: k - kk + b, kept, shrink(kept), bent)

    y = stepped(penalty, outer)
    y = minus(y, jax.lax.stop_gradient(y))  # 0, but for its derivative
    right = shrink(minus(jax.tree.map(jnp.divide, y, root), times(bend(y), root)))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(here))
    v, _ = jax.scipy.sparse.linalg.cg(system, right, tol=eps)
    moved = jax.tree.map(jnp.add, y, times(shrink(v), root))
    return jax.tree.map(lambda w, x: w + x.astype(w.dtype), here, moved)


class Limits(NamedTuple):
    """Where the method stops: below this certificate, or after so many iterations."""

    tolerance: jax.Array
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


def minimise(
    slopes: Slopes,
    params: optax.Params,
    term: Penalty,
    batch: Batch,
    curvature: optax.Params,
    scale: jax.Array,
    limits: Limits,
    steepness: chex.Numeric = 1.0,
) -> Moving:
    """Goes from `params` to the minimum of `loss + term`, the loss given by its gradient."""

    def unsolved_by(here: optax.Params, slope: optax.Params) -> jax.Array:
        # Of what is no number, a subdifferential has no distance, and not that of 0.
        sound = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(here)]).all()
        return jnp.where(sound, norm(term.certificate(here, slope)) / scale, jnp.nan)

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

        def steeper(tried: tuple[jax.Array, tuple]) -> tuple[jax.Array, tuple]:
            steepness, _ = tried
            return 2 * steepness, moved(2 * steepness)

        # Half of it, as the loop doubles it at once: so `moved` is compiled in one place only. The
        # search has an end also where the loss is not finite.
        first = (now.steepness / 2, (now.ahead, slope, jnp.array(False)))
        steepness, (to, new, _) = jax.lax.while_loop(
            lambda tried: ~tried[1][2] & (tried[0] < CERTAIN), steeper, first
        )
        rest = unsolved_by(to, new)
        weighed = jax.tree.map(jnp.multiply, curvature, minus(now.ahead, to))
        back = dot(weighed, minus(to, now.here)) > 0  # the momentum points uphill: begin anew
        momentum = (1 + jnp.sqrt(1 + 4 * now.momentum**2)) / 2
        pull = jnp.where(back, 0.0, (now.momentum - 1) / momentum)
        ahead = jax.tree.map(lambda a, b: a + (pull * (a - b)).astype(a.dtype), to, now.here)
        since = jnp.where(rest < now.least, 0, now.since + 1)
        momentum, least = jnp.where(back, 1.0, momentum), jnp.minimum(rest, now.least)
        return Moving(to, ahead, momentum, steepness, rest, now.count + 1, least, since)

    rest, zero = jnp.float32(unsolved_by(params, slopes(params, *batch))), jnp.int32(0)
    begin = (params, params, jnp.float32(1), jnp.float32(steepness), rest, zero, rest, zero)
    return jax.lax.while_loop(unsolved, step, Moving(*begin))


def curvatures(slopes: Slopes, params: optax.Params, batch: Batch) -> optax.Params:
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
        _, bent = jax.jvp(lambda p: slopes(p, *batch), (params,), (signs,))
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


def require_solvable(
    owner: str,
    loss: Loss,
    params: optax.Params,
    batch: tuple[Batch, ...],
    penalty: Penalty,
    tolerance: float,
    max_iterations: int,
) -> None:
    """Refuses by name what cannot be solved."""
    is_penalty = isinstance(penalty, Penalty)
    require(is_penalty, owner, "penalty", penalty, "a Penalty", error=TypeError)
    require(callable(loss), owner, "loss", loss, "a function", error=TypeError)
    for x in jax.tree.leaves(params):
        real = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        real = real and jnp.finfo(jnp.result_type(x)).bits >= 32
        allowed = "a tree of real numbers of 32 bits or more"
        require(real, owner, "params", jnp.result_type(x).name, allowed, TypeError)
    value = jax.eval_shape(loss, params, *batch)
    scalar = jax.tree.structure(value) == jax.tree.structure(0.0) and value.shape == ()
    scalar = scalar and jnp.issubdtype(value.dtype, jnp.floating)
    require(scalar, owner, "loss", value, "a function that returns a real scalar", TypeError)
    require_number(owner, "tolerance", tolerance, "a number > 0", lambda x: x > 0)
    require_whole(owner, "max_iterations", max_iterations)
    try:
        jax.eval_shape(penalty.certificate, params, params)
        jax.eval_shape(lambda p: shrunk(penalty * CERTAIN, p, 1.0), params)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(
            f"{owner}: `penalty` must have a certificate and a prox, but {error}"
        ) from None
