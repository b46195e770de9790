"""Every penalty once, with its value written again in NumPy: what the laws are tested on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_lrreg.penalties import (
    EWC,
    L0,
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    Huber,
    L1Ball,
    LInf,
    LogSum,
    Lq,
    MaxNorm,
    NonNegative,
    NonNegativeElasticNet,
    NonNegativeL1,
    NuclearNorm,
    Orthogonal,
    Penalty,
    Simplex,
    SizedGroupLasso,
    SparseGroupLasso,
    SpectralNorm,
    TotalVariation,
    UnitNorm,
)

SHAPE = (2, 3)
REFERENCE = np.array([[0.5, -0.25, 0.0], [1.0, 0.0, -2.0]])
IMPORTANCE = np.array([[0.0, 1.0, 2.0], [0.5, 3.0, 0.25]])
WEIGHTS = np.array([[0.0, 0.3, 0.6], [0.9, 0.1, 0.4]])


class Case(NamedTuple):
    """A penalty and what is true of it."""

    penalty: Penalty
    value: Callable[[np.ndarray], Any]  # of a float64 or complex128 array of the shape SHAPE
    separable: bool = False
    convex: bool = True
    prox: str = "any"  # the step sizes it has a prox for: "any", "scalar" or "none"
    certificate: bool = True
    threshold: bool = False
    zero_at_zero: bool = True
    complex: bool = True
    constraint: bool = False

    def __repr__(self):
        return repr(self.penalty)


def norms(w, axis):
    return np.sqrt(np.sum(np.abs(w) ** 2, axis=axis))


def huber(w, delta):
    return np.where(np.abs(w) <= delta, np.abs(w) ** 2 / 2, delta * (np.abs(w) - delta / 2))


def mcp(w, s, gamma):
    size = np.abs(w)
    return np.where(size <= gamma * s, s * size - size**2 / (2 * gamma), gamma * s**2 / 2)


def scad(w, s, a):
    size = np.abs(w)
    middle = (2 * a * s * size - size**2 - s**2) / (2 * (a - 1))
    return np.where(size <= s, s * size, np.where(size <= a * s, middle, s**2 * (a + 1) / 2))


def orthogonal(w):
    gram = w @ w.conj().T  # SHAPE has fewer rows
    return np.sum(np.abs(gram - np.eye(len(gram))) ** 2)


def singular(w):
    return np.linalg.svd(w, compute_uv=False)


def inside(ok):
    return 0.0 if np.all(ok) else np.inf


NEAR = (
    1 + 1e-5
)  # constraints hold up to rounding; the objective is compared much more coarsely than that


PENALTIES = [
    Case(L1(0.5), lambda w: 0.5 * np.abs(w).sum(), separable=True, threshold=True),
    Case(L1(WEIGHTS), lambda w: (WEIGHTS * np.abs(w)).sum(), separable=True),
    Case(L2(0.5), lambda w: 0.25 * (np.abs(w) ** 2).sum(), separable=True),
    Case(
        ElasticNet(0.5, l2=0.3),
        lambda w: 0.5 * np.abs(w).sum() + 0.15 * (np.abs(w) ** 2).sum(),
        separable=True,
        threshold=True,
    ),
    Case(Huber(0.5, delta=0.7), lambda w: 0.5 * huber(w, 0.7).sum(), separable=True),
    Case(
        NonNegativeL1(0.5),
        lambda w: 0.5 * w.sum() + inside(w >= 0),
        separable=True,
        complex=False,
        threshold=True,
    ),
    Case(
        NonNegativeElasticNet(0.5, l2=0.3),
        lambda w: 0.5 * w.sum() + 0.15 * (w**2).sum() + inside(w >= 0),
        separable=True,
        complex=False,
        threshold=True,
    ),
    Case(L0(0.3), lambda w: 0.3 * np.count_nonzero(w), separable=True, convex=False),
    Case(Lq(0.5, q=0.5), lambda w: 0.5 * (np.abs(w) ** 0.5).sum(), separable=True, convex=False),
    Case(
        Lq(0.5, q=2 / 3), lambda w: 0.5 * (np.abs(w) ** (2 / 3)).sum(), separable=True, convex=False
    ),
    Case(MCP(0.8, gamma=2.5), lambda w: mcp(w, 0.8, 2.5).sum(), separable=True, convex=False),
    Case(MCP(0.8, gamma=0.4), lambda w: mcp(w, 0.8, 0.4).sum(), separable=True, convex=False),
    Case(SCAD(0.5), lambda w: scad(w, 0.5, 3.7).sum(), separable=True, convex=False),
    Case(SCAD(0.5, a=2.1), lambda w: scad(w, 0.5, 2.1).sum(), separable=True, convex=False),
    Case(
        LogSum(0.5, eps=0.2),
        lambda w: 0.5 * np.log1p(np.abs(w) / 0.2).sum(),
        separable=True,
        convex=False,
    ),
    Case(
        L2SP(0.5, reference=REFERENCE),
        lambda w: 0.25 * (np.abs(w - REFERENCE) ** 2).sum(),
        separable=True,
        zero_at_zero=False,
    ),
    Case(
        L1SP(0.5, reference=REFERENCE),
        lambda w: 0.5 * np.abs(w - REFERENCE).sum(),
        separable=True,
        zero_at_zero=False,
    ),
    Case(
        EWC(0.5, importance=IMPORTANCE, reference=REFERENCE),
        lambda w: 0.25 * (IMPORTANCE * np.abs(w - REFERENCE) ** 2).sum(),
        separable=True,
        zero_at_zero=False,
    ),
    Case(GroupLasso(0.5, axis=-2), lambda w: 0.5 * norms(w, 0).sum(), threshold=True),
    Case(GroupLasso(0.5, axis=None), lambda w: 0.5 * norms(w, (0, 1)), threshold=True),
    Case(GroupLasso(0.5, axis=0, stacked=1), lambda w: 0.5 * norms(w, 1).sum(), threshold=True),
    Case(SizedGroupLasso(0.4, axis=-1), lambda w: 0.4 * 3**0.5 * norms(w, 1).sum(), threshold=True),
    Case(
        SparseGroupLasso(0.2, group=0.4, axis=(0, 1)),
        lambda w: 0.2 * np.abs(w).sum() + 0.4 * norms(w, (0, 1)),
        threshold=True,
    ),
    Case(
        SparseGroupLasso(0.2, group=0.4, axis=-2),
        lambda w: 0.2 * np.abs(w).sum() + 0.4 * norms(w, 0).sum(),
        threshold=True,
    ),
    Case(
        GroupLasso(np.array([0.2, 0.6]), axis=-1, groups=[0, 1, 0]),
        lambda w: 0.2 * norms(w[:, ::2], 1).sum() + 0.6 * np.abs(w[:, 1]).sum(),
    ),
    Case(
        SizedGroupLasso(0.4, axis=(1, 0), groups=[0, 1, 0]),
        lambda w: 0.4 * (2 * norms(w[:, ::2], None) + 2**0.5 * norms(w[:, 1], None)),
        threshold=True,
    ),
    Case(
        SparseGroupLasso(0.2, group=0.4, axis=1, groups=[0, 1, 0]),
        lambda w: 0.2 * np.abs(w).sum() + 0.4 * (norms(w[:, ::2], 1) + np.abs(w[:, 1])).sum(),
        threshold=True,
    ),
    Case(LInf(0.7, axis=-1), lambda w: 0.7 * np.abs(w).max(1).sum(), threshold=True),
    Case(LInf(0.7, axis=None), lambda w: 0.7 * np.abs(w).max(), threshold=True),
    Case(
        Orthogonal(0.5),
        lambda w: 0.5 * orthogonal(w),
        convex=False,
        prox="none",
        zero_at_zero=False,
        certificate=True,
    ),
    Case(NuclearNorm(0.5), lambda w: 0.5 * singular(w).sum(), prox="scalar", threshold=True),
    Case(
        SpectralNorm(0.5, iterations=60),
        lambda w: 0.5 * singular(w).max(),
        prox="scalar",
        certificate=False,
    ),
    Case(
        TotalVariation(0.5, axis=-1),
        lambda w: 0.5 * np.abs(np.diff(w, axis=1)).sum(),
        prox="none",
        certificate=False,
    ),
    Case(
        TotalVariation(0.5, axis=None),
        lambda w: 0.5 * (np.abs(np.diff(w, axis=1)).sum() + np.abs(np.diff(w, axis=0)).sum()),
        prox="none",
        certificate=False,
    ),
    Case(NonNegative(), lambda w: inside(w >= 0), separable=True, complex=False, constraint=True),
    Case(
        Box(min=-0.5, max=0.25),
        lambda w: inside((w >= -0.5 * NEAR) & (w <= 0.25 * NEAR)),
        separable=True,
        complex=False,
        constraint=True,
    ),
    Case(
        Box(-0.5),
        lambda w: inside(w >= -0.5 * NEAR),
        separable=True,
        complex=False,
        constraint=True,
    ),
    Case(
        Box(max=0.25),
        lambda w: inside(w <= 0.25 * NEAR),
        separable=True,
        complex=False,
        constraint=True,
    ),
    Case(MaxNorm(0.6, axis=-2), lambda w: inside(norms(w, 0) <= 0.6 * NEAR), constraint=True),
    Case(
        UnitNorm(axis=-1),
        lambda w: inside(abs(norms(w, 1) - 1) < 1e-5),
        convex=False,
        prox="scalar",
        zero_at_zero=False,
        constraint=True,
    ),
    Case(
        Simplex(2.0, axis=-1),
        lambda w: inside(w >= 0) + inside(abs(w.sum(1) - 2) < 1e-5),
        zero_at_zero=False,
        complex=False,
        constraint=True,
    ),
    Case(L1Ball(0.8, axis=-2), lambda w: inside(np.abs(w).sum(0) <= 0.8 * NEAR), constraint=True),
    Case(L1Ball(0.8), lambda w: inside(np.abs(w).sum() <= 0.8 * NEAR), constraint=True),
]

# One case of each class, where another axis or strength would test nothing new.
ONE_OF_EACH = list({type(case.penalty): case for case in reversed(PENALTIES)}.values())


def jit(function):
    """`jax.jit` that compiles fast: each program of the laws runs a few times on six numbers."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
