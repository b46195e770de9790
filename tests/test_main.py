import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from jax_lrreg import text
from jax_lrreg.cli import main


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_train_writes_a_run_folder_and_reaches_its_accuracy(tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "step 660/660" in output
    assert "exact zeros in kernels" in output
    config = json.loads((tmp_path / "config.json").read_text())
    assert repr(text.parse(config["schedule"])) == config["schedule"]
    assert repr(text.parse(config["penalty"])) == config["penalty"]
    table = rows(tmp_path)
    assert float(table[-1]["test_accuracy"]) >= 0.96
    assert {"step", "loss", "data_loss", "penalty", "learning_rate", "skipped", "test_loss"} <= set(
        table[0]
    )
    lr = text.parse(config["schedule"])
    np.testing.assert_allclose(
        float(table[3]["learning_rate"]), lr(int(table[3]["step"]) - 1), rtol=1e-5
    )
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("data", ["diabetes", "breast_cancer"])
def test_train_on_other_data(data, tmp_path, capsys):
    assert main(["train", "--data", data, "--epochs", "3", "--out", str(tmp_path)]) == 0
    table = rows(tmp_path)
    assert float(table[-1]["test_loss"]) < float(table[0]["test_loss"])


def test_train_on_your_own_files(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = x @ [1.0, 2.0, 3.0]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with open(tmp_path / "a.csv", "w") as file:
        file.write(
            "a,b,c,price\n"
            + "\n".join(",".join(map(str, [*row, t])) for row, t in zip(x, y, strict=True))
        )
    for name, target in (("a.npz", []), ("a.csv", ["--target", "price"])):
        options = [
            "--epochs",
            "40",
            "--batch-size",
            "16",
            "--lr",
            "Constant(0.01)",
            "--penalty",
            "L2(1e-6)",
        ]
        assert (
            main(
                [
                    "train",
                    "--data",
                    str(tmp_path / name),
                    *target,
                    *options,
                    "--out",
                    str(tmp_path / "out"),
                ]
            )
            == 0
        )
        assert float(rows(tmp_path / "out")[-1]["test_loss"]) < 0.2


def test_show_draws_and_lists(tmp_path, capsys):
    out = tmp_path / "s.png"
    assert main(["show", "Cosine(1e-3, steps=900).warmup(100)", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "█" in output
    assert "0.000933013" in output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["list"]) == 0
    assert "Cosine" in capsys.readouterr().out


def wrong(tmp_path):
    (tmp_path / "text.csv").write_text("a,b\n1,2\nx,3\n")
    (tmp_path / "nan.csv").write_text("a,b\n" + "1,nan\n" * 20)
    (tmp_path / "short.csv").write_text("a,b\n1\n")
    (tmp_path / "few.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "no_target.npz", x=np.ones((20, 2)))
    return [
        (["--data", "nowhere.csv"], "there is no file 'nowhere.csv'"),
        (["--data", "digit"], "--data.* must be one of digits, diabetes"),
        (
            ["--data", str(tmp_path / "text.csv"), "--target", "b"],
            "line 3, column 'a' must be a number, got 'x'",
        ),
        (["--data", str(tmp_path / "nan.csv"), "--target", "b"], "20 missing or infinite target"),
        (["--data", str(tmp_path / "short.csv"), "--target", "b"], "line 2.*2 values"),
        (["--data", str(tmp_path / "few.csv"), "--target", "b"], "at least 10 examples"),
        (["--data", str(tmp_path / "empty.csv"), "--target", "b"], "--target"),
        (["--data", str(tmp_path / "few.csv")], "--target.*one of the columns a, b"),
        (
            ["--data", str(tmp_path / "few.csv"), "--target", "z"],
            "--target.*one of the columns a, b",
        ),
        (["--data", str(tmp_path / "broken.npz")], "--data"),
        (["--data", str(tmp_path / "no_target.npz")], "--target"),
        (["--lr", "Cosin(1e-3, steps=5)"], "--lr: unknown name .Cosin.; did you mean .Cosine"),
        (["--lr", "Cosine(1e-3)"], "--lr.*steps"),
        (["--lr", "Cosine(1e-3, steps=-5)"], "--lr: Cosine: `steps` must be a positive"),
        (["--lr", "L1(1)"], "--lr.* must be a schedule"),
        (["--penalty", "L1(-1)"], "--penalty: L1: `strength` must be"),
        (["--penalty", "Constant(1)"], "--penalty.* must be a penalty"),
        (["--penalty", "L1(1).on('**/kernl')"], "'\\*\\*/kernl' matches no parameter"),
        (["--optimizer", "adan"], "--optimizer.* must be one of sgd"),
        (["--epochs", "0"], "--epochs: must be a whole number"),
        (["--batch-size", "many"], "--batch-size: must be a whole number"),
        (["--batch-size", "99999"], "--batch-size.* at most the 1438"),
        (["--seed", "-1"], "--seed: must be a whole number"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ]


@pytest.mark.parametrize("index", range(25))
def test_a_wrong_option_gives_one_line_that_names_it(index, tmp_path, capsys):
    arguments, words = wrong(tmp_path)[index]
    try:
        code = main(["train", "--epochs", "1", "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as stop:  # argparse's own refusal
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    line = captured.err.strip().splitlines()[-1]
    assert captured.err.count("\n") == 1 or captured.err.startswith("usage:")
    import re

    assert re.search(words, line), line
    assert "Traceback" not in captured.err


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "jax_lrreg", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("jax_lrreg ")
