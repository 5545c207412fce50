"""Matrices in 4 bits: how far from the exact ones, through torch's kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.quantization.int4 import GROUP, Int4Matrix


def matrix(w, device="cpu"):
    made = Int4Matrix(*w.shape).to(device)
    made.set_rows(0, w)
    return made


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_each_number_is_off_by_little_more_than_half_a_step(n_tile, n_group, seed, size):
    w = torch.randn(64 * n_tile, GROUP * n_group, generator=torch.Generator().manual_seed(seed)) * size
    back = matrix(w).dense(torch.float32)
    low, high = w.unflatten(-1, (-1, GROUP)).aminmax(dim=-1)
    step = ((high - low) / 15).repeat_interleave(GROUP, -1)
    assert ((back - w).abs() <= 0.75 * step).all()  # half a step, and scale and offset in bf16


def test_products_are_those_of_the_rounded_numbers():
    torch.manual_seed(0)
    w, x = torch.randn(128, 96), torch.randn(2, 3, 96)
    made = matrix(w)
    expected = x.bfloat16().float() @ made.dense(torch.float32).T
    assert made(x).dtype == torch.float32 and made(x).shape == (2, 3, 128)
    torch.testing.assert_close(made(x), expected, rtol=0.02, atol=0.1)  # the kernel's sums come out in bf16


def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    made, x = matrix(torch.randn(64, 96)), torch.randn(19, 96)
    together = made(x)
    assert all(torch.equal(made(x[i : i + 1])[0], together[i]) for i in range(19))


def test_rows_may_come_in_pieces():
    torch.manual_seed(0)
    w = torch.randn(128, 64)
    made = Int4Matrix(128, 64)
    made.set_rows(100, w[100:])
    assert not made.packed.numel()
    made.set_rows(0, w[:100])
    assert torch.equal(made.packed, matrix(w).packed) and not made.codes.numel()


def test_which_shapes_fit():
    assert Int4Matrix.fits(64, 32) and not Int4Matrix.fits(48, 32) and not Int4Matrix.fits(64, 40)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_matrix_of_the_cpu():
    torch.manual_seed(0)
    w = torch.randn(128, 1024)
    here, there = matrix(w), matrix(w, "cuda")
    x = torch.randn(3, 1024)
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=0.02, atol=0.5)
