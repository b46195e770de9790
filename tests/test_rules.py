"""Rules that give each parameter its rate, and numbers of optimizers that are schedules."""

import json
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_lrreg import penalties, schedules, select, transforms
from jax_lrreg._arrays import leaves

RECORD = json.loads((Path(__file__).parent / "parity" / "groups.json").read_text())
ORDERS = {
    "vit_tiny_patch16_224": [
        ("cls_token", "pos_embed", "patch_embed/**"),
        "blocks/*/**",
        ("blocks/11/**", "norm/**"),
        "head/**",
    ],
    "convnext_atto": [
        "stem/**",
        "stages/0/blocks/*/**",
        ("stages/1/downsample/**", "stages/1/blocks/0/**"),
        "stages/1/blocks/*/**",
        ("stages/2/downsample/**", "stages/2/blocks/0/**"),
        "stages/2/blocks/*/**",
        ("stages/3/downsample/**", "stages/3/blocks/0/**"),
        "stages/3/blocks/*/**",
        "head/**",
    ],
    "beit_base_patch16_224": [
        ("cls_token", "patch_embed/**"),
        "blocks/*/**",
        ("fc_norm/**", "head/**"),
    ],
}


def nested(flat):
    """Values by path as a tree."""
    tree = {}
    for path, value in flat.items():
        *names, last = path.split("/")
        node = tree
        for name in names:
            node = node.setdefault(name, {})
        node[last] = jnp.asarray(value)
    return tree


def run(tx, params, gradient, steps):
    """The parameters after some updates in one compiled loop."""

    def one(_, carry):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda p: jax.lax.fori_loop(0, steps, one, (p, tx.init(p))))(params)[0]


@pytest.fixture
def x64():
    """Float64: in float32 the correction of Adam's means, 1 - 0.999^t, is right to 1e-4 only."""
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("source", ["recorded", "live"])
def test_four_groups_train_as_parameter_groups_of_torch(source):
    record = RECORD["trained"]
    if source == "live":
        pytest.importorskip("torch")
        from parity.record_groups import trained

        record = trained()
    x, y = np.asarray(record["x"]), np.asarray(record["y"])
    rules = [("embed/*", 0.1), ("body/*", 1.0), ("head/*", 10.0), ("frozen/*", 0.0)]

    def loss(params):
        hidden = x
        for name in ("embed", "body", "head", "frozen"):
            hidden = jnp.tanh(hidden @ params[name]["kernel"] + params[name]["bias"][None])
        return jnp.mean((hidden - y) ** 2)

    decay = transforms.add_penalty(penalties.L2(0.1).on("**/kernel"))
    tx = optax.chain(
        optax.scale_by_adam(),
        decay,
        transforms.scale_by_learning_rate(0.001),
        transforms.scale_by_rules(rules),
    )
    before = nested(record["before"])
    after = run(tx, before, jax.grad(loss), 50)
    chex.assert_trees_all_close(after, nested(record["after"]), atol=1e-6, rtol=0)
    chex.assert_trees_all_equal(after["frozen"], before["frozen"])


@pytest.mark.parametrize("name", ORDERS)
def test_layer_decay_gives_the_factors_of_timm(name):
    wanted = {path.replace(".", "/"): x for path, x in RECORD["factors"][name].items()}
    rules = select.layer_decay(nested(dict.fromkeys(wanted, 0.0)), 0.75, order=ORDERS[name])
    found = {path: rules.of(path, None) for path in wanted}
    assert found == pytest.approx(wanted, rel=1e-12)


def test_a_star_stands_for_layers_in_natural_order_and_names_keep_their_special_characters():
    params = nested({f"block_{n}/w": 0.0 for n in (10, 2, 1)} | {"a[0]/w": 0.0, "a[1]/w": 0.0})
    rules = select.layer_decay(params, 0.5, order=["a*/**", "block_*/w"])
    assert rules.patterns == ("a[[]0]/**", "a[[]1]/**", "block_1/w", "block_2/w", "block_10/w")
    assert rules.of("a[1]/w", None) == 0.125
    both = select.layer_decay(
        nested({"s_2/b_0/w": 0.0, "s_1/b_10/w": 0.0, "s_1/b_9/w": 0.0}), 0.5, order=["s_*/b_*/**"]
    )
    assert both.patterns == ("s_1/b_9/**", "s_1/b_10/**", "s_2/b_0/**")


def test_spread_goes_from_low_to_high_in_equal_ratios():
    params = nested({f"layer_{n}/w": 0.0 for n in range(4)})
    rules = select.spread(params, 1e-3, 1.0, order=["layer_*/**"])
    np.testing.assert_allclose(rules.factors, [1e-3, 1e-2, 1e-1, 1.0], rtol=1e-12)
    one = select.spread(params, 1e-3, 1.0, order=["**"])
    assert one.factors == (1e-3,) or one.factors == (1.0,)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="head")(nn.relu(nn.Dense(3, name="body")(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)


def kinds():
    linen = Net().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    module = NnxNet(nnx.Rngs(0))
    return {
        "plain": jax.tree.map(np.asarray, linen),
        "Linen": linen,
        "NNX State": nnx.state(module, nnx.Param),
        "NNX pure": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
    }


@pytest.mark.parametrize("kind", kinds())
def test_the_same_rules_do_the_same_in_every_kind_of_tree(kind):
    params = kinds()[kind]
    tx = transforms.scale_by_rules([("head/kernel", 3.0), ("**/bias", 0.0), ("**", 0.5)])
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    found = {leaf.path: float(np.ravel(leaf.value)[0]) for leaf in leaves(updates)}
    wanted = {"head/kernel": 3.0, "head/bias": 0.0, "body/kernel": 0.5, "body/bias": 0.0}
    assert found == wanted


def test_a_stacked_parameter_takes_a_factor_for_each_layer():
    params = {"layers": {"kernel": jnp.ones((3, 2, 2))}, "head": jnp.ones(2)}
    factors = jnp.array([0.25, 0.5, 0.0])
    tx = transforms.scale_by_rules([("layers/**", factors), ("**", 1.0)])
    updates, _ = tx.update(params, tx.init(params))
    np.testing.assert_array_equal(updates["layers"]["kernel"][:, 0, 0], factors)
    falling = schedules.Constant(jnp.array([1.0, 2.0]))
    wrong = transforms.scale_by_rules([("layers/**", falling), ("**", 1.0)])
    with pytest.raises(
        ValueError, match=r"`factor` must be a number, or \(3,\) of them at 'layers/kernel'.*\(2,\)"
    ):
        wrong.init(params)


def test_a_factor_of_zero_moves_no_bit_and_lets_nothing_through():
    params = jnp.array([0.0, -0.0, 1.0, jnp.inf, -2.5])
    tx = transforms.scale_by_rules([("**", schedules.Linear(0.0, steps=2, end_value=1.0))])
    updates, _ = tx.update(jnp.array([1.0, jnp.inf, jnp.nan, 1.0, 1.0]), tx.init(params))
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(
        np.asarray(after).view(np.int32), np.asarray(params).view(np.int32)
    )


def test_a_factor_may_be_a_schedule_and_the_state_is_a_count():
    tx = transforms.scale_by_rules(
        [("a", schedules.PiecewiseConstant(0.0, boundaries=(2,), values=(1.0,))), ("b", 2.0)]
    )
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    state = tx.init(params)
    seen = []
    for _ in range(4):
        updates, state = tx.update(params, state)
        seen.append(float(updates["a"]))
    assert seen == [0.0, 0.0, 1.0, 1.0] or seen == [0.0, 0.0, 0.0, 1.0]
    chex.assert_trees_all_equal_structs(state, transforms.scale_by_rules([("*", 1.0)]).init(params))
    assert jax.tree.leaves(state) == [4]


def test_changed_factors_are_not_traced_anew():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(factor, params):
        tx = transforms.scale_by_rules([("a", factor), ("**", 1.0)])
        return tx.update(params, tx.init(params))[0]["a"]

    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    assert [float(update(x, params)) for x in (0.0, 0.5, 2.0)] == [0.0, 0.5, 2.0]


def test_rules_apply_to_groups_of_a_partition_and_in_bfloat16():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    rules = transforms.scale_by_rules([("a", 0.3), ("**", 1.0)])
    tx = optax.partition({"x": rules, "y": optax.identity()}, {"a": "x", "b": "y"})
    updates, _ = optax.with_extra_args_support(tx).update(params, tx.init(params), params)
    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["a"], jnp.full(2, 0.3, jnp.bfloat16))


WRONG = [
    ({"a": 1.0}, TypeError, "`rules` must be a list of pairs .*dict says nothing of order"),
    (3.0, TypeError, "`rules` must be a list of pairs"),
    ([], ValueError, "`rules` must be at least one pair"),
    ([("a", -1.0)], ValueError, r"`factor` must be a number >= 0.*got -1\.0"),
    ([("a", float("nan"))], ValueError, "`factor` must be a number >= 0.*got nan"),
    ([("a", "1")], TypeError, "`factor` must be a number >= 0.*got '1'"),
    ([("a", None)], TypeError, "`factor` must be a number >= 0.*got None"),
    ([("a", True)], TypeError, "`factor` must be a number >= 0.*got True"),
    (["a"], ValueError, "`rules` must be pairs"),
    ([("a", 1.0, 2.0)], ValueError, "`rules` must be pairs"),
    ([(3, 1.0)], TypeError, "scale_by_rules: a pattern must be a text"),
    ([("[z-a]", 1.0)], ValueError, "scale_by_rules: pattern .* runs backwards"),
    ([("a", 1e39)], ValueError, r"`factor` must be a number >= 0.*got 1e\+39"),
    ([("a", schedules.Constant)], TypeError, "`factor` must be a number >= 0.*Constant"),
    (schedules.Constant(1.0), TypeError, "`rules` must be a list .*got Constant"),
    (nnx.LoRAParam, TypeError, "`rules` must be a list .*LoRAParam"),
    (lambda path: 1.0, TypeError, r"`rules` must be a list .*function \(path, value\)"),
    ((rule for rule in [("a", 1.0)]), TypeError, "`rules` must be a list .*generator"),
]


@pytest.mark.parametrize(("rules", "error", "message"), WRONG)
def test_wrong_rules_are_refused_when_made(rules, error, message):
    with pytest.raises(error, match=message):
        transforms.scale_by_rules(rules)


@pytest.mark.parametrize("factor", [lambda n: "1", lambda n: None, lambda n: n - 1.0])
def test_a_function_that_begins_with_no_factor_is_refused_at_init(factor):
    tx = transforms.scale_by_rules([("a", factor), ("**", 1.0)])
    with pytest.raises((TypeError, ValueError), match=r"`factor` must be a schedule .* at 'a'"):
        tx.init({"a": jnp.ones(2), "b": jnp.ones(2)})


def test_numbers_of_python_are_scaled_and_whole_numbers_left():
    tx = transforms.scale_by_rules([("a", 3.0), ("b", 0.0)])
    params = {"a": 1.0, "b": 2.0, "n": jnp.int32(4)}
    updates, _ = tx.update(params, tx.init(params))
    assert updates == {"a": 3.0, "b": 0.0, "n": 4}


@pytest.mark.parametrize(
    "order",
    [
        ["a/**", "*/**", "b_1/**", "b_2/**"],  # the star has nothing left
        ["**", "a/**"],
        ["a/**", "b_*/**", "b_2*/**"],
        ["a/**", (), "b_*/**"],
    ],
)
def test_a_layer_that_decides_about_nothing_moves_no_rates_in_silence(order):
    params = nested({"a/w": 0.0, "b_1/w": 0.0, "b_2/w": 0.0})
    with pytest.raises(ValueError, match="layer_decay: `order` must be"):
        select.layer_decay(params, 0.5, order=order)


def test_order_looks_at_parameters_only_and_sorts_equal_numbers_by_their_texts():
    params = nested({f"b_{n}/w": 0.0 for n in ("01", "1", "001", "2")})
    rules = select.layer_decay(params | {"n": jnp.int32(1)}, 0.5, order=["*/**"])
    assert rules.patterns == ("b_001/**", "b_01/**", "b_1/**", "b_2/**")
    odd = select.layer_decay(nested({"re:a/w": 0.0, "re:b/w": 0.0}), 0.5, order=["*/**"])
    assert [odd.of(path, None) for path in ("re:a/w", "re:b/w")] == [0.5, 1.0]
    assert select.layer_decay(params, 0.5, order=[["b_0*/**"], ["b_1/**", "b_2/**"]])


def test_uncovered_parameters_and_dead_patterns_are_refused_at_init():
    params = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1)}}
    with pytest.raises(ValueError, match="no rule covers the parameter 'body/kernel'"):
        transforms.scale_by_rules([("head/**", 1.0)]).init(params)
    with pytest.raises(
        ValueError, match=r"pattern 'haed/.*' matches no parameter; .*'?head/kernel"
    ):
        transforms.scale_by_rules([("haed/**", 1.0), ("**", 1.0)]).init(params)
    with pytest.raises(ValueError, match="`order` must be such that 'body/kernel' is in one"):
        select.layer_decay(params, 0.5, order=["head/**"])
    with pytest.raises(ValueError, match=r"layer_decay: pattern 'tail/.*' matches no parameter"):
        select.layer_decay(params, 0.5, order=["tail/*/**", "**"])
    for decay in (0.0, -1.0, 1.5, float("nan"), "x"):
        with pytest.raises((ValueError, TypeError), match=r"`decay` must be a number in \(0, 1\]"):
            select.layer_decay(params, decay, order=["**"])
    with pytest.raises(ValueError, match="`order` must be a list of patterns"):
        select.layer_decay(params, 0.5, order="**")


def test_scheduled_equals_inject_hyperparams():
    params, gradient = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.1])}
    b1 = optax.linear_schedule(0.9, 0.5, 5)
    ours = transforms.scheduled(optax.scale_by_adam, b1=b1, b2=schedules.Constant(0.99), eps=1e-6)
    theirs = optax.inject_hyperparams(optax.scale_by_adam)(b1=b1, b2=0.99, eps=1e-6)
    states = [ours.init(params), theirs.init(params)]
    for _ in range(8):
        updates = []
        for n, tx in enumerate((ours, theirs)):
            update, states[n] = tx.update(gradient, states[n], params)
            updates.append(update)
        chex.assert_trees_all_close(*updates, rtol=1e-6)
        np.testing.assert_allclose(
            states[0].hyperparams["b1"], states[1].hyperparams["b1"], rtol=1e-6
        )


def test_scheduled_passes_masks_through_refuses_unknown_names_and_traces_once():
    def mask(params):
        return {"w": True, "b": False}

    params = {"w": jnp.ones(1), "b": jnp.ones(1)}
    tx = transforms.scheduled(
        optax.adamw, learning_rate=0.1, weight_decay=schedules.Constant(0.5), mask=mask
    )
    plain = optax.adamw(0.1, weight_decay=0.5, mask=mask)
    ours, theirs = (t.update(params, t.init(params), params)[0] for t in (tx, plain))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"`beta1` must be an argument of scale_by_adam.*did you mean 'b1'"
    ):
        transforms.scheduled(optax.scale_by_adam, beta1=0.9)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(b1):
        tx = transforms.scheduled(optax.scale_by_adam, b1=b1)
        return tx.update(params, tx.init(params))[0]["w"]

    update(0.5), update(0.9)


def test_scheduled_takes_a_momentum_by_a_function_and_whole_numbers_for_floats():
    momentum = optax.linear_schedule(0.9, 0.5, 4)
    tx = transforms.scheduled(optax.sgd, learning_rate=1, momentum=momentum)
    state = tx.init(jnp.ones(1))
    updates, state = tx.update(jnp.ones(1), state)
    updates, state = tx.update(jnp.ones(1), state)
    np.testing.assert_allclose(updates, -1.8, rtol=1e-6)  # 1 + 0.8 * 1
    assert jnp.issubdtype(state.hyperparams["learning_rate"].dtype, jnp.floating)
    sizes = transforms.scheduled(optax.lbfgs, learning_rate=None, memory_size=5)
    assert sizes.init(jnp.ones(1)).hyperparams == {}


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (optax.adam(0.1), {"b1": 0.9}, "`factory` must be a function"),
        (0.1, {}, "`factory` must be a function"),
        (optax.sgd, {"momentum": 0.9}, "sgd has missing a required argument: 'learning_rate'"),
        (optax.scale_by_adam, {"b1": "0.9"}, "`b1` must be a number or a schedule, got '0.9'"),
        (optax.scale_by_adam, {"b1": True}, "`b1` must be a number or a schedule, got True"),
    ],
)
def test_scheduled_refuses_what_is_no_factory_and_no_number(factory, arguments, message):
    with pytest.raises(TypeError, match=f"scheduled: {message}"):
        transforms.scheduled(factory, **arguments)


def test_a_report_of_long_names_and_patterns_fits_80_columns():
    name = "self_attention/query/kernel"
    params = nested({f"encoder/layers_{n}/{name}": 0.0 for n in (2, 10)})
    report = select.report(
        params,
        learning_rate=select.layer_decay(params, 0.75, order=["encoder/layers_*/**"]),
        decay=penalties.L2(0.1).on(f"**/{name}"),
        penalty=penalties.L1(1e-5).on("encoder/**/kernel"),
        trainable=[("encoder/layers_2/**", 0), ("**", 1)],
    )
    assert max(map(len, str(report).splitlines())) <= 80


def test_a_report_has_a_row_for_each_parameter_and_a_column_for_each_keyword():
    params = {"embed": jnp.ones((4, 2)), "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    params["steps"] = jnp.int32(3)
    rate = select.layer_decay(
        {k: params[k] for k in ("embed", "head")}, 0.5, order=["embed", "head/**"]
    )
    decay = penalties.L2(0.1).on("**/kernel") + penalties.L1(0.2).on("embed")
    report = select.report(params, learning_rate=rate, decay=decay, trainable="head/**")
    assert report.headings == ("parameter", "shape", "learning_rate", "decay", "trainable")
    found = {row[0]: row[2:] for row in report.rows}
    assert set(found) == {"embed", "head/kernel", "head/bias"}
    assert found["embed"][0] == "0.5 by 'embed'"
    assert "L1(0.2)" in found["embed"][1]
    assert "L2" not in found["embed"][1]
    assert found["head/kernel"][2] == "yes, chosen by 'head/**'"
    assert found["embed"][2] == "no, not covered by 'head/**'"
    assert str(report).startswith("9 of 17 numbers are trained\n")
    assert max(map(len, str(report).splitlines())) <= 80
    with pytest.raises(ValueError, match="pattern 'tail' matches no parameter"):
        select.report(params, trainable="tail")
    with pytest.raises(ValueError, match="no rule covers the parameter 'head/bias'"):
        select.report(params, learning_rate=[("embed", 1.0)])


def test_a_pattern_may_mean_what_is_masked_in_the_tree():
    params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    masked = {"body": optax.MaskedNode(), "head": jnp.ones(2)}
    tx = transforms.scale_by_rules([("body", 0.0), ("head", 3.0)])
    updates, _ = tx.update(masked, tx.init(masked))
    np.testing.assert_array_equal(updates["head"], [3.0, 3.0])
    reg = penalties.L1(1.0).on("body") + penalties.L2(1.0).on("head")
    assert reg(masked) == 1.0
    assert reg(params) == 3.0
    with pytest.raises(ValueError, match="pattern 'tail' matches no parameter"):
        penalties.L1(1.0).on("tail")(masked)


@pytest.mark.parametrize(
    "tx",
    [
        optax.contrib.muon(1e-2),
        optax.chain(optax.contrib.scale_by_muon(), optax.scale(-1e-2)),
        optax.partition(
            {"muon": optax.contrib.muon(1e-2), "adam": optax.adam(1e-2)},
            {"w": "muon", "b": "adam"},
        ),
    ],
    ids=["whole", "its transform", "in a partition"],
)
def test_a_prox_beside_muon_is_refused_by_its_name(tx):
    reg = penalties.L1(0.1).on("w")
    with pytest.raises(ValueError, match=r"proximal: .*Muon"):
        transforms.proximal(tx, reg, learning_rate=1e-2).init(
            {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
        )
