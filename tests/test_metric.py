"""The step sizes that `proximal` finds, against float64 and against what the optimizers do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizers import CLIPPED, KNOWN, UNKNOWN

from jax_lrreg import penalties, pytree, schedules, transforms
from jax_lrreg.transforms.recognition import require_own_rate

STEPS = 300
SCHEDULE = schedules.Cosine(0.01, steps=400)
TIMES = {"amsgrad": 10, "adagrad": 50}
KERNELS = penalties.L1(0.1).on("**/kernel")


@pytree
class Found(penalties.ArrayPenalty):
    """Its prox is the step size, wherever it starts from: so an update at 0 shows it."""

    def value(self, w):
        return jnp.zeros(())

    def shrink(self, w, step_size):
        return jnp.broadcast_to(step_size, w.shape)


def found(inner, rate, gradients):
    """The step sizes of the last of the updates by these gradients."""
    tx, zeros = transforms.proximal(inner, Found(), rate), jax.tree.map(jnp.zeros_like, gradients)
    zeros = jax.tree.map(lambda x: x[0], zeros)

    def body(state, gradient):
        update, state = tx.update(gradient, state, zeros)
        return state, update

    return jax.tree.map(lambda x: x[-1], jax.lax.scan(body, tx.init(zeros), gradients)[1])


def by(name, rate, gradients):
    """The same with the learning rate constant, scheduled, as data in a state, or traced."""
    make, times = KNOWN[name], TIMES.get(name, 1)
    if rate == "schedule":
        return found(make(SCHEDULE), SCHEDULE * times, gradients)
    if rate == "injected":
        return found(optax.inject_hyperparams(make)(0.01), 0.01 * times, gradients)
    if rate == "traced":
        return jax.jit(lambda lr: found(make(lr), lr * times, gradients))(0.01)
    return found(make(0.01), 0.01 * times, gradients)


def noise(size=5, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.array([1.0, 1e-3, 30.0, 1e-6, 1.0])[:size]
    return scale * (rng.normal(size=(STEPS, size)) + 0.3)


def mean(values, decay, start=0.0):
    for value in values:
        start = decay * start + (1 - decay) * value
    return start


def adam(g, rates, b2=0.999, eps=1e-8, eps_root=0.0):
    return rates[-1] / (np.sqrt(mean(g**2, b2) / (1 - b2 ** len(g)) + eps_root) + eps)


def amsgrad(g, rates):
    heads = [mean(g[:t] ** 2, 0.999) / (1 - 0.999**t) for t in range(1, len(g) + 1)]
    return 10 * rates[-1] / (np.sqrt(np.max(heads, 0)) + 1e-8)


def adabelief(g, rates):
    m, s = 0.0, 0.0
    for x in g:
        m = 0.9 * m + 0.1 * x
        s = 0.999 * s + 0.001 * (x - m) ** 2 + 1e-16
    return rates[-1] / (np.sqrt(s / (1 - 0.999 ** len(g))) + 1e-16)


def momentum_behind(g, rates):
    sums, v = 0.0, 0.0
    for x, rate in zip(g, rates, strict=True):
        v = 0.9 * v + 0.1 * x**2
        sums = 0.9 * sums + rate / np.sqrt(v + 1e-8)
    return sums


EXACT = {
    "sgd": lambda g, rates: np.full_like(g[-1], rates[-1]),
    "momentum": lambda g, rates: np.full_like(g[-1], rates[-1] / (1 - 0.9)),
    "nesterov": lambda g, rates: np.full_like(g[-1], rates[-1] / (1 - 0.9)),
    "adam": adam,
    "adam, other constants": lambda g, rates: adam(g, rates, b2=0.98, eps=1e-4),
    "adam, eps_root": lambda g, rates: adam(g, rates, eps_root=1e-6),
    "adamw": adam,
    "nadam": adam,
    "nadamw": adam,
    "amsgrad": amsgrad,
    "adabelief": adabelief,
    "rmsprop": lambda g, rates: rates[-1] / np.sqrt(mean(g**2, 0.9) + 1e-8),
    "rmsprop, momentum": momentum_behind,
    "rmsprop, bias": lambda g, rates: adam(g, rates, b2=0.9),
    "adagrad": lambda g, rates: 50 * rates[-1] / np.sqrt(0.1 + np.sum(g**2, 0) + 1e-7),
    "finite adam": adam,
    "injected adam": adam,
}


def test_every_known_optimizer_has_an_exact_step_size():
    assert set(EXACT) == set(KNOWN)


@pytest.mark.parametrize("rate", ["constant", "schedule", "injected", "traced"])
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.sampled(17)
def test_the_step_sizes_are_exact(name, rate):
    gradients = noise()
    rates = np.float64(SCHEDULE(np.arange(STEPS))) if rate == "schedule" else np.full(STEPS, 0.01)
    sizes = by(name, rate, jnp.asarray(gradients, jnp.float32))
    np.testing.assert_allclose(sizes, EXACT[name](gradients, rates), rtol=3e-5)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.sampled(6)
def test_a_gradient_that_never_changes_moves_by_the_step_size(name):
    gradient = jnp.array([1.0, -1e-3, 30.0])
    inner, params = optax.with_extra_args_support(KNOWN[name](0.01)), jnp.zeros(3)

    def body(state, gradient):
        update, state = inner.update(gradient, state, params)
        return state, update

    held = jnp.tile(gradient, (STEPS, 1))
    update = jax.lax.scan(body, inner.init(params), held)[1][-1]
    sizes = by(name, "constant", held)
    np.testing.assert_allclose(update, -sizes * gradient, rtol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.sampled(6)
def test_traced_rates_are_swept_in_one_program(name):
    gradients, times = jnp.asarray(noise(), jnp.float32), TIMES.get(name, 1)
    rates = jnp.array([0.003, 0.01])
    sweep = jax.jit(jax.vmap(lambda lr: found(KNOWN[name](lr), lr * times, gradients)))(rates)
    np.testing.assert_allclose(sweep[1], by(name, "constant", gradients), rtol=1e-5)
    np.testing.assert_allclose(sweep[0] / sweep[1], np.full(5, 0.3), rtol=1e-5)


def test_double_precision_and_half():
    gradients = noise(4)
    with jax.enable_x64():
        sizes = found(optax.adam(0.01), 0.01, jnp.asarray(gradients))
        assert sizes.dtype == jnp.float64
        exact = adam(gradients, [0.01])
        np.testing.assert_allclose(sizes, exact, rtol=1e-6)
    for dtype in (jnp.bfloat16, jnp.float16):
        sizes = found(optax.adam(0.01), 0.01, jnp.asarray(gradients[:, :1], dtype))
        np.testing.assert_allclose(sizes, exact[:1], rtol=0.1)  # the optimizer rounds its moments


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("traced", [False, True])
def test_an_unknown_metric_is_refused(name, traced):
    def init(lr):
        return transforms.proximal(UNKNOWN[name](lr), penalties.L1(0.1), learning_rate=lr)

    with pytest.raises(ValueError, match=r"proximal: .*give (it as )?`metric=`"):
        jax.jit(lambda lr: init(lr).init(jnp.zeros((2, 2))))(0.01) if traced else init(0.01)


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.sampled(9)
def test_clipping_is_refused_and_the_metric_of_the_rest_named(name, traced):
    def init(lr):
        return transforms.proximal(CLIPPED[name](lr), penalties.L1(0.3), learning_rate=lr)

    words = r"`inner` must not clip, .* leave it out, .* give `metric=Metric\("
    with pytest.raises(ValueError, match=words) as caught:
        jax.jit(lambda lr: init(lr).init(jnp.zeros(2)))(0.01) if traced else init(SCHEDULE)
    assert name != "sgd" or str(caught.value).endswith("`metric=Metric()`")


def test_the_constants_that_are_known_stand_in_the_refusal():
    clip = optax.clip(1.0)
    for inner, metric in (
        (optax.adam(0.01, b2=0.98), "Metric(b2=0.98, eps=...)"),
        (optax.sgd(0.01, momentum=0.8), "Metric(momentum=0.8)"),
        (optax.adagrad(0.01), "Metric(eps=...)"),
    ):
        with pytest.raises(ValueError, match="must not clip") as caught:
            transforms.proximal(optax.chain(clip, inner), penalties.L1(0.1), 0.01)
        assert str(caught.value).endswith(f"give `metric={metric}`")


def test_another_learning_rate_does_not_pass_unnoticed():
    with pytest.raises(ValueError, match=r"got 0.01 at step 0 where the optimizer uses 0.02"):
        transforms.proximal(optax.adam(0.02), penalties.L1(0.1), learning_rate=0.01)
    with pytest.raises(
        ValueError,
        match=r"`learning_rate` must be that of the inner optimizer, got 0.01 at step 100 ",
    ):
        transforms.proximal(optax.adam(SCHEDULE), penalties.L1(0.1), learning_rate=1e-2)


PARAMS = {
    "encoder": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "head": {"kernel": jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)},
}


def last_names(params):
    """A label function over paths."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: keys[-1].key, params)


def groups(kernel, bias):
    return optax.partition({"kernel": kernel, "bias": bias}, last_names)


def matrices(params):
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def decoupled(penalty, rate=SCHEDULE):
    learn = optax.scale_by_learning_rate(rate)
    return optax.chain(optax.scale_by_adam(), transforms.add_penalty(penalty), learn)


def adamw(rate, mask=None):
    return optax.adamw(rate, weight_decay=0.1, mask=mask)


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def lagging(rate):
    return optax.rmsprop(rate, momentum=0.9)


def half(rate):
    return optax.chain(optax.adam(rate), optax.scale(0.5))


KERNEL_L2 = penalties.L2(0.1).on("**/kernel")
PLATEAU = transforms.scale_by_controller(schedules.ReduceOnPlateau(0.5, patience=9999))
NAMES = {"encoder": {"kernel": True, "bias": False}, "head": True}
# By name, as functions of the rate: an optimizer of a tree, and what it is to kernels and biases.
BY_PATH = {
    "labels by path": (lambda lr: groups(optax.adam(lr), momentum(lr)), optax.adam, momentum),
    "a rate for each group": (
        lambda lr: groups(optax.adam(lr), optax.sgd(0.3)),
        optax.adam,
        lambda lr: optax.sgd(0.3),
    ),
    "a lag in one group": (lambda lr: groups(lagging(lr), optax.adam(lr)), lagging, optax.adam),
    "masked decay": (lambda lr: adamw(lr, matrices), adamw, optax.adam),
    "masked decay, by names": (lambda lr: adamw(lr, NAMES), adamw, optax.adam),
    "decoupled": (lambda lr: decoupled(KERNEL_L2, lr), adamw, optax.adam),
    "coupled": (
        lambda lr: optax.chain(transforms.add_penalty(KERNEL_L2), optax.adam(lr)),
        lambda lr: optax.chain(optax.add_decayed_weights(0.1), optax.adam(lr)),
        optax.adam,
    ),
    "a masked factor": (
        lambda lr: optax.chain(optax.adam(lr), optax.masked(optax.scale(0.5), matrices)),
        half,
        optax.adam,
    ),
    "rules": (
        lambda lr: optax.chain(
            optax.adam(lr), transforms.scale_by_rules([("**/bias", 1.0), ("**", 0.5)])
        ),
        half,
        optax.adam,
    ),
    "a controller": (lambda lr: optax.chain(optax.adam(lr), PLATEAU), optax.adam, optax.adam),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", BY_PATH)
@pytest.mark.sampled(5)
def test_what_differs_by_path_is_as_each_group_alone(name, traced):
    whole, kernel, bias = BY_PATH[name]
    grads = jax.tree.map(lambda x: jnp.cos(3 * x), PARAMS)

    def updated(make, prox, lr):
        tx = make(lr)
        if prox:
            tx = transforms.proximal(tx, KERNELS, lr * (0.5 if make is half else 1))
        tx = optax.with_extra_args_support(tx)
        state = tx.init(PARAMS)
        for _ in range(3):
            update, state = tx.update(grads, state, PARAMS, value=1.0)
        return update

    run = jax.jit(updated, static_argnums=(0, 1)) if traced else updated
    rate = 0.01 if traced else SCHEDULE
    ours, kernels, biases = run(whole, True, rate), run(kernel, True, rate), run(bias, False, rate)
    for path in (("encoder", "kernel"), ("head", "kernel")):
        got, wanted = ours[path[0]][path[1]], kernels[path[0]][path[1]]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(ours["encoder"]["bias"], biases["encoder"]["bias"], rtol=1e-4)


@pytest.mark.parametrize(
    "name", [name for name in BY_PATH if "coupled" not in name and "decay" not in name]
)
def test_all_groups_come_to_rest_at_the_optimum(name):
    rng = np.random.default_rng(0)
    target = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    rate = schedules.Cosine(0.02, steps=2000)
    tx = transforms.proximal(BY_PATH[name][0](rate), KERNELS, rate)
    slope = lambda params: jax.tree.map(lambda x, y: 0.2 * (x - y), params, target)  # noqa: E731

    def body(_, carry):
        params, state = carry
        updates, state = tx.update(slope(params), state, params, value=0.0)
        return optax.apply_updates(params, updates), state

    start = jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS)
    params, _ = jax.jit(lambda carry: jax.lax.fori_loop(0, 2000, body, carry))(start)
    distances = jax.tree.leaves(KERNELS.certificate(params, slope(params)))
    assert max(distances) < 1e-3
    assert np.any(params["encoder"]["kernel"] == 0)


def test_a_frozen_group_does_not_move():
    tx = transforms.proximal(groups(optax.set_to_zero(), optax.sgd(0.1)), KERNELS, 0.1)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert not np.any(updates["head"]["kernel"])


def test_a_pull_toward_a_reference_leaves_the_step_sizes_as_they_are():
    gradients = jnp.asarray(noise(), jnp.float32)
    penalty = penalties.L2SP(0.1, reference=jnp.ones(5))
    for inner in (
        decoupled(penalty, 0.01),
        optax.chain(
            optax.scale_by_adam(),
            transforms.add_penalty(penalties.L2(jnp.ones(5))),
            transforms.scale_by_learning_rate(0.01),
        ),
    ):
        sizes = found(inner, 0.01, gradients)
        np.testing.assert_allclose(sizes, adam(noise(), [0.01]), rtol=3e-5)


def test_a_rate_for_each_row_is_a_step_size_for_each_row():
    factors = jnp.array([0.5, 1.0, 2.0])
    rules = transforms.scale_by_rules([("**", factors)])
    gradients = {"stack": {"kernel": jnp.ones((2, 3, 4))}}
    sizes = found(optax.chain(optax.sgd(0.1), rules), 0.1, gradients)["stack"]["kernel"]
    np.testing.assert_allclose(sizes, 0.1 * np.ones((3, 4)) * factors[:, None], rtol=1e-6)


def test_one_number_where_all_entries_move_alike_so_that_euclidean_proxes_go():
    params = {"w": jnp.diag(jnp.array([3.0, 1.0]))}
    tx = transforms.proximal(optax.sgd(0.1, momentum=0.9), penalties.NuclearNorm(0.5), 0.1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(np.diag(updates["w"]), [-0.5, -0.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "inner"),
    [
        ("must go downhill", optax.masked(optax.adam(0.01), matrices)),
        ("must not clip", optax.chain(optax.masked(optax.clip(1.0), matrices), optax.adam(0.01))),
        ("not in proportion", optax.chain(optax.centralize(), optax.adam(0.01))),
        (
            "twice",
            groups(optax.chain(optax.trace(0.9), optax.sgd(0.01, momentum=0.9)), optax.sgd(0.01)),
        ),
        ("ScaleByLionState is not known", groups(optax.lion(0.01), optax.sgd(0.01))),
        (
            "ScaleByAdamState with ScaleByRmsState",
            optax.chain(optax.scale_by_adam(), optax.rmsprop(0.01)),
        ),
        ("the optimizer uses 0.02", groups(optax.adam(0.02), optax.sgd(0.02))),
        (
            "'oops'",
            optax.partition({"a": optax.sgd(0.01)}, lambda params: {"oops": params["oops"]}),
        ),
    ],
)
def test_what_cannot_be_known_is_refused_at_init(words, inner):
    with pytest.raises((ValueError, KeyError), match=words):
        transforms.proximal(inner, KERNELS, 0.01).init(PARAMS)


@pytest.mark.parametrize(
    ("words", "penalty", "inner"),
    [
        (
            "'\\*\\*/kernal' matches no parameter",
            penalties.L1(0.1).on("**/kernal"),
            optax.adam(0.1),
        ),
        ("L1 and L2 both apply", penalties.L1(0.1) + penalties.L2(0.1), optax.adam(0.1)),
        ("no prox", penalties.Orthogonal(0.1).on("**/kernel"), optax.sgd(0.1)),
        (
            "NuclearNorm: `step_size` must be one number",
            penalties.NuclearNorm(0.1).on("**/kernel"),
            optax.adam(0.1),
        ),
        ("`strength`", penalties.L1(jnp.ones(3)), optax.sgd(0.1)),
    ],
)
@pytest.mark.parametrize("metric", [None, transforms.Metric(b2=0.999, eps=1e-8)])
def test_a_penalty_that_cannot_be_applied_is_found_at_init(words, penalty, inner, metric):
    tx = transforms.proximal(inner, penalty, 0.1, metric=metric)
    with pytest.raises(ValueError, match=words):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(tx.init, PARAMS)


SEEN = {
    "adam": optax.adam,
    "clipped": lambda lr: optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(lr)),
    "penalized": lambda lr: optax.chain(
        optax.scale_by_adam(),
        transforms.add_penalty(penalties.L2(1.0).on("**/kernel")),
        transforms.scale_by_learning_rate(lr),
    ),
    "grouped": lambda lr: groups(optax.adam(lr), optax.sgd(7.0)),
    "injected": lambda lr: optax.inject_hyperparams(optax.adam)(lr),
    "scheduled": lambda lr: transforms.scheduled(optax.adam, learning_rate=lr),
    "controlled": lambda lr: optax.chain(optax.sgd(lr), PLATEAU),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_rate_of_an_optimizer_is_seen(name):
    for rate in (0.01, SCHEDULE):
        own = schedules.base.as_schedule(rate, "rate")
        require_own_rate("make_step", SEEN[name](rate), own, PARAMS)
        with pytest.raises(
            ValueError, match=r"make_step: `learning_rate` must be that of .* 0.02 at step 0"
        ):
            require_own_rate("make_step", SEEN[name](rate), lambda _: 0.02, PARAMS)


@pytest.mark.parametrize(
    "tx",
    [
        optax.lion(0.01),
        optax.sign_sgd(0.01),
        optax.contrib.prodigy(),
        optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
        optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.01)),
        transforms.proximal(optax.adam(0.01), penalties.L1(0.1), 0.01),
    ],
)
def test_where_no_rate_is_seen_nothing_is_refused(tx):
    require_own_rate("make_step", tx, lambda _: 5.0, PARAMS)


def test_a_traced_rate_is_trusted():
    def init(lr):
        require_own_rate("make_step", optax.adam(lr), lambda _: 5.0, PARAMS)
        return lr

    jax.jit(init)(0.01)
