import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.errors import UserError
from gptstar.training.schedules import SCHEDULES, ScheduleConfig, learning_rate_factor


def test_the_published_recipe():
    """51,000 steps: 4,000 of warm-up from 0, cosine to a tenth, held for the last 10% of tokens."""
    config = ScheduleConfig(name="cosine", warmup_steps=4000, final_ratio=0.1, hold_share=0.1)

    def lr(step):
        return 6e-4 * learning_rate_factor(config, step, 51_000)

    assert lr(0) == pytest.approx(6e-4 / 4000)
    assert lr(1999) == pytest.approx(3e-4)
    assert lr(4000) == pytest.approx(6e-4)
    middle = (4000 + 45_900) // 2
    assert lr(middle) == pytest.approx((6e-4 + 6e-5) / 2, rel=1e-3)
    assert lr(45_900) == lr(50_999) == pytest.approx(6e-5)


def test_warmup_stable_decay():
    config = ScheduleConfig(name="wsd", warmup_steps=10, final_ratio=0.0, decay_share=0.2)
    factors = [learning_rate_factor(config, step, 100) for step in range(100)]
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5) and factors[99] == pytest.approx(0.05)


@pytest.mark.parametrize(("total", "n_warmup"), [(1, 0), (5, 2), (39, 19), (40, 20), (100_000, 20)])
def test_a_short_run_warms_up_for_half_of_its_steps_at_most(total, n_warmup):
    assert ScheduleConfig(warmup_steps=None).of(total) == ScheduleConfig(warmup_steps=n_warmup)
    assert ScheduleConfig(name="exponential", warmup_steps=None).of(total).warmup_steps == 0
    assert ScheduleConfig(warmup_steps=7).of(total).warmup_steps == 7


def test_constant():
    config = ScheduleConfig(name="constant", warmup_steps=2)
    assert [learning_rate_factor(config, step, 5) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@given(
    st.sampled_from(sorted(SCHEDULES.keys() - {"exponential"})),  # which only rises: test_lr_range.py
    st.integers(1, 500),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_schedule_rises_once_then_never_again(name, total, warmup, final, hold, decay):
    config = ScheduleConfig(name, int(warmup * total), final, hold, decay)
    factors = [learning_rate_factor(config, step, total) for step in range(total)]
    assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
    after = factors[config.warmup_steps :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert all(a < b for a, b in itertools.pairwise(factors[: config.warmup_steps]))


@pytest.mark.parametrize(
    "changes", [{"name": "cosin"}, {"warmup_steps": -1}, {"final_ratio": 1.5}, {"hold_share": -0.1}]
)
def test_impossible_settings_are_refused(changes):
    key, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=rf"schedule.{key}={value!r}"):
        ScheduleConfig(**changes)


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan"), None, "half"])
def test_what_is_no_factor_is_refused(monkeypatch, factor):
    monkeypatch.setitem(SCHEDULES, "mine", lambda config, step, total: factor)
    with pytest.raises(UserError, match=r"schedule\.name=mine gives .* at step 3 of 9: .* between 0 and 1"):
        learning_rate_factor(ScheduleConfig(name="mine"), 3, 9)


def test_a_factor_of_numpy_is_one(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "mine", lambda config, step, total: np.float32(0.5))
    factor = learning_rate_factor(ScheduleConfig(name="mine"), 3, 9)
    assert (factor, type(factor)) == (0.5, float)
