import pytest
import torch

from gptstar.model.attention import KERNELS, Attention, causal_mask, dense_attention, masked_bias
from gptstar.model.cache import KeyValueCache
from gptstar.model.positions import SCHEMES
from support import tiny_model


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("d_head", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("position", ["alibi", "none"])
@pytest.mark.parametrize(("n_query", "n_key"), [(17, 17), (1, 9), (4, 9)])
def test_every_kernel_equals_a_loop_in_float64_forward_and_backward(kernel, d_head, position, n_query, n_key):
    torch.manual_seed(0)
    q = torch.randn(2, 3, n_query, d_head, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, n_key, d_head, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scheme = SCHEMES[position](tiny_model(n_head=3))
    bias = masked_bias(scheme.score_bias(n_query, n_key, q.device, q.dtype), n_query, n_key)
    expected = attention_by_loop(q, k, v, bias)
    actual = KERNELS[kernel](q, k, v, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, (q, k, v), seed), torch.autograd.grad(expected, (q, k, v), seed), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def attention_by_loop(q, k, v, bias):
    """One query at a time, only the keys it may see."""
    rows = []
    offset = k.shape[2] - q.shape[2]
    for t in range(q.shape[2]):
        seen = offset + t + 1
        scores = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, :seen]) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias[None, :, t, :seen]
        rows.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v[:, :, :seen]))
    return torch.stack(rows, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_head", [64, 128, 192])
def test_kernels_on_a_gpu_equal_dense_float64(kernel, dtype, d_head):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 128, d_head, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    bias = masked_bias(SCHEMES["alibi"](tiny_model(n_head=3)).cuda().score_bias(128, 128, q.device, dtype), 128, 128)
    expected = dense_attention(q.double(), k.double(), v.double(), bias.double())
    actual = KERNELS[kernel](q, k, v, bias)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    seed = torch.randn_like(actual)
    for a, b in zip(
        torch.autograd.grad(actual, (q, k, v), seed),
        torch.autograd.grad(expected, (q, k, v), seed.double()),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b.double(), rtol=5 * tolerance, atol=5 * tolerance)


def test_causal_mask_aligns_queries_to_the_last_keys():
    assert causal_mask(2, 4, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]


def test_a_full_cache_says_so():
    config = tiny_model()
    attention, cache = Attention(config, 0), KeyValueCache(config, 1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        attention(torch.zeros(1, 5, config.d_model), None, cache)
