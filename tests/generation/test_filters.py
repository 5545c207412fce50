"""Each filter against transformers' warper, by itself and with a parameter of its own for every row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.generation.filters import (
    _by_buckets,
    _by_sorting,
    keep_eta,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    scale_by_temperature,
)

pytest.importorskip("transformers")
SEEDS, FRACTIONS = st.integers(0, 1000), st.floats(0.01, 0.99)
FILTERS = (
    (scale_by_temperature, [0.1, 1.0, 3.0]),
    (keep_top_k, [0, 1, 7, 100]),
    (keep_top_p, [0.01, 0.5, 0.9, 1.0]),
    (keep_min_p, [0.0, 0.05, 0.9]),
    (keep_typical, [0.05, 0.2, 0.95, 1.0]),
    (keep_eta, [0.0, 3e-4, 0.2]),
)


def random_logits(seed: int, rows: int = 3, vocab: int = 40) -> torch.Tensor:
    """Float64, so that both sides draw the same line; with some tokens forbidden already."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return logits.masked_fill(torch.rand(rows, vocab, generator=generator) < 0.2 * (seed % 2), -torch.inf)


def warped(name: str, logits: torch.Tensor, *arguments) -> torch.Tensor:
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*arguments)(None, logits)


@given(SEEDS, st.floats(0.1, 5))
def test_temperature_is_transformers(seed, temperature):
    logits = random_logits(seed)
    assert torch.equal(
        scale_by_temperature(logits, temperature), warped("TemperatureLogitsWarper", logits, temperature)
    )


@given(SEEDS, st.integers(1, 60))
def test_top_k_is_transformers(seed, k):
    logits = random_logits(seed).round(decimals=1)  # ties and all
    assert torch.equal(keep_top_k(logits, k), warped("TopKLogitsWarper", logits, k))


@given(SEEDS, FRACTIONS)
def test_top_p_is_transformers(seed, p):
    logits = random_logits(seed)
    assert torch.equal(keep_top_p(logits, p), warped("TopPLogitsWarper", logits, p))


@given(SEEDS, FRACTIONS)
def test_min_p_is_transformers(seed, p):
    logits = random_logits(seed)
    assert torch.equal(keep_min_p(logits, p), warped("MinPLogitsWarper", logits, p))


@given(SEEDS, FRACTIONS)
def test_typical_is_transformers(seed, tau):
    logits = random_logits(seed)
    assert torch.equal(keep_typical(logits, tau), warped("TypicalLogitsWarper", logits, tau))


@given(SEEDS, st.floats(1e-5, 0.9))
def test_eta_is_transformers(seed, epsilon):
    logits = random_logits(seed)
    assert torch.equal(keep_eta(logits, epsilon), warped("EtaLogitsWarper", logits, epsilon))


@given(SEEDS, FRACTIONS)
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p):
    logits = random_logits(seed)
    kept = keep_top_p(logits, p).isfinite()
    for row, keep in zip(logits.softmax(-1), kept, strict=True):
        inside = row[keep]
        assert inside.sum() >= p - 1e-12
        assert inside.sum() - inside.min() < p + 1e-12
        assert keep.all() or inside.min() >= row[~keep].max()


@pytest.mark.parametrize(("keep", "values"), FILTERS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_gets_what_it_gets_alone_and_neutral_changes_nothing(keep, values, dtype):
    logits = torch.cat([random_logits(seed, 2, 1009) for seed in (0, 1)]).to(dtype)
    for shift in range(4):
        row_values = [values[(row + shift) % len(values)] for row in range(4)]
        together = keep(logits, torch.tensor(row_values))
        assert together.dtype == dtype
        for row, value in enumerate(row_values):
            alone = keep(logits[row : row + 1], value if value in (0, 1) else torch.tensor([value]))
            assert torch.equal(alone, together[row : row + 1])
            assert together[row].isfinite().any()
            if value == (0 if keep in (keep_top_k, keep_min_p, keep_eta) else 1.0):
                assert torch.equal(alone, logits[row : row + 1])


@given(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=12), FRACTIONS)
def test_equal_logits_stay_or_go_together(values, p):
    logits = torch.tensor([values])
    for keep in (keep_top_k(logits, 2), keep_top_p(logits, p), keep_min_p(logits, p), keep_typical(logits, p)):
        for value in set(values):
            assert len(set(keep[logits == value].isfinite().tolist())) == 1


@given(SEEDS, st.floats(0.001, 0.999), st.sampled_from([0.01, 1.0, 30.0]))
def test_buckets_find_what_sorting_finds(seed, mass, spread):
    """Also where nearly all tokens lie in one bucket, and where the last bucket gathers those far away."""
    ranks = spread * random_logits(seed, 3, 500)
    probability, mass_B1 = ranks.softmax(-1), torch.tensor([[mass], [mass / 2], [1 - mass / 3]])
    assert torch.equal(_by_buckets(ranks, probability, mass_B1), _by_sorting(ranks, probability, mass_B1))
