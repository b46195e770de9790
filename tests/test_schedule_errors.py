"""What no schedule accepts: the message names the argument, and nothing has been computed."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from jax_lrreg import penalties
from jax_lrreg import schedules as s

C = s.Constant(0.1)
NAN, INF = float("nan"), float("inf")

MALFORMED = {
    # values
    "negative constant": (lambda: s.Constant(-0.1), "value"),
    "constant nan": (lambda: s.Constant(NAN), "value"),
    "constant inf": (lambda: s.Constant(INF), "value"),
    "constant beyond every float": (lambda: s.Constant(10**400), "value"),
    "steps beyond every float": (lambda: s.Linear(0.1, steps=10**400), "steps"),
    "constant text": (lambda: s.Constant("0.1"), "value"),
    "constant None": (lambda: s.Constant(None), "value"),
    "constant bool": (lambda: s.Constant(True), "value"),
    "constant bool array": (lambda: s.Constant(np.array([True])), "value"),
    "constant complex": (lambda: s.Constant(1j), "value"),
    "constant list": (lambda: s.Constant([0.1]), "value"),
    "constant batch with a negative": (lambda: s.Constant(jnp.array([0.1, -0.1])), "value"),
    "linear negative init": (lambda: s.Linear(-1.0, steps=5), "init_value"),
    "linear negative end": (lambda: s.Linear(1.0, steps=5, end_value=-1e-9), "end_value"),
    "cosine init nan": (lambda: s.Cosine(NAN, steps=5), "init_value"),
    "inverse sqrt negative peak": (lambda: s.InverseSqrt(-1.0, timescale=5), "peak_value"),
    "cyclic negative peak": (
        lambda: s.Cyclic(0.1, peak_value=-1.0, up_steps=5, down_steps=5),
        "peak_value",
    ),
    # durations
    "zero steps": (lambda: s.Linear(0.1, steps=0), "steps"),
    "negative steps": (lambda: s.Cosine(0.1, steps=-5), "steps"),
    "nan steps": (lambda: s.Polynomial(0.1, steps=NAN), "steps"),
    "infinite steps": (lambda: s.Rex(0.1, steps=INF), "steps"),
    "steps None": (lambda: s.Tanh(0.1, steps=None), "steps"),
    "steps text": (lambda: s.Step(0.1, steps="10"), "steps"),
    "steps bool": (lambda: s.HalfLife(0.1, steps=True), "steps"),
    "one zero in a batch": (
        lambda: s.Exponential(0.1, steps=jnp.array([1, 0]), decay_rate=0.5),
        "steps",
    ),
    "inverse time steps": (lambda: s.InverseTime(0.1, steps=0), "steps"),
    "inverse time stairs": (lambda: s.InverseTimeStep(0.1, steps=-1), "steps"),
    "timescale": (lambda: s.InverseSqrt(0.1, timescale=0), "timescale"),
    "power law timescale": (lambda: s.PowerLaw(0.1, timescale=-1, exponent=1.0), "timescale"),
    "up_steps": (lambda: s.Cyclic(0.1, peak_value=1.0, up_steps=0, down_steps=5), "up_steps"),
    "down_steps": (lambda: s.Cyclic(0.1, peak_value=1.0, up_steps=5, down_steps=NAN), "down_steps"),
    "restarts steps": (lambda: s.CosineRestarts(0.1, steps=0), "steps"),
    "polynomial cycle steps": (lambda: s.PolynomialCycle(0.1, steps=-3), "steps"),
    # other numbers
    "power 0": (lambda: s.Polynomial(0.1, steps=5, power=0), "power"),
    "k_decay": (lambda: s.Cosine(0.1, steps=5, k_decay=-1.0), "k_decay"),
    "exponent": (lambda: s.Cosine(0.1, steps=5, exponent=0.0), "exponent"),
    "decay_rate 0": (lambda: s.Exponential(0.1, steps=5, decay_rate=0.0), "decay_rate"),
    "decay_rate negative": (lambda: s.InverseTime(0.1, steps=5, decay_rate=-0.1), "decay_rate"),
    "upper below lower": (lambda: s.Tanh(0.1, steps=5, lower=1.0, upper=0.0), "upper"),
    "lower far out": (lambda: s.Tanh(0.1, steps=5, lower=-1e9), "lower"),
    "cycle_decay above 1": (
        lambda: s.Cyclic(0.1, peak_value=1.0, up_steps=5, down_steps=5, cycle_decay=1.5),
        "cycle_decay",
    ),
    "step_decay 0": (
        lambda: s.Cyclic.exp_range(0.1, peak_value=1.0, up_steps=5, down_steps=5, step_decay=0.0),
        "step_decay",
    ),
    "multiplier below 1": (lambda: s.CosineRestarts(0.1, steps=5, multiplier=0.5), "multiplier"),
    "decay 0": (lambda: s.CosineRestarts(0.1, steps=5, decay=0), "decay"),
    "limit 0": (lambda: s.CosineRestarts(0.1, steps=5, limit=0), "limit"),
    "limit 1.5": (lambda: s.CosineRestarts(0.1, steps=5, limit=1.5), "limit"),
    "model_dim": (lambda: s.noam(model_dim=0, warmup_steps=10), "model_dim"),
    "noam warmup": (lambda: s.noam(model_dim=64, warmup_steps=0.5), "warmup_steps"),
    # boundaries
    "no boundaries": (lambda: s.MultiStep(0.1, boundaries=()), "boundaries"),
    "boundaries not a tuple": (lambda: s.MultiStep(0.1, boundaries=30), "boundaries"),
    "boundaries text": (lambda: s.MultiStep(0.1, boundaries="30"), "boundaries"),
    "boundaries array": (lambda: s.MultiStep(0.1, boundaries=jnp.array([[1, 2]])), "boundaries"),
    "boundary None": (lambda: s.MultiStep(0.1, boundaries=(10, None)), "boundaries"),
    "boundary 0": (lambda: s.MultiStep(0.1, boundaries=(0, 10)), "boundaries"),
    "unsorted boundaries": (lambda: s.MultiStep(0.1, boundaries=(60, 30)), "boundaries"),
    "repeated boundary": (
        lambda: s.PiecewiseConstant(0.1, boundaries=(3, 3), values=(1, 2)),
        "boundaries",
    ),
    "too many boundaries": (
        lambda: s.PiecewiseConstant(0.1, boundaries=(3, 4, 5), values=(1, 2)),
        "values",
    ),
    "too many values": (lambda: s.PiecewiseLinear(0.1, boundaries=(3,), values=(1, 2)), "values"),
    "negative value": (lambda: s.PiecewiseCosine(0.1, boundaries=(3,), values=(-1,)), "values"),
    "values not a tuple": (lambda: s.PiecewiseLinear(0.1, boundaries=(3,), values=1.0), "values"),
    # the algebra
    "times a negative": (lambda: -1.0 * C, "*"),
    "times text": (lambda: C * "2", "*"),
    "times None": (lambda: C * None, "*"),
    "plus nan": (lambda: C + NAN, "+"),
    "divided by 0": (lambda: C / 0, "/"),
    "divided by a schedule": (lambda: C / C, "/"),
    "product of numbers": (lambda: s.Product(0.5, C), "first"),
    "join nothing": (lambda: s.join([]), "pieces"),
    "join one": (lambda: s.join([(C, None)]), "pieces"),
    "join without pairs": (lambda: s.join([C, C]), "pieces"),
    "join a number": (lambda: s.join(3), "pieces"),
    "join last with an end": (lambda: s.join([(C, 5), (C, 5)]), "length"),
    "join first without end": (lambda: s.join([(C, None), (C, None)]), "length"),
    "join length -1": (lambda: s.join([(C, -1), (C, None)]), "length"),
    "join None": (lambda: s.join([(None, 5), (C, None)]), "piece"),
    "warmup -1": (lambda: C.warmup(-1), "steps"),
    "warmup infinite": (lambda: C.warmup(INF), "steps"),
    "warmup negative init": (lambda: C.warmup(5, init_value=-1), "init_value"),
    "warmup unknown shape": (lambda: C.warmup(5, shape="sigmoid"), "shape"),
    "warmup shape None": (lambda: C.warmup(5, shape=None), "shape"),
    "warmup power without use": (lambda: C.warmup(5, power=3.0), "power"),
    "warmup power 0": (lambda: C.warmup(5, shape="power", power=0), "power"),
    "warmup exponential from 0": (lambda: C.warmup(5, shape="exponential"), "init_value"),
    "cooldown unknown shape": (lambda: C.cooldown(5, at=10, shape="constant"), "shape"),
    "cooldown steps": (lambda: C.cooldown(-1, at=10), "steps"),
    "cooldown at": (lambda: C.cooldown(5, at=-1), "at"),
    "cooldown end": (lambda: C.cooldown(5, at=10, end_value=-1.0), "end_value"),
    "cooldown rate": (lambda: C.cooldown(5, at=10, shape="exponential", rate=0.0), "rate"),
    "branch at": (lambda: C.cooldown(5, at=10).branch_cooldown(5, at=None), "at"),
    "extend without end": (lambda: C.warmup(5).clip(min=0.1).extend(at=6, total_steps=10), "at"),
    "extend endless": (
        lambda: s.InverseSqrt(0.1, timescale=5).extend(at=6, total_steps=10),
        "schedule",
    ),
    "extend backwards": (lambda: s.Linear(0.1, steps=9).extend(at=6, total_steps=5), "total_steps"),
    "extend after the end": (lambda: s.Linear(0.1, steps=9).extend(at=12, total_steps=20), "at"),
    "clip negative": (lambda: C.clip(min=-1.0), "min"),
    "clip crossed": (lambda: C.clip(min=1.0, max=0.5), "max"),
    "shift None": (lambda: C.shift(None), "steps"),
    "stretch 0": (lambda: C.stretch(0), "factor"),
    "repeat 0": (lambda: C.repeat(0), "steps"),
    "units 0": (lambda: C.in_units(0), "per_step"),
    "units text": (lambda: C.in_units("epochs"), "per_step"),
    "area of None": (lambda: C.area(None), "steps"),
    "area negative": (lambda: C.area(-1), "steps"),
    "function": (lambda: s.Function(0.1), "function"),
    # recipes
    "warmup longer than all": (
        lambda: s.warmup_cosine(0.1, warmup_steps=10, total_steps=10),
        "warmup_steps",
    ),
    "linear warmup negative": (
        lambda: s.warmup_linear(0.1, warmup_steps=-1, total_steps=10),
        "warmup_steps",
    ),
    "total 0": (lambda: s.warmup_linear(0.1, warmup_steps=0, total_steps=0), "total_steps"),
    "peak negative": (lambda: s.warmup_cosine(-0.1, warmup_steps=1, total_steps=10), "peak_value"),
    "wsd too long": (
        lambda: s.warmup_stable_decay(0.1, warmup_steps=60, decay_steps=50, total_steps=100),
        "warmup_steps",
    ),
    "wsd shape": (
        lambda: s.warmup_stable_decay(
            0.1, warmup_steps=6, decay_steps=5, total_steps=100, shape="x"
        ),
        "shape",
    ),
    "wsd no decay": (
        lambda: s.warmup_stable_decay(0.1, warmup_steps=6, decay_steps=-1, total_steps=9),
        "decay_steps",
    ),
    "one period": (
        lambda: s.warmup_stable_decay_periods(
            0.1, warmup_steps=1, decay_steps=5, period_steps=(9,)
        ),
        "period_steps",
    ),
    "short period": (
        lambda: s.warmup_stable_decay_periods(
            0.1, warmup_steps=1, decay_steps=5, period_steps=(9, 4)
        ),
        "decay_steps",
    ),
    "one cycle shape": (
        lambda: s.one_cycle(0.1, warmup_steps=3, total_steps=10, shape="step"),
        "shape",
    ),
    "one cycle warmup": (lambda: s.one_cycle(0.1, warmup_steps=-1, total_steps=10), "warmup_steps"),
    "three phases": (
        lambda: s.one_cycle_three_phases(0.1, warmup_steps=5, down_steps=5, total_steps=10),
        "warmup_steps",
    ),
    "tri-stage to 0": (
        lambda: s.tri_stage(0.1, warmup_steps=1, hold_steps=1, total_steps=9, end_value=0.0),
        "end_value",
    ),
    "slanted ratio": (
        lambda: s.slanted_triangular(0.1, warmup_steps=1, total_steps=9, ratio=0.5),
        "ratio",
    ),
    "flat cosine": (lambda: s.flat_cosine(0.1, decay_steps=9, total_steps=9), "decay_steps"),
    "cosine then linear": (
        lambda: s.cosine_then_linear(0.1, warmup_steps=5, decay_steps=5, total_steps=9),
        "warmup_steps",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_input_is_refused_by_the_name_of_the_argument(name):
    make, argument = MALFORMED[name]
    with pytest.raises((ValueError, TypeError), match=r"^[\w.]+: `") as error:
        make()
    assert f"`{argument}`" in str(error.value)
    assert "must be" in str(error.value)
    assert "got" in str(error.value)


@pytest.mark.parametrize(
    "step",
    [
        None,
        True,
        "3",
        1j,
        object(),
        [None],
        np.array("3"),
        np.bool_(True),
        jnp.array(True),
        jnp.array(1j),
    ],
    ids=lambda step: f"{type(step).__name__} {step}" if type(step) is not object else "object",
)
def test_a_step_that_is_no_number_is_refused(step):
    with pytest.raises(
        TypeError, match=r"^Schedule: `step` must be a real number or an array of them, got"
    ):
        C(step)


def test_arguments_after_the_first_are_keywords():
    for make in (
        lambda: s.Linear(0.1, 5),
        lambda: s.warmup_cosine(0.1, 5, 10),
        lambda: s.Cyclic.triangular2(0.1, 0.2, 5, 5),
    ):
        with pytest.raises(TypeError, match="positional"):
            make()


@pytest.mark.parametrize("multiply", [lambda s, p: s * p, lambda s, p: p * s, lambda s, p: s + p])
def test_a_penalty_is_not_taken_for_a_function_of_the_step(multiply):
    with pytest.raises(TypeError, match="must be a number"):
        multiply(s.Constant(0.1), penalties.L1(0.1))


GOOD = {
    s.warmup_cosine: {"peak_value": 0.1, "warmup_steps": 10, "total_steps": 100},
    s.warmup_linear: {"peak_value": 0.1, "warmup_steps": 10, "total_steps": 100},
    s.slanted_triangular: {"peak_value": 0.1, "warmup_steps": 10, "total_steps": 100},
    s.one_cycle: {"peak_value": 0.1, "warmup_steps": 10, "total_steps": 100},
    s.one_cycle_three_phases: {
        "peak_value": 0.1,
        "warmup_steps": 10,
        "down_steps": 10,
        "total_steps": 100,
    },
    s.warmup_stable_decay: {
        "peak_value": 0.1,
        "warmup_steps": 10,
        "decay_steps": 10,
        "total_steps": 100,
    },
    s.warmup_stable_decay_periods: {
        "peak_value": 0.1,
        "warmup_steps": 10,
        "decay_steps": 10,
        "period_steps": (50, 50),
    },
    s.tri_stage: {
        "peak_value": 0.1,
        "warmup_steps": 10,
        "hold_steps": 10,
        "total_steps": 100,
        "end_value": 0.01,
    },
    s.flat_cosine: {"peak_value": 0.1, "decay_steps": 10, "total_steps": 100},
    s.cosine_then_linear: {
        "peak_value": 0.1,
        "warmup_steps": 10,
        "decay_steps": 10,
        "total_steps": 100,
    },
    s.noam: {"model_dim": 64, "warmup_steps": 10},
    s.InverseSqrt.fairseq: {"peak_value": 0.1, "warmup_steps": 10},
    s.InverseSqrt.t5: {"warmup_steps": 10},
    s.InverseSqrt.shifted: {"peak_value": 0.1, "warmup_steps": 10, "timescale": 10},
}


@pytest.mark.parametrize("recipe", GOOD, ids=lambda recipe: recipe.__qualname__)
def test_a_recipe_names_itself_and_its_own_argument(recipe):
    good = GOOD[recipe]
    recipe(**good)
    for argument in inspect.signature(recipe).parameters:
        for wrong in (-1, NAN, "x", None, 1e39 if "value" in argument else -0.5):
            with pytest.raises((ValueError, TypeError)) as error:
                recipe(**{**good, argument: wrong})
            assert str(error.value).startswith(f"{recipe.__qualname__}: `{argument}` must be")
