"""Tokens in, text and the reason for the end out: whatever is asked for together."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.continuation import Continuation, Prompt
from gptstar.generation.settings import SamplingSettings

TOKENIZER = train_tokenizer(["abc abd 😀 acd bcd " * 20] * 5, TokenizerConfig(vocab_size=280))


def continued(prompt: str, tokens: list[int], **wanted) -> tuple[list[str], Continuation, Prompt]:
    read = Prompt(TOKENIZER, prompt, SamplingSettings(**wanted))
    continuation, pieces = Continuation(TOKENIZER, read), []
    for token in tokens:
        if continuation.finish_reason is not None:
            break
        pieces.append(continuation.feed(token))
    return pieces, continuation, read


@given(
    st.sampled_from(["", "abc", "abc ", "a 😀  ", " ", "\n\n"]),
    st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=20),
    st.lists(st.sampled_from([" ", "a", "bc", "d ", "😀", "�"]), max_size=2),
    st.integers(0, 12),
)
def test_text_is_what_follows_the_prompt_up_to_the_first_stop(prompt, tokens, stops, n_new):
    read = Prompt(TOKENIZER, prompt, SamplingSettings(max_new_tokens=n_new, stop=stops))
    if read.first is not None and tokens:
        tokens[0] = read.first[tokens[0] % len(read.first)]
    pieces, continuation, read = continued(prompt, [*tokens, TOKENIZER.eot_id], max_new_tokens=n_new, stop=stops)
    chosen = tokens[: tokens.index(TOKENIZER.eot_id)] if TOKENIZER.eot_id in tokens else tokens
    chosen = chosen[: read.settings.max_new_tokens]
    whole = TOKENIZER.decode([*read.shown, *chosen])[len(read.text) :]
    found = min(((whole.find(s) + len(s), -len(s)) for s in stops if s in whole), default=None)
    expected = whole if found is None else whole[: sum(found)]
    assert "".join(pieces) == expected
    if found is None:
        assert continuation.tokens == chosen and continuation.stopped_by is None
        assert continuation.finish_reason == (
            "length" if len(chosen) == read.settings.max_new_tokens else "end_of_text"
        )
    else:
        assert continuation.finish_reason == "stop" and continuation.stopped_by in stops


def test_a_stop_string_that_tokens_cut_is_found_and_nothing_of_it_comes_out():
    tokens = TOKENIZER.encode("abd😀acd")
    pieces, continuation, _ = continued("abc", tokens, stop=["d😀a"])
    assert "".join(pieces) == "ab" and len(continuation.tokens) > 2
    assert (continuation.finish_reason, continuation.stopped_by) == ("stop", "d😀a")


def test_a_stop_token_ends_like_end_of_text_but_says_so():
    stop = TOKENIZER.encode("d")[0]
    pieces, continuation, _ = continued("x", [*TOKENIZER.encode("b"), stop], stop_tokens=[stop])
    assert "".join(pieces) == "b" and continuation.tokens == TOKENIZER.encode("b")
    assert (continuation.finish_reason, continuation.stopped_by) == ("stop", stop)


def test_half_a_character_at_the_end_is_a_replacement_character():
    half = TOKENIZER.encode("☃")[:1]
    pieces, continuation, _ = continued("x", half, max_new_tokens=1)
    assert pieces == ["�"] and continuation.finish_reason == "length"


def test_healing_takes_the_last_token_back_and_makes_room_for_it():
    read = Prompt(TOKENIZER, "abc ", SamplingSettings(max_new_tokens=5, min_new_tokens=2))
    assert read.shown == TOKENIZER.encode("abc") and read.text == "abc "
    assert read.first == TOKENIZER.starting_like(TOKENIZER.encode(" ")[0])
    assert (read.settings.max_new_tokens, read.settings.min_new_tokens, read.capacity) == (6, 3, len(read.tokens) + 6)
    for unhealed in ({"max_new_tokens": 0}, {"forced_tokens": [5]}):
        read = Prompt(TOKENIZER, "abc ", SamplingSettings(**unhealed))
        assert read.first is None and read.shown == TOKENIZER.encode("abc ")


def test_text_of_the_prompt_that_was_held_back_is_not_given_out_with_the_continuation():
    """A prompt that ends in byte tokens is decided only when another token has come."""
    pieces = ["b", " ", *(f"<0x{byte:02X}>" for byte in range(256))]
    fast = FastTokenizer(
        models.BPE({piece: i for i, piece in enumerate(["<s>", *pieces])}, [], unk_token="<s>", byte_fallback=True)
    )
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    llama = Tokenizer(fast, "<s>")
    read = Prompt(llama, "b☃", SamplingSettings())
    continuation = Continuation(llama, read)
    new = llama.encode("☃ b")
    assert read.text == "b☃" and len(new) == 5
    assert [continuation.feed(token) for token in new] == ["", "", "", "☃ ", "b"]


def test_an_empty_prompt_is_end_of_text_and_shows_nothing():
    read = Prompt(TOKENIZER, "", SamplingSettings())
    assert (read.tokens, read.shown, read.text) == ([TOKENIZER.eot_id], [], "")


def test_a_prompt_with_no_room_is_refused():
    settings = SamplingSettings(max_new_tokens=40)
    with pytest.raises(UserError, match="exceed the 32 tokens the model can read: shorten the prompt, lower max_new"):
        Prompt(TOKENIZER, "abc", settings, 32)
    with pytest.raises(UserError, match="truncate=true"):
        Prompt(TOKENIZER, "abc abd acd" * 9, replace(settings, max_new_tokens=31), 32)
    assert Prompt(TOKENIZER, "abc", settings).tokens == TOKENIZER.encode("abc")


def test_a_long_prompt_loses_its_beginning_where_that_is_wanted():
    settings = SamplingSettings(max_new_tokens=30, truncate=True)
    text = "abc abd acd bcd " * 9
    read = Prompt(TOKENIZER, text.strip(), settings, 32)
    assert read.tokens == TOKENIZER.encode(text.strip())[-2:] and read.capacity == 32
    assert read.text == text.strip()  # what the continuation follows is still the whole
    assert Prompt(TOKENIZER, "abc", settings, 99).tokens == TOKENIZER.encode("abc")
    with pytest.raises(UserError, match=r"lower max_new_tokens$"):
        Prompt(TOKENIZER, text, replace(settings, max_new_tokens=32), 32)


def test_tokens_are_read_as_they_are():
    tokens = TOKENIZER.encode("a b ")
    prompt = Prompt(TOKENIZER, tokens, SamplingSettings())
    assert prompt.tokens == tokens and prompt.first is None and prompt.text == "a b "


def test_a_prompt_beyond_its_own_limit_loses_its_beginning_whatever_room_there_is():
    wish = SamplingSettings(max_prompt_tokens=2)
    prompt = Prompt(TOKENIZER, "a b c d", wish, 200)
    assert prompt.tokens == TOKENIZER.encode("a b c d")[-2:] and prompt.text == " d"
    assert prompt.dropped == len(TOKENIZER.encode("a b c d")) - 2
