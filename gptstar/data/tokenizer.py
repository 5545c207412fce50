"""Tokenizers: a byte-level BPE trained here, or any that the tokenizers library can load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptstar.errors import UserError
from gptstar.hub import offline_without_network, why_not


@dataclass
class TokenizerConfig:
    """Where a tokenizer comes from.

    source       train (a byte-level BPE on the corpus's training split), a folder with tokenizer.json or with
                 vocab.json + merges.txt (GPT-2's files), a tokenizer.json, a hub name, or init_from (the tokenizer
                 of the model that a run starts from)
    vocab_size   train: how many tokens it learns, bytes and the end-of-text token included
    train_bytes  train: how much text it learns from, at most
    eot_token    the token that ends a document
    """

    name: str = "bpe"
    source: str = "train"
    vocab_size: int = 4096
    train_bytes: int = 100_000_000
    eot_token: str = "<|endoftext|>"

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("tokenizer.source is not set: name a tokenizer.json, a folder or a hub name, or train")
        if self.source == "train" and self.vocab_size < 257:
            raise ValueError(f"tokenizer.vocab_size={self.vocab_size} must be at least 257: 256 bytes and end of text")
        if self.train_bytes < 1:
            raise ValueError(f"tokenizer.train_bytes={self.train_bytes} must be at least 1")


class Tokenizer:
    """Text to token numbers and back, with one token that ends a document."""

    def __init__(self, fast: FastTokenizer, eot_token: str) -> None:
        eot_id = fast.token_to_id(eot_token)
        if eot_id is None:
            raise UserError(f"tokenizer.eot_token={eot_token!r} is not in the vocabulary: name one that is")
        # Text that spells out a special token stays text: only the joint between documents is end of text.
        fast.encode_special_tokens = True
        fast.no_truncation()  # many a published tokenizer.json cuts and pads
        fast.no_padding()
        self.fast, self.eot_token, self.eot_id = fast, eot_token, eot_id
        self.vocab_size = max(fast.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, nothing added."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token numbers of many texts, on all cores."""
        return [e.ids for e in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers; special tokens appear as they are spelt."""
        return self.fast.decode(list(tokens), skip_special_tokens=False)

    def starting_like(self, token: int) -> list[int]:
        """All tokens whose text begins with that of `token`, itself included."""
        piece = self.fast.id_to_token(token) or ""
        return sorted(i for text, i in self.fast.get_vocab(with_added_tokens=True).items() if text.startswith(piece))

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json."""
        path.write_text(self.fast.to_str(), encoding="utf-8")

    def fingerprint(self) -> str:
        """A hash of everything that decides how text is tokenised."""
        return hashlib.sha256(f"{self.fast.to_str()}\0{self.eot_token}".encode()).hexdigest()


def load_tokenizer(source: str, eot_token: str) -> Tokenizer:
    """The tokenizer of a folder, a tokenizer.json or a hub name. Raises UserError where there is none."""
    path = Path(source).expanduser()
    try:
        if path.is_file():
            fast = FastTokenizer.from_file(str(path))
        elif (path / "tokenizer.json").is_file():
            fast = FastTokenizer.from_file(str(path / "tokenizer.json"))
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            fast = _byte_level(models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt")))
            fast.add_special_tokens([eot_token])
        elif path.is_dir():
            raise UserError(
                f"tokenizer.source={source}: no tokenizer.json and no vocab.json + merges.txt in that folder: name "
                "one that has them"
            )
        else:
            offline_without_network()
            fast = FastTokenizer.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"tokenizer.source={source!r} is no local tokenizer and could not be had from the hub: {why_not(error)}: "
            "check the path, or connect"
        ) from error
    return Tokenizer(fast, eot_token)


def train_tokenizer(documents: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A byte-level BPE (Sennrich et al., arXiv:1508.07909; bytes as in GPT-2) from at most train_bytes of text."""
    fast = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.eot_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(first_bytes(documents, config.train_bytes), trainer)
    return Tokenizer(fast, config.eot_token)


def _byte_level(model: models.BPE) -> FastTokenizer:
    fast = FastTokenizer(model)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until they have `limit` bytes together; the last one is whole."""
    seen = 0
    for text in documents:
        if seen >= limit:
            return
        seen += len(text.encode())
        yield text
