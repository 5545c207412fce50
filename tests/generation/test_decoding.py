"""The step of one token: compiled as plain, whatever the cache, and two models never mixed up."""

from __future__ import annotations

import pytest
import torch

from gptstar.errors import UserError
from gptstar.generation import decoding
from gptstar.generation.decoding import PIECE, Decoder
from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate, generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT
from gptstar.quantization.quantize import quantize
from support import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def model_of(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(tiny_model(**{"vocab_size": 400, "context": 160, "init_std": 0.3, "n_head": 4, **changes})).eval()


MODELS = {
    "alibi": dict(),
    "learned": dict(position="learned", block="sequential"),
    "rotary, shared heads, window": dict(position="rotary", n_kv_head=2, windows=[0, 4], block="parallel"),
    "gmlp": dict(block="gmlp", position="none"),
    "soft-caps": dict(score_softcap=5.0, logit_softcap=9.0, qk_norm=True),
}


@pytest.mark.parametrize("name", ["alibi", "rotary, shared heads, window", "gmlp"])  # each takes ten seconds
@torch.inference_mode()
@pytest.mark.slow
def test_a_compiled_step_is_the_plain_one(name):
    model = model_of(**MODELS[name])
    plain, compiled = Decoder(model), Decoder(model, compiled=True)
    for n_row, n_step in ((1, 80), (3, 3), (2, 3)):  # across pages, and from one batch to another
        tokens = torch.randint(0, 400, (n_row, n_step))
        here, there = model.new_cache(n_row, 90), model.new_cache(n_row, 90)
        for step in range(n_step):
            expected = plain(tokens[:, step], here)
            torch.testing.assert_close(compiled(tokens[:, step], there), expected, rtol=1e-4, atol=1e-4)
        assert there.length == n_step


@torch.inference_mode()
def test_each_decoder_has_its_own_model():
    """What torch.compile makes is kept with the code, and all models run the same code."""
    token = torch.tensor([3])
    models = [model_of(), model_of(n_layer=1), quantize(model_of(), "int8")]
    decoders = [Decoder(model, compiled=True) for model in models]
    for _ in range(2):
        for model, decoder in zip(models, decoders, strict=True):
            expected = model(token[None])[:, -1]
            torch.testing.assert_close(decoder(token, model.new_cache(1, 90)), expected, rtol=1e-4, atol=1e-4)


def test_the_engine_and_generate_give_the_same_text_through_it():
    model = model_of()
    decoder = Decoder(model, compiled=True)
    settings = SamplingSettings(max_new_tokens=20, temperature=0)
    prompts = ["abc", "abc def ghi", "j"]
    expected = {prompt: generate_detailed(model, TOKENIZER, prompt, settings)[0].text for prompt in prompts}
    engine = Engine(model, TOKENIZER, max_rows=2, decoder=decoder)
    asked = {engine.submit(prompt, settings): prompt for prompt in prompts}
    assert {asked[e.request]: e.done.text for e in engine.run() if e.done} == expected
    for prompt, text in expected.items():
        assert generate(model, TOKENIZER, prompt, max_new_tokens=20, temperature=0, decoder=decoder).endswith(text)


@torch.inference_mode()
def test_a_long_prompt_is_read_in_pieces():
    model = model_of()
    tokens = torch.randint(0, 400, (2, 2 * PIECE + 7))
    cache = model.new_cache(2, tokens.shape[1])
    torch.testing.assert_close(Decoder(model).read(tokens, cache), model(tokens)[:, -1], rtol=1e-4, atol=1e-4)
    assert cache.length == tokens.shape[1]


class Stand:
    """A recording that is none: the same step in the same places."""

    made = 0

    def __init__(self, run, n_row, n_key, kept, device, pool):
        Stand.made += 1
        self.token_B = torch.zeros(n_row, dtype=torch.int64)
        self.slot_B1 = torch.full((n_row, 1), n_key - 1)
        self.run = lambda: run(self.token_B, self.slot_B1, kept, n_key)
        self.run()

    def __call__(self, token_B, slot_B1, n_key):
        self.token_B.copy_(token_B)
        self.slot_B1.copy_(slot_B1)
        return self.run()


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_what_a_recording_is_made_for(name, monkeypatch):
    """Practice leaves nothing behind in the cache, and a recording serves its rows, keys and cache alone."""
    monkeypatch.setattr(decoding, "Recording", Stand)
    monkeypatch.setattr(decoding, "GPU_PAGE", 16)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model, Stand.made = model_of(**MODELS[name]), 0
    plain, recorded = Decoder(model), Decoder(model)
    recorded.recorded = True
    for n_row, tokens in ((1, torch.randint(0, 400, (1, 40))), (3, torch.randint(0, 400, (3, 40)))):
        here, there = model.new_cache(n_row, 40), model.new_cache(n_row, 40)
        for step in range(40):
            expected = plain(tokens[:, step], here)
            torch.testing.assert_close(recorded(tokens[:, step], there), expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="the cache holds 40 tokens, 41 are needed"):
            recorded(tokens[:, 0], there)
    assert Stand.made == 2 * 3


def test_another_models_tokenizer_is_refused():
    model = model_of(vocab_size=300)
    for call in (lambda: generate(model, TOKENIZER, "abc"), lambda: Engine(model, TOKENIZER)):
        with pytest.raises(UserError, match="the tokenizer has 400 tokens and the model 300"):
            call()


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_too():
    model = model_of().cuda()
    plain, compiled = Decoder(model), Decoder(model, compiled=True)
    tokens = torch.randint(0, 400, (2, 80), device="cuda")
    here, there = model.new_cache(2, 90), model.new_cache(2, 90)
    for step in range(80):
        expected = plain(tokens[:, step], here)
        torch.testing.assert_close(compiled(tokens[:, step], there), expected, rtol=1e-2, atol=1e-2)
