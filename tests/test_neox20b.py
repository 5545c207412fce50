"""The calls of "minimal GPT-NeoX-20B" on a small model of its kind, against transformers."""

from __future__ import annotations

import inspect

import pytest
import torch
from pretrained.test_neox_slim import STEP, reference, write_slim

from gptstar import neox20b
from gptstar.configuration import preset
from gptstar.errors import UserError

PROMPT = torch.tensor([[1, 5, 9, 2], [7, 7, 3, 0]])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The slim folder of a small model, and transformers' own of the same weights."""
    model = reference("small")
    return write_slim(model, tmp_path_factory.mktemp("slim"), True), model


@pytest.mark.parametrize("use_cache", [False, True])
def test_tokens_are_transformers(made, use_cache):
    folder, theirs = made
    model = neox20b.create_model(folder / STEP, use_cache=use_cache, device="cpu")
    rest = dict(do_sample=False, eos_token_id=None, pad_token_id=0, attention_mask=torch.ones_like(PROMPT))
    expected = theirs.generate(PROMPT, max_new_tokens=20, **rest)
    assert torch.equal(neox20b.greedy_generate(model, PROMPT, 24, verbose=False), expected)
    assert torch.equal(neox20b.greedy_generate(model, PROMPT, 4), PROMPT)


def test_the_text_of_its_readme(made):
    folder, _ = made
    model = neox20b.create_model(str(folder), use_cache=True, device="cpu")
    tokenizer = neox20b.create_tokenizer(str(folder / "20B_tokenizer.json"))
    start = "ab"  # the small model has few tokens
    with torch.inference_mode():
        text = neox20b.greedy_generate_text(model, tokenizer, start, max_seq_len=20)
    assert text.startswith(start) and len(text) > len(start)
    assert len(tokenizer.encode(start).ids) < 20


def test_a_dummy_has_the_shape_and_random_weights():
    config = preset("neox_20b", n_layer=2, d_model=64, n_head=4, vocab_size=96, context=32)
    model = neox20b.create_dummy_model(use_cache=True, device="cpu", config=config)
    assert model.dtype == torch.float16 and model.config == config
    tokens = neox20b.greedy_generate(model.float(), PROMPT, 8, verbose=False)
    assert tokens.shape == (2, 8) and torch.equal(tokens[:, :4], PROMPT)


def test_the_signatures_are_the_originals_with_more_behind():
    def names(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(neox20b.create_model)[:3] == ["checkpoint_path", "use_cache", "device"]
    assert names(neox20b.create_dummy_model)[:2] == ["use_cache", "device"]
    assert names(neox20b.greedy_generate) == ["model", "input_ids", "max_seq_len", "verbose"]
    assert names(neox20b.greedy_generate_text)[:4] == ["model", "tokenizer", "initial_str", "max_seq_len"]


def test_what_cannot_be_is_told(made, tmp_path, monkeypatch):
    model = neox20b.create_model(made[0], device="cpu")
    with pytest.raises(UserError, match="4 tokens and max_seq_len=3"):
        neox20b.greedy_generate(model, PROMPT, 3)
    config = preset("neox_20b", n_layer=1, d_model=64, n_head=4, vocab_size=96, context=32, position="learned")
    with pytest.raises(UserError, match="more than the 32 tokens"):
        neox20b.greedy_generate(neox20b.create_dummy_model(device="cpu", config=config), PROMPT, 33)
    with pytest.raises(UserError, match="is no file"):
        neox20b.create_tokenizer(tmp_path)
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        neox20b.create_tokenizer(tmp_path / "wrong.json")
    monkeypatch.setattr(neox20b, "free_memory", lambda device: 10**9)
    with pytest.raises(UserError, match=r"neox_20b takes 38\.29 GiB in fp16"):
        neox20b.create_dummy_model(device="cpu")
