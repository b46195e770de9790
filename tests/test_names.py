"""docs/names.md: our expression for the schedule of a library, beside that library's formula."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from jax_lrreg import schedules

PAGE = (Path(__file__).parent.parent / "docs" / "names.md").read_text()
P, E, W, T, n, k, b, u, d, r, c = 0.1, 0.02, 20, 100, 30, 40, 50, 15, 25, 0.5, 0.03
I = 0.01  # noqa: E741
D, STEPS = T - W, range(160)
LETTERS = {name: value for name, value in globals().items() if len(name) == 1}


def cos(x):
    return (1 + math.cos(math.pi * x)) / 2


def after_warmup(decay, init=I, index=0):
    """A linear warmup over W, then `decay` of the steps since."""

    def value(t):
        t += index
        return init + (P - init) * t / W if t < W else decay(t - W)

    return value


def to(end, shape, begin=0, length=D):
    """From P down to `end` by a shape of what is done since `begin`, a share of `length`."""
    return lambda s: end + (P - end) * shape(min(max(s - begin, 0) / length, 1))


def maxtext(decay):
    """Its warmup reaches the peak at its last step, and nothing is learnt after the end."""
    return lambda t: P * t / (W - 1) if t < W else decay(t - W) if t < T else 0


line = lambda x: 1 - x  # noqa: E731
wsd = {"begin": D - n, "length": n}
# By the library and a piece of the expression: the formula of its source, of the update t from 0.
FORMULAS = {
    ("MaxText", "steps=D, end"): lambda t: after_warmup(to(E, cos), 0)(t) if t < T else 0,
    ("MaxText", "steps=D - 1"): lambda t: maxtext(to(E, cos, 0, D - 1))(t),
    ("MaxText", "cooldown"): lambda t: maxtext(to(E, line, D - n, n - 1))(t),
    ("Levanter", "Linear(P"): after_warmup(to(E, line), 0),
    ("Levanter", 'shape="cosine"'): after_warmup(to(E, cos, **wsd), 0),
    ("Levanter", "InverseSqrt"): after_warmup(
        lambda s: max(P * min(1, math.sqrt(k / (s + W))), E), 0
    ),
    ("Levanter", "InverseTime"): after_warmup(lambda s: max(P / ((P / E - 1) * s / D + 1), E), 0),
    ("axlearn", "Constant(P).warmup"): after_warmup(lambda s: P, index=1),
    ("axlearn", "Linear(P"): after_warmup(to(E, line), index=1),
    ("axlearn", "`Cosine(P"): after_warmup(to(E, cos), index=1),
    ("axlearn", "T - b"): after_warmup(to(E, cos, b - W, T - b), index=1),
    ("axlearn", "exponential"): lambda t: I * (E / I) ** min((t + 1) / n, 1),
    ("axlearn", "InverseSqrt"): lambda t: max(t + 1, W) ** -0.5,
    ("axlearn", "`noam"): lambda t: P * min((t + 1) * W**-1.5, (t + 1) ** -0.5),
    ("OLMo-core", "`Linear(P"): after_warmup(to(E, line)),
    ("OLMo-core", "`Cosine(P"): after_warmup(to(E, cos)),
    ("OLMo-core", "InverseSqrt"): after_warmup(lambda s: E + (P - E) * math.sqrt(W / (s + W))),
    ("OLMo-core", "cooldown"): after_warmup(to(E, line, **wsd)),
    ("OLMo-core", "2 * D"): lambda t: I + ((P + E) / 2 - I) * t / W
    if t < W
    else to(E, cos, -D, 2 * D)(t - W),
    ("OLMo-core", "cosine_then_linear"): after_warmup(
        lambda s: to(c, cos)(s)
        if s < D - n
        else E + (to(c, cos)(D - n) - E) * max(D - s, 0) / n, 0,
    ),
    ("torchtitan", "join"): lambda t: P * (t + 1) / (W + 1)
    if t < W
    else to(E, line, -1, D + 1)(t - W),
    ("torchtitan", "cooldown"): lambda t: P * (t + 1) / (W + 1)
    if t < W
    else to(E, line, D - n - 1, n + 1)(t - W),
    ("Megatron-LM", "`Linear(P"): after_warmup(to(E, line)),
    ("Megatron-LM", "InverseSqrt"): after_warmup(
        lambda s: max(E, P * math.sqrt(W / (s + W))) if s <= D else E
    ),
    ("Megatron-LM", "at=D - n, end_value=E).warmup"): after_warmup(to(E, line, **wsd)),
    ("Megatron-LM", "exponential"): after_warmup(to(E, lambda x: 2 * 0.5**x - 1, **wsd)),
    ("DeepSpeed", '`Constant(P).warmup(W - 1, init_value=I, shape="log")`'): lambda t: I
    + (P - I) * min(math.log(t + 1) / math.log(W), 1),
    ("DeepSpeed", "Linear(P"): lambda t: I
    + (P - I) * (math.log(t + 1) / math.log(W) if t < W else max(T - t, 0) / D),
    ("DeepSpeed", "Cosine(P"): lambda t: I + (P - I) * math.log(t + 1) / math.log(W)
    if t < W
    else to(E, cos, -1)(t - W),
    ("DeepSpeed", "Cyclic"): lambda t: I + (P - I) * (t / u if t <= u else (u + d - t) / d)
    if t <= u + d
    else I / (1 + r * (t - u - d) / n),
}  # fmt: skip


@pytest.mark.parametrize(("library", "piece"), FORMULAS)
def test_our_expression_is_the_formula_of_the_library(library, piece):
    section = re.search(rf"^## {library}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    expressions = re.findall(r"`[^`]+`", "".join(re.findall(r"^\| .*? \| (.*)$", section, re.M)))
    text = next(one for one in expressions if piece in one)
    schedule = eval(text.strip("`"), vars(schedules) | LETTERS)
    expected = np.array([FORMULAS[library, piece](t) for t in STEPS])
    np.testing.assert_allclose(schedule(np.arange(len(STEPS))), expected, rtol=2e-6, atol=1e-9)
