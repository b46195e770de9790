"""The strengths of scikit-learn's estimators and PyTorch's weight decay as penalties, and back.

Our data term is the mean over examples. For a linear model it is half the mean squared error,
1/(2m) sum e^2; where yours is the mean squared error, double the strengths. No other library is
imported here.
"""

from collections.abc import Callable
from typing import Any

import chex

from jax_lrreg._check import require, require_choice, require_number
from jax_lrreg.interop.peer import Peer
from jax_lrreg.interop.searches import SEARCHES, Search, search
from jax_lrreg.penalties import (
    L1,
    L2,
    ElasticNet,
    GroupLasso,
    NonNegativeElasticNet,
    NonNegativeL1,
    Penalty,
    Scaled,
)


def from_sklearn(estimator: Peer, *, num_examples: int | None = None) -> Penalty | Search:
    """The penalty on `coef_` of a scikit-learn estimator, beside a mean over examples.

        Lasso(alpha)                    L1(alpha), with positive=True NonNegativeL1
        ElasticNet(alpha, l1_ratio=r)   ElasticNet(alpha r, l2=alpha (1 - r)), with positive=True
                                        NonNegativeElasticNet
        MultiTaskLasso(alpha)           GroupLasso(alpha, axis=-1) on an (in, out) kernel
        Ridge(alpha)                    L2(alpha / num_examples)
        LogisticRegression(C)           L2(1 / (C num_examples)), with l1_ratio=1 L1,
                                        in between ElasticNet

    Intercepts are not penalised: choose kernels with `.on("**/kernel")`.

    LassoCV, ElasticNetCV, MultiTaskLassoCV and LogisticRegressionCV become what
    `sweeps.cross_validate` needs for the same search: `penalties`, one for each ratio, and
    `options`, with its `strengths` and `folds`. The C of a logistic regression stands before a sum
    over examples, so that its own folds, which have fewer, are penalised k/(k - 1) times as much.

    Args:
        estimator: one of these; nothing needs to be fitted.
        num_examples: m, the size of the data set, which Ridge and logistic regressions need.

    Raises:
        TypeError: it is no estimator of `sklearn.linear_model`.
        ValueError: it has no equal here, or one of its settings has none, such as folds that are
            shuffled; or `num_examples` is missing.

    Example:
        >>> from sklearn.linear_model import ElasticNetCV
        >>> found = from_sklearn(ElasticNetCV(l1_ratio=[0.5, 1.0], cv=8))
        >>> found.penalties, found.options
        ((ElasticNet(0.5, l2=0.5), ElasticNet(1.0, l2=0.0)), {'strengths': 100, 'folds': 8})
    """
    name = type(estimator).__name__
    if "sklearn.linear_model" not in type(estimator).__module__:
        allowed = "an object from sklearn.linear_model"
        raise TypeError(f"from_sklearn: `estimator` must be {allowed}, got {estimator!r:.300}")
    if name not in _FROM_SKLEARN and name not in SEARCHES:
        known = ", ".join([*_FROM_SKLEARN, *SEARCHES])
        raise ValueError(f"from_sklearn: {name} has no equal here; known are {known}")
    given = estimator.get_params()
    sized = name in ("Ridge", "LogisticRegression", "LogisticRegressionCV")
    count = _examples("from_sklearn", num_examples) if sized else 1
    if name in SEARCHES:
        return search(name, given, count)
    if given.get("positive") and name not in ("Lasso", "ElasticNet"):
        why = "with positive=True has no equal here; Lasso's is NonNegativeL1"
        raise ValueError(f"from_sklearn: {name} {why}")
    return _FROM_SKLEARN[name](given, count)


def to_sklearn(penalty: Penalty, *, estimator: str, num_examples: int) -> dict[str, float]:
    """The arguments of a scikit-learn estimator with the same penalty: `from_sklearn` backwards.

    Args:
        penalty: `L1`, `L2`, `ElasticNet`, `NonNegativeL1`, `NonNegativeElasticNet` or `GroupLasso`
            with plain numbers, or a multiple of one, such as `L1(lam) / m`.
        estimator: "Lasso", "ElasticNet", "MultiTaskLasso", "Ridge" or "LogisticRegression".
        num_examples: m, the size of the data set.

    Raises:
        ValueError: the estimator is unknown or has no such penalty, or a strength is not one
            number.
        TypeError: it is no penalty.

    Example:
        >>> to_sklearn(L1(30.0) / 200, estimator="Lasso", num_examples=200)
        {'alpha': 0.15}
        >>> to_sklearn(L2(30.0) / 200, estimator="Ridge", num_examples=200)
        {'alpha': 30.0}
    """
    require_choice("to_sklearn", "estimator", estimator, _TO_SKLEARN)
    plain, factor = _plain("to_sklearn", penalty)
    result = _TO_SKLEARN[estimator](plain, factor, _examples("to_sklearn", num_examples))
    if result is None:
        raise ValueError(f"to_sklearn: {estimator} has no penalty like {penalty!r}")
    return result


def from_weight_decay(weight_decay: chex.Numeric) -> L2:
    """The `weight_decay` of PyTorch's SGD, Adam or RMSprop, which add it times w to the gradient.

    Not that of AdamW and its kin, which is no term of the loss: see `transforms.add_penalty` behind
    the preconditioner.
    """
    allowed = "a number >= 0"
    require_number("from_weight_decay", "weight_decay", weight_decay, allowed, lambda x: x >= 0)
    return L2(weight_decay)


def to_weight_decay(penalty: Penalty) -> float:
    """The `weight_decay` of PyTorch's SGD, Adam or RMSprop that is the same as an L2 penalty.

    Example:
        >>> to_weight_decay(L2(30.0) / 200)
        0.15
    """
    plain, factor = _plain("to_weight_decay", penalty)
    if not isinstance(plain, L2):
        allowed = "an L2 or a multiple of one"
        raise ValueError(f"to_weight_decay: `penalty` must be {allowed}, got {penalty!r}")
    return factor * _number("to_weight_decay", plain, "strength")


def _logistic(given: dict[str, Any], num_examples: int) -> Penalty:
    # scikit-learn before 1.8 names the penalty; later ones tell it from the ratio alone, and have
    # none for C = inf.
    ratios = {"l1": 1.0, "l2": 0.0, None: 0.0}
    named = given.get("penalty", "deprecated")
    ratio = ratios.get(named, given.get("l1_ratio") or 0.0)
    strength = 0.0 if named is None else 1 / (given["C"] * num_examples)
    if ratio in (0, 1):
        return L1(strength) if ratio else L2(strength)
    return ElasticNet(strength * ratio, l2=strength * (1 - ratio))


_FROM_SKLEARN: dict[str, Callable[[dict[str, Any], int], Penalty]] = {
    "Lasso": lambda given, _: (NonNegativeL1 if given["positive"] else L1)(given["alpha"]),
    "ElasticNet": lambda given, _: (
        NonNegativeElasticNet if given["positive"] else ElasticNet
    ).from_alpha_ratio(given["alpha"], l1_ratio=given["l1_ratio"]),
    "MultiTaskLasso": lambda given, _: GroupLasso(given["alpha"], axis=-1),
    "Ridge": lambda given, num_examples: L2(given["alpha"] / num_examples),
    "LogisticRegression": _logistic,
}


def _lasso(penalty: Penalty, factor: float, _: int) -> dict[str, float] | None:
    if not isinstance(penalty, L1 | NonNegativeL1):
        return None
    sign = {"positive": True} if isinstance(penalty, NonNegativeL1) else {}
    return {"alpha": factor * _number("to_sklearn", penalty, "strength"), **sign}


def _tasks(penalty: Penalty, factor: float, _: int) -> dict[str, float] | None:
    if not isinstance(penalty, GroupLasso) or penalty.groups is not None:
        return None
    rows = penalty.axis in (-1, 1, (-1,), (1,)) and penalty.stacked == 0
    return {"alpha": factor * _number("to_sklearn", penalty, "strength")} if rows else None


def _ridge(penalty: Penalty, factor: float, num_examples: int) -> dict[str, float] | None:
    if not isinstance(penalty, L2):
        return None
    return {"alpha": factor * num_examples * _number("to_sklearn", penalty, "strength")}


def _net(penalty: Penalty, factor: float, _: int) -> dict[str, float] | None:
    fields = {L1: ("strength", ""), L2: ("", "strength"), ElasticNet: ("l1", "l2")}
    if isinstance(penalty, NonNegativeElasticNet):
        net = ElasticNet(penalty.l1, l2=penalty.l2)
        return {**(_net(net, factor, 1) or {}), "positive": True}
    if type(penalty) not in fields:
        return None
    l1, l2 = (_number("to_sklearn", penalty, f) if f else 0.0 for f in fields[type(penalty)])
    alpha = l1 + l2
    return {"alpha": factor * alpha, "l1_ratio": l1 / alpha if alpha else 0.0}


def _regression(penalty: Penalty, factor: float, num_examples: int) -> dict[str, float] | None:
    net = _net(penalty, factor, num_examples)
    if net is None or "positive" in net:
        return None
    inverse = net["alpha"] * num_examples
    return {"C": 1 / inverse if inverse else float("inf"), "l1_ratio": net["l1_ratio"]}


_TO_SKLEARN: dict[str, Callable[[Penalty, float, int], dict[str, float] | None]] = {
    "Lasso": _lasso,
    "ElasticNet": _net,
    "MultiTaskLasso": _tasks,
    "Ridge": _ridge,
    "LogisticRegression": _regression,
}


def _plain(owner: str, penalty: Penalty) -> tuple[Penalty, float]:
    """A penalty without the multiples around it, and their product."""
    factor = 1.0
    while isinstance(penalty, Scaled):
        factor, penalty = factor * _number(owner, penalty, "factor"), penalty.penalty
    if not isinstance(penalty, Penalty):
        raise TypeError(f"{owner}: `penalty` must be a Penalty, got {penalty!r:.300}")
    return penalty, factor


def _number(owner: str, penalty: Penalty, name: str) -> float:
    try:
        return float(getattr(penalty, name))
    except TypeError:
        raise ValueError(f"{owner}: `{name}` of {penalty!r} must be one number") from None


def _examples(owner: str, num_examples: Any) -> int:
    allowed = "the positive number of examples in the data set"
    require(num_examples is not None, owner, "num_examples", num_examples, allowed)
    require_number(owner, "num_examples", num_examples, allowed, lambda x: x > 0)
    return num_examples
