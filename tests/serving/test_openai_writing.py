"""Tokens, their spelling and their places in the text, for tokenizers of all kinds and whatever stands in the way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from gptstar.data.tokenizer import Tokenizer
from gptstar.generation.continuation import Continuation, Prompt
from gptstar.generation.engine import Event
from gptstar.generation.generate import Generation
from gptstar.generation.logprobs import TokenLogprob
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.openai.writing import LEAST, Piece, Spelling, Writing
from serving.openai_support import TOKENIZER

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<s>", "▁", "▁a", "b", "▁ab", *BYTES]
LLAMA = FastTokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<s>"))
LLAMA.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
TOKENIZERS = {"byte-level": TOKENIZER, "byte fallback": Tokenizer(LLAMA, "<s>")}


def written(tokenizer: Tokenizer, prompt: list[int], tokens: list[int], echo: bool, **wish) -> tuple[list[Piece], str]:
    """What is told of a sequence that chooses these tokens, and its text."""
    settings = SamplingSettings(max_new_tokens=len(tokens), logprobs=0, **wish)
    ready = Prompt(tokenizer, prompt, settings)
    writing = Writing(tokenizer, Spelling(tokenizer), ready, echo, True)
    continuation, pieces = Continuation(tokenizer, ready), []
    scored = [TokenLogprob(token, -2.0, []) for token in ready.tokens[1:]]
    text = ready.text if echo else ""
    for token in tokens:
        piece, done = continuation.feed(token), None
        text += piece
        if continuation.finish_reason is not None:
            stopped = continuation.stopped_by
            done = Generation(ready.text, "", continuation.tokens, continuation.finish_reason, stopped, 0, None)
        event = Event(1, 0, piece, [token], [TokenLogprob(token, -1.0, [])], done)
        pieces.append(writing.feed(event, scored))
        if done is not None:
            break
    assert writing.mean_logprob == -1.0 and writing.n_written == len(pieces)
    return pieces, text


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    echo=st.booleans(),
    stop=st.sampled_from([[], ["a"], ["b\ufffd"]]),
    data=st.data(),
)
def test_tokens_are_told_in_order_and_lie_in_the_text(name, echo, stop, data):
    tokenizer = TOKENIZERS[name]
    some = st.lists(st.integers(1, 8) | st.integers(1, tokenizer.vocab_size - 1), max_size=12)
    prompt, tokens = data.draw(some), data.draw(some.filter(bool))
    pieces, text = written(tokenizer, prompt, tokens, echo, stop=stop)
    assert "".join(piece.text for piece in pieces) == text
    said = [one for piece in pieces for one in piece.said]
    everything = [*prompt, *tokens] if echo else tokens
    assert [one.token for one in said] == everything[: len(said)]
    if not stop:
        assert len(said) == len(everything)
    offsets = [one.offset for one in said]
    assert offsets == sorted(offsets) and all(0 <= at <= len(text) for at in offsets)
    if echo and prompt:
        assert said[0].logprob is None and all(one.logprob == -2.0 for one in said[1 : len(prompt)])
    told, left = 0, len(prompt) if echo else 0
    for piece in pieces:  # nothing is told of before its text is; a prompt's text may end with tokens that have none
        told += len(piece.text)
        assert all(one.offset < told for one in piece.said[left:]) or piece.finish_reason
        assert all(one.offset <= told for one in piece.said[:left])
        left = 0
    spelling = Spelling(tokenizer)
    if name == "byte-level":
        for one in said:
            own = spelling.text(one.token)
            if not own.startswith("bytes:"):
                rest = text[one.offset :]
                assert rest.startswith(own) or (stop and own.startswith(rest))


def test_a_stop_strings_tokens_are_not_told():
    tokens = TOKENIZER.encode("the catMx")
    pieces, text = written(TOKENIZER, [], tokens, False, stop=["M"])
    told = "".join(Spelling(TOKENIZER).text(one.token) for piece in pieces for one in piece.said)
    assert told == text == "the cat" and pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_of_tokens_are_those_of_the_text(name):
    tokenizer = TOKENIZERS[name]
    spelling = Spelling(tokenizer)
    first = tokenizer.fast.token_to_id("▁a" if name == "byte fallback" else "a")
    for token in range(1, tokenizer.vocab_size):
        try:
            whole = spelling.bytes(token).decode()
        except UnicodeDecodeError:
            assert spelling.text(token).startswith("bytes:\\x")
            continue
        assert spelling.text(token) == whole
        assert tokenizer.decode([first, token]) == tokenizer.decode([first]) + whole
    assert spelling.bytes(10**6) == b""


def test_json_can_hold_what_has_no_probability():
    ready = Prompt(TOKENIZER, [5], SamplingSettings(max_new_tokens=1))
    event = Event(1, 0, "", [6], [TokenLogprob(6, float("-inf"), [(6, float("-inf"))])], None)
    writing = Writing(TOKENIZER, Spelling(TOKENIZER), ready, wanted=True)
    writing.feed(event, None)
    (said,) = writing._waiting
    assert said.logprob == LEAST and said.top == [(6, LEAST)]
