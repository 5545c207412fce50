"""Matrices in 4 bits: how far from the exact ones, and their products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.cpu import matvec
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


@given(
    n_tile=st.integers(1, 3),
    n_group=st.sampled_from([1, 3, 8, 15, 16, 17, 24, 40]),  # the loop takes 16 groups at a time
    n_row=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 20]),
    native=st.booleans(),
)
def test_products_are_those_of_the_rounded_numbers(n_tile, n_group, n_row, native):
    torch.manual_seed(n_tile * n_group)
    made, x = matrix(torch.randn(64 * n_tile, GROUP * n_group)), torch.randn(1, n_row, GROUP * n_group)
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(matvec, "available", lambda: False)
        found, meant = made(x), made.dense(torch.float32)
    assert found.dtype == torch.float32 and found.shape == (1, n_row, 64 * n_tile)
    expected = x.double() @ meant.double().T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert made(x.bfloat16()).dtype == torch.bfloat16


def test_a_row_does_not_depend_on_a_few_rows_beside_it():
    torch.manual_seed(0)
    made, x = matrix(torch.randn(64, 96)), torch.randn(19, 96)
    together = made(x)
    if matvec.available():
        few = made(x[: matvec.FEW])
        assert all(torch.equal(made(x[i : i + 1])[0], few[i]) for i in range(matvec.FEW))
    torch.testing.assert_close(together, torch.cat([made(row) for row in x.split(1)]), rtol=1e-5, atol=1e-5)


def test_codes_lie_as_they_are_said_to():
    torch.manual_seed(0)
    w = torch.randn(64, 96)
    made = matrix(w)
    scale, offset = made.pairs.float().unbind(-1)
    for row, column in ((0, 0), (3, 15), (5, 16), (63, 95), (7, 40)):
        group, place = divmod(column, GROUP)
        byte = int(made.codes[row, 16 * group + place % 16])
        code = byte & 15 if place < 16 else byte >> 4
        meant = (code - 8) * scale[row, group] + offset[row, group]
        torch.testing.assert_close(made.dense(torch.float32)[row, column], meant)
        assert abs(meant - w[row, column]) <= 0.75 * scale[row, group]


def test_rows_may_come_in_pieces():
    torch.manual_seed(0)
    w = torch.randn(128, 64)
    made = Int4Matrix(128, 64)
    made.set_rows(100, w[100:])
    made.set_rows(0, w[:100])
    assert torch.equal(made.codes, matrix(w).codes) and torch.equal(made.pairs, matrix(w).pairs)


def test_which_shapes_fit():
    assert Int4Matrix.fits(64, 32) and not Int4Matrix.fits(48, 32) and not Int4Matrix.fits(64, 40)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_matrix_of_the_cpu():
    torch.manual_seed(0)
    w = torch.randn(128, 1024)
    here, there = matrix(w), matrix(w, "cuda")
    x = torch.randn(3, 1024)
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=0.02, atol=0.5)
