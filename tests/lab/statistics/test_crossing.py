"""Where curves cross, on laws of which it is known."""

from __future__ import annotations

import numpy as np
import pytest

from gptstar.lab.statistics.crossing import reach, to_reach
from gptstar.lab.study import Line

X = np.linspace(0.05, 1, 20)


def law(x: np.ndarray, speed: float = 1.0) -> np.ndarray:
    return 2 + 1.5 * (speed * x) ** -0.3


def lines(rng, n: int, speed: float, seed_sd: float, noise: float, clock: float = 0.0) -> list[Line]:
    """Seeds that end higher or lower, scatter at each validation, and run faster or slower."""
    made = []
    for i in range(n):
        y = law(X, speed) * np.exp(rng.normal(0, seed_sd)) + rng.normal(0, noise, len(X))
        made.append(Line(f"seed {i}", list(1e6 * X * np.exp(rng.normal(0, clock))), list(y)))
    return made


def test_reach_between_points_and_at_them():
    assert reach([1, 2, 4], [5, 4, 3], 4) == 2
    assert reach([1, 2, 4], [5, 4, 3], 3.5) == pytest.approx(np.sqrt(8))  # half way over log x
    assert reach([0, 2, 4], [5, 4, 3], 4.5) == pytest.approx(1)  # over x where it is 0
    assert reach([1, 2, 4], [5, 4, 3], 2.9) is None
    assert reach([1, 2, 4], [5, 4, 3], 6) == 1
    assert reach([], [], 6) is None


def test_reach_by_the_running_minimum():
    # It has been at 3 at x = 2, whatever it did after that; 3.5 lies on the way down from its lowest so far.
    assert reach([1, 2, 3, 4], [4, 3, 5, 2], 3) == 2
    assert reach([1, 2, 3, 4], [4, 5, 5, 2], 3) == pytest.approx(np.sqrt(12))
    assert reach([1, 2, 3, 4], [4, float("nan"), 3, 2], 3) == 3


def test_reach_meets_a_power_law_better_than_a_straight_line_would():
    x, targets = np.linspace(1 / 8, 1, 8), np.linspace(0.3, 0.97, 50)
    ours = [abs(reach(x, law(x), law(t)) / t - 1) for t in targets]
    straight = [abs(np.interp(-law(t), -law(x), x) / t - 1) for t in targets]
    assert max(ours) < 0.3 * max(straight) and max(ours) < 0.01


@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (3, 5)])
def test_equal_curves_are_exactly_one(seeds):
    many = [[Line(str(i), list(1e6 * X), list(law(X))) for i in range(n)] for n in seeds]
    found = to_reach(*many)
    assert found.value == 1.0
    if min(seeds) == 1:
        assert found.low is None and found.high is None
    else:
        assert found.low == found.high == 1.0


def test_a_faster_variant_and_one_that_never_gets_there():
    def one(speed: float) -> list[Line]:
        return [Line("a", list(1e6 * X), list(law(X, speed)))]

    assert to_reach(one(1.6), one(1.0)).value == pytest.approx(1 / 1.6, rel=2e-3)
    assert to_reach(one(0.9), one(1.0)) is None
    longer = [Line("a", list(2e6 * X), list(law(2 * X, 0.8)))]  # slower, but it trained for longer
    assert to_reach(longer, one(1.0)).value == pytest.approx(1.25, rel=2e-3)


def test_not_reached_by_all_seeds_has_no_upper_bound():
    variant = [Line(str(i), list(X), list(law(X, speed))) for i, speed in enumerate((1.4, 1.5, 0.9))]
    baseline = [Line(str(i), list(X), list(law(X) * scale)) for i, scale in enumerate((0.999, 1.0, 1.001))]
    found = to_reach(variant, baseline)
    assert found.high is None and found.low < found.value < 1


def test_seeds_of_unequal_lengths_meet_on_what_they_share():
    variant = [Line("a", list(X), list(law(X, 1.5))), Line("b", list(X[:-2]), list(law(X[:-2], 1.5)))]
    assert to_reach(variant, [Line("c", list(X), list(law(X)))]).value == pytest.approx(1 / 1.5, rel=2e-3)


def test_equal_losses_by_clocks_that_differ_are_about_one():
    seeds = [Line(str(i), list(X * clock), list(law(X))) for i, clock in enumerate((1.0, 0.97, 1.03))]
    found = to_reach(seeds, seeds)
    assert found.value == pytest.approx(1.0)
    assert 0.85 < found.low < 0.97 and 1.03 < found.high < 1.15


@pytest.mark.parametrize(
    ("speed", "n", "seed_sd", "noise", "clock"),
    [
        (1.5, 3, 0.003, 0.003, 0.0),
        (1.5, 5, 0.001, 0.01, 0.0),
        (1.2, 5, 0.003, 0.001, 0.03),
        (1.25, 5, 0.008, 0.0, 0.0),  # in some studies a seed does not get there
    ],
)
def test_intervals_hold_the_true_share(speed, n, seed_sd, noise, clock):
    rng, studies, covered = np.random.default_rng(7), 1000, 0
    for _ in range(studies):
        found = to_reach(lines(rng, n, speed, seed_sd, noise, clock), lines(rng, n, 1.0, seed_sd, noise, clock))
        covered += found.low <= 1 / speed and (found.high is None or 1 / speed <= found.high)
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies) < covered / studies < 0.985
