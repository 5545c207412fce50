"""What a prepared corpus is like: how long its documents are, which tokens it uses, what each packing costs it.

All of it shard by shard in bounded memory. Of a corpus behind a URL only the first shard is looked at: the rest would
be fetched for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gptstar.data.config import PACKINGS
from gptstar.data.packing import BestFit, Concatenated, Waste
from gptstar.data.prepare import PreparedCorpus
from gptstar.data.shards import Shard, TokenStream
from gptstar.data.tokenizer import Tokenizer

EXACT = 1 << 20  # tokens of a document from which on its length is only counted as that long
MOST_PLANNED = 16  # shards that packings are compared on: their plans are kept in memory meanwhile
BLOCK = 1 << 16  # tokens counted at a time


@dataclass(frozen=True)
class Lengths:
    """How long the training documents are, in tokens, the end-of-text among them.

    edges    of the bins, int64 (bins + 1,): powers of the root of 2, rounded
    counts   documents with edges[i] <= length < edges[i + 1], int64 (bins,); those above EXACT are in the last bin
    tokens   what these documents hold, int64 (bins,)
    median   a document of middle length (at most EXACT)
    longer   share of documents, and of tokens in such, that are longer than a sequence
    n_shard  shards that were looked at
    """

    edges: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    median: int
    longest: int
    longer: tuple[float, float]
    n_shard: int

    @property
    def mean(self) -> float:
        """Tokens a document."""
        return float(self.tokens.sum() / max(1, self.counts.sum()))


@dataclass(frozen=True)
class Usage:
    """How often each token of the vocabulary occurs.

    counts   int64 (vocabulary,)
    n_token  training tokens that could have been counted; fewer were where the counts' sum is less
    """

    counts: np.ndarray
    n_token: int

    @property
    def counted(self) -> int:
        """Tokens that were looked at."""
        return int(self.counts.sum())

    @property
    def share(self) -> np.ndarray:
        """float64 (vocabulary,), 1 in all."""
        return self.counts / max(1, self.counted)

    @property
    def unused(self) -> float:
        """Share of the vocabulary that does not occur."""
        return float(np.mean(self.counts == 0))


def document_lengths(corpus: PreparedCorpus, length: int) -> Lengths:
    """From where documents start. length: of a sequence, in tokens."""
    by_length = np.zeros(EXACT + 1, np.int64)  # the last: EXACT and more
    longest = longer = tokens_longer = n_token = 0
    shards = _shards(corpus)
    for shard in shards:
        offsets = np.load(corpus.offsets(shard), mmap_mode="r").astype(np.int64, copy=False)
        sizes = np.diff(offsets, append=shard.tokens)
        by_length += np.bincount(np.minimum(sizes, EXACT), minlength=EXACT + 1)
        above = sizes[sizes > length]
        longest, longer = max(longest, int(sizes.max(initial=0))), longer + len(above)
        tokens_longer += int(above.sum())
        n_token += shard.tokens
    n_document = int(by_length.sum())
    edges = _edges(max(1, min(longest, EXACT)))
    tokens = np.add.reduceat(by_length * np.arange(EXACT + 1), edges[:-1])
    tokens[-1] += n_token - tokens.sum()  # what EXACT has cut off
    return Lengths(
        edges,
        np.add.reduceat(by_length, edges[:-1]),
        tokens,
        int(np.searchsorted(by_length.cumsum(), (n_document + 1) // 2)),
        longest,
        (longer / max(1, n_document), tokens_longer / max(1, n_token)),
        len(shards),
    )


def token_usage(corpus: PreparedCorpus, vocab_size: int, most: int) -> Usage:
    """Counts all training tokens, or about `most` of them in evenly spaced blocks."""
    n_token = sum(shard.tokens for shard in _shards(corpus))
    n_all = -(-n_token // BLOCK)
    n_block = min(n_all, -(-most // BLOCK))
    counts = np.zeros(vocab_size, np.int64)
    for block in (np.arange(n_block) * n_all // max(1, n_block)).tolist():
        tokens = corpus.train.read(block * BLOCK, min(BLOCK, n_token - block * BLOCK))
        counts += np.bincount(tokens, minlength=vocab_size)
    return Usage(counts, len(corpus.train))


def packing_wastes(corpus: PreparedCorpus, length: int, tokenizer: Tokenizer) -> tuple[dict[str, Waste], int]:
    """What each way to pack the training documents into sequences of `length` tokens costs, and the number of shards
    that this was found on, MOST_PLANNED at most.

    "+ mask": with data.document_mask, which leaves no attention across documents.
    """
    shards = _shards(corpus)[:MOST_PLANNED]
    some = TokenStream(corpus.folder, replace(corpus.train.split, shards=shards), tokenizer.vocab_size)  # none are read
    found: dict[str, Waste] = {}
    for kind, packing in zip(PACKINGS, (Concatenated, BestFit), strict=True):
        waste = packing(some, length, tokenizer.eot_id, corpus.offsets).waste()
        found |= {kind: waste, f"{kind} + mask": replace(waste, crossing=0.0)}
    return found, len(shards)


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as it reads, in quotes, with what cannot be seen escaped; raw where it is only part of a character."""
    text = tokenizer.decode([token])
    return repr(text if "\ufffd" not in text else tokenizer.fast.id_to_token(token))


def visible(text: str) -> str:
    """A text whose control characters are escaped, line ends and tabs left out: a terminal would obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _shards(corpus: PreparedCorpus) -> list[Shard]:
    shards = corpus.train.split.shards
    return shards if corpus.ahead is None else shards[:1]


def _edges(longest: int) -> np.ndarray:
    """1, 2, 3, 4, 6, 8, 11, 16, 23, ... up to the first above `longest`."""
    edges = np.unique(np.rint(2 ** (np.arange(2 * EXACT.bit_length() + 2) / 2)).astype(np.int64))
    return edges[: int(np.searchsorted(edges, longest, side="right")) + 1]
