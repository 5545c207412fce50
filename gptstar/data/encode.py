"""Text to token bytes at several times the tokenizer's own speed: what stands between two spaces is tokenised once.

Byte-level BPE (GPT-2, GPT-NeoX) cuts text into words before it merges anything, and no word reaches over the place
where white space follows something else. So the tokens of a document are those of its pieces, cut at such places, and
most pieces are old acquaintances. Other tokenizers do all of it themselves.
"""

from __future__ import annotations

import json
import re

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from gptstar.data.shards import token_dtype
from gptstar.data.tokenizer import Tokenizer

MEMORY = 500_000  # pieces remembered, the first that come, so the frequent ones: about 100 MB
LONGEST = 32  # characters of a piece worth remembering
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's, as tokenizers have it
_PIECES = re.compile(f"[{_SPACE}]*[^{_SPACE}]+|[{_SPACE}]+")


class Encoder:
    """A tokenizer with a memory. Its tokens are always those of the tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.by_pieces = words_end_at_spaces(tokenizer.fast)
        self._known: dict[str, bytes] = {}

    def encode(self, texts: list[str]) -> list[bytes]:
        """The token numbers of each text as they lie in a shard, nothing added."""
        if not self.by_pieces:
            return self._plainly(texts)
        split = [_PIECES.findall(text) for text in texts]
        new = list(set().union(*split).difference(self._known))
        self._known.update(zip(new, self._plainly(new), strict=True))
        found = [b"".join(map(self._known.__getitem__, pieces)) for pieces in split]
        crowded = len(self._known) > MEMORY
        for piece in new:
            if crowded or len(piece) > LONGEST:
                del self._known[piece]
        return found

    def _plainly(self, texts: list[str]) -> list[bytes]:
        return [np.array(ids, dtype=self.dtype).tobytes() for ids in self.tokenizer.encode_batch(texts)]


def words_end_at_spaces(fast: FastTokenizer) -> bool:
    """Whether a tokenizer treats what lies on both sides of a piece's end independently.

    It does with GPT-2's way of cutting words, no dropout, no normalisation that looks across a space (NFC composes
    nothing with one), and no added token with something before a space in it or that swallows its neighbours.
    """
    parts = json.loads(fast.to_str())
    words, model, normalizer = parts["pre_tokenizer"] or {}, parts["model"], parts["normalizer"] or {}
    added = [token for token in fast.get_added_tokens_decoder().values() if not token.special]
    return (
        words.get("type") == "ByteLevel"
        and words.get("use_regex", True)
        and not words["add_prefix_space"]
        and model["type"] == "BPE"
        and not model.get("dropout")
        and normalizer.get("type", "NFC") == "NFC"
        and not any(token.rstrip or token.single_word or " " in token.content.lstrip(" ") for token in added)
    )
