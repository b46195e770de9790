"""`from_keras` for the classes of `keras.regularizers` and `keras.constraints`."""

from collections.abc import Callable
from typing import Any

from jax_lrreg._check import require
from jax_lrreg.penalties import L1, L2, ElasticNet, MaxNorm, NonNegative, Penalty, UnitNorm


def _min_max_norm(config: dict[str, Any]) -> Penalty:
    low, high, rate = (float(config[key]) for key in ("min_value", "max_value", "rate"))
    require(rate == 1, "from_keras", "rate", rate, "1: a constraint here holds after every step")
    if low == high == 1:
        return UnitNorm(axis=_axis(config["axis"]))
    require(
        low == 0,
        "from_keras",
        "min_value",
        low,
        "0, or 1 like `max_value`: there is no norm from below here",
    )
    return MaxNorm(high, axis=_axis(config["axis"]))


def _axis(axis: Any) -> int | tuple[int, ...]:
    return tuple(axis) if isinstance(axis, list | tuple) else axis


CONVERTERS: dict[str, Callable[[dict[str, Any]], Penalty]] = {
    "L1": lambda config: L1(config["l1"]),
    "L2": lambda config: L2(2 * config["l2"]),
    "L1L2": lambda config: ElasticNet(config["l1"], l2=2 * config["l2"]),
    "NonNeg": lambda _: NonNegative(),
    "MaxNorm": lambda config: MaxNorm(float(config["max_value"]), axis=_axis(config["axis"])),
    "UnitNorm": lambda config: UnitNorm(axis=_axis(config["axis"])),
    "MinMaxNorm": _min_max_norm,
}
