"""Mixed precision: a module that computes in few bits, and the loss times a scale."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jax_lrreg._arrays import widened
from jax_lrreg._check import require
from jax_lrreg.training.modules import (
    Adapter,
    Bound,
    Example,
    Model,
    ModelState,
    Module,
    adapter_of,
)


class MixedPrecision(NamedTuple):
    """A module with the dtypes it is trained in; made by `mixed_precision`."""

    adapter: Adapter
    compute_dtype: DTypeLike
    param_dtype: DTypeLike | None

    def init(
        self, key: chex.PRNGKey, example: Example | None, params: optax.Params | None
    ) -> tuple[optax.Params, ModelState]:
        """The module's parameters, in `param_dtype` where asked for, and its state as it is."""
        params, model_state = self.adapter.init(key, example, params)
        return (params if self.param_dtype is None else cast(params, self.param_dtype)), model_state

    def bind(self, params: optax.Params, model_state: ModelState, key: chex.PRNGKey) -> Bound:
        """The model as it is trained; its state, such as running means, keeps its own dtype."""
        # Cast inside what is differentiated: the gradient of a cast is a cast, and comes out in the
        # dtype of the parameters that the state holds.
        bound = self.adapter.bind(cast(params, self.compute_dtype), model_state, key)
        return Bound(_Model(bound.model, self.compute_dtype), bound.model_state)

    def evaluate(self, params: optax.Params, model_state: ModelState) -> Model:
        """The model as it is evaluated, in the same dtypes."""
        model = self.adapter.evaluate(cast(params, self.compute_dtype), model_state)
        return _Model(model, self.compute_dtype)

    def merge(self, params: optax.Params, model_state: ModelState) -> Any:
        """The trained model, in the dtypes of the state."""
        return self.adapter.merge(params, model_state)

    def split(self, merged: object) -> tuple[optax.Params, ModelState]:
        """The parameters and the model state that were merged."""
        return self.adapter.split(merged)

    def apply(self, merged: object, *args: object, **kwargs: object) -> Any:
        """What the trained model predicts, in evaluation form: `apply(merge(module, state), x)`."""
        return self.evaluate(*self.split(merged))(*args, **kwargs)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refused: the parameters are in the state."""
        del args, kwargs
        raise TypeError(
            "mixed_precision(...) holds no parameters: predict by "
            "module.apply(training.merge(module, state), x), and in a `loss_fn` by the model that "
            "it is given"
        )


def mixed_precision(
    module: Module, compute_dtype: DTypeLike, *, param_dtype: DTypeLike | None = None
) -> MixedPrecision:
    """A module with parameters and inputs cast to `compute_dtype`, and its outputs to float32.

    It goes wherever a module goes: `init`, `make_step`, `make_eval`, `merge`. The state keeps the
    parameters as they are, in float32 unless told otherwise, so that they are their own master
    copy: gradients, penalties, moments, averages and the loss are float32, and running means keep
    their dtype. Integers and Python numbers are left alone. A layer with a `dtype=` of its own,
    such as `nn.Dense(10, dtype=jnp.float32)`, casts once more and computes in that one, as softmax
    and normalization layers often should. `nnx.BatchNorm` returns the dtype of its running means
    unless it has a `dtype=`, and what follows it computes in that too.

    float16 has a small range: give `make_step` a `loss_scale=`. bfloat16 has the range of float32.

    Args:
        module: a Linen module, an NNX module or a function.
        compute_dtype: a floating dtype such as `jnp.bfloat16`.
        param_dtype: that of the parameters which `init` makes. With fewer bits than float32, small
            updates are lost in rounding unless the optimizer keeps a copy:
            `transforms.master_weights(tx)`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> module = mixed_precision(lambda params, x: x @ params, jnp.bfloat16)
        >>> start = {"key": jax.random.key(0), "params": jnp.zeros(2)}
        >>> state = training.init(module, optax.sgd(0.1), **start)
        >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1) ** 2)
        >>> step = training.make_step(module, loss_fn, optax.sgd(0.1))
        >>> state, metrics = step(state, jnp.eye(2))
        >>> print(state.params, state.params.dtype, metrics["loss"].dtype)
        [0.1 0.1] float32 float32
    """
    allowed = "a floating dtype such as jnp.bfloat16"
    for name, dtype in {"compute_dtype": compute_dtype, "param_dtype": param_dtype}.items():
        fits = _is_floating(dtype) or (name == "param_dtype" and dtype is None)
        require(fits, "mixed_precision", name, dtype, allowed, error=TypeError)
    return MixedPrecision(adapter_of(module), compute_dtype, param_dtype)


def cast(tree: optax.Params, dtype: DTypeLike) -> Any:
    """The tree with its real arrays in `dtype`; all else as it is."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if _is_real(x) else x, tree)


def scaled_gradient(objective: Callable, loss_scale: Any) -> Callable:
    """`jax.value_and_grad(objective, has_aux=True)`, by way of the loss times a scale.

        gradient = gradient of (scale * loss) / scale

    divided in float32, so that what would be 0 in float16 is not. Without a scale it is the
    gradient as it is.
    """
    if loss_scale is None:
        return jax.value_and_grad(objective, has_aux=True)

    # The loss itself goes out beside the scaled one: divided again it would be rounded twice, and
    # an overflow of the scaled one would hide it.
    def scaled(params: optax.Params, *rest: Any) -> tuple[jax.Array, Any]:
        loss, extra = objective(params, *rest)
        return loss * loss_scale.scale, (loss, extra)

    def gradient(params: optax.Params, *rest: Any) -> Any:
        (_, value), grads = jax.value_and_grad(scaled, has_aux=True)(params, *rest)
        return value, jax.tree.map(lambda g: widened(g) / loss_scale.scale, grads)

    return gradient


def rescaled(loss_scale: Any, finite: jax.Array) -> Any:
    """The scale after an update: its own rule, asked with one number that is finite or not.

    Its rule is inside its `value_and_grad`, which would read every gradient once more to see what
    is known here.
    """
    # 0 or NaN times a number, whose gradient Flax's rule finds finite or not.
    witness = jnp.where(finite, 0.0, jnp.nan)
    return loss_scale.value_and_grad(lambda x: x * witness)(jnp.ones(())).dynamic_scale


def scaling_rules(loss_scale: object) -> dict[str, float | None] | None:
    """How Flax's loss scale changes, as JSON; None of one of another class, which has no text."""
    if type(loss_scale).__name__ != "DynamicScale":
        return None
    names = ("growth_factor", "backoff_factor", "growth_interval", "minimum_scale")
    values = [getattr(loss_scale, name) for name in names]
    return {n: v if v is None else float(v) for n, v in zip(names, values, strict=True)}


def scale_of_rules(rules: dict[str, float | None]) -> Any:
    """A loss scale that changes so."""
    from flax.training.dynamic_scale import DynamicScale

    return DynamicScale(**rules)  # type: ignore[arg-type]


def check_loss_scale(loss_scale: object, on_nonfinite: str) -> None:
    """Refuses what is no scale of Flax's kind, and a step that does not skip."""
    fits = hasattr(loss_scale, "scale") and callable(getattr(loss_scale, "value_and_grad", None))
    allowed = "a flax.training.dynamic_scale.DynamicScale or None"
    require(fits, "make_step", "loss_scale", loss_scale, allowed, TypeError)
    # An overflow is how the scale learns that it is too high: it must cost an update, not a run.
    allowed = "'skip' where `loss_scale` is given: the scale is found by skipping updates"
    require(on_nonfinite == "skip", "make_step", "on_nonfinite", on_nonfinite, allowed)


class _Model:
    """A callable that casts what goes in and what comes out, and so do its methods."""

    def __init__(self, model: Model, dtype: DTypeLike):
        self._model = model
        self._dtype = dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Inputs too: a float32 one would promote the first layer, and all that follows, to float32.
        args, kwargs = cast((args, kwargs), self._dtype)
        output = self._model(*args, **kwargs)
        return jax.tree.map(lambda x: x.astype(jnp.float32) if _is_narrow(x) else x, output)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._model, name)
        # Methods as well, such as `encode` of an NNX module: called without the cast, they would
        # compute in the dtype of what they are given.
        return _Model(attribute, self._dtype) if callable(attribute) else attribute


def _is_floating(dtype: DTypeLike | None) -> bool:
    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _is_real(x: object) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", jnp.int32), jnp.floating)


def _is_narrow(x: Any) -> bool:
    return _is_real(x) and jnp.finfo(x.dtype).bits < 32
