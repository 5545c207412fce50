"""Matrices in 8 bits: how far from the exact product, and that a row's result is its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gptstar.quantization.int8 import Int8Matrix, int_mm_is_exact, quantization_scale


def matrix(w):
    made = Int8Matrix(*w.shape)
    made.set_rows(0, w)
    return made


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99), st.floats(1e-6, 1e6))
def test_each_number_is_off_by_half_a_step_at_most(n_row, n_column, seed, size):
    w = torch.randn(n_row, n_column, generator=torch.Generator().manual_seed(seed)) * size
    back = matrix(w).dense(torch.float64)
    step = w.double().abs().amax(-1, keepdim=True) / 127
    assert ((back - w.double()).abs() <= step * (0.5 + 1e-4)).all()


def test_products_are_those_of_the_rounded_numbers():
    torch.manual_seed(0)
    w, x = torch.randn(50, 70), torch.randn(3, 4, 70)
    made = matrix(w)
    scale = quantization_scale(x.view(-1, 70)).view(3, 4, 1)
    rounded = (x / scale).round() * scale
    expected = rounded.double() @ made.dense(torch.float64).T
    torch.testing.assert_close(made(x).double(), expected, rtol=1e-5, atol=1e-4)
    exact = x @ w.T
    assert (made(x) - exact).norm() < 0.02 * exact.norm()


def test_whether_products_are_exact_is_asked_of_the_processor_wherever_the_model_is_built():
    expected = int_mm_is_exact()
    int_mm_is_exact.cache_clear()
    with torch.device("meta"):
        assert int_mm_is_exact() == expected


def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    made, x = matrix(torch.randn(64, 96)), torch.randn(33, 96)
    x[7] *= 1000
    together = made(x)
    assert all(torch.equal(made(x[i : i + 1])[0], together[i]) for i in range(33))


def test_zeros_stay_zeros():
    made = matrix(torch.zeros(3, 8))
    assert torch.equal(made(torch.randn(2, 8)), torch.zeros(2, 3))
    assert torch.equal(matrix(torch.randn(3, 8))(torch.zeros(2, 8)), torch.zeros(2, 3))


def test_without_exact_integer_products_the_weights_alone_are_rounded():
    torch.manual_seed(0)
    made, x = matrix(torch.randn(20, 30)), torch.randn(4, 30)
    made.integers = False
    torch.testing.assert_close(made(x), F.linear(x, made.dense(torch.float32)))


def test_rows_are_looked_up():
    torch.manual_seed(0)
    made = matrix(torch.randn(20, 30))
    index = torch.tensor([[3, 3], [0, 19]])
    assert torch.equal(made.take(index, torch.float32), made.dense(torch.float32)[index])
    assert made.take(index, torch.bfloat16).dtype == torch.bfloat16


def test_rows_may_come_in_pieces():
    w = torch.randn(20, 30)
    made = Int8Matrix(20, 30)
    made.set_rows(12, w[12:])
    made.set_rows(0, w[:12])
    assert torch.equal(made.codes, matrix(w).codes)


def test_this_processor_has_been_asked():
    assert int_mm_is_exact() in (True, False)


@pytest.mark.gpu
def test_on_a_gpu_the_weights_alone_are_rounded():
    torch.manual_seed(0)
    made, x = matrix(torch.randn(64, 96)).cuda(), torch.randn(5, 96, device="cuda")
    torch.testing.assert_close(made(x), x @ made.dense(torch.float32).T, rtol=1e-2, atol=1e-1)
