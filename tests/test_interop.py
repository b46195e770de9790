"""Other libraries' schedulers: equal value by value, live where installed, else as recorded."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from parity import record

from jax_lrreg import interop, text
from jax_lrreg.schedules import Constant, Cosine, Joined, Linear, Product, Schedule

CONVERTERS = {
    "torch": interop.from_torch,
    "transformers": interop.from_torch,
    "timm": interop.from_timm,
    "keras": interop.from_keras,
    "optax": interop.from_optax,
}
RECORDED = {
    library: json.loads((record.FOLDER / f"{library}.json").read_text())
    for library in record.PACKAGES
}
CASES = [(library, case) for library in RECORDED for case in record.CASES[library]]
GROUPS = [(library, case) for library, cases in record.GROUPS.items() for case in cases]
REFUSED = [(library, case) for library, cases in record.REFUSED.items() for case in cases]


def stand_in(library, case):
    """What looks like the live object to a converter; Optax's own is always there."""
    return (
        record.make(library, case)
        if library == "optax"
        else record.stand_in(RECORDED[library]["cases"][case]["object"])
    )


def assert_equal(schedule, library, steps, values):
    """Every value, to the rounding of the library: PyTorch's recursions drift."""
    steps, values = np.asarray(steps), np.asarray(values)
    padded = np.concatenate(
        [steps, np.full(128 - len(steps), steps[-1])]
    )  # one shape, one compilation
    ours = np.asarray(schedule(padded), np.float64)[: len(steps)]
    relative = 1e-5 if library == "torch" else 2e-6
    wrong = np.flatnonzero(
        np.abs(ours - values) > np.maximum(relative * np.abs(values), 1e-7 * np.max(np.abs(values)))
    )
    assert not len(wrong), [(int(steps[i]), float(values[i]), float(ours[i])) for i in wrong[:5]]


@pytest.mark.parametrize(("library", "case"), CASES)
@pytest.mark.sampled(66)
def test_equals_the_recorded_values(library, case):
    schedule = CONVERTERS[library](stand_in(library, case))
    assert isinstance(schedule, Schedule)
    assert_equal(
        schedule, library, record.CASES[library][case], RECORDED[library]["cases"][case]["values"]
    )
    assert text.parse(repr(schedule)) == schedule


@pytest.mark.parametrize("case", record.CASES["optax"])
@pytest.mark.sampled(13)
def test_equals_optax(case):
    theirs = record.make("optax", case)
    steps = record.CASES["optax"][case]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = record.values("optax", theirs, steps)
    if np.isnan(values).all():  # Optax 0.2.6, where two boundaries are the same
        with pytest.raises(ValueError, match="divides by 0"):
            interop.from_optax(theirs)
        return
    schedule = interop.from_optax(theirs)
    assert_equal(schedule, "optax", steps, values)
    assert text.parse(repr(schedule)) == schedule


@pytest.mark.parametrize("library", RECORDED)
def test_equals_the_live_library(library):
    record.quietly_imported(library, skip=pytest.skip)
    for case, steps in record.CASES[library].items():
        live = record.make(library, case)
        schedule = CONVERTERS[library](live)
        values = record.values(library, live, steps)
        assert_equal(schedule, library, steps, values)
        assert CONVERTERS[library](live) == schedule, (
            f"{case}: another schedule at the end of the run"
        )
        assert schedule == CONVERTERS[library](stand_in(library, case)), (
            f"{case}: the record is out of date"
        )
    print(f"{library}: {len(record.CASES[library])} cases equal, live")


@pytest.mark.parametrize("library", CONVERTERS)
def test_nothing_that_the_live_library_offers_is_passed_over(library):
    record.quietly_imported(library, skip=pytest.skip)
    cases = " ".join(
        [*record.CASES[library], *record.GROUPS.get(library, {}), *record.REFUSED[library]]
    )
    offered = record.offered(library)
    assert len(offered) >= 6
    assert {
        name for name in offered if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", cases)
    } == set()


@pytest.mark.parametrize(("library", "case"), GROUPS)
def test_groups_that_differ_are_asked_for_by_index(library, case):
    convert, obj = CONVERTERS[library], stand_in(library, case)
    with pytest.raises(
        ValueError, match="2 parameter groups with different schedules: choose one with `group=`"
    ):
        convert(obj)
    for group, values in enumerate(RECORDED[library]["cases"][case]["values"]):
        assert_equal(convert(obj, group=group), library, record.GROUPS[library][case], values)
    with pytest.raises(ValueError, match="`group` must be an index below 2"):
        convert(obj, group=2)


def test_groups_that_agree_are_one():
    description = RECORDED["torch"]["cases"]["StepLR(sgd(), step_size=30)"]["object"]
    scheduler = record.stand_in(description)
    scheduler.base_lrs *= 2
    scheduler._last_lr *= 2
    scheduler.optimizer.param_groups *= 2
    assert interop.from_torch(scheduler) == interop.from_torch(record.stand_in(description))


@pytest.mark.parametrize(("library", "case"), REFUSED)
def test_what_has_no_equal_is_refused_by_name(library, case):
    with pytest.raises(ValueError, match=record.REFUSED[library][case]) as caught:
        CONVERTERS[library](stand_in(library, case))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "convert", dict.fromkeys(CONVERTERS.values()), ids=lambda convert: convert.__name__
)
@pytest.mark.parametrize(
    "obj",
    [None, 3, "cosine", object(), lambda step: step],
    ids=["None", "3", "text", "object", "lambda"],
)
def test_anything_else_is_refused(convert, obj):
    with pytest.raises(ValueError, match=r"cannot be converted: from_\w+ knows"):
        convert(obj)


def test_one_library_does_not_take_another_ones_objects():
    for library, case in CASES[::40]:
        for other in ("torch", "timm", "keras", "optax"):
            if CONVERTERS[other] is not CONVERTERS[library]:
                with pytest.raises(ValueError, match="cannot be converted"):
                    CONVERTERS[other](stand_in(library, case))


def test_a_half_made_object_is_refused_by_name():
    scheduler = stand_in("torch", "StepLR(sgd(), step_size=30)")
    del scheduler.gamma
    with pytest.raises(
        ValueError, match="StepLR cannot be converted: it is not as its library makes it"
    ):
        interop.from_torch(scheduler)


def test_our_own_schedule_passes_through_from_optax():
    assert interop.from_optax(Constant(0.1)) == Constant(0.1)


def test_optax_numbers_may_be_arrays_and_traced():
    theirs = optax.linear_schedule(np.array([0.1, 0.2]), 0.0, 10)
    assert interop.from_optax(theirs) == Linear(np.array([0.1, 0.2]), steps=10)
    value = jax.jit(
        lambda peak: interop.from_optax(optax.cosine_decay_schedule(peak, 10, alpha=0.5))(10)
    )(0.2)
    assert value == np.float32(0.1)


def test_the_usual_ones_read_as_a_user_would_write_them():
    assert interop.from_timm(
        stand_in("timm", "WSDLRScheduler(sgd(), t_initial=20, decay_t=8)")
    ) == Constant(0.1).cooldown(8, at=12, shape="1-sqrt")
    keras = "CosineDecay(0.01, decay_steps=20, alpha=0.1, warmup_target=0.1, warmup_steps=5)"
    assert interop.from_keras(stand_in("keras", keras)) == Cosine(
        0.1, steps=20, end_value=0.1 * 0.1
    ).warmup(5, init_value=0.01)
    linear = "get_scheduler('linear', sgd(), num_warmup_steps=5, num_training_steps=25)"
    assert interop.from_torch(stand_in("transformers", linear)) == Linear(0.1, steps=20).warmup(5)


def test_a_chain_is_a_product_only_where_the_recursion_is():
    product = interop.from_torch(
        stand_in("torch", "ChainedScheduler([ConstantLR(o, 0.1, 4), ExponentialLR(o, 0.9)])")
    )
    assert isinstance(product, Product)
    case = "ChainedScheduler([CosineAnnealingLR(o, 10), ExponentialLR(o, 0.9)])"
    chained = interop.from_torch(stand_in("torch", case))
    assert isinstance(chained, Joined)
    assert float(chained(20)) == pytest.approx(
        0.1 * 0.9**10, rel=1e-5
    )  # not 0.9^20: it starts anew at the foot


def test_converters_import_none_of_the_libraries():
    peers = {"torch", "transformers", "timm", "keras"}
    code = f"import sys, jax_lrreg.interop; print({peers} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


def test_the_record_is_complete():
    for library, data in RECORDED.items():
        cases, groups, refused = (
            record.CASES[library],
            record.GROUPS.get(library, {}),
            record.REFUSED[library],
        )
        assert set(data["cases"]) == {*cases, *groups, *refused}
        versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        print(f"{len(cases) + len(groups)} cases equal to {versions}, {len(refused)} refused")
    cases, refused = record.CASES["optax"], record.REFUSED["optax"]
    print(f"{len(cases)} cases equal to optax {optax.__version__}, live, {len(refused)} refused")


def test_live_keras_regularizers_and_constraints_are_ours():
    record.quietly_imported("keras", skip=pytest.skip)
    keras = sys.modules["keras"]
    w = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32) * 2
    regularizers = keras.regularizers
    for theirs in (regularizers.L1(0.1), regularizers.L2(0.2), regularizers.L1L2(0.1, 0.3)):
        np.testing.assert_allclose(interop.from_keras(theirs)(w), np.asarray(theirs(w)), rtol=1e-5)
    constraints = keras.constraints
    for theirs in (
        constraints.NonNeg(),
        constraints.MaxNorm(2, axis=[0, 1, 2]),
        constraints.UnitNorm(axis=-2),
        constraints.MinMaxNorm(0.0, 1.5, axis=-2),
    ):
        np.testing.assert_allclose(
            interop.from_keras(theirs).prox(w, 1.0), np.asarray(theirs(w)), rtol=1e-5
        )
    with pytest.raises(
        ValueError, match=r"OrthogonalRegularizer cannot be converted: .*`Orthogonal` does not"
    ):
        interop.from_keras(regularizers.OrthogonalRegularizer())
