"""Dunnett's distribution against Student's, scipy's own (which integrates by chance) and Dunnett's printed tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gptstar.lab.statistics import dunnett
from gptstar.lab.statistics.dunnett import critical, exceedance, shares


@pytest.mark.parametrize(
    ("variants", "df", "expected"),
    # Dunnett, Biometrics 20 (1964), table II, two-sided, 5%: equally many of each
    [(1, 5, 2.57), (2, 5, 3.03), (3, 8, 2.88), (9, 10, 3.24), (3, 20, 2.54), (4, 60, 2.51)],
)
def test_critical_values_are_the_printed_ones(variants, df, expected):
    assert critical(shares([4] * variants, 4), df) == pytest.approx(expected, abs=0.0051)


def test_one_variant_is_students_t():
    assert critical(shares([3], 5), 6) == pytest.approx(stats.t.ppf(0.975, 6), rel=1e-12)
    assert exceedance(-2.5, shares([3], 5), 6) == pytest.approx(2 * stats.t.sf(2.5, 6), rel=1e-12)


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (3, 2, 6, 4)])
def test_p_values_are_those_of_scipy(sizes):
    rng = np.random.default_rng(1)
    baseline, *variants = (rng.normal(0.3 * i, 1, n) for i, n in enumerate(sizes))
    theirs = stats.dunnett(*variants, control=baseline, rng=rng)
    design = shares([len(v) for v in variants], len(baseline))
    ours = [exceedance(t, design, sum(sizes) - len(sizes)) for t in theirs.statistic]
    np.testing.assert_allclose(ours, theirs.pvalue, atol=2e-3)  # theirs are accurate to about 1e-3
    bounds = theirs.confidence_interval(0.95)
    pooled = np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in (baseline, *variants)) / (sum(sizes) - len(sizes)))
    half = [
        critical(design, sum(sizes) - len(sizes)) * pooled * np.sqrt(1 / len(v) + 1 / len(baseline)) for v in variants
    ]
    np.testing.assert_allclose(half, (bounds.high - bounds.low) / 2, rtol=5e-3)


@pytest.mark.parametrize(
    "design", [shares([3, 3, 3], 3), shares([1, 5, 9], 2), shares([20] * 8, 1), shares([5] * 12, 5)]
)
@pytest.mark.parametrize("df", [1, 12])
def test_more_nodes_change_nothing(design, df, monkeypatch):
    ts = [0.0, 0.5, 2.0, 4.0, 30.0]
    coarse = [exceedance(t, design, df) for t in ts]
    monkeypatch.setattr(dunnett, "Y_NODES", 150)
    monkeypatch.setattr(dunnett, "S_NODES", 200)
    dunnett._nodes.cache_clear()
    fine = [exceedance(t, design, df) for t in ts]
    dunnett._nodes.cache_clear()
    np.testing.assert_allclose(coarse, fine, atol=2e-5)
    assert coarse[0] == pytest.approx(1) and coarse == sorted(coarse, reverse=True)


def test_unequal_shares_by_chance():
    rng = np.random.default_rng(2)
    sizes, df, t, n = (2, 6, 3), 4, 2.4, 200_000
    design = shares(sizes, 4)
    means = [rng.normal(0, 1 / np.sqrt(size), n) for size in sizes]
    baseline, s = rng.normal(0, 0.5, n), np.sqrt(rng.chisquare(df, n) / df)
    largest = np.max(
        [abs(m - baseline) / s / np.sqrt(1 / k + 1 / 4) for m, k in zip(means, sizes, strict=True)], axis=0
    )
    assert exceedance(t, design, df) == pytest.approx((largest > t).mean(), abs=4 * np.sqrt(0.1 * 0.9 / n))
