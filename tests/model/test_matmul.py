import pytest
import torch

from gptstar.model import matmul as module
from gptstar.model.matmul import fast_gradients, linear, matmul, one_dnn_suits
from gptstar.model.transformer import GPT
from support import tiny_model


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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
@pytest.mark.parametrize("shape", [(2, 5, 40), (7, 40), (1, 40)])
@pytest.mark.parametrize("width", [70, 20])
def test_gradients_are_equal_but_for_rounding(monkeypatch, shape, width):
    monkeypatch.setattr(module, "one_dnn_suits", lambda: True)
    torch.manual_seed(0)
    tensors = [torch.randn(s, requires_grad=True) for s in (shape, (width, 40), (width,))]
    grad = torch.randn(*shape[:-1], width)
    expected = torch.autograd.grad(torch.nn.functional.linear(*tensors), tensors, grad)
    with fast_gradients():
        out = linear(*tensors)
        assert "_Linear" in type(out.grad_fn).__name__
        for found, wanted in zip(torch.autograd.grad(out, tensors, grad), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        x, weight, bias = tensors
        (alone,) = torch.autograd.grad(linear(x, weight.detach(), bias.detach()), [x], grad)  # frozen
        torch.testing.assert_close(alone, expected[0])
    assert "_Linear" not in type(linear(*tensors).grad_fn).__name__


@pytest.mark.parametrize("recomputed", [0, 2])
def test_a_model_trains_alike_through_either_library(monkeypatch, recomputed):
    monkeypatch.setattr(module, "one_dnn_suits", torch.backends.mkldnn.is_available)
    torch.manual_seed(0)
    model = GPT(tiny_model(adapter_width=4))
    model.recomputed = recomputed
    tokens = torch.randint(0, 300, (2, 20))
    model(tokens, tokens).backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    with fast_gradients():
        model(tokens, tokens).backward()
    for found, wanted in zip((p.grad for p in model.parameters()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
