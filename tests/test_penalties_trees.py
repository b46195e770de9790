"""Penalties on trees: what is skipped, refused by name, carried, and sown."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from laws_penalties import jit

from jax_lrreg import penalties, pytree, text
from jax_lrreg.interop import (
    from_keras,
    from_sklearn,
    from_weight_decay,
    to_sklearn,
    to_weight_decay,
)
from jax_lrreg.penalties import (
    EWC,
    L0,
    L1,
    L1SP,
    L2,
    L2SP,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    Huber,
    L1Ball,
    LInf,
    LogSum,
    Lq,
    MaxNorm,
    NonNegative,
    NonNegativeL1,
    NuclearNorm,
    Orthogonal,
    Simplex,
    SizedGroupLasso,
    SparseGroupLasso,
    SpectralNorm,
    TotalVariation,
    UnitNorm,
)
from jax_lrreg.schedules import Linear

W = jnp.array([[3.0, -1.0], [4.0, 0.0]])


def mixed():
    """A tree of everything that may stand beside parameters."""
    return {
        "kernel": W,
        "complex": jnp.array([3 + 4j]),
        "count": jnp.arange(3),
        "flag": jnp.array(True),
        "key": jax.random.key(0),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
        "number": 2.0,
        "narrow": jnp.ones(2, jnp.bfloat16),
    }


def test_only_real_and_complex_numbers_are_parameters():
    params, penalty = mixed(), L1(1.0)
    assert penalty(params) == 8 + 5 + 2 + 2
    gradient, shrunk = penalty.gradient(params), penalty.prox(params, 1.0)
    assert jax.tree.structure(gradient) == jax.tree.structure(shrunk) == jax.tree.structure(params)
    np.testing.assert_array_equal(gradient["kernel"], np.sign(W))
    np.testing.assert_allclose(
        gradient["complex"], [(3 - 4j) / 5], rtol=1e-6
    )  # as JAX gives it: the conjugate
    np.testing.assert_allclose(shrunk["complex"], [4 * (3 + 4j) / 5], rtol=1e-6)
    assert not gradient["count"].any()
    assert np.array_equal(shrunk["count"], params["count"])
    assert shrunk["flag"]
    assert (
        jax.random.key_data(shrunk["key"]).tolist() == jax.random.key_data(params["key"]).tolist()
    )
    assert shrunk["empty"].shape == (0, 3)
    assert shrunk["narrow"].dtype == gradient["narrow"].dtype == jnp.bfloat16
    certificate = penalty.certificate(params, gradient)
    assert jax.tree.structure(certificate) == jax.tree.structure(params)
    assert certificate["count"] == certificate["empty"] == 0
    np.testing.assert_allclose(certificate["kernel"], np.sqrt(3) * 2, rtol=1e-6)
    assert certificate["complex"] == pytest.approx(2, rel=1e-6)


def test_none_stands_for_no_parameter_in_every_argument():
    params = {"a": jnp.array([3.0, -1.0]), "b": None}
    plain = {"a": params["a"]}
    tree = jax.tree.map(lambda w: 0.1 * jnp.abs(w), params)
    pairs = [
        (L1(tree), L1({"a": tree["a"]})),
        (penalties.L2SP(0.5, reference=tree), penalties.L2SP(0.5, reference={"a": tree["a"]})),
        (
            penalties.EWC(0.5, reference=tree, importance=tree),
            penalties.EWC(0.5, reference={"a": tree["a"]}, importance={"a": tree["a"]}),
        ),
    ]
    for penalty, without in pairs:
        assert penalty(params) == without(plain)
        found = penalty.prox(params, tree)
        assert found["b"] is None
        np.testing.assert_array_equal(found["a"], without.prox(plain, {"a": tree["a"]})["a"])
    for missing in (L1({"a": None}), penalties.L2SP(0.5, reference={"a": None, "c": 1.0})):
        with pytest.raises(ValueError, match="nothing at 'a'"):
            missing(plain)
    with pytest.raises(ValueError, match="a tree like `params`, with 'a'"):
        L1(0.1).prox(plain, {"a": None})


@pytest.mark.parametrize(
    "penalty",
    [
        L1(1.0),
        GroupLasso(1.0, axis=None),
        LInf(1.0, axis=None),
        MaxNorm(1.0),
        L1Ball(1.0),
        Huber(1.0, delta=1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "params", [{}, None, [], {"a": None}, jnp.zeros((0, 3)), {"n": jnp.arange(3)}], ids=str
)
@pytest.mark.sampled(12)
def test_a_tree_without_parameters_costs_nothing(penalty, params):
    value = penalty(params)
    assert value == 0
    assert value.dtype == jnp.float32
    assert jax.tree.structure(penalty.prox(params, 0.1)) == jax.tree.structure(params)
    assert jax.tree.structure(penalty.gradient(params)) == jax.tree.structure(params)
    assert penalty.sparsity(params).overall == 0


def test_strengths_may_be_arrays_trees_and_schedules():
    params = {"a": {"kernel": W}, "b": {"kernel": jnp.ones(3)}}
    weights = {"a": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])}, "b": {"kernel": 0.5}}
    assert L1(weights)(params) == 3 + 1.5
    np.testing.assert_allclose(L1(weights).prox(params, 1.0)["a"]["kernel"], [[2, -1], [4, 0]])
    np.testing.assert_allclose(L1(weights).prox(params, 1.0)["b"]["kernel"], 0.5)
    assert L1(jnp.array([[1.0], [0.0]]))(W) == 4  # one number for each row
    scheduled = L1(Linear(1.0, steps=10))
    assert scheduled(W, 5) == 4
    assert jax.jit(scheduled)(W, jnp.int32(10)) == 0
    with pytest.raises(ValueError, match="`strength` is a schedule, so `step` must be given"):
        scheduled(W)
    np.testing.assert_allclose(scheduled.prox(W, 1.0, 5), L1(0.5).prox(W, 1.0))
    np.testing.assert_allclose(scheduled.gradient(W, 5), L1(0.5).gradient(W))
    assert scheduled.certificate(W, -0.5 * jnp.sign(W), 5) == 0


def test_a_sum_has_a_prox_where_selections_are_disjoint():
    params = {"kernel": W, "bias": jnp.ones(2)}
    both = L1(1.0).on("kernel") + L2(1.0).on("bias")
    np.testing.assert_allclose(both.prox(params, 1.0)["bias"], 0.5)
    assert both(params) == 8 + 1
    assert (both + L1(1.0))(params) == 8 + 1 + 8 + 2
    assert len((L1(1.0) + (L2(1.0) + L1(2.0))).penalties) == 3
    for call in ("prox", "certificate"):
        with pytest.raises(ValueError, match="L1 and L2 both apply to 'bias'"):
            getattr(L1(1.0) + L2(1.0), call)(params, params if call == "certificate" else 1.0)
    certificate = both.certificate(params, {"kernel": -jnp.sign(W), "bias": jnp.ones(2)})
    assert certificate["kernel"] == 0
    assert certificate["bias"] == pytest.approx(np.sqrt(8))
    only = L1(1.0).on("kernel").certificate(params, params)
    assert only["bias"] == pytest.approx(
        np.sqrt(2)
    )  # nothing penalises it, so its gradient must vanish


def test_python_adds_penalties_up():
    params = {"kernel": W}
    terms = [L1(1.0), L2(1.0).on("kernel"), NonNegative()]
    assert sum(terms[:2]) == terms[0] + terms[1]
    assert sum(terms) == terms[0] + terms[1] + terms[2]
    assert sum(terms[:1]) is terms[0]
    assert sum(terms[:2])(params) == 8 + 13
    for other in (1, 0.0, False, None):
        with pytest.raises(TypeError, match="unsupported operand"):
            other + L1(1.0)


def test_a_box_may_be_open_on_one_side():
    w = jnp.array([-3.0, 0.5, 3.0])
    below, above = Box(max=1.0), Box(min=-1.0)
    np.testing.assert_array_equal(below.prox(w, 1.0), [-3, 0.5, 1])
    np.testing.assert_array_equal(above.prox(w, 1.0), [-1, 0.5, 3])
    assert repr(below) == "Box(max=1.0)"
    assert repr(above) == "Box(-1.0)"
    for box in (below, above):
        assert text.parse(repr(box)) == box == text.from_dict(text.to_dict(box))
        assert box(w) == np.inf
        assert box(box.prox(w, 1.0)) == 0
    assert (
        below.certificate(below.prox(w, 1.0), jnp.array([0.0, 0.0, -2.0])) == 0
    )  # held by the bound
    assert below.certificate(below.prox(w, 1.0), jnp.array([0.0, 0.0, 2.0])) == 2
    assert above.certificate(above.prox(w, 1.0), jnp.array([2.0, 0.0, 0.0])) == 0


@pytest.mark.parametrize("step", ["x", True, 1j, [1], jnp.array(True)], ids=str)
def test_a_step_that_is_no_number_is_refused_also_where_no_schedule_asks(step):
    for call in (
        lambda: L2(0.1)(W, step),
        lambda: L2(0.1).gradient(W, step),
        lambda: L1(0.1).prox(W, 1.0, step),
    ):
        with pytest.raises(TypeError, match=r"L.: `step` must be a number, or None, got "):
            call()


def test_multiples_reach_value_prox_certificate_and_max_strength():
    many = (L1(1.0) / 4).on([("kernel", 2)])
    params = {"kernel": W}
    assert many(params) == 4
    np.testing.assert_allclose(many.prox(params, 1.0)["kernel"], L1(0.5).prox(W, 1.0))
    assert many.certificate(params, {"kernel": -0.5 * jnp.sign(W)})["kernel"] == 0
    assert many.max_strength({"kernel": W}) == 8
    assert (0 * L1(1.0)).certificate(W, W) == pytest.approx(np.sqrt(26))
    assert (0.5 * (L1(1.0).on("a") + NonNegative().on("b")))({"a": W, "b": -W}) == np.inf
    assert np.isfinite((0 * (L1(1.0) + NonNegative()))(jnp.ones(2)))


def test_the_precision_of_a_value_is_that_of_the_parameters():
    with jax.enable_x64(True):
        for penalty in (
            L1(np.float64(0.5)) / np.float64(3),
            np.float64(2) * L2(np.ones((2, 2))),
            L1(Linear(1.0, steps=3)),
        ):
            assert penalty(np.float32(W), 1).dtype == jnp.float32
            assert penalty(np.float64(W), 1).dtype == jnp.float64
            assert penalty.prox(np.float32(W), np.float64(0.1), 1).dtype == jnp.float32


def test_sparsity_counts_what_the_penalty_makes_zero():
    params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.zeros(4)}
    found = jax.jit(L1(1.0).sparsity)(params)
    assert found.overall == 7 / 8
    assert found.leaves == {"bias": 1.0, "kernel": 0.75}
    assert GroupLasso(1.0, axis=-2).on("kernel").sparsity(params).overall == 0.5
    assert GroupLasso(1.0, axis=-2).on("kernel").sparsity(params).leaves == {"kernel": 0.5}
    assert L1SP(1.0, reference=jnp.ones(2)).sparsity(jnp.array([1.0, 2.0])).overall == 0.5
    assert L1(Linear(1.0, steps=3)).sparsity(params).overall == 7 / 8  # needs no step


def test_numbered_groups_are_those_of_their_indices():
    w = jnp.array([[3.0, 0.0], [0.1, 0.1], [0.0, 4.0], [0.2, 0.0], [1.0, 0.0]])
    numbers = (0, 1, 0, 1, 2)
    penalty, alone = GroupLasso(1.0, groups=list(numbers)), GroupLasso(1.0, axis=None)
    rows = [jnp.array(r) for r in ([0, 2], [1, 3], [4])]
    np.testing.assert_allclose(penalty(w), sum(alone(w[r]) for r in rows), rtol=1e-6)
    moved = penalty.prox(w, 0.5)
    for r in rows:
        np.testing.assert_allclose(moved[r], alone.prox(w[r], 0.5), rtol=1e-6)
    np.testing.assert_allclose(penalty.sparsity(moved).overall, 1 / 3, rtol=1e-6)
    by_column = GroupLasso(1.0, axis=-2, groups=np.array(numbers))
    np.testing.assert_allclose(by_column.prox(w, 0.5)[:, 1], penalty.prox(w[:, 1], 0.5), rtol=1e-6)
    assert text.parse(repr(penalty)) == penalty == text.from_dict(text.to_dict(penalty))


def test_stacked_layers_are_layers():
    layers = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    for make in (
        lambda stacked: GroupLasso(0.5, axis=None, stacked=stacked),
        lambda stacked: GroupLasso(0.5, axis=0, stacked=stacked),
        lambda stacked: LInf(0.5, axis=(0, 1), stacked=stacked),
        lambda stacked: SizedGroupLasso(0.5, axis=None, stacked=stacked),
        lambda stacked: Orthogonal(0.5, stacked=stacked),
        lambda stacked: NuclearNorm(0.5, stacked=stacked),
        lambda stacked: SpectralNorm(0.5, iterations=50, stacked=stacked),
        lambda stacked: TotalVariation(0.5, axis=0, stacked=stacked),
        lambda stacked: MaxNorm(0.5, stacked=stacked),
        lambda stacked: Simplex(axis=None, stacked=stacked),
    ):
        together, alone = make(1), make(0)
        prox = not isinstance(together, Orthogonal | TotalVariation)

        def run(layers, together=together, alone=alone, prox=prox):
            pairs = [(together(layers), jnp.sum(jax.vmap(alone)(layers)))]
            if prox:
                pairs.append(
                    (
                        together.prox(layers, 0.3),
                        jax.vmap(lambda layer: alone.prox(layer, 0.3))(layers),
                    )
                )
            return pairs

        for pair in jit(run)(layers):
            np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)
    per_layer = NuclearNorm(jnp.array([1.0, 0.0, 2.0]), stacked=1)
    expected = NuclearNorm(1.0)(layers[0]) + NuclearNorm(2.0)(layers[2])
    np.testing.assert_allclose(per_layer(layers), expected, rtol=1e-5)
    assert per_layer.certificate(layers, -per_layer.gradient(layers)) < 1e-5


def test_a_convolution_is_one_matrix_from_all_inputs_to_the_outputs():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 5)), jnp.float32)
    matrix = kernel.reshape(-1, 5)
    for penalty in (Orthogonal(1.0), NuclearNorm(1.0), SpectralNorm(1.0, iterations=50)):
        np.testing.assert_allclose(penalty(kernel), penalty(matrix), rtol=1e-5)
    filters = GroupLasso(1.0, axis=(-4, -3, -2))
    np.testing.assert_allclose(filters(kernel), np.linalg.norm(matrix, axis=0).sum(), rtol=1e-5)
    assert Orthogonal(1.0)(jnp.eye(5)[:, :3]) == Orthogonal(1.0)(jnp.eye(3, 5)) == 0


def test_low_rank_is_exact_zero_rank_and_its_certificate_says_so():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    z = NuclearNorm(2.0).prox(w, 1.0)
    assert np.linalg.matrix_rank(z, tol=1e-5) < 4
    assert NuclearNorm(2.0).certificate(z, z - w) < 1e-4
    assert not NuclearNorm(100.0).prox(w, 1.0).any()
    assert NuclearNorm(2.0).max_strength(w) == pytest.approx(np.linalg.norm(w, 2), rel=1e-5)
    np.testing.assert_array_equal(NuclearNorm(1.0).gradient(jnp.zeros((3, 2))), 0)
    one = jnp.outer(
        jnp.arange(1.0, 4), jnp.ones(2)
    )  # JAX would fill the second direction with something
    expected = one / np.linalg.norm(one)
    np.testing.assert_allclose(NuclearNorm(1.0).gradient(one), expected, atol=1e-6)


@pytest.mark.parametrize("penalty", [NuclearNorm(1.0), SpectralNorm(1.0)], ids=repr)
def test_a_large_decomposition_is_refused_on_a_mesh_of_tpus_before_it_is_compiled(
    penalty, monkeypatch
):
    chip = SimpleNamespace(device_kind="TPU v5 lite")
    mesh = SimpleNamespace(empty=False, size=4, abstract_device=chip)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    large, small = (jax.ShapeDtypeStruct((n, 300), jnp.float32) for n in (257, 256))
    prox = lambda w: penalty.prox(w, 0.1)  # noqa: E731
    message = r"`params` must be .* at most 256 on a mesh of TPUs.* got '257 x 300'"
    for decomposes in (prox, penalty.gradient)[: 1 + isinstance(penalty, NuclearNorm)]:
        jax.eval_shape(decomposes, small)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(decomposes, large)
    mesh.size = 1
    jax.eval_shape(prox, large)


def test_the_derivative_of_the_nuclear_norms_gradient_is_that_of_differences():
    rng = np.random.default_rng(0)
    gradient = jax.jit(NuclearNorm(1.0).gradient)
    along = jax.jit(lambda w, move: jax.jvp(NuclearNorm(1.0).gradient, (w,), (move,))[1])
    with jax.enable_x64(True):
        for shape in ((4, 3), (2, 3)):
            w, move = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for _ in range(2))
            near = (gradient(w + 1e-6 * move) - gradient(w - 1e-6 * move)) / 2e-6
            np.testing.assert_allclose(along(w, move), near, atol=1e-7)


def test_the_spectral_norm_carries_its_vectors_as_data():
    rng = np.random.default_rng(0)
    params = {"layer": {"kernel": jnp.float32(rng.normal(size=(8, 5))), "bias": jnp.ones(5)}}
    largest = np.linalg.norm(params["layer"]["kernel"], 2)
    penalty = (SpectralNorm(1.0, iterations=1).on("**/kernel") + L2(0.0)) * 1.0
    start = penalty.advance(params)
    assert jax.tree.structure(start) == jax.tree.structure(start.advance(params))

    def step(penalty, _):
        return penalty.advance(params), penalty(params)

    last, values = jax.lax.scan(step, start, None, length=60)
    assert abs(values[0] - largest) > 1e-4
    assert np.all(np.diff(values) >= -1e-5)
    np.testing.assert_allclose(values[-1], largest, rtol=1e-5)
    u, _, vh = np.linalg.svd(params["layer"]["kernel"])
    np.testing.assert_allclose(
        last.gradient(params)["layer"]["kernel"], np.outer(u[:, 0], vh[0]), atol=1e-4
    )
    assert not last.gradient(params)["layer"]["bias"].any()
    assert SpectralNorm(1.0)(jnp.zeros((3, 2))) == 0
    with pytest.raises(
        ValueError, match=r"`vectors` must be what `advance` made for '', of shape \(4, 1\)"
    ):
        SpectralNorm(1.0, vectors=jnp.ones((5, 1)))(jnp.ones((3, 4)))


def test_references_are_found_by_path_and_need_to_cover_only_what_is_chosen():
    pretrained = {"encoder": {"kernel": jnp.ones((2, 2))}}
    params = {"encoder": {"kernel": 2 * jnp.ones((2, 2))}, "head": {"kernel": jnp.ones(3)}}
    penalty = L2SP(1.0, reference=pretrained).on("encoder/**") + L2(1.0).on("head/**")
    assert penalty(params) == 2 + 1.5
    with pytest.raises(
        ValueError, match=r"L2SP: `reference` must be a tree like the parameters, .* 'head/kernel'"
    ):
        L2SP(1.0, reference=pretrained)(params)
    with pytest.raises(
        ValueError, match=r"L1SP: `reference` must be of shape \(2, 2\) at 'encoder/kernel'"
    ):
        L1SP(1.0, reference={"encoder": {"kernel": jnp.ones(2)}}).on("encoder/**")(params)
    pure = nnx.to_pure_dict(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param))
    assert L2SP(1.0, reference=pure)(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) == 0
    assert (
        L2SP(1.0, reference={"w": jnp.ones(1), "key": jax.random.key(0)})({"w": jnp.ones(1)}) == 0
    )


def test_the_fisher_information_is_the_mean_of_squares_of_single_gradients():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 37, 3))
    params = {"w": jnp.ones(3), "count": jnp.int32(2), "b": jnp.zeros((), jnp.bfloat16)}

    def loss(params, example):
        return jnp.sum((params["w"] * example["x"] + params["b"] - example["y"]) ** 2)

    single = 2 * (x - y) * x
    for batch_size in (1, 8, 37, 64):
        found = penalties.fisher(loss, params, {"x": x, "y": y}, batch_size=batch_size)
        np.testing.assert_allclose(found["w"], np.mean(single**2, axis=0), rtol=1e-5)
        assert found["b"].dtype == jnp.float32
        assert found["count"] == 0
    assert np.all(found["w"] > 2 * np.mean(single, axis=0) ** 2)
    anchored = EWC(1.0, importance=found["w"], reference=params["w"])
    np.testing.assert_allclose(anchored(2 * params["w"]), found["w"].sum() / 2, rtol=1e-6)


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        dense = linen.Dense(4)
        for _ in range(2):
            x = dense(x)
            self.sow("losses", "hidden", x)
        return x


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x = linen.Dense(3)(x)
        self.sow("losses", "hidden", x)
        return x, None


def test_activations_of_linen_count_once_for_any_batch_and_number_of_calls():
    model, x = Net(), jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), x)
    params = {"params": variables["params"]}
    _, sown = model.apply(params, x, mutable=["losses"])
    first, second = sown["losses"]["hidden"]
    value = penalties.activity_penalty(L2(1.0), sown["losses"], batch_size=5, calls=2)
    expected = (np.sum(np.square(first)) + np.sum(np.square(second))) / 2 / 2 / 5
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    _, twice = model.apply(params, jnp.concatenate([x, x]), mutable=["losses"])
    again = penalties.activity_penalty(L2(1.0), twice["losses"], batch_size=10, calls=2)
    np.testing.assert_allclose(again, expected, rtol=1e-5)
    _, leaked = model.apply(variables, x, mutable=["losses"])  # what `init` sowed is still there
    with pytest.raises(ValueError, match="got 'one with 4'"):
        penalties.activity_penalty(L2(1.0), leaked["losses"], batch_size=5, calls=2)
    with pytest.raises(
        ValueError, match="`batch_size` must be the length of one of the first two axes of 'hidden'"
    ):
        penalties.activity_penalty(L2(1.0), sown["losses"], batch_size=7, calls=2)
    _, nothing = model.apply(params, x, mutable=["intermediates"])
    with pytest.raises(
        ValueError, match="`collection` must be a collection with activations in it"
    ):
        penalties.activity_penalty(L2(1.0), nothing, batch_size=5)


@pytest.mark.parametrize("remat", [False, True])
def test_activations_under_scan_and_remat_are_those_of_the_layers(remat):
    layer = linen.remat(Layer) if remat else Layer
    axes = {"params": 0, "losses": 0}
    scanned = linen.scan(layer, variable_axes=axes, split_rngs={"params": True}, length=4)()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    params = {"params": scanned.init(jax.random.key(0), x, None)["params"]}

    def loss(params):
        _, sown = scanned.apply(params, x, None, mutable=["losses"])
        return penalties.activity_penalty(L2(1.0), sown["losses"], batch_size=5), sown["losses"]

    (value, sown), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    hidden = sown["hidden"][0]
    assert hidden.shape == (4, 5, 3)
    np.testing.assert_allclose(value, np.sum(np.square(hidden)) / 2 / 5, rtol=1e-5)
    assert np.all([np.any(leaf) for leaf in jax.tree.leaves(gradient)])
    silent = linen.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)()
    _, dropped = silent.apply(params, x, None, mutable=["losses"])
    with pytest.raises(ValueError, match=r"under `nn.scan` among `variable_axes`"):
        penalties.activity_penalty(L2(1.0), dropped, batch_size=5)


@pytest.mark.skipif(not hasattr(nnx, "capture"), reason="Flax 0.12.2 has no nnx.capture")
def test_activations_of_nnx_come_from_capture():
    class Model(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            hidden = self.dense(x)
            self.sow(nnx.Intermediate, "hidden", hidden)
            return hidden

    x = jnp.ones((5, 4))
    hidden, state = nnx.capture(Model(), nnx.Intermediate)(x)
    value = penalties.activity_penalty(L1(0.5).on("hidden"), state, batch_size=5)
    np.testing.assert_allclose(value, np.abs(hidden).sum() / 2 / 5, rtol=1e-6)


class NNXLayer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dense(x)
        self.sow(nnx.Intermediate, "hidden", x)
        return x


class NNXStack(nnx.Module):
    """Four layers under `nnx.scan`, each rematerialised."""

    def __init__(self):
        make = nnx.vmap(NNXLayer, in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=4)(make)(nnx.Rngs(0))

    def __call__(self, x):
        layer = nnx.remat(lambda layer, x: layer(x))
        return nnx.scan(lambda x, one: layer(one, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.layers
        )


@pytest.mark.skipif(not hasattr(nnx, "capture"), reason="Flax 0.12.2 has no nnx.capture")
def test_activations_of_nnx_under_scan_and_remat_are_those_of_the_layers():
    x = jnp.float32(np.random.default_rng(0).normal(size=(5, 3)))
    graph, params, rest = nnx.split(NNXStack(), nnx.Param, ...)

    def loss(params):
        _, state = nnx.capture(nnx.merge(graph, params, rest), nnx.Intermediate)(x)
        return penalties.activity_penalty(L2(1.0), state, batch_size=5)

    def plain(pure):
        total, out = 0.0, x
        for kernel, bias in zip(
            pure["layers"]["dense"]["kernel"], pure["layers"]["dense"]["bias"], strict=True
        ):
            out = out @ kernel + bias[None]
            total = total + jnp.sum(out**2) / 2 / 5
        return total

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected, slopes = jax.value_and_grad(plain)(nnx.to_pure_dict(params))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        nnx.to_pure_dict(gradient),
        slopes,
    )


def test_input_side_penalties_have_their_formulas():
    rng, key = np.random.default_rng(0), jax.random.key(0)
    matrix, x = jnp.float32(rng.normal(size=(3, 4))), jnp.float32(rng.normal(size=(6, 4)))
    value = jax.jit(
        lambda x: penalties.jacobian_penalty(lambda x: matrix @ x, x, key, projections=2000)
    )(x)
    np.testing.assert_allclose(value, np.sum(np.square(matrix)) / 2, rtol=0.02)
    other = penalties.jacobian_penalty(lambda x: matrix @ x, x, jax.random.key(1), projections=1)
    assert other != penalties.jacobian_penalty(lambda x: matrix @ x, x, key, projections=1)
    np.testing.assert_allclose(
        penalties.gradient_penalty(lambda x: x @ x, x, target=0.0),
        4 * np.mean(np.sum(x**2, 1)),
        rtol=1e-5,
    )
    narrow = jnp.ones((2, 2000), jnp.float16)  # whose sums of squares a float16 does not hold
    steep = penalties.gradient_penalty(
        lambda x: 10 * x.astype(jnp.float32).sum(), narrow, target=0.0
    )
    assert steep == pytest.approx(200_000)
    spread = penalties.jacobian_penalty(lambda x: x * 10, narrow, jax.random.key(0))
    assert spread.dtype == jnp.float32
    assert spread == pytest.approx(100_000, rel=0.01)
    flat = jax.grad(lambda w: penalties.gradient_penalty(lambda x: jnp.sum(w * x), x))(jnp.zeros(4))
    assert np.all(np.isfinite(flat))
    u = penalties.points_between(jnp.zeros((4, 2, 3)), jnp.ones((4, 2, 3)), key)
    assert len(np.unique(u)) == 4


def keras(name, kind, **config):
    """An object that looks as Keras's do; test_interop compares the real ones."""
    module = f"keras.src.{kind}.{kind}"
    return type(name, (), {"__module__": module, "get_config": lambda self: config})()


def test_keras_objects_become_ours():
    assert from_keras(keras("L1", "regularizers", l1=0.1)) == L1(0.1)
    assert from_keras(keras("L2", "regularizers", l2=0.1)) == L2(0.2)
    assert from_keras(keras("L1L2", "regularizers", l1=0.1, l2=0.2)) == ElasticNet(0.1, l2=0.4)
    assert from_keras(keras("NonNeg", "constraints")) == NonNegative()
    assert from_keras(keras("MaxNorm", "constraints", max_value=2, axis=0)) == MaxNorm(2.0, axis=0)
    assert from_keras(keras("UnitNorm", "constraints", axis=[0, 1, 2])) == UnitNorm(axis=(0, 1, 2))
    assert from_keras(
        keras("MinMaxNorm", "constraints", min_value=0.0, max_value=2.0, rate=1.0, axis=0)
    ) == MaxNorm(2.0, axis=0)
    w = jnp.array(
        [[1.0, -2.0, 0.0], [0.5, 3.0, -1.0]]
    )  # with the numbers that Keras 3.15 gives for it
    assert from_keras(keras("L2", "regularizers", l2=0.01))(w) == pytest.approx(0.1525)
    assert from_keras(keras("L1L2", "regularizers", l1=0.01, l2=0.02))(w) == pytest.approx(0.38)
    columns = from_keras(keras("MaxNorm", "constraints", max_value=2, axis=0)).prox(
        jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0
    )
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), [2.0, 0.5], rtol=1e-6)


def test_weight_decay_is_the_coupled_gradient():
    assert from_weight_decay(0.15) == L2(0.15)
    assert to_weight_decay(L2(30.0) / 200) == 0.15
    np.testing.assert_allclose(from_weight_decay(0.15).gradient(W), 0.15 * W)


def test_a_report_says_what_applies_and_what_does_not_fit():
    params = {"encoder": {"kernel": W, "bias": jnp.ones(2)}, "steps": jnp.int32(0)}
    penalty = 0.5 * L1(Linear(1.0, steps=3)).on([("**/bias", 0), ("**", 1)]) + NuclearNorm(0.1)
    rows = {row[0]: row[1:] for row in penalty.report(params).rows}
    assert rows["encoder/kernel"] == (
        "2x2",
        "0.5 * L1(Linear(1.0, steps=3)) + NuclearNorm(0.1)",
        rows["encoder/kernel"][2],
    )
    assert rows["encoder/bias"][2].startswith("refused: NuclearNorm: `stacked`")
    assert rows["steps"][1:] == ("", "holds no real numbers (int32)")
    assert "encoder/kernel" in str(penalty.report(params))


BAD = [
    ("strength", lambda: L1(-1.0)),
    ("strength", lambda: L1(float("nan"))),
    ("strength", lambda: L1(float("inf"))),
    ("strength", lambda: L1("0.1")),
    ("strength", lambda: L1(None)),
    ("strength", lambda: L1(True)),
    ("strength", lambda: L1(1 + 2j)),
    ("strength", lambda: L1({"a": -1.0})),
    ("strength", lambda: L1({"a": Linear(1.0, steps=3)})),
    ("strength", lambda: L1(L2(0.1))),
    ("strength", lambda: L1(jnp.array([0.1, -0.1]))),
    ("strength", lambda: L1(jnp.ones(3))(W)),
    ("strength", lambda: L1(jnp.ones((1, 2, 2)))(W)),
    ("strength", lambda: L1({"other": 1.0})({"kernel": W})),
    ("strength", lambda: L2(-0.5)),
    ("l1", lambda: ElasticNet(-1.0, l2=0.0)),
    ("l2", lambda: ElasticNet(1.0, l2=-1.0)),
    ("l1_ratio", lambda: ElasticNet.from_alpha_ratio(1.0, l1_ratio=1.5)),
    ("alpha", lambda: ElasticNet.from_alpha_ratio(-1.0, l1_ratio=0.5)),
    ("delta", lambda: Huber(1.0, delta=0.0)),
    ("q", lambda: Lq(1.0, q=0.3)),
    ("q", lambda: Lq(1.0, q="1/2")),
    ("gamma", lambda: MCP(1.0, gamma=0.0)),
    ("a", lambda: SCAD(1.0, a=2.0)),
    ("eps", lambda: LogSum(1.0, eps=-1.0)),
    ("strength", lambda: L0(-1.0)),
    ("reference", lambda: L2SP(1.0, reference=None)),
    ("reference", lambda: L2SP(1.0, reference={})),
    ("reference", lambda: L1SP(1.0, reference=jnp.array([jnp.nan]))),
    ("reference", lambda: L2SP(1.0, reference=jnp.ones(3))(W)),
    ("reference", lambda: L2SP(1.0, reference=jnp.ones(1, complex))(jnp.ones(1))),
    ("importance", lambda: EWC(1.0, importance=-jnp.ones(2), reference=jnp.ones(2))),
    ("importance", lambda: EWC(1.0, importance=jnp.ones(3), reference=W)(W)),
    ("axis", lambda: GroupLasso(1.0, axis="rows")),
    ("axis", lambda: GroupLasso(1.0, axis=1.0)),
    ("axis", lambda: GroupLasso(1.0, axis=True)),
    ("`axis` must be given, such as -2", lambda: GroupLasso(1.0)),
    ("axis", lambda: GroupLasso(1.0, axis=(0, 0))),
    ("axis", lambda: GroupLasso(1.0, axis=(0, -2))(W)),
    ("axis", lambda: GroupLasso(1.0, axis=-3)({"kernel": W})),
    ("axis", lambda: GroupLasso(1.0, axis=-2)({"kernel": W, "bias": jnp.ones(2)})),
    ("axis", lambda: GroupLasso(1.0)),
    ("groups", lambda: GroupLasso(1.0, groups=[])),
    ("groups", lambda: GroupLasso(1.0, groups=[0, 1.5])),
    ("groups", lambda: GroupLasso(1.0, groups=[0, -1])),
    ("groups", lambda: SizedGroupLasso(1.0, groups=np.eye(2, dtype=int))),
    ("groups", lambda: SparseGroupLasso(1.0, group=1.0, groups=3)),
    ("groups", lambda: GroupLasso(1.0, groups=[0, 0, 1])({"kernel": jnp.ones((2, 3))})),
    ("strength", lambda: GroupLasso(jnp.ones(3), groups=[0, 0, 1])(jnp.ones(3))),
    ("stacked", lambda: GroupLasso(1.0, axis=0, stacked=-1)),
    ("stacked", lambda: GroupLasso(1.0, axis=None, stacked=3)(W)),
    ("strength", lambda: GroupLasso(jnp.ones((2, 1)), axis=-2)(W)),
    ("group", lambda: SparseGroupLasso(1.0, group=-1.0, axis=0)),
    ("strength", lambda: LInf(-1.0, axis=0)),
    ("strength", lambda: SizedGroupLasso(-1.0, axis=0)),
    ("stacked", lambda: Orthogonal(1.0)(jnp.ones(3))),
    ("stacked", lambda: NuclearNorm(1.0, stacked=1)(W)),
    ("strength", lambda: NuclearNorm(jnp.ones((2, 2)))(W)),
    ("step_size", lambda: NuclearNorm(1.0).prox(W, jnp.ones((2, 2)))),
    ("step_size", lambda: SpectralNorm(1.0).prox(W, jnp.ones((2, 2)))),
    ("step_size", lambda: UnitNorm().prox(W, jnp.ones((2, 2)))),
    ("iterations", lambda: SpectralNorm(1.0, iterations=0)),
    ("axis", lambda: TotalVariation(1.0, axis=2)(W)),
    ("max", lambda: Box(min=1.0, max=0.0)),
    ("min", lambda: Box()),
    ("max", lambda: Box(max="1")),
    ("min", lambda: Box(min=float("-inf"), max=0.0)),
    ("max_norm", lambda: MaxNorm(0.0)),
    ("radius", lambda: L1Ball(-1.0)),
    ("total", lambda: Simplex(0.0)),
    ("radius", lambda: L1Ball(jnp.ones(3))(W)),
    ("kernel", lambda: NonNegative()({"kernel": jnp.ones(2, complex)})),
    ("kernel", lambda: Simplex()({"kernel": jnp.ones(2, complex)})),
    ("kernel", lambda: NonNegativeL1(1.0)({"kernel": jnp.ones(2, complex)})),
    ("step_size", lambda: L1(1.0).prox(W, -1.0)),
    ("step_size", lambda: L1(1.0).prox(W, None)),
    ("step_size", lambda: L1(1.0).prox({"kernel": W}, {"bias": 1.0})),
    ("step_size", lambda: L1(1.0).prox(W, jnp.ones(3))),
    ("grads", lambda: L1(1.0).certificate({"kernel": W}, {"bias": W})),
    ("grads", lambda: L1(1.0).certificate(W, jnp.ones(3))),
    ("*", lambda: -1.0 * L1(1.0)),
    ("*", lambda: "2" * L1(1.0)),
    ("*", lambda: (jnp.ones(3) * L1(1.0))(W)),
    ("/", lambda: L1(1.0) / 0),
    ("NonNegative", lambda: 2.0 * NonNegative()),
    ("NonNegative", lambda: NonNegative() / 2),
    ("strength", lambda: L1(jnp.ones((2, 2))).max_strength(W)),
    ("L2", lambda: L2(1.0).max_strength(W)),
    ("Orthogonal", lambda: Orthogonal(1.0).prox(W, 1.0)),
    ("TotalVariation", lambda: TotalVariation(1.0, axis=0).prox(W, 1.0)),
    ("TotalVariation", lambda: TotalVariation(1.0, axis=0).certificate(W, W)),
    ("SpectralNorm", lambda: SpectralNorm(1.0).certificate(W, W)),
    ("pattern", lambda: L1(1.0).on("**/kernle")({"encoder": {"kernel": W}})),
    ("pattern", lambda: L1(1.0).on(3)),
    ("multiplier", lambda: L1(1.0).on([("**", -1)])),
    ("batch_size", lambda: penalties.fisher(lambda w, x: w, 1.0, jnp.ones(3), batch_size=0)),
    (
        "examples",
        lambda: penalties.fisher(lambda w, x: w, 1.0, {"x": jnp.ones(3), "y": jnp.ones(2)}),
    ),
    ("examples", lambda: penalties.fisher(lambda w, x: w, 1.0, jnp.ones((0, 3)))),
    ("calls", lambda: penalties.activity_penalty(L1(1.0), {"h": (W,)}, batch_size=2, calls=0)),
    ("batch_size", lambda: penalties.activity_penalty(L1(1.0), {"h": (W,)}, batch_size=3)),
    (
        "batch_size",
        lambda: penalties.activity_penalty(L1(1.0), {"h": jnp.float32(3)}, batch_size=3),
    ),
    ("penalty", lambda: penalties.activity_penalty(0.1, {"h": (W,)}, batch_size=2)),
    ("target", lambda: penalties.gradient_penalty(jnp.sum, W, target=-1.0)),
    ("x", lambda: penalties.gradient_penalty(jnp.sum, jnp.float32(1.0))),
    (
        "projections",
        lambda: penalties.jacobian_penalty(jnp.sin, W, jax.random.key(0), projections=0),
    ),
    ("fake", lambda: penalties.points_between(W, W[:1], jax.random.key(0))),
    ("from_keras", lambda: from_keras("l2")),
    (
        "OrthogonalRegularizer",
        lambda: from_keras(keras("OrthogonalRegularizer", "regularizers", factor=1, mode="rows")),
    ),
    (
        "rate",
        lambda: from_keras(
            keras("MinMaxNorm", "constraints", min_value=0, max_value=2, rate=0.5, axis=0)
        ),
    ),
    (
        "min_value",
        lambda: from_keras(
            keras("MinMaxNorm", "constraints", min_value=1, max_value=2, rate=1, axis=0)
        ),
    ),
    ("estimator", lambda: to_sklearn(L1(1.0), estimator="lasso", num_examples=3)),
    ("num_examples", lambda: to_sklearn(L2(1.0), estimator="Ridge", num_examples=0)),
    ("Lasso", lambda: to_sklearn(L2(1.0), estimator="Lasso", num_examples=3)),
    ("from_sklearn", lambda: from_sklearn(L1(1.0))),
    ("weight_decay", lambda: from_weight_decay(-1.0)),
    ("to_weight_decay", lambda: to_weight_decay(L1(1.0))),
]


@pytest.mark.parametrize(
    ("name", "call"), BAD, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BAD)]
)
def test_bad_input_is_refused_by_name(name, call):
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
        call()
    assert name in str(caught.value)
    assert len(str(caught.value)) < 600


def test_traced_numbers_are_trusted_and_compile_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(strength, w):
        return GroupLasso(strength, axis=0).prox(w, strength) + L1(strength).gradient(w)

    run(0.1, W)
    run(0.2, W)


def test_a_gradient_passes_through_the_root_of_an_equation():
    steps = np.array([[0.1, 0.2], [0.3, 0.4]])

    @jax.jit
    def total(strength):
        return jnp.sum(GroupLasso(strength, axis=0).prox(np.asarray(W, float), steps) ** 2)

    with jax.enable_x64(True):
        near = (total(0.5 + 1e-6) - total(0.5 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(total))(0.5), near, rtol=1e-6)


def test_a_spectral_norm_lowers_the_largest_singular_value_from_the_first_call():
    w = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    sizes = np.linalg.svd(w, compute_uv=False)
    penalty = penalties.SpectralNorm(1.0)
    assert penalty(w) == pytest.approx(sizes[0], rel=0.02)
    lower = w - 0.5 * np.asarray(penalty.gradient(w))
    assert np.linalg.norm(lower, 2) < max(sizes[0] - 0.4, sizes[1] + 0.1)


def test_no_strength_is_enough_for_a_penalty_times_0():
    assert (0 * L1(1.0)).max_strength(jnp.array([0.0, 1.0])) == jnp.inf
    assert (0 * L1(1.0)).max_strength(jnp.zeros(2)) == 0


@pytree
class Cauchy(penalties.ArrayPenalty):
    """As CONTRIBUTING.md has it: nothing but a value."""

    strength: float

    def value(self, w):
        return jnp.sum(self.strength * jnp.log1p(w**2))


def test_a_penalty_of_ones_own_needs_a_value_only():
    params = {"head": {"kernel": W}, "count": jnp.int32(1)}
    penalty = 2 * Cauchy(Linear(0.1, steps=4)).on("**/kernel")
    np.testing.assert_allclose(penalty(params, 2), 0.1 * np.log1p(np.square(W)).sum(), rtol=1e-6)
    slope = 0.1 * 2 * W / (1 + W**2)
    np.testing.assert_allclose(penalty.gradient(params, 2)["head"]["kernel"], slope, rtol=1e-5)
    assert Cauchy(0.1) == Cauchy(0.1)
    assert repr(Cauchy(0.1)) == "Cauchy(0.1)"
    with pytest.raises(NotImplementedError, match="Cauchy has no prox in closed form"):
        Cauchy(0.1).prox(W, 1.0)
    with pytest.raises(TypeError, match=r"abstract method '?value'?"):
        type("Empty", (penalties.ArrayPenalty,), {})()
    with pytest.raises(
        ValueError, match="`strength` must be a number or of a shape that broadcasts"
    ):
        Cauchy(jnp.ones(3))(W)


def test_two_selections_of_one_penalty_carry_a_state_each_and_keep_its_structure():
    params = {name: jnp.float32(np.random.default_rng(0).normal(size=(4, 3))) for name in "ab"}
    one = penalties.SpectralNorm(1.0, iterations=1)
    start = (one.on("a") + 0.5 * one.on("b")).advance(params)
    last, _ = jax.lax.scan(lambda p, _: (p.advance(params), None), start, None, length=40)
    sizes = [np.linalg.norm(w, 2) for w in params.values()]
    np.testing.assert_allclose(last(params), sizes[0] + 0.5 * sizes[1], rtol=1e-5)
