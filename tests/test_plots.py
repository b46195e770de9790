import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from jax_lrreg import penalties, plots, schedules, sweeps, training


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_schedule_is_drawn_with_its_phases():
    lr = schedules.Cosine(1e-3, steps=900).warmup(100)
    ax = plots.schedule(lr, steps=1000)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, lr(np.asarray(x)), rtol=1e-5)
    assert [text.get_text() for text in ax.texts] == ["cosine"]
    assert ax.get_xlim() == (0, 1000)


def test_a_long_horizon_has_both_sides_of_every_jump_and_few_points():
    lr = schedules.join([(schedules.Constant(0.1), 123_456_789), (schedules.Constant(0.01), None)])
    ax = plots.schedule(lr, steps=10**9)
    x = ax.lines[0].get_xdata()
    assert {123_456_788, 123_456_789} <= set(np.asarray(x).tolist())
    assert len(x) < 2100


@pytest.mark.parametrize(
    ("lr", "steps", "least", "largest"),
    [
        (
            schedules.Cyclic(0.01, peak_value=0.1, up_steps=500, down_steps=500),
            1999 * 1000,
            0.01,
            0.1,
        ),
        (schedules.CosineRestarts(0.1, steps=5000), 9_995_000, 0.0, 0.1),
        (schedules.Linear(0.1, steps=10).repeat(10), 19_990, 0.01, 0.1),
        (lambda step: 0.1 if step % 7 else 0.01, 1999 * 7000, 0.01, 0.1),
    ],
    ids=["cyclic", "restarts", "repeat", "function"],
)
def test_what_is_shorter_than_a_column_is_drawn_as_a_band(lr, steps, least, largest):
    ax = plots.schedule(lr, steps=steps)
    x, mean = ax.lines[0].get_data()
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    column = len(corners) // 2
    np.testing.assert_allclose(corners[2:column], least, atol=0.01)
    np.testing.assert_allclose(corners[column + 2 :], largest, atol=0.01)
    assert np.all((least + 0.02 < mean) & (mean <= largest))
    assert (x[0], x[-1]) == (0, steps)


def test_the_line_of_a_long_smooth_schedule_is_the_schedule():
    lr = schedules.Cosine(0.1, steps=10**6)
    x, y = plots.schedule(lr, steps=10**6).lines[0].get_data()
    np.testing.assert_allclose(y, lr(np.asarray(x)), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 1999, 2000, 2001, 7000, 10**6])
def test_samples_lie_in_their_columns_and_are_all_there_are_where_these_are_few(steps):
    begins = plots.columns(steps, marks=[steps // 3])
    samples = plots.samples_of(begins)
    assert np.all(samples[:-1] >= begins[:-1, None])
    assert np.all(samples[:-1] < begins[1:, None])
    assert samples[-1, 0] == steps
    if steps <= 2000 * 10:
        assert set(samples.ravel().tolist()) == set(range(steps + 1))


def test_several_schedules_and_functions_get_a_legend_and_a_log_axis_no_zeros():
    ax = plots.schedule(
        {"cosine": schedules.Cosine(0.1, steps=10), "mine": lambda step: 0.1}, steps=10, log=True
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cosine", "mine"]
    assert ax.get_yscale() == "log"
    assert np.isnan(ax.lines[0].get_ydata()[-1])


def test_units_move_the_phases():
    lr = schedules.join([(schedules.Constant(0.1), 5), (schedules.Cosine(0.1, steps=85), None)])
    assert [round(at) for at, _ in plots.phases(lr.in_units(per_step=1 / 390))] == [0, 1950]


def test_history_has_a_panel_for_each_thing():
    history = {
        "step": np.array([10, 20]), "loss": np.array([1.0, 0.5]), "data_loss": np.array([0.9, 0.4]),
        "penalty": np.array([0.1, 0.1]), "skipped": np.array([0, 0]),
        "learning_rate": np.array([0.1, 0.05]),
        "accuracy": np.array([0.5, 0.6]),
        "eval_step": np.array([10, 20]), "val_loss": np.array([1.1, 0.6]),
        "val_accuracy": np.array([0.4, 0.5]),
    }  # fmt: skip
    axes = plots.history(history)
    assert [ax.get_ylabel() for ax in axes] == ["loss", "accuracy", "penalty", "learning rate"]
    assert [line.get_label() for line in axes[0].lines] == ["loss", "data loss", "val loss"]
    del history["val_loss"], history["val_accuracy"], history["eval_step"], history["accuracy"]
    history["penalty"] = np.zeros(2)
    assert [ax.get_ylabel() for ax in plots.history(history)] == ["loss", "learning rate"]


def run(last, rate=0.1, best=None):
    """A short history, with evaluations."""
    first = 1.1 if best is None else best + 0.1
    best = last if best is None else best
    return {
        "ended": np.asarray("after step 90: all steps are made"),
        "step": np.array([30, 60, 90]),
        "loss": np.array([1.0, best, last]),
        "learning_rate": np.full(3, rate),
        "skipped": np.zeros(3, int),
        "eval_step": np.array([45, 90]),
        "val_loss": np.array([first, last + 0.1]),
    }


def test_several_histories_share_a_panel_for_each_metric():
    runs = {"plain": run(0.5), "cosine": run(0.25, rate=0.2)}
    axes = plots.history(runs)
    assert [ax.get_ylabel() for ax in axes] == ["loss", "val loss", "learning rate"]
    for ax in axes:
        assert [line.get_label() for line in ax.lines] == ["plain", "cosine"]
        assert len({line.get_color() for line in ax.lines}) == 2
    assert axes[0].get_title(loc="left") == "at the end: plain 0.5,  cosine 0.25"
    assert axes[-1].get_xlim() == (0, 90)
    assert axes[-1].get_xticks()[-1] == 90


def test_a_title_says_the_last_and_the_best_and_a_constant_rate_looks_constant():
    axes = plots.history(run(0.5, best=0.4))
    text = axes[0].get_title(loc="left")
    assert text == "at the end: loss 0.5,  val loss 0.6 (best 0.5 at step 45)"
    assert axes[-1].get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.42, 1.1, ["0.6", "0.8", "1"]),
        (0.04, 1.0, ["0.05", "0.1", "0.2", "0.5", "1"]),
        (1e-4, 9.0, ["0.0001", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_a_loss_has_plain_numbers_on_its_axis(low, high, shown):
    ax = plots.history({**run(low), "loss": np.array([high, high, low])})[0]
    ax.set_ylim(low, high)
    plots.figure_of(ax).canvas.draw()
    inside = lambda text: low <= text.get_position()[1] <= high  # noqa: E731
    assert [text.get_text() for text in filter(inside, ax.get_yticklabels())] == shown


def test_runs_are_compared_in_a_table():
    table = training.compare({"plain": run(0.5, best=0.4), "cosine": run(0.25)})
    assert table.rows == [
        ("loss", "plain", "0.5", "0.4", "60"),
        ("loss", "cosine", "0.25", "0.25", "60"),
        ("val_loss", "plain", "0.6", "0.5", "45"),
        ("val_loss", "cosine", "0.35", "0.35", "90"),
    ]
    assert max(map(len, str(table).splitlines())) <= 80
    assert "0.25" in str(training.compare({64: run(0.25)}))  # a run may be called by a number
    with pytest.raises(ValueError, match="`histories` must be"):
        training.compare(run(0.5))


def test_penalties_are_drawn_with_value_gradient_and_prox():
    axes = plots.penalty({"L1": penalties.L1(0.5), "L2": penalties.L2(0.5)}, step_size=2.0)
    w, value = axes[0].lines[0].get_data()
    np.testing.assert_allclose(value, 0.5 * np.abs(w), rtol=1e-6)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), 0.5 * np.sign(w), rtol=1e-6)
    lines = {line.get_label(): line for line in axes[2].lines}
    np.testing.assert_allclose(
        lines["L1"].get_ydata(), np.sign(w) * np.maximum(np.abs(w) - 1, 0), atol=1e-6
    )


def test_a_sum_of_penalties_is_drawn_without_a_prox():
    both = plots.penalty({"L1 + L2": penalties.L1(0.5) + penalties.L2(0.5)})
    assert "L1 + L2" in {line.get_label() for line in both[0].lines}
    assert "L1 + L2" not in {line.get_label() for line in both[2].lines}


def test_a_path_counts_what_is_not_zero():
    ax = plots.path([0.1, 1.0], [[1.0, -2.0], [0.0, -1.0]], names=["a", "b"])
    assert len(ax.get_legend().get_texts()) == 2
    assert [label.get_text() for label in ax.child_axes[0].get_xticklabels()] == ["2", "1"]


def test_wrong_calls():
    with pytest.raises(ValueError, match="`steps`"):
        plots.schedule(schedules.Constant(0.1), steps=0)
    with pytest.raises(ValueError, match="`schedule`"):
        plots.schedule({}, steps=10)
    for wrong in (
        [schedules.Constant(0.1)],
        "Cosine",
        schedules.Cosine,
        penalties.L1(0.1),
        {"a": 0.1},
        None,
    ):
        with pytest.raises(
            TypeError,
            match=r"plots\.schedule: `schedule` must be a schedule, a function of the step",
        ):
            plots.schedule(wrong, steps=10)
    for steps in (True, 2.0, np.int64(0)):
        with pytest.raises(ValueError, match="`steps`"):
            plots.schedule(schedules.Constant(0.1), steps=steps)
    assert plots.schedule(schedules.Constant(0.1), steps=np.int64(10)).get_xlim() == (0, 10)
    with pytest.raises(ValueError, match="`history`"):
        plots.history({"loss": np.ones(3)})
    with pytest.raises(TypeError, match=r"`history` must be what training.fit returns, or"):
        plots.history([np.ones(3)])
    nothing = {"ended": np.array("after step 3"), "step": np.array([])}  # of a run at its `until`
    for empty in (nothing, {"a": nothing, "b": nothing}):
        with pytest.raises(
            ValueError, match=r"`history` must be one with an entry.*got '0 entries'"
        ):
            plots.history(empty)
    with pytest.raises(ValueError, match="`penalty`"):
        plots.penalty({})
    with pytest.raises(TypeError, match="`penalty` must be a penalty, or a dict of them"):
        plots.penalty([penalties.L1(0.5)])
    with pytest.raises(ValueError, match="`coefficients`"):
        plots.path([1.0, 2.0], np.ones((3, 4)))
    with pytest.raises(ValueError, match="`strengths`"):
        plots.path([0.0, 2.0], np.ones((2, 4)))


def swept(lr=None, **axes):
    lr = np.float32([1e-3, 1e-2, 1e-1]) if lr is None else lr
    grid = sweeps.grid(lr=lr, **axes, key=jax.random.split(jax.random.key(0), 4))
    values = np.random.default_rng(0).normal(size=grid.shape)
    values[0] = np.nan
    return sweeps.Result(grid, {"loss": values})


def test_a_heat_map_shows_means_over_seeds_and_marks_the_best():
    result = swept(reg=penalties.L1(np.float32([0.1, 0.2])))
    ax = plots.heatmap(result, "loss")
    np.testing.assert_allclose(ax.images[0].get_array()[1:], result["loss"][1:].mean(axis=2))
    best = result.best("loss", over="key").index
    assert ax.lines[0].get_xydata().tolist() == [[best[1], best[0]]]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("lr", "reg strength")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.001", "0.01", "0.1"]


def test_a_metric_is_drawn_along_an_axis_with_an_interval_over_seeds():
    result = swept(schedules.Cosine(np.float32([1e-3, 1e-2, 1e-1]), steps=9), steps=[10, 20])
    ax = plots.sweep(result, "loss")
    assert len(ax.lines) == len(ax.collections) == 2
    np.testing.assert_allclose(ax.lines[1].get_ydata()[1:], result["loss"][1:, 1].mean(axis=-1))
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "lr init value")
    ax = plots.sweep(result, "loss", over="steps")
    np.testing.assert_allclose(ax.lines[2].get_ydata(), result["loss"][2].mean(axis=-1))


def test_pictures_of_sweeps_refuse_other_axes_by_name():
    with pytest.raises(ValueError, match=r"plots\.heatmap: `result`"):
        plots.heatmap(swept(), "loss")
    with pytest.raises(ValueError, match=r"plots\.sweep: `over`.*lr"):
        plots.sweep(swept(), "loss", over="lrr")
    with pytest.raises(ValueError, match=r"`name`.*did you mean 'loss'"):
        plots.sweep(swept(), "los")


def pictures():
    """A picture of each function of `plots`, with names that are long and marks that are close."""
    short = {"a schedule with a name that is long": schedules.Cosine(1e-3, steps=70)}
    steps = np.arange(10, 80, 10)
    losses = {"step": steps, "loss": 1.0 / steps, "data_loss": 0.9 / steps}
    evaluated = {"eval_step": steps, "val_loss": 1.1 / steps, "val_loss_of_others": 1.2 / steps}
    marks = schedules.join([(schedules.Constant(0.1), 30), (schedules.Linear(0.1, steps=3), 3),
                            (schedules.Cosine(0.05, steps=30), None)])  # fmt: skip
    yield plots.schedule(marks, steps=77)
    yield plots.schedule({**short, "b": schedules.Linear(1e-3, steps=77)}, steps=77)
    yield plots.history({**losses, **evaluated, "learning_rate": np.full(7, 1e-3)})[0]
    yield plots.history({f"a run whose name is as long as {n}": losses for n in range(5)})[0]
    yield plots.penalty({"L1": penalties.L1(0.5), "L2": penalties.L2(0.5)})[2]
    yield plots.path(np.float32([1e-3, 0.1]), np.ones((2, 9)), names=[f"w{n}" for n in range(9)])
    yield plots.sweep(swept(reg=penalties.L1(np.float32([0.1, 0.2]))), "loss")
    yield plots.heatmap(swept(reg=penalties.L1(np.float32([0.1, 0.2]))), "loss")


def test_no_text_lies_over_another_or_over_the_edge_and_ticks_reach_the_end():
    for ax in pictures():
        figure = plots.figure_of(ax)
        figure.canvas.draw()
        box = lambda text: text.get_window_extent()  # noqa: E731
        legends = [one.get_legend() for one in figure.axes if one.get_legend()]
        names = [name for legend in legends for name in legend.get_texts()]
        low, high = sorted(ax.get_xlim())
        ticks = [text for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]
        title = ax._left_title
        boxes = [box(text) for text in (title, ax.xaxis.label, *ax.texts, *names, *ticks)]
        for index, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[:index])
            assert 0 <= one.x0 <= one.x1 <= figure.bbox.width + 1
            assert 0 <= one.y0 <= one.y1 <= figure.bbox.height + 1
        assert all(box(legend).x0 >= ax.bbox.x1 - 1 for legend in legends), "it hides no line"


def test_pictures_read_on_a_light_page_and_on_a_dark_one():
    def luminance(color):
        rgb = np.array(plt.matplotlib.colors.to_rgb(color))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
            0.2126, 0.7152, 0.0722]  # fmt: skip

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(plots.frame.GREY, page) for page in ("white", "#131416")) > 4
    assert all(contrast(color, page) > 2 for color in plots.COLORS for page in ("white", "#131416"))
    for ax in pictures():
        assert plots.figure_of(ax).get_facecolor()[3] == ax.get_facecolor()[3] == 0
        assert ax.xaxis.label.get_color() == ax.title.get_color() == plots.frame.GREY


def test_what_is_constant_looks_constant():
    ax = plots.schedule(schedules.Constant(0.1), steps=50)
    assert ax.get_ylim()[0] == 0
    assert ax.get_title(loc="left") == "0.1 at every step"
    ax = plots.schedule(schedules.Cosine(1e-3, steps=900).warmup(100), steps=1000)
    assert ax.get_title(loc="left") == "highest at step 100: 0.001;  at step 1,000: 0"
