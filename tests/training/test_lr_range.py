import itertools
import math

import pytest

from gptstar.training.lr_range import RangeTest
from gptstar.training.schedules import ScheduleConfig, learning_rate_factor


def bowl(n=200, best=1e-2):
    """A test whose loss falls until `best` and then explodes."""
    test = RangeTest()
    for step in range(n):
        rate = learning_rate_factor(ScheduleConfig(name="exponential", first_ratio=1e-5), step, n)
        test.feed(rate, 8 - 0.5 * math.log10(rate / 1e-5) if rate < best else 6.5 + 100 * (rate - best))
        if test.exploded:
            break
    return test


def test_it_ends_where_the_loss_explodes_and_suggests_less():
    test = bowl()
    assert test.exploded and len(test.rates) < 200
    assert 8e-3 < test.best < 3e-2 and test.suggested == pytest.approx(test.best / 3, rel=0.05)
    assert "explodes at" in test.conclusion() and f"optimizer.lr={test.suggested:.1e}" in test.conclusion()


def test_a_loss_that_only_falls_asks_for_more():
    test = RangeTest()
    for step in range(50):
        test.feed(1e-5 * 1.1**step, 8 - step / 20)
    assert not test.exploded and "raise optimizer.lr" in test.conclusion()


def test_what_is_not_finite_ends_it():
    test = RangeTest()
    test.feed(1e-3, math.nan)
    assert test.exploded and "first step" in test.conclusion()
    test = bowl(100, best=1.0)
    test.feed(1.0, math.inf)
    assert test.exploded and all(map(math.isfinite, test.smoothed))


def test_the_plot_is_drawn(tmp_path):
    bowl().draw(tmp_path / "range.png", "title")
    assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")


def test_it_needs_no_warm_up():
    with pytest.raises(ValueError, match="warmup_steps=20 must be 0"):
        ScheduleConfig(name="exponential", warmup_steps=20)


def test_the_rate_grows_by_one_factor():
    config = ScheduleConfig(name="exponential", first_ratio=1e-3)
    factors = [learning_rate_factor(config, step, 31) for step in range(31)]
    assert factors[0] == pytest.approx(1e-3) and factors[-1] == 1
    ratios = [b / a for a, b in itertools.pairwise(factors)]
    assert max(ratios) == pytest.approx(min(ratios))
