"""Controllers in an optimizer, in the step and in the loop."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from models import apply, environment_of, loss_fn, start, zeros
from sklearn.datasets import load_digits

from jax_lrreg import schedules, training, transforms
from jax_lrreg.schedules import Averaged, Greedy, HypergradientDescent, LossDecay, ReduceOnPlateau


def given_loss(model, batch):
    """A loss of any value with a gradient of ones in `w`."""
    return jnp.sum(model(jnp.ones((1, 3)))) * 0.0 + batch["loss"].mean() + ones(model)


def ones(model):
    output = jnp.sum(model(jnp.eye(3)) - model(jnp.zeros((3, 3))))
    return output - jax.lax.stop_gradient(output)


PARAMS = zeros()
LR = schedules.Linear(1.0, steps=100)


def problem():
    return models.problem(noise=0.5)


def drive(tx, losses, **options):
    """The change of a weight and the metrics of updates with these losses."""
    step = training.make_step(apply, given_loss, tx, **options)
    state, changes, found = start(tx), [], []
    for loss in losses:
        before = float(state.params["w"][0])
        state, metrics = step(state, {"loss": jnp.atleast_1d(jnp.float32(loss))})
        changes.append(before - float(state.params["w"][0]))
        found.append(metrics)
    return (
        np.array(changes),
        {name: np.array([float(m[name]) for m in found]) for name in found[0]},
        state,
    )


def scales(controller, losses):
    state, found = controller.init(), []
    for loss in losses:
        state = controller.update(state, loss)
        found.append(float(controller.scale(state)))
    return np.array(found)


LOSSES = [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.5, 3.5, 3.5, 2.0, 2.5]


@pytest.mark.parametrize(
    "controller",
    [
        ReduceOnPlateau(0.5, patience=1),
        Greedy(0.5, patience=1),
        LossDecay(1.0),
        Averaged(ReduceOnPlateau(0.5, patience=0), window=2),
    ],
    ids=repr,
)
def test_the_reported_rate_is_exactly_what_multiplied_this_update(controller):
    tx = optax.chain(optax.sgd(LR), transforms.scale_by_controller(controller))
    changes, metrics, _ = drive(tx, LOSSES, learning_rate=LR)
    expected = np.asarray(LR(np.arange(len(LOSSES)))) * scales(controller, LOSSES)
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)
    np.testing.assert_allclose(changes, expected, rtol=1e-5)
    assert len(set(scales(controller, LOSSES))) > 1


def test_controllers_in_a_row_multiply():
    first, second = ReduceOnPlateau(0.5, patience=1), LossDecay(0.0)
    tx = optax.chain(
        optax.sgd(LR), transforms.scale_by_controller(first), transforms.scale_by_controller(second)
    )
    changes, metrics, _ = drive(tx, LOSSES, learning_rate=LR)
    expected = (
        np.asarray(LR(np.arange(len(LOSSES)))) * scales(first, LOSSES) * scales(second, LOSSES)
    )
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)
    np.testing.assert_allclose(changes, expected, rtol=1e-5)


def test_each_group_of_parameters_has_its_own():
    quick, slow = ReduceOnPlateau(0.5, patience=0), ReduceOnPlateau(0.1, patience=3)
    tx = optax.partition(
        {
            "w": optax.chain(optax.sgd(LR), transforms.scale_by_controller(quick)),
            "b": optax.chain(optax.sgd(0.1), transforms.scale_by_controller(slow)),
            "rest": optax.sgd(0.1),
        },
        {"w": "w", "b": "b"},
    )
    changes, metrics, _ = drive(tx, LOSSES, learning_rate=LR)
    np.testing.assert_allclose(metrics["scale/w"], scales(quick, LOSSES), rtol=1e-6)
    np.testing.assert_allclose(metrics["scale/b"], scales(slow, LOSSES), rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], LR(np.arange(len(LOSSES))), rtol=1e-6)
    np.testing.assert_allclose(changes, metrics["learning_rate"] * metrics["scale/w"], rtol=1e-5)


def test_a_mask_leaves_the_others_as_they_are():
    plateau = ReduceOnPlateau(0.5, patience=0)
    tx = optax.masked(transforms.scale_by_controller(plateau), {"w": True, "b": False})
    gradient = {"w": jnp.ones(3), "b": jnp.ones(())}
    state = tx.init(PARAMS)
    for loss in (1.0, 1.0):
        updates, state = tx.update(gradient, state, PARAMS, value=loss)
    np.testing.assert_array_equal(updates["w"], 0.5)
    np.testing.assert_array_equal(updates["b"], 1.0)


def test_accumulating_shows_it_the_mean_of_the_window():
    plateau = ReduceOnPlateau(0.5, patience=0)
    windows = np.array([[9.0, 1.0], [6.0, 2.0], [0.0, 7.0], [7.0, 1.0], [1.0, 4.0]])
    tx = optax.chain(optax.sgd(1.0), transforms.scale_by_controller(plateau))
    step = training.make_step(apply, given_loss, tx, accumulate=2, learning_rate=1.0)
    state, found = start(tx), []
    for window in windows:
        state, metrics = step(state, {"loss": jnp.asarray(window, jnp.float32)})
        found.append(float(metrics["learning_rate"]))
    np.testing.assert_array_equal(found, scales(plateau, windows.mean(1)))
    assert found == [1, 1, 1, 0.5, 0.5]


class TestMultiSteps:
    plateau = ReduceOnPlateau(0.5, patience=0)

    def tx(self, k=3, **options):
        inner = optax.chain(optax.sgd(1.0), transforms.scale_by_controller(self.plateau))
        return transforms.mean_value(optax.MultiSteps(inner, every_k_schedule=k, **options))

    @pytest.mark.parametrize("k", [1, 3])
    def test_it_sees_the_mean_of_the_window(self, k):
        rng = np.random.default_rng(0)
        losses = rng.integers(0, 9, (8, k)).astype(float)
        changes, metrics, _ = drive(self.tx(k), losses.ravel(), learning_rate=1.0)
        expected = scales(self.plateau, losses.mean(1))
        np.testing.assert_allclose(changes.reshape(-1, k)[:, -1], expected, rtol=1e-6)
        np.testing.assert_array_equal(changes.reshape(-1, k)[:, :-1], 0)
        np.testing.assert_allclose(
            metrics["learning_rate"].reshape(-1, k)[:, -1], expected, rtol=1e-6
        )

    def test_a_rejected_micro_batch_is_left_out(self):
        tx = self.tx(2, should_skip_update_fn=optax.skip_not_finite)
        gradient, state, seen = {"w": jnp.ones(3), "b": jnp.ones(())}, tx.init(PARAMS), []
        update = jax.jit(tx.update)
        for loss in (4.0, None, 2.0, None, 5.0, 3.0, 1.0, None, 1.0):
            broken = jax.tree.map(lambda g: g * jnp.nan, gradient)
            updates, state = update(
                broken if loss is None else gradient,
                state,
                PARAMS,
                value=jnp.float32(9 if loss is None else loss),
            )
            if loss is not None:
                seen.append(float(updates["w"][0]))
        np.testing.assert_array_equal(seen, [0, -1, 0, -0.5, 0, -0.5])  # means 3, 4, 1

    def test_a_step_that_is_skipped_leaves_the_window_as_it_was(self):
        losses = [4.0, np.nan, 2.0, 5.0, 3.0]
        changes, metrics, _ = drive(self.tx(2), losses, learning_rate=1.0)
        np.testing.assert_array_equal(changes, [0, 0, 1, 0, 0.5])
        np.testing.assert_array_equal(metrics["skipped"], [0, 1, 0, 0, 0])

    def test_without_the_wrapper_it_is_an_error_and_not_the_last_loss(self):
        inner = optax.chain(optax.sgd(1.0), transforms.scale_by_controller(self.plateau))
        tx = optax.MultiSteps(inner, every_k_schedule=2).gradient_transformation()
        with pytest.raises(ValueError, match=r"transforms\.mean_value"):
            drive(tx, [1.0])

    def test_averaged_outside_is_another_way(self):
        averaged = Averaged(self.plateau, window=3)
        tx = optax.chain(
            optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation(),
            transforms.scale_by_controller(averaged),
        )
        losses = np.random.default_rng(1).integers(0, 9, (8, 3)).astype(float)
        changes, _, _ = drive(tx, losses.ravel())
        np.testing.assert_allclose(changes[2::3], scales(self.plateau, losses.mean(1)), rtol=1e-6)


def test_a_skipped_update_leaves_the_controller_as_it_was():
    tx = optax.chain(
        optax.sgd(1.0), transforms.scale_by_controller(ReduceOnPlateau(0.5, patience=0))
    )
    step = training.make_step(apply, given_loss, tx, learning_rate=1.0)
    state = start(tx)
    for loss in (3.0, 3.0):
        state, _ = step(state, {"loss": jnp.float32([loss])})
    before = jax.tree.map(np.asarray, state.opt_state)
    for bad in (np.nan, np.inf, -np.inf):
        state, metrics = step(state, {"loss": jnp.float32([bad])})
        assert metrics["skipped"] == 1
        assert metrics["learning_rate"] == 0.5
        chex.assert_trees_all_equal(before, state.opt_state)


def test_with_keep_the_controller_counts_what_is_not_finite():
    tx = optax.chain(
        optax.sgd(1.0), transforms.scale_by_controller(ReduceOnPlateau(0.5, patience=5))
    )
    _, _, state = drive(tx, [3.0, np.inf, -np.inf, 2.0], on_nonfinite="keep")
    controller = state.opt_state[1].controller
    assert controller.nonfinite == 2
    assert controller.best == 2


def test_scans_and_vmaps_over_its_numbers():
    def tx(hyper):
        return optax.chain(optax.sgd(0.1), transforms.scale_by_controller(hyper))

    step = training.make_step(apply, loss_fn, tx, learning_rate=0.1)
    batch = jax.tree.map(jnp.asarray, problem())

    def run(factor, patience):
        state = start(tx, hyper=ReduceOnPlateau(factor, patience=patience, threshold=0.05))

        def one(state, _):
            state, metrics = step.body(state, batch)
            return state, metrics["learning_rate"]

        return jax.lax.scan(one, state, length=60)[1]

    factors, patiences = jnp.array([0.5, 0.9, 0.1]), jnp.array([2, 0, 5])
    together = jax.jit(jax.vmap(run))(factors, patiences)
    apart = jnp.stack([run(f, p) for f, p in zip(factors, patiences, strict=True)])
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    assert (together[:, -1] < 0.1).all()


def test_low_precision_updates_keep_their_type_and_the_scale_its_digits():
    tx = transforms.scale_by_controller(ReduceOnPlateau(0.9, patience=0))
    gradient = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.array(3)}
    state, update = tx.init(gradient), jax.jit(tx.update)
    for _ in range(40):
        updates, state = update(gradient, state, value=jnp.float32(1))
    assert updates["w"].dtype == jnp.bfloat16
    assert updates["n"] == 3
    np.testing.assert_allclose(state.scale, 0.9**39, rtol=1e-5)  # in bfloat16, as in Optax, 7 % off
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype(t) for t in ("float32", "int32", "bool")
    }


def test_runs_with_64_bits():
    with jax.enable_x64(True):
        control = transforms.scale_by_controller(
            Averaged(ReduceOnPlateau(0.5, patience=1), window=2)
        )
        tx = transforms.mean_value(optax.MultiSteps(optax.chain(optax.sgd(0.1), control), 2))
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        state = training.init(apply, tx, key=jax.random.key(0), params=params)
        step = training.make_step(apply, loss_fn, tx, learning_rate=0.1)
        data = training.ArrayData(
            {n: v.astype(np.float64) for n, v in problem().items()}, 16, jax.random.key(5)
        )
        state, history = training.fit(step, state, data, steps=80, log_every=20)
        assert state.params["w"].dtype == jnp.float64
        assert history["learning_rate"][-1] < 0.1


def test_the_state_is_arrays_and_goes_to_disk_and_back(tmp_path):
    tx = optax.chain(optax.adam(0.1), transforms.scale_by_controller(Greedy(0.5, patience=0)))
    step = training.make_step(apply, loss_fn, tx, learning_rate=0.1, donate=False)
    state = start(tx)
    for _ in range(5):
        state, _ = step(state, problem())
    leaves, structure = jax.tree.flatten(state.opt_state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as file:
        again = state.replace(
            opt_state=jax.tree.unflatten(structure, [jnp.asarray(file[name]) for name in file])
        )
    one, two = step(state, problem())[0], step(again, problem())[0]
    chex.assert_trees_all_equal(one.opt_state, two.opt_state)


class TestControlOn:
    plateau = ReduceOnPlateau(0.5, patience=0)
    values = (3.0, 2.0, 2.0, np.nan, 1.0, 1.5, 0.5, 0.25)

    tx = optax.chain(optax.sgd(LR), transforms.scale_by_controller(plateau))
    step = training.make_step(
        apply, loss_fn, tx, learning_rate=LR
    )  # one for all tests: it keeps its programs
    data = training.ArrayData(problem(), 16, jax.random.key(5))

    def evaluate(self, state):
        return {"val_loss": self.values[int(state.step) // 10 % 8 - 1], "val_other": 1.0}

    def fit(self, state=None, steps=80, **options):
        state = start(self.tx) if state is None else state
        options = {
            "control_on": "val_loss",
            "eval_every": 10,
            "eval_fn": self.evaluate,
            "log_every": 5,
            **options,
        }
        return training.fit(self.step, state, self.data, steps=steps, **options)

    def test_the_metric_drives_it_from_the_next_update_on(self):
        _, history = self.fit()
        heard = scales(self.plateau, self.values)
        expected = np.repeat([1.0, *heard[:-1]], 2) * np.asarray(LR(history["step"] - 1))
        np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-6)
        np.testing.assert_array_equal(history["val_loss"], self.values)

    @pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 7}, {"log_every": 13}])
    def test_the_result_depends_on_neither_chunk_nor_log_interval(self, options):
        one, two = (self.fit(**o)[0] for o in ({}, options))
        chex.assert_trees_all_equal((one.params, one.opt_state), (two.params, two.opt_state))

    def test_goes_on_where_it_stopped(self):
        whole, _ = self.fit()
        state, _ = self.fit(steps=30)
        state, _ = self.fit(state, steps=50)
        chex.assert_trees_all_equal(whole.opt_state, state.opt_state)

    def test_nothing_is_compiled_on_a_cut(self, compilations):
        state, _ = self.fit(steps=20, chunk=5)
        compilations.clear()
        state, history = self.fit(state, steps=60, chunk=5)
        assert history["learning_rate"][-1] < 0.1
        assert compilations == []

    def test_the_next_fit_without_it_listens_to_the_loss_again(self):
        state, _ = self.fit(steps=20)
        best = float(state.opt_state[1].controller.best)
        assert best == 3.0  # 2.0 is waiting for an update
        state, history = training.fit(self.step, state, self.data, steps=5, log_every=1)
        heard = scales(self.plateau, [best, *history["loss"]])
        assert len(set(heard)) > 1
        assert float(state.opt_state[1].scale) == heard[-1]
        assert float(state.opt_state[1].controller.best) == min(best, *history["loss"])
        assert not state.opt_state[1].external

    def test_in_a_group_and_inside_multi_steps(self):
        inner = optax.partition({"a": self.tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"})
        tx = transforms.mean_value(optax.MultiSteps(inner, 2))
        step = training.make_step(apply, loss_fn, tx)
        _, history = training.fit(
            step,
            start(tx),
            self.data,
            steps=80,
            log_every=10,
            control_on="val_loss",
            eval_every=10,
            eval_fn=self.evaluate,
        )
        np.testing.assert_array_equal(
            history["scale/a"], [1.0, *scales(self.plateau, self.values)[:-1]]
        )

    def test_a_skipped_update_keeps_the_metric_waiting(self):
        state, _ = self.fit(steps=20)
        bad = {"x": problem()["x"], "y": problem()["y"] * np.nan}
        state, _ = self.step(state, bad)
        assert state.opt_state[1].waiting
        state, _ = self.step(state, problem())
        assert not state.opt_state[1].waiting
        assert state.opt_state[1].controller.best == 2.0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"control_on": "val_los"},
                r"`control_on` must be one of val_loss, val_other, got 'val_",
            ),
            ({"control_on": "loss"}, "`control_on`"),
            ({"control_on": 3}, "`control_on`"),
            ({"eval_every": None}, "`eval_every`"),
            ({"eval_fn": None}, "`eval_fn`"),
        ],
    )
    def test_refusals(self, options, words):
        with pytest.raises(ValueError, match=words):
            self.fit(**options)

    def test_an_optimizer_without_a_controller_is_refused(self):
        tx = optax.sgd(0.1)
        options = {"control_on": "val_loss", "eval_every": 1, "eval_fn": self.evaluate}
        step = training.make_step(apply, loss_fn, tx)
        with pytest.raises(ValueError, match="`control_on` must be None for an optimizer without"):
            training.fit(step, start(tx), self.data, steps=5, **options)


def test_a_loss_driven_cut_is_traced_once(compilations):
    counting = chex.assert_max_traces(loss_fn, n=1)
    tx = optax.chain(
        optax.sgd(0.1), transforms.scale_by_controller(ReduceOnPlateau(0.5, patience=1))
    )
    step = training.make_step(apply, counting, tx, learning_rate=0.1)
    data = training.ArrayData(problem(), 16, jax.random.key(5))
    state, _ = training.fit(step, start(tx), data, steps=20, log_every=10, chunk=10)
    compilations.clear()
    state, history = training.fit(step, state, data, steps=200, log_every=10, chunk=10)
    assert history["learning_rate"][-1] < 0.01
    assert compilations == []


class TestHypergradientDescent:
    def test_is_the_rule_of_baydin_for_sgd(self):
        batch, rate, beta = problem(), 0.02, 1e-3
        tx = transforms.hypergradient_descent(
            optax.sgd(rate),
            HypergradientDescent(beta / rate**2, rule="additive", init_scale=1.0, max_scale=1e6),
        )
        step = training.make_step(apply, loss_fn, tx, learning_rate=rate)
        state, params, alpha, last = start(tx), dict(PARAMS), rate, None
        for _ in range(20):
            gradient = jax.grad(lambda p: loss_fn(lambda x: apply(p, x), batch))(params)
            if last is not None:
                alpha += beta * float(optax.tree.vdot(gradient, last))
            params = jax.tree.map(lambda p, g, a=alpha: p - a * g, params, gradient)
            last = gradient
            state, metrics = step(state, batch)
            np.testing.assert_allclose(metrics["learning_rate"], alpha, rtol=1e-4)
        np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-4)

    @pytest.mark.parametrize(
        "inner", [optax.adam(LR), optax.sgd(0.1, momentum=0.9)], ids=["adam", "momentum"]
    )
    def test_its_metric_is_the_derivative_of_the_loss_by_the_scale(self, inner):
        batch, control = problem(), HypergradientDescent(0.1, rule="additive", init_scale=0.5)
        tx = transforms.hypergradient_descent(inner, control)
        params, state = PARAMS, tx.init(PARAMS)

        def loss(params):
            return loss_fn(lambda x: apply(params, x), batch)

        for _ in range(4):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradient, state, params, value=value)
            before, params = params, optax.apply_updates(params, updates)

        def of_scale(scale):
            return loss(jax.tree.map(lambda p, u: p + scale * u, before, state.previous))

        slope = jax.grad(of_scale)(state.control.scale)
        _, after = tx.update(jax.grad(loss)(params), state, params)
        np.testing.assert_allclose(
            after.control.scale - state.control.scale, -0.1 * slope, rtol=1e-3
        )

    def test_in_groups_and_windows(self):
        tuned = transforms.hypergradient_descent(
            optax.sgd(0.01), HypergradientDescent(0.1, init_scale=1.0)
        )
        tx = optax.MultiSteps(
            optax.partition({"a": tuned, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}), 2
        ).gradient_transformation()
        step = training.make_step(apply, loss_fn, tx)
        state, found = start(tx), []
        for _ in range(8):
            state, metrics = step(state, problem())
            found.append(float(metrics["scale/a"]))
        assert found[1] == found[2] == 1
        assert found[3] > 1
        assert found[3] == found[4]

    def test_survives_what_is_not_finite_and_zero_gradients(self):
        tx = transforms.hypergradient_descent(
            optax.sgd(0.1), HypergradientDescent(0.1, init_scale=1.0)
        )
        state = tx.init(PARAMS)
        for value in (0.0, 1.0, 1.0, np.nan, 1.0):
            _, state = tx.update(jax.tree.map(lambda p, v=value: p + v, PARAMS), state, PARAMS)
        assert np.isfinite(state.control.scale)

    def test_a_rate_100x_too_small_or_10x_too_large_ends_within_a_point_of_the_tuned_one(self):
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)
        held = 360

        def network(params, x):
            return jnp.tanh(x @ params["a"]) @ params["c"]

        def cost(model, batch):
            return optax.softmax_cross_entropy_with_integer_labels(
                model(batch["x"]), batch["y"]
            ).mean()

        def accuracy(tx, rate, seed):
            one, two, three = jax.random.split(jax.random.key(seed), 3)
            params = {
                "a": jax.random.normal(one, (64, 32)) / 8,
                "c": jax.random.normal(two, (32, 10)) / 6,
            }
            step = training.make_step(network, cost, tx, donate=False)
            state = training.init(network, tx, key=one, params=params, hyper=rate)
            rows = jax.random.randint(three, (400, 64), held, len(x))
            state, _ = jax.lax.scan(
                lambda s, r: (step.body(s, {"x": x[r], "y": y[r]})[0], None), state, rows
            )
            return jnp.mean(network(state.params, x[:held]).argmax(-1) == y[:held])

        def mean_accuracy(tx, rates):
            pairs = [
                jnp.repeat(jnp.asarray(rates, jnp.float32), 3),
                jnp.tile(jnp.arange(3), len(rates)),
            ]
            found = jax.jit(lambda pairs: jax.lax.map(lambda pair: accuracy(tx, *pair), pairs))(
                pairs
            )
            return np.asarray(found).reshape(-1, 3).mean(1)

        rates = np.geomspace(3e-3, 0.3, 5)
        swept = mean_accuracy(optax.adam, rates)
        tuned = rates[swept.argmax()]
        learnt = mean_accuracy(
            lambda rate: transforms.hypergradient_descent(optax.adam(rate), HypergradientDescent()),
            [tuned / 100, tuned * 10],
        )
        assert (learnt > swept.max() - 0.01).all(), (swept, learnt)


def test_on_four_devices_it_is_the_same_and_compiled_once():
    code = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jax_lrreg import training, transforms
from jax_lrreg.schedules import ReduceOnPlateau
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
batch = {"x": x, "y": x.sum(1) + x[:, 0] ** 2}
loss = lambda model, b: jnp.mean((model(b["x"]) - b["y"]) ** 2)
tx = optax.chain(optax.sgd(0.1), transforms.scale_by_controller(ReduceOnPlateau(0.5, patience=1)))
rates, count = [], [0]
def hear(event, *_, **__):
    count[0] += "/jax/core/compile" in event
jax.monitoring.register_event_duration_secs_listener(hear)
for where in (None, NamedSharding(mesh, P())):
    options = {"key": jax.random.key(0), "params": jnp.zeros(3), "sharding": where}
    state = training.init(lambda p, x: x @ p, tx, **options)
    data = batch if where is None else jax.device_put(batch, NamedSharding(mesh, P("data")))
    step = training.make_step(lambda p, x: x @ p, loss, tx, learning_rate=0.1)
    evaluate = lambda state: {"val_loss": 1.0}
    state, _ = training.fit(step, state, [data] * 40, steps=40, chunk=1)
    options = dict(chunk=1, log_every=1, control_on="val_loss", eval_every=2, eval_fn=evaluate)
    state, _ = training.fit(step, state, [data] * 4, steps=4, **options)
    before = count[0]
    state, history = training.fit(step, state, [data] * 12, steps=12, **options)
    assert count[0] == before, count[0] - before
    assert history["learning_rate"][-1] < 0.1
    rates.append((history["learning_rate"], np.asarray(state.params)))
np.testing.assert_array_equal(rates[0][0], rates[1][0])
np.testing.assert_allclose(rates[0][1], rates[1][1], atol=1e-6)
print("same")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(4))
    assert done.stdout.strip() == "same", done.stderr[-2000:]


WRONG = [
    (TypeError, "`controller`", lambda: transforms.scale_by_controller(0.1)),
    (
        TypeError,
        "transforms.hypergradient_descent",
        lambda: transforms.scale_by_controller(HypergradientDescent()),
    ),
    (TypeError, "`inner`", lambda: transforms.hypergradient_descent(0.1, HypergradientDescent())),
    (
        TypeError,
        "`controller`",
        lambda: transforms.hypergradient_descent(optax.sgd(0.1), ReduceOnPlateau()),
    ),
    (TypeError, "`tx` must be an optax.MultiSteps", lambda: transforms.mean_value(optax.sgd(0.1))),
    (ValueError, "`value`", lambda: transforms.scale_by_controller(Greedy()).update({}, None)),
]


@pytest.mark.parametrize(("error", "words", "call"), WRONG, ids=[words for _, words, _ in WRONG])
def test_a_wrong_call_is_refused_by_name(error, words, call):
    with pytest.raises(error, match=words):
        call()
