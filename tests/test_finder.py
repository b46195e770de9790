"""The finder: what it tries, what it suggests, when it stops, and what it leaves alone."""

import itertools
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from models import loss_fn

from jax_lrreg import finder, penalties, plots, training
from jax_lrreg.cli import main
from jax_lrreg.finder.suggestions import longest_fall, suggest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import finder_against_sweep as against


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def apply(params, x):
    return x @ params["w"]


def arrays(n=256):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1, -2, 0.5, 3], np.float32)}


def start(tx=None, **options):
    return training.init(
        apply, tx or optax.sgd(1.0), key=jax.random.key(0), params={"w": jnp.zeros(4)}, **options
    )


def data(**options):
    return training.ArrayData(arrays(**options), 32, jax.random.key(1))


NOTHING = {
    "constant loss": {"loss_fn": lambda model, batch: 0.7 + 0 * loss_fn(model, batch)},
    "no rates that matter": {"low": 1e-12, "high": 1e-9},
    "those, and no noise": {"low": 1e-12, "high": 1e-9, "data": [arrays(32)] * 100},
    "noise alone": {"loss_fn": lambda model, batch: batch["y"].mean() + 0 * loss_fn(model, batch)},
}


class TestRange:
    @pytest.mark.parametrize("reg", [None, penalties.L2(0.1)])
    def test_is_the_loop_written_by_hand(self, reg):
        found = finder.range_test(
            apply,
            loss_fn,
            optax.scale_by_adam(),
            start(),
            data(),
            low=1e-4,
            high=1e-1,
            steps=40,
            penalty=reg,
        )
        rates = np.geomspace(1e-4, 1e-1, 40)
        np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-5)
        params, tx, source = {"w": jnp.zeros(4)}, optax.scale_by_adam(), data()
        state, losses, mean, smoothed = tx.init(params), [], 0.0, []

        def cost(params, batch):
            return loss_fn(lambda x: apply(params, x), batch) + (0 if reg is None else reg(params))

        for index, rate in enumerate(rates):
            loss, gradient = jax.value_and_grad(cost)(params, source(index))
            direction, state = tx.update(gradient, state, params)
            params = jax.tree.map(lambda p, d, r=rate: p - r * d, params, direction)
            mean = 0.9 * mean + 0.1 * float(loss)
            losses.append(float(loss))
            smoothed.append(mean / (1 - 0.9 ** (index + 1)))
        np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
        np.testing.assert_allclose(found.smoothed, smoothed, rtol=1e-4)
        assert not found.stopped

    def test_it_stops_where_the_loss_diverges(self):
        found = finder.range_test(
            apply, loss_fn, optax.identity(), start(), data(), low=1e-4, high=1e6
        )
        assert found.stopped
        assert len(found.learning_rates) == len(found.losses) == len(found.smoothed) < 60
        assert found.smoothed[-1] > 4 * np.nanmin(found.smoothed)
        assert found.smoothed[-2] <= 4 * np.nanmin(found.smoothed[:-1])

    def test_a_loss_that_is_not_finite_stops_it_at_once(self):
        bad = [
            jax.tree.map(lambda x, f=np.nan if i == 30 else 1.0: x[:32] * np.float32(f), arrays())
            for i in range(50)
        ]
        found = finder.range_test(
            apply, loss_fn, optax.identity(), start(), bad, high=1e-2, steps=50
        )
        assert found.stopped
        assert len(found.losses) == 31
        assert np.isfinite(found.suggestion)

    def test_no_step_is_made_after_it_has_stopped(self):
        steps = []

        def counting(model, batch):
            jax.debug.callback(lambda: steps.append(1))
            return loss_fn(model, batch)

        found = finder.range_test(
            apply, counting, optax.identity(), start(), data(), low=1e-4, high=1e6, steps=100
        )
        jax.effects_barrier()
        assert len(steps) == len(found.losses) < 60

    def test_negative_losses_do_not_stop_it(self):
        found = finder.range_test(
            apply,
            lambda model, batch: loss_fn(model, batch) - 100,
            optax.scale_by_adam(),
            start(),
            data(),
            high=1.0,
        )
        assert not found.stopped
        assert 1e-3 < found.suggestion < 1

    def test_the_state_is_left_as_it_is(self):
        state = start(optax.adam(0.1), hyper={"lr": 0.5})
        before = jax.tree.map(np.asarray, (state.params, state.opt_state, state.step))
        finder.range_test(apply, loss_fn, optax.scale_by_adam(), state, data(), steps=10)
        finder.parallel_test(
            apply, loss_fn, optax.scale_by_adam(), state, data(), steps=4, rates=3, seeds=1
        )
        after = jax.tree.map(np.asarray, (state.params, state.opt_state, state.step))
        chex.assert_trees_all_equal(before, after)

    def test_it_begins_where_the_state_is_in_the_data(self):
        state = start().replace(step=jnp.int32(5))
        found = finder.range_test(apply, loss_fn, optax.identity(), state, data(), steps=10)
        np.testing.assert_allclose(
            found.losses[0], loss_fn(lambda x: x @ np.zeros(4, np.float32), data()(5)), rtol=1e-5
        )

    def test_convolutions_on_the_cpu_are_not_looped_and_give_the_same(self):
        class Cnn(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(1)(nn.Conv(2, (3, 3))(x).reshape(len(x), -1))[:, 0]

        rng = np.random.default_rng(0)
        images = {
            "x": rng.normal(size=(64, 4, 4, 1)).astype(np.float32),
            "y": np.ones(64, np.float32),
        }
        state = training.init(Cnn(), optax.sgd(1.0), key=jax.random.key(0), example=images["x"][:1])
        source = training.ArrayData(images, 16, jax.random.key(2))
        found = finder.range_test(
            Cnn(), loss_fn, optax.identity(), state, source, low=1e-4, high=1e4, steps=40
        )
        assert found.stopped
        assert len(found.losses) < 40
        assert 1e-3 < found.suggestion < 10

    def test_a_preconditioner_may_be_a_function_of_the_hyperparameters(self):
        state = start(lambda hyper: optax.sgd(hyper["lr"]), hyper={"lr": 0.5, "b1": 0.9})
        found = finder.range_test(
            apply, loss_fn, lambda hyper: optax.scale_by_adam(b1=hyper["b1"]), state, data()
        )
        plain = finder.range_test(apply, loss_fn, optax.scale_by_adam(), start(), data())
        np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-5)

    def test_where_nothing_falls_there_is_no_suggestion_and_it_says_so(self):
        found = finder.range_test(
            apply, loss_fn, optax.identity(), start(), [data()(0)] * 20, low=1e3, high=1e6, steps=20
        )
        assert found.suggestions == {}
        with pytest.raises(ValueError, match="fell at no learning rate from 1e"):
            _ = found.suggestion
        plots.range_test(found)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("name", NOTHING)
    @pytest.mark.parametrize("test", [finder.range_test, finder.parallel_test])
    @pytest.mark.sampled(8)
    def test_what_does_not_stand_out_of_its_noise_gives_no_suggestion(self, test, name, seed):
        options = {"data": training.ArrayData(arrays(), 32, jax.random.key(seed))}
        options |= {"low": 1e-6, **NOTHING[name]}
        if test is finder.parallel_test:
            options |= {"rates": 4, "steps": 8}
        found = run(test, **options)
        assert found.suggestions == {}
        with pytest.raises(ValueError, match="by more than its noise"):
            _ = found.suggestion

    @pytest.mark.parametrize("bad", [3, 10, 20, 40])
    def test_one_bad_batch_before_anything_fell_gives_none(self, bad):
        source = data()
        batches = [source(i) for i in range(100)]
        batches[bad]["x"][0] = np.nan
        found = run(data=batches)
        assert found.suggestions == {}
        with pytest.raises(ValueError, match="it was not finite at some rate"):
            _ = found.suggestion

    @pytest.mark.parametrize("test", [finder.range_test, finder.parallel_test])
    @pytest.mark.parametrize("short", [[arrays(32)] * 3, iter([arrays(32)] * 3), iter([]), 3])
    def test_short_data_is_refused_in_the_name_of_the_test(self, test, short):
        with pytest.raises((ValueError, TypeError), match=f"^{test.__name__}: `data`"):
            run(test, data=short)


class TestParallel:
    def test_each_run_is_plain_training_at_its_rate(self):
        found = finder.parallel_test(
            apply,
            loss_fn,
            optax.scale_by_adam(),
            start(),
            data(),
            low=1e-3,
            high=1.0,
            rates=4,
            steps=8,
            seeds=2,
        )
        source = data()
        for seed in range(2):
            for column, rate in enumerate(np.geomspace(1e-3, 1.0, 4)):
                tx = optax.adam(rate)
                params, losses = {"w": jnp.zeros(4)}, []
                state = tx.init(params)
                for index in range(8):
                    batch = source(8 * seed + index)
                    loss, gradient = jax.value_and_grad(
                        lambda p, b: loss_fn(lambda x: apply(p, x), b)
                    )(params, batch)
                    updates, state = tx.update(gradient, state, params)
                    params = optax.apply_updates(params, updates)
                    losses.append(float(loss))
                np.testing.assert_allclose(
                    found.losses[seed, column], np.mean(losses[-2:]), rtol=1e-4
                )

    def test_suggestions_and_divergence(self):
        found = finder.parallel_test(
            apply, loss_fn, optax.identity(), start(), data(), low=1e-4, high=1e8, rates=13
        )
        assert list(found.suggestions) == ["smallest", "lowest"]
        assert found.suggestions["smallest"] <= found.suggestions["lowest"] <= 1
        assert np.isinf(found.losses[:, -1]).all()
        plots.range_test(found)

    def test_memory_can_be_bounded(self):
        options = {"low": 1e-3, "high": 1.0, "rates": 5, "steps": 8}
        all_at_once, two = (
            finder.parallel_test(
                apply, loss_fn, optax.identity(), start(), data(), **options, max_parallel=m
            )
            for m in (None, 2)
        )
        np.testing.assert_allclose(all_at_once.losses, two.losses, rtol=1e-5)


def test_the_rules_on_a_curve_that_is_known():
    rates = np.geomspace(1e-6, 10, 141)
    x = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-6 * (x + 3))) + np.exp(np.clip(8 * (x + 1), -50, 50)) * 0.02
    found = suggest(rates, losses, losses)
    np.testing.assert_allclose(found["halfway"], 1e-3, rtol=0.2)
    np.testing.assert_allclose(found["steepest"], 1e-3, rtol=0.2)
    np.testing.assert_allclose(found["minimum"], rates[losses.argmin()] / 10, rtol=1e-6)
    assert 1e-6 < found["valley"] < 1e-3
    assert suggest(rates, losses[::-1], losses[::-1]) != {}
    assert suggest(rates, np.linspace(1, 2, 141), np.linspace(1, 2, 141)) == {}
    assert suggest(rates[:2], losses[:2], losses[:2]) == {}


def test_the_longest_fall():
    rng = np.random.default_rng(0)
    for _ in range(200):
        losses = rng.integers(0, 10, 9).astype(float)
        best = 1
        for mask in range(1, 2**9):
            chosen = [losses[i] for i in range(9) if mask >> i & 1]
            if all(a > b for a, b in itertools.pairwise(chosen)):
                best = max(best, len(chosen))
        begin, end = longest_fall(losses)
        inner = [v for v in losses[begin + 1 : end] if losses[begin] > v > losses[end]]
        assert (begin == end) == (best == 1)
        assert losses[begin] >= losses[end]
        assert best <= len(inner) + 2


@pytest.mark.parametrize("name", ["digits", "diabetes", "characters"])
@pytest.mark.sampled(1)
def test_the_suggestion_is_within_a_factor_10_of_the_best_of_a_sweep_on_5_seeds(name):
    problem, preconditioner = against.PROBLEMS[name](), optax.scale_by_adam()
    grid, ends = 10 ** np.arange(-4.0, 0.1, 0.5), against.trainer(problem, preconditioner, 100)
    for seed in range(5):
        losses, _ = ends(seed, grid)
        best = grid[losses[:-1].argmin()]
        key = jax.random.key(seed)
        state = training.init(problem.apply, optax.sgd(1.0), key=key, params=problem.init(key))
        source = training.ArrayData(problem.arrays, problem.batch_size, jax.random.key(seed + 7))
        found = finder.range_test(
            problem.apply, problem.loss_fn, preconditioner, state, source, low=1e-6, high=10.0
        )
        assert best / 10 < found.suggestion < best * 10, (seed, best, found.suggestions)


def test_find_lr_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "found.png"
    assert (
        main(
            [
                "find-lr",
                "--data",
                "diabetes",
                "--optimizer",
                "momentum",
                "--steps",
                "60",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    output = capsys.readouterr().out
    for word in (
        "halfway",
        "valley",
        "steepest",
        "minimum",
        "Suggested:",
        "momentum on diabetes: regression; 10 -> 10 -> 1",
    ):
        assert word in output
    assert out.read_bytes().startswith(b"\x89PNG")
    for wrong in (
        ["--low", "1", "--high", "0.1"],
        ["--optimizer", "none"],
        ["--steps", "5"],
        ["--penalty", "L3(1)"],
    ):
        assert main(["find-lr", *wrong, "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert wrong[0].strip("-") in message or "high" in message
    with pytest.raises(SystemExit, match="2"):
        main(["find-lr", "--low", "0"])
    assert "--low" in capsys.readouterr().err


def run(function=finder.range_test, **changes):
    options = {"preconditioner": optax.identity(), "state": start(), "data": data(), **changes}
    module, loss = options.pop("module", apply), options.pop("loss_fn", loss_fn)
    return function(module, loss, **options)


WRONG = [
    (ValueError, "`low` must be a positive number >= 1.18e-38, got 0", {"low": 0}),
    (ValueError, "`low` must be a positive number >= 1.18e-38", {"low": 1e-50}),
    (ValueError, "`high` must be a number above low=1e-07", {"high": 1e-8}),
    (ValueError, "`high` must be .* <= 3.4e\\+38, got 1e\\+300", {"high": 1e300}),
    (ValueError, "`high`", {"high": float("inf")}),
    (ValueError, "`steps` must be a whole number >= 10, got 9", {"steps": 9}),
    (ValueError, "`steps`", {"steps": 20.0}),
    (TypeError, "`state` must come from", {"state": {"params": 1}}),
    (TypeError, "`preconditioner` must be", {"preconditioner": 0.1}),
    (
        ValueError,
        r"`preconditioner` must be an optimizer without its learning rate",
        {"preconditioner": optax.adam(0.1)},
    ),
    (TypeError, "`data`", {"data": 3}),
    (ValueError, "ended after 1", {"data": [arrays(32)]}),
    (TypeError, "`penalty`", {"penalty": 0.1}),
    (ValueError, "`rates`", {"function": finder.parallel_test, "rates": 2}),
    (ValueError, "`seeds`", {"function": finder.parallel_test, "seeds": 0}),
    (ValueError, "`max_parallel`", {"function": finder.parallel_test, "max_parallel": -1}),
    (
        ValueError,
        "`preconditioner`",
        {"function": finder.parallel_test, "preconditioner": optax.sgd(0.1)},
    ),
    (ValueError, "`found`", {"function": lambda *_, **__: plots.range_test({"loss": 1})}),
]


@pytest.mark.parametrize(("error", "words", "changes"), WRONG, ids=[words for _, words, _ in WRONG])
def test_a_wrong_call_is_refused_by_name(error, words, changes):
    with pytest.raises(error, match=words):
        run(**changes)
