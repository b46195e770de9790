"""Mixed precision: a module that computes in fewer bits than its parameters have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_lrreg._check import require
from jax_lrreg.training.modules import Adapter, Bound, adapt


class MixedPrecision(NamedTuple):
    """A module with the dtypes it is trained in; made by `mixed_precision`."""

    adapter: Adapter
    compute_dtype: Any
    param_dtype: Any

    def init(self, key: jax.Array, example: Any, params: Any) -> tuple[Any, Any]:
        """The module's parameters, in `param_dtype` where one is asked for, and its state as it is."""
        params, model_state = self.adapter.init(key, example, params)
        return (params if self.param_dtype is None else cast(params, self.param_dtype)), model_state

    def bind(self, params: Any, model_state: Any, key: jax.Array) -> Bound:
        """The model as it is trained; its state, such as running means, keeps its own dtype."""
        bound = self.adapter.bind(cast(params, self.compute_dtype), model_state, key)
        return Bound(_Model(bound.model, self.compute_dtype), bound.model_state)

    def evaluate(self, params: Any, model_state: Any) -> Callable[..., Any]:
        """The model as it is evaluated, in the same dtypes."""
        return _Model(
            self.adapter.evaluate(cast(params, self.compute_dtype), model_state), self.compute_dtype
        )

    def merge(self, params: Any, model_state: Any) -> Any:
        """The trained model, in the dtypes of the state."""
        return self.adapter.merge(params, model_state)


def mixed_precision(module: Any, compute_dtype: Any, *, param_dtype: Any = None) -> MixedPrecision:
    """A module whose parameters and inputs are cast to `compute_dtype` where it is called, its outputs to float32.

    It goes wherever a module goes: `init`, `make_step`, `make_eval`, `merge`. The state keeps the parameters as they
    are, in float32 unless told otherwise, so that they are their own master copy: gradients, penalties, moments,
    averages and the loss are float32, and running means keep their dtype. Integers and Python numbers are left
    alone. A layer with a `dtype=` of its own, such as `nn.Dense(10, dtype=jnp.float32)`, casts once more and computes
    in that one, as softmax and normalization layers often should. `nnx.BatchNorm` returns the dtype of its running
    means unless it has a `dtype=`, and what follows it computes in that too.

    float16 has a small range: give `make_step` a `loss_scale=`. bfloat16 has the range of float32.

    Args:
        module: a Linen module, an NNX module or a function.
        compute_dtype: a floating dtype such as `jnp.bfloat16`.
        param_dtype: that of the parameters which `init` makes. With fewer bits than float32, small updates are lost
            in rounding unless the optimizer keeps a copy: `transforms.master_weights(tx)`.

    Example:
        >>> import optax
        >>> from jax_lrreg import training
        >>> module = mixed_precision(lambda params, x: x @ params, jnp.bfloat16)
        >>> state = training.init(module, optax.sgd(0.1), key=jax.random.key(0), params=jnp.zeros(2))
        >>> step = training.make_step(module, lambda model, x: jnp.mean((model(x) - 1) ** 2), optax.sgd(0.1))
        >>> state, metrics = step(state, jnp.eye(2))
        >>> print(state.params, state.params.dtype, metrics["loss"].dtype)
        [0.1 0.1] float32 float32
    """
    for name, dtype in {"compute_dtype": compute_dtype, "param_dtype": param_dtype}.items():
        optional = name == "param_dtype" and dtype is None
        allowed = "a floating dtype such as jnp.bfloat16"
        require(
            optional or _is_floating(dtype),
            "mixed_precision",
            name,
            dtype,
            allowed,
            error=TypeError,
        )
    return MixedPrecision(adapt(module), compute_dtype, param_dtype)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its real arrays in `dtype`; integers, complex numbers, keys and Python numbers as they are."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if _is_real(x) else x, tree)


class _Model:
    """A callable that casts what goes in and what comes out, and so do its methods."""

    def __init__(self, model: Callable[..., Any], dtype: Any):
        self._model = model
        self._dtype = dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = cast((args, kwargs), self._dtype)
        output = self._model(*args, **kwargs)
        return jax.tree.map(lambda x: x.astype(jnp.float32) if _is_narrow(x) else x, output)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._model, name)
        return _Model(attribute, self._dtype) if callable(attribute) else attribute


def _is_floating(dtype: Any) -> bool:
    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", jnp.int32), jnp.floating)


def _is_narrow(x: Any) -> bool:
    return _is_real(x) and jnp.finfo(x.dtype).bits < 32
