import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

from jax_lrreg import penalties, schedules, training, transforms
from jax_lrreg._optax_state import applied_rate, own_numbers

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
        optax.scale_by_adam(),
        transforms.add_penalty(penalties.L2(0.1)),
        optax.scale_by_learning_rate(0.01),
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


def decayed(tx, w, steps=10):
    state = tx.init(w)
    for _ in range(steps):
        updates, state = tx.update(jnp.zeros_like(w), state, w)
        w = optax.apply_updates(w, updates)
    return w


def test_complex_parameters_shrink_as_those_of_optax_do():
    w, l2 = jnp.array([1j, 3 - 4j]), penalties.L2(0.1)
    expected = decayed(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0)), w)
    np.testing.assert_allclose(expected, 0.9**10 * np.asarray(w), rtol=1e-5)
    sgd = optax.sgd(1.0)
    for tx in (
        optax.chain(transforms.add_penalty(l2), sgd),
        optax.chain(transforms.add_penalty_and_clip(l2, 100.0), sgd),
        optax.chain(transforms.add_corrected_penalty(l2, 1.0, peak_value=1.0), sgd),
        transforms.add_independent_penalty(l2),
    ):
        np.testing.assert_allclose(decayed(tx, w), expected, rtol=1e-5)
    cautious, update = transforms.add_cautious_penalty(l2), jnp.array([0.5j, -3 + 3j])
    found, _ = cautious.update(update, cautious.init(w), w)
    np.testing.assert_allclose(
        found, [0.6j, -3 + 3j], rtol=1e-6
    )  # uphill, and away from the update


def test_complex_updates_clip_by_the_modulus():
    w, tx = jnp.array([3 + 4j]), transforms.add_penalty_and_clip(penalties.L2(1.0), 2.5)
    np.testing.assert_allclose(
        tx.update(jnp.zeros_like(w), tx.init(w), w)[0], [1.5 + 2j], rtol=1e-6
    )


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
    updates, _ = tx.update(
        {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.arange(2)}, tx.init(params), params
    )
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


def test_the_rate_is_applied_in_float32_and_rounded_once():
    lr = schedules.Cosine(1e-3, steps=1000)
    rng = np.random.default_rng(0)
    rates = lr(jnp.arange(1000))
    count = int(
        jnp.argmax(jnp.abs(rates.astype(jnp.bfloat16).astype(jnp.float32) / rates - 1))
    )  # no bfloat16 is near
    for dtype in (jnp.bfloat16, jnp.float32):
        tx, theirs = transforms.scale_by_learning_rate(lr), optax.scale_by_learning_rate(lr)
        update = {"kernel": jnp.asarray(rng.normal(size=256) * 30, dtype), "none": None}
        state = tx.init(update)._replace(count=jnp.int32(count))
        got, after = jax.jit(tx.update)(update, state)
        exact = -float(lr(count)) * np.asarray(update["kernel"], np.float64)
        nearest = np.asarray(jnp.asarray(exact.astype(np.float32)).astype(dtype))
        assert got["kernel"].dtype == dtype
        assert got["none"] is None
        assert int(after.count) == count + 1
        far = np.abs(np.asarray(got["kernel"]).astype(np.float64) - exact)
        assert np.all(far <= np.abs(nearest.astype(np.float64) - exact) * (1 + 1e-4) + 2**-24)
        if dtype != jnp.float32:
            rounded = theirs.update(update, theirs.init(update)._replace(count=jnp.int32(count)))[
                0
            ]["kernel"]
            assert np.abs(np.asarray(rounded).astype(np.float64) - exact).mean() > 1.05 * far.mean()


def test_a_constant_rate_and_a_scheduled_one_have_the_same_state():
    params = {"kernel": jnp.ones(3)}
    states = [
        transforms.scale_by_learning_rate(lr).init(params)
        for lr in (0.1, schedules.Constant(0.1), lambda t: 0.1)
    ]
    assert len({jax.tree.structure(state) for state in states}) == 1
    with pytest.raises(ValueError, match="`learning_rate` must be a number >= 0"):
        transforms.scale_by_learning_rate(-0.1)


RATE = schedules.Linear(0.4, steps=4)
HOLDING = {  # optimizers that hold their learning rate as data
    "ours": lambda lr: optax.chain(optax.scale_by_adam(), transforms.scale_by_learning_rate(lr)),
    "injected": lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=lr),
    "both": lambda lr: optax.inject_hyperparams(HOLDING["ours"])(lr),
    "finite": lambda lr: optax.apply_if_finite(HOLDING["ours"](lr), 3),
    "one group": lambda lr: optax.partition(
        {"a": HOLDING["ours"](lr), "b": optax.set_to_zero()}, {"kernel": "a", "bias": "b"}
    ),
}


@pytest.mark.parametrize("name", HOLDING)
def test_the_rate_that_was_applied_is_read_from_the_state(name):
    tx = HOLDING[name](RATE)
    state = tx.init(PARAMS)
    for step in range(6):
        _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
        np.testing.assert_allclose(applied_rate(state), RATE(step), rtol=1e-6)


def test_an_edited_rate_is_the_one_that_was_applied():
    tx = optax.inject_hyperparams(optax.sgd)(0.1)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.01)
    updates, state = tx.update(PARAMS, state, PARAMS)
    np.testing.assert_allclose(updates["bias"], -0.01 * PARAMS["bias"], rtol=1e-6)
    np.testing.assert_allclose(applied_rate(state), 0.01, rtol=1e-6)


def test_there_is_no_one_rate_where_none_is_held_or_each_group_has_its_own():
    groups = {"a": HOLDING["ours"](0.1), "b": HOLDING["injected"](0.2)}
    two = optax.partition(groups, {"kernel": "a", "bias": "b"})
    for tx in (optax.adam(0.1), optax.adam(RATE), two):
        assert applied_rate(tx.init(PARAMS)) is None


def test_a_held_rate_is_no_number_that_the_optimizer_estimates():
    assert not any(x is not None for x in own_numbers(HOLDING["ours"](RATE).init(PARAMS)))


@pytest.mark.parametrize(
    ("owner", "argument", "call"),
    [
        ("scale_by_learning_rate", "learning_rate", transforms.scale_by_learning_rate),
        (
            "scale_by_learning_rate",
            "learning_rate",
            lambda x: transforms.scale_by_learning_rate(lambda _: x),
        ),
        (
            "scale_by_learning_rate",
            "learning_rate",
            lambda x: transforms.scale_by_learning_rate(schedules.Linear(x, steps=5)),
        ),
        (
            "add_corrected_penalty",
            "learning_rate",
            lambda x: transforms.add_corrected_penalty(L2, x, peak_value=1.0),
        ),
        (
            "add_corrected_penalty",
            "peak_value",
            lambda x: transforms.add_corrected_penalty(L2, 0.1, peak_value=x),
        ),
        (
            "add_independent_penalty",
            "schedule",
            lambda x: transforms.add_independent_penalty(L2, x),
        ),
        ("add_penalty_and_clip", "max_norm", lambda x: transforms.add_penalty_and_clip(L2, x)),
        ("proximal", "learning_rate", lambda x: transforms.proximal(optax.sgd(0.1), L2, x)),
        (
            "proximal",
            "learning_rate",
            lambda x: transforms.proximal(optax.sgd(0.1), L2, schedules.Constant(x)),
        ),
        (
            "proximal",
            "metric",
            lambda x: transforms.proximal(optax.sgd(0.1), L2, 0.1, metric=transforms.Metric(eps=x)),
        ),
        (
            "scale_by_controller",
            "value",
            lambda x: updated_with(transforms.scale_by_controller(PLATEAU), x),
        ),
        (
            "mean_value",
            "value",
            lambda x: updated_with(transforms.mean_value(optax.MultiSteps(optax.sgd(0.1), 2)), x),
        ),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_an_array_where_one_number_is_meant_is_refused(owner, argument, call, traced):
    with pytest.raises(ValueError, match=rf"{owner}: `{argument}` must be (of )?one number"):
        (jax.eval_shape if traced else lambda f, x: f(x))(call, jnp.full(3, 0.1))


L2, PLATEAU = penalties.L2(0.1), schedules.ReduceOnPlateau(0.5, patience=3)


def updated_with(tx, value):
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=value)[0]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
@pytest.mark.parametrize("jit", [False, True])
def test_adding_and_clipping_at_once_is_one_after_the_other(max_norm, jit):
    penalty = penalties.ElasticNet(0.1, l2=schedules.Linear(0.2, steps=2)).on("kernel")
    both = transforms.add_penalty_and_clip(penalty, max_norm)
    apart = optax.chain(transforms.add_penalty(penalty), optax.clip_by_global_norm(max_norm))
    both_state, apart_state = both.init(PARAMS), apart.init(PARAMS)
    a, b = (jax.jit(tx.update) if jit else tx.update for tx in (both, apart))
    for step in range(3):
        grads = jax.tree.map(lambda p: jnp.cos(p + step), PARAMS)  # noqa: B023
        ours, both_state = a(grads, both_state, PARAMS)
        theirs, apart_state = b(grads, apart_state, PARAMS)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)


def test_clipping_sums_in_float32_and_leaves_other_leaves_alone():
    params = {"w": jnp.full(10_000, 0.125, jnp.bfloat16), "n": jnp.arange(2), "none": None}
    tx = transforms.add_penalty_and_clip(penalties.L2(8.0), 1.0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        updates["w"].astype(jnp.float32), 0.01, rtol=0.01
    )  # 1 / sqrt(10_000)
    np.testing.assert_array_equal(updates["n"], [0, 0])


def test_the_clipped_sum_is_not_stored():
    shape = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    params = {str(i): shape for i in range(8)}

    def temporary(*transformations):
        tx = optax.chain(*transformations, optax.scale_by_adam())
        update = jax.jit(
            lambda grads, state, params: tx.update(grads, state, params), donate_argnums=1
        )
        return (
            update.lower(params, jax.eval_shape(tx.init, params), params)
            .compile()
            .memory_analysis()
        )

    one = 4 * shape.size
    compiled = temporary(transforms.add_penalty_and_clip(penalties.L2(0.1), 1.0))
    assert compiled.temp_size_in_bytes < 3 * one, (
        "the sum of a leaf or two at a time, not of all eight"
    )


def test_wrong_calls_of_clipping():
    with pytest.raises(
        ValueError, match=r"add_penalty_and_clip: .*`?max_norm`?.* a positive number"
    ):
        transforms.add_penalty_and_clip(penalties.L2(0.1), 0.0)
    with pytest.raises(TypeError, match="`penalty` must be a Penalty"):
        transforms.add_penalty_and_clip(0.1, 1.0)


def test_what_is_frozen_is_not_decayed():
    l2, labels = transforms.add_penalty(penalties.L2(0.1)), {"kernel": "train", "bias": "freeze"}
    freeze = optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True})

    def moved(tx):
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        return jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)

    partition = optax.partition(
        {"train": optax.chain(l2, optax.sgd(1.0)), "freeze": optax.set_to_zero()}, labels
    )
    chosen = transforms.add_penalty(penalties.L2(0.1).on("kernel"))
    for tx in (
        partition,
        optax.chain(l2, optax.sgd(1.0), freeze),
        optax.chain(freeze, chosen, optax.sgd(1.0)),
    ):
        assert moved(tx) == {"kernel": True, "bias": False}
    assert moved(optax.chain(freeze, l2, optax.sgd(1.0)))[
        "bias"
    ]  # set to zero too early, as in Optax


@pytest.mark.parametrize(
    "add", [transforms.add_penalty, transforms.add_independent_penalty], ids=["add", "independent"]
)
def test_a_strength_of_0_changes_nothing_and_has_a_derivative(add):
    grads = jax.tree.map(jnp.cos, PARAMS)

    def updated(strength):
        tx = add(penalties.ElasticNet(strength, l2=strength))
        return tx.update(grads, tx.init(PARAMS), PARAMS)[0]

    chex.assert_trees_all_equal(jax.jit(updated)(0.0), grads)
    sign = -1 if add is transforms.add_independent_penalty else 1
    slopes = jax.jacobian(updated)(0.0)
    expected = jax.tree.map(lambda w: sign * (jnp.sign(w) + w), PARAMS)
    chex.assert_trees_all_close(slopes, expected, rtol=1e-6)


def test_accumulated_it_counts_once_where_they_average_and_each_time_where_they_add():
    w, l2, sgd = jnp.array([1.0]), transforms.add_penalty(penalties.L2(0.1)), optax.sgd(1.0)
    mean = optax.MultiSteps(optax.chain(l2, sgd), 4).gradient_transformation()
    np.testing.assert_allclose(decayed(mean, w, 4), 0.9, rtol=1e-6)
    added = optax.chain(
        l2, sgd, optax.apply_every(4)
    )  # its sum of four gradients has the penalty four times, too
    np.testing.assert_allclose(decayed(added, w, 4), 1 - 4 * 0.1, rtol=1e-6)
    after = optax.chain(optax.apply_every(4), l2, sgd)  # fires at every micro-step
    np.testing.assert_allclose(decayed(after, w, 4), 0.9**4, rtol=1e-6)


def stepped(tx, penalty=None, **options):
    """One step from `w = 2` with the gradient 3 of the data."""
    state = training.init(apply, tx, key=jax.random.key(0), params=jnp.array([2.0]))
    step = training.make_step(
        apply, lambda model, batch: model(batch).sum(), tx, penalty=penalty, **options
    )
    state, metrics = step(state, jnp.array([3.0]))
    return float(state.params[0]), metrics


def apply(params, x):
    return params * x


def test_in_the_loss_it_is_clipped_too_and_in_the_optimizer_it_is_where_it_stands():
    l2, clip, sgd = penalties.L2(0.5), optax.clip_by_global_norm(1.0), optax.sgd(1.0)
    assert stepped(optax.chain(clip, sgd), l2)[0] == pytest.approx(2 - 1)
    assert stepped(optax.chain(transforms.add_penalty(l2), clip, sgd))[0] == pytest.approx(2 - 1)
    assert stepped(optax.chain(clip, transforms.add_penalty(l2), sgd))[0] == pytest.approx(
        2 - 1 - 0.5 * 2
    )
    assert stepped(optax.chain(clip, sgd), l2)[1]["grad_norm"] == pytest.approx(3 + 1)


@pytest.mark.parametrize("where", ["loss", "transform", "proximal"])
def test_a_loss_scale_does_not_scale_the_penalty(where):
    l2, sgd = penalties.L2(0.5), optax.sgd(0.1)
    tx = {
        "loss": sgd,
        "transform": optax.chain(transforms.add_penalty(l2), sgd),
        "proximal": transforms.proximal(sgd, l2, 0.1),
    }[where]
    penalty = l2 if where == "loss" else None
    scaled, metrics = stepped(tx, penalty, loss_scale=DynamicScale(scale=jnp.float32(1024.0)))
    expected = (2 - 0.3) / (1 + 0.05) if where == "proximal" else 2 - 0.1 * (3 + 1)
    assert (
        scaled
        == pytest.approx(expected, rel=1e-6)
        == pytest.approx(stepped(tx, penalty)[0], rel=1e-6)
    )
    assert metrics["penalty"] == (1 if where == "loss" else 0)


@pytest.mark.parametrize(
    "tx",
    [
        transforms.add_penalty(penalties.L2(0.1)),
        transforms.add_penalty_and_clip(penalties.L2(0.1), 100.0),
        transforms.add_independent_penalty(penalties.L2(0.1)),
    ],
    ids=["add_penalty", "add_penalty_and_clip", "add_independent_penalty"],
)
def test_none_is_no_gradient(tx):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    assert updates["b"] is None
    assert np.all(np.asarray(updates["a"]) != 1)


INFINITE = {
    "bare": penalties.NonNegative(),
    "box": penalties.Box(-1.0, max=1.0),
    "ball": penalties.MaxNorm(1.0),
    "one-sided lasso": penalties.NonNegativeL1(0.1),
    "selected": penalties.MaxNorm(1.0).on("kernel"),
    "in a sum": penalties.L2(0.1) + penalties.Simplex(axis=None).on("kernel"),
    "a multiple": 0.5 * penalties.NonNegativeL1(0.1),
    "a multiple of a sum": 0.5 * (penalties.L2(0.1) + penalties.NonNegativeL1(0.1).on("bias")),
}
ADDING = {
    "add_penalty": transforms.add_penalty,
    "add_penalty_and_clip": lambda p: transforms.add_penalty_and_clip(p, 1.0),
    "add_cautious_penalty": transforms.add_cautious_penalty,
    "add_corrected_penalty": lambda p: transforms.add_corrected_penalty(p, 0.1, peak_value=0.1),
    "add_independent_penalty": transforms.add_independent_penalty,
}


@pytest.mark.parametrize("add", ADDING)
@pytest.mark.parametrize("penalty", INFINITE)
def test_what_is_infinite_outside_a_set_cannot_be_added(add, penalty):
    words = rf"{add}: `penalty` must be finite: .* transforms.proximal, got "
    with pytest.raises(ValueError, match=words):
        ADDING[add](INFINITE[penalty])


@pytest.mark.parametrize("add", ADDING)
@pytest.mark.parametrize(
    ("words", "penalty"),
    [
        (r"'\*\*/kernal' matches no parameter; .*kernel", penalties.L2(0.1).on("**/kernal")),
        ("`strength`", penalties.L2(jnp.ones(7))),
        ("`strength`", penalties.L2({"kernel": 0.1})),
        ("`reference`", penalties.L2SP(0.1, reference={"kernel": jnp.zeros(3)})),
    ],
)
def test_a_penalty_that_does_not_fit_is_found_at_init(add, words, penalty):
    tx = optax.chain(ADDING[add](penalty), optax.sgd(0.1))
    with pytest.raises(ValueError, match=words):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(tx.init, PARAMS)
