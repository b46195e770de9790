"""The loss of a schedule before it is run: the law, its fit, the best schedule, and the bounds."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_lrreg import forecast, plots, schedules, text
from jax_lrreg.schedules import Constant, Cosine, Cyclic, Linear, MultiStep

CURVES = Path(__file__).parents[1].parent / "shared" / "data" / "loss_curves"
for parent in Path(__file__).resolve().parents:  # beside a checkout, or beside its worktrees
    CURVES = CURVES if CURVES.exists() else parent / "shared" / "data" / "loss_curves"
public = pytest.mark.skipif(not CURVES.exists(), reason=f"there is no {CURVES}")
PEAK = 3e-4
NUMBERS = ("floor", "A", "alpha", "B", "C", "beta", "gamma")
# Luo et al., 2025: numbers, then mean R2, MAE and worst relative error on the held-out curves.
PUBLISHED = {
    "25M": (
        (3.04045406, 0.52468604, 0.50786857, 363.78751622, 2.06560812, 0.58279013, 0.64142257),
        (0.9988, 0.00376, 0.00409),
    ),
    "100M": (
        (2.6514477, 0.60115152, 0.45295811, 437.9464276, 2.13245612, 0.59785199, 0.65523644),
        (0.9983, 0.00435, 0.00583),
    ),
}
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
HELD = (
    "constant_72000",
    "cosine_72000",
    "wsd_20000_24000",
    "wsdld_20000_24000",
    "wsdcon_18",
    "wsdcon_3",
)
LAW = forecast.MultiPower(
    2.0, A=0.5, alpha=0.5, B=80.0, C=2.0, beta=0.6, gamma=0.65, warmup="left out"
)
RUNS = [Constant(1e-3), Constant(1e-3).cooldown(0, at=300, end_value=3e-4), Cosine(1e-3, steps=500)]


def read(size, name):
    step, _, loss = np.loadtxt(CURVES / size / f"{name}.csv", delimiter=",", skiprows=1).T
    return step.astype(int), loss


def of_name(name):
    """The schedule that a file's name stands for; its warmup ends at 3e-4 one step early."""
    warm = Constant(PEAK).warmup(2159)
    if name.startswith("constant"):
        return warm
    if name.startswith("cosine"):
        decay = Cosine(PEAK, steps=int(name[7:]) - 2160, end_value=PEAK / 10)
        return schedules.join([(Linear(0.0, steps=2159, end_value=PEAK), 2160), (decay, None)])
    if name.startswith("wsdcon"):
        return warm.cooldown(0, at=8000, end_value=int(name[7:]) * 1e-5)
    shape = {} if name.startswith("wsdld") else {"shape": "exponential", "rate": 0.1}
    return warm.cooldown(4000, at=20_000, end_value=PEAK / 10, **shape)


def judged(law, size):
    """R2, MAE and worst relative error of each held-out curve, [curves, 3]."""
    rows = []
    for name in HELD:
        step, loss = read(size, name)
        error = np.asarray(law(of_name(name), steps=72_000))[step] - loss
        rest = np.sum(error**2) / np.sum((loss - loss.mean()) ** 2)
        rows.append((1 - rest, np.mean(np.abs(error)), np.max(np.abs(error) / loss)))
    return np.array(rows)


def plain(law, rates):
    """The formula as it is written, in double precision."""
    e = np.asarray(rates, np.float64)
    spent, before = np.cumsum(e), np.append(0, np.cumsum(e)[:-1])
    fall = np.append(-e[0], e[:-1] - e[1:])
    # The first rises, felt at once: the term of each is B times it.
    rising = (np.cumsum(fall > 0) == 0) & (law.warmup == "left out")
    losses = []
    for t in range(len(e)):
        k = slice(0, t + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = law.C * e[k] ** -law.gamma * (spent[t] - before[k])
        felt = 1 - (1 + np.nan_to_num(grown, nan=0.0, posinf=np.inf)) ** -law.beta
        felt = np.where(rising[k], 1.0, felt)
        power = law.A * max(spent[t], e.max()) ** -law.alpha
        losses.append(law.floor + power - law.B * np.sum(fall[k] * felt))
    return np.array(losses)


SHAPES = {
    "constant": Constant(1e-3),
    "warmup and cosine": Cosine(1e-3, steps=270).warmup(30),
    "to zero and stays": Constant(1e-3).warmup(20).cooldown(100, at=150),
    "jump to zero": Constant(1e-3).cooldown(0, at=200),
    "stairs": MultiStep(1e-3, boundaries=(100, 200), decay_rate=0.1),
    "cyclic": Cyclic(1e-4, peak_value=1e-3, up_steps=40, down_steps=60),
    "tiny": Constant(1e-3).cooldown(50, at=200, end_value=1e-9),
}


@pytest.mark.parametrize("warmup", ["counted", "left out"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.sampled(4)
def test_the_law_is_its_formula_at_every_step(name, warmup):
    law, rates = replace(LAW, warmup=warmup), np.asarray(SHAPES[name](np.arange(300)))
    found = law(SHAPES[name], steps=300)
    np.testing.assert_allclose(found, plain(law, rates), rtol=3e-5)
    np.testing.assert_allclose(law.final(rates), found[-1], rtol=3e-5)
    np.testing.assert_array_equal(law(rates), found)
    slope = jax.grad(lambda law, rates: law.final(rates), argnums=(0, 1))(law, rates)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_a_million_steps_take_memory_in_proportion():
    lr = Constant(1e-3).warmup(1000).cooldown(200_000, at=800_000)
    run = jax.jit(lambda law: law(lr, steps=10**6)).lower(LAW).compile()
    assert run.memory_analysis().temp_size_in_bytes < 100 * 10**6
    losses = run(LAW)
    np.testing.assert_allclose(losses[-1], LAW.final(lr, steps=10**6), rtol=1e-4)


def test_the_law_prints_and_its_numbers_may_be_batched():
    assert text.parse(repr(LAW)) == LAW
    assert text.from_dict(text.to_dict(LAW)) == LAW
    many = jnp.array([1e-6, 80.0])
    ends = jax.vmap(lambda B: replace(LAW, B=B).final(RUNS[2], steps=500))(many)
    assert ends[1] > ends[0]  # what is left of the drops is above 0


@public
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_numbers_give_the_published_figures(size):
    numbers, figures = PUBLISHED[size]
    law = forecast.MultiPower(**dict(zip(NUMBERS, numbers, strict=True)))
    r2, mae, worst = judged(law, size).mean(axis=0)
    assert (round(r2, 4), f"{mae:.5f}", f"{worst:.5f}") == (
        figures[0],
        f"{figures[1]:.5f}",
        f"{figures[2]:.5f}",
    )


@public
@pytest.mark.parametrize(("size", "r2", "worst"), [("25M", 0.998, 0.0035), ("100M", 0.997, 0.0055)])
def test_a_fit_of_three_public_curves_foretells_the_others(size, r2, worst):
    curves = {of_name(name): read(size, name) for name in FITTED}
    began = time.process_time()
    law = forecast.fit(curves)
    assert time.process_time() - began < 30
    found = judged(law, size).mean(axis=0)
    assert found[0] >= r2
    assert found[2] <= worst
    assert text.parse(repr(law)) == law
    inside = []
    for name in HELD:  # nine in ten, mean over the curves; three times as long ones are among them
        step, loss = read(size, name)
        low, high = np.asarray(law.interval(of_name(name), steps=72_000))[:, step]
        inside.append(np.mean((low <= loss) & (loss <= high)))
    assert np.mean(inside) >= 0.9
    free = forecast.fit(curves, prior=None)
    assert free.evidence.spread != law.evidence.spread
    assert judged(free, size).mean(axis=0)[0] >= 0.996


@public
def test_two_numbers_lose_nothing_that_matters():
    """The paper's own optimum over 21,840 free rates is 2.9247."""
    law = forecast.MultiPower(**dict(zip(NUMBERS, PUBLISHED["100M"][0], strict=True)))

    def shape(n, p):
        return Constant(PEAK).warmup(2160).cooldown(n, at=24_000 - n, shape="power", power=p)

    plan = law.best(shape, steps=24_000, n=(240, 16_000), p=(0.5, 3.0))
    assert plan.loss == pytest.approx(2.9249, abs=1e-4)
    assert plan.interval is None
    assert isinstance(plan.numbers["n"], int)
    numpys = law.best(shape, steps=24_000, n=(np.int64(240), np.int32(16_000)), p=(0.5, 3.0))
    assert numpys == plan
    assert text.parse(repr(plan)) == plan


@pytest.fixture(scope="module")
def fitted():
    """A law fitted to noisy curves of the law itself."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=(3, 500))
    return forecast.fit(
        {lr: LAW(lr, steps=500) * np.exp(own) for lr, own in zip(RUNS, noise, strict=True)}
    )


@pytest.mark.parametrize("factor", [0.01, 1.0, 30.0])
def test_a_fit_does_not_depend_on_the_unit_of_the_rate(factor):
    curves = [(factor * lr, LAW(lr, steps=500)) for lr in RUNS]
    law, lr = forecast.fit(curves), Constant(1e-3).cooldown(200, at=300)
    np.testing.assert_allclose(law(factor * lr, steps=500)[30:], LAW(lr, steps=500)[30:], rtol=2e-3)


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e6])
def test_a_fit_does_not_depend_on_the_unit_of_the_loss(factor):
    curves = [(lr, np.asarray(LAW(lr, steps=500), np.float64)) for lr in RUNS]
    usual, lr = forecast.fit(curves), Constant(1e-3).cooldown(200, at=300)
    law = forecast.fit([(lr, factor * losses) for lr, losses in curves])
    np.testing.assert_allclose(law(lr, steps=500) / factor, usual(lr, steps=500), rtol=1e-5)
    both = [one.interval(lr, steps=500)[:, -1] for one in (law, usual)]
    np.testing.assert_allclose(both[0] / factor, both[1], rtol=1e-5)


def test_a_fit_takes_losses_from_before_the_first_rate():
    late = np.append(np.zeros(40), np.full(460, 1e-3))
    curves = [(lr, LAW(lr, steps=500)) for lr in (late, RUNS[1], RUNS[2])]
    law, lr = forecast.fit(curves, skip=0), Constant(1e-3).cooldown(200, at=300)
    np.testing.assert_allclose(law.final(lr, steps=500), LAW.final(lr, steps=500), rtol=5e-3)


def test_a_fit_of_noisy_steps_of_means_and_of_some_steps_agree(fitted):
    lr, steps = Constant(1e-3).cooldown(200, at=300), np.arange(9, 500, 10)
    truth = LAW.final(lr, steps=500)
    some = forecast.fit([(run, (steps, LAW(run, steps=500)[steps])) for run in RUNS])
    means = forecast.fit(
        [(run, (steps, LAW(run, steps=500).reshape(-1, 10).mean(1))) for run in RUNS],
        each="interval",
    )
    for law, within in ((fitted, 5e-3), (some, 2e-3), (means, 2e-3)):
        np.testing.assert_allclose(law.final(lr, steps=500), truth, rtol=within)
        low, high = law.interval(lr, steps=500)
        assert low.shape == (500,)
        assert low[-1] <= truth <= high[-1]
    wide = fitted.interval(lr, steps=500, level=0.99)
    assert np.all(wide[1] >= fitted.interval(lr, steps=500)[1])


def test_the_interval_widens_beyond_what_was_fitted(fitted):
    def width(lr, steps):
        low, high = fitted.interval(lr, steps=steps)[:, -1]
        return float(high - low)

    assert width(Constant(1e-3), 5000) > 1.5 * width(Constant(1e-3), 500)
    gain = fitted.final(Constant(1e-3), steps=500) - fitted.final(Constant(3e-3), steps=500)
    assert width(Constant(3e-3), 500) > width(Constant(1e-3), 500) + abs(gain)


def test_the_best_schedule_is_that_of_a_brute_force_and_prints(fitted):
    def shape(peak, n):
        return Constant(peak).cooldown(n, at=500 - n)

    plan = fitted.best(shape, steps=500, peak=(1e-4, 3e-3), n=(5, 450))
    assert plan.numbers["peak"] == pytest.approx(1e-3, rel=0.01)  # no curve had a higher one
    every = [
        float(fitted.final(shape(plan.numbers["peak"], n), steps=500)) for n in range(5, 450, 5)
    ]
    assert plan.loss <= min(every) + 1e-4
    assert plan.interval[0] < plan.loss < plan.interval[1]
    half, twice = plan.matters["n"]
    assert min(half, twice) >= plan.loss - 1e-5
    assert text.parse(repr(plan.schedule)) == plan.schedule
    longer = fitted.extrapolate(steps=2000)
    assert longer.loss < plan.loss
    assert longer.interval[1] - longer.interval[0] > plan.interval[1] - plan.interval[0]


def test_the_bound_has_its_published_values_and_linear_decay_is_its_best():
    figures = {
        Constant(1.0): 0.13754,
        Constant(1.0).cooldown(80, at=320): 0.10932,
        Linear(1.0, steps=400): 0.10063,
        Cosine(1.0, steps=400): 0.10339,
    }
    for lr, figure in figures.items():
        peaks = np.geomspace(0.01, 0.1, 400)
        values = jax.vmap(lambda peak, lr=lr: forecast.bound(peak * lr, steps=400))(peaks)
        assert values.min() == pytest.approx(figure, abs=1e-5)
        best = forecast.peak_for(lr, like=Constant(1.0), steps=400)
        ratio = peaks[values.argmin()] / 0.018176  # the best constant rate
        assert best == pytest.approx(ratio, rel=0.01)
    tx = optax.adam(optax.cosine_decay_schedule(0.05, 1000))

    def one(carry, _):
        logs, state = carry
        slope = jax.grad(lambda logs: forecast.bound(jnp.exp(logs)))(logs)
        moves, state = tx.update(slope, state)
        return (logs + moves, state), None

    logs = jnp.full(100, np.log(0.05), jnp.float32)
    (logs, _), _ = jax.jit(lambda c: jax.lax.scan(one, c, None, length=1000))((logs, tx.init(logs)))
    rates, line = np.exp(logs), 1 - np.arange(100) / 100
    # But for the last five, which hardly count.
    np.testing.assert_allclose((rates / rates[0])[:95], line[:95], atol=0.02)


def test_the_bound_takes_norms_distance_and_trailing_zeros():
    lr = Linear(0.05, steps=100)
    rates = np.asarray(lr(np.arange(100)))
    norms = np.linspace(2.0, 1.0, 100)
    given = forecast.bound(lr, steps=100, gradient_norms=norms, distance=3.0)
    after = rates[::-1].cumsum()[::-1]
    noise = ((rates * norms) ** 2)[::-1].cumsum()[::-1]
    rest = sum(rates[k] / after[k + 1] * noise[k] / after[k] for k in range(99)) / 2
    plain_sum = 9 / (2 * after[0]) + noise[0] / (2 * after[0]) + rest
    assert given == pytest.approx(plain_sum, rel=1e-5)
    ended = np.append(rates, np.zeros(5))
    assert forecast.bound(ended) == pytest.approx(float(forecast.bound(rates)), rel=1e-6)
    slope = jax.grad(lambda rates: forecast.bound(rates))(jnp.asarray(ended))
    assert np.all(np.isfinite(slope))


def test_refined_has_its_peak_also_between_knots_and_any_unit_of_the_norms():
    norms = np.append(np.linspace(10, 1, 30), np.ones(270))
    lr = forecast.refined(norms, steps=100_000, peak_value=0.1)
    assert np.max(lr(np.arange(100_000))) == np.float32(0.1)
    for unit in (1e-200, 1e200):
        same = forecast.refined(unit * norms, steps=100_000, peak_value=0.1, optimizer="sgd")
        plain = forecast.refined(norms, steps=100_000, peak_value=0.1, optimizer="sgd")
        np.testing.assert_allclose(same(np.arange(100_000)), plain(np.arange(100_000)), atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_refined_of_constant_norms_is_linear_and_large_ones_make_a_warmup(optimizer):
    lr = forecast.refined(np.full(77, 3.0), steps=1000, peak_value=0.1, optimizer=optimizer)
    steps = np.arange(1001)
    np.testing.assert_allclose(lr(steps), 0.1 * (1 - steps / 1000), atol=1e-7)
    assert text.parse(repr(lr)) == lr
    norms = np.append(np.linspace(10, 1, 30), np.ones(270))
    lr = forecast.refined(norms, steps=300, peak_value=0.1, optimizer=optimizer)
    values = lr(np.arange(300))
    assert values[0] < 0.05
    assert 10 < np.argmax(values) < 60
    assert lr(300) == 0


def test_a_picture_says_which_schedule_to_run(fitted):
    plan = fitted.best(lambda n: Constant(1e-3).cooldown(n, at=500 - n), steps=500, n=(5, 450))
    curves = {"constant": LAW(RUNS[0], steps=500), "other": (np.arange(99, 500, 100), np.ones(5))}
    named = {"constant": RUNS[0], "cosine": RUNS[2], "planned": plan}
    ax = plots.forecast(fitted, named, curves=curves)
    texts = [entry.get_text() for entry in ax.get_legend().get_texts()]
    assert texts == sorted(texts)  # each begins with the loss
    assert texts[0].split()[1] == "planned"
    assert ax.get_title(loc="left").startswith("lowest: planned, ")
    widths = {line.get_label().split()[-1]: line.get_linewidth() for line in ax.get_lines()}
    assert max(widths, key=lambda name: widths[name]) == "planned"
    plots.forecast(LAW, {"constant": RUNS[0]}, steps=50, ax=ax)  # no interval
    with pytest.raises(ValueError, match=r"plots\.forecast.*steps"):
        plots.forecast(LAW, {"constant": RUNS[0]})
    with pytest.raises(TypeError, match=r"plots\.forecast.*schedules"):
        plots.forecast(fitted, {})
    plots.plt.close("all")


BAD = {  # of the curves of the first run and of the last
    "one": (lambda A, C: {RUNS[0]: A}, "two curves at least"),
    "no drop": (lambda A, C: {RUNS[0]: A, Constant(5e-4): A}, "with a drop of the rate"),
    "the same": (lambda A, C: [(RUNS[2], C), (RUNS[2], C)], "of different schedules"),
    "NaN": (
        lambda A, C: {RUNS[0]: A, RUNS[2]: C.at[7].set(jnp.nan)},
        r"Cosine.*finite, got 'nan at place 7'",
    ),
    "longer": (lambda A, C: {RUNS[0]: A, RUNS[2]: np.append(C, C)}, "Cosine.*500 steps.*got 1000"),
    "shorter": (lambda A, C: {RUNS[0]: A, RUNS[2]: C[:300]}, "Cosine.*500 steps.*got 300"),
    "pair": (lambda A, C: {RUNS[0]: A, RUNS[2]: (np.arange(9), C)}, "as many as steps, 9"),
    "falling steps": (
        lambda A, C: {RUNS[0]: A, RUNS[2]: (np.arange(500)[::-1], C)},
        "whole, >= 0 and rise",
    ),
    "negative": (lambda A, C: {RUNS[0]: A - 3, RUNS[2]: C}, "positive: the fit"),
    "text": (lambda A, C: {RUNS[0]: A, RUNS[2]: "abc"}, r"Cosine.*numbers \[steps\], got 'abc'"),
    "complex": (lambda A, C: {RUNS[0]: A, RUNS[2]: C + 0j}, r"Cosine.*numbers \[steps\]"),
    "steps beyond an int32": (
        lambda A, C: {RUNS[0]: A, RUNS[2]: (np.arange(500) * 1e17, C)},
        "rise, to 2147483646 at most",
    ),
    "few": (lambda A, C: {RUNS[0]: A, RUNS[2]: (np.arange(400, 405), C[400:405])}, "8 at least"),
}


@pytest.fixture(scope="module")
def ends():
    return [LAW(lr, steps=500) for lr in (RUNS[0], RUNS[2])]


@pytest.mark.parametrize("name", BAD)
def test_a_fit_refuses_what_cannot_be_fitted_by_name(name, ends):
    curves, message = BAD[name]
    given = curves(*ends)
    with pytest.raises(ValueError, match=message):
        forecast.fit(given)


def test_other_wrong_arguments_are_refused_by_name(fitted, ends):
    A, C = ends
    with pytest.raises(TypeError, match=r"curves.*dict"):
        forecast.fit(3)
    with pytest.raises(ValueError, match=r"each.*interval"):
        forecast.fit({RUNS[0]: A, RUNS[2]: C}, each="intervall")
    with pytest.raises(TypeError, match="prior"):
        forecast.fit({RUNS[0]: A, RUNS[2]: C}, prior=True)
    with pytest.raises(ValueError, match=r"A.*positive"):
        replace(LAW, A=-1.0)
    with pytest.raises(ValueError, match="steps"):
        LAW(RUNS[0])
    with pytest.raises(TypeError, match="schedule"):
        LAW("x", steps=5)
    with pytest.raises(ValueError, match=r"schedule.*steps=4"):
        LAW(np.ones(3), steps=4)
    with pytest.raises(ValueError, match=r"interval.*evidence"):
        LAW.interval(RUNS[0], steps=10)
    with pytest.raises(ValueError, match=r"extrapolate.*evidence"):
        LAW.extrapolate(steps=100)

    def shape(peak):
        return Constant(peak).cooldown(100, at=400)

    with pytest.raises(ValueError, match=r"peak.*low < high"):
        LAW.best(shape, steps=500, peak=(1e-3, 1e-4))
    with pytest.raises(ValueError, match="did you mean 'peak'"):
        LAW.best(shape, steps=500, peek=(1e-4, 1e-3))
    with pytest.raises(ValueError, match="at least one"):
        LAW.best(shape, steps=500)
    with pytest.raises(ValueError, match="one of the curves"):
        fitted.best(shape, steps=500, peak=(5e-3, 1e-2))
    for norms in ([1.0, np.nan], ["a", "b"], [[1.0, 2.0], [3.0]], np.ones(3) + 0j):
        with pytest.raises(ValueError, match="gradient_norms"):
            forecast.refined(norms, steps=10, peak_value=0.1)
    with pytest.raises(ValueError, match=r"interval: `level`.*a number"):
        fitted.interval(RUNS[0], steps=10, level=np.array([0.5, 0.9]))
    with pytest.raises(ValueError, match=r"Prior: `deviations`.*three"):
        forecast.Prior(deviations=1.0)
    with pytest.raises(ValueError, match="gradient_norms"):
        forecast.bound(Constant(0.1), steps=10, gradient_norms=np.ones(9))
    with pytest.raises(ValueError, match="distance"):
        forecast.bound(Constant(0.1), steps=10, distance=0.0)
