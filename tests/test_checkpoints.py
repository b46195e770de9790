"""Checkpoints: exact resume, what makes a step valid, refusals by name, and branches."""

import itertools
import json
import logging
import os
import shutil
import signal
import threading
import warnings
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from models import NnxNet, apply, loss_fn, problem, start

from jax_lrreg import averages, checkpoints, penalties, schedules, select, training, transforms
from jax_lrreg.checkpoints import manifest

ARRAYS = problem()
DATA = training.ArrayData(ARRAYS, 16, jax.random.key(5))
LR = schedules.Cosine(0.05, steps=200).warmup(10)
TX = optax.adam(LR)


def make(tx=TX, **options):
    return training.make_step(apply, options.pop("loss", loss_fn), tx, **options)


STEP = make(learning_rate=LR)


def evaluate(state):
    return {"val_loss": float(sum(np.sum(np.sin(x)) for x in jax.tree.leaves(state.params)))}


def killed_after(calls):
    """An evaluation that ends the run as a kill would, but for the process."""
    count = itertools.count()

    def evaluation(state):
        if next(count) == calls:
            raise OSError("killed")
        return evaluate(state)

    return evaluation


def same_history(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Net(nn.Module):
    """Batch statistics and dropout in Linen."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.2, deterministic=not train)(nn.relu(x)))[:, 0]


def plateau():
    controller = schedules.ReduceOnPlateau(factor=0.5, patience=2)
    return optax.chain(optax.adam(0.01), transforms.scale_by_controller(controller))


class Positioned:
    """An iterable with Grain's protocol."""

    def __init__(self, batches=400):
        self.batches = batches

    def __iter__(self):
        return Iterator(self.batches)


class Iterator:
    """Its iterator."""

    def __init__(self, batches):
        self.batches, self.now = batches, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.now == self.batches:
            raise StopIteration
        self.now += 1
        return DATA(self.now - 1)

    def get_state(self):
        return json.dumps({"now": self.now}).encode()

    def set_state(self, state):
        self.now = json.loads(state)["now"]


def linen():
    module, tx = Net(), plateau()
    state = training.init(module, tx, key=jax.random.key(3), example=ARRAYS["x"][:1])
    return state, training.make_step(
        module, loss_fn, tx, ema=0.9, on_spike=training.Spike(window=4)
    )


def in_nnx():
    module, tx = NnxNet(3, 8, 1, 0.2), optax.adam(LR)
    return training.init(module, tx, key=jax.random.key(3)), training.make_step(module, loss_fn, tx)


CASES = {
    "plain": lambda: (start(TX), STEP, DATA),
    "linen": lambda: (*linen(), DATA),
    "nnx": lambda: (*in_nnx(), DATA),
    "accumulate": lambda: (start(TX), make(accumulate=4, learning_rate=LR), DATA),
    "trainable": lambda: (start(TX, trainable="w"), STEP, DATA),
    "positions": lambda: (start(TX), STEP, Positioned()),
    "stream": lambda: (start(TX), STEP, training.Stream(Positioned(), "pad")),
    "again": lambda: (start(TX), STEP, training.Stream((DATA(i) for i in range(400)), skip=True)),
    "list": lambda: (start(TX), STEP, [DATA(i) for i in range(60)]),
}


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.sampled(3)
def test_a_run_that_is_killed_ends_as_one_that_is_not(case, asynchronous, tmp_path):
    options = {"steps": 60, "log_every": 7, "eval_every": 10, "chunk": 4}

    def run(evaluation, **more):
        state, step, data = CASES[case]()
        best, stop = training.Best("val_loss"), training.Patience("val_loss", evaluations=50)
        more |= {"eval_fn": evaluation, "keep_best": best, "stop": stop}
        return *training.fit(step, state, data, **options, **more), best, stop

    expected, history, best, stop = run(evaluate)
    folder = checkpoints.Folder(tmp_path / "run", every=5, asynchronous=asynchronous)
    rows = []
    log = training.log_csv(tmp_path / "log.csv")
    for calls in (3, 2, 1):
        with pytest.raises(OSError, match="killed"):
            run(killed_after(calls), checkpoint=folder, loggers=[log])
        assert checkpoints.steps(tmp_path / "run")
    state, resumed, again, patient = run(evaluate, checkpoint=folder, loggers=[log])
    chex.assert_trees_all_equal(state, expected)
    same_history(resumed, history)
    chex.assert_trees_all_equal(again.state, best.state)
    assert (again.step, again.value, patient) == (best.step, best.value, stop)
    rows = (tmp_path / "log.csv").read_text().splitlines()[1:]
    steps = [int(row.split(",")[0]) for row in rows]
    assert steps == sorted({*history["step"].tolist(), *history["eval_step"].tolist()})
    # A run that has ended returns at once, and its state is whole.
    count = []
    once, after, *_ = run(lambda state: count.append(1) or evaluate(state), checkpoint=folder)
    chex.assert_trees_all_equal(once, expected)
    same_history(after, history)
    assert not count


def test_a_longer_until_is_the_same_plan_and_a_stopped_run_is_finished(tmp_path):
    expected, _ = training.fit(STEP, start(TX), DATA, until=90)
    training.fit(STEP, start(TX), DATA, until=50, checkpoint=tmp_path / "run")
    state, history = training.fit(STEP, start(TX), DATA, until=90, checkpoint=tmp_path / "run")
    chex.assert_trees_all_equal(state, expected)
    assert history["step"].tolist() == [50, 90]
    options = {"eval_every": 5, "eval_fn": lambda state: {"x": 1.0}, "checkpoint": tmp_path / "b"}
    for until in (90, 500):
        stop = training.Patience("x", evaluations=3)
        state, history = training.fit(STEP, start(TX), DATA, until=until, stop=stop, **options)
        assert state.step == 20
        assert "Patience" in str(history["ended"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_kept_and_the_run_goes_on_as_if_there_had_been_none(number, tmp_path):
    options = {"steps": 60, "log_every": 7, "eval_every": 12, "chunk": 4}
    expected, history = training.fit(STEP, start(TX), DATA, eval_fn=evaluate, **options)

    def evaluation(state):
        if state.step == 24:
            signal.raise_signal(number)
        return evaluate(state)

    more = {"checkpoint": tmp_path / "run", "loggers": [training.log_jsonl(tmp_path / "log")]}
    state, part = training.fit(STEP, start(TX), DATA, eval_fn=evaluation, **options, **more)
    assert (int(state.step), str(part["interrupted"])) == (24, signal.Signals(number).name)
    assert part["step"].tolist() == [7, 14, 21, 24]
    assert checkpoints.steps(tmp_path / "run") == [24]
    state, whole = training.fit(STEP, start(TX), DATA, eval_fn=evaluate, **options, **more)
    chex.assert_trees_all_equal(state, expected)
    same_history(whole, history)
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == history["step"].tolist()
    assert [row["step"] for row in logged if "val_loss" in row] == history["eval_step"].tolist()


def test_a_folder_keeps_the_latest_and_the_best(tmp_path):
    losses = dict(zip(range(5, 65, 5), [9, 5, 7, 3, 8, 8, 8, 8, 8, 8, 8, 8], strict=True))
    folder = checkpoints.Folder(tmp_path / "run", every=10, keep=2, best="val")
    options = {"eval_every": 5, "eval_fn": lambda state: {"val": losses.get(int(state.step), 99)}}
    training.fit(STEP, start(TX), DATA, steps=60, checkpoint=folder, **options)
    assert checkpoints.steps(tmp_path / "run") == [20, 50, 60]
    best = checkpoints.restore(tmp_path / "run", like=start(TX), step="best")
    expected, _ = training.fit(STEP, start(TX), DATA, steps=20)
    chex.assert_trees_all_equal(best, expected)
    assert checkpoints.restore(tmp_path / "run", like=start(TX)).step == 60
    assert checkpoints.restore(tmp_path / "run", like=start(TX), step=50).step == 50
    with pytest.raises(FileNotFoundError, match="step 10; it has 20, 50, 60"):
        checkpoints.restore(tmp_path / "run", like=start(TX), step=10)


def test_restore_adds_the_average_and_the_window_and_refuses_others_by_their_path(tmp_path):
    state, step = linen()
    trained, _ = training.fit(step, state, DATA, steps=9, checkpoint=tmp_path / "run")
    chex.assert_trees_all_equal(checkpoints.restore(tmp_path / "run", like=linen()[0]), trained)
    wide = training.init(Net(), optax.adam(0.1), key=jax.random.key(0), example=np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"restore: `like.*"):
        checkpoints.restore(tmp_path / "run", like=wide)
    with pytest.raises(ValueError, match=r"`like` must be .* structure saved: the checkpoint has"):
        checkpoints.restore(tmp_path / "run", like=start(plateau()))
    checkpoints.branch(tmp_path / "run", into=tmp_path / "fixed")
    fixed = training.init(Net(), optax.adam(0.1), key=jax.random.key(0), example=ARRAYS["x"])
    step = training.make_step(Net(), loss_fn, optax.adam(0.1))
    with pytest.raises(
        ValueError, match=r"fit: `state` must be .* structure saved: the checkpoint"
    ):
        training.fit(step, fixed, DATA, until=20, checkpoint=tmp_path / "fixed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 20 steps with checkpoints at 10 and 20, which tests leave as it is."""
    path = tmp_path_factory.mktemp("checkpoints") / "run"
    folder = checkpoints.Folder(path, every=10)
    training.fit(STEP, start(TX), DATA, steps=20, chunk=10, checkpoint=folder)
    return path


class TestDamage:
    """Whatever is changed in a file is refused by the file's name."""

    def files(self, run):
        return sorted(path for path in (run / "20").rglob("*") if path.is_file())

    def test_a_flip_a_cut_and_a_loss_in_every_file(self, run, tmp_path):
        rng = np.random.default_rng(0)
        for file in self.files(run):
            whole = file.read_bytes()
            at = rng.integers(len(whole))
            flipped = bytearray(whole)
            flipped[at] ^= 1 << int(rng.integers(8))
            for content in (bytes(flipped), whole[:-1], b""):
                if content != whole:
                    file.write_bytes(content)
                    with pytest.raises(checkpoints.Damaged, match=file.name):
                        checkpoints.restore(run, like=start(TX))
            file.unlink()
            if file.name != manifest.NAME:
                with pytest.raises(checkpoints.Damaged, match=rf"{file.name}' is missing.*step 10"):
                    checkpoints.restore(run, like=start(TX))
            file.write_bytes(whole)
        assert checkpoints.restore(run, like=start(TX)).step == 20

    def test_an_older_one_is_taken_only_when_asked_and_loudly(self, run):
        file = max(self.files(run), key=lambda path: path.stat().st_size)
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        try:
            with pytest.warns(UserWarning, match=file.name):
                state = checkpoints.restore(run, like=start(TX), damaged="older")
            assert state.step == 10
            with pytest.raises(checkpoints.Damaged, match=file.name):
                training.fit(STEP, start(TX), DATA, steps=30, checkpoint=run)
        finally:
            file.write_bytes(whole)

    @pytest.mark.parametrize("place", ["20", "20/run.json", "20/more"])
    def test_links_are_refused(self, run, place, tmp_path):
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        target = copy / place
        if target.exists():
            target.rename(tmp_path / "aside")
        target.symlink_to(tmp_path / "aside")
        with pytest.raises(checkpoints.Damaged, match="link"):
            checkpoints.restore(copy, like=start(TX))


def test_what_a_kill_left_is_cleaned_and_what_is_not_ours_stays(tmp_path):
    run = tmp_path / "run"
    training.fit(STEP, start(TX), DATA, steps=10, checkpoint=run)
    manifest.open_folder(run / "15")
    (run / "15" / "arrays").mkdir()
    (run / "16").mkdir()
    (run / "7").mkdir()
    (run / "7" / "precious").write_text("mine")
    (run / "12").write_text("a file")
    assert checkpoints.steps(run) == [10]
    training.fit(STEP, start(TX), DATA, steps=20, checkpoint=run)
    assert checkpoints.steps(run) == [10, 20]
    assert (run / "7" / "precious").read_text() == "mine"
    assert not (run / "15").exists()
    assert not (run / "16").exists()
    with pytest.raises(ValueError, match="no manifest of ours"):
        manifest.remove(run / "7")


def test_a_lost_manifest_is_refused_by_its_name_and_what_was_there_stays(tmp_path):
    like = start(TX)
    training.fit(STEP, start(TX), DATA, steps=10, checkpoint=tmp_path)
    training.fit(STEP, start(TX), DATA, steps=20, checkpoint=tmp_path)
    (tmp_path / "20" / manifest.NAME).unlink()
    calls = (
        lambda: checkpoints.steps(tmp_path),
        lambda: checkpoints.restore(tmp_path, like),
        lambda: training.fit(STEP, start(TX), DATA, steps=30, checkpoint=tmp_path),
    )
    for call in calls:
        with pytest.raises(checkpoints.Damaged, match=r"20/manifest.json' is missing"):
            call()
    assert (tmp_path / "20" / "run.json").exists()
    with pytest.warns(UserWarning, match="older"):
        assert checkpoints.restore(tmp_path, like, damaged="older").step == 10


def test_damage_in_an_older_step_is_no_obstacle(tmp_path):
    for steps in (10, 20):
        training.fit(STEP, start(TX), DATA, steps=steps, checkpoint=tmp_path)
    (tmp_path / "10" / manifest.NAME).write_text("{}")
    assert checkpoints.restore(tmp_path, start(TX)).step == 20
    assert checkpoints.restore(tmp_path, start(TX), step=20).step == 20
    state, _ = training.fit(STEP, start(TX), DATA, steps=30, checkpoint=tmp_path)
    assert state.step == 30
    with pytest.raises(checkpoints.Damaged, match=r"10/manifest\.json"):
        checkpoints.restore(tmp_path, start(TX), step=10)


def test_a_step_under_another_name_is_refused(tmp_path):
    training.fit(STEP, start(TX), DATA, steps=10, checkpoint=tmp_path)
    shutil.copytree(tmp_path / "10", tmp_path / "77")
    with pytest.raises(checkpoints.Damaged, match="77' is a copy of step 10"):
        training.fit(STEP, start(TX), DATA, steps=90, checkpoint=tmp_path)


def test_a_run_that_stop_ended_goes_on_with_another_one(tmp_path):
    options = {"eval_every": 5, "eval_fn": lambda state: {"x": 1.0}, "checkpoint": tmp_path}
    ends = []
    for evaluations in (3, 3, 6, None):
        stop = evaluations and training.Patience("x", evaluations=evaluations)
        state, history = training.fit(STEP, start(TX), DATA, until=60, stop=stop, **options)
        ends.append(int(state.step))
    assert ends == [20, 20, 35, 60]
    assert str(history["ended"]) == "after step 60: all steps are made"


def test_two_runs_in_a_folder_are_refused(tmp_path):
    def evaluation(state):
        with pytest.raises(ValueError, match=f"no other run writes to.*process {os.getpid()}"):
            training.fit(STEP, start(TX), DATA, steps=5, checkpoint=tmp_path)
        return {"x": 1.0}

    training.fit(STEP, start(TX), DATA, steps=5, eval_fn=evaluation, checkpoint=tmp_path)
    training.fit(STEP, start(TX), DATA, steps=9, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": 3}, "`path` must be"),
        ({"path": ""}, "`path` must be"),
        ({"every": 0}, "`every` must be a whole number >= 1, or None, got 0"),
        ({"every": 1.5}, "`every`"),
        ({"keep": 0}, "`keep`"),
        ({"best": ""}, "`best`"),
        ({"best": 3}, "`best`"),
        ({"mode": "mn"}, "did you mean 'min'"),
        ({"asynchronous": 1}, "`asynchronous`"),
    ],
    ids=str,
)
def test_a_folder_refuses_by_name(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        checkpoints.Folder(**{"path": "run", **options})


def test_what_cannot_be_kept_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("precious")
    refused = [
        (tmp_path / "file", DATA, {}, "a folder, not a file"),
        (tmp_path / "file" / "run", DATA, {}, "cannot be written to|a folder"),
        (7, DATA, {}, "`checkpoint` must be a path"),
        (tmp_path / "run", iter([DATA(0)] * 9), {}, "skip=True"),
        (checkpoints.Folder(tmp_path / "run", best="acc"), DATA, {"eval_fn": evaluate}, "val_loss"),
        (checkpoints.Folder(tmp_path / "run", best="acc"), DATA, {}, "`eval_fn` must be given"),
    ]
    for checkpoint, data, options, message in refused:
        state = start(TX)
        with pytest.raises((TypeError, ValueError, OSError), match=message):
            training.fit(STEP, state, data, steps=5, checkpoint=checkpoint, **options)
        assert not state.params["w"].is_deleted()
    assert (tmp_path / "file").read_text() == "precious"


OTHER = schedules.Cosine(0.05, steps=100).warmup(10)
CHANGES = {
    "learning_rate": lambda: {"tx": optax.adam(OTHER), "learning_rate": OTHER},
    "penalty": lambda: {"penalty": penalties.L2(1e-3)},
    "tx": lambda: {"tx": optax.adam(LR, b1=0.8), "learning_rate": LR},
    "tx state": lambda: {"tx": optax.sgd(LR), "learning_rate": LR},
    "accumulate": lambda: {"accumulate": 2},
    "average": lambda: {"ema": 0.9},
    "on_nonfinite": lambda: {"on_nonfinite": "keep"},
    "on_spike": lambda: {"on_spike": training.Spike(sigma=3.0)},
}
DATA_CHANGES = {
    "data.batch_size": lambda: training.ArrayData(ARRAYS, 8, jax.random.key(5)),
    "data.key": lambda: training.ArrayData(ARRAYS, 16, jax.random.key(6)),
    "data.shuffle": lambda: training.ArrayData(ARRAYS, 16, shuffle=False),
    "data.size": lambda: training.ArrayData(problem(48), 16, jax.random.key(5)),
    "data.remainder": lambda: training.ArrayData(ARRAYS, 16, jax.random.key(5), remainder="error"),
    "data": lambda: [DATA(i) for i in range(60)],
}


class TestFingerprint:
    """Another plan is refused by the name of what differs; a branch is where it may go on."""

    @pytest.mark.parametrize("name", CHANGES | DATA_CHANGES)
    @pytest.mark.sampled(5)
    def test_a_change_is_refused_by_its_name_and_goes_on_in_a_branch(self, name, run, tmp_path):
        given = {"learning_rate": LR, **CHANGES[name]()} if name in CHANGES else None
        step = make(**given) if given else STEP
        tx = TX if given is None else given.get("tx", TX)
        data = DATA_CHANGES[name]() if name in DATA_CHANGES else DATA
        with pytest.raises(ValueError, match=rf"fit: `{name}` must be that of the run.*, got "):
            training.fit(step, start(tx), data, steps=40, checkpoint=run)
        if name == "tx state":  # no branch has moments for it, but the weights go on
            assert checkpoints.branch(run, into=tmp_path / "b", keep=("params",)) == 20
            state, _ = training.fit(step, start(tx), data, steps=1, checkpoint=tmp_path / "b")
            assert state.step == 1
            return
        assert checkpoints.branch(run, into=tmp_path / "b") == 20
        state, history = training.fit(step, start(tx), data, steps=40, checkpoint=tmp_path / "b")
        assert state.step == 40
        assert history["step"].tolist() == [20, 40]
        again, _ = training.fit(step, start(tx), data, steps=40, checkpoint=tmp_path / "b")
        chex.assert_trees_all_equal(again, state)

    def test_the_numbers_of_an_optimizer_are_told(self, run):
        step = make(optax.adam(LR, b2=0.99), learning_rate=LR)
        with pytest.raises(ValueError, match=r"`tx`.*0\.999.*got.*0\.99\b"):
            training.fit(step, start(TX), DATA, steps=40, checkpoint=run)

    def test_selections_rules_hyper_and_keys(self, tmp_path):
        def attempt(name, one, other):
            for index, (step, state) in enumerate((one, other)):
                call = (step, state, DATA)
                if index:
                    with pytest.raises(ValueError, match=f"`{name}` must be that of the run"):
                        training.fit(*call, steps=9, checkpoint=tmp_path / name)
                else:
                    training.fit(*call, steps=5, checkpoint=tmp_path / name)

        def ruled(factor):
            rules = [("w", factor), ("**", 1.0)]
            tx = optax.chain(optax.adam(LR), transforms.scale_by_rules(rules))
            return make(tx), start(tx)

        attempt("rules", ruled(0.1), ruled(0.2))
        attempt("trainable", (STEP, start(TX, trainable="w")), (STEP, start(TX, trainable="b")))
        tx = lambda hyper: optax.adam(hyper["rate"])  # noqa: E731
        states = [start(tx, hyper={"rate": rate}) for rate in (0.1, 0.2)]
        attempt("hyper", (make(tx), states[0]), (make(tx), states[1]))
        other = start(TX).replace(key=jax.random.key(8))
        attempt("key", (STEP, start(TX)), (STEP, other))

    def test_a_change_of_version_is_told_and_not_refused(self, run, tmp_path, monkeypatch):
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        from jax_lrreg.training import resume

        real = resume.versions()
        monkeypatch.setattr(resume, "versions", lambda: {**real, "optax": "9.9"})
        with pytest.warns(UserWarning, match=r"optax .* -> 9\.9"):
            state, _ = training.fit(STEP, start(TX), DATA, steps=25, checkpoint=copy)
        assert state.step == 25

    def test_on_other_devices_too_the_optimizer_must_be_that_of_the_run(
        self, run, tmp_path, monkeypatch
    ):
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        from jax_lrreg.training import resume

        real = resume.versions()
        monkeypatch.setattr(resume, "versions", lambda: {**real, "devices": "8 TPU v9"})
        other = optax.adam(LR, b1=0.8)
        with pytest.raises(ValueError, match=r"`tx` must be that of the run"):
            training.fit(
                make(other, learning_rate=LR), start(other), DATA, steps=25, checkpoint=copy
            )
        with pytest.warns(UserWarning, match=r"devices .* -> 8 TPU v9"):
            state, _ = training.fit(STEP, start(TX), DATA, steps=25, checkpoint=copy)
        assert state.step == 25


def test_a_branch_leaves_the_run_alone_and_refuses_a_folder_that_is_not_empty(tmp_path):
    run = tmp_path / "run"
    folder = checkpoints.Folder(run, every=10)
    training.fit(STEP, start(TX), DATA, steps=30, chunk=10, checkpoint=folder)
    assert checkpoints.branch(run, into=tmp_path / "cooled", step=20) == 20
    lr = LR.branch_cooldown(10, at=20)
    step = make(optax.adam(lr), learning_rate=lr)
    state, history = training.fit(step, start(TX), DATA, until=30, checkpoint=tmp_path / "cooled")
    assert history["learning_rate"][-1] < 0.02
    base, _ = training.fit(STEP, start(TX), DATA, steps=20)
    expected, _ = training.fit(step, base, DATA, until=30)
    chex.assert_trees_all_equal(state, expected)
    assert checkpoints.steps(run) == [10, 20, 30]
    with pytest.raises(ValueError, match="new or empty"):
        checkpoints.branch(run, into=tmp_path / "cooled")
    with pytest.raises(ValueError, match="`keep`"):
        checkpoints.branch(run, into=tmp_path / "other", keep=("opt_state",))


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path, monkeypatch, caplog):
    def full(*_):
        monkeypatch.undo()
        text = f"{tmp_path / 'run'}: RESOURCE_EXHAUSTED: at length [os_error_code='28']"
        logging.getLogger("absl").error(text)
        raise ValueError(text)

    folder = checkpoints.Folder(tmp_path / "run", every=10)
    training.fit(STEP, start(TX), DATA, steps=10, checkpoint=folder)
    monkeypatch.setattr("orbax.checkpoint.AsyncCheckpointer.wait_until_finished", full)
    with pytest.raises(OSError, match=r"step 20 could not be written to .*: No space left on dev"):
        training.fit(STEP, start(TX), DATA, steps=40, chunk=10, checkpoint=folder)
    assert not caplog.records
    assert checkpoints.steps(tmp_path / "run") == [10]
    state, _ = training.fit(STEP, start(TX), DATA, steps=20, checkpoint=folder)
    assert state.step == 20


def test_a_branch_that_was_killed_is_made_again(run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.branch(run, into=tmp_path / "b")
    assert (tmp_path / "b" / "20").is_dir()
    assert checkpoints.branch(run, into=tmp_path / "b") == 20
    assert checkpoints.steps(tmp_path / "b") == [20]
    with pytest.raises(ValueError, match="new or empty"):
        checkpoints.branch(run, into=tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").touch()
    with pytest.raises(ValueError, match="new or empty"):
        checkpoints.branch(run, into=tmp_path / "c")


def test_a_branch_begins_anew_what_it_keeps_in_another_form(tmp_path):
    scale = DynamicScale(scale=8.0, growth_interval=7)
    one = {"ema": 0.9, "on_spike": training.Spike(window=4), "loss_scale": scale}
    training.fit(make(**one), start(TX), DATA, steps=5, checkpoint=tmp_path / "run")
    others = [
        {"average": averages.Uniform(start=5), "on_spike": training.Spike(window=3)},
        {
            "loss_scale": scale.replace(growth_interval=9),
            "accumulate": 2,
            "monitors": ["noise_scale"],
        },
        {},
    ]
    for index, other in enumerate(others):
        into = tmp_path / f"branch{index}"
        checkpoints.branch(tmp_path / "run", into=into)
        step = make(**other)
        state, _ = training.fit(step, start(TX), DATA, steps=10, checkpoint=into)
        again, _ = training.fit(step, start(TX), DATA, steps=10, checkpoint=into)
        chex.assert_trees_all_equal(again, state)
        assert state.step == 10
        if "average" in other:
            assert state.spikes.values.shape == (2, 3)
            assert isinstance(state.averaging, averages.Uniform)


class Rows:
    """Random access, for Grain, which compares the text of a source."""

    def __repr__(self):
        return "Rows"

    def __len__(self):
        return len(ARRAYS["y"])

    def __getitem__(self, index):
        return {name: x[index] for name, x in ARRAYS.items()}


def test_grain_is_set_back_to_its_position(tmp_path):
    grain = pytest.importorskip("grain", reason="the extra `parity` is not installed")

    def data():
        rows = grain.MapDataset.source(Rows()).seed(3).shuffle().repeat()
        return rows.batch(16).to_iter_dataset()

    expected, _ = training.fit(STEP, start(TX), data(), steps=40)
    training.fit(STEP, start(TX), data(), until=17, checkpoint=tmp_path)
    state, _ = training.fit(STEP, start(TX), data(), until=40, checkpoint=tmp_path)
    chex.assert_trees_all_equal(state, expected)


def test_in_another_thread_it_works_too(tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            training.fit(STEP, start(TX), DATA, steps=10, checkpoint=tmp_path)[0]
        )
    )
    thread.start()
    thread.join()
    chex.assert_trees_all_equal(found[0], training.fit(STEP, start(TX), DATA, steps=10)[0])


def test_other_trees_keys_empty_arrays_and_bfloat16_come_back(tmp_path):
    tx = optax.sgd(0.1)
    params = {"w": jnp.ones(3, jnp.bfloat16), "none": jnp.zeros((0, 3)), "b": jnp.zeros(())}
    state = training.init(apply, tx, key=jax.random.key(1, impl="rbg"), params=params)
    step = training.make_step(apply, loss_fn, tx)
    trained, _ = training.fit(step, state, DATA, steps=3, checkpoint=tmp_path)
    like = training.init(apply, tx, key=jax.random.key(9, impl="rbg"), params=params)
    restored = checkpoints.restore(tmp_path, like=like)
    chex.assert_trees_all_equal(restored, trained)
    assert restored.params["w"].dtype == jnp.bfloat16
    assert not restored.params["w"].committed
    assert select is not None


def test_nothing_is_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.fit(STEP, start(TX), DATA, steps=3, checkpoint=tmp_path)


@pytest.mark.parametrize("name", ["checkpoint_1"])
def test_checkpoints_of_earlier_versions_still_restore(name):
    """One is added for each version of the format, by `fit` of `linen()` for 20 steps."""
    folder = Path(__file__).parent / "data" / name
    assert checkpoints.steps(folder) == [20]
    state = checkpoints.restore(folder, like=linen()[0])
    assert (int(state.step), state.average is None, state.spikes is None) == (20, False, False)
    kernel = state.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.sum(kernel), -1.0790920, rtol=1e-5)
