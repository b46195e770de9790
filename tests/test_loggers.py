"""Loggers: what was logged is in the file at once, and nothing that was there is lost."""

import builtins
import csv
import json
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import training


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fitted(loggers, state=None, steps=40):
    apply = lambda params, x: x @ params  # noqa: E731
    step = training.make_step(apply, lambda model, x: jnp.mean((model(x) - 1) ** 2), optax.sgd(0.1))
    state = (
        training.init(apply, optax.sgd(0.1), key=jax.random.key(0), params=jnp.zeros(2))
        if state is None
        else state
    )
    data = training.ArrayData(np.eye(2, dtype=np.float32), 2, jax.random.key(1))
    return training.fit(
        step,
        state,
        data,
        steps=steps,
        log_every=10,
        eval_every=20,
        eval_fn=lambda state: {"val_loss": float(state.params.sum())},
        loggers=loggers,
    )


def test_csv_holds_the_history(tmp_path):
    path = tmp_path / "deep" / "metrics.csv"
    _, history = fitted([training.log_csv(path)])
    table = rows(path)
    assert [int(row["step"]) for row in table] == [10, 20, 30, 40]
    for name in ("loss", "grad_norm", "skipped"):
        np.testing.assert_array_equal([float(row[name]) for row in table], history[name])
    assert [row["val_loss"] != "" for row in table] == [False, True, False, True]
    np.testing.assert_array_equal(
        [float(row["val_loss"]) for row in table if row["val_loss"]], history["val_loss"]
    )


def test_csv_goes_on_in_the_file_that_is_there(tmp_path):
    path = tmp_path / "metrics.csv"
    state, _ = fitted([training.log_csv(path)])
    before = path.read_text()
    fitted([training.log_csv(path)], state, steps=20)
    assert path.read_text().startswith(before)
    assert [int(row["step"]) for row in rows(path)] == [10, 20, 30, 40, 50, 60]
    log = training.log_csv(path)
    log(50, {"loss": 1.0, "fresh": 2.0})
    assert [int(row["step"]) for row in rows(path)] == [10, 20, 30, 40, 50, 60, 50]
    assert rows(path)[0]["fresh"] == ""
    assert rows(path)[-1]["fresh"] == "2.0"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_after_a_crash_in_the_middle_of_a_row(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n10,0.5\n20,0.2")
    log = training.log_csv(path)
    log(30, {"loss": 0.125, "odd,name": 1.0})
    log(30, {"late": 3.0})
    log(40, {"loss": 0.1})
    table = rows(path)
    assert [row["loss"] for row in table] == ["0.5", "0.2", "0.125", "0.1"]
    assert table[2]["odd,name"] == "1.0"
    assert table[2]["late"] == "3.0"


def test_csv_keeps_every_digit_and_what_is_not_finite(tmp_path):
    log = training.log_csv(tmp_path / "a.csv")
    values = {"a": 1 / 3, "b": float("nan"), "c": float("-inf"), "d": 1e-38}
    log(1, values)
    assert {
        name: float(text) for name, text in rows(tmp_path / "a.csv")[0].items() if name != "step"
    } == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_csv_survives_that_its_file_is_taken_away(tmp_path):
    path = tmp_path / "a.csv"
    log = training.log_csv(path)
    log(1, {"loss": 1.0})
    path.unlink()
    log(1, {"val": 2.0})
    log(2, {"loss": 3.0})
    assert [(row["step"], row["loss"], row["val"]) for row in rows(path)] == [
        ("1", "", "2.0"),
        ("2", "3.0", ""),
    ]


def test_jsonl_holds_an_entry_a_line_and_goes_on(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    state, history = fitted([training.log_jsonl(path)])
    fitted([training.log_jsonl(path)], state, steps=10)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    np.testing.assert_array_equal(losses[:4], history["loss"])
    assert [entry["step"] for entry in entries if "val_loss" in entry] == [20, 40, 50]
    training.log_jsonl(path)(60, {"loss": float("nan")})
    assert path.read_text().endswith('{"step": 60, "loss": null}\n')


def test_each_entry_is_in_the_file_when_the_logger_returns(tmp_path):
    log, line = training.log_csv(tmp_path / "a.csv"), training.log_jsonl(tmp_path / "a.jsonl")
    for step in range(1, 4):
        log(step, {"loss": 0.5})
        line(step, {"loss": 0.5})
        assert len(rows(tmp_path / "a.csv")) == step
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) == step


def test_a_logger_may_change_the_entry_it_gets(tmp_path):
    def clear(step, metrics):
        metrics.clear()

    _, history = fitted([clear, training.log_jsonl(tmp_path / "a.jsonl")])
    assert "loss" in (tmp_path / "a.jsonl").read_text()
    assert len(history["loss"]) == 4


def test_tensorboard_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    _, history = fitted([training.log_tensorboard(tmp_path / "run")])
    (file,) = (tmp_path / "run").iterdir()
    content, found, position = file.read_bytes(), {}, 0
    while position < len(content):
        (length,) = struct.unpack("<Q", content[position : position + 8])
        event = Event.FromString(content[position + 12 : position + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        position += 16 + length
    np.testing.assert_array_equal([step for step, _ in found["loss"]], history["step"])
    np.testing.assert_allclose([value for _, value in found["loss"]], history["loss"], rtol=1e-6)
    assert [step for step, _ in found["val_loss"]] == [20, 40]


def test_without_tensorboardx_the_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"jax_lrreg\[tensorboard\]"):
        training.log_tensorboard(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("same_row", [False, True])
def test_a_full_disk_leaves_the_file_as_it_was_and_a_later_run_goes_on(kind, same_row, tmp_path):
    path = tmp_path / f"metrics.{kind}"
    code = f"""
import resource
from jax_lrreg import training
log = training.log_{kind}({str(path)!r})
log(1, {{"loss": 0.5, "late": 0.25}})
log(2, {{"loss": 0.5}})
before = open({str(path)!r}, "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, -1))
try:
    log({2 if same_row else 3}, {{"loss": 1 / 3, "late": 1 / 7}})
except OSError as error:
    assert open({str(path)!r}, "rb").read() == before
    print("full")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "full\n", done.stderr
    getattr(training, f"log_{kind}")(path)(4, {"loss": 0.125})
    lines = path.read_text().splitlines()
    assert len(lines) == (4 if kind == "csv" else 3)
    assert lines[-1] == ("4,0.125," if kind == "csv" else '{"step": 4, "loss": 0.125}')


def test_jsonl_after_a_crash_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1, "lo')
    training.log_jsonl(path)(2, {"loss": 0.5})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "loss": 0.5}


def test_a_wrong_place_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="log_csv: `path` must be a file"):
        training.log_csv(tmp_path)
    with pytest.raises(ValueError, match="log_jsonl: `path` must be a file"):
        training.log_jsonl(tmp_path)
    other = tmp_path / "other.csv"
    other.write_text("name,age\nx,3\n")
    with pytest.raises(ValueError, match="first column is `step`"):
        training.log_csv(other)
    assert other.read_text() == "name,age\nx,3\n"
