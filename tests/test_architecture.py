"""The house of the library: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jax_lrreg"
HOUSE = (  # a room imports from rooms above it only, deferred imports included
    "_struct",
    "_check",
    "_arrays",
    "_patterns",
    "select",
    "_optax_state",
    "controllers",
    "schedules",
    "penalties",
    "averages",
    "forecast",
    "transforms",
    "text",
    "checkpoints",
    "training",
    "sweeps",
    "finder",
    "interop",
    "plots",
    "cli",
    "__main__",
)
# Operators build subclasses of what they stand on, so a base imports its algebra at its bottom.
CIRCLES = {("schedules", "base"), ("penalties", "base")}
HEAVY = {
    "matplotlib": ("plots",),
    "orbax": ("checkpoints",),
    "flax": ("training/modules", "training/precision", "cli"),
    "sklearn": ("cli/data",),
    "tensorboardX": ("training/loggers",),
    "rich": ("select", "training", "sweeps", "cli"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, ast.stmt]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "jax_lrreg":
            found += [(f"jax_lrreg.{alias.name}", node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_from_rooms_above_it_only(path):
    own = room(path)
    if own == "__init__":
        return
    rooms_of = [
        module.split(".")[1] for module, _ in imports(path) if module.startswith("jax_lrreg.")
    ]
    above = HOUSE[: HOUSE.index(own)]
    wrong = [other for other in rooms_of if other not in (own, *above, "__version__")]
    assert not wrong, f"{own} imports {wrong}, which are not above it"


def test_files_of_a_room_do_not_import_each_other_in_circles_but_where_a_base_has_its_algebra():
    graph = {
        path: {
            PACKAGE.parent / (module.replace(".", "/") + ".py")
            for module, node in imports(path)
            if (path.parent.name, path.stem) not in CIRCLES or node.lineno < bottom(path)
        }
        for path in FILES
        if path.name != "__init__.py"
    }
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, f"a circle: {[p.stem for p in (*way, path)]}"
        if path in graph and path not in done:
            for other in graph[path]:
                visit(other, (*way, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def bottom(path: Path) -> int:
    """The line after the last class or function of a file."""
    body = ast.parse(path.read_text()).body
    last = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)][-1]
    return last.end_lineno or 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_heavy_library_is_imported_where_it_belongs_only(path):
    where = str(path.relative_to(PACKAGE)).removesuffix(".py")
    for module, _ in imports(path):
        allowed = HEAVY.get(module.split(".")[0], (where,))
        assert where.startswith(allowed), f"{where} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_and_nothing_is_evaluated_or_unpickled(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 450, "one question a file"
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "__import__"}
    forbidden = ("pickle", "cloudpickle", "jax._src")
    assert not [m for m, _ in imports(path) if m.startswith(forbidden)]


def test_import_loads_jax_and_optax_only_and_every_namespace_can_be_reached():
    heavy = ("chex", "flax", "orbax", "matplotlib", "sklearn", "rich", "tensorboardX")
    code = (
        f"import sys, jax_lrreg; print([m for m in {heavy} if m in sys.modules])\n"
        "public = [name for name in dir(jax_lrreg) if not name.startswith('_')]\n"
        "print([name for name in public if not hasattr(jax_lrreg, name)])\n"
        "print(jax_lrreg.schedules.Constant(0.1), jax_lrreg.text.parse('L1(0.1)'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "[]", "Constant(0.1) L1(0.1)", ""]


def test_no_names_of_modules_that_say_nothing():
    forbidden = {"utils", "helpers", "misc", "common", "core", "_src", "contrib"}
    assert not [
        path
        for path in FILES
        if forbidden & {piece.removesuffix(".py") for piece in path.parts[-2:]}
    ]
