"""Programs compiled for TPUs on a machine without one, by PyPI's libtpu."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "reliability" / "tpu.py"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or not sys.platform.startswith("linux"),
    reason="compiling for TPUs needs the extra `tpu-aot`, on Linux",
)


@pytest.fixture(scope="module")
def programs():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sent(programs, *labels):
    """The messages of the programs of these labels, by topology and label."""
    found = {}
    for name, program in programs.items():
        chips, _, label = name.partition(" ")
        if label in labels:
            found[chips, label] = {kind: program[kind] for kind in COLLECTIVES}
    return found


def test_no_program_branches_calls_the_host_or_copies_its_state(programs):
    # A conditional would be the branch of a CPU, which made these programs.
    assert {n: p["words"] for n, p in programs.items() if p["words"]} == {}
    assert [name for name, program in programs.items() if not program["kept"]] == []


def test_one_chip_and_a_sweep_send_nothing(programs):
    alone = [p for name, p in programs.items() if name.startswith("v5e:1x1") or "sweep" in name]
    assert len(alone) == 2
    assert not any(program[kind] for program in alone for kind in COLLECTIVES)


def test_a_replicated_state_costs_one_message_a_step(programs):
    # Loss, gradient and penalty go in one.
    times = {"penalty": 1, "proximal": 1, "loop": 1, "scan": 3}
    found = sent(programs, *times)
    assert len(found) == 7
    for (chips, label), messages in found.items():
        expected = dict.fromkeys(COLLECTIVES, 0) | {"all-reduce": times[label]}
        assert messages == expected, (chips, label)


def test_a_separable_penalty_costs_no_message_where_the_state_is_cut(programs):
    plain = {chips: found for (chips, _), found in sent(programs, "cut").items()}
    assert len(plain) == 3
    labels = ("cut penalty", "cut proximal", "cut injected", "cut average")
    labels += ("cut ball", "cut reference", "cut important")  # groups whole; data that are cut too
    for (chips, label), found in sent(programs, *labels).items():
        assert found == plain.get(chips, found), (chips, label)
    assert plain["v5e:2x2"]["all-gather"] > 0
