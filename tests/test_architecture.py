"""The house of the library: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jax_lrreg"
LEVELS = {
    "_struct": 0,
    "select": 0,
    "schedules": 1,
    "penalties": 1,
    "transforms": 2,
    "training": 2,
    "checkpoints": 3,
    "sweeps": 3,
    "finder": 3,
    "interop": 3,
    "text": 3,
    "plots": 4,
    "dataset": 4,
    "job": 4,
    "__main__": 4,
}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "matplotlib": {"plots.py"},
    "orbax": {"checkpoints.py"},
    "flax": {"job.py"},
    "sklearn": {"dataset.py"},
    "tensorboardX": {"loggers.py"},
}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> list[tuple[str, ast.AST]]:
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
def test_a_file_imports_from_lower_levels_only(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module, _ in imports(path):
        if module.startswith("jax_lrreg."):
            other = part(module)
            if other == "__version__":
                continue
            same_package = other == own
            assert (
                same_package
                or LEVELS[other] < LEVELS[own]
                or (own in ("__main__", "job") and LEVELS[other] == 4)
                or (
                    LEVELS[other] == LEVELS[own]
                    and (own, other) in {("penalties", "schedules"), ("select", "_struct")}
                )
            ), f"{relative} (level {LEVELS[own]}) imports {module} (level {LEVELS[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_heavy_library_is_imported_where_it_belongs_only(path):
    for module, _ in imports(path):
        allowed = HEAVY.get(module.split(".")[0])
        assert allowed is None or path.name in allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_short_and_nothing_is_evaluated_or_unpickled(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 320, "one concept a file"
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "__import__"}
    assert not any(
        module.split(".")[0] in ("pickle", "cloudpickle", "jax._src") for module, _ in imports(path)
    )


def test_import_loads_neither_flax_nor_orbax_nor_matplotlib_nor_sklearn():
    heavy = ("flax", "orbax", "matplotlib", "sklearn", "rich", "tensorboardX")
    code = f"import sys, jax_lrreg; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_names_of_modules_that_say_nothing():
    forbidden = {"utils", "helpers", "misc", "common", "core", "_src", "contrib"}
    assert not [
        path
        for path in FILES
        if forbidden & {piece.removesuffix(".py") for piece in path.parts[-2:]}
    ]
