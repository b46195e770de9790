"""The parameter-free optimizers of Optax with our schedules, penalties, controllers and step.

Each line is run below, on least squares: a schedule `Constant(1).warmup(5)`, which is 0 at the
first step, a first gradient of 0, a batch with a NaN, an L2 penalty in the loss, and, in
`optax.MultiSteps`, a controller where it belongs. A penalty and accumulation work everywhere; a
batch with a NaN is skipped everywhere.

| optimizer | rate 0 or gradient 0 at first | controller | note |
|---|---|---|---|
| `dadapt_adamw` | Optax: NaN for ever; here skipped | behind | base rate 1 |
| `prodigy` | Optax: NaN for ever; here skipped | behind | base rate 1 |
| `prodigy(safeguard_warmup=True)` | rate 0: yes; gradient 0: skipped | behind | base rate 1 |
| `dog`, `dowg` | yes | behind | a plateau must outlast their slow start |
| `mechanize(adam(lr))` | yes | inside | its step goes to a point, not by a length |
| `momo`, `momo_adam` | yes | behind | the rate is a ceiling |
| `polyak_sgd(scaling=lr)` | yes | behind | a penalty lifts the minimum off `f_min` |
| `schedule_free(sgd)`, `(adamw)` | yes | both | bfloat16: its weight sum sticks at 256 |
| `cocob` | takes no rate | nowhere | its step goes to a point, not by a length |

"Behind" is `chain(optimizer, scale_by_controller(...))`. With `on_nonfinite="keep"` Optax's own
behaviour remains; with "raise" the error names the optimizers that divide 0 by 0. The step size
that these optimizers estimate is in their state; `metrics["learning_rate"]` is the schedule's part
of it. `schedule_free_eval_params(state.opt_state, state.params)` gives the parameters to evaluate.
"""

import chex
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from models import apply, start
from optax import contrib

from jax_lrreg import penalties, schedules, training, transforms

WARMUP = schedules.Constant(1.0).warmup(5)
METHODS = {
    "dadapt_adamw": contrib.dadapt_adamw,
    "prodigy": contrib.prodigy,
    "prodigy_safeguard": lambda lr: contrib.prodigy(lr, safeguard_warmup=True),
    "dog": contrib.dog,
    "dowg": contrib.dowg,
    "mechanize": lambda lr: contrib.mechanize(optax.adam(lr)),
    "momo": contrib.momo,
    "momo_adam": contrib.momo_adam,
    "polyak_sgd": lambda lr: optax.polyak_sgd(scaling=lr),
    "schedule_free_sgd": lambda lr: contrib.schedule_free(optax.sgd(lr), lr),
    "schedule_free_adamw": lambda lr: contrib.schedule_free(optax.adamw(lr, b1=0.0), lr),
    "cocob": lambda _: contrib.cocob(),
}
DIVIDES = ("dadapt_adamw", "prodigy", "prodigy_safeguard")
INSIDE = {
    "mechanize": lambda lr, control: contrib.mechanize(optax.chain(optax.adam(lr), control)),
    "schedule_free_sgd": lambda lr, control: contrib.schedule_free(
        optax.chain(optax.sgd(lr), control), lr
    ),
}


def loss_fn(model, batch):
    return models.loss_fn(model, batch) * batch["weight"]


def batches(broken=(), empty=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    y = (x @ np.array([1, -2, 0.5], np.float32) + 0.1).astype(np.float32)
    step = 0
    while True:
        weight = np.float32(np.nan if step in broken else 0 if step in empty else 1)
        yield {"x": x, "y": y, "weight": weight}
        step += 1


def finite(state):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", METHODS)
def test_a_schedule_from_0_a_gradient_of_0_a_nan_and_a_penalty(name):
    tx = METHODS[name](WARMUP)
    step = training.make_step(apply, loss_fn, tx, penalty=penalties.L2(1e-3), learning_rate=WARMUP)
    state, history = training.fit(
        step, start(tx), batches(broken=[7], empty=[0]), steps=400, log_every=10, chunk=10
    )
    assert finite(state)
    assert history["skipped"].sum() == (2 if name in DIVIDES else 1)
    assert history["learning_rate"][-1] == 1
    assert history["loss"][-1] < 0.05, history["loss"]


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("prodigy_safeguard", "dowg", "momo_adam")]
)
def test_a_controller_in_windows_of_multi_steps(name):
    control = transforms.scale_by_controller(
        schedules.ReduceOnPlateau(0.5, patience=30, threshold=0.0)
    )
    tx = METHODS[name](WARMUP)
    if name in INSIDE:
        tx = INSIDE[name](WARMUP, control)
    elif name != "cocob":
        tx = optax.chain(tx, control)
    tx = transforms.mean_value(optax.MultiSteps(tx, 2))
    step = training.make_step(apply, loss_fn, tx, learning_rate=WARMUP)
    state, history = training.fit(step, start(tx), batches(), steps=600, log_every=20, chunk=20)
    assert finite(state)
    assert history["data_loss"][-1] < 0.05, history["data_loss"]
    # The window of the rate 0: what Prodigy divides shows in both of its micro-batches.
    assert history["skipped"].sum() == {"prodigy": 2, "dadapt_adamw": 1}.get(name, 0)
    assert history["learning_rate"][2] == 1


@pytest.mark.parametrize("name", DIVIDES[:2])
def test_without_our_step_they_are_nan_for_ever(name):
    tx = METHODS[name](WARMUP)
    step = training.make_step(apply, loss_fn, tx, on_nonfinite="keep")
    state, _ = training.fit(step, start(tx), batches(), steps=5)
    assert not finite(state)


@pytest.mark.parametrize("name", DIVIDES[:2])
def test_raise_says_who_divides_0_by_0(name):
    tx = METHODS[name](WARMUP)
    step = training.make_step(apply, loss_fn, tx, on_nonfinite="raise")
    with pytest.raises(
        FloatingPointError,
        match=r"step 0 is not finite .*it is the optimizer: D-Adaptation and Prodigy",
    ):
        step(start(tx), next(batches()))


def test_a_skipped_update_of_theirs_keeps_all_but_the_counters():
    tx = optax.chain(METHODS["prodigy"](WARMUP), optax.scale_by_schedule(lambda count: 1.0))
    step = training.make_step(apply, loss_fn, tx, learning_rate=WARMUP, ema=0.9, donate=False)
    before = step.complete(start(tx))
    after, metrics = step(before, next(batches()))
    assert metrics["skipped"] == 1
    assert metrics["learning_rate"] == 0
    assert after.opt_state[0].count == after.opt_state[1].count == after.step == 1
    same = (before.params, before.average, before.opt_state[0]._replace(count=0))
    other = (after.params, after.average, after.opt_state[0]._replace(count=0))
    chex.assert_trees_all_equal(same, other)
    _, metrics = step(after, next(batches()))
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["learning_rate"], 0.2, rtol=1e-6)


def test_a_state_that_is_infinite_or_nan_from_the_start_is_no_fault():
    for tx in (contrib.reduce_on_plateau(), optax.scale_by_backtracking_linesearch(5)):
        chained = optax.chain(optax.sgd(0.1), tx)
        step = training.make_step(apply, loss_fn, chained)
        _, metrics = step(start(chained), next(batches()))
        assert metrics["skipped"] == 0


def test_vmaps_over_the_length_of_the_warmup():
    def tx(hyper):
        return contrib.prodigy(hyper)

    step = training.make_step(apply, loss_fn, tx)
    batch = jax.tree.map(jnp.asarray, next(batches()))

    def run(steps):
        state = start(tx, hyper=schedules.Constant(1.0).warmup(steps))
        return jax.lax.scan(lambda s, _: (step.body(s, batch)[0], None), state, length=200)[
            0
        ].params["w"]

    lengths = jnp.array([3, 30])
    together = jax.jit(jax.vmap(run))(lengths)
    np.testing.assert_allclose(together, [[1, -2, 0.5]] * 2, atol=0.05)


def test_schedule_free_gives_the_parameters_to_evaluate():
    tx = METHODS["schedule_free_sgd"](0.1)
    step = training.make_step(apply, loss_fn, tx)
    state, _ = training.fit(step, start(tx), batches(), steps=300)
    averaged = contrib.schedule_free_eval_params(state.opt_state, state.params)
    np.testing.assert_allclose(averaged["w"], [1, -2, 0.5], atol=0.01)
