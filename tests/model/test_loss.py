import pytest
import torch
import torch.nn.functional as F

from gptstar.model import loss as loss_module
from gptstar.model import matmul as matmul_module
from gptstar.model.loss import linear_cross_entropy


@pytest.mark.parametrize("chunk", [7, 50, 10_000])
def test_equals_cross_entropy_in_float64(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk * 31)
    torch.manual_seed(0)
    hidden = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 31, (50,))
    ours, reference = linear_cross_entropy(hidden, weight, target), F.cross_entropy(hidden @ weight.T, target)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)),
        torch.autograd.grad(3 * reference, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, torch.tensor([0, 8, 3, 3, 1])), (hidden, weight)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_follows_autocast_and_keeps_small_gradients_in_fp16(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(4096, 16, requires_grad=True)
    weight = (0.02 * torch.randn(512, 16)).requires_grad_()
    target = torch.randint(0, 512, (4096,))
    with torch.autocast("cpu", dtype):
        ours = linear_cross_entropy(hidden, weight, target)
    reference = F.cross_entropy(hidden @ weight.T, target)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference, rtol=2e-3, atol=2e-3)
    got, expected = torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(reference, (hidden, weight))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 0.02


def test_without_gradients_nothing_is_computed_for_them(monkeypatch):
    weight = torch.nn.Parameter(torch.randn(5, 3))
    monkeypatch.setattr(loss_module, "_plus_product", None)  # what gathers a gradient
    with torch.no_grad():
        assert linear_cross_entropy(torch.randn(4, 3), weight, torch.tensor([0, 1, 2, 3])).grad_fn is None
    with pytest.raises(TypeError):
        linear_cross_entropy(torch.randn(4, 3), weight, torch.tensor([0, 1, 2, 3]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
@pytest.mark.parametrize("chunk", [7, 10_000])
def test_is_the_same_through_one_dnn_but_for_rounding(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk * 31)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    target = torch.randint(0, 31, (50,))
    found = []
    for suits in (False, True):
        monkeypatch.setattr(matmul_module, "one_dnn_suits", lambda suits=suits: suits)
        loss = linear_cross_entropy(hidden, weight, target)
        found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_target_whose_probability_vanishes_has_a_finite_loss():
    hidden, weight = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    assert loss.item() == 2000
    loss.backward()
    assert hidden.grad is not None and hidden.grad.item() == 2


def test_padding_the_vocabulary_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 5), (11, 5), (11,)))
    target = torch.tensor([0, 10, 3, 3, 7, 9])
    results = []
    for missing in (0, 5):
        monkeypatch.setattr(loss_module, "_missing_rows", lambda _, missing=missing: missing)
        value = linear_cross_entropy(hidden, weight, target, bias, softcap=3.0, n_valid=11)
        results.append([value, *torch.autograd.grad(value, (hidden, weight, bias))])
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("bias", [False, True])
def test_targets_below_zero_do_not_count(bias):
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    row = torch.randn(11, dtype=torch.float64, requires_grad=True) if bias else None
    target = torch.tensor([3, -100, 0, 10, -100, 5, -100])
    found = []
    for loss in (
        linear_cross_entropy(hidden, weight, target, row),
        F.cross_entropy(F.linear(hidden, weight, row), target, ignore_index=-100),
    ):
        leaves = [x for x in (hidden, weight, row) if x is not None]
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert (found[0][1][target < 0] == 0).all()
    assert linear_cross_entropy(hidden, weight, torch.full((7,), -100)).item() == 0
