"""Streams against `decode`, for every decoder there is, on token sequences that no sane model would write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from gptstar.generation.streaming import TextStream
from gptstar.pretrained.llama2c import load_llama2c

BYTE_LEVEL = train_tokenizer(["abc 👩‍🚀 ☃ é don't\n\n  x" * 3] * 20, TokenizerConfig(vocab_size=300))
BYTE_LEVEL.fast.add_tokens(["  spelt out  ", "ünï"])
BYTE_LEVEL = Tokenizer(BYTE_LEVEL.fast, BYTE_LEVEL.eot_token)


def made_of(pieces: list[str], decoder) -> Tokenizer:
    """A tokenizer that only has to decode."""
    vocabulary = {piece: number for number, piece in enumerate(["<s>", *pieces])}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    if decoder is not None:
        fast.decoder = decoder
    return Tokenizer(fast, "<s>")


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_2 = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
LLAMA2C = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
TOKENIZERS = {
    "byte-level": BYTE_LEVEL,
    "llama-2": made_of(["▁", "▁a", "b", "▁▁", "", "�", *BYTES], decoders.Sequence(LLAMA_2)),
    "llama2c": made_of([" ", " a", "b", "  ", "", *BYTES], decoders.Sequence(LLAMA2C)),
    "metaspace": made_of(["▁", "▁a", "b", "▁▁", "a▁b"], decoders.Metaspace()),
    "wordpiece": made_of(["a", "##b", "##", ".", "don", "'t", "##s"], decoders.WordPiece()),
    "bpe-suffix": made_of(["a</w>", "b", "</w>", "c</w>"], decoders.BPEDecoder()),
    "no-decoder": made_of(["a", "b", ""], None),
}


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.feed(token) for token in tokens), stream.finish()]


@settings(max_examples=300)
@given(st.sampled_from(sorted(TOKENIZERS)), st.data())
def test_pieces_add_up_to_decode_for_any_tokens(name, data):
    tokenizer = TOKENIZERS[name]
    few, any_token = st.integers(0, 8), st.integers(0, tokenizer.vocab_size + 1)
    tokens = data.draw(st.lists(few | any_token, max_size=25))
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(st.binary(max_size=40))
def test_any_bytes_come_out_as_decode_has_them(data):
    alphabet = {byte: BYTE_LEVEL.encode(chr(byte))[0] for byte in range(33, 127)}
    one_byte = [t for t in range(BYTE_LEVEL.vocab_size) if len(BYTE_LEVEL.fast.id_to_token(t) or "") == 1]
    assert len(one_byte) == 256 and set(alphabet.values()) <= set(one_byte)
    tokens = [one_byte[byte] for byte in data]
    assert "".join(streamed(BYTE_LEVEL, tokens)) == BYTE_LEVEL.decode(tokens)
    llama = TOKENIZERS["llama2c"]
    tokens = [llama.fast.token_to_id(f"<0x{byte:02X}>") for byte in data]
    assert "".join(streamed(llama, tokens)) == llama.decode(tokens)


@given(st.text(max_size=30))
def test_text_streams_without_broken_characters(text):
    pieces = streamed(BYTE_LEVEL, BYTE_LEVEL.encode(text))
    assert "".join(pieces) == text
    assert "�" in text or not any("�" in piece for piece in pieces)


def test_an_emoji_of_several_tokens_comes_in_one_piece_and_at_once():
    tokens = BYTE_LEVEL.encode("a😀b")
    assert len(tokens) == 5
    assert streamed(BYTE_LEVEL, tokens) == ["a", "", "", "😀", "b", ""]
    assert streamed(BYTE_LEVEL, tokens[:3]) == ["a", "", "", "�"]


def test_a_run_of_byte_tokens_waits_for_its_end():
    """One bad byte turns the whole run into replacement characters, also what looked good before it."""
    llama = TOKENIZERS["llama2c"]
    snow = [llama.fast.token_to_id(f"<0x{byte:02X}>") for byte in "☃".encode()]
    a, bad = llama.fast.token_to_id(" a"), llama.fast.token_to_id("<0xFF>")
    assert streamed(llama, [a, *snow, a]) == ["a", "", "", "", "☃ a", ""]
    assert streamed(llama, [a, *snow, bad, a]) == ["a", "", "", "", "", "���� a", ""]


def test_the_first_space_is_dropped_wherever_text_begins():
    """A token without text leaves the beginning to those that follow; one that is dropped whole does not."""
    for name, space in (("llama-2", "▁"), ("llama2c", " ")):
        tokenizer = TOKENIZERS[name]
        nothing, alone, word = (tokenizer.fast.token_to_id(piece) for piece in ("", space, f"{space}a"))
        assert streamed(tokenizer, [nothing, nothing, word, word]) == ["", "", "a", " a", ""]
        assert streamed(tokenizer, [alone, word, nothing, word]) == ["", " a", "", " a", ""]


def test_a_long_stream_keeps_no_history():
    for tokenizer in TOKENIZERS.values():
        stream = TextStream(tokenizer)
        stream.feed_all([1, 2, 3] * 50)
        kept = [value for value in vars(stream._decoder).values() if isinstance(value, list)]
        assert all(len(value) < 10 for value in kept)


def test_real_tokenizers(shared):
    samples = [
        "Hello, wörld! 👩‍🚀\n\n\tdef f(x):  return x",
        "日本語のテキスト",
        "a" * 50,
        "  two  spaces ",
        "Zoë ☃☃☃!",
    ]
    for source in ("gpt2", "neox/20B_tokenizer.json"):
        tokenizer = load_tokenizer(str(shared / "tokenizers" / source), "<|endoftext|>")
        for text in samples:
            tokens = [*tokenizer.encode(text), tokenizer.eot_id, *tokenizer.encode(text)]
            assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)
            assert not any("�" in piece for piece in streamed(tokenizer, tokens))
        tokens = list(range(0, tokenizer.vocab_size, 7))
        assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)
    _, llama = load_llama2c(shared / "weights" / "stories260K" / "stories260K.bin")
    for text in samples:
        tokens = llama.encode(text)
        assert "".join(streamed(llama, tokens)) == llama.decode(tokens)
    assert "".join(streamed(llama, list(range(512)))) == llama.decode(range(512))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_nothing_in_nothing_out(name):
    assert streamed(TOKENIZERS[name], []) == [""]
