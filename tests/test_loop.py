"""The loop: nothing is compiled twice, read in between or grows, and no chunk size shows."""

import concurrent.futures
import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import types

import chex
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from jax._src.array import ArrayImpl
from models import Cnn, apply, images, masked_loss

from jax_lrreg import penalties, schedules, training, transforms
from jax_lrreg.training import program as programs
from jax_lrreg.training.program import program_of

PLATEAU = schedules.ReduceOnPlateau(factor=0.5, patience=3, cooldown=0)
ARRAYS = {"x": np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)}
ARRAYS["y"] = ARRAYS["x"] @ np.array([1.0, -2.0, 0.5], np.float32)
DATA = training.ArrayData(ARRAYS, 16, jax.random.key(5))


def tx(hyper):
    return optax.chain(optax.adam(hyper["rate"]), transforms.scale_by_controller(PLATEAU))


def start(**options):
    hyper = {"rate": 0.05}
    return models.start(tx, hyper=hyper, **options)


def make(loss=masked_loss, **options):
    rate = lambda hyper: hyper["rate"]  # noqa: E731
    return training.make_step(
        apply, loss, tx, penalty=penalties.L1(0.01), learning_rate=rate, **options
    )


EVALUATE = training.make_eval(
    apply, lambda model, batch: {"val_loss": masked_loss(model, batch)}, DATA
)
STEP = make()


def agree(one, other):
    """State and history are the same, bit for bit."""
    chex.assert_trees_all_equal((one[0], dict(one[1])), (other[0], dict(other[1])))


def batches():
    step = 0
    while True:
        yield DATA(step)
        step += 1


@pytest.mark.parametrize("kind", ["arrays", "stream"])
def test_nothing_is_compiled_in_ten_thousand_steps(kind, compilations):
    step = make(chex.assert_max_traces(masked_loss, n=1))
    data = DATA if kind == "arrays" else batches()
    options = {"log_every": 50, "eval_every": 170, "eval_fn": EVALUATE, "control_on": "val_loss"}
    state, _ = training.fit(step, start(), data, steps=400, **options)
    compilations.clear()
    state, first = training.fit(step, state, data, steps=5000, **options)
    state = state.replace(hyper={"rate": 0.003})
    state, second = training.fit(step, state, data, steps=3000, **options)
    state, _ = training.fit(step, state, data, steps=50, **options)
    for now in training.steps(step, state, data, steps=1950, log_every=50):
        now.state = now.state.replace(hyper={"rate": 0.05 / now.step})
    assert now.step == 400 + 10_000
    assert first["learning_rate"][-1] < 0.05 / 2  # the plateau has cut the rate
    assert second["learning_rate"][0] <= 0.003
    assert compilations == []


def test_a_shorter_run_compiles_nothing(compilations):
    step = make()
    state, _ = training.fit(step, start(), DATA, steps=400)
    compilations.clear()
    for steps in (1, 37, 250):
        state, _ = training.fit(step, state, DATA, steps=steps)
    assert compilations == []


@pytest.mark.parametrize("kind", ["arrays", "stream", "generator"])
def test_the_host_reads_once_per_interval_and_one_interval_late(kind, monkeypatch):
    data = DATA if kind == "arrays" else batches()
    training.fit(STEP, start(), data, steps=100, log_every=25, chunk=10)
    log, inside, get, value, state = [], [], jax.device_get, ArrayImpl._value, start()

    def device_get(tree):
        log.append("read")
        inside.append(1)
        try:
            return get(tree)
        finally:
            inside.pop()

    def _value(self):
        assert inside, "the host waits for the device"
        return value.fget(self)

    def logger(step, metrics):
        log.append(step)

    many = program_of(STEP, loops=True)

    def called(*args, **options):
        log.append("call")
        return many(*args, **options)

    monkeypatch.setitem(programs._PROGRAMS[STEP], (True,), called)
    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(ArrayImpl, "_value", property(_value))
    with jax.transfer_guard_device_to_host("disallow"):
        if kind == "generator":
            for now in training.steps(STEP, state, data, steps=100, log_every=25, chunk=10):
                log.append(now.step)
            assert log == [
                "read",
                "read",
                *(item for step in now_steps() for item in ("call", step)),
            ]
        else:
            training.fit(STEP, state, data, steps=100, log_every=25, chunk=10, loggers=[logger])
            calls, reads, begin = (
                ["call"] * 3,
                ["read"],
                ["read"] * 2,
            )  # the position, and whom a controller hears
            assert log == [
                *begin,
                *calls,
                *calls,
                *reads,
                25,
                *calls,
                *reads,
                50,
                *calls,
                *reads,
                75,
                *reads,
                100,
            ]


def now_steps():
    return [10, 20, 25, 35, 45, 50, 60, 70, 75, 85, 95, 100]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", ["arrays", "stream", "generator"])
def test_memory_does_not_grow(kind):
    data = DATA if kind == "arrays" else batches()

    def run(state, steps):
        if kind == "generator":
            for now in training.steps(STEP, state, data, steps=steps, log_every=20):
                state = now.state
            return state
        return training.fit(
            STEP, state, data, steps=steps, log_every=20, eval_every=1000, eval_fn=EVALUATE
        )[0]

    def measure():
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        return resident, len(jax.live_arrays())

    state = run(start(), 10_000)
    before = measure()
    state = run(state, 20_000)
    after = measure()
    assert after[0] - before[0] <= 5
    assert after[1] == before[1]


@pytest.mark.parametrize("chunk", [1, 7, 64, "auto"])
def test_the_chunk_does_not_show_with_padding_evaluation_and_control(chunk):
    data = training.ArrayData(ARRAYS, 16, jax.random.key(5), remainder="pad")

    def run(chunk):
        options = {"log_every": 25, "eval_every": 11, "eval_fn": EVALUATE, "control_on": "val_loss"}
        return training.fit(STEP, start(), data, steps=90, chunk=chunk, **options)

    agree(run(13), run(chunk))


def test_evaluations_and_log_intervals_do_not_show_in_the_state():
    plain, _ = training.fit(STEP, start(), DATA, steps=90)
    for options in (
        {"log_every": 7},
        {"eval_every": 13, "eval_fn": EVALUATE},
        {"log_every": 1, "chunk": 50},
    ):
        chex.assert_trees_all_equal(
            plain, training.fit(STEP, start(), DATA, steps=90, **options)[0]
        )


class TestSteps:
    @pytest.mark.parametrize("chunk", [10, "auto"])
    def test_is_fit_with_a_body_of_your_own(self, chunk):
        state, history = training.fit(STEP, start(), DATA, steps=90, log_every=20)
        chunks = list(training.steps(STEP, start(), DATA, steps=90, log_every=20, chunk=chunk))
        chex.assert_trees_all_equal(chunks[-1].state, state)
        ends = [now for now in chunks if now.step % 20 == 0 or now.step == 90]
        assert [now.step for now in ends] == history["step"].tolist()
        for name in (
            "loss",
            "learning_rate",
            "skipped",
        ):  # looked at after all steps: nothing of a chunk is donated
            np.testing.assert_array_equal([now.metrics[name] for now in ends], history[name])

    def test_within_an_interval_the_metrics_are_those_so_far(self):
        chunks = list(training.steps(STEP, start(), DATA, steps=20, log_every=20, chunk=5))
        assert len(chunks) == 4
        every = list(training.steps(STEP, start(), DATA, steps=20, log_every=1))
        for now in chunks:
            losses = [one.metrics["loss"] for one in every[: now.step]]
            np.testing.assert_allclose(now.metrics["loss"], np.mean(losses), rtol=1e-6)

    def test_a_rate_that_is_edited_is_the_one_applied(self):
        plain, rate = (lambda hyper: optax.sgd(hyper["rate"])), jnp.float32(0.5)
        step = training.make_step(
            apply, masked_loss, plain, learning_rate=lambda hyper: hyper["rate"]
        )
        state = models.start(plain, hyper={"rate": 0.05})
        for now in training.steps(step, state, DATA, steps=30, log_every=10):
            if now.step == 10:
                now.state = now.state.replace(hyper={"rate": rate})
            if now.step == 20:
                assert now.metrics["learning_rate"] == 0.5
                now.state = now.state.replace(hyper={"rate": 0})
                weights = np.asarray(now.state.params["w"])
        assert now.metrics["learning_rate"] == 0
        np.testing.assert_array_equal(now.state.params["w"], weights)
        assert not rate.is_deleted()

    @pytest.mark.parametrize("after", [1, 5])
    def test_an_error_of_the_data_is_told_to_the_other_processes_and_an_end_is_not(
        self, monkeypatch, after
    ):
        told = {}

        class Store:  # as of JAX's processes
            key_value_set = told.__setitem__

            def key_value_dir_get(self, folder):
                return []

        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr("jax_lrreg._processes._gathered", lambda said: np.array([said] * 2))
        monkeypatch.setattr(
            "orbax.checkpoint.multihost.get_jax_distributed_client", lambda: Store()
        )

        def batches():
            yield from [DATA(0)] * 4
            raise ValueError("row 17 is broken")

        with pytest.raises(ValueError, match="row 17") if after == 5 else contextlib.nullcontext():
            for now in training.steps(STEP, start(), batches(), steps=8, log_every=1, chunk=1):
                if now.step == after:
                    break
        expected = ["process 0 of 2 ended by ValueError: row 17 is broken"] if after == 5 else []
        assert list(told.values()) == expected

    def test_the_state_is_alive_until_the_next_chunk_and_the_last_one_after_a_break(self):
        states = []
        for now in training.steps(STEP, start(), DATA, steps=1000, log_every=10):
            assert not now.state.step.is_deleted()
            states.append(now.state)
            if now.step == 30:
                break
        assert states[0].step.is_deleted()
        state, _ = training.fit(STEP, now.state, DATA, steps=60)
        chex.assert_trees_all_equal(state, training.fit(STEP, start(), DATA, steps=90)[0])

    def test_one_array_may_stand_twice_in_an_edited_state(self):
        step, state = make(ema=0.9), start()
        for now in training.steps(step, state, DATA, steps=40, log_every=10):
            now.state = training.averaged(now.state)
        assert np.isfinite(now.metrics["loss"])
        state = training.averaged(now.state)
        state, _ = training.fit(step, state, DATA, steps=5)
        assert int(state.step) == 45

    @pytest.mark.parametrize(
        ("words", "change"),
        [
            ("structure", lambda state: state.replace(hyper=None)),
            ("structure", lambda state: {"params": state.params}),
            (
                r".*rate.*float32\[\] as before",
                lambda state: state.replace(hyper={"rate": np.ones(2)}),
            ),
            (r".*step.*int32\[\] as before", lambda state: state.replace(step=1.5)),
        ],
    )
    def test_another_structure_is_refused_and_the_state_goes_on(self, words, change):
        for now in training.steps(STEP, start(), DATA, steps=20, log_every=10):
            with pytest.raises(ValueError, match=f"Chunk: `state.*{words}"):
                now.state = change(now.state)
        chex.assert_trees_all_equal(now.state, training.fit(STEP, start(), DATA, steps=20)[0])

    def test_an_update_that_is_not_finite_is_raised_though_nobody_looks(self):
        step = make(lambda model, batch: masked_loss(model, batch) / 0, on_nonfinite="raise")
        made = []
        with pytest.raises(FloatingPointError, match="update at step 0 and 9 of the 9 after it"):
            made.extend(
                now.step for now in training.steps(step, start(), DATA, steps=100, log_every=10)
            )
        assert made == [10, 20]
        with pytest.raises(FloatingPointError, match="not finite"):
            list(training.steps(step, start(), DATA, steps=5, log_every=10))

    def test_arguments_are_checked_before_the_first_chunk_is_asked_for(self):
        for name, value in (("steps", 0), ("chunk", "big"), ("log_every", 0)):
            with pytest.raises(ValueError, match=f"^steps: `{name}`"):
                training.steps(STEP, start(), DATA, **{"steps": 5, name: value})
        with pytest.raises(TypeError, match=r"^steps: `step`"):
            training.steps(masked_loss, start(), DATA, steps=5)


@pytest.mark.parametrize("bad", [[0], [137], [137, 138, 151, 260], [299]])
@pytest.mark.parametrize("log_every", [1, 40, 1000])
@pytest.mark.parametrize("chunk", [1, 7, "auto"])
@pytest.mark.sampled(8)
def test_the_first_update_that_is_not_finite_is_named(bad, log_every, chunk):
    step = make(on_nonfinite="raise")
    state, _ = training.fit(step, start(), DATA, steps=20)

    def stream():
        for index in range(300):
            batch = DATA(index)
            yield jax.tree.map(lambda x: x * np.nan, batch) if index in bad else batch

    for run in (training.fit, lambda *args, **options: list(training.steps(*args, **options))):
        options = {"steps": 300, "log_every": log_every, "chunk": chunk}
        with pytest.raises(FloatingPointError, match=rf"update at step {20 + bad[0]} ") as caught:
            run(step, state.copy(), stream(), **options)
        assert not caught.value.state.step.is_deleted()


class TestInterrupts:
    """Ctrl-C, whenever it comes, leaves a state that goes on, and the handlers as they were."""

    def ends_with(self, number, monkeypatch, presses=1):
        """Presses Ctrl-C at the end of a call of the device, before the new state has a name."""
        program, calls = program_of(STEP, loops=True), []

        def pressed(*args, **options):
            result = program(*args, **options)
            calls.append(1)
            if len(calls) == 3:
                for _ in range(presses):
                    signal.raise_signal(number)
            return result

        monkeypatch.setitem(programs._PROGRAMS[STEP], (True,), pressed)

    def run(self, kind):
        state = start()
        options = {"steps": 90, "chunk": 10}
        if kind == "fit":
            return training.fit(STEP, state, DATA, **options)[0]
        for now in training.steps(STEP, state, DATA, **options):
            state = now.state
        return state

    @pytest.mark.parametrize("kind", ["fit", "steps"])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
    def test_one_in_a_call_of_the_device_waits_for_its_end(self, kind, number, monkeypatch):
        def handler(number, frame):
            raise KeyboardInterrupt

        expected, _ = training.fit(STEP, start(), DATA, steps=30)
        previous = signal.signal(number, handler)
        try:
            self.ends_with(number, monkeypatch)
            with pytest.raises(KeyboardInterrupt) as caught:
                self.run(kind)
            chex.assert_trees_all_equal(caught.value.state, expected)
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, previous)

    def test_a_second_one_does_not_wait(self, monkeypatch):
        self.ends_with(signal.SIGINT, monkeypatch, presses=2)
        with pytest.raises(KeyboardInterrupt) as caught:
            self.run("fit")
        assert not hasattr(caught.value, "state")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_one_ends_the_run_after_the_call_of_the_device(self, number, monkeypatch):
        """A handler of the user's own hears it too, and is there again afterwards."""
        expected, _ = training.fit(STEP, start(), DATA, steps=30)
        heard = []

        def handler(*signal):
            heard.append(signal)

        previous = signal.signal(number, handler)
        try:
            self.ends_with(number, monkeypatch)
            state, history = training.fit(STEP, start(), DATA, steps=90, chunk=10)
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, previous)
        chex.assert_trees_all_equal(state, expected)
        assert str(history["interrupted"]) == signal.Signals(number).name
        assert str(history["ended"]) == f"after step 30: {signal.Signals(number).name}"
        assert history["step"].tolist() == [30]
        assert len(heard) == 1

    def test_one_that_comes_while_the_processes_agree_ends_the_run_at_the_next(self, monkeypatch):
        """Each waits for the slowest there, so most signals come at that moment."""
        asked = []

        def agreed(*said):  # of two processes, of which the other one has no signal
            asked.append(said[-1])
            if len(asked) == 2:
                signal.raise_signal(signal.SIGTERM)
            return list(said)

        monkeypatch.setattr("jax_lrreg.training.loop.agreed", agreed)
        _, history = training.fit(STEP, start(), DATA, steps=90, chunk=10)
        assert asked == [0, 0, signal.SIGTERM]
        assert str(history["ended"]) == "after step 30: SIGTERM"

    def test_a_second_sigterm_does_what_the_system_does(self):
        code = (
            "import signal, jax, jax.numpy as jnp, optax\n"
            "from jax_lrreg import training\n"
            "apply = lambda w, x: x * w\n"
            "state = training.init(apply, optax.sgd(0.1), key=jax.random.key(0), params=1.0)\n"
            "loss = lambda model, batch: jnp.mean(model(batch) ** 2)\n"
            "def evaluate(state):\n"
            "    signal.raise_signal(signal.SIGTERM)\n"
            "    print('once', flush=True)\n"
            "    signal.raise_signal(signal.SIGTERM)\n"
            "    print('never', flush=True)\n"
            "step = training.make_step(apply, loss, optax.sgd(0.1))\n"
            "training.fit(step, state, [jnp.ones(2)] * 9, steps=9, eval_fn=evaluate)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (-signal.SIGTERM, "once\n")

    def test_one_that_is_ignored_stays_ignored(self):
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:

            def evaluate(state):
                signal.raise_signal(signal.SIGTERM)
                return {"x": 0.0}

            _, history = training.fit(STEP, start(), DATA, steps=9, eval_every=3, eval_fn=evaluate)
        finally:
            signal.signal(signal.SIGTERM, previous)
        assert history["eval_step"].tolist() == [3, 6, 9]
        assert "interrupted" not in history

    def test_another_thread_leaves_the_handlers_alone(self):
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            state = threads.submit(self.run, "fit").result()
        chex.assert_trees_all_equal(state, self.run("fit"))

    def test_at_random_moments(self):
        self.run("fit")
        rng = np.random.default_rng(0)
        for wait in rng.uniform(0.01, 0.1, 8):
            given = start()
            threading.Timer(wait, signal.raise_signal, [signal.SIGINT]).start()
            options = {"steps": 10**6, "chunk": 2, "log_every": 10}
            left, history = training.fit(STEP, given, batches(), **options)
            assert str(history["interrupted"]) == "SIGINT"
            made = int(left.step)
            expected, _ = training.fit(STEP, start(), DATA, steps=made)
            chex.assert_trees_all_equal(left, expected)
            assert made > 0
            assert history["step"][-1] == made


def test_an_update_that_is_not_finite_leaves_the_state_in_the_error():
    bad = training.ArrayData({**ARRAYS, "y": ARRAYS["y"] * np.nan}, 16, jax.random.key(5))
    with pytest.raises(FloatingPointError, match="not finite") as caught:
        training.fit(make(on_nonfinite="raise"), start(), bad, steps=100, log_every=10)
    assert np.array_equal(caught.value.state.params["w"], np.zeros(3))


def test_an_evaluation_that_fails_leaves_the_state_in_the_error():
    def broken(state):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space") as caught:
        training.fit(STEP, start(), DATA, steps=90, eval_every=30, eval_fn=broken)
    chex.assert_trees_all_equal(caught.value.state, training.fit(STEP, start(), DATA, steps=30)[0])


def test_a_ragged_last_batch_is_traced_once_in_an_evaluation():
    traces = []

    def metrics(model, batch):
        traces.append(batch["x"].shape)
        return {"val_loss": masked_loss(model, batch)}

    for data in (DATA, [DATA(0), jax.tree.map(lambda x: x[:2], DATA(0))]):
        traces.clear()
        evaluate = training.make_eval(apply, metrics, data)
        results = [evaluate(start()) for _ in range(3)]
        assert traces == [(16, 3), (2, 3)]
        assert results[0] == results[2]


def test_what_the_loop_does_is_marked_in_a_profile(tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        training.fit(
            STEP, start(), batches(), steps=40, log_every=10, eval_every=20, eval_fn=EVALUATE
        )
    (profile,) = tmp_path.rglob("*.xplane.pb")
    content = profile.read_bytes()
    for name in (b"train", b"evaluate", b"read metrics", b"stack batches"):
        assert name in content


class TestProgress:
    def fit(self):
        options = {"log_every": 10, "eval_every": 20, "eval_fn": EVALUATE, "progress": True}
        return training.fit(STEP, start(), DATA, steps=40, **options)[0]

    def test_lines_have_loss_rate_pace_time_left_and_the_latest_evaluation(self, capsys):
        self.fit()
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in lines] == [
            "step 10/40",
            "step 20/40",
            "step 30/40",
            "step 40/40",
        ]
        for line in lines:
            parts = line.split("  ")
            assert [part.split()[0] for part in parts[1:3]] == ["loss", "lr"]
            assert parts[3].split()[-1] in ("steps/s", "s/step")
            assert parts[4].split()[-1] in ("left", "all")
            assert "penalty" not in line
            assert "skipped" not in line
        assert "val_loss" not in lines[0]
        assert "val_loss" in lines[2]

    @pytest.mark.parametrize("steps", [7, 40, 333, 2000])
    def test_never_more_than_20_lines_and_the_last_one_tells_the_end(self, steps, capsys):
        options = {"log_every": 3, "eval_every": 10, "eval_fn": EVALUATE, "progress": True}
        state = start()
        state, _ = training.fit(STEP, state, DATA, steps=40)
        training.fit(STEP, state, DATA, steps=steps, **options)
        lines = capsys.readouterr().out.splitlines()
        assert min(steps // 3, 18) <= len(lines) <= 20
        assert lines[-1].startswith(f"step {steps + 40}/{steps + 40}  ")
        assert "in all" in lines[-1]
        assert "val_loss" in lines[-1]

    def console(self, monkeypatch, **options):
        import rich.console

        text, real = io.StringIO(), rich.console.Console
        made = lambda: real(file=text, width=100, **options)  # noqa: E731
        monkeypatch.setattr(rich.console, "Console", made)
        return text

    def test_a_bar_on_a_terminal_says_the_same(self, monkeypatch):
        text = self.console(monkeypatch, force_terminal=True)
        self.fit()
        last = text.getvalue().replace("\x1b[?25h", "").strip().splitlines()[-1]
        for word in ("40/40", "loss ", "lr ", "steps/s", "in all", "val_loss"):
            assert word in last

    def test_a_terminal_that_cannot_draw_has_lines(self, monkeypatch, capsys):
        monkeypatch.setenv("TERM", "dumb")
        self.console(monkeypatch, force_terminal=True)
        self.fit()
        assert len(capsys.readouterr().out.splitlines()) == 4

    @pytest.mark.parametrize("installed", [True, False])
    def test_a_notebook_has_the_bar_of_rich_where_its_widgets_are_and_lines_else(
        self, installed, monkeypatch, capsys
    ):
        display, shown = pytest.importorskip("IPython.display"), []

        class Output(contextlib.nullcontext):
            def clear_output(self, wait):
                pass

        def find_spec(name):
            return types if name == "ipywidgets" and installed else None

        widgets = types.SimpleNamespace(Output=Output)
        monkeypatch.setattr("importlib.util.find_spec", find_spec)
        monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
        monkeypatch.setattr(display, "display", lambda *args, **_: shown.append(args[0]))
        self.console(monkeypatch, force_jupyter=True)
        self.fit()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == (0 if installed else 4)
        if installed:
            text = [each.text for each in shown if getattr(each, "text", "")][-1]
            for word in ("40/40", "loss ", "lr ", "steps/s", "in all", "val_loss"):
                assert word in text


def test_single_calls_are_the_loop_with_streams_too():
    data = training.ArrayData(images(), 8, jax.random.key(1))
    step = training.make_step(Cnn(), masked_loss, optax.sgd(0.01))
    results = []
    for kind, chunk in (("arrays", "auto"), ("stream", "auto"), ("arrays", 4)):
        state = training.init(
            Cnn(), optax.sgd(0.01), key=jax.random.key(0), example=images()["x"][:1]
        )
        source = data if kind == "arrays" else (data(index) for index in range(12))
        results.append(training.fit(step, state, source, steps=12, log_every=6, chunk=chunk))
    agree(results[0], results[1])
    np.testing.assert_allclose(results[0][1]["loss"], results[2][1]["loss"], rtol=1e-5)
