"""Optax alone: schedules, penalties and controllers in a loop that is your own.

Nothing of `jax_lrreg.training` is needed. A schedule goes where Optax takes a rate, a penalty becomes
a transformation, a controller scales the updates by what it hears as `value=`, and `proximal` makes
exact zeros. The state is Optax's own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_lrreg import penalties, schedules, transforms

random = np.random.default_rng(0)
truth = np.where(np.arange(50) < 5, random.normal(size=50) + 2, 0).astype(np.float32)
x = random.normal(size=(200, 50)).astype(np.float32)
y = x @ truth + 0.5 * random.normal(size=200).astype(np.float32)

steps = 2000
lr = schedules.Cosine(0.05, steps=steps - 100).warmup(100)
lasso = penalties.L1(0.1)
plateau = schedules.ReduceOnPlateau(factor=0.5, patience=50)


def loss_fn(w):
    return jnp.mean((x @ w - y) ** 2) / 2


def trained(tx):
    """A training loop as Optax's own examples have it."""

    @jax.jit
    def step(w, state):
        loss, gradient = jax.value_and_grad(loss_fn)(w)
        updates, state = tx.update(gradient, state, w, value=loss)  # the controller hears the loss
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(50)
    state = tx.init(w)
    for _ in range(steps):
        w, state = step(w, state)
    return w


found = {
    "adam": trained(optax.with_extra_args_support(optax.adam(lr))),
    "adam, L1 in the gradient": trained(
        optax.chain(transforms.add_penalty(lasso), optax.with_extra_args_support(optax.adam(lr)))
    ),
    "the same with a plateau": trained(
        optax.chain(
            transforms.add_penalty(lasso),
            optax.adam(0.05),
            transforms.scale_by_controller(plateau),
        )
    ),
    "adam, prox of L1": trained(transforms.proximal(optax.adam(lr), lasso, lr)),
}
print(f"{'':26} {'objective':>9} {'exact zeros':>12} {'error of w':>11}")
for name, w in found.items():
    zeros, error = int(jnp.sum(w == 0)), float(jnp.linalg.norm(w - truth))
    print(f"{name:26} {loss_fn(w) + lasso(w):9.5f} {zeros:6} of 50 {error:11.3f}")

best = loss_fn(found["adam, prox of L1"]) + lasso(found["adam, prox of L1"])
assert all(loss_fn(w) + lasso(w) >= best - 1e-5 for w in found.values())
assert jnp.sum(found["adam, prox of L1"] == 0) >= 30
assert jnp.sum(found["adam, L1 in the gradient"] == 0) == 0
