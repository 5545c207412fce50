"""How many tokens a forward pass may read."""

import pytest
import torch

import gptstar
from gptstar.device import free_memory
from gptstar.errors import UserError
from gptstar.evaluation import budget
from gptstar.evaluation.budget import FAST_TOKENS, bytes_per_token, token_budget
from support import tiny_model


def test_auto_is_what_is_fast_unless_memory_is_short(monkeypatch):
    model = gptstar.GPT(tiny_model())
    monkeypatch.setattr(budget, "free_memory", lambda device: 10**12)
    assert token_budget("auto", model) == FAST_TOKENS["cpu"]
    monkeypatch.setattr(budget, "free_memory", lambda device: 2 * 100 * bytes_per_token(model))
    assert token_budget("auto", model) == 100
    monkeypatch.setattr(budget, "free_memory", lambda device: 0)
    assert token_budget("auto", model) == 1
    assert [token_budget(setting, model) for setting in ("7", 7)] == [7, 7]


@pytest.mark.parametrize("setting", ["many", "0", -3, "1.5"])
def test_other_settings_are_refused(setting):
    with pytest.raises(UserError, match=r"batch_tokens=.* must be auto or a number of tokens"):
        token_budget(setting, gptstar.GPT(tiny_model()))


def test_free_memory_and_bytes_are_of_the_right_size():
    assert 10**8 < free_memory(torch.device("cpu")) < 10**14
    with torch.device("meta"):
        model = gptstar.GPT(tiny_model(d_model=768, n_head=12, d_head=64, n_layer=12, d_ff=3072, vocab_size=50257))
    cached = 2 * 12 * 768 * 4
    assert cached < bytes_per_token(model) < 3 * cached
    assert bytes_per_token(model.bfloat16()) * 2 == bytes_per_token(model.float())
