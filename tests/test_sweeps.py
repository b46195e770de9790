"""Sweeps: grids, runs side by side, and what is read off them."""

import csv
import gc
import os
import subprocess
import sys
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, environment_of, loss_fn, problem, start

from jax_lrreg import checkpoints, penalties, schedules, sweeps, text, training
from jax_lrreg.sweeps import parts, program
from jax_lrreg.training.progress import Progress

BATCH = problem()
KEYS = jax.random.split(jax.random.key(0), 3)


def train(hp):
    """A run of the affine model; what is not swept has its default."""
    rate = hp.get("lr", 0.1)
    reg = hp.get("reg", penalties.L2(0.0))
    data = training.ArrayData(BATCH, 16, hp.get("key", KEYS[0]))
    step = training.make_step(apply, loss_fn, optax.sgd(rate), penalty=reg)
    state, metrics = training.scan(step, start(optax.sgd(rate)), data, steps=30)
    return {"loss": metrics["loss"][-1], "size": jnp.sum(state.params["w"] ** 2)}


def test_a_grid_is_the_single_runs_side_by_side():
    lr, reg = jnp.array([0.01, 0.1]), penalties.L2(jnp.array([0.0, 0.1, 1.0]))
    result = sweeps.run(train, sweeps.grid(lr=lr, reg=reg, key=KEYS))
    assert result.axes == ("lr", "reg", "key")
    assert result["loss"].shape == result.shape == (2, 3, 3)
    for index in ((0, 0, 0), (1, 2, 1), (0, 1, 2)):
        alone = train(result.grid.hyper(index))
        for name in ("loss", "size"):
            np.testing.assert_allclose(result[name][index], alone[name], rtol=1e-4)


def counted(function):
    calls = []

    def run(hp):
        calls.append(1)
        return function(hp)

    return run, calls


def test_numbers_and_durations_of_grids_of_one_form_are_one_trace():
    def total(hp):
        return {"total": jnp.sum(hp["lr"](jnp.arange(100))), "shared": hp["lr"](0)}

    run, calls = counted(total)
    for peaks, steps in (([0.1, 0.2], 40), ([1.0, 2.0], 50)):
        lr = schedules.Cosine(jnp.array(peaks), steps=steps).warmup(5)
        result = sweeps.run(run, sweeps.grid(lr=lr, size=[1.0, 2.0]))
        expected = [
            np.sum(schedules.Cosine(x, steps=steps).warmup(5)(np.arange(100))) for x in peaks
        ]
        np.testing.assert_allclose(result["total"][:, 0], expected, rtol=1e-6)
    assert len(calls) == 1
    lengths = jnp.array([10, 50, 80])
    lr = schedules.Linear(1.0, steps=lengths).warmup(jnp.array([2, 3, 5]))
    result = sweeps.run(run, sweeps.grid(lr=lr))
    singles = [schedules.Linear(1.0, steps=n).warmup(w) for n, w in ((10, 2), (50, 3), (80, 5))]
    expected = [np.sum(one(np.arange(100))) for one in singles]
    np.testing.assert_allclose(result["total"], expected, rtol=1e-6)
    assert len(calls) == 2


@pytest.mark.parametrize("width", [1, 2, 4, 5, 100])
@pytest.mark.sampled(3)
def test_parts_change_nothing_and_are_one_program(width):
    run, calls = counted(train)
    grid = sweeps.grid(lr=np.geomspace(0.01, 0.2, 5).astype(np.float32))
    together = sweeps.run(train, grid)
    pieces = sweeps.run(run, grid, max_parallel=width)
    np.testing.assert_allclose(pieces["loss"], together["loss"], rtol=1e-4)
    assert len(calls) == 1


def test_the_width_is_found_from_the_memory_that_the_program_needs(monkeypatch):
    def wide(hp):
        return {
            "sum": jnp.sum(jnp.sort(jnp.outer(jnp.sin(hp["x"] * jnp.arange(512)), jnp.ones(512))))
        }

    run, calls = counted(wide)
    widths = []
    compiled = program.Programs.compiled

    def noted(self, width, carried):
        widths.append(width)
        return compiled(self, width, carried)

    monkeypatch.setattr(program.Programs, "compiled", noted)
    monkeypatch.setattr(program, "_free", lambda _: 12 * 2**20)  # a member takes some MiB
    grid = sweeps.grid(x=np.linspace(0.0, 1.0, 16, dtype=np.float32))
    result = sweeps.run(run, grid)
    assert widths[0] > widths[-1] >= 1
    assert len(calls) == 1
    monkeypatch.undo()
    np.testing.assert_allclose(result["sum"], sweeps.run(wide, grid)["sum"], rtol=1e-5)


def measured(cost, size, compilation, first, most):
    """The widths that `size` members are run with, where one of them costs `cost(width)`."""
    widths, left, used = parts.Widths(first, most), size, []
    while left > 0:
        members = min(widths.now, left)
        used += [widths.now] * members
        left -= members
        widths.told(members, members * cost(widths.now), left, compilation)
    return used


@pytest.mark.parametrize("best", [1, 3, 12, 48, 128])
@pytest.mark.sampled(3)
def test_a_long_sweep_goes_on_with_the_width_that_is_cheapest_for_a_member(best):
    cost = lambda width: 1 + abs(np.log(width / best))  # noqa: E731
    used = measured(cost, 10_000, 1.0, first=12, most=128)
    assert used[-1] in (best, 128 if best == 128 else best)
    assert sum(map(cost, used)) < 1.1 * 10_000 * cost(best)


def test_a_short_sweep_tries_no_width_that_costs_a_compilation():
    used = measured(lambda width: 1 / width, 100, 2.0, first=4, most=100)
    assert set(used) == {4}
    assert {4, 16, 1} == set(measured(lambda width: 1.0, 1000, 1.0, first=4, most=100))


@pytest.mark.parametrize("size", [1, 2, 5, 32, 33, 1000])
@pytest.mark.sampled(3)
def test_parts_are_equal_and_few_members_are_run_twice(size):
    for lanes, wanted in ((1, 1), (2, 3), (2, 1000), (4, 7), (8, 16)):
        width = parts._filled(size, lanes, min(wanted, -(-size // lanes)))
        assert min(wanted, -(-size // lanes)) <= 2 * width
        assert width <= max(1, 2 * wanted)
        assert -(-size // (lanes * width)) * lanes * width < size + lanes * max(1, width)


def test_a_sweep_that_is_killed_goes_on_with_the_next_part_bit_for_bit(tmp_path):
    grid = sweeps.grid(lr=np.geomspace(0.01, 0.2, 6).astype(np.float32), key=KEYS[:2])
    folder = checkpoints.Folder(tmp_path, every=1)
    whole = sweeps.run(train, grid, max_parallel=4)

    class Killed(BaseException):
        pass

    def bar(_, now, *__):
        if now >= 8:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "update", bar)
        with pytest.raises(Killed):
            sweeps.run(train, grid, max_parallel=4, checkpoint=folder)
    assert checkpoints.steps(tmp_path) == [4, 8]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "update", lambda _, now, *__: seen.append(now))
        again = sweeps.run(train, grid, max_parallel=4, checkpoint=folder)
        ended = sweeps.run(train, grid, checkpoint=tmp_path)
    assert seen == [12]
    for name in whole.names:
        np.testing.assert_array_equal(again[name], whole[name])
        np.testing.assert_array_equal(ended[name], whole[name])


def test_another_sweep_is_refused_by_what_differs(tmp_path):
    grid = sweeps.grid(a=[1.0, 2.0], b=[1.0, 2.0])
    total = lambda hp: {"total": hp["a"] + hp["b"]}  # noqa: E731
    first = sweeps.run(total, grid, checkpoint=tmp_path)
    assert first["total"].tolist() == [[2, 3], [3, 4]]
    others = {
        "`b`": (total, sweeps.grid(a=[1.0, 2.0], b=[1.0, 3.0])),
        "`grid`": (total, sweeps.grid(a=[1.0, 2.0, 3.0], b=[1.0, 2.0])),
        "`function`": (lambda hp: {"total": hp["a"] * hp["b"]}, grid),
    }
    for name, (function, points) in others.items():
        with pytest.raises(ValueError, match=rf"run: {name} must be .*another folder"):
            sweeps.run(function, points, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"run: `metrics` must be .*total, got sum"):
        sweeps.run(lambda hp: {"sum": hp["a"] + hp["b"]}, grid, checkpoint=tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="run: `checkpoint` must be a folder"):
        sweeps.run(total, grid, checkpoint=file)


@pytest.mark.parametrize(
    ("value", "held", "other"),
    [
        (jnp.sum, jnp.ones(999), jnp.ones(999).at[500].set(2)),
        (jax.random.normal, KEYS[0], KEYS[1]),
    ],
)
def test_other_data_that_a_function_holds_make_another_sweep(tmp_path, value, held, other):
    def function(data):
        return lambda hp: {"x": hp["a"] * value(data)}

    grid = sweeps.grid(a=[1.0, 2.0])
    first = sweeps.run(function(held), grid, checkpoint=tmp_path)
    again = sweeps.run(function(held), grid, checkpoint=tmp_path)
    np.testing.assert_array_equal(again["x"], first["x"])
    with pytest.raises(ValueError, match=r"run: `function` must be .*another folder"):
        sweeps.run(function(other), grid, checkpoint=tmp_path)


def test_with_eight_devices_each_has_members_of_its_own():
    code = """
import jax, numpy as np, test_sweeps
from jax_lrreg import sweeps
from jax_lrreg.sweeps import program
grid = sweeps.grid(lr=np.geomspace(0.01, 0.2, 6).astype(np.float32), key=test_sweeps.KEYS)
alone = sweeps.run(test_sweeps.train, grid)
auto = (jax.sharding.AxisType.Auto,) * 2
with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"), axis_types=auto)):
    for width in (None, 8):
        spread = sweeps.run(test_sweeps.train, grid, max_parallel=width)
        np.testing.assert_allclose(spread["loss"], alone["loss"], rtol=1e-4)
    held = jax.numpy.asarray(2.0)  # an array of this mesh, to the types of JAX
    twice = sweeps.run(lambda hp: {"twice": held * hp["lr"]}, sweeps.grid(lr=[0.5, 1.0, 2.0]))
    assert twice["twice"].tolist() == [1, 2, 4]
    made = program._PROGRAMS[test_sweeps.train].items()
    texts = [pair[0].as_text() for _, pair in made if isinstance(pair, tuple)]
    texts = [text for text in texts if "num_partitions=8" in text]
    assert len(texts) == 2
    for text in texts:  # the two metrics are gathered at the end, and nothing is before
        moved = [line for line in text.splitlines() if "all-" in line or "permute(" in line]
        assert len([line for line in moved if "all-gather(" in line]) == len(moved) == 2, moved
explicit = (jax.sharding.AxisType.Explicit,)
with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=explicit)):
    try:
        sweeps.run(test_sweeps.train, grid)
    except ValueError as error:
        print(error)
"""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = environment_of(8, "--xla_backend_optimization_level=0") | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "run: `mesh` must have Auto axes only" in done.stdout


def test_a_member_that_diverges_is_shown_and_spoils_nobody():
    def diverging(hp):
        x = jax.lax.fori_loop(0, 200, lambda _, x: x - hp["lr"] * x, jnp.float32(1))
        return {"loss": x**2}

    grid = sweeps.grid(lr=[0.01, 1e30, 0.1])
    result = sweeps.run(diverging, grid)
    assert np.isfinite(result["loss"]).tolist() == [True, False, True]
    assert "1 of 3 diverged" in repr(result)
    best = result.best("loss")
    assert (best.hyper, best.index, best.diverged) == ({"lr": 0.1}, (2,), 1)
    without = sweeps.run(diverging, sweeps.grid(lr=[0.01, 0.1]))
    np.testing.assert_array_equal(result["loss"][[0, 2]], without["loss"])
    with pytest.raises(ValueError, match=r"best: `name`.*finite somewhere"):
        sweeps.run(diverging, sweeps.grid(lr=[1e30])).best("loss")


def known_result(values, **axes):
    values = np.asarray(values, np.float32)
    return sweeps.Result(sweeps.grid(**axes), {"loss": values})


def test_best_over_seeds_has_the_mean_and_its_standard_error():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3))
    values[0, 1] = np.nan
    lr = schedules.Cosine(np.float32([1e-3, 2e-3, 3e-3, 4e-3]), steps=50)
    result = known_result(values, lr=lr, key=KEYS)
    for mode, pick in (("min", np.nanargmin), ("max", np.nanargmax)):
        best = result.best("loss", mode, over="key")
        at = int(pick(np.nanmean(values, axis=1)))
        assert best.index == (at, slice(None))
        np.testing.assert_allclose(best.value, np.nanmean(values[at]), rtol=1e-6)
        row = values[at][~np.isnan(values[at])]
        np.testing.assert_allclose(best.error, row.std(ddof=1) / len(row) ** 0.5, rtol=1e-6)
        assert list(best.hyper) == ["lr"]
        assert text.parse(repr(best.hyper["lr"])) == best.hyper["lr"]
        assert best.hyper["lr"] == schedules.Cosine([0.001, 0.002, 0.003, 0.004][at], steps=50)
        assert best.diverged == 1
        assert "±" in repr(best)
    assert result.best("loss").error is None


def test_a_zipped_axis_changes_several_and_combines_with_others():
    grid = sweeps.zipped(lr=[0.1, 0.2], reg=penalties.L1(np.array([1.0, 2.0]))) * sweeps.grid(
        key=KEYS
    )
    assert grid.axes == ("lr+reg", "key")
    assert grid.shape == (2, 3)

    def product(hp):
        return {"product": hp["lr"] * hp["reg"].strength + jax.random.uniform(hp["key"]) * 0}

    result = sweeps.run(product, grid)
    np.testing.assert_allclose(result["product"], [[0.1] * 3, [0.4] * 3], rtol=1e-6)
    best = result.best("product", "max", over="key")
    assert best.hyper == {"lr": 0.2, "reg": penalties.L1(2.0)}


def test_random_points_lie_in_their_ranges():
    key = jax.random.key(1)
    regs = [penalties.L1(0.1), penalties.L1(0.2)]
    grid = sweeps.random(500, key=key, lr=(1e-4, 1e-1), steps=(3, 30), b1=[0.9, 0.99], reg=regs)
    points = grid.points
    assert grid.axes == ("lr+steps+b1+reg",)
    low, middle = np.quantile(points["lr"], [0.0, 0.5])
    assert 1e-4 <= low < 2e-4
    assert 2e-3 < middle < 5e-3  # the geometric mean is 3.2e-3
    assert set(points["steps"].tolist()) == set(range(3, 31))
    assert set(np.asarray(points["b1"]).tolist()) == {0.9, 0.99}
    assert set(np.asarray(points["reg"].strength).tolist()) == {0.1, 0.2}
    again = sweeps.random(500, key=key, lr=(1e-4, 1e-1))
    np.testing.assert_array_equal(points["lr"], again.points["lr"])
    numpys = sweeps.random(500, key=key, steps=(np.int64(3), np.int64(30))).points["steps"]
    assert set(numpys.tolist()) == set(range(3, 31))
    alike = [schedules.Cosine(0.1, steps=10), schedules.Cosine(0.1, steps=20)]  # one peak for all
    lengths = sweeps.random(500, key=key, lr=alike).points["lr"].steps
    assert set(lengths.tolist()) == {10, 20}


def test_columns_of_tables_and_ranges_are_axes():
    pandas = pytest.importorskip("pandas")
    grid = sweeps.grid(a=pandas.Series([1.0, 2.0]), n=range(3))
    result = sweeps.run(lambda hp: {"x": hp["a"] * hp["n"]}, grid)
    assert result["x"].tolist() == [[0, 1, 2], [0, 2, 4]]
    assert result.best("x", "max").hyper == {"a": 2.0, "n": 2}


def test_a_metric_called_as_a_hyperparameter_has_its_own_column():
    result = sweeps.run(lambda hp: {"lr": 2 * hp["lr"]}, sweeps.grid(lr=[1.0, 2.0]))
    assert result.table().rows[1] == {"lr": 2.0, "lr (metric)": 4.0}


def test_tables_print_and_are_written(tmp_path):
    lr = schedules.Cosine(np.float32([1e-3, 2e-3]), steps=50)
    result = known_result([[1, 2, 3], [4, 5, np.nan]], lr=lr, key=KEYS)
    table = result.table()
    assert len(table.rows) == 6
    assert table.rows[4] == {"lr": "Cosine(0.002, steps=50)", "key": 1, "loss": 5.0}
    assert repr(table).splitlines()[0].split() == ["lr", "key", "loss"]
    means = result.table(over="key").rows
    assert [row["loss"] for row in means] == [2.0, 4.5]
    np.testing.assert_allclose([row["loss error"] for row in means], [3**-0.5, 0.5])
    result.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows[:2]] == [1.0, 2.0]
    pandas = pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["lr", "key", "loss"]


def test_a_function_that_is_gone_takes_its_programs_with_it():
    def run(hp):
        return {"x": hp["x"]}

    sweeps.run(run, sweeps.grid(x=[1.0, 2.0]))
    alive = weakref.ref(run)
    del run
    gc.collect()
    jax.clear_caches()
    gc.collect()
    assert alive() is None


def rung(hp, state, steps):
    """A rung of the affine model."""
    tx = optax.sgd(hp["lr"])
    data = training.ArrayData(BATCH, 16, hp.get("key", KEYS[0]))
    step = training.make_step(apply, loss_fn, tx)
    state, metrics = training.scan(step, start(tx) if state is None else state, data, steps=steps)
    return state, {"loss": metrics["loss"][-1]}


def test_of_halving_the_survivors_are_their_single_runs_and_the_others_stop():
    rates = np.geomspace(1e-3, 0.2, 9).astype(np.float32)
    grid = sweeps.grid(lr=rates, key=KEYS[:2])
    ends = [4, 10, 30]
    result = sweeps.halving(rung, grid, "loss", steps=ends, over="key")
    assert [int(np.sum(result["steps"] == end)) for end in ends] == [12, 4, 2]
    assert (result["steps"] == result["steps"][:, :1]).all()  # the seeds of a point together
    assert "2 of 18 complete" in repr(result)
    for end in ends:
        at = tuple(np.argwhere(result["steps"] == end)[0])
        alone = jax.jit(partial(rung, steps=end))(grid.hyper(at), None)[1]["loss"]
        np.testing.assert_allclose(result["loss"][at], alone, rtol=1e-4)
    best = result.best("loss", over="key")
    assert result["steps"][best.index[0], 0] == 30
    first = sweeps.run(lambda hp: rung(hp, None, 4)[1], grid).mean("loss", "key")[0][:, 0]
    assert set(np.flatnonzero(result["steps"][:, 0] > 4)) == set(np.argsort(first)[:3])


@pytest.mark.parametrize(("size", "factor"), [(9, 3), (10, 3), (7, 2), (5, 1.5), (1, 4)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_each_rung_has_its_share_of_the_points_and_none_that_diverged(size, factor, mode):
    widths = []

    def value(hp, x, steps):
        widths.append(steps)
        x = hp["x"] if x is None else x
        return x, {"value": jnp.where(hp["x"] == 3, jnp.nan, x)}

    grid = sweeps.grid(x=np.random.default_rng(0).permutation(size).astype(np.float32))
    result = sweeps.halving(value, grid, "value", steps=[1, 3, 7], factor=factor, mode=mode)
    counts = [int(np.sum(result["steps"] >= end)) for end in (1, 3, 7)]
    assert counts == [size, *(c := [-(-size // factor)]), -(-c[0] // factor)]
    assert widths == [1, 2, 4]  # each rung is traced once, for the steps that are left of it
    best = result.best("value", mode).hyper["x"]
    assert best == ({"min": 0, "max": size - 1}[mode] if size != 4 else 2)
    assert not result.complete[grid.points["x"] == 3].any() or size < 4


REFUSED = {
    "an empty grid": (lambda: sweeps.grid(), "grid: `axes`"),
    "no points": (lambda: sweeps.grid(lr=[]), "grid: `lr`"),
    "an empty array": (lambda: sweeps.grid(lr=np.zeros(0)), "grid: `lr`"),
    "no axis": (lambda: sweeps.grid(lr=0.1), "grid: `lr`"),
    "text": (lambda: sweeps.grid(lr=["a", "b"]), "grid: `lr`"),
    "lengths in one axis": (
        lambda: sweeps.grid(lr=schedules.Cosine(np.ones(3), steps=np.array([1, 2]))),
        "grid: `lr`",
    ),
    "lengths zipped": (lambda: sweeps.zipped(a=[1.0], b=[1.0, 2.0]), "zipped: `axes`"),
    "twice": (lambda: sweeps.grid(a=[1.0]) * sweeps.grid(a=[1.0]), r"grid: `\*`"),
    "n": (lambda: sweeps.random(0, key=KEYS[0], a=(1, 2)), "random: `n`"),
    "a range": (lambda: sweeps.random(2, key=KEYS[0], a=(2.0, 1.0)), "random: `a`"),
    "a range from 0": (lambda: sweeps.random(2, key=KEYS[0], a=(0.0, 1.0)), "random: `a`"),
    "no scalar": (lambda: swept(lambda hp: {"a": jnp.ones(3) * hp["x"]}), "run: `function`"),
    "no names": (lambda: swept(lambda hp: hp["x"]), "run: `function`"),
    "no metrics": (lambda: swept(lambda _: {}), "run: `function`"),
    "no function": (lambda: swept(3), "run: `function`"),
    "no grid": (lambda: sweeps.run(train, {"x": [1.0]}), "run: `grid`"),
    "parallel": (lambda: swept(lambda hp: hp, max_parallel=0), "run: `max_parallel`"),
    "an axis twice": (
        lambda: swept(lambda hp: {"v": hp["x"]}).best("v", over=["x", "x"]),
        "best: `over` .*once",
    ),
    "a key as a metric": (
        lambda: swept(lambda hp: {"v": jax.random.key(0)}),
        "run: `function`",
    ),
    "too large for an int32": (lambda: sweeps.grid(n=[2**40, 1]), "grid: `n` .*int32"),
    "too small for a float32": (lambda: sweeps.grid(lr=np.array([1e-50, 1])), "grid: `lr` .*flo"),
    "a range beyond int32": (
        lambda: sweeps.random(2, key=KEYS[0], a=(1, 2**40)),
        "random: `a` .*int32",
    ),
    "other metrics in a rung": (
        lambda: halved(lambda hp, x, _: (hp["x"], {"x": hp["x"]} if x is None else {"y": 1.0})),
        "halving: `function` .*same metrics",
    ),
    "a metric called steps": (
        lambda: halved(lambda hp, x, _: (hp["x"], {"x": hp["x"], "steps": 1.0})),
        "halving: `function` .*steps",
    ),
    "a metric": (lambda: swept(lambda hp: hp).best("y"), "result: `name`"),
    "a mode": (lambda: swept(lambda hp: hp).best("x", "most"), "best: `mode`"),
    "an axis": (lambda: swept(lambda hp: hp).best("x", over="keys"), "best: `over`"),
    "a metric nearby": (
        lambda: swept(lambda hp: {"val_loss": hp["x"]}).best("val_los"),
        "result: `name`.*did you mean 'val_loss'",
    ),
    "parallel as text": (lambda: swept(lambda hp: hp, max_parallel="2"), "run: `max_parallel`"),
    "half a member": (lambda: swept(lambda hp: hp, max_parallel=0.5), "run: `max_parallel`"),
    "a complex metric": (lambda: swept(lambda hp: {"a": hp["x"] * 1j}), "run: `function`"),
    "a checkpoint": (lambda: swept(lambda hp: hp, checkpoint=3), "run: `checkpoint`"),
    "no rungs": (lambda: halved(steps=[]), "halving: `steps`"),
    "rungs that fall": (lambda: halved(steps=[3, 2]), "halving: `steps`"),
    "a rung of none": (lambda: halved(steps=[0, 2]), "halving: `steps`"),
    "a factor": (lambda: halved(factor=1.0), "halving: `factor`"),
    "a metric of halving": (lambda: halved(name="y"), "halving: `name`"),
    "a mode of halving": (lambda: halved(mode="least"), "halving: `mode`"),
    "an axis of halving": (lambda: halved(over="key"), "halving: `over`"),
    "an axis that is none": (lambda: swept(lambda hp: hp).best("x", over=1), "best: `over`"),
    "within jit": (lambda: jax.jit(lambda: swept(lambda hp: hp)["x"])(), "run: .*outside of jit"),
    "a state of nothing": (lambda: halved(lambda hp, _, __: (None, hp)), "halving: `function`"),
    "no state": (lambda: halved(lambda hp, state, steps: hp), "halving: `function`"),
}


def swept(function, **options):
    return sweeps.run(function, sweeps.grid(x=[1.0, 2.0]), **options)


def halved(function=lambda hp, _, __: (hp["x"], hp), name="x", steps=(1, 2), **options):
    return sweeps.halving(function, sweeps.grid(x=[1.0, 2.0]), name, steps=steps, **options)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


class Distance:
    """A function that compares, and so has no hash."""

    __slots__ = ("center",)

    def __init__(self, center):
        self.center = center

    def __eq__(self, other):
        return self.center == other.center

    def __call__(self, hyper):
        return (hyper["lr"] - self.center) ** 2


class Distances(Distance):
    """The same for `run`."""

    def __call__(self, hyper):
        return {"error": super().__call__(hyper)}


def test_functions_need_no_hash():
    grid = sweeps.grid(lr=[0.1, 0.2, 0.3])
    assert sweeps.run(Distances(0.2), grid).best("error").hyper == {"lr": 0.2}
    assert sweeps.run(Distances(0.3), grid).best("error").hyper == {"lr": 0.3}
    slopes = [sweeps.hypergradient(Distance(c), {"lr": 0.1})[1]["lr"] for c in (0.2, 0.3)]
    np.testing.assert_allclose(slopes, [-0.2, -0.4], rtol=1e-6)
