"""The precision and the length a model is evaluated in."""

import pytest
import torch

import gptstar
from gptstar.errors import UserError
from gptstar.evaluation.checkpoint import context_length, load_for_evaluation
from gptstar.pretrained.native import save_weights
from support import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("saved", "wanted", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.float32),  # on a CPU
        (torch.float32, "bf16", torch.bfloat16),
        (torch.float32, "float16", torch.float16),
    ],
)
def test_precision_is_as_saved_or_as_asked_for(tmp_path, saved, wanted, expected):
    model = gptstar.GPT(tiny_model(vocab_size=400)).to(saved)
    save_weights(tmp_path, model, tiny_tokenizer(), {})
    model, _ = load_for_evaluation(tmp_path, "cpu", wanted)
    assert {p.dtype for p in model.parameters()} == {expected} and not model.training


def test_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype='fp8' is unknown"):
        load_for_evaluation(tmp_path, "cpu", "fp8")


def test_length_is_the_models_own_unless_asked_for_and_learned_positions_limit_it():
    learned, free = (gptstar.GPT(tiny_model(position=position)) for position in ("learned", "alibi"))
    assert [context_length(model, None) for model in (learned, free)] == [32, 32]
    assert [context_length(learned, 8), context_length(free, 4096)] == [8, 4096]
    for model, wanted in ((learned, 33), (free, 0), (free, -5)):
        with pytest.raises(UserError, match=f"max_length={wanted}"):
            context_length(model, wanted)
