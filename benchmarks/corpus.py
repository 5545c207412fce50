"""The text that benchmarks read when none is named: Wikipedia if it lies beside the checkout, else Python's library."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_WIKIPEDIA = SHARED / "corpora" / "enwiki"


def default_corpus(folder: Path) -> tuple[str, str]:
    """A file of JSON lines with a field text, and a tokenizer; what has to be made for that is made in `folder`."""
    parts = sorted(_WIKIPEDIA.glob("train-*.jsonl.xz"))
    return (str(parts[0]), default_tokenizer(folder)) if parts else standard_library(folder)


def default_tokenizer(folder: Path) -> str:
    """GPT-2's, or one of Python's library."""
    own = SHARED / "tokenizers" / "gpt2"
    return str(own) if own.is_dir() else standard_library(folder)[1]


def standard_library(folder: Path) -> tuple[str, str]:
    """The source of the Python standard library as a .jsonl.gz file, and a BPE trained on it."""
    from gptstar.data.config import DataConfig
    from gptstar.data.corpora import open_corpus
    from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer

    texts = list(open_corpus(DataConfig()).texts())
    with gzip.open(folder / "stdlib.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    train_tokenizer(texts, TokenizerConfig()).save(folder / "tokenizer.json")
    return str(folder / "stdlib.jsonl.gz"), str(folder / "tokenizer.json")


def texts_of(path: Path | str) -> Iterator[str]:
    """The field text of each line."""
    openers: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
    file: IO[str]
    with openers.get(Path(path).suffix, open)(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]
