"""Penalties on what a model computes, not on its parameters: activations, input derivatives."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from jax_lrreg._arrays import leaves, widened
from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg.penalties.base import Penalty
from jax_lrreg.penalties.lift import Step
from jax_lrreg.penalties.norms import norm, square


def activity_penalty(
    penalty: Penalty,
    collection: optax.Params,
    *,
    batch_size: int,
    calls: int = 1,
    step: Step = None,
) -> jax.Array:
    """A penalty of sown activations: per example, and averaged over the calls of each module.

        activity_penalty = 1 / (batch_size calls) sum over calls of penalty(activations of the call)

    so that neither a larger batch nor a shared layer makes it stronger. The activations are those
    that `module.sow(name, value)` has put into a collection of a Linen module, returned by
    `apply(..., mutable=[name])`, or into the state that `nnx.capture(model, nnx.Intermediate)`
    returns. Within `jax.jit` with a sharded batch it is counted once; in `shard_map` give the local
    batch and average the result.

    Rematerialisation needs nothing. Under `nn.scan` the collection must be among its
    `variable_axes`, with axis 0; otherwise Linen drops it. Each of the stacked layers then counts
    as a layer of its own.

    Args:
        penalty: what applies to each activation; `.on(pattern)` chooses by the path in the
            collection.
        collection: a tree of activations, or of tuples of them, one for each call.
        batch_size: the number of examples, which must be the length of one of the first two axes.
        calls: how often each module is called in one forward pass. Another number of sown values is
            refused: as a rule they were left by `init` or by the step before.
        step: where the strength is a schedule.

    Raises:
        ValueError: the collection is empty, as it is when nobody asked for it, or its shapes or
            numbers do not fit.

    Reference:
        Merity, McCann and Socher, Revisiting activation regularization for language RNNs, 2017.

    Example:
        >>> from jax_lrreg.penalties import L1
        >>> sown = {"Dense_0": {"activation": (jnp.array([[1.0, -2.0], [0.0, 3.0]]),)}}
        >>> print(activity_penalty(L1(0.5), sown, batch_size=2))
        1.5
    """
    owner = "activity_penalty"
    require(isinstance(penalty, Penalty), owner, "penalty", penalty, "a penalty", error=TypeError)
    batch_size = require_whole(owner, "batch_size", batch_size)
    calls = require_whole(owner, "calls", calls)
    # `sow` appends to a tuple, a value for each call: the tuple is one module's activations.
    sown, structure = jax.tree.flatten(collection, is_leaf=lambda x: isinstance(x, tuple))
    missing = "is it among `mutable`, and under `nn.scan` among `variable_axes`?"
    allowed = f"a collection with activations in it: {missing}"
    require(len(jax.tree.leaves(sown)) > 0, owner, "collection", collection, allowed)
    every = [value if isinstance(value, tuple) else (value,) for value in sown]
    behind = "`init` and earlier steps leave theirs behind"
    allowed = f"{calls} sown value(s) each, the number of `calls`; {behind}"
    for values in every:
        require(len(values) == calls, owner, "collection", f"one with {len(values)}", allowed)
    total = jnp.zeros((), jnp.float32)
    # Call by call, so that the paths are those of the modules and a pattern need not count calls.
    for values in zip(*every, strict=True):
        activations = jax.tree.unflatten(structure, values)
        for path, array in leaves(activations):
            shape = jnp.shape(array)
            allowed = f"the length of one of the first two axes of {path!r}, of shape {shape}"
            # The second axis, as `nn.scan` stacks its layers' activations along the first.
            require(batch_size in shape[:2], owner, "batch_size", batch_size, allowed)
        total = total + penalty(activations, step)
    return total / (batch_size * calls)


def gradient_penalty(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, *, target: chex.Numeric = 1.0
) -> jax.Array:
    """How far the gradient of `f` by its input is from a given length, averaged over examples.

        gradient_penalty = mean over examples of (||gradient of f at x_i|| - target)^2

    With `target=1` at points from `points_between` it is that of WGAN-GP; half of it with
    `target=0` at real examples is R1. Where the gradient is 0 its norm has the derivative 0, not
    NaN.

    Args:
        f: takes one example and returns a scalar; for a model, `lambda x: model(x[None])[0, 0]`.
        x: examples along the first axis.
        target: the length, not negative.

    Reference:
        Gulrajani et al., Improved training of Wasserstein GANs, 2017; Mescheder, Geiger and
        Nowozin, Which training methods for GANs do actually converge?, 2018 (R1).

    Example:
        >>> print(gradient_penalty(lambda x: 3 * x[0] + 4 * x[1], jnp.ones((2, 2))))
        16.0
    """
    require_number("gradient_penalty", "target", target, "a number >= 0", lambda t: t >= 0)
    _require_examples("gradient_penalty", "x", x)
    gradients = widened(jax.vmap(jax.grad(f))(x))
    return jnp.mean((norm(gradients, tuple(range(1, gradients.ndim))) - target) ** 2)


def jacobian_penalty(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, key: chex.PRNGKey, *, projections: int = 1
) -> jax.Array:
    """Half the squared Frobenius norm of the Jacobian of `f` by its input, averaged over examples.

        jacobian_penalty = mean over examples of 1/2 ||J(x_i)||^2

    estimated without bias from random projections: ||J||^2 = outputs E ||v^T J||^2 over unit
    vectors v.

    Args:
        f: takes one example and returns an array of any shape.
        x: examples along the first axis.
        key: a typed PRNG key; another one for each step.
        projections: how many vectors for each example, each of which costs one backward pass.

    Reference:
        Hoffman, Roberts and Yaida, Robust learning with Jacobian regularization, 2019, algorithm 1.

    Example:
        >>> print(jacobian_penalty(lambda x: 3 * x[:1], jnp.ones((2, 2)), jax.random.key(0)))
        4.5
    """
    projections = require_whole("jacobian_penalty", "projections", projections)
    _require_examples("jacobian_penalty", "x", x)

    def one(x: jax.Array, key: chex.PRNGKey) -> jax.Array:
        y, pull = jax.vjp(f, x)
        v = jax.random.normal(key, (projections, *y.shape), widened(y).dtype)
        # Normals of length 1 are uniform on the sphere. Without that step ||v^T J||^2 varies more:
        # the squared length of v alone has a relative variance of 2 / outputs.
        v = (v / norm(v, tuple(range(1, v.ndim)), keepdims=True)).astype(y.dtype)
        return y.size * jnp.sum(square(widened(jax.vmap(pull)(v)[0]))) / projections / 2

    return jnp.mean(jax.vmap(one)(x, jax.random.split(key, jnp.shape(x)[0])))


def points_between(real: jax.Array, fake: jax.Array, key: chex.PRNGKey) -> jax.Array:
    """Random points on the lines between two sets of examples.

    At these WGAN-GP asks for gradients of length 1.

        points_between = u real + (1 - u) fake, with one uniform u for each example

    Example:
        >>> print(points_between(jnp.ones((2, 3)), jnp.ones((2, 3)), jax.random.key(0)).shape)
        (2, 3)
    """
    owner, shape = "points_between", jnp.shape(real)
    _require_examples(owner, "real", real)
    own = jnp.shape(fake)
    require(own == shape, owner, "fake", f"shape {own}", f"of the shape of `real`, {shape}")
    u = jax.random.uniform(key, (shape[0],) + (1,) * (real.ndim - 1), real.dtype)
    return u * real + (1 - u) * fake


def _require_examples(owner: str, name: str, x: jax.Array) -> None:
    shape = jnp.shape(x)
    allowed = "an array with at least one example along its first axis"
    require(len(shape) > 0 and shape[0] > 0, owner, name, f"shape {shape}", allowed)
