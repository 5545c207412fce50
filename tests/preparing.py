"""What tests of preparation need: records in files, and what a prepared corpus holds."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np

from gptstar.data.config import DataConfig
from gptstar.data.duplicates import NearConfig
from gptstar.data.filters import FilterConfig
from gptstar.data.prepare import Prepared, PreparedCorpus
from gptstar.data.shards import ShardWriter
from gptstar.data.tokenizer import TokenizerConfig
from support import sentence

BPE = TokenizerConfig(vocab_size=300)


def write_jsonl(path: Path, texts: list[str], **more: list) -> Path:
    """A record for each text; more: further fields, a value for each record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text} | {key: values[i] for key, values in more.items()} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def made_up(n: int, seed: int = 0, n_word: int = 30) -> list[str]:
    """Texts that have nothing to do with each other."""
    rng = random.Random(seed)
    return [sentence(rng, n_word) for _ in range(n)]


def documents(prepared: Prepared, split: str, name: str | None = None) -> list[str]:
    """The text of all documents of a split, each closed by one end of text."""
    corpus = prepared.corpora[name or next(iter(prepared.corpora))]
    stream, eot = getattr(corpus, split), prepared.tokenizer.eot_id
    tokens = stream.read(0, len(stream))
    ends = np.flatnonzero(tokens == eot)
    assert len(ends) == stream.split.documents and (not len(tokens) or ends[-1] == len(tokens) - 1)
    return [prepared.tokenizer.decode(part[:-1]) for part in np.split(tokens, ends + 1)[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but verified.json."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def listed(folder: Path, name: str = "removed.jsonl") -> list[dict]:
    """The lines of removed.jsonl."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def records(tmp_path: Path, **changes) -> DataConfig:
    """Four files of records, with repetitions, near repetitions, short ones and unreadable ones among them."""
    rng = random.Random(0)
    for number in range(4):
        texts = made_up(60, seed=number, n_word=12)
        texts[50:52] = ["short", ""]
        texts[53:56] = texts[3:6]
        words = texts[7].split(" ")
        texts[57] = " ".join([*words[:-1], "other"])
        path = write_jsonl(tmp_path / "in" / f"{number}.jsonl", texts)
        raw = path.read_bytes().splitlines(keepends=True)
        raw.insert(rng.randrange(60), b'{"text": 1}\n')
        path.write_bytes(b"".join(raw))
    values = dict(
        name="r",
        corpus="text_files",
        paths=[f"{tmp_path}/in/*.jsonl"],
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.2,
        shard_tokens=1500,
        bad_records="skip",
        filters=FilterConfig(min_chars=10),
        exact_duplicates=True,
        near_duplicates=NearConfig(threshold=0.5, n_gram=2),
        workers=2,
    )
    return DataConfig(**(values | changes))


def corpus_of(prepared: Prepared, name: str | None = None) -> PreparedCorpus:
    """The only corpus, or the one of a name."""
    return prepared.corpora[name or next(iter(prepared.corpora))]


def left_in(cache: Path) -> list[str]:
    """What lies in the cache besides what is meant to stay."""
    stays = re.compile(r"\.locks|(fingerprints|ends)\.json|\w+-[0-9a-f]{16}(\.npz)?")
    return sorted(path.name for path in cache.iterdir() if not stays.fullmatch(path.name))


def marks(cache: Path) -> dict[str, tuple[int, int]]:
    """The finished parts, and what changes when one is made again."""
    found = {}
    for path in cache.glob(".parts-*/*.json"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if not path.name.startswith("."):
            found[str(path)] = (status.st_ino, status.st_mtime_ns)
    return found


def add(writer: ShardWriter, tokens: list[int], n_byte: int = 0) -> None:
    """One document; 0 is its end of text."""
    writer.add(np.array([*tokens, 0]), np.array([len(tokens) + 1]), np.array([n_byte]))
