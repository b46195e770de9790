"""Ways to hold on to arrays around a step that donates its state: none meets a deleted buffer."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from models import apply, loss_fn

from jax_lrreg import penalties, schedules, training, transforms
from jax_lrreg.training.program import program_of

BATCH = {"x": np.eye(4, 3, dtype=np.float32), "y": np.arange(4, dtype=np.float32)}
TX = optax.adam(0.1)


def weights():
    return {"w": jnp.ones(3), "b": jnp.zeros(())}


def start(tx=TX, params=None, **options):
    return models.start(tx, weights() if params is None else params, **options)


def make(tx=TX, **options):
    return training.make_step(apply, loss_fn, tx, **options)


def go(step, state, times=3, batch=BATCH):
    for _ in range(times):
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    return state


def read(*trees):
    """Every array is there and can be read."""
    for leaf in jax.tree.leaves(trees):
        assert not leaf.is_deleted()
        np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )


def source():
    return training.ArrayData(BATCH, 2, jax.random.key(1))


def test_params_and_key_used_twice():
    params, key = weights(), jax.random.key(0)
    states = [training.init(apply, TX, key=key, params=params) for _ in range(2)]
    for state in states:
        go(make(), state)
    read(params, key)


def test_a_copy_is_kept():
    state = start()
    kept = state.copy()
    go(make(), state)
    read(kept)
    go(make(), kept)


def test_a_copy_by_tree_map_is_kept():
    state = start()
    kept = jax.tree.map(jnp.copy, state)
    go(make(), state)
    read(kept)


def test_the_average_begins_as_the_parameters():
    state = start()
    go(make(ema=0.9), make(ema=0.9).complete(state))
    go(make(ema=0.9), start())


def test_the_reference_of_a_penalty_is_the_parameters():
    state = start()
    step = make(penalty=penalties.L2SP(0.1, reference=state.params))
    state = go(step, state)
    state, _ = training.fit(step, state, source(), steps=4)  # compiles the step once more


def test_the_reference_in_the_optimizer_is_of_another_state():
    first = go(make(), start())
    tx = optax.chain(transforms.add_penalty(penalties.L2SP(0.1, reference=first.params)), TX)
    state = go(make(tx), start(tx, params=first.params))
    training.fit(make(tx), state, source(), steps=4)
    read(first)


def test_hyper_holds_an_array_twice_and_a_reference():
    state, rate = start(), jnp.float32(0.1)

    def tx(hyper):
        return optax.chain(optax.sgd(hyper["rate"]), optax.scale(hyper["again"]))

    hyper = {"rate": rate, "again": rate, "reg": penalties.L2SP(0.1, reference=state.params)}
    new = start(tx, params=state.params, hyper=hyper)
    step = make(tx, penalty=lambda hyper: hyper["reg"])
    new = go(step, new)
    new = go(step, new.replace(hyper={**new.hyper, "rate": rate, "again": rate}))
    go(step, new.replace(hyper={**new.hyper, "reg": penalties.L2SP(0.1, reference=new.params)}))
    read(rate, state)


def test_merged_before_and_after():
    state = start()
    before = training.merge(apply, state)
    state = go(make(), state)
    after = training.merge(apply, state)
    go(make(), state)
    read(before, after)


def test_evaluated_between_steps():
    state, step = start(), make()
    evaluate = training.make_eval(
        apply, lambda model, batch: {"mean": model(batch["x"]).mean()}, [BATCH]
    )
    values = []
    for _ in range(3):
        values.append(evaluate(state))
        lazy = state.params["w"] + 1  # not waited for before the next step
        state = go(step, state, 1)
        read(lazy)
    assert len({value["mean"] for value in values}) == 3


def test_fitted_twice():
    state, step = start(), make()
    for _ in range(2):
        state, _ = training.fit(step, state, source(), steps=6, log_every=2)
    go(step, state)


def test_stepped_then_fitted_then_stepped():
    state, step = start(), make(ema=0.9, monitors=("param_norm", "grad_norm"))
    state, _ = training.fit(step, go(step, state), source(), steps=5, chunk=2, log_every=3)
    go(step, state)


def test_a_step_that_does_not_donate():
    state = start()
    step = make(donate=False)
    go(step, state)
    training.fit(step, state, source(), steps=4)
    read(state)


def test_a_state_is_kept_while_another_step_donates_its_successor():
    module = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    for donate in (True, False):
        keeping, donating = (
            training.make_step(
                module,
                lambda model, batch: jnp.mean(model(batch["x"]) ** 2),
                lambda hyper: optax.sgd(hyper),
                donate=donate,
                on_nonfinite="keep",
            )
            for donate in (False, donate)
        )
        state = training.init(
            module, lambda hyper: optax.sgd(hyper), key=jax.random.key(0), hyper=0.1
        )
        new, _ = keeping(state, BATCH)
        training.fit(donating, new, source(), steps=4)
        read(state)
        go(donating, state)


def test_a_batch_on_the_device_is_used_again():
    batch = jax.tree.map(jnp.asarray, BATCH)
    state = go(make(), start(), batch=batch)
    training.fit(make(), state, [batch] * 4, steps=4, log_every=2)
    read(batch)


def test_a_batch_that_holds_the_parameters():
    state, step = start(), make()
    state = go(step, state)
    state, _ = step(state, {**BATCH, "teacher": jnp.copy(state.params["b"])})
    go(step, state)


def test_an_nnx_module_is_shared():
    module = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    step = training.make_step(module, lambda model, batch: jnp.mean(model(batch["x"]) ** 2), TX)
    states = [training.init(module, TX, key=jax.random.key(0)) for _ in range(2)]
    for state in states:
        trained = training.merge(module, go(step, state))
        trained(BATCH["x"])
    module(BATCH["x"])
    read(nnx.state(module))


def test_linen_variables_come_from_outside():
    module = nn.Dense(1)
    variables = module.init(jax.random.key(0), BATCH["x"])
    state = training.init(
        module, TX, key=jax.random.key(0), example=BATCH["x"], params=variables["params"]
    )
    go(training.make_step(module, lambda model, batch: jnp.mean(model(batch["x"]) ** 2), TX), state)
    read(variables)


def test_an_optimizer_state_that_holds_the_parameters():
    def holding(params):
        return {"fast": params, "slow": params}

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, updates), {"fast": params, "slow": state["slow"]}

    tx = optax.GradientTransformation(holding, update)
    state = start(tx)
    go(make(tx), state)
    for tx in (optax.contrib.schedule_free_sgd(0.1), optax.lbfgs()):
        state = start(tx)
        state = go(make(tx), state)
        go(make(tx), state.replace(opt_state=tx.init(state.params)))


def test_values_from_outside_are_put_in():
    state, pretrained, key = start(), weights(), jax.random.key(3)
    state = state.replace(
        params=pretrained, opt_state=TX.init(pretrained), key=key, step=np.int32(5)
    )
    go(make(), state)
    read(pretrained, key)


def test_numpy_arrays_are_put_in():
    state, pretrained = start(), {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}
    go(make(), state.replace(params=pretrained))
    np.testing.assert_array_equal(pretrained["w"], np.ones(3))


def test_saved_by_device_get_and_restored():
    state, step = start(), make()
    state = go(step, state)
    saved = jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))
    values = jax.tree.map(np.copy, saved)
    state = go(step, state)
    chex.assert_trees_all_equal(saved, values)
    for _ in range(2):
        key = jax.random.wrap_key_data(jnp.asarray(saved.key))
        again = dataclasses.replace(jax.tree.map(jnp.asarray, saved), key=key)
        again = go(step, again)
        np.testing.assert_array_equal(again.params["w"], state.params["w"])
    chex.assert_trees_all_equal(saved, values)


def test_scanned_and_vmapped():
    step, state = make(ema=0.9), start()
    state = step.complete(state)
    scanned, _ = jax.lax.scan(lambda s, _: step.body(s, BATCH), state, length=3)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    jax.vmap(step.body, in_axes=(0, None))(states, BATCH)
    read(state, scanned)
    np.testing.assert_allclose(go(step, state).params["w"], scanned.params["w"], rtol=1e-6)


def test_accumulated_with_everything_on():
    tx = optax.MultiSteps(optax.adam(schedules.Linear(0.1, steps=10)), 2).gradient_transformation()
    step = make(
        tx, accumulate=2, ema=0.9, loss_scale=DynamicScale(), monitors=("sparsity", "update_norm")
    )
    state = go(step, start(tx))
    training.fit(step, state, [BATCH] * 4, steps=4, log_every=2)


def test_loss_scale_used_for_two_steps():
    scale = DynamicScale(scale=jnp.float32(8))
    for _ in range(2):
        go(make(loss_scale=scale), start())
    read(scale.scale)


def test_metrics_are_kept():
    state, step, kept = start(), make(monitors=("param_norm", "grad_norm", "update_norm")), []
    for _ in range(5):
        state, metrics = step(state, BATCH)
        kept.append(metrics)
    read(kept)
    seen = []
    training.fit(
        step,
        state,
        source(),
        steps=6,
        log_every=2,
        loggers=[lambda step, entry: seen.append(entry)],
    )
    assert len({entry["param_norm"] for entry in seen}) == 3


def test_master_weights_and_mixed_precision():
    params = weights()
    module = training.mixed_precision(apply, jnp.bfloat16, param_dtype=jnp.bfloat16)
    tx = transforms.master_weights(TX)
    state = training.init(module, tx, key=jax.random.key(0), params=params)
    step = training.make_step(module, loss_fn, tx, ema=0.9)
    training.fit(step, go(step, state), source(), steps=4)
    read(params)


def test_a_teacher_in_the_loss_is_a_copy():
    state = start()
    teacher = training.merge(apply, state)

    def distilled(model, batch):
        return loss_fn(model, batch) + jnp.mean(
            (model(batch["x"]) - apply(teacher, batch["x"])) ** 2
        )

    step = training.make_step(apply, distilled, TX)
    training.fit(step, go(step, state), source(), steps=4)
    read(teacher)


def test_a_state_that_was_given_away_is_refused_by_name():
    state, step = start(), make()
    step(state, BATCH)
    with pytest.raises(ValueError, match=r"`state` must be the latest one.*state\.copy\(\)"):
        step(state, BATCH)
    with pytest.raises(ValueError, match="`state` must be the latest one"):
        training.fit(step, state, source(), steps=2)


class TestReplace:
    def test_an_edit_of_hyper_never_retraces(self):
        counting = chex.assert_max_traces(loss_fn, n=2)  # one for `step`, one for `fit`

        def tx(hyper):
            return optax.sgd(hyper["lr"])

        hyper = {"lr": schedules.Cosine(0.1, steps=100), "reg": penalties.L2(0.1), "factor": 2.0}
        step = training.make_step(
            apply,
            counting,
            tx,
            penalty=lambda hyper: hyper["factor"] * hyper["reg"],
            learning_rate=lambda hyper: hyper["lr"],
        )
        state = start(tx, hyper=hyper)
        state, _ = step(state, BATCH)
        state, _ = training.fit(step, state, source(), steps=3)
        programs = step._call._cache_size(), program_of(step, True)._cache_size()
        for rate, steps, factor in [
            (0.2, 100, 3),
            (np.float64(0.3), np.int64(50), np.int8(1)),
            (1, 7, jnp.float32(2)),
        ]:
            edited = {
                "lr": schedules.Cosine(rate, steps=steps),
                "reg": penalties.L2(rate),
                "factor": factor,
            }
            state = state.replace(hyper=edited)
            count = int(state.step)
            state, metrics = step(state, BATCH)
            np.testing.assert_allclose(metrics["learning_rate"], edited["lr"](count), rtol=1e-6)
            state = state.replace(
                hyper={**state.hyper, "lr": schedules.Cosine(2 * rate, steps=steps)}
            )
            state, history = training.fit(step, state, source(), steps=3)
            expected = schedules.Cosine(2 * rate, steps=steps)(count + 3)
            np.testing.assert_allclose(history["learning_rate"][-1], expected, rtol=1e-6)
        assert programs == (step._call._cache_size(), program_of(step, True)._cache_size())

    def test_an_edit_between_two_calls_of_fit_is_what_the_run_goes_on_with(self):
        def tx(hyper):
            return optax.sgd(hyper)

        step = make(tx, learning_rate=lambda hyper: hyper)
        state, _ = training.fit(step, start(tx, hyper=0.1), source(), steps=4)
        state = state.replace(hyper=0.0)
        before = jax.device_get(state.params)
        state, history = training.fit(step, state, source(), steps=4)
        assert history["learning_rate"][-1] == 0
        chex.assert_trees_all_equal(before, jax.device_get(state.params))

    def test_a_whole_number_takes_no_fraction(self):
        state = start(
            lambda hyper: optax.sgd(hyper["lr"]), hyper={"lr": schedules.Linear(0.1, steps=10)}
        )
        with pytest.raises(
            ValueError, match=r"`hyper` must be a whole number where it was one.*got 2\.5"
        ):
            state.replace(hyper={"lr": schedules.Linear(0.1, steps=2.5)})

    def test_another_structure_is_taken_as_it_is(self):
        state = start(lambda hyper: optax.sgd(hyper), hyper=schedules.Constant(0.1))
        new = state.replace(hyper=schedules.Linear(0.1, steps=4))
        assert new.hyper == schedules.Linear(0.1, steps=4)
        batched = state.replace(hyper=schedules.Constant(jnp.array([0.1, 0.2])))
        assert batched.hyper.value.shape == (2,)

    def test_shapes_and_shardings_pass(self):
        state = start()
        shapes = jax.eval_shape(lambda: state)
        assert shapes.replace(params=shapes.params).params is not None
        one = jax.tree.map(lambda x: x.sharding, state)
        assert one.replace(hyper=None).params == one.params
