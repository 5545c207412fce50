import pytest
import torch

from gptstar.model.attention import (
    KERNELS,
    Attention,
    Sight,
    dense_attention,
    make_sight,
    pick_kernel,
    visible,
)
from gptstar.model.block import key_value_cache
from gptstar.model.cache import KeyValueCache
from gptstar.model.positions import SCHEMES
from support import tiny_model


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("d_head", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("position", ["alibi", "relative", "none"])
@pytest.mark.parametrize(("n_query", "n_key", "window"), [(17, 17, 0), (17, 17, 5), (1, 9, 0), (1, 9, 4), (4, 9, 0)])
@pytest.mark.parametrize("n_kv_head", [6, 2, 1])
def test_every_kernel_equals_a_loop_in_float64_forward_and_backward(
    kernel, d_head, position, n_query, n_key, window, n_kv_head
):
    torch.manual_seed(0)
    q = torch.randn(2, 6, n_query, d_head, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, n_kv_head, n_key, d_head, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scheme = SCHEMES[position](tiny_model(n_head=6)).double()
    for parameter in scheme.parameters():
        torch.nn.init.normal_(parameter)
    sight = look(scheme, window, n_key - n_query, n_query)
    bias = None if sight.bias is None else sight.bias.detach()
    expected = attention_by_loop(
        q, k, v, scheme.score_bias(torch.arange(n_key - n_query, n_key), torch.arange(n_key), q.dtype), window, 0.3
    )
    actual = KERNELS[kernel](q, k, v, bias, 0.3, 0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, (q, k, v), seed), torch.autograd.grad(expected, (q, k, v), seed), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def look(scheme, window, n_before, n_query, device="cpu", dtype=torch.float64) -> Sight:
    slot = torch.arange(n_before, n_before + n_query, device=device)
    return make_sight(scheme, window, slot, n_before + n_query, None, dtype)


def attention_by_loop(q, k, v, bias, window, scale, softcap=0.0):
    """One query and head at a time, only the keys it may see."""
    heads = []
    offset, group = k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    for h in range(q.shape[1]):
        rows = []
        for t in range(q.shape[2]):
            seen = slice(max(0, offset + t + 1 - window) if window else 0, offset + t + 1)
            scores = torch.einsum("bd,bsd->bs", q[:, h, t], k[:, h // group, seen]) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[h, t, seen].detach()
            rows.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, h // group, seen]))
        heads.append(torch.stack(rows, 1))
    return torch.stack(heads, 1)


def test_a_soft_cap_bounds_the_scores_before_the_bias():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 6, 9, 8, dtype=torch.float64)
    scheme = SCHEMES["alibi"](tiny_model(n_head=6))
    sight = look(scheme, 0, 0, 9)
    expected = attention_by_loop(
        q, k, v, scheme.score_bias(torch.arange(9), torch.arange(9), q.dtype), 0, 2.0, softcap=1.5
    )
    torch.testing.assert_close(dense_attention(q, k, v, sight.bias, 2.0, 1.5), expected, rtol=1e-12, atol=1e-12)
    assert pick_kernel(tiny_model(score_softcap=1.5)) == "dense" and pick_kernel(tiny_model()) == "sdpa"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_head", [64, 128, 192])
def test_kernels_on_a_gpu_equal_dense_float64(kernel, dtype, d_head):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 128, d_head, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    bias = look(SCHEMES["alibi"](tiny_model(n_head=3)), 0, 0, 128, q.device, dtype).bias
    expected = dense_attention(q.double(), k.double(), v.double(), bias.double(), d_head**-0.5, 0.0)
    actual = KERNELS[kernel](q, k, v, bias, d_head**-0.5, 0.0)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    seed = torch.randn_like(actual)
    for a, b in zip(
        torch.autograd.grad(actual, (q, k, v), seed),
        torch.autograd.grad(expected, (q, k, v), seed.double()),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b.double(), rtol=5 * tolerance, atol=5 * tolerance)


def test_the_mask_aligns_queries_to_the_last_keys_and_windows_count_the_query():
    assert visible(torch.tensor([2, 3]), torch.arange(4), 0).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(torch.arange(3), torch.arange(3), 2).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, True, True],
    ]


def test_a_window_as_long_as_the_sequence_costs_no_mask():
    scheme = SCHEMES["none"](tiny_model())
    assert look(scheme, 8, 0, 7).bias is None
    assert look(scheme, 7, 0, 8).bias is not None


def test_a_full_cache_says_so():
    config = tiny_model()
    attention = Attention(config, 0)
    cache = KeyValueCache(key_value_cache(config), 1, 1, 4, torch.device("cpu"), torch.float32)
    sight = look(SCHEMES["none"](config), 0, 0, 5)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        attention(torch.zeros(1, 5, config.d_model), sight, cache)
