"""The scaling law on made-up ladders whose law is known."""

import numpy as np
import pytest

from gptstar.errors import UserError
from gptstar.lab import law as law_module
from gptstar.lab.law import DELTA, Fit, _objective, find_law, fit_law, refits
from gptstar.lab.reading.runs import HeldOut, Run

TRUE = dict(e=1.7, a=400.0, b=120.0, alpha=0.34, beta=0.28)
SIZES = (0.5e6, 0.72e6, 1.65e6, 2.58e6, 6.73e6)
BUDGETS = (0.3e6, 0.6e6, 1.2e6, 2.4e6)


def planted(n, d):
    return TRUE["e"] + TRUE["a"] / n ** TRUE["alpha"] + TRUE["b"] / d ** TRUE["beta"]


def ladder(spread: float, seed: int) -> list[Run]:
    """Named by their size: w0 to w4."""
    rng = np.random.default_rng(seed)
    return [
        Run(
            f"runs/{i}-{d}",
            f"run-{i}-{d}",
            {"model": {"vocab_size": 1000, "d_model": 96 * (i + 1), "position": "alibi"}},
            variant=f"w{i}",
            budget=int(d),
            final_loss=float(planted(n, d) * np.exp(spread * rng.standard_normal())),
            parameters=int(n),
        )
        for i, n in enumerate(SIZES)
        for d in BUDGETS
    ]


def arrays(runs: list[Run]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([getattr(run, key) for run in runs], float) for key in ("parameters", "budget", "final_loss"))


def test_a_law_without_noise_is_found_exactly():
    fit = fit_law(*arrays(ladder(0.0, 0)))
    assert fit.constants() == pytest.approx([TRUE[key] for key in ("e", "a", "b", "alpha", "beta")], rel=2e-3)


def test_an_outlier_counts_as_any_other_run():
    runs = ladder(0.0, 0)
    n, d, loss = arrays(runs)
    loss[7] *= 1.5
    fit = fit_law(n, d, loss)
    others = np.arange(len(n)) != 7
    assert np.abs(fit.log_loss(n, d) - np.log(planted(n, d)))[others].max() < 3e-3


def test_the_gradient_is_that_of_the_objective():
    rng = np.random.default_rng(0)
    x, y, target = rng.normal(size=(3, 9)) * [[1], [1], [0.1]]
    theta = np.array([0.2, -1.0, -0.5, 0.4, 0.3])
    theta[:3] -= 1
    target += law_module._log_loss(theta, x, y)[0] * (1 + DELTA * rng.normal(size=9))
    _, gradient = _objective(theta, x, y, target)
    step = 1e-7
    numeric = [
        (_objective(theta + h, x, y, target)[0] - _objective(theta - h, x, y, target)[0]) / (2 * step)
        for h in step * np.eye(5)
    ]
    assert gradient == pytest.approx(numeric, rel=1e-4)


def test_the_best_size_for_a_budget_is_the_lowest_on_its_line():
    fit = Fit(np.array([0.5, 0.3, 0.7, 0.34, 0.28]), (14.0, 13.5))
    n, d = fit.best(1e14)
    assert 6 * n * d == pytest.approx(1e14)
    around = n * np.geomspace(0.2, 5, 1001)
    losses = fit.log_loss(around, 1e14 / 6 / around)
    assert around[losses.argmin()] == pytest.approx(n, rel=5e-3)


def test_what_was_held_out_is_predicted_and_the_exponents_are_in_their_intervals():
    law = find_law(ladder(0.003, 1), ["w4"], draws=40)
    for interval, key in ((law.alpha, "alpha"), (law.beta, "beta"), (law.floor, "e")):
        assert interval.low < TRUE[key] < interval.high
    held_out = [point for point in law.points if point.held_out]
    assert [point.name for point in held_out] == ["w4"] * 4
    for point in held_out:
        assert point.predicted.low < point.loss < point.predicted.high
        assert abs(point.error) < 0.03 and point.predicted.high / point.predicted.low < 1.2
        assert law.loss(point.parameters, point.tokens) == pytest.approx(point.predicted.value, rel=1e-9)
    assert law.spread == pytest.approx(0.003, rel=0.6)
    largest = max(6 * point.parameters * point.tokens for point in law.points)
    assert [each.beyond for each in law.optima] == [False, False, True, True]
    assert law.optima[1].flops == pytest.approx(largest)


def coverage(ladders: int, draws: int) -> tuple[float, float]:
    """Share of held-out runs, and of both exponents, in their 95% intervals."""
    runs_in, exponents_in = [], []
    for seed in range(ladders):
        law = find_law(ladder(0.003, 100 + seed), ["w4"], draws=draws)
        runs_in += [p.predicted.low <= p.loss <= p.predicted.high for p in law.points if p.held_out]
        for interval, key in ((law.alpha, "alpha"), (law.beta, "beta")):
            exponents_in.append(interval.low <= TRUE[key] <= interval.high)
    return float(np.mean(runs_in)), float(np.mean(exponents_in))


@pytest.mark.slow
def test_intervals_hold_at_their_rate():
    runs_in, exponents_in = coverage(ladders=40, draws=60)
    assert runs_in > 0.85 and exponents_in > 0.85


def test_refits_differ_as_other_seeds_would():
    n, d, loss = arrays(ladder(0.003, 2))
    fit = fit_law(n, d, loss)
    drawn = refits(fit, n, d, loss, 25)
    values = np.array([[other.log_loss(n, d)] for other, _ in drawn]).std(0)
    assert 0.0005 < values.mean() < 0.004  # a fit of 20 runs is nearer to the law than a run
    again = refits(fit, n, d, loss, 25)
    assert [spread for _, spread in again] == [spread for _, spread in drawn]


def test_what_cannot_be_fitted_is_refused():
    runs = ladder(0.003, 0)
    with pytest.raises(UserError, match="8 runs with 2 sizes are too few for the 5 constants"):
        find_law(runs, ["w0", "w1", "w4"])
    few = [run for run in runs if run.budget in (300_000, 600_000)]
    with pytest.raises(UserError, match="10 runs with 2 budgets are too few"):
        find_law(few, [])
    with pytest.raises(UserError, match="hold_out=w9 is no finished run: choose of w0, w1, w2, w3, w4"):
        find_law(runs, ["w9"])


def test_runs_that_were_measured_differently_are_refused():
    runs = ladder(0.003, 0)
    object.__setattr__(runs[0], "tokenizer", "a")
    object.__setattr__(runs[1], "tokenizer", "b")
    with pytest.raises(UserError, match="2 different tokenizers"):
        find_law(runs, [])
    object.__setattr__(runs[1], "tokenizer", "a")
    object.__setattr__(runs[0], "held_out", HeldOut("x", 1, 1, 1, 256))
    object.__setattr__(runs[1], "held_out", HeldOut("x", 1, 1, 1, 128))
    with pytest.raises(UserError, match="2 different held-out texts"):
        find_law(runs, [])
