import math
import pickle
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg._check import require, require_number
from jax_lrreg._struct import fixed, is_pytree, number_text, pytree, static, unfixed


@pytree
class Point:
    x: Any
    _: KW_ONLY
    y: Any = 2.0
    label: str = static(default="p")

    def __post_init__(self):
        require_number(self, "x", self.x, "a number >= 0", lambda x: x >= 0)


def test_prints_the_shortest_call_that_makes_it():
    assert repr(Point(1)) == "Point(1)"
    assert repr(Point(0.1, y=3.0)) == "Point(0.1, y=3.0)"
    assert repr(Point(1, label="q")) == "Point(1, label='q')"
    assert repr(Point(jnp.float32(0.1))) == "Point(0.10000000149011612)"
    assert repr(Point(np.arange(3))) == "Point([0, 1, 2])"
    assert number_text(jnp.ones(100)) == "<float32[100]>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float64(4), "4.0"),
        (np.int64(3), "3"),
        (np.bool_(True), "True"),
        (np.str_("a"), "'a'"),
        (jnp.bfloat16(1.5), "1.5"),
        (np.ones(8), str([1.0] * 8)),
        (np.ones(9), "<float64[9]>"),
        (np.ones((3, 4), bool), "<bool[3, 4]>"),
        (jax.random.key(0), "<key<fry>[]>"),
        ((np.float64(2), [1, jnp.ones(9)]), "(2.0, (1, <float32[9]>))"),
        ({"a": np.ones(9), 0: {}}, "{'a': <float64[9]>, 0: {}}"),
        ({str(i): np.ones((2, 3)) for i in range(9)}, "<dict of 9 leaves, 54 numbers>"),
        ([{"w": np.ones(3)}] * 9, "<list of 9 leaves, 27 numbers>"),
        (tuple(range(64)), str(tuple(range(64)))),
        (tuple(range(65)), "<tuple of 65 leaves>"),
        (optax.EmptyState(), "<EmptyState of 0 leaves>"),
        (optax.TraceState({"w": jnp.ones((2, 3))}), "<TraceState of 1 leaves, 6 numbers>"),
        (math.sqrt, "<built-in function sqrt>"),
        (lambda x: x, "<function <lambda>>"),
        (object(), "<object object>"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_numbers_print_at_their_shortest_and_what_is_long_as_its_shape(value, text):
    assert number_text(value) == text
    assert repr(Point(np.ones(3), y=value)) == f"Point([1.0, 1.0, 1.0], y={text})"


def test_a_large_tree_prints_in_one_line_and_is_not_looked_at():
    params = {f"layer_{i}": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)} for i in range(50)}
    text = repr(Point(1, y=(params, optax.adam(1e-3).init(params))))
    assert text == "Point(1, y=<tuple of 301 leaves, 624,001 numbers>)"
    donated = jnp.ones(3)
    donated.delete()
    assert repr(Point(1, y=donated)) == "Point(1, y=<float32[3]>)"
    assert jax.jit(lambda x: len(repr(Point(x))))(jnp.ones(2)) == len("Point(<traced float32[2]>)")


def test_a_dict_whose_keys_are_of_several_types_prints_and_compares():
    assert Point(1, y={"a": 1, 0: 2}) == Point(1, y={0: 2, "a": 1}) != Point(1, y={0: 1, "a": 2})


def test_only_what_pytree_itself_made_is_a_pytree_of_ours():
    class Sub(Point):
        pass

    assert is_pytree(Point)
    assert not any(map(is_pytree, (Sub, int, Point(1), optax.TraceState)))


def test_equality_and_hash_are_by_value():
    assert Point(1.0) == Point(jnp.float32(1.0)) == Point(np.float64(1))
    assert hash(Point(1.0)) == hash(Point(jnp.float32(1.0)))
    assert Point(np.arange(3)) == Point(jnp.arange(3)) != Point(np.arange(4))
    assert Point(1.0) != Point(1.0, label="q")
    assert Point(1.0) != 1.0
    assert len({Point(1), Point(1), Point(2)}) == 2


def test_is_frozen_and_pickles():
    with pytest.raises(AttributeError, match="cannot assign to field 'x'"):
        Point(1).x = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(Point(jnp.float32(1), y=jnp.arange(3)))) == Point(
        1, y=np.arange(3)
    )


def test_numbers_are_leaves_and_structure_is_not():
    assert jax.tree.leaves(Point(1, y=3)) == [1, 3]
    assert (
        jax.tree.structure(Point(1))
        == jax.tree.structure(Point(5))
        != jax.tree.structure(Point(1, label="q"))
    )
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(Point(1))[0]
    ]
    assert paths == [".x", ".y"]


def test_unflattening_never_validates():
    negative = jax.tree.map(lambda x: -x, Point(1.0))
    assert negative.x == -1.0
    assert jax.tree.map(lambda _: object(), Point(1.0)).x is not None
    assert jax.grad(lambda p: (p.x * p.y) ** 2)(Point(1.0)).x == 8.0


def test_traced_values_are_trusted_and_batches_are_checked():
    assert jax.jit(lambda x: Point(x).x)(-1.0) == -1.0
    assert jax.vmap(lambda x: Point(x).x)(jnp.array([-1.0, 1.0])).shape == (2,)
    with pytest.raises(ValueError, match=r"Point: `x` must be a number >= 0, got \[-1.0, 1.0\]"):
        Point(np.array([-1.0, 1.0]))


@pytest.mark.parametrize("value", [None, "1", True, [1], 1j, object()])
def test_what_is_no_real_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="Point: `x` must be a number >= 0, got"):
        Point(value)


@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), np.float32(-1), jnp.array([1.0, np.nan])]
)
def test_a_number_out_of_range_is_a_value_error(value):
    with pytest.raises(ValueError, match="Point: `x` must be a number >= 0, got"):
        Point(value)


def test_require_names_owner_argument_value_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"^fit: `steps` must be a whole number, got 0$"):
        require(False, "fit", "steps", 0, "a whole number")


def test_what_is_at_its_default_is_no_leaf_and_comes_back():
    tree = {"a": Point(1.0), "b": [Point(3.0, y=2), None, 4.0], "c": jnp.arange(2)}
    assert jax.tree.leaves(fixed(tree))[:-1] == [1.0, 3.0, 4.0]
    assert unfixed(fixed(tree))["b"] == tree["b"]
    assert jax.jit(lambda x: type(unfixed(x).y) is float)(fixed(Point(1.0)))
    arrays = Point(1.0, y=jnp.array(2.0))  # an array may be of a run, and is traced
    assert len(jax.tree.leaves(fixed(arrays))) == 2
