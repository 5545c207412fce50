import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptstar.generation.penalties import (
    History,
    forbid,
    forbid_repeated_ngrams,
    force,
    penalize_frequency,
    penalize_presence,
    penalize_repetition,
)

pytest.importorskip("transformers")
V = 12
ROWS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=30), min_size=1, max_size=3)


def logits_for(rows: list, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed))


def warped(name: str, tokens: list[int], logits: torch.Tensor, *arguments) -> torch.Tensor:
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*arguments)(torch.tensor([tokens]), logits)


@given(ROWS, st.floats(0.5, 2))
def test_repetition_is_transformers_row_by_row(rows, penalty):
    logits, counts = logits_for(rows), History.of(rows, 3).counts(V)
    together = penalize_repetition(logits, counts, torch.full((len(rows),), penalty))
    for row, tokens in enumerate(rows):
        alone = logits[row : row + 1]
        assert torch.equal(together[row], penalize_repetition(alone, counts[row : row + 1], penalty)[0])
        expected = warped("RepetitionPenaltyLogitsProcessor", tokens, alone, penalty)
        torch.testing.assert_close(together[row], expected[0], rtol=1e-6, atol=0)


@given(ROWS, st.integers(1, 5))
def test_repeated_ngrams_are_transformers_row_by_row(rows, n):
    logits, sizes = logits_for(rows), torch.tensor([n, 0, n + 1][: len(rows)])
    together = forbid_repeated_ngrams(logits, History.of(rows, 3), sizes)
    for row, (tokens, size) in enumerate(zip(rows, sizes.tolist(), strict=True)):
        alone = logits[row : row + 1]
        expected = warped("NoRepeatNGramLogitsProcessor", tokens, alone, size) if size else alone
        assert torch.equal(together[row : row + 1], expected)
        assert torch.equal(forbid_repeated_ngrams(alone, History.of([tokens], 0), size), expected)


def test_presence_and_frequency_count_what_was_written():
    history = History.of([[1, 1, 2], [3]], 4)
    for tokens in ([5, 3], [5, 0], [6, 5]):
        history.append(torch.tensor(tokens))
    counts = history.counts(V, written_only=True)
    assert counts[0].nonzero().flatten().tolist() == [5, 6] and counts[0, [5, 6]].tolist() == [2, 1]
    assert counts[1].nonzero().flatten().tolist() == [0, 3, 5]
    assert history.counts(V)[0, [1, 2, 5, 6]].tolist() == [2, 1, 2, 1] and history.counts(V)[1, 3] == 2
    logits = logits_for([0, 0])
    # OpenAI's definition: logit - count * frequency - (count > 0) * presence
    expected = logits - counts * torch.tensor([[0.5], [-1.0]])
    assert torch.equal(penalize_frequency(logits, counts, torch.tensor([0.5, -1.0])), expected)
    assert torch.equal(penalize_presence(logits, counts, 0.25), logits - (counts > 0) * 0.25)
    assert torch.equal(penalize_presence(logits, counts, 0.0), logits)


def test_history_reorders_and_takes_rows_of_different_length():
    history = History.of([[1, 2, 3], [4]], 2)
    history.append(torch.tensor([7, 8]))
    history.reorder(torch.tensor([1, 1]))
    history.append(torch.tensor([5, 6]))
    assert [history.tokens_BS[i, : history.length_B[i]].tolist() for i in (0, 1)] == [[4, 8, 5], [4, 8, 6]]
    assert history.prompt_B.tolist() == [1, 1]


def test_forbidden_and_forced():
    logits = logits_for([0, 0])
    mask = torch.zeros(2, V, dtype=torch.bool)
    mask[0, 3] = True
    assert forbid(logits, mask).isinf().nonzero().tolist() == [[0, 3]]
    forced = force(forbid(logits, mask), torch.tensor([3, -1]))
    assert forced[0].isfinite().nonzero().tolist() == [[3]] and torch.equal(forced[1], logits[1])
