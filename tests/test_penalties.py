"""The laws that every penalty obeys."""

import dataclasses
import functools
import gc
import itertools
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from laws_penalties import ONE_OF_EACH, PENALTIES, SHAPE, jit

from jax_lrreg import penalties, schedules, select, text, transforms
from jax_lrreg.penalties import L1
from jax_lrreg.penalties.lift import replaced

SCALAR_STEPS = (0.3, 1.7)
DIAGONAL_STEPS = (
    np.array([[0.1, 1.0, 3.0], [0.5, 0.02, 8.0]]),
    np.array([[0.0, 1.0, 0.4], [2.0, 0.3, 0.0]]),
    np.array([[1e-6, 1e3, 0.4], [2.0, 1e-3, 7.0]]),
)
SECOND = np.array([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
TIES = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
TWINS = np.array([[1.0, -1.0, 1.0], [0.5, 1.0, -1.0]])
STRENGTHS = ("strength", "l1", "l2", "group")
WITH_PROX = [case for case in PENALTIES if case.prox != "none"]
WITH_STRENGTH = [case for case in ONE_OF_EACH if case.prox != "none" and not case.constraint]


def steps_of(case):
    """One number first; for separable penalties as an array, which compiles once."""
    scalars = (
        tuple(np.full(SHAPE, step) for step in SCALAR_STEPS) if case.separable else SCALAR_STEPS
    )
    return (*scalars, *DIAGONAL_STEPS) if case.prox == "any" else scalars


@pytest.fixture(autouse=True, scope="module")
def _without_garbage_collection():
    """Hundreds of compiled functions stay alive: looking through them again costs more."""
    gc.disable()
    yield
    jitted.cache_clear()
    gc.enable()


@functools.cache
def jitted(penalty, method):
    """A compiled method that returns NumPy arrays; compiled once for all tests of a dtype."""
    compiled = jit(
        jax.value_and_grad(penalty) if method == "value_and_gradient" else getattr(penalty, method)
    )
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))


def points(complex_too=False, count=3):
    rng = np.random.default_rng(0)
    points = [rng.normal(size=SHAPE) * size for size in np.logspace(-1, 1, count)]
    points.append(np.zeros(SHAPE))
    points.append(SECOND)
    if complex_too:
        points = [w + 1j * rng.permuted(w) for w in points]
    return points


def limited(case):
    """Whether some parameters cost infinitely much: even a step size of 0 moves them."""
    return case.constraint or np.isinf(case.value(-np.ones(SHAPE)))


def objective(case, z, w, step_size):
    """The problem that a prox solves, in float64, where a step size of 0 forbids any move."""
    step_size = np.broadcast_to(step_size, w.shape)
    moved = np.abs(z - w) ** 2
    fixed = step_size == 0
    if np.any(moved[fixed] > 1e-20):
        return np.inf
    return np.sum(moved[~fixed] / step_size[~fixed]) / 2 + case.value(z)


def candidates(case, z, w, step_size):
    """Other solutions to compare with: near and far, sparser, other members of the set."""
    rng = np.random.default_rng(1)
    for size in (1e-4, 1e-2, 0.3, 2.0):
        for _ in range(5):
            move = rng.normal(size=SHAPE) * (1j if np.iscomplexobj(w) and rng.random() < 0.5 else 1)
            yield z + size * move
            yield z + size * move * (rng.random(SHAPE) < 0.3)
            yield z * (1 + size * (rng.random(SHAPE) - 0.5))
    for _ in range(6):
        yield np.where(rng.random(SHAPE) < 0.5, z, 0)
        yield np.where(rng.random(SHAPE) < 0.5, z, w)
        yield w * (rng.random((SHAPE[0], 1)) < 0.5)
        yield w * (rng.random((1, SHAPE[1])) < 0.5)


def grid(case, w, step_size):
    """The least objective of a separable penalty on a fine grid, one entry at a time."""
    total = 0.0
    for index in np.ndindex(SHAPE):
        line = np.unique(
            np.concatenate([np.linspace(-3, 3, 301) * (1 + abs(w[index])), [0.0, w[index]]])
        )
        one = np.array(
            [
                case.value(
                    np.where(
                        np.arange(6).reshape(SHAPE) == np.ravel_multi_index(index, SHAPE), x, 0.0
                    )
                )
                for x in line
            ]
        )
        total += np.min(
            (line - w[index]) ** 2 / (2 * np.broadcast_to(step_size, SHAPE)[index]) + one
        )
    return total


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=repr)
def test_the_value_is_the_formula(case):
    with jax.enable_x64(True):
        for w in points() + (points(complex_too=True) if case.complex else []):
            value, _ = jitted(case.penalty, "value_and_gradient")(w)
            np.testing.assert_allclose(value, case.value(w), rtol=1e-10, atol=1e-10)
    assert case.penalty(np.float32(points()[0])).dtype == jnp.float32


@pytest.mark.parametrize("case", PENALTIES, ids=repr)
def test_it_is_never_negative_and_0_at_0(case):
    zero = case.penalty(jnp.zeros(SHAPE))
    assert (zero == 0) == case.zero_at_zero
    assert all(case.penalty(jnp.float32(w)) >= 0 for w in points())


@pytest.mark.parametrize("case", WITH_PROX, ids=repr)
@pytest.mark.sampled(14)
def test_the_prox_solves_its_problem(case):
    with jax.enable_x64(True):
        prox = jitted(case.penalty, "prox")
        for w in points() + (
            points(complex_too=True)[::2] if case.complex and case in ONE_OF_EACH else []
        ):
            for step_size in steps_of(case)[-3 if np.iscomplexobj(w) else 0 :]:
                z = prox(w, step_size)
                if limited(case):  # entries that must not move would leave no member of the set
                    step_size = np.maximum(step_size, 1e-12 * np.max(step_size))
                mine = objective(case, z, w, step_size)
                assert np.isfinite(mine)
                tolerance = 1e-9 * (1 + abs(mine) + np.abs(w).max())
                others = list(candidates(case, z, w, step_size))
                if case.constraint:
                    others = [prox(other, 1.0) for other in others[::6]]
                best = min(objective(case, other, w, step_size) for other in others)
                assert mine <= best + tolerance, (w, step_size, z)


@pytest.mark.parametrize("case", [c for c in WITH_PROX if c.separable and c.zero_at_zero], ids=repr)
@pytest.mark.sampled(7)
def test_the_prox_of_a_separable_penalty_is_the_global_optimum(case):
    with jax.enable_x64(True):
        for w in points(count=2)[:2]:
            for step_size in steps_of(case)[1:3]:
                z = jitted(case.penalty, "prox")(w, step_size)
                assert objective(case, z, w, step_size) <= grid(case, w, step_size) + 1e-12


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.prox != "none"], ids=repr)
@pytest.mark.sampled(9)
def test_the_prox_in_float32_is_as_good_as_float32_gets(case):
    rng, prox = np.random.default_rng(2), jitted(case.penalty, "prox")
    for index in range(30):
        w = np.float32(rng.normal(size=SHAPE) * 10 ** rng.uniform(-2, 1))
        steps = np.float32(
            10 ** rng.uniform(-6, 4, size=SHAPE) * (rng.random(SHAPE) > (index % 4 == 0) * 0.3)
        )
        step_size = steps if case.prox == "any" else float(steps[0, 0])
        narrow = prox(w, step_size)
        with jax.enable_x64(True):
            exact = prox(np.float64(w), np.float64(step_size) if case.prox == "any" else step_size)
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, exact, rtol=0, atol=3e-6 * max(np.abs(w).max(), 1))


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.prox != "none"], ids=repr)
def test_a_step_size_of_0_is_the_identity_or_the_projection(case):
    prox = jitted(case.penalty, "prox")
    for w in map(np.float32, points()):
        for zero in (0.0, np.zeros(SHAPE, np.float32)) if case.prox == "any" else (0.0,):
            z = prox(w, zero)
            if limited(case):
                assert np.isfinite(case.value(np.float64(z)))
            else:
                assert np.array_equal(z, w)
        if case.prox == "any":
            np.testing.assert_allclose(
                prox(w, 0.3), prox(w, np.full(SHAPE, 0.3, np.float32)), rtol=1e-5, atol=1e-6
            )


def scaled_prox(case, w, factor, step_size):
    """The prox of the penalty with all its strengths times a number."""
    numbers = {name: factor * x for name, x in vars(case.penalty).items() if name in STRENGTHS}
    return replaced(case.penalty, **numbers).prox(w, step_size)


@pytest.mark.parametrize("at", ["anywhere", "ties", "twins", "zero"])
@pytest.mark.parametrize("case", WITH_STRENGTH, ids=repr)
@pytest.mark.sampled(20)
def test_a_strength_of_0_moves_nothing_and_has_a_derivative(case, at):
    w = {"anywhere": points()[1], "ties": TIES, "twins": TWINS, "zero": np.zeros(SHAPE)}[at]
    w = np.abs(w) if limited(case) else w
    several = (0.3, DIAGONAL_STEPS[0]) if case.prox == "any" and not case.separable else (0.3,)

    def prox(factor, step_size):
        return scaled_prox(case, w, factor, step_size)

    @jit
    def all_at_0(step_size):
        near = (prox(1e-7, step_size) - prox(0.0, step_size)) / 1e-7
        derivatives = [jax.jacrev(prox)(0.0, step_size), jax.jacfwd(prox)(0.0, step_size)]
        return prox(0.0, step_size), near, derivatives

    with jax.enable_x64(True):
        for step_size in several:
            same, near, derivatives = all_at_0(step_size)
            np.testing.assert_array_equal(same, w)
            for derivative in derivatives:
                np.testing.assert_allclose(derivative, near, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", WITH_STRENGTH, ids=repr)
@pytest.mark.sampled(7)
def test_the_prox_has_the_derivatives_of_its_differences(case):
    rng, h = np.random.default_rng(7), 1e-7
    prox = functools.partial(scaled_prox, case)

    @jit
    def slopes(point, along):
        there = [
            tuple(x + sign * h * dx for x, dx in zip(point, along, strict=True)) for sign in (1, -1)
        ]
        return jax.jvp(prox, point, along)[1], (prox(*there[0]) - prox(*there[1])) / (2 * h)

    with jax.enable_x64(True):
        for scale in (0.3, 1.0, 3.0):
            w = scale * rng.normal(size=SHAPE)
            point = (np.abs(w) if limited(case) else w, 1.0, 0.7)
            for along in ((rng.normal(size=SHAPE), 0.0, 0.0), (0 * w, 1.0, 0.0), (0 * w, 0.0, 1.0)):
                derivative, difference = slopes(point, along)
                np.testing.assert_allclose(derivative, difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in WITH_PROX if case.convex], ids=repr)
@pytest.mark.sampled(11)
def test_the_prox_of_a_convex_penalty_is_firmly_nonexpansive(case):
    prox = jitted(case.penalty, "prox")
    with jax.enable_x64(True):
        for step_size in steps_of(case)[1:3]:
            several = np.random.default_rng(3).normal(size=(40, *SHAPE)) * 2
            images = [prox(w, step_size) for w in several]
            for x, y, at_x, at_y in zip(several, several[1:], images, images[1:], strict=False):
                moved = at_x - at_y
                assert np.sum(moved * (moved - (x - y)) / step_size) <= 1e-10


@pytest.mark.parametrize(
    "case", [case for case in ONE_OF_EACH if case.prox != "none" and case.certificate], ids=repr
)
@pytest.mark.sampled(9)
def test_the_certificate_is_0_where_the_prox_says_so_and_a_distance_elsewhere(case):
    certificate, prox = jitted(case.penalty, "certificate"), jitted(case.penalty, "prox")
    move = np.random.default_rng(4).normal(size=SHAPE)
    with jax.enable_x64(True):
        for w in points() + (
            points(complex_too=True) if case.complex and not case.separable else []
        ):
            for step_size in steps_of(case)[1 : 3 if w.dtype == float else 2]:
                z = prox(w, step_size)
                gradient = np.conj(
                    (z - w) / step_size
                )  # as JAX gives the gradient of 1/2 |z - w|^2 / step_size
                scale = 1e-9 * (1 + np.abs(gradient).max())
                assert certificate(z, gradient) <= scale
                assert certificate(z, gradient + 0.1 * move) <= 0.1 * np.linalg.norm(move) + scale
                assert certificate(z + 0.01 * move, gradient + 5) > 1e-3


@pytest.mark.parametrize("case", [case for case in PENALTIES if not case.constraint], ids=repr)
@pytest.mark.sampled(12)
def test_the_gradient_is_that_of_the_value_off_the_kinks(case):
    w = np.abs(np.random.default_rng(5).normal(size=SHAPE)) + 0.05
    w = w if not case.complex else w * np.sign(np.random.default_rng(6).normal(size=SHAPE))
    with jax.enable_x64(True):
        _, gradient = jitted(case.penalty, "value_and_gradient")(w)
        assert gradient.dtype == np.float64
    for index in np.ndindex(SHAPE):
        move = np.zeros(SHAPE)
        move[index] = 1e-6
        slope = (case.value(w + move) - case.value(w - move)) / 2e-6
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=repr)
@pytest.mark.sampled(10)
def test_at_zero_and_at_ties_derivatives_are_finite_and_the_gradient_is_the_shortest(case):
    @jit
    def derivatives(w):
        return (
            jax.grad(case.penalty)(w),
            jax.jvp(case.penalty, (w,), (1 + w,))[1],
            jax.hessian(case.penalty)(w),
        )

    kinks = (np.zeros(SHAPE), SECOND, np.full(SHAPE, 0.5))
    with jax.enable_x64(True):
        for w in kinks:
            reverse, forward, second = derivatives(w)
            assert np.all(np.isfinite(second))
            np.testing.assert_allclose(forward, np.sum(reverse * (1 + w)), rtol=1e-9, atol=1e-9)
        for w in kinks + tuple(w + 0j for w in kinks if case.complex):
            _, reverse = jitted(case.penalty, "value_and_gradient")(w)
            assert np.all(np.isfinite(reverse))
            if case.certificate and np.isfinite(case.value(w)):
                shortest = jitted(case.penalty, "certificate")(w, np.zeros_like(w))
                np.testing.assert_allclose(np.linalg.norm(reverse), shortest, rtol=1e-9, atol=1e-9)
            if case.zero_at_zero and not w.any():
                assert np.all(reverse == 0)


@pytest.mark.parametrize(
    "case", [case for case in ONE_OF_EACH if jax.tree.leaves(case.penalty)], ids=repr
)
@pytest.mark.sampled(9)
def test_vmap_over_its_numbers_is_the_loop(case):
    w = np.abs(np.float32(points()[1]))
    several = [
        jax.tree.map(lambda x, c=c: np.float32(x * c), case.penalty) for c in (0.5, 1.0, 2.0)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *several)

    # A penalty is data: three of them are traced once, and once for `vmap`.
    @chex.assert_max_traces(n=2)
    def run(penalty):
        return penalty(w), *([penalty.prox(w, 0.3)] if case.prox != "none" else [])

    one = jit(run)
    with jax.numpy_dtype_promotion("strict"):
        every, single = jit(jax.vmap(run))(batch), [one(penalty) for penalty in several]
    for together, one_by_one in zip(every, zip(*single, strict=True), strict=True):
        np.testing.assert_allclose(together, np.stack(one_by_one), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("case", PENALTIES, ids=repr)
def test_it_is_text_and_data(case):
    penalty = case.penalty
    same = [
        text.parse(repr(penalty)),
        pickle.loads(pickle.dumps(penalty)),
        jax.tree.map(lambda x: x, penalty),
    ]
    for copy in same:
        assert copy == penalty
        assert hash(copy) == hash(penalty)
        assert repr(copy) == repr(penalty)
    if not case.constraint:
        other = 2.0 * penalty
        assert other != penalty
        assert text.parse(repr(other)) == other
    chosen = penalty.on("**/kernel") + penalties.L2(0.1).on("**/bias")
    assert text.parse(repr(chosen)) == chosen


HALF = [
    case
    for case in ONE_OF_EACH
    if type(case.penalty).__name__ in ("L1", "EWC", "UnitNorm", "Simplex", "Box")
]


@pytest.mark.parametrize("case", HALF, ids=repr)
def test_half_precision_is_worked_on_in_float32(case):
    dtype = jnp.bfloat16
    value, gradient, prox = (
        jitted(case.penalty, name) for name in ("__call__", "gradient", "prox")
    )
    narrow = np.asarray(points()[1], dtype)
    exact = narrow.astype(np.float32)
    last_place = float(jnp.finfo(dtype).eps)
    if not case.constraint:
        np.testing.assert_allclose(value(narrow), value(exact), rtol=1e-6)
    assert value(narrow).dtype == jnp.float32
    assert gradient(narrow).dtype == dtype
    np.testing.assert_allclose(
        gradient(narrow).astype(np.float32), gradient(exact), rtol=last_place, atol=1e-6
    )
    if case.prox != "none":
        z = prox(narrow, 0.3)
        assert z.dtype == dtype
        np.testing.assert_allclose(
            z.astype(np.float32), prox(exact, 0.3), rtol=last_place, atol=1e-6
        )
        if case.constraint:
            assert value(z) == 0
            if case.certificate:
                assert np.isfinite(
                    jitted(case.penalty, "certificate")(z, np.zeros(SHAPE, np.float32))
                )


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn], ids=lambda dtype: dtype.__name__
)
def test_long_sums_of_narrow_numbers_are_exact_to_float32(dtype):
    w = {name: jnp.full((300, 300), 0.5, dtype) for name in "ab"}
    np.testing.assert_allclose(penalties.L2(1.0)(w), 2 * 90_000 / 8, rtol=1e-6)
    np.testing.assert_allclose(penalties.L1(1.0)(w), 90_000, rtol=1e-6)
    tiny = jnp.full(100, 1e-4, jnp.float16)  # its square is 0 in float16
    np.testing.assert_allclose(penalties.L2(1.0)(tiny), 100 * 1e-8 / 2, rtol=1e-2)


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.constraint], ids=repr)
def test_the_value_of_a_projection_is_exactly_0(case):
    rng, value, prox = (
        np.random.default_rng(7),
        jitted(case.penalty, "__call__"),
        jitted(case.penalty, "prox"),
    )
    for size in np.linspace(-20, 6, 27):
        w = np.float32(rng.normal(size=SHAPE) * 10**size * (rng.random((SHAPE[0], 1)) < 0.8))
        steps = np.float32(10 ** rng.uniform(-3, 3, size=SHAPE))
        for step_size in (1.0, steps)[: 2 if case.prox == "any" else 1]:
            z = prox(w, step_size)
            assert value(z) == 0
            np.testing.assert_allclose(prox(z, step_size), z, rtol=0, atol=2e-6)
    assert value(np.full(SHAPE, -50.0, np.float32)) == np.inf


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.threshold], ids=repr)
def test_max_strength_is_where_zero_begins_to_solve(case):
    gradient = jnp.float32(np.random.default_rng(8).normal(size=SHAPE))
    name = "group" if hasattr(case.penalty, "group") else next(iter(vars(case.penalty)))
    rest = {key: value for key, value in vars(case.penalty).items() if key != name}
    first = [rest.pop("l1")] if name == "group" else []

    @jit
    def certificate(strength):
        arguments = {**rest, "group": strength} if first else rest
        return type(case.penalty)(*(first or [strength]), **arguments).certificate(
            jnp.zeros(SHAPE), gradient
        )

    largest = case.penalty.max_strength(gradient)
    assert certificate(1.0001 * largest) == 0
    assert certificate(0.999 * largest) > 0
    if not first:
        np.testing.assert_allclose(
            (case.penalty / 8).max_strength(gradient), 8 * largest, rtol=1e-5
        )


EVERY_SCALE = [
    float(x) for x in (1e-38, 1e-30, 1e-20, 1e-12, 1e-7, 1.0, 3e7, 1e12, 1e20, 1e30, 3e38)
]


def wide_points():
    """Entries of one size, of very different sizes, and a few next to zero."""
    rng = np.random.default_rng(11)
    for scale in EVERY_SCALE:
        yield rng.uniform(-1, 1, size=SHAPE) * scale
        yield np.array([[scale, 1.0, 0.0], [-scale, scale, 1e-3]])


@pytest.mark.parametrize("case", [case for case in PENALTIES if case.constraint], ids=repr)
def test_a_constraint_projects_every_finite_array_to_a_point_of_its_own(case):
    value, prox = jitted(case.penalty, "__call__"), jitted(case.penalty, "prox")
    spread = np.float32([[1e-3, 1.0, 3.0], [0.5, 20.0, 1e3]])
    for w in wide_points():
        several = [np.float32(w), np.complex64(w + 1j * w[::-1])][: 2 if case.complex else 1]
        for w, step in itertools.product(several, (1.0, spread) if case.prox == "any" else (1.0,)):
            z = prox(w, step)
            assert np.all(np.isfinite(z)), (w, z)
            assert value(z) == 0, (w, z)


@pytest.mark.parametrize("scale", [3e-45, 1e-41, 1e-38, 3e-38, 1e-30, 1.0, 3e38])
@pytest.mark.parametrize("unit", [1.0, 0.6 + 0.8j])
def test_a_unit_vector_has_the_direction_of_any_array(scale, unit):
    w = np.asarray(np.float32([[0.3, 0.0, -0.4], [0.0, 1.0, 0.0]]) * np.float32(scale) * unit)
    w = w.astype(np.complex64 if isinstance(unit, complex) else np.float32)
    wide = w.astype(np.complex128)
    for axis in (None, -1):
        right = wide / np.sqrt(np.sum(np.abs(wide) ** 2, axis=axis, keepdims=True))
        found = penalties.UnitNorm(axis=axis).prox(w, 1.0)
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


SIZED = {"MaxNorm": "max_norm", "Simplex": "total", "L1Ball": "radius"}


@pytest.mark.parametrize("name", SIZED)
def test_a_set_of_any_size_holds_the_projection_of_an_array_of_any_size(name):
    @jit
    def projected(w, size, step):
        penalty = getattr(penalties, name)(size, axis=-1)
        return penalty.prox(w, step), penalty(penalty.prox(w, step))

    for size, w in itertools.product(EVERY_SCALE[1:], wide_points()):
        for step in (1.0, np.float32([[1e-3, 1.0, 3.0], [0.5, 20.0, 1e3]])):
            z, value = projected(np.float32(w), np.float32(size), step)
            assert np.all(np.isfinite(z))
            assert value == 0, (size, w, z)


@pytest.mark.parametrize("case", [case for case in PENALTIES if not case.constraint], ids=repr)
@pytest.mark.sampled(12)
def test_gradient_and_prox_are_finite_at_every_scale(case):
    gradient, prox = jitted(case.penalty, "gradient"), jitted(case.penalty, "prox")
    # The gradient is the cube of the matrix; the importance is 3.
    most = {penalties.Orthogonal: 1e12, penalties.EWC: 1e38}.get(type(case.penalty), np.inf)
    for w in wide_points():
        if np.max(np.abs(w)) > most:
            continue
        for array in (w, w + 1j * w[::-1])[: 2 if case.complex else 1]:
            array = np.asarray(array, np.complex64 if np.iscomplexobj(array) else np.float32)
            assert np.all(np.isfinite(gradient(array))), array
            if case.prox == "none":
                continue
            for step in (0.0, 0.3, 1e6) + DIAGONAL_STEPS * (case.prox == "any"):
                z = prox(array, np.float32(step))
                assert np.all(np.isfinite(z)), (array, step, z)
                assert np.max(np.abs(z)) <= np.max(np.abs(array)) * 1.01 + 2, (array, step, z)


EDGES = [
    (penalties.NonNegative(), [[0.0, 1.0, 0.0]]),
    (penalties.NonNegativeL1(0.0), [[0.0, 1.0, 0.0]]),
    (penalties.Box(-0.5, max=0.25), [[-0.5, 0.25, 0.0]]),
    (penalties.Box(0.25), [[0.25, 1.0, 0.25]]),
    (penalties.MaxNorm(5.0), [[3.0, 4.0, 0.0]]),
    (penalties.L1Ball(1.0), [[0.75, -0.25, 0.0]]),
    (penalties.UnitNorm(), [[0.0, -1.0, 0.0]]),
    (penalties.Simplex(), [[0.75, 0.25, 0.0]]),
    (penalties.Simplex(2.0), [[0.0, 2.0, 0.0]]),
]


@pytest.mark.parametrize(("penalty", "edge"), EDGES, ids=[repr(penalty) for penalty, _ in EDGES])
def test_at_the_edge_of_a_set_the_projection_has_the_derivative_of_the_identity(penalty, edge):
    w = np.float32(edge)
    normal = {penalties.UnitNorm: w, penalties.Simplex: np.ones_like(w)}.get(type(penalty), 0 * w)
    normal = normal / max(np.linalg.norm(normal), 1)
    along = np.float32([[0.3, -1.0, 0.5]])
    along = along - np.sum(along * normal) * normal  # these two sets have no inside
    steps = (1.0, np.ones_like(w)) if not isinstance(penalty, penalties.UnitNorm) else (1.0,)
    for step in steps:
        z, moved = jax.jvp(lambda w, step=step: penalty.prox(w, step), (w,), (along,))
        np.testing.assert_array_equal(z, w)
        np.testing.assert_allclose(moved, along, atol=1e-6)
        back = jax.vjp(lambda w, step=step: penalty.prox(w, step), w)[1](along)[0]
        np.testing.assert_allclose(back, along, atol=1e-6)


def products(jaxpr):
    """The precision of every product of matrices in a program and the programs within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=repr)
def test_every_product_of_matrices_has_the_highest_precision(case):
    w, penalty = np.float32(points()[1]), case.penalty
    programs = [penalty, penalty.gradient, jax.jacfwd(penalty.gradient)]
    if case.prox != "none":
        programs += [lambda w: penalty.prox(w, 0.3), jax.jacrev(lambda w: penalty.prox(w, 0.3))]
    if case.certificate:
        programs.append(lambda w: penalty.certificate(w, w))
    if case.threshold:
        programs.append(penalty.max_strength)
    found = [p for program in programs for p in products(jax.make_jaxpr(program)(w).jaxpr)]
    highest = jax.lax.Precision.HIGHEST
    assert all(p in (highest, (highest, highest)) for p in found), found
    spectral = (penalties.Orthogonal, penalties.NuclearNorm, penalties.SpectralNorm)
    assert bool(found) == isinstance(penalty, spectral)


def test_so_has_every_product_within_a_tpus_singular_value_decomposition():
    def both(w):
        rule = schedules.HypergradientDescent(0.1, init_scale=1.0)
        descent = transforms.hypergradient_descent(optax.sgd(0.1), rule)
        penalty = penalties.NuclearNorm(1.0)
        return penalty.prox(w, 0.3), penalty.gradient(w), descent.update(w, descent.init(w), w)[0]

    traced = jax.jit(both).trace(np.float32(points()[1]))
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    found = re.findall(r"stablehlo\.(?:dot_general|convolution) .*", program)
    assert len(found) > 10
    assert [line for line in found if line.count("HIGHEST") < 2] == []


WRONG = [None, "0.1", True, 1j, float("nan"), float("inf"), -1.0, object(), penalties.L1(1.0), b"1"]
FREE = {  # what is right for one field though it is wrong for most
    "min": (None, -1.0),
    "max": (None,),
    "axis": (None,),
    "groups": (None,),
    "vectors": (None,),
    "reference": (-1.0, 1j),
}


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=repr)
def test_a_penalty_refuses_every_wrong_argument_by_its_name(case):
    cls, fields = type(case.penalty), dataclasses.fields(case.penalty)
    right = {field.name: getattr(case.penalty, field.name) for field in fields}
    for name, wrong in itertools.product(right, WRONG):
        if name == "vectors" or any(wrong is free or wrong == free for free in FREE.get(name, ())):
            continue
        arguments = {**right, name: wrong}
        first = [arguments.pop(field.name) for field in fields if not field.kw_only]
        with pytest.raises((ValueError, TypeError), match=f"`{name}` must be") as caught:
            cls(*first, **arguments)
        assert type(case.penalty).__name__ in str(caught.value)
    with pytest.raises(TypeError):
        cls(*[1.0] * 9)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("penalties", lambda: penalties.Sum((1, 2))),
        ("penalties", lambda: penalties.Sum((penalties.L1(1.0),))),
        ("penalties", lambda: penalties.Sum([penalties.L1(1.0), penalties.L2(1.0)])),
        ("penalties", lambda: penalties.Sum(penalties.L1(1.0))),
        ("penalty", lambda: penalties.Scaled(3, factor=1)),
        ("\\*", lambda: penalties.Scaled(penalties.L1(1.0), factor="2")),
        ("penalty", lambda: penalties.Selected("x", selection=select.Rules((("**", 1.0),)))),
        ("selection", lambda: penalties.Selected(penalties.L1(1.0), selection="**")),
        ("selection", lambda: penalties.Selected(penalties.L1(1.0), selection=None)),
    ],
)
def test_the_algebra_refuses_what_is_no_penalty_when_it_is_made(name, call):
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        call()


NO_TREES = ["w", b"w", object(), {1, 2}, np.array(["a"]), np.array([None]), jnp.sin, ..., L1]
CALLS = {
    "__call__": lambda penalty, params: penalty(params),
    "gradient": lambda penalty, params: penalty.gradient(params),
    "value_and_gradient": lambda penalty, params: penalty.value_and_gradient(params),
    "prox": lambda penalty, params: penalty.prox(params, 0.1),
    "certificate": lambda penalty, params: penalty.certificate(params, params),
    "sparsity": lambda penalty, params: penalty.sparsity(params),
    "advance": lambda penalty, params: penalty.advance(params),
    "report": lambda penalty, params: penalty.report(params),
    "max_strength": lambda penalty, params: penalty.max_strength(params),
}


@pytest.mark.parametrize("wrong", NO_TREES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("method", CALLS)
def test_what_is_no_tree_of_arrays_is_refused_by_name(method, wrong):
    name = "grads" if method == "max_strength" else "params"
    for penalty in (L1(0.1), L1(0.1).on("**") + penalties.L2(0.1), 2 * L1(0.1)):
        owner = f"{type(penalty).__name__}: `{name}` must be a tree of arrays and numbers"
        with pytest.raises(TypeError, match=owner):
            CALLS[method](penalty, wrong)
        with pytest.raises(TypeError, match=owner + ", also at 'head/name', got"):
            CALLS[method](penalty, {"head": {"name": wrong, "kernel": jnp.ones(2)}})


def test_a_number_that_the_precision_does_not_hold_is_refused_and_a_large_integer_is_a_number():
    w = {"w": jnp.ones(2)}
    for penalty in (
        L1(1e41),
        L1(np.float64(1e41)),
        L1(10**41),
        penalties.Huber(1.0, delta=1e41),
        penalties.L2(1e-4).on([("**", 1e41)]),
        1e30 * (1e30 * L1(1.0)),
    ):
        with pytest.raises(ValueError, match="must be a number that float32 holds"):
            penalty(w)
        with jax.enable_x64(True):
            assert np.isfinite(penalty({"w": np.ones(2)}))
    for number in (2**31, 2**40, np.int64(2**40)):
        np.testing.assert_allclose(L1(number)(w), 2.0 * number, rtol=1e-6)
        np.testing.assert_allclose((number * L1(1.0))(w), 2.0 * number, rtol=1e-6)


def test_value_and_gradient_are_those_of_the_two_calls():
    params = {"kernel": jnp.array([[3.0, -1.0], [4.0, 0.0]]), "count": jnp.arange(2)}
    penalty = L1(0.5).on("kernel") + penalties.L2(0.1)
    value, gradient = penalty.value_and_gradient(params)
    assert value == penalty(params)
    chex.assert_trees_all_equal(gradient, penalty.gradient(params))
    chex.assert_trees_all_equal_structs(gradient, params)
