"""The faster library gives the same products, and only where it is asked to."""

import pytest
import torch
import torch.nn.functional as F

from gptstar import fast_linear as module
from gptstar.fast_linear import fast_linear
from gptstar.model import matmul


@pytest.fixture
def through_one_dnn(monkeypatch):
    monkeypatch.setattr(matmul, "one_dnn_suits", lambda: True)
    monkeypatch.setattr(module.matvec, "takes", lambda *_: False)  # test_matvec.py has it
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
