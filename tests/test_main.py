"""The command line: what it prints and writes, how it ends, and what it refuses."""

import csv
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jax_lrreg import schedules, text, training
from jax_lrreg.cli import EXAMPLES, EXIT_CODES, _parser, main
from jax_lrreg.cli.options import json_text

SHORT = ["--epochs", "1", "--hidden", "4"]


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def config(folder):
    return json.loads((folder / "config.json").read_text())


def table(tmp_path, n=60, scale=1.0, shift=0.0, name="a.csv"):
    """A file of three inputs and a target that is linear in them."""
    x = np.random.default_rng(0).normal(size=(n, 3))
    y = (x @ [1.0, 2.0, 3.0] + shift) * scale
    np.savetxt(tmp_path / name, np.c_[x, y], "%.17g", ",", header="a,b,c,price", comments="")
    return ["--data", str(tmp_path / name), "--target", "price"]


def call(arguments):
    """The exit code, argparse's own too."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def outside(*arguments, **environment):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "jax_lrreg", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment})


def test_train_writes_a_run_folder_and_reaches_its_accuracy(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "step 660/660" in output
    for words in (
        "exact zeros in kernels",
        "64 -> 128 -> 128 -> 10",
        "10 classes",
        "cross-entropy, in nats",
        "660: 30 epochs of 22, each of 64 examples",
        f"{tmp_path} has metrics.csv, config.json, history.png",
    ):
        assert words in output
    found = config(tmp_path)
    for name in ("schedule", "penalty"):
        assert repr(text.parse(found[name])) == found[name]
    entries = rows(tmp_path)
    assert float(entries[-1]["test_accuracy"]) >= 0.96
    names = {"step", "loss", "data_loss", "penalty", "learning_rate", "skipped", "test_loss"}
    assert names <= set(entries[0])
    lr = text.parse(found["schedule"])
    step = int(entries[3]["step"])
    np.testing.assert_allclose(float(entries[3]["learning_rate"]), lr(step - 1), rtol=1e-5)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("data", ["diabetes", "breast_cancer"])
def test_train_on_other_data(data, tmp_path):
    assert main(["train", "--data", data, "--epochs", "3", "--out", str(tmp_path)]) == 0
    entries = rows(tmp_path)
    assert float(entries[-1]["test_loss"]) < float(entries[0]["test_loss"])


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 1e8), (1e-21, 0), (1e30, -5)])
def test_the_loss_of_a_regression_is_in_units_of_the_targets_variance(
    scale, shift, tmp_path, capsys
):
    data = table(tmp_path, scale=scale, shift=shift)
    options = ["--epochs", "40", "--batch-size", "16", "--lr", "0.01", "--penalty", "L2(1e-6)"]
    assert main(["train", *data, *options, "--out", str(tmp_path / "run")]) == 0
    losses = [float(row["test_loss"]) for row in rows(tmp_path / "run") if row["test_loss"]]
    assert 0.001 < losses[-1] < 0.02 < losses[0] < 2
    assert "in units of the target's variance" in capsys.readouterr().out
    found = config(tmp_path / "run")
    y = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1)[:, 3]
    np.testing.assert_allclose(found["target_deviation"], y.std(), rtol=0.2)
    np.testing.assert_allclose((found["target_mean"] - y.mean()) / y.std(), 0, atol=0.3)


@pytest.mark.parametrize("n", [10, 11, 79, 400])
@pytest.mark.sampled(2)
def test_defaults_fit_every_number_of_rows(n, tmp_path):
    for run, options in enumerate((["--epochs", "1"], ["--batch-size", str(n - n // 5)])):
        out = ["--hidden", "4", "--out", str(tmp_path / f"run{run}")]
        assert main(["train", *table(tmp_path, n), *options, *out]) == 0


def test_few_steps_have_no_room_for_a_warmup(tmp_path):
    out = ["--hidden", "4", "--out", str(tmp_path / "run")]
    assert main(["train", "--epochs", "5", "--batch-size", "1000", *out]) == 0
    assert config(tmp_path / "run")["schedule"] == "Cosine(0.003, steps=5)"


def test_the_task_and_the_network_are_as_asked(tmp_path, capsys):
    options = ["--task", "regression", "--hidden", "7,5", "--epochs", "1"]
    assert main(["train", *options, "--out", str(tmp_path / "a")]) == 0
    output = capsys.readouterr().out
    assert "64 -> 7 -> 5 -> 1" in output
    assert re.search("task +│ regression +│", output)
    assert config(tmp_path / "a")["task"] == "regression"
    assert main(["train", "--hidden", "none", "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    assert "64 -> 10, ReLU" in capsys.readouterr().out


def test_schedules_may_be_numbers_and_count_epochs(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SHORT, "--lr", "1e-3", "--out", str(out)]) == 0
    assert config(out)["schedule"] == "Constant(0.001)"
    options = ["--lr", "Cosine(1e-3, steps=2)", "--units", "epochs", "--overwrite"]
    assert main(["train", "--hidden", "4", "--epochs", "3", *options, "--out", str(out)]) == 0
    lr = text.parse(config(out)["schedule"])
    assert lr == schedules.Cosine(1e-3, steps=2).in_units(per_step=1 / 22)
    rates = [float(row["learning_rate"]) for row in rows(out)]
    np.testing.assert_allclose(rates, [lr(21), lr(43), 0], rtol=1e-5, atol=1e-9)


def test_a_run_is_replaced_only_where_it_is_said(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", *SHORT, *out]) == 0
    before = rows(tmp_path / "run")
    assert main(["train", *SHORT, *out, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert rows(tmp_path / "run") == before
    assert main(["train", *SHORT, *out, "--seed", "1", "--overwrite"]) == 0
    assert len(rows(tmp_path / "run")) == 1
    assert config(tmp_path / "run")["seed"] == 1


def test_a_result_that_is_no_number_is_no_success(tmp_path, capsys):
    options = ["--optimizer", "sgd", "--lr", "1e30", "--epochs", "1"]
    assert main(["train", *table(tmp_path), *options, "--out", str(tmp_path / "run")]) == 1
    assert "no finite" in capsys.readouterr().err
    assert len(rows(tmp_path / "run")) == 1
    options = ["--low", "1e-12", "--high", "1e-9", "--out", str(tmp_path / "found.png")]
    assert main(["find-lr", *table(tmp_path), *options]) == 1
    assert "no suggestion: the loss fell at no learning rate" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "find-lr"])
def test_where_nothing_can_be_written_is_found_out_before_work_begins(
    command, tmp_path, capsys, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr("jax_lrreg.training.fit", never)
    monkeypatch.setattr("jax_lrreg.finder.range_test", never)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    places = ["/dev/null", "/dev/null/run", str(tmp_path / "file" / "run"), "/proc/run"]
    places += [str(tmp_path / name) for name in ("file", "link")] if command == "train" else []
    places += [str(tmp_path), "pic.xyz", "pic.jpgg"] if command == "find-lr" else []
    for place in places:
        assert main([command, *SHORT[2:], "--out", place]) == 2, place
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "--out" in message
        assert place in message
    assert (tmp_path / "file").read_text() == "precious"


def test_interrupted_while_a_class_is_made_it_exits_with_the_same_code(tmp_path):
    code = """
import runpy
import jax_lrreg.cli as cli
def main():
    try:
        exec("raise KeyboardInterrupt")  # as in the making of a dataclass
    except KeyboardInterrupt:
        return 130
cli.main = main
runpy.run_module("jax_lrreg", run_name="__main__")
"""
    (tmp_path / "program.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command, env = [sys.executable, "-m", "program"], {**os.environ, "PYTHONPATH": paths}
    assert subprocess.run(command, env=env, check=False).returncode == 130


def test_interrupted_it_says_so_in_a_line_and_leaves_what_there_is(tmp_path):
    command = [sys.executable, "-m", "jax_lrreg", "train", "--epochs", "100000", "--out", "run"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=tmp_path, **options)
    metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 20):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert re.fullmatch(
        "jax-lrreg: interrupted after step \\d+ of 2200000; "
        "run has metrics.csv, config.json, history.png\n",
        errors,
    )
    assert rows(tmp_path / "run")[-1]["loss"]


def test_compare_says_what_train_then_finds(tmp_path, capsys):
    out, options = tmp_path / "grid.png", ["--hidden", "none", "--epochs", "2", "--seed", "3"]
    lists = ["--lr", "Cosine([1e-3, 3e-2], steps=[44, 33])", "--penalty", "L2([1e-4, 1e-2])"]
    assert main(["compare", *options, *lists, "--seeds", "1", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "grid.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    for words in ("4 points, 1 seed each, 44 steps", "lr init value", "penalty strength"):
        assert words in output
    best = min(table, key=lambda row: float(row["test_loss"]))
    command = shlex.split(output.rpartition("Train it: jax-lrreg ")[2])
    assert command[command.index("--lr") + 1] == best["lr"] == "Cosine(0.03, steps=33)"
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(float(rows(tmp_path / "run")[-1][name]), float(best[name]), 1e-4)


def test_plan_prints_a_schedule_that_train_takes(tmp_path, capsys):
    out, options = tmp_path / "plan.png", ["--hidden", "none", "--seeds", "2", "--peak", "0.01"]
    assert main(["plan", *options, "--steps", "200", "--short", "100", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    for words in ("expected test loss", "nine times in ten", "2 seeds each, 100 steps"):
        assert words in output
    command = shlex.split(output.rpartition("Train it: jax-lrreg ")[2])
    assert command[:5] == ["train", "--data", "digits", "--hidden", "none"]  # the same problem
    assert text.parse(command[command.index("--lr") + 1])(0) == 0  # it begins with the warmup
    assert call(["plan", "--short", "99", "--out", str(out)]) == 2
    assert call(["plan", "--steps", "50", "--out", str(out)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--short" in errors[-2]
    assert "--steps" in errors[-1]


def test_compare_gives_an_interval_over_seeds_and_fails_where_nothing_is_finite(tmp_path, capsys):
    data = [*table(tmp_path), "--hidden", "none", "--epochs", "2", "--optimizer", "sgd"]
    out = ["--out", str(tmp_path / "sweep")]
    lists = ["--lr", "[1e-2, 1e-1]", "--units", "epochs", "--seeds", "2"]
    assert main(["compare", *data, *lists, *out]) == 0
    assert re.search(r"0\.1 │ +[\d.e-]+ ± [\d.e-]+", capsys.readouterr().out)
    assert (tmp_path / "sweep.png").exists()
    bad = ["--lr", "[1e30, 2e30]", "--optimizer", "sgd", "--seeds", "1", "--hidden", "4"]
    assert main(["compare", *table(tmp_path), "--epochs", "1", *bad, *out]) == 1
    assert "no finite test_loss at any point" in capsys.readouterr().err


def test_show_draws_and_sketches(tmp_path, capsys):
    out = tmp_path / "s.png"
    assert main(["show", "Cosine(1e-3, steps=900).warmup(100)", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "█" in output
    assert "0.000933013" in output
    assert out.read_bytes().startswith(b"\x89PNG")
    for name, file, head in (
        ("pic", "pic.png", b"\x89PNG"),
        ("deep/pic.", "deep/pic.png", b"\x89PNG"),
        ("pic.svg", "pic.svg", b"<?xml"),
        ("pic.PDF", "pic.PDF", b"%PDF"),
    ):
        assert main(["show", "1e-3", "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / file).read_bytes().startswith(head)
        assert f"Wrote {tmp_path / file}\n" in capsys.readouterr().out


def test_list_is_a_name_a_line_where_it_is_piped(capsys):
    assert main(["list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert {"Cosine", "L1", "join", ".warmup", ".on"} <= set(names)
    assert all(re.fullmatch(r"\.?\w+", name) for name in names)
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("encoding", "columns"), [("ascii", 40), ("cp1252", 40), ("utf-8", 40), ("utf-8", 80)]
)
@pytest.mark.sampled(2)
def test_every_terminal_shows_it(encoding, columns, tmp_path):
    """In `columns`, whatever letters it has."""
    commands = (
        ["show", "Cosine(1e-3, steps=900).warmup(100)", "--out", str(tmp_path / "s.png")],
        ["train", *SHORT, "--data", "diabetes", "--out", str(tmp_path / "größe"), "--overwrite"],
        ["list"],
        ["train", "--help"],
    )
    code = "import sys, jax_lrreg.cli as cli\nsys.stdout.isatty = lambda: True\n"
    code += (
        f"for command in {commands!r}:\n    try: cli.main(command)\n    except SystemExit: pass\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": str(columns)}
    environment |= {"TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, env=environment, check=True, cwd=tmp_path)
    assert done.stderr == b""
    output = done.stdout.decode(encoding)
    if encoding == "utf-8":
        assert "█" in output
    output = output[: output.index("usage:")]  # argparse has its own idea of narrow
    long = [line for line in output.splitlines() if len(line) > columns]
    assert [line for line in long if not line.startswith(("step ", "Wrote ", str(tmp_path)))] == []


def test_a_pipe_that_closes_is_no_error():
    command = f"{sys.executable} -m jax_lrreg list | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


MISSING = {
    "matplotlib": ["show", "1e-3"],
    "sklearn": ["train", "--data", "digits"],
}


@pytest.mark.parametrize("library", MISSING)
def test_what_is_not_installed_is_named_with_the_way_to_install_it(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = f"import sys; sys.modules[{library!r}] = None\nimport jax_lrreg.cli as cli\n"
    code += f"sys.exit(cli.main({MISSING[library]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'jax_lrreg[demo]'" in done.stderr


WRONG = [
    (["--data", "nowhere.csv"], "there is no file 'nowhere.csv'"),
    (["--data", "digit"], "--data.* must be one of digits, diabetes"),
    (["--lr", "Cosin(1e-3, steps=5)"], "--lr: unknown name .Cosin.; did you mean .Cosine"),
    (["--lr", "Cosine(1e-3)"], "--lr.*steps"),
    (["--lr", "Cosine(1e-3, steps=-5)"], "--lr: Cosine: `steps` must be a positive"),
    (["--lr", "L1(1)"], "--lr.* must be a schedule"),
    (["--lr", "nan"], "--lr: Constant: `value`"),
    (["--lr", "-1e-3"], "--lr: Constant: `value` must be a number >= 0, got -0.001"),
    (["--lr", "Cosine([1, 2], steps=9)"], "`--lr` must be one schedule"),
    (["--penalty", "L2([0, 1])"], "--penalty: L2: `strength` must be"),
    (["--penalty", "L1(-1)"], "--penalty: L1: `strength` must be"),
    (["--penalty", "Constant(1)"], "--penalty.* must be a penalty"),
    (["--penalty", "L1(1).on('**/kernl')"], "--penalty: .*'\\*\\*/kernl' matches no parameter"),
    (["--optimizer", "adan"], "--optimizer.* must be one of sgd.*did you mean 'adam"),
    (["--optimizer", ""], "--optimizer must be one of"),
    (["--epochs", "2147483647"], "`--epochs` must be so few"),
    (["--epochs", "0"], "--epochs: must be a whole number"),
    (["--batch-size", "many"], "--batch-size: must be a whole number"),
    (["--batch-size", "99999"], "--batch-size.* at most the 1438"),
    (["--seed", "-1"], "--seed: must be a whole number"),
    (["--hidden", "12,0"], "--hidden: must be a whole number"),
    (["--hidden", "wide"], "--hidden: must be a whole number"),
    (["--task", "clustering"], "--task: invalid choice"),
    (["--units", "hours"], "--units: invalid choice"),
    (["--target", "y"], "--target.*digits"),
    (["--out", ""], "`--out` must be the name of a folder"),
    (["--out", "/dev/null/run"], "/dev/null/run"),
    (["--unknown"], "unrecognized arguments: --unknown"),
    (["--epoch", "3"], "train: error: unrecognized.*--epoch 3; did you mean '--epochs'"),
]


def one_line_names(words, capsys):
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 or errors.startswith("usage:")
    assert re.search(words, errors.strip().splitlines()[-1])
    assert "Traceback" not in errors


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_wrong_option_gives_one_line_that_names_it(arguments, words, tmp_path, capsys):
    assert call(["train", "--epochs", "1", "--out", str(tmp_path / "out"), *arguments]) == 2
    one_line_names(words, capsys)
    assert not (tmp_path / "out").exists()


WRONG_GRIDS = [
    (["--lr", "0.1"], "`--lr` must be a text with a list in it"),
    (["--lr", "Linear([1, 2], steps=[1, 2, 3])"], "`--lr` must be a text whose lists are of one"),
    (["--lr", "[]"], "`--lr` must be a text whose lists are of one length"),
    (
        ["--penalty", "L1([1, 2]).on('**/kernl')"],
        "--penalty: .*'\\*\\*/kernl' matches no parameter",
    ),
    (["--penalty", "L2([1, -2])"], "--penalty: L2: `strength` must be"),
    (["--lr", "L1([1, 2])"], "--lr.* must be a schedule"),
    (["--lr", "[1, 2]", "--seeds", "0"], "--seeds: must be a whole number"),
    (["--lr", "[1, 2]", "--out", "a.txt"], "--out. must be a picture"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG_GRIDS, ids=[" ".join(a) for a, _ in WRONG_GRIDS]
)
def test_a_wrong_grid_gives_one_line_that_names_it(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(["compare", "--epochs", "1", "--hidden", "4", *arguments]) == 2
    one_line_names(words, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["trian", "--verison"])
def test_a_wrong_command_is_told_the_nearest(word, capsys):
    assert call([word]) == 2
    near = {"trian": "train", "--verison": "--version"}[word]
    one_line_names(f"the first argument .* got '{word}'; did you mean '{near}'", capsys)


def test_what_does_not_fit_into_memory_is_told_in_a_line(tmp_path, capsys):
    out = tmp_path / "out"
    # 800 TB: more than there are addresses, whatever a machine promises
    assert call(["train", "--hidden", "100000,2000000000", "--out", str(out)]) == 2
    one_line_names("out of memory: try a smaller --hidden", capsys)
    assert not out.exists()


def test_runs_as_a_module():
    assert outside("--version").stdout.startswith(b"jax_lrreg ")


def test_the_same_command_goes_on_and_a_run_that_has_ended_is_shown(tmp_path, capsys, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    train = ["train", "--hidden", "4", "--lr", "1e-2", "--epochs", "6", "--out"]
    assert main([*train, str(whole)]) == 0
    fit = training.fit

    def interrupted(*args, eval_fn, **options):
        def evaluation(state):
            if state.step == 66:
                signal.raise_signal(signal.SIGTERM)
            return eval_fn(state)

        return fit(*args, eval_fn=evaluation, **options)

    monkeypatch.setattr(training, "fit", interrupted)
    assert main([*train, str(part)]) == 143
    assert "interrupted after step 66 of 132" in capsys.readouterr().err
    monkeypatch.undo()
    for _ in range(2):
        assert main([*train, str(part)]) == 0
        assert rows(part) == rows(whole)
        assert "Trained on digits" in capsys.readouterr().out


def test_a_branch_goes_on_from_another_run_with_another_rate(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    train = ["train", "--hidden", "4", "--epochs", "2"]
    assert main([*train, "--lr", "1e-2", "--out", str(old)]) == 0
    before = rows(old)
    options = ["--lr", "Constant(1e-2).cooldown(44, at=44)", "--branch", str(old), "--at", "44"]
    train[-1] = "4"
    for _ in range(2):  # again it goes on, and does not branch again
        assert main([*train, *options, "--out", str(new)]) == 0
        assert [int(row["step"]) for row in rows(new)] == [22, 44, 66, 88][-len(rows(new)) :]
        assert float(rows(new)[-1]["learning_rate"]) < 1e-3
    assert rows(old) == before
    assert main([*train, "--at", "44", "--out", str(tmp_path / "x")]) == 2
    assert "--branch" in capsys.readouterr().err
    assert main([*train, "--branch", str(old), "--at", "7", "--out", str(tmp_path / "x")]) == 2
    assert "has a checkpoint: 44, got 7" in capsys.readouterr().err
    assert not (tmp_path / "x" / "checkpoints").exists()


def test_a_branch_has_what_is_not_said_from_its_run_and_refuses_what_does_not_go_on(
    tmp_path, capsys
):
    old, new = tmp_path / "old", tmp_path / "new"
    said = ["--hidden", "4", "--seed", "3", "--batch-size", "100", "--optimizer", "momentum"]
    said += ["--penalty", "L1(1e-4).on('**/kernel')", "--epochs", "2", "--lr", "0.01"]
    assert main(["train", *said, "--out", str(old)]) == 0
    branch = ["train", "--branch", str(old), "--out", str(new)]
    wrong = {
        ("--seed", "4"): "test",
        ("--hidden", "5"): r"\(4,\)",
        ("--optimizer", "adam"): "momentum",
        ("--at", "5"): "has a checkpoint: 28",
        (): "more than the 28 steps",  # as many epochs as there were
    }
    for option, words in wrong.items():
        assert main([*branch, *option]) == 2
        message = capsys.readouterr().err
        assert re.search(words, message)
        assert (option or ("--epochs",))[0] in message
        assert not new.exists()
    assert main([*branch, "--epochs", "3"]) == 0
    there, here = config(old), config(new)
    changed = {name for name in here if here[name] != there[name]}
    assert changed == {"branch", "epochs"} | ({"lr"} & here.keys())
    assert main(["train", "--branch", str(tmp_path), "--out", str(new)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_help_teaches_by_examples_that_are_commands(capsys):
    assert call(["--help"]) == 0
    assert EXIT_CODES in capsys.readouterr().out
    for command, text_of in EXAMPLES.items():
        assert call([command, "--help"]) == 0
        output = capsys.readouterr().out
        assert text_of in output
        assert EXIT_CODES in output
        for line in text_of.splitlines():
            words = shlex.split(re.split(r" > |  +(?=\S)| \| ", line.strip())[0])
            assert words[:2] == ["jax-lrreg", command]
            _parser().parse_args(words[1:])


def test_exit_codes_are_those_of_the_docs():
    page = (Path(__file__).parent.parent / "docs/command_line.md").read_text()
    codes = re.findall(r"^  (\d+) +(.*)", EXIT_CODES, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \| (.*) \|", page, re.MULTILINE)


def test_json_is_one_object_and_quiet_is_nothing(tmp_path, capsys):
    out = ["--out", str(tmp_path / "s.png")]
    assert main(["show", "Cosine(1e-3, steps=900)", "--steps", "800", "--json", *out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["values"][0] == {"step": 0, "value": 0.001}
    assert main(["list", "--json"]) == 0
    assert "Cosine" in json.loads(capsys.readouterr().out)["Schedules"]
    train = ["train", *table(tmp_path), *SHORT, "--out", str(tmp_path / "run")]
    assert main([*train, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_examples"] == 12
    assert found["test_loss"] > 0
    assert main([*train, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["train", "--lr", "nan", "--json"]) == 2
    assert capsys.readouterr().out == ""
    assert json.loads(json_text({"a b": [math.nan, (math.inf, 1.0)]})) == {"a_b": [None, [None, 1]]}


def test_train_says_what_is_in_a_file(tmp_path, capsys):
    file = tmp_path / "b.csv"
    rows = (f"{i},{i % 7},{i % 5},{'yes' if i % 3 else 'no'}\n" for i in range(60))
    file.write_text("id,a,b,bought\n" + "".join(rows))
    run = [*SHORT, "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(file), "--target", "bought", *run]) == 0
    told = " ".join(capsys.readouterr().out.partition("step ")[0].split())
    for words in (
        "60 rows, 48 of them to train and 12 to test; 2 inputs",
        "column id left out: it numbers the rows",
        "Target `bought`: one of no (20), yes (40); 2 classes",
    ):
        assert words in told


def test_nothing_is_coloured_where_it_is_piped():
    for arguments in (["list"], ["train", "--help"], ["train", "--data", "nowhere.csv"]):
        done = outside(*arguments)
        assert b"\x1b" not in done.stdout + done.stderr
