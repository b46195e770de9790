"""Programs compiled for TPUs on a machine without one, by PyPI's libtpu."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
TOPOLOGIES = ("v5e:1x1", "v5e:2x2")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or not sys.platform.startswith("linux"),
    reason="compiling for TPUs needs the extra `tpu-aot`, on Linux",
)


@pytest.fixture(scope="module")
def programs():
    command = [sys.executable, str(HERE / "reliability" / "tpu.py"), *TOPOLOGIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def collectives(program):
    return {name: program[name] for name in COLLECTIVES}


def test_no_program_branches_calls_the_host_or_copies_its_state(programs):
    # A conditional would be the branch of a CPU, which made these programs.
    assert all(not program["words"] and program["kept"] for program in programs.values()), programs


def test_one_chip_sends_nothing(programs):
    assert not any(sum(collectives(p).values()) for n, p in programs.items() if "1x1" in n)


def test_a_replicated_state_costs_one_message(programs):
    for name in ("step", "penalty", "proximal", "loop", "scan"):
        found = collectives(programs[f"v5e:2x2 {name}"])
        assert found == dict.fromkeys(COLLECTIVES, 0) | {"all-reduce": 1}, name


def test_a_separable_penalty_costs_no_message_where_the_state_is_cut(programs):
    plain = collectives(programs["v5e:2x2 fsdp"])
    assert plain["all-gather"] > 0
    for name in ("penalty", "proximal"):
        assert collectives(programs[f"v5e:2x2 fsdp {name}"]) == plain, name
