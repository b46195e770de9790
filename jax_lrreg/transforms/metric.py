"""The diagonal metric of an adaptive optimizer: how far each parameter moves for a unit of gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_lrreg._check import require_number
from jax_lrreg._optax_state import SECOND_MOMENTS, second_moments
from jax_lrreg._struct import pytree


@pytree
class Metric:
    """The constants of an optimizer's step size, for `proximal(..., metric=)`.

        step size = learning_rate / (1 - momentum) / (sqrt(v / (1 - b2^t) + eps_root) + eps)

    where v is the second moment in the optimizer's state after t updates; without one, as in SGD, the
    denominator is 1.

    Attributes:
        b2: decay of v, in [0, 1), for the correction of its start from 0; None where the optimizer makes none.
        eps: added to the square root; >= 0.
        eps_root: added inside it; >= 0.
        momentum: decay of a sum of past updates (heavy ball, Nesterov), in [0, 1).
        lag: the same decay where that sum holds updates already multiplied by the learning rate, as in
            `optax.rmsprop(momentum=)`: what counts is then the mean of the rates that went into it.

    Example:
        >>> Metric(b2=0.999, eps=1e-8)  # Adam
        Metric(0.999, eps=1e-08)
    """

    b2: Any = None
    eps: Any = 0.0
    eps_root: Any = 0.0
    momentum: Any = 0.0
    lag: Any = 0.0

    def __post_init__(self):
        for name in ("eps", "eps_root"):
            require_number(self, name, getattr(self, name), "a number >= 0", lambda x: x >= 0)
        for name in ("b2", "momentum", "lag"):
            if getattr(self, name) is not None:
                require_number(
                    self,
                    name,
                    getattr(self, name),
                    "a number in [0, 1)",
                    lambda x: (x >= 0) & (x < 1),
                )

    def __call__(self, state: Any, learning_rate: Any) -> Any:
        """The step sizes, a scalar or a tree like the parameters, from the optimizer's state after its update."""
        rate = learning_rate / (1 - self.momentum)
        found = second_moments(state)
        if not found:
            return rate
        holder = found[0]
        moments = getattr(holder, SECOND_MOMENTS[type(holder).__name__])
        correction = (
            1.0 if self.b2 is None else 1 - self.b2 ** jnp.asarray(holder.count, jnp.float32)
        )

        def one(v: jax.Array, mean: jax.Array | None = None) -> jax.Array:
            v = jnp.real(
                v
            )  # beside a complex parameter Optax keeps it complex, without an imaginary part
            v = v.astype(jnp.promote_types(v.dtype, jnp.float32))
            v = v if mean is None else jnp.maximum(v - jnp.abs(mean) ** 2, 0)
            return rate / (jnp.sqrt(v / correction + self.eps_root) + self.eps)

        if "RStdDev" in type(holder).__name__:
            return jax.tree.map(one, moments, holder.mu)
        return jax.tree.map(one, moments)
