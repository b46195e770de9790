"""The JAX contenders of `peers.py`: this library, scan and step by hand, Flax's loop, and NNX."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _peer_child import Pair, Problem, serve
from _workloads import Workload, flat, order, unflat, workloads
from flax import nnx
from flax.training import train_state
from floor import ours, raw

from jax_lrreg import training


class Net(nnx.Module):
    """The models of `_workloads.py` in NNX, with the attributes named like Linen's parameters."""

    def __init__(self, problem: Problem):
        shapes, rngs = {path: value.shape for path, value in problem.start.items()}, nnx.Rngs(0)
        self.kind, self.names = (
            problem.recipe["model"],
            sorted({path.split("/")[0] for path in shapes}),
        )
        for name in self.names:
            kernel = shapes.get(f"{name}/kernel", ())
            if name.startswith("Dense"):
                layer = nnx.Linear(*kernel, rngs=rngs)
            elif name.startswith("Conv"):
                layer = nnx.Conv(kernel[2], kernel[3], kernel[:2], rngs=rngs)
            elif name.startswith("Embed"):
                layer = nnx.Embed(*shapes[f"{name}/embedding"], rngs=rngs)
            elif name.startswith("LayerNorm"):
                layer = nnx.LayerNorm(shapes[f"{name}/scale"][0], rngs=rngs)
            elif name.startswith("Multi"):
                heads, width = problem.recipe["heads"], shapes["position"][1]
                layer = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
            else:
                layer = nnx.Param(jnp.zeros(shapes[name]))
            setattr(self, name, layer)
        state = nnx.state(self, nnx.Param)
        nnx.replace_by_pure_dict(state, unflat(problem.start, nnx.to_pure_dict(state)))
        nnx.update(self, state)

    def __call__(self, x: jax.Array) -> jax.Array:
        dense = [name for name in self.names if name.startswith("Dense")]
        layers = [getattr(self, f"Dense_{index}") for index in range(len(dense))]
        if self.kind == "mlp":
            for layer in layers[:-1]:
                x = nnx.relu(layer(x))
        elif self.kind == "cnn":
            x = nnx.avg_pool(nnx.relu(self.Conv_1(nnx.relu(self.Conv_0(x)))), (2, 2), (2, 2))
            x = x.reshape(len(x), -1)
        else:
            mask = nnx.make_causal_mask(x)
            x = self.Embed_0(x) + self.position[...]
            for index in range(len(layers) // 2):
                normed = getattr(self, f"LayerNorm_{2 * index}")(x)
                x = x + getattr(self, f"MultiHeadDotProductAttention_{index}")(normed, mask=mask)
                normed = getattr(self, f"LayerNorm_{2 * index + 1}")(x)
                x = x + layers[2 * index](
                    nnx.gelu(layers[2 * index + 1](normed))
                )  # Linen counts from outside
            x = getattr(self, f"LayerNorm_{len(layers) - 1}")(x)
        return layers[-1](x)


def host_batches(work: Workload) -> Callable[[], Any]:
    """Batches gathered on the host, as in Flax's examples."""
    rows = order(work.data(), work.steps)
    return lambda: ({name: values[row] for name, values in work.arrays.items()} for row in rows)


def flax_loop(work: Workload, problem: Problem) -> Pair:
    """A Python loop over a jitted step of a `TrainState`: not donated, metrics at the end."""
    del problem
    params, batches = work.start().params, host_batches(work)

    @jax.jit
    def train_step(state: train_state.TrainState, batch: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            return work.loss(lambda x: state.apply_fn({"params": params}, x), batch) + work.penalty(
                params
            )

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    def run(state: train_state.TrainState) -> Any:
        metrics = []
        for batch in batches():
            state, found = train_step(state, batch)
            metrics.append(found)
        jax.device_get(metrics)
        return flat(state.params)

    return Pair(
        lambda: train_state.TrainState.create(
            apply_fn=work.module.apply, params=params, tx=work.tx
        ),
        run,
    )


def nnx_jit(work: Workload, problem: Problem) -> Pair:
    """`nnx.jit` over a model and an `nnx.Optimizer`."""
    batches = host_batches(work)

    @nnx.jit
    def train_step(model: Net, optimizer: nnx.Optimizer, batch: Any) -> jax.Array:
        def loss_of(model: Net) -> jax.Array:
            return work.loss(model, batch) + work.penalty(
                nnx.to_pure_dict(nnx.state(model, nnx.Param))
            )

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    def reset() -> Any:
        model = Net(problem)
        return model, nnx.Optimizer(model, work.tx, wrt=nnx.Param)

    def run(state: Any) -> Any:
        losses = [train_step(*state, batch) for batch in batches()]
        jax.device_get(losses)
        return flat(nnx.to_pure_dict(nnx.state(state[0], nnx.Param)))

    return Pair(reset, run)


def nnx_by_hand(work: Workload, problem: Problem) -> Pair:
    """The NNX model split once, and a donated step over its plain values, returning the loss."""
    graph, values = nnx.split(Net(problem))
    start = nnx.to_pure_dict(values)

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry

        def loss_of(params: Any) -> jax.Array:
            return work.loss(nnx.merge(graph, params), batch) + work.penalty(params)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = work.tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), {"loss": loss}

    return donated(work, step, (start, work.tx.init(start)))


def nnx_with_metrics(work: Workload, problem: Problem) -> Pair:
    """The same, which returns all that ours does and leaves out an update that is not finite."""
    graph, values = nnx.split(Net(problem))
    start = nnx.to_pure_dict(values)

    def step(carry: Any, batch: Any) -> Any:
        params, state, count = carry

        def loss_of(params: Any) -> Any:
            data_loss, penalty = work.loss(nnx.merge(graph, params), batch), work.penalty(params)
            return data_loss + penalty, (data_loss, penalty)

        def move() -> Any:
            updates, new = work.tx.update(grads, state, params)
            return optax.apply_updates(params, updates), new

        (loss, (data_loss, penalty)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        metrics = {"loss": loss, "data_loss": data_loss, "penalty": penalty, "grad_norm": grad_norm}
        metrics |= {"learning_rate": work.lr(count), "skipped": 1 - finite}
        return (*jax.lax.cond(finite, move, lambda: (params, state)), count + 1), metrics

    return donated(work, step, (start, work.tx.init(start), jnp.zeros((), jnp.int32)))


def donated(work: Workload, step: Callable[[Any, Any], Any], start: Any) -> Pair:
    """A Python loop over a step whose state is donated."""
    batches, jitted = host_batches(work), jax.jit(step, donate_argnums=0)

    def run(carry: Any) -> Any:
        losses = []
        for batch in batches():
            carry, metrics = jitted(carry, batch)
            losses.append(metrics["loss"])
        jax.device_get(losses)
        return flat(carry[0])

    return Pair(lambda: jax.tree.map(jnp.copy, start), run)


def nnx_ours(work: Workload, problem: Problem) -> Pair:
    """`make_step` of the NNX model, one call a step on the same host batches."""
    batches, model = host_batches(work), Net(problem)
    start = training.init(model, work.tx, key=jax.random.key(0))
    step = training.make_step(
        model, work.loss, work.tx, penalty=work.penalty, learning_rate=work.lr
    )

    def run(state: Any) -> Any:
        losses = []
        for batch in batches():
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        jax.device_get(losses)
        return flat(state.params)

    return Pair(lambda: jax.tree.map(jnp.copy, start), run)


def whole(make: Callable[[Workload], Callable[[], Any]]) -> Callable[[Workload, Problem], Pair]:
    """A contender of `floor.py`."""

    def pair(work: Workload, problem: Problem) -> Pair:
        del problem
        run = make(work)
        return Pair(lambda: None, lambda _: flat(run()[0]))

    return pair


CONTENDERS = {
    "scan": whole(lambda work: raw(work, scan=True)),
    "single": whole(lambda work: raw(work, scan=False)),
    "fit": whole(ours),
    "flax": flax_loop,
    "nnx.jit": nnx_jit,
    "nnx by hand": nnx_by_hand,
    "nnx with metrics": nnx_with_metrics,
    "nnx ours": nnx_ours,
}


def make(problem: Problem, kind: str) -> Pair:
    tiny, device = problem.recipe["steps"] == 3, jax.default_backend()
    work = workloads(tiny, device)[problem.name]
    np.testing.assert_array_equal(
        work.arrays["x"][work.order()[0]], problem.x[: problem.batch_size]
    )
    return CONTENDERS[kind](work, problem)


if __name__ == "__main__":
    serve(lambda problem: make(problem, sys.argv[1]), sys.argv[2])
