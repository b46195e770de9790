import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import penalties, schedules, transforms

PARAMS = {"kernel": jnp.array([1.0, -2.0, 0.0]), "bias": jnp.array([3.0])}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def test_coupled_l2_is_optax_add_decayed_weights():
    ours = optax.chain(transforms.add_penalty(penalties.L2(0.1)), optax.sgd(0.5, momentum=0.9))
    theirs = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, momentum=0.9))
    for _ in range(3):
        a = ours.update(PARAMS, ours.init(PARAMS), PARAMS)[0]
        b = theirs.update(PARAMS, theirs.init(PARAMS), PARAMS)[0]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_decoupled_l2_is_adamw():
    ours = optax.chain(
        optax.scale_by_adam(), transforms.add_penalty(penalties.L2(0.1)), optax.scale_by_learning_rate(0.01)
    )
    theirs = optax.adamw(0.01, weight_decay=0.1)
    ours_state, theirs_state = ours.init(PARAMS), theirs.init(PARAMS)
    a = b = PARAMS
    for _ in range(5):
        updates, ours_state = ours.update(jax.tree.map(jnp.cos, a), ours_state, a)
        a = optax.apply_updates(a, updates)
        updates, theirs_state = theirs.update(jax.tree.map(jnp.cos, b), theirs_state, b)
        b = optax.apply_updates(b, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_the_strength_may_be_a_schedule_and_the_state_is_the_same():
    constant = transforms.add_penalty(penalties.L2(0.1))
    scheduled = transforms.add_penalty(penalties.L2(schedules.Linear(0.2, steps=2)))
    assert jax.tree.structure(constant.init(PARAMS)) == jax.tree.structure(scheduled.init(PARAMS))
    state = scheduled.init(PARAMS)
    for expected in (0.2, 0.1, 0.0, 0.0):
        updates, state = scheduled.update(ZERO, state, PARAMS)
        np.testing.assert_allclose(updates["kernel"], expected * PARAMS["kernel"], rtol=1e-6)


def test_updates_keep_their_dtype_and_other_leaves_are_left_alone():
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.arange(2)}
    tx = transforms.add_penalty(penalties.L2(schedules.Linear(0.2, steps=2)))
    updates, _ = tx.update({"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.arange(2)}, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["n"], [0, 1])


def test_an_exact_zero_is_not_pushed_away():
    tx = optax.chain(transforms.add_penalty(penalties.L1(0.1)), optax.sgd(0.1))
    updates, _ = tx.update(ZERO, tx.init(PARAMS), PARAMS)
    assert updates["kernel"][2] == 0


def test_wrong_calls():
    with pytest.raises(TypeError, match="`penalty` must be a Penalty"):
        transforms.add_penalty(0.1)
    tx = transforms.add_penalty(penalties.L2(0.1))
    with pytest.raises(ValueError, match="`params` must be given"):
        tx.update(ZERO, tx.init(PARAMS))
    tx = transforms.add_penalty(penalties.L2(0.1).on("kernal"))
    with pytest.raises(ValueError, match=r"'kernal' matches no parameter; .*nearest first: kernel"):
        tx.update(ZERO, tx.init(PARAMS), PARAMS)
