"""Switches for every test, in `tests`, in the pages of `docs` and in the docstrings."""

import atexit
import gc
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("COLUMNS", None)  # the width of the terminal that the tests run in decides nothing
os.environ.setdefault("JAX_PLATFORMS", os.environ.get("JAX_LRREG_PLATFORM", ""))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests make the same small programs, and compiling them is most of the time: a folder for
    # all workers and the scripts that tests start. A new one for each run, so that nothing is old.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_lrreg_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A third less time to compile: the newer emitters of XLA's CPU, which build an MLIR context for
# each fusion, are those of `--full` and of the notebooks. XLA ends a process at a flag that it does
# not know: only where this one was seen.
worker = "PYTEST_XDIST_WORKER" in os.environ
seen = importlib.metadata.version("jaxlib").startswith("0.10.")
if seen and not worker and "--full" not in sys.argv:
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.getenv('XLA_FLAGS', '')}"

import chex
import hypothesis
import jax
import pytest

if worker:  # Several are as many threads; more would only wait.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    jax.devices()
    # Not for what the tests start: with one thread, sums over devices of one CPU wait for ever.
    os.environ["XLA_FLAGS"] = flags

# What records other libraries imports them, installed or not; the others are programs of their own.
collect_ignore_glob = [
    *("tests/parity/*.py", "tests/reliability/[!t]*.py", "tests/reliability/tpu.py"),
    *("docs/conf.py", "docs/pictures.py"),
]

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    meaning = "all examples of each law and all benchmarks, as before a release"
    parser.addoption("--full", action="store_true", help=meaning)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sampled(n): n of the examples are enough without --full")
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays: a collection that looks at all of it takes half a second."""
    gc.enable()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where examples differ in numbers more than in code, a few of them, evenly spread."""
    if config.getoption("--full") or any("[" in word for word in config.args):
        return
    groups: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            groups.setdefault((item.path, item.parent, item.originalname), []).append(item)
    left: set[pytest.Item] = set()
    for group in groups.values():
        (most,) = group[0].get_closest_marker("sampled").args
        spread = {round(i * (len(group) - 1) / max(most - 1, 1)) for i in range(most)}
        left |= {item for place, item in enumerate(group) if place not in spread}
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """No addresses in the names of tests: two workers must agree on them."""
    text = repr(val)
    return re.sub(r" at 0x[0-9a-f]+", "", text) if " at 0x" in text else None


@pytest.fixture(autouse=True)
def _no_traces_before():
    """`chex.assert_max_traces` counts by the name of a function: each test begins at 0."""
    chex.clear_trace_counter()


@pytest.fixture
def compilations():
    """The programs that XLA compiles from here on."""
    seen = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


MEMORY = {"after clearing": 0.0}


@pytest.fixture(autouse=True)
def _little_memory():
    """Thousands of small compiled programs fill the memory: too many are dropped."""
    yield
    if _gigabytes() > MEMORY["after clearing"] + 1.5:
        jax.clear_caches()
        gc.collect()
        MEMORY["after clearing"] = _gigabytes()


def _gigabytes() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:  # not on Linux
        return 0.0
