"""`from_keras`: schedules, regularizers and constraints."""

from typing import Any

from jax_lrreg.interop import keras_penalties, keras_schedules
from jax_lrreg.interop.peer import of_group, refused
from jax_lrreg.penalties import Penalty
from jax_lrreg.schedules import Schedule


def from_keras(obj: Any) -> Schedule | Penalty:
    """The equal of an object of `keras.optimizers.schedules`, `keras.regularizers` or `keras.constraints`.

    The step of a schedule is the optimizer's `iterations`. Keras's L2 has no 1/2, so that `L2(c)` becomes
    `L2(2 c)`. Its `MaxNorm` and `UnitNorm` divide by the norm plus 1e-7; ours do not. A constraint of Keras
    acts after each update, as `transforms.proximal` does.

    Args:
        obj: the live object.

    Raises:
        ValueError: it is none of Keras's own, or has no equal here: `OrthogonalRegularizer` (it penalises the mean
            |cosine| between rows, unlike `Orthogonal`), and a `MinMaxNorm` with a lower bound or a rate.

    Example:
        >>> from_keras(keras.optimizers.schedules.ExponentialDecay(0.1, 100, 0.5))  # doctest: +SKIP
        Exponential(0.1, steps=100, decay_rate=0.5)
        >>> from_keras(keras.regularizers.L2(0.01))  # doctest: +SKIP
        L2(0.02)
    """
    name, module = type(obj).__qualname__, type(obj).__module__
    if "optimizers.schedules" in module and name in keras_schedules.CONVERTERS:
        return of_group(obj, None, 1, lambda _: keras_schedules.CONVERTERS[name](obj))
    penalty = module.split(".")[0] in ("keras", "tf_keras") and {
        "regularizers",
        "constraints",
    } & set(module.split("."))
    if penalty and name in keras_penalties.CONVERTERS:
        return keras_penalties.CONVERTERS[name](obj.get_config())
    known = ", ".join((*keras_schedules.CONVERTERS, *keras_penalties.CONVERTERS))
    why = (
        "; it penalises cosines between rows, which `Orthogonal` does not"
        if name == "OrthogonalRegularizer"
        else ""
    )
    raise refused(obj, f"from_keras knows {known} of Keras{why}")
