"""What each window scores, and that it is what transformers says, however the text is cut, batched or chunked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import gptstar
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.evaluation import scoring
from gptstar.evaluation import windows as windows_module
from gptstar.evaluation.perplexity import metrics
from gptstar.evaluation.windows import cut_windows, score_windows
from gptstar.model.gmlp import SpatialGate
from gptstar.model.transformer import GPT
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
STREAM = np.random.default_rng(0).integers(0, 101, 50)
COUNTS = {"words": 20, "bytes": 100, "characters": 90}


def score(model, stream, context, stride=None, protocol="exact", batch_tokens=64):
    windows = cut_windows(len(stream), context, stride or context, protocol)
    return score_windows(model, stream, windows, batch_tokens, lambda n: None)


@given(n_token=st.integers(2, 200), context=st.integers(1, 40), data=st.data())
def test_exact_scores_every_token_once_at_full_left_context(n_token, context, data):
    stride = data.draw(st.integers(1, context))
    windows = cut_windows(n_token, context, stride, "exact")
    assert [p for w in windows for p in range(w.first, w.end + 1)] == list(range(1, n_token))
    for number, window in enumerate(windows):
        assert window.start == number * stride and 0 < window.end - window.start <= context
        assert window.first - window.start == (1 if number == 0 else context - stride + 1)


@given(n_token=st.integers(2, 200), context=st.integers(2, 40))
def test_the_original_scores_all_but_the_first_of_each_whole_window(n_token, context):
    windows = cut_windows(n_token, context, context, "original")
    scored = [p for w in windows for p in range(w.first, w.end + 1)]
    assert scored == [p for p in range(n_token // context * context) if p % context]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A random GPT-2 of transformers, and the same weights here."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=260, n_positions=32, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    TOKENIZER.save(folder / "tokenizer.json")
    return theirs, gptstar.load(folder)[0]


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (32, 20)])
def test_each_token_has_the_loss_that_transformers_gives_it_after_its_context(pair, context, stride):
    theirs, ours = pair
    expected = []
    for place in range(1, len(STREAM)):
        start = 0 if place <= context else math.ceil((place - context) / stride) * stride
        with torch.no_grad():
            logits = theirs(torch.tensor(STREAM[None, start:place])).logits[0, -1]
        expected.append(-logits.log_softmax(-1)[STREAM[place]].item())
    found = score(ours, STREAM, context, stride)
    assert np.isnan(found[0]) and found[1:] == pytest.approx(expected, abs=2e-5)


def test_the_original_protocol_is_that_of_transformers_guide_with_incomplete_windows_left_out(pair):
    theirs, ours = pair
    nats, context = [], 8
    for begin in range(0, len(STREAM), context):
        window = torch.tensor(STREAM[None, begin : begin + context])
        if window.shape[1] == context:
            with torch.no_grad():
                nats.append(theirs(window, labels=window).loss.double() * context)
    published = torch.exp(torch.stack(nats).sum() / len(STREAM)).item()
    found = metrics(score(ours, STREAM, context, protocol="original"), COUNTS, len(nats) * context)
    assert found["token_perplexity"]["value"] == pytest.approx(published, rel=1e-6)
    bits = torch.stack(nats).mean().item() / context / math.log(2) * len(STREAM) / COUNTS["bytes"]
    assert found["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)


def double(**changes) -> GPT:
    torch.manual_seed(0)
    model = GPT(tiny_model(init_std=0.3, **changes)).double().eval()
    for module in model.modules():
        if isinstance(module, SpatialGate):  # starts without effect
            torch.nn.init.normal_(module.weight, 0, 0.3)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned"},
        {"position": "rotary", "n_kv_head": 1},
        {"position": "none", "windows": [0, 4]},
        {"position": "relative", "score_softcap": 5.0, "logit_softcap": 3.0},
        {"block": "gmlp", "position": "none"},
        {"pad_vocab_to": 64, "head_bias": True},
    ],
    ids=str,
)
def test_pieces_batches_and_chunks_change_nothing(changes, monkeypatch):
    model, stream = double(**changes), np.random.default_rng(1).integers(0, 300, 70)
    tokens = torch.tensor(stream[None])
    with torch.no_grad():
        plain = torch.cat(
            [
                F.cross_entropy(model(tokens[:, a:b]).transpose(1, 2), tokens[:, a + 1 : b + 1], reduction="none")[0]
                for a, b in ((0, 32), (32, 64), (64, 69))
            ]
        )
    whole = score(model, stream, 32)
    assert whole[1:] == pytest.approx(plain.numpy(), abs=1e-6)
    monkeypatch.setattr(windows_module, "SCORES", 5 * 32 * model.config.n_head)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 7 * 300)
    for batch_tokens in (1, 64, 1000):
        assert score(model, stream, 32, batch_tokens=batch_tokens)[1:] == pytest.approx(whole[1:], abs=1e-6)
    assert score(model, stream, 32, 9)[33:] != pytest.approx(whole[33:], abs=1e-3)  # other contexts, other losses


def test_a_window_over_the_whole_text_is_plain_cross_entropy():
    model, stream = double(), np.random.default_rng(2).integers(0, 300, 70)
    tokens = torch.tensor(stream[None])
    with torch.no_grad():
        loss = model(tokens[:, :-1], tokens[:, 1:]).item()
    for context in (69, 500):
        assert np.nanmean(score(model, stream, context), dtype=np.float64) == pytest.approx(loss, abs=1e-6)


def test_memory_for_scores_and_logits_does_not_grow_with_the_context(monkeypatch):
    """The largest tensors of a pass: bias (heads, queries, keys) and logits (positions, vocabulary)."""
    model = double()
    sizes = []
    hidden, logits = GPT.hidden, GPT.logits

    def watch_hidden(self, tokens, cache=None, padding=None):
        before = cache.length if cache else 0
        sizes.append(self.config.n_head * tokens.shape[1] * (before + tokens.shape[1]))
        return hidden(self, tokens, cache, padding)

    def watch_logits(self, h):
        sizes.append(h.shape[0] * 300)
        return logits(self, h)

    monkeypatch.setattr(GPT, "hidden", watch_hidden)
    monkeypatch.setattr(GPT, "logits", watch_logits)
    monkeypatch.setattr(windows_module, "SCORES", 12_000)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 12_000)
    for context in (64, 512):
        score(model, np.zeros(600, dtype=np.int64), context, batch_tokens=1)
    assert 6000 < max(sizes) <= 12_000
