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
    "_processes",
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
BASES = [PACKAGE / "schedules" / "base.py", PACKAGE / "penalties" / "base.py"]
HEAVY = {
    "matplotlib": ("plots",),
    "orbax": ("checkpoints", "_processes"),
    "flax": ("training/modules", "training/precision", "cli"),
    "sklearn": ("cli/data",),
    "tensorboardX": ("training/loggers",),
    "rich": ("training", "sweeps", "cli"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, ast.stmt]]:
    """What a file imports, wherever it does: whole names of modules, never relative ones."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} is a relative import"
            for alias in node.names:  # `from room import file` imports the file
                file = f"{node.module}.{alias.name}"
                inside = node.module == "jax_lrreg" or source_of(file).exists()
                found.append((file if inside else node.module or "", node))
    return found


def source_of(module: str) -> Path:
    return PACKAGE.parent / (module.replace(".", "/") + ".py")


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


def test_files_of_a_room_do_not_import_each_other_in_circles():
    graph = {
        path: {source_of(module) for module, node in imports(path) if node.lineno < bottom(path)}
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
    for path in graph:  # the names of a room are for other rooms
        assert f"jax_lrreg.{room(path)}" not in [module for module, _ in imports(path)], path


@pytest.mark.parametrize("path", BASES, ids=lambda path: room(path))
def test_a_base_makes_no_circles_but_with_its_algebra_at_the_bottom(path):
    below = [node for _, node in imports(path) if node.lineno > bottom(path)]
    assert len(set(below)) == 1
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert not [n for f in functions for n in ast.walk(f) if isinstance(n, ast.ImportFrom)]


def bottom(path: Path) -> float:
    """The line after the last class or function of a base; what another file imports is above."""
    if path not in BASES:
        return float("inf")
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


def test_import_loads_two_small_files_beside_jax_and_optax():
    """A count, as seconds differ: 0.25 s were spent with Flax, Chex and all rooms loaded."""
    code = (
        "import sys, jax, optax; before = set(sys.modules)\n"
        "import jax_lrreg; print(sorted(set(sys.modules) - before))"
    )
    assert run(code) == ["['jax_lrreg', 'jax_lrreg._struct']"]


def test_every_namespace_can_be_reached_and_loads_what_it_needs_only():
    heavy = ("flax", "orbax", "matplotlib", "sklearn", "rich", "tensorboardX")
    heavy += ("scipy.optimize", "scipy.ndimage", "scipy.special")
    code = (
        "import sys, jax_lrreg\n"
        "print(jax_lrreg.schedules.Constant(0.1), jax_lrreg.text.parse('L1(0.1)'))\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "public = [name for name in dir(jax_lrreg) if not name.startswith('_')]\n"
        "print([name for name in public if not hasattr(jax_lrreg, name)])"
    )
    assert run(code) == ["Constant(0.1) L1(0.1)", "[]", "[]"]


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_no_names_of_modules_that_say_nothing():
    forbidden = {"utils", "helpers", "misc", "common", "core", "_src", "contrib"}
    assert not [
        path
        for path in FILES
        if forbidden & {piece.removesuffix(".py") for piece in path.parts[-2:]}
    ]
