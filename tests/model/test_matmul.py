import pytest
import torch

from gptstar.model import matmul as module
from gptstar.model.matmul import matmul, one_dnn_suits


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
def test_products_are_equal_but_for_rounding(monkeypatch):
    monkeypatch.setattr(module, "one_dnn_suits", lambda: True)
    torch.manual_seed(0)
    a, b = torch.randn(50, 40), torch.randn(40, 70)
    for left in (a, a.t().contiguous().t(), torch.randn(50, 80)[:, ::2], a[:1], a[:0]):
        for right in (b, b.t().contiguous().t(), torch.randn(40, 140)[:, ::2], b[:, :1]):
            torch.testing.assert_close(matmul(left, right), left @ right)


def test_other_numbers_go_the_usual_way(monkeypatch):
    monkeypatch.setattr(module, "one_dnn_suits", lambda: True)
    for dtype in (torch.float64, torch.bfloat16):
        a, b = torch.randn(5, 4, dtype=dtype), torch.randn(4, 3, dtype=dtype)
        assert torch.equal(matmul(a, b), a @ b)


def test_the_choice_is_by_the_processor():
    assert one_dnn_suits() in (True, False)
