"""Intervals that cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gptstar.errors import UserError
from gptstar.lab.statistics.intervals import band, interval, product, quotient, speed_ratio
from gptstar.lab.study import Interval, Line


def test_interval_is_students():
    values = [3.1, 3.4, 3.0, 3.2]
    got = interval(values)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (got.value, got.low, got.high) == pytest.approx((np.mean(values), *expected))


def test_one_value_has_no_bounds_and_none_is_refused():
    assert interval([3.1]) == Interval(3.1)
    with pytest.raises(UserError, match="name at least one run"):
        interval([])


def test_band_over_shared_points_is_an_interval_at_each():
    lines = [Line(f"seed {i}", [10, 20, 30], y) for i, y in enumerate(([3, 2, 1.5], [3.2, 2.1, 1.4], [3.1, 2.3, 1.45]))]
    curve = band(lines)
    assert curve.x == [10, 20, 30] and curve.lines == lines
    for i in range(3):
        one = interval([line.y[i] for line in lines])
        assert (curve.mean[i], curve.low[i], curve.high[i]) == pytest.approx((one.value, one.low, one.high))


def test_band_interpolates_on_the_overlap_only():
    curve = band([Line("a", [0, 2, 4, 6], [6, 4, 2, 0]), Line("b", [1, 5], [4, 0])])
    assert curve.x == [1, 5]
    assert curve.mean == pytest.approx([4.5, 0.5])
    longer = band([Line("a", [0, 2, 4, 6], [6, 4, 2, 0]), Line("b", [1, 3, 5, 7], [4, 2, 0, -2])])
    assert longer.x == [1, 2, 4, 6]
    assert longer.mean == pytest.approx([4.5, 3.5, 1.5, -0.5])


def test_band_of_one_seed_has_no_bounds():
    curve = band([Line("a", [1, 2], [3.0, 2.0])])
    assert (curve.x, curve.mean, curve.low, curve.high) == ([1, 2], [3.0, 2.0], None, None)


def test_curves_that_never_meet_have_no_mean():
    with pytest.raises(UserError, match="a, b have no x in common"):
        band([Line("a", [1, 2], [3, 2]), Line("b", [3, 4], [3, 2])])


def test_speed_is_compared_round_by_round():
    machine = np.array([1.0, 0.5, 2.0, 1.0])  # a drift that hits both alike
    got = speed_ratio((150 * machine).tolist(), (100 * machine).tolist())
    assert (got.value, got.low, got.high) == pytest.approx((1.5, 1.5, 1.5))
    ratios = [1.4, 1.5, 1.62]
    logs = interval(np.log(ratios).tolist())
    got = speed_ratio(ratios, [1, 1, 1])
    assert (got.value, got.low, got.high) == pytest.approx(tuple(np.exp([logs.value, logs.low, logs.high])))


def test_speed_of_one_round_has_no_bounds_and_rounds_must_pair():
    assert speed_ratio([150.0], [100.0]) == Interval(pytest.approx(1.5))
    with pytest.raises(UserError, match="2 rounds of the variant, 1 of the baseline"):
        speed_ratio([1.0, 2.0], [1.0])


def test_product_and_quotient_by_hand():
    a, b = Interval(2.0, 2 / 1.1, 2 * 1.2), Interval(3.0, 3 / 1.3, 3 * 1.1)
    got = product(a, b)
    assert got.value == pytest.approx(6)
    assert got.low == pytest.approx(6 / np.exp(np.hypot(np.log(1.1), np.log(1.3))))
    assert got.high == pytest.approx(6 * np.exp(np.hypot(np.log(1.2), np.log(1.1))))
    got = quotient(a, b)
    assert got.value == pytest.approx(2 / 3)
    assert got.low == pytest.approx(2 / 3 / np.exp(np.hypot(np.log(1.1), np.log(1.1))))
    assert got.high == pytest.approx(2 / 3 * np.exp(np.hypot(np.log(1.2), np.log(1.3))))


def test_an_exact_ratio_widens_nothing_and_a_missing_bound_stays_missing():
    a = Interval(2.0, 1.8, 2.4)
    exact = product(a, Interval(1.0, 1.0, 1.0))
    assert (exact.value, exact.low, exact.high) == pytest.approx((2.0, 1.8, 2.4))
    assert product(a, Interval(3.0)) == Interval(pytest.approx(6.0))
    half = quotient(Interval(2.0, 1.8), Interval(1.0, 1.0, 1.0))
    assert half == Interval(pytest.approx(2.0), pytest.approx(1.8), None)
    assert quotient(Interval(1.0, 1.0, 1.0), Interval(2.0, 1.8)) == Interval(
        pytest.approx(0.5), None, pytest.approx(1 / 1.8)
    )


def test_intervals_of_products_cover_the_truth():
    rng = np.random.default_rng(5)
    studies, covered = 1000, 0
    for _ in range(studies):
        parts = [
            speed_ratio((truth * np.exp(rng.normal(0, sd, n))).tolist(), [1.0] * n)
            for truth, sd, n in ((1.2, 0.02, 6), (1.1, 0.03, 5), (0.9, 0.01, 8))
        ]
        whole = quotient(product(*parts[:2]), parts[2])
        covered += whole.low <= 1.2 * 1.1 / 0.9 <= whole.high
    assert 0.94 < covered / studies < 0.99  # a little wide, as it says
