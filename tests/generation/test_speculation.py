"""Guesses change how often the model is asked, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.errors import UserError
from gptstar.generation.decoding import Decoder
from gptstar.generation.draft import PromptLookup
from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.generation.speculation import DraftModel, same_tokenizer
from gptstar.model.transformer import GPT
from support import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def model_of(seed=0, **changes) -> GPT:
    """Float64: rounding in a longer pass must not decide between two tokens."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 400, "context": 64, "init_std": 0.3, "n_head": 4, **changes}
    return GPT(tiny_model(**shape)).double().eval()


MODELS = {
    "alibi": model_of(),
    "learned": model_of(position="learned", block="sequential"),
    "window": model_of(position="rotary", windows=[0, 4], block="parallel"),
    "gmlp": model_of(block="gmlp", position="none"),
}
OTHER = model_of(1, n_layer=1, position="learned", context=40)


def drafts(model):
    return {
        "lookup": PromptLookup(5, 2),
        "other model": DraftModel(Decoder(OTHER), TOKENIZER, 3),
        "itself": DraftModel(Decoder(model), TOKENIZER, 4),
    }


@pytest.mark.parametrize("kind", ["lookup", "other model", "itself"])
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12)
@given(
    prompt=st.sampled_from(["", "abc", "abc abc abc ab", "a b c d ", "hij hij"]),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 9),
    n_new=st.sampled_from([0, 1, 2, 17, 30]),
    more=st.sampled_from([{}, {"repetition_penalty": 1.4, "no_repeat_ngram": 3}, {"top_k": 5, "stop": ["ab"]}]),
)
def test_the_text_is_the_one_without(name, kind, prompt, temperature, seed, n_new, more):
    model = MODELS[name]
    wish = SamplingSettings(max_new_tokens=n_new, temperature=temperature, seed=seed, n=2, logprobs=1, **more)
    plain = generate_detailed(model, TOKENIZER, prompt, wish)
    found = generate_detailed(model, TOKENIZER, prompt, wish, Decoder(model, draft=drafts(model)[kind]))
    for one, other in zip(plain, found, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert [x.logprob for x in one.logprobs] == pytest.approx([x.logprob for x in other.logprobs], abs=1e-8)


@pytest.mark.parametrize("more", [{}, {"frequency_penalty": 0.5, "repetition_penalty": 1.2}])
def test_a_model_guesses_itself_right(more):
    model = MODELS["alibi"]
    draft = DraftModel(Decoder(model), TOKENIZER, 4)
    wish = SamplingSettings(max_new_tokens=25, temperature=0.9, seed=2, min_new_tokens=25, **more)
    generate_detailed(model, TOKENIZER, "abc", wish, Decoder(model, draft=draft))
    assert draft.proposed >= 18 and draft.acceptance == 1.0


def test_models_that_are_near_guess_alike_also_at_random():
    """The noise is the same: independent draws from these distributions would agree far less often."""
    model = MODELS["alibi"]
    near = GPT(model.config).double().eval()
    with torch.no_grad():
        for ours, theirs in zip(near.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs + 0.003 * torch.randn_like(theirs))
    draft = DraftModel(Decoder(near), TOKENIZER, 3)
    wish = SamplingSettings(max_new_tokens=40, temperature=1.0, seed=2, n=3, min_new_tokens=40)
    generate_detailed(model, TOKENIZER, "abc", wish, Decoder(model, draft=draft))
    assert draft.proposed > 60 and draft.acceptance > 0.8


def test_the_distribution_is_the_models():
    """Second tokens of many seeds against the exact probabilities given the first, a chi-square test."""
    model, draft = MODELS["alibi"], DraftModel(Decoder(OTHER), TOKENIZER, 3)
    decoder = Decoder(model, draft=draft)
    wish = SamplingSettings(max_new_tokens=3, temperature=0.7, top_k=4, forced_tokens=[50])
    counts = torch.zeros(400)
    n = 600
    for seed in range(n):
        one = generate_detailed(model, TOKENIZER, "abc", SamplingSettings(**{**vars(wish), "seed": seed}), decoder)[0]
        if len(one.tokens) > 1:
            counts[one.tokens[1]] += 1
    with torch.no_grad():
        logits = model(torch.tensor([[*TOKENIZER.encode("abc"), 50]]))[0, -1] / 0.7
    best = logits.topk(4)
    expected = best.values.softmax(-1) * n
    found = counts[best.indices]
    assert found.sum() >= 0.9 * n  # the rest ended the text
    assert float(((found - expected) ** 2 / expected).sum()) < 16.3  # 3 degrees of freedom, p = 0.001


def test_lookup_finds_the_latest_longest_match():
    guess = PromptLookup(3, 2).guess
    settings = SamplingSettings()
    assert guess([1, 2, 9, 8, 7, 1, 2, 5, 6, 1, 2], 0, 3, settings, 0) == [5, 6, 1]
    assert guess([4, 2, 9, 3, 2], 0, 2, settings, 0) == [9, 3]
    assert guess([1, 2, 3], 0, 2, settings, 0) == []
    assert guess([1], 0, 2, settings, 0) == []


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="n_draft=0"):
        PromptLookup(0)
    with pytest.raises(UserError, match="is not the model's"):
        same_tokenizer(TOKENIZER, tiny_tokenizer(300))
    same_tokenizer(TOKENIZER, tiny_tokenizer())
