import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.model.positions import ALiBi, LearnedPosition, NoPosition, _slopes, alibi_slopes
from support import tiny_model


def test_slopes_of_eight_heads():
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def test_slopes_of_twelve_heads_are_those_of_eight_and_every_second_of_sixteen():
    sixteen = [2 ** (-k / 2) for k in range(1, 17)]
    assert alibi_slopes(12) == [2.0**-k for k in range(1, 9)] + [sixteen[0], sixteen[2], sixteen[4], sixteen[6]]


@given(st.integers(1, 200))
def test_slopes_made_on_the_device_are_the_same(n_head):
    made = _slopes(n_head, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(made, torch.tensor(alibi_slopes(n_head), dtype=torch.float64), rtol=1e-14, atol=0)


@given(st.integers(1, 200))
def test_slopes_are_one_a_head_distinct_and_within_bounds(n_head):
    slopes = alibi_slopes(n_head)
    assert len(slopes) == n_head == len(set(slopes))
    assert all(2**-8 <= s < 1 for s in slopes)
    power = 2 ** math.floor(math.log2(n_head))
    assert slopes[:power] == alibi_slopes(power)


def test_alibi_bias_is_minus_slope_times_distance_for_the_last_queries():
    bias = ALiBi(tiny_model(n_head=3)).score_bias(torch.tensor([3, 4]), torch.arange(5), torch.float64)
    for head, slope in enumerate(alibi_slopes(3)):
        for row, i in enumerate((3, 4)):
            for j in range(5):
                assert bias[head, row, j].item() == pytest.approx(-slope * (i - j))


def test_alibi_in_a_bf16_model_still_tells_far_positions_apart():
    scheme = ALiBi(tiny_model(n_head=8)).to(torch.bfloat16)
    exact = scheme.score_bias(torch.tensor([1000]), torch.arange(1001), torch.float32)
    rounded = scheme.score_bias(torch.tensor([1000]), torch.arange(1001), torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert rounded[0, 0, -9:].tolist() == [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0]


def test_learned_positions_are_rows_of_the_table():
    config = tiny_model(position="learned", context=6)
    position = LearnedPosition(config)
    torch.nn.init.normal_(position.weight)
    x = torch.zeros(2, 2, config.d_model)
    assert torch.equal(position.embed(x, torch.tensor([3, 4]))[1], position.weight[3:5])
    assert torch.equal(position.embed(x, torch.tensor([[0, 1], [2, 3]]))[1], position.weight[2:4])


def test_no_position_changes_nothing():
    position, x = NoPosition(tiny_model()), torch.randn(1, 2, 4)
    assert position.embed(x, torch.arange(2)) is x
    assert position.turning(torch.arange(2), x.dtype) is None
    assert position.score_bias(torch.arange(2), torch.arange(2), x.dtype) is None
