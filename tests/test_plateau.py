"""Controllers: equal to a model in plain Python, and to the libraries they are named after."""

import importlib.util
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import record_plateau

from jax_lrreg import schedules
from jax_lrreg.schedules import (
    Averaged,
    Greedy,
    HypergradientDescent,
    LossDecay,
    ReduceOnPlateau,
    Smoothed,
)

SEQUENCES, LENGTH = 5000, 48
RECORDED = json.loads(record_plateau.FILE.read_text())
PRESETS = {
    "torch": lambda **a: ReduceOnPlateau.like_torch(
        **a, learning_rate=record_plateau.LEARNING_RATE
    ),
    "keras": lambda **a: ReduceOnPlateau.like_keras(
        **a, learning_rate=record_plateau.LEARNING_RATE
    ),
    "optax": lambda **a: ReduceOnPlateau.like_optax(**a),
    "transformers": lambda **a: Greedy.like_transformers(
        **a, learning_rate=record_plateau.LEARNING_RATE
    ),
}


@jax.jit
def run(controller, metrics):
    """The scales after each metric, and the last state, in one scan."""

    def one(state, metric):
        state = controller.update(state, metric)
        return state, controller.scale(state)

    return jax.lax.scan(one, controller.init(), jnp.asarray(metrics, jnp.float32))


def random_metrics(rng, count):
    """Falling, flat and noisy sequences, of numbers whose sums and products are exact."""
    trend = rng.choice([0.0, -0.125, -0.5, 0.25], (count, 1)) * np.arange(LENGTH)
    noise = rng.integers(-8, 9, (count, LENGTH)) / rng.choice([1, 8, 64], (count, 1))
    metrics = rng.integers(-64, 65, (count, 1)) / 4 + trend + noise * rng.choice([0, 1], (count, 1))
    broken = rng.random((count, LENGTH)) < rng.choice([0, 0.05, 0.3], (count, 1))
    return np.where(broken, rng.choice([np.nan, np.inf, -np.inf], (count, LENGTH)), metrics).astype(
        np.float32
    )


def random_fields(rng, count, greedy):
    fields = {
        "factor": rng.choice([0.5, 0.25, 0.75, 0.9], count),
        "patience": rng.integers(0, 4, count),
        "cooldown": rng.integers(0, 4, count),
        "threshold": rng.choice([0, 0.0625, 0.25], count),
        "min_delta": rng.choice([0, 0.125], count),
        "min_scale": rng.choice([0, 0.1, 0.5], count),
        "eps": rng.choice([0, 0.03125], count),
    }
    if greedy:
        fields |= {
            "warmup": rng.integers(0, 4, count),
            "max_scale": rng.choice([1.0, 3.0], count),
            "reset_start": rng.integers(1, 4, count),
        }
    return {k: v.astype(np.int32 if v.dtype.kind == "i" else np.float32) for k, v in fields.items()}


class PlateauModel:
    """`ReduceOnPlateau`, as one would write it without JAX."""

    def __init__(self, mode, **fields):
        self.__dict__.update(fields, sign=1 if mode == "min" else -1)
        self.scale, self.best, self.bad, self.cooling, self.nonfinite = np.float32(1), None, 0, 0, 0

    def improves(self, metric):
        if not math.isfinite(metric):
            return False
        return (
            self.best is None
            or self.sign * (self.best - metric) > self.threshold * abs(self.best) + self.min_delta
        )

    def update(self, metric):
        self.nonfinite += not math.isfinite(metric)
        if self.improves(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self.patience:
            self.change(max(self.scale * self.factor, self.min_scale))
            self.bad, self.cooling = 0, self.cooldown

    def change(self, scale):
        if abs(self.scale - scale) > self.eps:
            self.scale = scale

    def numbers(self):
        return self.scale, self.nonfinite, self.bad, self.cooling


class GreedyModel(PlateauModel):
    def __init__(self, mode, **fields):
        super().__init__(mode, **fields)
        self.good = self.floored = 0

    def update(self, metric):
        self.nonfinite += not math.isfinite(metric)
        if self.cooling:
            self.cooling -= 1
            self.good = self.bad = 0
            return
        if self.improves(metric):
            self.best, self.good, self.bad = metric, self.good + 1, 0
        else:
            self.good, self.bad = 0, self.bad + 1
        if self.good > self.patience:
            self.change(min(self.scale / self.factor, self.max_scale))
            self.good, self.cooling, self.floored = 0, self.warmup, 0
        elif self.bad > self.patience:
            self.change(max(self.scale * self.factor, self.min_scale))
            self.bad, self.cooling = 0, self.cooldown
            if self.scale <= self.min_scale:
                self.floored += 1
                if self.floored >= self.reset_start:
                    self.scale, self.best, self.floored = np.float32(1), None, 0


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("cls", "model"), [(ReduceOnPlateau, PlateauModel), (Greedy, GreedyModel)])
def test_equals_a_model_in_plain_python_jitted_scanned_and_vmapped(cls, model, mode):
    count = SEQUENCES // 2
    rng = np.random.default_rng(0 if mode == "min" else 1)
    metrics, fields = random_metrics(rng, count), random_fields(rng, count, cls is Greedy)

    @jax.jit
    @jax.vmap
    def ours(fields, metrics):
        controller = cls(**fields, mode=mode)

        def one(state, metric):
            state = controller.update(state, metric)
            pause = state.cooldown if cls is ReduceOnPlateau else state.pause
            return state, (controller.scale(state), state.nonfinite, state.bad, pause)

        return jax.lax.scan(one, controller.init(), metrics)

    state, found = ours(fields, metrics)
    expected = np.empty((4, count, LENGTH))
    bests = np.empty(count)
    for row in range(count):
        theirs = model(mode, **{name: value[row] for name, value in fields.items()})
        for column in range(LENGTH):
            theirs.update(metrics[row, column])
            expected[:, row, column] = theirs.numbers()
        bests[row] = (np.inf if mode == "min" else -np.inf) if theirs.best is None else theirs.best
    for ours_, theirs_ in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours_, theirs_.astype(ours_.dtype))
    np.testing.assert_array_equal(state.best, bests.astype(np.float32))
    assert 0.2 < np.mean(expected[0][:, -1] != 1) < 0.999  # the sequences do try it


CASES = [
    pytest.param(library, entry, id=f"{library}-{number}")
    for library, recorded in RECORDED.items()
    for number, entry in enumerate(recorded["cases"])
]


@pytest.mark.parametrize(("library", "entry"), CASES)
@pytest.mark.sampled(50)
def test_a_preset_equals_the_recorded_library(library, entry):
    _, scales = run(PRESETS[library](**entry["arguments"]), entry["metrics"])
    np.testing.assert_allclose(
        record_plateau.LEARNING_RATE * np.asarray(scales), entry["rates"], rtol=3e-5, atol=1e-9
    )


@pytest.mark.parametrize("library", ["torch", "keras", "optax", "transformers"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras and NumPy 2
def test_a_preset_equals_the_live_library(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    for arguments, metrics in record_plateau.cases(library):
        _, scales = run(PRESETS[library](**arguments), metrics)
        rates = record_plateau.RATES[library](arguments, metrics)
        np.testing.assert_allclose(
            record_plateau.LEARNING_RATE * np.asarray(scales), rates, rtol=3e-5, atol=1e-9
        )


def test_the_record_is_of_these_cases():
    for library, recorded in RECORDED.items():
        for entry, (arguments, metrics) in zip(
            recorded["cases"], record_plateau.cases(library), strict=True
        ):
            assert entry["arguments"] == arguments
            np.testing.assert_array_equal(entry["metrics"], metrics)


class TestPlateau:
    def test_with_patience_0_it_does_not_cut_while_improving(self):
        _, scales = run(ReduceOnPlateau(0.5, patience=0), np.linspace(5, -5, 40))
        np.testing.assert_array_equal(scales, 1)

    def test_a_negative_best_has_a_margin_too(self):
        worsening = -100 + 0.005 * np.arange(12)  # PyTorch takes each of these for an improvement
        _, scales = run(ReduceOnPlateau(0.5, patience=1), worsening)
        assert scales[-1] < 1
        _, scales = run(ReduceOnPlateau(0.5, patience=1), -100 - 1.0 * np.arange(12))
        assert scales[-1] == 1

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_nothing_that_is_not_finite_becomes_the_best(self, bad, mode):
        plateau = ReduceOnPlateau(0.5, patience=1, mode=mode)
        better = np.arange(8.0) * (-1 if mode == "min" else 1)
        for metrics in ([bad, *better], [*better, bad, better[-1] * 2]):
            state, scales = run(plateau, metrics)
            assert state.nonfinite == 1
            assert state.best == metrics[-1]
            np.testing.assert_array_equal(scales, 1)
        state, scales = run(plateau, [bad] * 6)
        assert state.nonfinite == 6
        assert scales[-1] == 0.125
        assert not np.isfinite(state.best)

    def test_extreme_numbers(self):
        state, scales = run(ReduceOnPlateau(0.5, patience=0), [3e38, -3e38, 3e38, -3.2e38])
        np.testing.assert_array_equal(scales, [1, 1, 0.5, 0.5])
        assert state.best == np.float32(-3.2e38)

    def test_counters_stop_rather_than_wrap(self):
        plateau = ReduceOnPlateau(0.5, patience=2**31 - 1)
        last = jnp.int32(2**31 - 1)
        state = plateau.update(plateau.init()._replace(bad=last, nonfinite=last), jnp.nan)
        assert state.bad == state.nonfinite == 2**31 - 1
        assert state.scale == 1

    def test_a_changed_number_is_not_traced_anew_and_neither_is_a_cut(self):
        @jax.jit
        @chex.assert_max_traces(n=1)
        def update(plateau, state, metric):
            return plateau.update(state, metric)

        state = ReduceOnPlateau(0.5).init()
        for factor, patience in ((0.5, 0), (0.1, 3), (0.9, 1)):
            for metric in (1.0, 1.0, 1.0, 0.5):
                state = update(
                    ReduceOnPlateau(jnp.float32(factor), patience=jnp.int32(patience)),
                    state,
                    metric,
                )

    def test_any_dtype_of_metric(self):
        plateau = ReduceOnPlateau(0.5, patience=0)
        shapes = jax.tree.map(jax.typeof, plateau.init())
        for metric in (1, 2.0, np.float64(3), jnp.bfloat16(1), jnp.int32(4), np.float16(2)):
            state = plateau.update(plateau.init(), metric)
            assert jax.tree.map(jax.typeof, state) == shapes
            assert state.best == float(metric)

    @pytest.mark.parametrize("x64", [False, True])
    def test_no_state_changes_its_type_whatever_the_metric(self, x64):
        with jax.enable_x64(x64):
            for controller in (
                ReduceOnPlateau(),
                Greedy(),
                LossDecay(),
                HypergradientDescent(),
                Averaged(ReduceOnPlateau(), window=3),
                Smoothed(Greedy(), window=3),
            ):
                before = jax.eval_shape(controller.init)
                after = jax.eval_shape(controller.update, before, np.float64(1.0))
                assert after == before
                assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {
                    jnp.dtype("float32"),
                    jnp.dtype("int32"),
                }

    def test_prints_as_the_call_that_makes_it(self):
        for controller in (
            ReduceOnPlateau(0.5, patience=3, mode="max", min_scale=0.1),
            Greedy(0.9, patience=2, reset_start=7),
            HypergradientDescent(0.02, rule="additive", init_scale=1.0),
            LossDecay(-3.0, power=0.5),
            Averaged(Smoothed(ReduceOnPlateau(), window=3), window=4),
        ):
            names = {name: getattr(schedules, name) for name in dir(schedules)}
            assert eval(repr(controller), names) == controller
            assert hash(controller) == hash(eval(repr(controller), names))


class TestAverages:
    def test_averaged_is_the_controller_on_the_means(self):
        metrics = np.random.default_rng(0).normal(size=60).astype(np.float32)
        _, scales = run(Averaged(ReduceOnPlateau(0.5, patience=1), window=4), metrics)
        _, means = run(ReduceOnPlateau(0.5, patience=1), metrics.reshape(-1, 4).mean(1))
        np.testing.assert_array_equal(scales[3::4], means)
        np.testing.assert_array_equal(scales[4::4], scales[3:-1:4])

    def test_a_metric_that_is_not_finite_spoils_its_own_window_only(self):
        metrics = np.full(20, 1.0)
        metrics[5] = np.nan
        state, _ = run(Averaged(ReduceOnPlateau(0.5, patience=9), window=4), metrics)
        assert state.inner.nonfinite == 1
        assert state.inner.best == 1

    def test_smoothed_is_the_controller_on_the_running_means(self):
        metrics = np.random.default_rng(0).normal(size=40).astype(np.float32)
        means = [metrics[max(0, i - 4) : i + 1].mean() for i in range(40)]
        _, scales = run(Smoothed(ReduceOnPlateau(0.5, patience=1), window=5), metrics)
        np.testing.assert_array_equal(scales, run(ReduceOnPlateau(0.5, patience=1), means)[1])

    def test_a_mean_forgets_what_is_not_finite(self):
        metrics = np.where(np.arange(30) % 7 == 3, np.nan, 30.0 - np.arange(30))
        state, _ = run(Smoothed(ReduceOnPlateau(0.5, patience=9), window=5), metrics)
        assert state.inner.nonfinite == 4
        np.testing.assert_allclose(
            state.inner.best, metrics[np.isfinite(metrics)][-5:].mean(), rtol=1e-6
        )


class TestLossDecay:
    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_is_its_formula(self, mode):
        sign = 1 if mode == "min" else -1
        metrics = sign * np.array([4.0, 3.0, 3.5, np.nan, 1.0, sign * np.inf * -1, -2.0, -3.0, 5.0])
        best = np.array([4, 3, 3, 3, 1, 1, -2, -3, -3])
        state, scales = run(LossDecay(sign * -3.0, power=2, min_scale=0.1, mode=mode), metrics)
        np.testing.assert_allclose(scales, 0.1 + 0.9 * ((best + 3) / 7) ** 2, rtol=1e-6)
        assert state.nonfinite == 2

    def test_is_total(self):
        for target, metrics, last in (
            (0.0, [np.nan, np.inf], 1.0),
            (5.0, [4.0], 0.0),
            (5.0, [5.0, 6.0], 0.0),
            (-3e38, [3e38, 0.0], 0.5),
            (0.0, [-1.0, 7.0], 0.0),
        ):
            assert run(LossDecay(target), metrics)[1][-1] == last


class TestHypergradientDescent:
    def test_rules(self):
        metrics = np.array([0.5, -1.0, np.nan, 0.25], np.float32)
        _, scales = run(HypergradientDescent(0.1, init_scale=1.0), metrics)
        np.testing.assert_allclose(scales, np.cumprod([1.05, 0.9, 1.0, 1.025]), rtol=1e-6)
        state, scales = run(HypergradientDescent(0.1, rule="additive", init_scale=1.0), metrics)
        np.testing.assert_allclose(scales, 1 + np.cumsum([0.05, -0.1, 0, 0.025]), rtol=1e-6)
        assert state.nonfinite == 1

    def test_bounds(self):
        _, scales = run(
            HypergradientDescent(
                10.0, rule="additive", max_scale=4.0, min_scale=0.5, init_scale=1.0
            ),
            [1, -1, -1],
        )
        np.testing.assert_array_equal(scales, [4, 0.5, 0.5])


WRONG = [
    (ReduceOnPlateau, {"factor": 1.0}, "`factor` must be a number in"),
    (ReduceOnPlateau, {"factor": 0.0}, "`factor`"),
    (ReduceOnPlateau, {"factor": float("nan")}, "`factor`"),
    (ReduceOnPlateau, {"factor": np.array([0.5, 1.5])}, "`factor`"),
    (ReduceOnPlateau, {"patience": -1}, "`patience` must be a whole number >= 0, got -1"),
    (ReduceOnPlateau, {"patience": 2.5}, "`patience`"),
    (ReduceOnPlateau, {"patience": 2**31}, "`patience`"),
    (ReduceOnPlateau, {"cooldown": -1}, "`cooldown`"),
    (ReduceOnPlateau, {"mode": "auto"}, "`mode` must be 'min' or 'max', got 'auto'"),
    (ReduceOnPlateau, {"threshold": 1.0}, "`threshold`"),
    (ReduceOnPlateau, {"threshold": -0.1}, "`threshold`"),
    (ReduceOnPlateau, {"min_delta": -0.1}, "`min_delta`"),
    (ReduceOnPlateau, {"min_scale": 2.0}, "`min_scale`"),
    (ReduceOnPlateau, {"eps": -1.0}, "`eps`"),
    (ReduceOnPlateau.like_torch, {"threshold_mode": "both"}, "`threshold_mode`"),
    (ReduceOnPlateau.like_torch, {"min_lr": -1}, "`min_lr`"),
    (ReduceOnPlateau.like_torch, {"min_lr": 0.2, "learning_rate": 0.1}, "`min_lr`"),
    (ReduceOnPlateau.like_torch, {"learning_rate": 0}, "`learning_rate`"),
    (ReduceOnPlateau.like_keras, {"patience": -1}, "`patience`"),
    (ReduceOnPlateau.like_keras, {"mode": "auto"}, "`mode`"),
    (ReduceOnPlateau.like_optax, {"patience": 0}, "`patience` must be a whole number >= 1, got 0"),
    (ReduceOnPlateau.like_optax, {"accumulation_size": 0}, "`accumulation_size`"),
    (Greedy, {"factor": 1.5}, "`factor`"),
    (Greedy, {"warmup": -1}, "`warmup`"),
    (Greedy, {"max_scale": 0.5}, "`max_scale`"),
    (Greedy, {"reset_start": 0}, "`reset_start`"),
    (Greedy.like_transformers, {"learning_rate": 2.0}, "`max_lr`"),
    (HypergradientDescent, {"rate": 1.0}, "`rate`"),
    (HypergradientDescent, {"rate": 0.0, "rule": "additive"}, "`rate`"),
    (HypergradientDescent, {"rule": "geometric"}, "`rule`"),
    (HypergradientDescent, {"init_scale": 0.0}, "`init_scale`"),
    (HypergradientDescent, {"init_scale": 2.0, "max_scale": 1.5}, "`init_scale`"),
    (LossDecay, {"target": float("inf")}, "`target`"),
    (LossDecay, {"power": 0.0}, "`power`"),
    (LossDecay, {"mode": "down"}, "`mode`"),
    (Averaged, {"controller": 0.1, "window": 3}, "`controller`"),
    (Averaged, {"controller": ReduceOnPlateau(), "window": 0}, "`window`"),
    (Smoothed, {"controller": ReduceOnPlateau(), "window": 2.0}, "`window`"),
]


@pytest.mark.parametrize(("make", "arguments", "words"), WRONG)
def test_a_wrong_argument_is_refused_by_name(make, arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make(**arguments)


@pytest.mark.parametrize("controller", [ReduceOnPlateau(), Greedy(), LossDecay()], ids=repr)
@pytest.mark.parametrize("metric", [np.ones(3), jnp.ones((1,)), [0.1, 0.2]], ids=repr)
def test_a_metric_is_one_number(controller, metric):
    with pytest.raises(ValueError, match="`metric` must be one number, got"):
        controller.update(controller.init(), metric)


@pytest.mark.parametrize("controller", [ReduceOnPlateau(), Greedy(), LossDecay()], ids=repr)
@pytest.mark.parametrize("metric", ["0.1", None, 1j, True, 10**400])
def test_a_metric_is_a_real_number(controller, metric):
    with pytest.raises(TypeError, match="`metric` must be one real number, got"):
        controller.update(controller.init(), metric)
