"""Greedy text of every family is that of transformers' `generate`: alone, and in ragged batches of either."""

from __future__ import annotations

import pytest
import torch

import gptstar
from families import MODELS, perturbed, transformers
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings

PROMPTS = ["a", "b c a", "a b c a b c a b", "c c", "b"]
WISH = SamplingSettings(max_new_tokens=14, temperature=0)


def tokenizer_of(eot_token):
    return train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260, eot_token=eot_token))


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """A model of theirs with as many tokens as the tokenizer, and ours with its weights."""
    theirs = perturbed(MODELS[request.param])
    tokenizer = tokenizer_of("</s>" if theirs.config.model_type == "llama" else "<|endoftext|>")
    theirs.config.vocab_size = tokenizer.vocab_size
    torch.manual_seed(1)
    theirs = type(theirs)(theirs.config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    return theirs, *gptstar.load(tmp_path)


def generate(theirs, tokenizer, rows):
    """Their new tokens, up to the end of text; rows of unequal length are padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.eot_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = transformers.GenerationConfig(
        max_new_tokens=14, do_sample=False, eos_token_id=tokenizer.eot_id, pad_token_id=tokenizer.eot_id
    )
    with torch.no_grad():
        out = theirs.generate(ids, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
    return [[*row, tokenizer.eot_id][: [*row, tokenizer.eot_id].index(tokenizer.eot_id)] for row in out]


def test_greedy_text(pair):
    theirs, ours, tokenizer = pair
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    alone = [generate(theirs, tokenizer, [row])[0] for row in rows]
    assert len(set(map(tuple, alone))) > 2  # or nothing is tested
    assert [generate_detailed(ours, tokenizer, prompt, WISH)[0].tokens for prompt in PROMPTS] == alone
    engine = Engine(ours, tokenizer, max_rows=3, budget=7)
    order = [engine.submit(prompt, WISH) for prompt in PROMPTS]
    done = {event.request: event.done.tokens for event in engine.run() if event.done}
    assert [done[request] for request in order] == alone
    assert generate(theirs, tokenizer, rows) == alone
