import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import Cnn, apply, images, loss_fn, problem, start, zeros

from jax_lrreg import penalties, schedules, training
from jax_lrreg.training.program import program_of


class TestState:
    def test_holds_strongly_typed_arrays_only(self):
        state = start(optax.adam(0.1), hyper={"lr": 0.1, "steps": 5})
        for leaf in jax.tree.leaves(state):
            assert isinstance(leaf, jax.Array)
            assert not jax.typeof(leaf).weak_type
        assert state.step.dtype == jnp.int32
        assert state.hyper["steps"].dtype == jnp.int32

    def test_shares_nothing_with_what_it_was_made_of(self):
        batch, params = problem(), zeros()
        key = jax.random.key(0)
        state = training.init(apply, optax.sgd(0.1), key=key, params=params)
        step = training.make_step(apply, loss_fn, optax.sgd(0.1))
        step(state, batch)
        assert not params["w"].is_deleted()
        jax.random.normal(key)

    def test_goes_on_from_numpy_arrays_as_a_file_gives_them(self):
        tx, batch = optax.adam(0.1), problem()
        step = training.make_step(apply, loss_fn, tx)
        data = training.ArrayData(batch, 8, jax.random.key(1))
        state, _ = training.fit(step, start(tx), data, steps=5)
        saved = jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))
        expected, history = training.fit(step, state, data, steps=5, log_every=1)

        def restored():
            return saved.replace(key=jax.random.wrap_key_data(saved.key))

        assert isinstance(restored().step, np.ndarray)
        for go_on in (restored(), restored().copy()):
            found, same = training.fit(step, go_on, data, steps=5, log_every=1)
            chex.assert_trees_all_equal(found, expected)
            np.testing.assert_array_equal(same["loss"], history["loss"])
        used = restored()
        training.fit(step, used, data, steps=5)
        with pytest.raises(ValueError, match="`state` must be the latest one"):
            training.fit(step, used, data, steps=5)
        single, metrics = step(restored(), data(5))
        assert metrics["loss"] == history["loss"][0]
        assert int(single.step) == 6

    def test_the_step_donates_it(self):
        batch = problem()
        state = start(optax.sgd(0.1))
        training.make_step(apply, loss_fn, optax.sgd(0.1))(state, batch)
        assert state.params["w"].is_deleted()
        state = start(optax.sgd(0.1))
        training.make_step(apply, loss_fn, optax.sgd(0.1), donate=False)(state, batch)
        assert not state.params["w"].is_deleted()


class TestStep:
    def test_is_the_hand_written_update(self):
        batch, params = problem(), zeros()
        lr = schedules.Linear(0.1, steps=10)
        reg = penalties.L2(0.3) + penalties.L1(0.1).on("w")
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr))
        step = training.make_step(apply, loss_fn, tx, penalty=reg, learning_rate=lr)
        state, opt_state = start(tx), tx.init(params)
        for index in range(12):

            def total(p):
                return loss_fn(lambda x: apply(p, x), batch) + reg(p)

            loss, grads = jax.value_and_grad(total)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            state, metrics = step(state, batch)
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
            np.testing.assert_allclose(metrics["learning_rate"], lr(index), rtol=1e-6)
            np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)

    def test_accumulating_is_the_same_update_as_the_whole_batch(self):
        batch = problem()
        reg = penalties.L2(0.3)
        whole, _ = training.make_step(apply, loss_fn, optax.sgd(0.1), penalty=reg)(
            start(optax.sgd(0.1)), batch
        )
        for k in (2, 4):
            step = training.make_step(apply, loss_fn, optax.sgd(0.1), penalty=reg, accumulate=k)
            state, _ = step(start(optax.sgd(0.1)), batch)
            np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)
            assert int(state.step) == 1

    def test_accumulating_weighs_micro_batches_by_their_mask(self):
        batch = problem(8)
        batch["mask"] = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)

        def masked(model, batch):
            errors = (model(batch["x"]) - batch["y"]) ** 2
            return jnp.sum(errors * batch["mask"]) / jnp.sum(batch["mask"])

        whole, _ = training.make_step(apply, masked, optax.sgd(0.1))(start(optax.sgd(0.1)), batch)
        split, _ = training.make_step(apply, masked, optax.sgd(0.1), accumulate=2)(
            start(optax.sgd(0.1)), batch
        )
        np.testing.assert_allclose(split.params["w"], whole.params["w"], rtol=1e-6)

    @pytest.mark.parametrize("where", ["loss", "gradient", "micro-batch"])
    def test_a_nonfinite_update_leaves_everything_as_it_was_and_is_counted(self, where):
        batch = problem(8)
        tx = optax.adam(schedules.Linear(0.1, steps=10))
        step = training.make_step(
            apply,
            loss_fn,
            tx,
            learning_rate=schedules.Linear(0.1, steps=10),
            ema=0.9,
            accumulate=2 if where == "micro-batch" else 1,
        )
        state, _ = step(start(tx), batch)
        before = jax.tree.map(np.asarray, (state.params, state.opt_state, state.average))
        bad = {"x": batch["x"].copy(), "y": batch["y"].copy()}
        bad["x" if where == "gradient" else "y"][0] = np.inf if where == "gradient" else np.nan
        state, metrics = step(state, bad)
        assert metrics["skipped"] == 1
        chex.assert_trees_all_equal(before, (state.params, state.opt_state, state.average))
        assert int(state.step) == 2
        np.testing.assert_allclose(metrics["learning_rate"], 0.09, rtol=1e-6)
        state, metrics = step(state, batch)
        assert metrics["skipped"] == 0
        np.testing.assert_allclose(metrics["learning_rate"], 0.09, rtol=1e-6)
        assert np.isfinite(state.params["w"]).all()

    def test_raise_and_keep(self):
        batch = problem(8)
        batch["y"] = batch["y"].copy()
        batch["y"][0] = np.nan
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), on_nonfinite="raise")
        with pytest.raises(
            FloatingPointError, match=r"the update at step 0 is not finite .loss=nan"
        ):
            step(start(optax.sgd(0.1)), batch)
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), on_nonfinite="keep")
        state, metrics = step(start(optax.sgd(0.1)), batch)
        assert metrics["skipped"] == 0
        assert np.isnan(state.params["w"]).all()

    def test_the_reported_rate_is_the_applied_one_under_multi_steps(self):
        batch = problem(8)
        lr = schedules.Linear(1.0, steps=10)
        tx = optax.MultiSteps(optax.sgd(lr), every_k_schedule=2).gradient_transformation()
        step = training.make_step(apply, loss_fn, tx, learning_rate=lr)
        state, rates = start(tx), []
        for _ in range(6):
            state, metrics = step(state, batch)
            rates.append(float(metrics["learning_rate"]))
        np.testing.assert_allclose(rates, [1.0, 1.0, 0.9, 0.9, 0.8, 0.8], rtol=1e-6)

    def test_hyperparameters_are_data(self):
        batch = problem(8)
        counting = chex.assert_max_traces(loss_fn, n=1)

        def tx(hyper):
            return optax.sgd(hyper["lr"])

        step = training.make_step(
            apply,
            counting,
            tx,
            penalty=lambda hyper: hyper["reg"],
            learning_rate=lambda hyper: hyper["lr"],
        )
        hyper = {"lr": schedules.Linear(0.1, steps=10), "reg": penalties.L2(0.1)}
        state = start(tx, hyper=hyper)
        for strength in (0.1, 0.5, 1.0):
            state = state.replace(hyper={**state.hyper, "reg": penalties.L2(jnp.float32(strength))})
            weights = np.append(state.params["w"], state.params["b"])
            state, metrics = step(state, batch)
            np.testing.assert_allclose(
                metrics["penalty"], strength / 2 * (weights**2).sum(), atol=1e-6
            )

    def test_vmaps_over_states(self):
        batch, params = problem(8), zeros()

        def tx(hyper):
            return optax.sgd(hyper)

        step = training.make_step(apply, loss_fn, tx, learning_rate=lambda hyper: hyper)

        def run(rate):
            state = training.init(apply, tx, key=jax.random.key(0), params=params, hyper=rate)
            return step.body(state, batch)[0].params["w"]

        rates = jnp.array([0.01, 0.1])
        each = jnp.stack([run(rate) for rate in rates])
        np.testing.assert_allclose(jax.vmap(run)(rates), each, rtol=1e-6)

    def test_extra_arguments_reach_the_optimizer(self):
        batch = problem(8)
        for tx in (
            optax.polyak_sgd(),
            optax.lbfgs(),
            optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
        ):
            _, metrics = training.make_step(apply, loss_fn, tx)(start(tx), batch)
            assert metrics["skipped"] == 0

    def test_monitors(self):
        batch = problem(8)
        step = training.make_step(
            apply, loss_fn, optax.sgd(0.1), monitors=("param_norm", "update_norm")
        )
        _, metrics = step(start(optax.sgd(0.1)), batch)
        np.testing.assert_allclose(
            metrics["param_norm"], metrics["update_norm"], rtol=1e-6
        )  # it began at 0
        assert metrics["update_norm"] > 0
        assert "grad_norm" not in metrics

    def test_ema(self):
        batch = problem(8)
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), ema=0.9)
        first = start(optax.sgd(0.1))
        state, _ = step(first, batch)
        chex.assert_trees_all_close(training.averaged(state).params, state.params, rtol=1e-6)
        before, (state, _) = jax.device_get(state.params["w"]), step(state, batch)
        wanted = (0.9 * before + np.asarray(state.params["w"])) / 1.9  # of weights that sum to 1
        np.testing.assert_allclose(training.averaged(state).params["w"], wanted, rtol=1e-5)


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        return (
            nn.Dropout(0.5, deterministic=False)(x) + nn.Dropout(0.5, deterministic=False)(x) * 100
        )


def test_every_step_and_layer_has_its_own_key():
    step = training.make_step(
        Dropping(), lambda model, x: (jnp.zeros(()), {"sum": model(x).sum()}), optax.sgd(0.1)
    )
    state = training.init(Dropping(), optax.sgd(0.1), key=jax.random.key(0), example=jnp.ones(32))
    sums = []
    for _ in range(4):
        state, metrics = step(state, jnp.ones(32))
        sums.append(float(metrics["sum"]))
    assert len(set(sums)) == 4
    assert sums[0] % 202 != 0


class TestFit:
    lr = schedules.Cosine(0.1, steps=90)
    data = training.ArrayData(problem(), 16, jax.random.key(5))

    def make(self):
        tx, reg = optax.adam(self.lr), penalties.L1(0.01)
        step = training.make_step(apply, loss_fn, tx, penalty=reg, learning_rate=self.lr)
        return step, start(tx)

    def run(self, chunk="auto", steps=90, data=None, **options):
        step, state = self.make()
        data = self.data if data is None else data
        return training.fit(step, state, data, steps=steps, chunk=chunk, **options)

    @pytest.mark.parametrize("chunk", [1, 7, 100, "auto"])
    def test_the_result_does_not_depend_on_the_chunk(self, chunk):
        state, history = self.run(13, log_every=40)
        other, others = self.run(chunk, log_every=40)
        chex.assert_trees_all_equal(state, other)
        chex.assert_trees_all_equal(dict(history), dict(others))

    def test_is_the_loop_written_by_hand(self):
        (step, state), losses = self.make(), []
        for index in range(90):
            state, metrics = step(state, self.data(index))
            losses.append(float(metrics["loss"]))
        other, history = self.run(log_every=30)
        np.testing.assert_allclose(other.params["w"], state.params["w"], rtol=1e-5)
        np.testing.assert_allclose(history["loss"], np.reshape(losses, (3, 30)).mean(1), rtol=1e-5)

    def test_goes_on_where_it_stopped(self):
        whole, _ = self.run(steps=90)
        step, state = self.make()
        for steps in (31, 59):
            state, _ = training.fit(step, state, self.data, steps=steps)
        chex.assert_trees_all_equal(whole, state)

    def test_traces_once(self):
        batch = problem()
        counting = chex.assert_max_traces(loss_fn, n=1)

        step = training.make_step(apply, counting, optax.sgd(0.01))
        data = training.ArrayData(batch, 16, jax.random.key(5))
        state = start(optax.sgd(0.01))
        state, _ = training.fit(
            step, state, data, steps=97, chunk=10, log_every=25, eval_every=33, eval_fn=lambda s: {}
        )
        state, _ = training.fit(step, state, data, steps=97, chunk=10, log_every=25)

    def test_takes_any_iterable(self):
        batch = problem()
        data = training.ArrayData(batch, 16, jax.random.key(5))
        state, history = self.run(7, data=(data(step) for step in range(200)), steps=90)
        other, others = self.run(7, data=data)
        np.testing.assert_allclose(state.params["w"], other.params["w"], rtol=1e-6)
        np.testing.assert_allclose(history["loss"], others["loss"], rtol=1e-6)

    def test_counts_skipped_updates_and_leaves_them_out_of_the_mean(self):
        batch = problem()
        data = training.ArrayData(batch, 16, jax.random.key(5))

        def batches():
            for index in range(40):
                bad = data(index)
                if index % 10 == 3:
                    bad = {"x": bad["x"], "y": np.full_like(bad["y"], np.nan)}
                yield bad

        state, history = self.run(data=batches(), steps=40, log_every=20)
        np.testing.assert_array_equal(history["skipped"], [2, 2])
        assert np.isfinite(history["loss"]).all()
        assert int(state.step) == 40

    def test_raises_by_name_when_an_update_is_not_finite(self):
        batch = problem()
        data = training.ArrayData(
            {"x": batch["x"], "y": batch["y"] * np.nan}, 16, jax.random.key(5)
        )
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), on_nonfinite="raise")
        with pytest.raises(FloatingPointError, match="update at step 0 and 9 of the 9 after it"):
            training.fit(step, start(optax.sgd(0.1)), data, steps=10)

    def test_progress_prints_plain_lines_without_a_terminal(self, capsys):
        self.run(steps=40, log_every=20, progress=True)
        lines = capsys.readouterr().out.strip().splitlines()
        assert len(lines) == 2
        assert lines[-1].startswith("step 40/40  loss ")
        assert "steps/s" in lines[-1]
        self.run(steps=40, log_every=20)
        assert capsys.readouterr().out == ""

    def test_loggers_get_every_entry(self):
        seen = []
        self.run(
            steps=40,
            log_every=20,
            loggers=[lambda step, metrics: seen.append((step, metrics["loss"]))],
        )
        assert [step for step, _ in seen] == [20, 40]

    @pytest.mark.parametrize("accumulate", [1, 4])
    def test_convolutions_on_the_cpu_are_not_looped(self, accumulate):
        arrays = images()
        data = training.ArrayData(arrays, 8, jax.random.key(1))
        step = training.make_step(Cnn(), loss_fn, optax.sgd(0.01), accumulate=accumulate)
        state = training.init(
            Cnn(), optax.sgd(0.01), key=jax.random.key(0), example=arrays["x"][:1]
        )
        loops = jax.default_backend() != "cpu"

        def compiled(step):
            kinds = {"many": True, "one": False}
            return {name for name in kinds if program_of(step, kinds[name])._cache_size()}

        assert (" while(" in step.body.lower(state, data(0)).compile().as_text()) == (
            loops and accumulate > 1
        )
        state, history = training.fit(step, state, data, steps=12, log_every=6)
        assert compiled(step) == {"many" if loops else "one"}
        assert history["loss"][-1] < history["loss"][0]
        again = training.init(
            Cnn(), optax.sgd(0.01), key=jax.random.key(0), example=arrays["x"][:1]
        )
        again, _ = training.fit(step, again, data, steps=12, log_every=6, chunk=1)
        if not loops:
            chex.assert_trees_all_equal(state, again)
            assert compiled(step) == {"one"}

    def test_what_has_no_convolution_is_looped_by_accumulation(self):
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), accumulate=4)
        assert " while(" in step.body.lower(start(optax.sgd(0.1)), problem()).compile().as_text()


class TestErrors:
    """What is left of a run that an error ends."""

    def parts(self, **options):
        batch = problem()
        step = training.make_step(apply, loss_fn, optax.sgd(0.1), **options)
        return step, start(optax.sgd(0.1)), training.ArrayData(batch, 16, jax.random.key(5))

    def test_a_single_step_that_raises_hands_over_the_state(self):
        step, state, data = self.parts(on_nonfinite="raise")
        state, _ = step(state, data(0))
        before = state.copy()
        with pytest.raises(FloatingPointError, match="not finite") as caught:
            step(state, jax.tree.map(lambda x: x * np.nan, data(1)))
        left = caught.value.state
        chex.assert_trees_all_equal(left.params, before.params)
        assert int(left.step) == 2
        state, metrics = step(left, data(2))
        assert np.isfinite(metrics["loss"])

    def test_the_history_and_the_entry_that_waited_are_kept(self):
        step, state, data = self.parts()
        seen = []

        def ends(state):
            raise RuntimeError("no evaluation")

        with pytest.raises(RuntimeError, match="no evaluation") as caught:
            training.fit(
                step,
                state,
                data,
                steps=30,
                log_every=10,
                eval_fn=ends,
                loggers=[lambda now, _: seen.append(now)],
            )
        assert seen == caught.value.history["step"].tolist() == [10, 20, 30]
        step, state, data = self.parts()

        def batches():
            yield from (data(index) for index in range(25))
            raise RuntimeError("no batch")

        with pytest.raises(RuntimeError, match="no batch") as caught:
            training.fit(step, state, batches(), steps=50, log_every=10)
        assert caught.value.history["step"].tolist() == [10, 20]
        assert int(caught.value.state.step) == 25

    def test_a_logger_that_fails_is_asked_once_for_an_entry(self):
        step, state, data = self.parts()
        seen = []

        def full(now, _):
            seen.append(now)
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            training.fit(step, state, data, steps=50, log_every=10, loggers=[full])
        assert seen == sorted(set(seen))

    def test_names_of_evaluations_are_checked_at_the_first(self):
        step, state, data = self.parts()
        calls = []

        def clashing(state):
            calls.append(1)
            return {"grad_norm": 1.0}

        with pytest.raises(ValueError, match="`eval_fn`"):
            training.fit(step, state, data, steps=50, log_every=50, eval_every=5, eval_fn=clashing)
        assert len(calls) == 1
        named = training.make_step(
            apply, lambda m, b: (loss_fn(m, b), {"accuracy": 1.0 * m(b["x"])[0]}), optax.sgd(0.1)
        )
        with pytest.raises(
            ValueError, match=r"names differ from the training metrics'.*got 'accuracy'"
        ):
            training.fit(
                named,
                start(optax.sgd(0.1)),
                data,
                steps=50,
                log_every=50,
                eval_every=5,
                eval_fn=lambda _: {"accuracy": 1},
            )
        values = iter([{"v": 1.0, "best": 1.0}, {"v": 1.0}])
        with pytest.raises(ValueError, match="the same names each time"):
            training.fit(
                step,
                start(optax.sgd(0.1)),
                data,
                steps=20,
                eval_every=5,
                eval_fn=lambda _: next(values),
            )
        with pytest.raises(TypeError, match="`eval_fn`"):
            training.fit(step, start(optax.sgd(0.1)), data, steps=5, eval_fn=lambda _: {"v": "x"})


def test_an_evaluation_counts_padded_batches_by_their_mask():
    values = np.arange(10.0, dtype=np.float32)
    state = training.init(
        lambda p, x: x, optax.sgd(1.0), key=jax.random.key(0), params=jnp.zeros(1)
    )
    given = [{"x": values[:4]}, {"x": values[4:8]}, {"x": values[8:]}]

    def mean(model, batch):
        return {"v": jnp.sum(model(batch["x"]) * batch["mask"]) / jnp.sum(batch["mask"])}

    evaluate = training.make_eval(
        lambda p, x: x, mean, list(training.Stream(given, remainder="pad"))
    )
    assert evaluate(state) == {"v": pytest.approx(4.5)}
    nothing = [
        {"x": values[:4], "mask": np.zeros(4, np.float32)},
        {"x": values[:4], "mask": np.ones(4, np.float32)},
    ]
    assert training.make_eval(lambda p, x: x, mean, nothing)(state) == {"v": pytest.approx(1.5)}
    plain = training.make_eval(
        lambda p, x: x, lambda model, batch: {"v": model(batch["x"]).mean()}, given
    )
    assert plain(state) == {"v": pytest.approx(4.5)}
    for wrong in ({"x": values}, values):
        with pytest.raises(TypeError, match="make_eval: `data`"):
            training.make_eval(lambda p, x: x, mean, wrong)


class TestArrayData:
    def test_a_batch_is_a_pure_function_of_key_and_step(self):
        def make(seed):
            return training.ArrayData({"i": np.arange(10)}, 3, jax.random.key(seed))

        one, two = make(0), make(0)
        for step in (7, 0, 5, 7):
            np.testing.assert_array_equal(one(step)["i"], two(step)["i"])
        assert not np.array_equal(make(1)(0)["i"], one(0)["i"])

    def test_an_epoch_holds_every_example_once_in_its_own_order(self):
        data = training.ArrayData({"i": np.arange(12)}, 3, jax.random.key(0))
        epochs = [
            np.concatenate([data(4 * epoch + b)["i"] for b in range(4)]) for epoch in range(3)
        ]
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
        assert not np.array_equal(epochs[0], epochs[1])

    def test_remainders(self):
        drop = training.ArrayData({"i": np.arange(10)}, 4, jax.random.key(0))
        assert drop.steps_per_epoch == 2
        pad = training.ArrayData({"i": np.arange(10)}, 4, jax.random.key(0), remainder="pad")
        assert pad.steps_per_epoch == 3
        batches = [pad(step) for step in range(3)]
        real = np.concatenate([b["i"][b["mask"] == 1] for b in batches])
        np.testing.assert_array_equal(np.sort(real), np.arange(10))
        assert sum(b["mask"].sum() for b in batches) == 10
        plain = training.ArrayData(np.arange(10), 5, shuffle=False)
        np.testing.assert_array_equal(plain(1), np.arange(5, 10))


def model_of(value):
    return lambda model, batch: value


_DATA = problem()
_STEP = training.make_step(apply, loss_fn, optax.sgd(0.1))
_FIT = {"step": _STEP, "data": training.ArrayData(_DATA, 16, jax.random.key(0)), "steps": 5}
WRONG = [
    (TypeError, "`module`", lambda: training.init(3, optax.sgd(0.1), key=jax.random.key(0))),
    (ValueError, "`key`", lambda: training.init(apply, optax.sgd(0.1), key=0, params=1.0)),
    (TypeError, "`params`", lambda: training.init(apply, optax.sgd(0.1), key=jax.random.key(0))),
    (
        TypeError,
        "`example`",
        lambda: training.init(nn.Dense(1), optax.sgd(0.1), key=jax.random.key(0)),
    ),
    (
        TypeError,
        "`tx` must be",
        lambda: training.init(apply, 0.1, key=jax.random.key(0), params=1.0),
    ),
    (
        ValueError,
        "`hyper`",
        lambda: training.init(apply, optax.sgd, key=jax.random.key(0), params=1.0),
    ),
    (
        ValueError,
        "`accumulate`",
        lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), accumulate=0),
    ),
    (
        ValueError,
        "`on_nonfinite`",
        lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), on_nonfinite="stop"),
    ),
    (ValueError, "`ema`", lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), ema=1.0)),
    (
        ValueError,
        "`monitors`",
        lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), monitors=("norm",)),
    ),
    (
        TypeError,
        "`penalty`",
        lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), penalty=0.1),
    ),
    (ValueError, "returns a real scalar", lambda: one_step(model_of(jnp.ones(2)))),
    (ValueError, "returns a real scalar", lambda: one_step(model_of(jnp.array(1)))),
    (ValueError, "other names", lambda: one_step(model_of((jnp.zeros(()), {"penalty": 1.0})))),
    (ValueError, "a scalar", lambda: one_step(model_of((jnp.zeros(()), {"all": jnp.ones(3)})))),
    (TypeError, "metric 'name'", lambda: one_step(model_of((jnp.zeros(()), {"name": "text"})))),
    (ValueError, "`accumulate`=3", lambda: one_step(loss_fn, accumulate=3)),
    (
        TypeError,
        "`step`",
        lambda: training.fit(**{**_FIT, "step": loss_fn}, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`steps`",
        lambda: training.fit(**{**_FIT, "steps": 0}, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`steps`",
        lambda: training.fit(**{**_FIT, "steps": 2.5}, state=start(optax.sgd(0.1))),
    ),
    (ValueError, "`chunk`", lambda: training.fit(**_FIT, chunk="big", state=start(optax.sgd(0.1)))),
    (
        ValueError,
        "`log_every`",
        lambda: training.fit(**_FIT, log_every=0, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`eval_every`",
        lambda: training.fit(**_FIT, eval_every=-1, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`eval_fn`",
        lambda: training.fit(**_FIT, eval_every=1, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`eval_fn`",
        lambda: training.fit(**_FIT, eval_fn=lambda s: {"loss": 1}, state=start(optax.sgd(0.1))),
    ),
    (TypeError, "`data`", lambda: training.fit(**{**_FIT, "data": 3}, state=start(optax.sgd(0.1)))),
    (
        ValueError,
        "ended after 1",
        lambda: training.fit(**{**_FIT, "data": iter([_DATA])}, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "`data` must be at least",
        lambda: training.fit(**{**_FIT, "data": [_DATA]}, state=start(optax.sgd(0.1))),
    ),
    (TypeError, "`state` must be a State", lambda: training.fit(**_FIT, state={"params": 1})),
    (
        TypeError,
        "`monitors`",
        lambda: training.make_step(apply, loss_fn, optax.sgd(0.1), monitors=3),
    ),
    (
        ValueError,
        "`penalty` must be finite",
        lambda: training.make_step(
            apply,
            loss_fn,
            optax.sgd(0.1),
            penalty=penalties.L2(0.1) + penalties.NonNegative().on("w"),
        ),
    ),
    (
        ValueError,
        "`data`",
        lambda: training.fit(**{**_FIT, "data": []}, state=start(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "batch 1 of `data`",
        lambda: training.fit(
            **{**_FIT, "data": iter([_DATA, jax.tree.map(lambda x: x[:3], _DATA)])},
            state=start(optax.sgd(0.1)),
        ),
    ),
    (ValueError, "`batch_size`", lambda: training.ArrayData(_DATA, 0, jax.random.key(0))),
    (ValueError, "`batch_size`", lambda: training.ArrayData(_DATA, 65, jax.random.key(0))),
    (
        ValueError,
        "`batch_size`",
        lambda: training.ArrayData(_DATA, 7, jax.random.key(0), remainder="error"),
    ),
    (
        ValueError,
        "`remainder`",
        lambda: training.ArrayData(_DATA, 7, jax.random.key(0), remainder="wrap"),
    ),
    (ValueError, "`key`", lambda: training.ArrayData(_DATA, 7)),
    (ValueError, "`arrays`", lambda: training.ArrayData({}, 7, jax.random.key(0))),
    (
        ValueError,
        "`arrays`",
        lambda: training.ArrayData({"x": np.ones(3), "y": np.ones(4)}, 1, jax.random.key(0)),
    ),
    (
        ValueError,
        "`arrays`",
        lambda: training.ArrayData(np.ones(3), 2, jax.random.key(0), remainder="pad"),
    ),
]


def one_step(loss, **options):
    step = training.make_step(apply, loss, optax.sgd(0.1), **options)
    state = start(optax.sgd(0.1))
    try:
        step(state, _DATA)
    finally:
        assert not state.params["w"].is_deleted()


@pytest.mark.parametrize(
    ("error", "words", "call"), WRONG, ids=[f"{w}-{i}" for i, (_, w, _) in enumerate(WRONG)]
)
def test_a_wrong_call_is_refused_by_name(error, words, call):
    with pytest.raises(error, match=words):
        call()
