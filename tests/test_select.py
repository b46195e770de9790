"""Which parameters a pattern, rules or a predicate choose, and what is said when none is."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import lines_run
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_lrreg._arrays import is_parameter, leaves
from jax_lrreg.penalties import L1, L2
from jax_lrreg.select import Predicate, Rules, patterns, selection

PATHS = [
    "encoder/layer_0/bias",
    "encoder/layer_0/kernel",
    "encoder/layer_1/kernel",
    "head/kernel",
    "kernel",
    "scale",
]


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="head")(
            linen.LayerNorm(name="norm")(linen.Dense(3, name="encoder")(x))
        )


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


KINDS = ("Linen", "NNX module", "NNX State", "NNX pure", "plain")


def trees():
    linen_params = LinenNet().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    module = NNXNet(nnx.Rngs(0))
    state = nnx.state(module, nnx.Param)
    made = (linen_params, module, state, nnx.to_pure_dict(state))
    return dict(zip(KINDS, (*made, jax.tree.map(np.asarray, linen_params)), strict=True))


def chosen(spec, paths=PATHS):
    rules = selection(spec)
    rules.check(paths)
    return [path for path in paths if rules.multiplier(path, None)]


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_the_same_for_every_kind_of_tree(kind):
    found = [leaf.path for leaf in leaves(trees()[kind]) if is_parameter(leaf.value)]
    expected = [
        "encoder/bias",
        "encoder/kernel",
        "head/bias",
        "head/kernel",
        "norm/bias",
        "norm/scale",
    ]
    assert sorted(found) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_chooses_the_same_in_every_kind_of_tree(kind):
    tree = trees()[kind]
    ones = jax.tree.map(lambda x: jnp.ones_like(x) if is_parameter(x) else x, tree)
    penalty = L1(1.0).on("**/kernel") + L2(2.0).on([("norm/*", 0), ("**/bias", 1)])
    assert penalty(ones) == 12 + 6 + 3 + 2
    gradient = penalty.gradient(ones)
    assert jax.tree.structure(gradient) == jax.tree.structure(ones)
    sizes = {
        leaf.path: float(jnp.sum(leaf.value))
        for leaf in leaves(gradient)
        if is_parameter(leaf.value)
    }
    assert sizes == {
        "encoder/bias": 6,
        "encoder/kernel": 12,
        "head/bias": 4,
        "head/kernel": 6,
        "norm/bias": 0,
        "norm/scale": 0,
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", PATHS),
        ("*", ["kernel", "scale"]),
        (
            "**/kernel",
            ["encoder/layer_0/kernel", "encoder/layer_1/kernel", "head/kernel", "kernel"],
        ),
        ("*/kernel", ["head/kernel"]),
        (
            "encoder/**",
            ["encoder/layer_0/bias", "encoder/layer_0/kernel", "encoder/layer_1/kernel"],
        ),
        ("encoder/*/kernel", ["encoder/layer_0/kernel", "encoder/layer_1/kernel"]),
        ("encoder/**/kernel", ["encoder/layer_0/kernel", "encoder/layer_1/kernel"]),
        ("encoder/layer_?/bias", ["encoder/layer_0/bias"]),
        ("encoder/layer_[!0]/*", ["encoder/layer_1/kernel"]),
        ("**/layer_[01]/kernel", ["encoder/layer_0/kernel", "encoder/layer_1/kernel"]),
        ("kernel", ["kernel"]),
        (
            "re:.*kernel",
            ["encoder/layer_0/kernel", "encoder/layer_1/kernel", "head/kernel", "kernel"],
        ),
        (r"re:encoder/layer_\d/(kernel|bias)", PATHS[:3]),
        ("re:kernel", ["kernel"]),
        ("s*e", ["scale"]),
    ],
)
def test_patterns(pattern, expected):
    assert chosen(pattern) == expected


def test_special_characters_of_regular_expressions_are_letters_in_a_glob():
    assert chosen("a.b/(c)+", ["a.b/(c)+", "axb/cc"]) == ["a.b/(c)+"]
    assert chosen("Dense_0/kernel", ["Dense_0/kernel", "Dense_10/kernel"]) == ["Dense_0/kernel"]


def expression(pattern):
    """What a glob means, as a regular expression: slow for some patterns, and right for all."""
    parts = re.split(r"((?:(?<=/)|^)\*\*/|\*\*+|\*|\?|\[!?\]?[^\]]*\])", pattern, flags=re.DOTALL)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    texts = []
    for part in parts:
        if part.startswith("["):
            inside = re.sub(
                r"([\\^\[\]&~|])", r"\\\1", part.removeprefix("[").removeprefix("!")[:-1]
            )
            texts.append(f"(?!/)[{'^' if part[1] == '!' else ''}{inside}]")
        else:
            texts.append(known.get(part, ".*" if part.startswith("**") else re.escape(part)))
    return re.compile("".join(texts), re.DOTALL)


pieces = st.sampled_from(
    ["a", "b", "/", "*", "**", "**/", "/**/", "?", "[ab]", "[!a]", "[^a]", "[]b]", "."]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=6).map("".join), st.text("ab/^.]", max_size=8))
def test_a_glob_means_what_its_regular_expression_means(pattern, path):
    found = selection(pattern).multiplier(path, None) is not None
    assert found == (expression(pattern).fullmatch(path) is not None)


def test_a_set_of_characters_is_that_of_a_shell():
    assert chosen("[^a]", ["a", "^", "b"]) == ["a", "^"]  # only `!` negates
    assert chosen("[!a]", ["a", "^", "b"]) == ["^", "b"]
    assert chosen("[]a]", ["a", "]"]) == ["a", "]"]
    assert chosen("[[]", ["[", "a"]) == ["["]
    assert chosen("[a-c-]", ["b", "-"]) == ["b", "-"]
    assert chosen("a[!b]c", ["a/c", "axc"]) == ["axc"]  # no set takes the slash
    assert chosen("[\\d]", ["d", "\\"]) == ["d", "\\"]


SLOW = {
    "stars": "?*" * 12 + "X",
    "names": "**/" * 16 + "x",
    "crossing": "**a" * 60 + "X",
    "sets": "[a-z]*" * 30 + "X",
    "mixed": "**/*a*/" * 12 + "X",
}


@pytest.mark.parametrize("pattern", SLOW.values(), ids=SLOW)
def test_matching_takes_a_step_for_each_character(pattern):
    def steps(count):
        patterns._glob.cache_clear()
        path = "/".join(["aaaaaaaa"] * count)
        return lines_run(lambda: selection(pattern).multiplier(path, None))

    few, many = steps(8), steps(32)
    assert many <= 4 * few  # with a fourfold path
    assert many < 100_000


def test_the_first_rule_that_matches_decides_and_the_rest_is_left_out():
    rules = selection([("**/bias", 0), ("head/**", 0.1), ("**/kernel", 1)])
    rules.check(PATHS)
    numbers = {path: rules.multiplier(path, None) for path in PATHS}
    assert numbers == dict(zip(PATHS, [0, 1, 1, 0.1, 1, None], strict=True))
    assert repr(rules) == "[('**/bias', 0), ('head/**', 0.1), ('**/kernel', 1)]"
    assert rules == selection([("**/bias", 0.0), ["head/**", 0.1], ("**/kernel", True + 0)])
    assert repr(selection("**/kernel")) == "'**/kernel'"


def test_a_predicate_sees_the_path_and_the_array():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert L1(1.0).on(lambda path, value: value.ndim == 2)(params) == 6
    assert L1(1.0).on(lambda path, value: 0.5 if path == "bias" else 0)(params) == 1.5
    assert L1(1.0).on(lambda path, value: False)(params) == 0  # a function may choose nothing
    with pytest.raises(ValueError, match="`predicate` must be a bool or a number >= 0"):
        L1(1.0).on(lambda path, value: -1)(params)
    assert isinstance(selection(len), Predicate)


def test_a_dead_pattern_lists_the_nearest_paths_first():
    params = {f"layer_{index}": {"kernel": jnp.ones(1)} for index in range(12)}
    with pytest.raises(ValueError, match="'\\*\\*/kernal' matches no parameter") as caught:
        L1(1.0).on("**/kernal")(params)
    assert "nearest first: layer_0/kernel" in str(caught.value)
    assert "and 4 more" in str(caught.value)
    with pytest.raises(ValueError, match="'head/\\*\\*' matches no parameter") as caught:
        L1(1.0).on([("**/kernel", 1), ("head/**", 0)])(
            {"haed": {"kernel": jnp.ones(1)}, "body": {"kernel": jnp.ones(1)}}
        )
    assert "nearest first: haed/kernel, body/kernel" in str(caught.value)
    for call in ("gradient", "sparsity", "report", "advance"):
        with pytest.raises(ValueError, match="matches no parameter"):
            getattr(L1(1.0).on("nothing"), call)(params)
    assert L1(1.0).on("nothing")({}) == 0  # there is nothing that it could match


def test_a_dict_key_called_value_is_the_users_own():
    params = {"value": jnp.ones(2), "attention": {"query": jnp.ones(1), "value": jnp.ones(3)}}
    assert [leaf.path for leaf in leaves(params)] == ["attention/query", "attention/value", "value"]
    assert L1(1.0).on("**/value")(params) == 5

    class Attention(nnx.Module):
        def __init__(self):
            self.value = nnx.Param(jnp.ones(3))

    assert [leaf.path for leaf in leaves(nnx.state(Attention()))] == ["value"]
    assert [leaf.path for leaf in leaves(Attention())] == ["value"]


def test_a_tied_layer_counts_once_or_not_at_all():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
            self.b = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(1))
            self.b.kernel = self.a.kernel

    module, penalty = Tied(), L1(1.0)
    state = nnx.state(module, nnx.Param)
    np.testing.assert_allclose(penalty(state), np.abs(module.a.kernel[...]).sum(), rtol=1e-6)
    assert [leaf.path for leaf in leaves(state)] == ["a/kernel"]
    for call in (
        penalty,
        penalty.gradient,
        penalty.report,
        lambda params: penalty.prox({"net": params}, 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"'(net/)?a/kernel' and '(net/)?b/kernel': give nnx.state"
        ):
            call(module)


def test_the_same_array_twice_in_a_plain_tree_is_two_parameters():
    w = jnp.ones(3)
    assert (
        L1(1.0)({"a": w, "b": w}) == 6
    )  # JAX trees know no sharing: after an update they would be two


def test_selections_nest_and_compare():
    params = {
        "encoder": {"kernel": jnp.ones(2), "bias": jnp.ones(1)},
        "head": {"kernel": jnp.ones(4)},
    }
    nested = L1(1.0).on([("**/kernel", 0.5)]).on([("encoder/**", 2)])
    assert nested(params) == 2
    assert nested == L1(1.0).on([("**/kernel", 0.5)]).on([("encoder/**", 2)])
    assert hash(nested) == hash(L1(1.0).on([("**/kernel", 0.5)]).on([("encoder/**", 2)]))
    assert nested != L1(1.0).on([("**/kernel", 0.5)])
    rows = {row[0]: row for row in nested.report(params).rows}
    assert rows["encoder/kernel"][2] == "L1(1.0)"
    assert rows["head/kernel"][2] == ""


def test_a_report_names_the_reason_for_each_parameter():
    params = {
        "encoder": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "scale": jnp.ones(()),
        "key": jax.random.key(0),
    }
    report = L2(1e-4).on([("**/bias", 0), ("**/kernel", 1)]).report(params)
    rows = {path: rest for path, *rest in report.rows}
    assert rows["encoder/kernel"][:2] == ["2x3", "L2(0.0001)"]
    assert rows["encoder/kernel"][2].startswith("chosen by")
    assert rows["encoder/bias"][1] == ""
    assert rows["encoder/bias"][2].startswith("left out by")
    assert rows["scale"][0] == "scalar"
    assert rows["scale"][2].startswith("not covered by")
    assert "holds no real numbers" in rows["key"][2]
    text = str(report)
    assert all(path in text for path in rows)


def test_a_report_says_which_rule_decided_in_80_columns_and_breaks_no_word():
    names = ["encoder", "transformer_layer_0", "self_attention", "query_projection"]
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8), "scale": jnp.ones(8)}
    for name in names[::-1]:
        params = {name: params}
    rules = [("**/bias", 0), ("**/transformer_layer_?/**/kernel", 0.5), ("head_*/**", 1)]
    report = L2(1e-4).on(rules).report({**params, "head_of_the_model": {"kernel": jnp.ones(8)}})
    why = {row[0].rpartition("/")[2]: row[3] for row in report.rows[:3]}
    assert why == {
        "bias": "left out by '**/bias'",
        "kernel": "chosen by '**/transformer_layer_?/**/kernel'",
        "scale": "not covered by any of the 3 rules",
    }
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    words = {*names, *(row[3].split("'")[1] for row in report.rows if "'" in row[3])}
    assert all(any(word in line for line in lines) for word in words)
    nested = L1(1.0).on([("**/kernel", 0.5)]).on([("**/transformer*/**", 2), ("**", 0)])
    assert {row[3] for row in nested.report(params).rows} == {
        "not covered by [('**/kernel', 0.5)]",
        "chosen by '**/kernel'",
    }


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("pattern", 3),
        ("pattern", None),
        ("pattern", ""),
        ("pattern", "a" * 300),
        ("rules", []),
        ("rules", ["**/kernel"]),
        ("rules", [("**/kernel", 1, 2)]),
        ("multiplier", [("**/kernel", -1)]),
        ("multiplier", [("**/kernel", "1")]),
        ("multiplier", [("**/kernel", float("nan"))]),
        ("pattern", [(1, "**/kernel")]),
        ("regular expression", "re:("),
        ("regular expression", "re:a{99999999999}"),
        ("range 'z-a', which runs backwards", "[z-a]"),
        ("range '[+]-0', but no set takes the '/'", "[+-0]"),
        ("set of characters '\\[\\]', which is empty or never closed", "[]"),
        ("set of characters '\\[!\\]/b', which is empty or never closed", "a/[!]/b"),
        ("set of characters '\\[ab', which is empty or never closed", "[ab"),
        ("multiplier", [("**/kernel", np.array([1.0, 2.0]))]),
        ("rules", {"**/kernel": 1}),
    ],
    ids=str,
)
def test_bad_selections_are_refused_by_name(name, spec):
    with pytest.raises((ValueError, TypeError), match=f"^on: .*{name}"):
        L1(1.0).on(spec)


def test_a_multiplier_is_structure_and_no_traced_number():
    with pytest.raises(TypeError, match=r"^on: `multiplier` must be a number >= 0, got"):
        jax.jit(lambda x: L1(1.0).on([("**", x)])(jnp.ones(2)))(1.0)


@pytest.mark.parametrize("answer", [None, "yes", -1, float("nan"), jnp.ones(2), [1]])
def test_the_answer_of_a_predicate_is_a_bool_or_a_number(answer):
    with pytest.raises(
        (ValueError, TypeError), match=r"^on: `predicate` must be a bool or a number"
    ):
        L1(1.0).on(lambda path, value: answer)({"kernel": jnp.ones(2)})


def test_rules_are_structure_and_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(penalty, params):
        return penalty(params)

    params = {"kernel": jnp.ones(2)}
    assert run(L1(1.0).on("kernel"), params) == 2
    assert run(L1(2.0).on("kernel"), params) == 4
    assert jax.tree.leaves(L1(1.0).on("kernel")) == [1.0]
    assert isinstance(jax.tree.map(lambda x: x, L1(1.0).on("kernel")).selection, Rules)
