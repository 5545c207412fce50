import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from gptstar.data.encode import Encoder, words_end_at_spaces
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from support import sentence

SPACES = " \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u180e\u2003\u200b\u2028\u3000\ufeff"


def learned() -> Tokenizer:
    rng = random.Random(0)
    texts = [sentence(rng, 40) for _ in range(20)] + ["it's  two\n\n spaces, 12 34's ünï\u0301 \u3000 end"]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=400))


def neox_like() -> Tokenizer:
    """Runs of spaces are tokens of their own, text is NFC."""
    tokenizer = learned()
    tokenizer.fast.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 9)])
    tokenizer.fast.normalizer = normalizers.NFC()
    return Tokenizer(tokenizer.fast, tokenizer.eot_token)


TOKENIZERS = [learned(), neox_like()]


def plainly(tokenizer, texts):
    return [np.array(ids, dtype="<u2").tobytes() for ids in tokenizer.encode_batch(texts)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["gpt2", "neox"])
@given(
    st.lists(st.text(st.sampled_from("abz'st,.09-é\u0301 " + SPACES + "      ")), max_size=6),
    st.lists(st.text(max_size=20), max_size=3),
)
def test_the_tokens_are_the_tokenizers_own(tokenizer, dense, wild):
    encoder = Encoder(tokenizer)
    assert encoder.by_pieces
    for texts in (dense, wild, dense + wild):  # the second time from memory
        assert encoder.encode(texts) == plainly(tokenizer, texts)


def test_memory_is_bounded_and_full_memory_changes_nothing(monkeypatch):
    monkeypatch.setattr("gptstar.data.encode.MEMORY", 50)
    rng = random.Random(1)
    encoder = Encoder(TOKENIZERS[0])
    for _ in range(5):
        texts = [sentence(rng, 60) + " " + "x" * 200 + " y" for _ in range(3)]
        assert encoder.encode(texts) == plainly(TOKENIZERS[0], texts)
        assert len(encoder._known) <= 50 and max(map(len, encoder._known), default=0) <= 32


def test_the_end_of_text_spelt_out_stays_text():
    tokenizer = TOKENIZERS[0]
    text = "a <|endoftext|> b <|endoftext|>"
    assert Encoder(tokenizer).encode([text]) == plainly(tokenizer, [text])
    assert tokenizer.eot_id not in np.frombuffer(Encoder(tokenizer).encode([text])[0], "<u2")


def other_words(fast):
    fast.pre_tokenizer = pre_tokenizers.Whitespace()


def prefix_space(fast):
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def lowercase(fast):
    fast.normalizer = normalizers.Strip()


def swallowing(fast):
    fast.add_tokens([AddedToken("foo", rstrip=True)])


def across(fast):
    fast.add_tokens([AddedToken("in front of")])


@pytest.mark.parametrize("change", [other_words, prefix_space, lowercase, swallowing, across])
def test_a_tokenizer_that_looks_across_spaces_does_all_itself(change):
    tokenizer = learned()
    change(tokenizer.fast)
    texts = ["foo  bar in front of it", " a  b "]
    assert not words_end_at_spaces(tokenizer.fast)
    assert Encoder(tokenizer).encode(texts) == plainly(tokenizer, texts)


@pytest.mark.parametrize("name", ["gpt2", "neox/20B_tokenizer.json"])
def test_the_published_tokenizers_on_real_text(shared, name):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / name), "<|endoftext|>")
    text = (shared / "corpora" / "tinyshakespeare.txt").read_text()[:200_000]
    source = Path(__file__).read_text(encoding="utf-8")
    texts = [text, *text.split("\n\n")[:200], source, source.replace("    ", "\t")]
    encoder = Encoder(tokenizer)
    assert encoder.by_pieces and encoder.encode(texts) == plainly(tokenizer, texts)
