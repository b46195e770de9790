"""What scikit-learn's estimators that choose their own strength would try."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jax_lrreg._check import require, require_number, require_whole
from jax_lrreg.interop.peer import Peer
from jax_lrreg.penalties import (
    L1,
    L2,
    ElasticNet,
    GroupLasso,
    NonNegativeElasticNet,
    NonNegativeL1,
    Penalty,
)

Settings = dict[str, Any]  # what `get_params` of an estimator returns

EPS = 1e-3  # the weakest strength as a fraction of the strongest: scikit-learn's default, and ours
FOLDS = 5  # scikit-learn's default


class Search(NamedTuple):
    """What an estimator such as `LassoCV` would try.

    Attributes:
        penalties: one for each ratio of L1, at strength 1.
        options: `strengths` and `folds` for `sweeps.cross_validate`.
    """

    penalties: tuple[Penalty, ...]
    options: dict[str, Any]


def search(name: str, given: Settings, num_examples: int) -> Search:
    """The search of the estimator called `name` with these settings."""
    made, classifies = SEARCHES[name]
    strengths = _inverses(name, given, num_examples) if classifies else _alphas(name, given)
    return Search(
        made(name, given), {"strengths": strengths, "folds": _folds(name, given, classifies)}
    )


def _lasso(_: str, given: Settings) -> tuple[Penalty, ...]:
    return ((NonNegativeL1 if given["positive"] else L1)(1.0),)


def _net(name: str, given: Settings) -> tuple[Penalty, ...]:
    net = NonNegativeElasticNet if given["positive"] else ElasticNet
    return tuple(net.from_alpha_ratio(1.0, l1_ratio=r) for r in _ratios(name, given["l1_ratio"]))


def _logistic(name: str, given: Settings) -> tuple[Penalty, ...]:
    # What would be something else here, unseen: another loss, and a choice by another score.
    allowed = "'neg_log_loss', as cross_validate chooses by the loss itself"
    require(given["scoring"] == "neg_log_loss", name, "scoring", given["scoring"], allowed)
    require(given["class_weight"] is None, name, "class_weight", given["class_weight"], "None")
    allowed = "another: liblinear penalises the intercept too"
    free = given["solver"] != "liblinear" or not given["fit_intercept"]
    require(free, name, "solver", given["solver"], allowed)
    # scikit-learn before 1.8 names the penalty; later ones tell it from the ratios alone.
    named = {"l1": [1.0], "l2": [0.0]}.get(given.get("penalty", ""))
    ratios = given.get("l1_ratios")
    listed = [0.0] if ratios is None or isinstance(ratios, str) else ratios
    found = []
    for ratio in named or _ratios(name, listed, "l1_ratios"):
        pure = {0.0: L2(1.0), 1.0: L1(1.0)}
        found.append(pure.get(ratio) or ElasticNet.from_alpha_ratio(1.0, l1_ratio=ratio))
    return tuple(found)


SEARCHES: dict[str, tuple[Callable[[str, Settings], tuple[Penalty, ...]], bool]] = {
    "LassoCV": (_lasso, False),
    "ElasticNetCV": (_net, False),
    "MultiTaskLassoCV": (lambda *_: (GroupLasso(1.0, axis=-1),), False),
    "LogisticRegressionCV": (_logistic, True),
}


def _ratios(name: str, given: float | list[float], argument: str = "l1_ratio") -> list[float]:
    ratios = np.atleast_1d(given)
    allowed = "a number from 0 to 1, or a list of them"
    require_number(name, argument, ratios, allowed, lambda x: (x >= 0) & (x <= 1))
    require(ratios.ndim == 1 and ratios.size > 0, name, argument, given, allowed)
    return ratios.tolist()


def _alphas(name: str, given: Settings) -> int | list[float]:
    alphas = given["alphas"]
    if alphas is None or isinstance(alphas, str):  # scikit-learn before 1.9 has the count apart
        alphas = given.get("n_alphas", 100)
    if np.ndim(alphas):
        alphas = np.asarray(alphas, float)
        require_number(name, "alphas", alphas, "positive numbers, or how many", lambda x: x > 0)
        return alphas.tolist()
    allowed = f"{EPS}; for another range give `alphas` as an array"
    require(given["eps"] == EPS, name, "eps", given["eps"], allowed)
    return require_whole(name, "alphas", alphas)


def _inverses(name: str, given: Settings, num_examples: int) -> list[float]:
    cs = given["Cs"]
    cs = np.asarray(cs, float) if np.ndim(cs) else np.logspace(-4, 4, require_whole(name, "Cs", cs))
    require_number(name, "Cs", cs, "positive numbers, or how many", lambda x: x > 0)
    return (1 / (cs * num_examples)).tolist()


def _folds(name: str, given: Settings, classifies: bool) -> int | np.ndarray:
    cv: Peer = given["cv"]
    kind = type(cv).__name__
    if kind == "PredefinedSplit":
        numbers = np.asarray(cv.test_fold)
        allowed = "without -1: every example is left out once"
        require(np.all(numbers >= 0), name, "cv.test_fold", numbers, allowed)
        return numbers
    if kind == "KFold" and not cv.shuffle:
        return cv.n_splits
    allowed = "a KFold that does not shuffle, or a PredefinedSplit"
    # A plain number means folds by the labels to a classifier, and these are not known here.
    require(not classifies and (cv is None or not hasattr(cv, "split")), name, "cv", cv, allowed)
    return (
        FOLDS if cv is None else require_whole(name, "cv", cv, 2, None, f"a number >= 2, {allowed}")
    )
