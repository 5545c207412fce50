import pytest
import torch

from gptstar.generation.logprobs import token_logprobs


def test_chosen_and_likeliest_tokens_of_the_whole_distribution():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    first, second = token_logprobs(logits, torch.tensor([0, 2]), 2)
    expected = logits.log_softmax(-1)
    assert (first.token, first.logprob) == (0, pytest.approx(expected[0, 0].item()))
    assert [token for token, _ in first.top] == [1, 2]
    assert [value for _, value in first.top] == pytest.approx(expected[0, [1, 2]].tolist())
    assert second.token == 2 and second.top[0] == (2, second.logprob)
    assert token_logprobs(logits, torch.tensor([0, 2]), 0)[0].top == []
    assert len(token_logprobs(logits, torch.tensor([0, 2]), 9)[0].top) == 3
