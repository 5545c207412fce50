"""Our own product of a matrix and a vector against float64, and where it is used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gptstar.cpu import matvec, native
from gptstar.cpu.fast_linear import fast_linear
from gptstar.quantization.int8 import Int8Matrix

pytestmark = pytest.mark.skipif(not matvec.available(), reason="no C++ compiler with OpenMP")

SIZES = st.sampled_from([1, 2, 15, 16, 31, 32, 33, 64, 100, 768])


@given(rows=st.integers(1, 200), columns=SIZES, biased=st.booleans(), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_it_is_the_product(rows, columns, biased, dtype):
    torch.manual_seed(rows * columns)
    dtype = getattr(torch, dtype)
    x, w, b = (torch.randn(size).to(dtype) for size in ((1, 1, columns), (rows, columns), (rows,)))
    bias = b if biased else None
    assert matvec.takes(x, w, bias)
    found = torch.ops.gptstar.matvec(x, w, bias)
    wanted = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    assert found.dtype == dtype and found.shape == (1, 1, rows)
    torch.testing.assert_close(found.double(), wanted, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


# torch._int_mm is wrong for matrices of one column.
@given(rows=st.integers(1, 200), columns=SIZES.filter(lambda n: n > 1), extreme=st.booleans())
def test_int8_is_the_product_of_many_rows_to_the_last_bit(rows, columns, extreme):
    torch.manual_seed(rows * columns)
    matrix = Int8Matrix(rows, columns)
    matrix.set_rows(0, torch.randn(rows, columns))
    if extreme:
        matrix.codes.fill_(-127)
    x = torch.full((2, columns), -3.0) if extreme else torch.randn(2, columns)
    if not matrix.integers:
        pytest.skip("this processor multiplies int8 matrices through fp32")
    assert torch.equal(matrix(x)[:1], matrix(x[:1]))
    assert torch.equal(torch.ops.gptstar.matvec_int8(x[:1], matrix.codes, matrix.scale), matrix(x)[:1])


def test_a_number_that_is_none_is_not_lost():
    w, scale = torch.ones(70, 40, dtype=torch.int8), torch.ones(70)
    for broken in (torch.nan, torch.inf):
        x = torch.ones(1, 40)
        x[0, 7] = broken
        assert not torch.ops.gptstar.matvec(x, w.float()).isfinite().any()
        assert not torch.ops.gptstar.matvec_int8(x, w, scale).isfinite().any()
    assert torch.equal(torch.ops.gptstar.matvec_int8(torch.zeros(1, 40), w, scale), torch.zeros(1, 70))


def test_threads_share_a_large_matrix():
    torch.manual_seed(0)
    x, w = torch.randn(1, 300), torch.randn(1001, 300)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.testing.assert_close(torch.ops.gptstar.matvec(x, w), x @ w.t(), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_one_row_takes_it_and_nothing_else(monkeypatch):
    called, plain = [], matvec.takes
    monkeypatch.setattr(matvec, "takes", lambda *a: plain(*a) and not called.append(a[0].shape))
    w = torch.randn(70, 40)
    with torch.no_grad(), fast_linear(w.device, w.dtype):
        for x in (torch.randn(1, 40), torch.randn(1, 1, 40), torch.randn(40)):
            torch.testing.assert_close(F.linear(x, w), x @ w.t())
        assert len(called) == 3
        F.linear(torch.randn(2, 40), w)
        F.linear(torch.randn(1, 70), w.t())  # not contiguous
        F.linear(torch.randn(1, 80)[:, ::2], w)
        F.linear(torch.randn(1, 40).double(), w.double())
        with pytest.raises(RuntimeError):  # torch's own; nothing is read out of bounds
            F.linear(torch.randn(1, 20), w)
    with fast_linear(w.device, w.dtype):
        F.linear(torch.randn(1, 40), w.requires_grad_()).sum().backward()
    assert len(called) == 3 and w.grad is not None


def test_without_a_compiler_torch_does_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "four.cpp"
    source.write_text("int four() { return 4; }")
    assert native.load_operators(source)
    (made,) = (tmp_path / "cache" / "gptstar").iterdir()
    changed = made.stat().st_mtime_ns
    assert native.load_operators(source)
    assert made.stat().st_mtime_ns == changed  # not again
    made.unlink()  # what is loaded lies in its pages
    made.write_bytes(b"damaged by a power cut")
    read = []

    def load(path):
        read.append(path)
        if len(read) == 1:  # a library that this process has loaded already would not be read again
            raise OSError("file too short")

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "load_library", load)
        assert native.load_operators(source)
    assert len(read) == 2 and made.stat().st_size > 100
    source.write_text("this is not C++")
    assert not native.load_operators(source)
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    assert not native.load_operators(source)

    monkeypatch.setattr(matvec, "_load", lambda: False)
    x, w = torch.randn(1, 40), torch.randn(70, 40)
    with torch.no_grad(), fast_linear(w.device, w.dtype):
        torch.testing.assert_close(F.linear(x, w), x @ w.t())
    matrix = Int8Matrix(70, 40)
    matrix.set_rows(0, w)
    assert matrix(x).shape == (1, 70)


@given(
    cuts=st.lists(SIZES, min_size=1, max_size=3),
    other=SIZES,
    n_row=st.integers(1, matvec.FEW),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    side_by_side=st.booleans(),
)
def test_a_matrix_in_pieces(cuts, other, n_row, dtype, side_by_side):
    torch.manual_seed(sum(cuts) * other)
    whole = torch.randn(*((other, sum(cuts)) if side_by_side else (sum(cuts), other))).to(dtype)
    pieces = [piece.contiguous() for piece in whole.split(cuts, int(side_by_side))]
    x = torch.randn(1, n_row, whole.shape[1])
    assert matvec.takes_pieces(x, pieces)
    found = torch.ops.gptstar.matvec_pieces(x, pieces, side_by_side)
    expected = x.double() @ whole.double().t()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    for row in range(n_row):  # a row is the same among others, and that of the whole matrix in fp32
        alone = torch.ops.gptstar.matvec_pieces(x[:, row], pieces, side_by_side)
        assert torch.equal(alone, found[:, row])
        assert torch.equal(alone, torch.ops.gptstar.matvec(x[:, row], whole.float()))


def test_which_pieces_it_takes():
    x, w = torch.randn(2, 64), torch.randn(10, 64)
    assert matvec.takes_pieces(x, [w, w])
    assert not matvec.takes_pieces(x, [w, w.half()])
    assert not matvec.takes_pieces(x, [torch.randn(64, 10).t()])
    assert not matvec.takes_pieces(x, [w.double()])
    assert not matvec.takes_pieces(torch.randn(matvec.FEW + 1, 64), [w])
