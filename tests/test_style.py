"""The style of the library, in counts: what is read often should be short, typed and explained."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "jax_lrreg").rglob("*.py"))
FILES = PACKAGE + sorted((ROOT / "tests").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, FUNCTIONS):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def complexity(function: ast.AST) -> int:
    """McCabe's number: 1 and one for each branch, `and` and `or` too; nested functions apart."""
    return 1 + sum(branches(child) for child in ast.iter_child_nodes(function))


def branches(node: ast.AST) -> int:
    if isinstance(node, FUNCTIONS):
        return 0
    own = int(isinstance(node, BRANCHES))
    if isinstance(node, ast.BoolOp):
        own += len(node.values) - 1
    if isinstance(node, ast.comprehension):
        own += 1 + len(node.ifs)
    return own + sum(branches(child) for child in ast.iter_child_nodes(node))


def code_and_comments(source: str) -> tuple[int, int]:
    """How many lines hold code, docstrings apart, and how many a comment for readers."""
    code, comments = set(), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not token.string.startswith(("# noqa", "# type:"))
        elif token.string.strip():
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            text = node.body[0]
            code -= set(range(text.lineno, (text.end_lineno or 0) + 1))
    return len(code), comments


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_few_functions_are_complex():
    found = {where: complexity(function) for where, function in functions()}
    over = {where: number for where, number in found.items() if number > 10}
    assert len(over) <= 12, over


def test_few_arguments_are_any():
    found = []
    for where, function in functions():
        given = function.args
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            names = ast.walk(one.annotation) if one and one.annotation else ()
            if any(isinstance(node, ast.Name) and node.id == "Any" for node in names):
                found.append(where)
    assert len(found) <= 150, found


def test_code_says_why():
    counts = [code_and_comments(path.read_text()) for path in PACKAGE]
    code, comments = map(sum, zip(*counts, strict=True))
    assert 100 * comments / code >= 6


def test_lines_have_at_most_100_columns():
    found = []
    for path in FILES:
        lines = enumerate(path.read_text().splitlines(), start=1)
        found += [f"{path.relative_to(ROOT)}:{n}" for n, line in lines if len(line) > 100]
    assert not found


def test_the_counts_count_what_they_say():
    source = (
        "'''A module.'''\n"
        "def f(x):  # why\n"
        "    '''A function.'''\n"
        "    if x and x:\n"
        "        return [y for y in x if y]  # noqa: X\n"
        "    def g(): return 1 if x else 2\n"
        "    # why not\n"
    )
    outer = ast.parse(source).body[1]
    inner = next(node for node in ast.walk(outer) if isinstance(node, FUNCTIONS) and node != outer)
    assert (complexity(outer), complexity(inner)) == (5, 2)
    assert code_and_comments(source) == (4, 2)
