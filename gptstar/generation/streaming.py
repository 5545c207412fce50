"""Tokens to text while they come: no character is split and nothing given out is taken back."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from functools import cache

from gptstar.data.tokenizer import Tokenizer


class TextStream:
    """Text of tokens fed one by one: all pieces and the finish together are `tokenizer.decode` of all tokens.

    Byte-level tokenizers (GPT-2, NeoX, those trained here): a piece ends where a character does.
    Tokenizers that fall back on bytes (Llama's): decoding turns each byte of a run of byte tokens into a replacement
    character if the run as a whole is not UTF-8, so a run is held back until another token ends it.
    Bytes that can no longer become a character come out as U+FFFD, as in `decode`. A token costs the same however many
    came before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        kinds = _decoder_kinds(tokenizer)
        self._decoder = _ByteLevel() if kinds == ["ByteLevel"] else _Windowed(tokenizer, "ByteFallback" in kinds)
        self._string = tokenizer.fast.id_to_token

    def feed(self, token: int) -> str:
        """The text that is decided now that `token` has come; often empty, sometimes that of several tokens."""
        string = self._string(token)
        return "" if string is None else self._decoder.feed(string)  # `decode` skips unknown numbers too

    def feed_all(self, tokens: Iterable[int]) -> str:
        """The text that is decided after many tokens."""
        return "".join(map(self.feed, tokens))

    def finish(self) -> str:
        """What was held back, where no more tokens come."""
        return self._decoder.finish()


def token_bytes(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """What a token adds to a text that has begun: whole characters, or bytes of which others complete a character."""
    byte_level = _decoder_kinds(tokenizer) == ["ByteLevel"]

    @cache
    def spelt(token: int) -> bytes:
        string = tokenizer.fast.id_to_token(token)
        if string is None:
            return b""
        if byte_level:
            return _bytes_of(string)
        if _is_byte(string):
            return bytes([int(string[3:5], 16)])
        decoder = tokenizer.fast.decoder
        decode = " ".join if decoder is None else decoder.decode
        return decode(["a", string])[len(decode(["a"])) :].encode()

    return spelt


class _ByteLevel:
    """Each token is some bytes, whatever stands around it."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, string: str) -> str:
        return self._utf8.decode(_bytes_of(string))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Windowed:
    """Any other decoder: what a token adds to the text of the token before it.

    The start of a text is special to many decoders (they drop a space there). So all tokens are decoded together until
    there is some text, and from then on a letter stands before the window.
    """

    def __init__(self, tokenizer: Tokenizer, bytes_in_runs: bool) -> None:
        decoder = tokenizer.fast.decoder
        self._decode: Callable[[list[str]], str] = " ".join if decoder is None else decoder.decode
        self._bytes_in_runs = bytes_in_runs
        self._context: list[str] = []
        self._waiting: list[str] = []

    def feed(self, string: str) -> str:
        self._waiting.append(string)
        return "" if self._bytes_in_runs and _is_byte(string) else self.finish()

    def finish(self) -> str:
        if not self._waiting:
            return ""
        before, text = self._decode(self._context), self._decode(self._context + self._waiting)
        if text:
            self._context = ["a", self._waiting[-1]]
        else:
            self._context += self._waiting
        self._waiting = []
        return text[len(before) :]


def _is_byte(string: str) -> bool:
    return len(string) == 6 and string.startswith("<0x") and string.endswith(">")


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    """The names of the steps of a tokenizer's decoder."""
    if tokenizer.fast.decoder is None:
        return []
    decoder = json.loads(tokenizer.fast.decoder.__getstate__())
    return [step["type"] for step in decoder.get("decoders", [decoder])]


def _bytes_of(string: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[character] for character in string)
    except KeyError:  # an added token that is spelt out
        return string.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes (Radford et al., 2019): printable ones stand for themselves, the rest for
    what follows U+00FF."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
