"""The faster library gives the same products, and only where it is asked to."""

import pytest
import torch
import torch.nn.functional as F

from gptstar.cpu import fast_linear as module
from gptstar.cpu.fast_linear import fast_linear
from gptstar.model import matmul


@pytest.fixture
def through_one_dnn(monkeypatch):
    monkeypatch.setattr(matmul, "one_dnn_suits", lambda: True)
    for name in ("takes", "takes_pieces"):  # test_matvec.py has them
        monkeypatch.setattr(module.matvec, name, lambda *_: False)
    called = []
    plain = module.one_dnn_linear
    monkeypatch.setattr(module, "one_dnn_linear", lambda *a, **k: called.append(a[0].shape) or plain(*a, **k))
    return called


@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (1, 1, 40), (0, 40), (40,)])
def test_products_are_equal_but_for_rounding(shape, through_one_dnn):
    torch.manual_seed(0)
    x, w, b = torch.randn(shape), torch.randn(70, 40), torch.randn(70)
    with torch.no_grad(), fast_linear(w.device, w.dtype):
        for bias in (None, b):
            torch.testing.assert_close(F.linear(x, w, bias), x @ w.t() + (0 if bias is None else bias))
        layer = torch.nn.Linear(40, 70)
        torch.testing.assert_close(layer(x), x @ layer.weight.t() + layer.bias)
        torch.testing.assert_close(F.linear(x[..., ::2], w[:, ::2]), x[..., ::2] @ w[:, ::2].t())  # not contiguous
    assert len(through_one_dnn) == (4 if len(shape) > 1 and x.numel() else 0)


def test_gradients_and_other_precisions_go_the_usual_way(through_one_dnn):
    x, w = torch.randn(5, 40), torch.randn(70, 40, requires_grad=True)
    with fast_linear(w.device, w.dtype):
        F.linear(x, w).sum().backward()
    assert w.grad is not None
    for dtype in (torch.float64, torch.bfloat16):
        with torch.no_grad(), fast_linear(w.device, dtype):
            assert F.linear(x.to(dtype), w.to(dtype)).dtype == dtype
    assert not through_one_dnn


@pytest.mark.parametrize(
    ("rows", "columns", "ours"), [(2, 768, True), (8, 768, True), (9, 40, False), (8, 4096, False)]
)
def test_a_few_rows_that_a_cache_holds_go_through_our_own_loop(rows, columns, ours, monkeypatch):
    if not module.matvec.available():
        pytest.skip("no C++ compiler with OpenMP")
    called = []
    product = torch.ops.gptstar.matvec_pieces
    monkeypatch.setattr(torch.ops.gptstar, "matvec_pieces", lambda *a: called.append(a) or product(*a))
    torch.manual_seed(0)
    x, w, b = torch.randn(rows, columns), torch.randn(70, columns), torch.randn(70)
    with torch.no_grad(), fast_linear(w.device, w.dtype):
        for bias in (None, b):
            expected = x @ w.t() + (0 if bias is None else bias)
            torch.testing.assert_close(F.linear(x, w, bias), expected, rtol=1e-4, atol=1e-3)
    assert len(called) == (2 if ours else 0)
