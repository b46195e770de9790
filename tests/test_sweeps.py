"""Sweeps: grids, runs side by side, and what is read off them."""

import csv
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import apply, loss_fn, problem, start

from jax_lrreg import penalties, schedules, sweeps, text, training

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
def test_parts_change_nothing_and_are_one_program(width):
    run, calls = counted(train)
    grid = sweeps.grid(lr=np.geomspace(0.01, 0.2, 5).astype(np.float32))
    together = sweeps.run(train, grid)
    parts = sweeps.run(run, grid, max_parallel=width)
    np.testing.assert_allclose(parts["loss"], together["loss"], rtol=1e-4)
    assert len(calls) == 1


def test_the_width_is_found_from_the_memory_that_the_program_needs(monkeypatch):
    def wide(hp):
        return {
            "sum": jnp.sum(jnp.sort(jnp.outer(jnp.sin(hp["x"] * jnp.arange(512)), jnp.ones(512))))
        }

    run, calls = counted(wide)
    module = sweeps.run.__globals__
    monkeypatch.setitem(module, "_free", lambda: 12 * 2**20)  # a member takes some MiB
    grid = sweeps.grid(x=np.linspace(0.0, 1.0, 16, dtype=np.float32))
    result = sweeps.run(run, grid)
    widths = [key[2] for key in module["_PROGRAMS"][run] if key]
    assert widths[0] == 16 > widths[-1] >= 1
    assert len(calls) == 1
    monkeypatch.undo()
    np.testing.assert_allclose(result["sum"], sweeps.run(wide, grid)["sum"], rtol=1e-5)


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
    "a metric": (lambda: swept(lambda hp: hp).best("y"), "result: `name`"),
    "a mode": (lambda: swept(lambda hp: hp).best("x", "most"), "best: `mode`"),
    "an axis": (lambda: swept(lambda hp: hp).best("x", over="keys"), "best: `over`"),
}


def swept(function, **options):
    return sweeps.run(function, sweeps.grid(x=[1.0, 2.0]), **options)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
