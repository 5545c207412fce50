import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.generation.sampling import choose, keep_top_k, keep_top_p


def random_logits(seed: int, rows: int = 3, vocab: int = 40) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.integers(1, 60))
def test_top_k_is_transformers(seed, k):
    from transformers.generation.logits_process import TopKLogitsWarper

    logits = random_logits(seed)
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_top_p_is_transformers(seed, p):
    from transformers.generation.logits_process import TopPLogitsWarper

    logits = random_logits(seed).double()
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p):
    logits = random_logits(seed).double()
    probability = logits.softmax(-1)
    kept = keep_top_p(logits, p).isfinite()
    for row, keep in zip(probability, kept, strict=True):
        inside = row[keep]
        assert inside.sum() >= p - 1e-12
        assert inside.sum() - inside.min() < p + 1e-12
        assert keep.all() or inside.min() >= row[~keep].max()


def test_sampled_frequencies_are_the_tempered_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(30_000, 3)
    chosen = choose(logits, 2.0, None, None, torch.Generator().manual_seed(0))
    frequency = torch.bincount(chosen.flatten(), minlength=3) / len(chosen)
    assert frequency.tolist() == pytest.approx((logits[0] / 2).softmax(-1).tolist(), abs=0.01)


def test_temperature_zero_is_greedy():
    logits = random_logits(0)
    assert torch.equal(choose(logits, 0.0, None, None, torch.Generator()), logits.argmax(-1, keepdim=True))
