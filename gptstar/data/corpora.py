"""Named corpora: where documents come from, and a fingerprint of their content.

A new kind of corpus is a function here and an entry in `CORPORA`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gptstar.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")


@dataclass
class DataConfig:
    """A corpus and how it becomes tokens.

    corpus               stdlib (the Python standard library's source), text_files or hub
    paths                text_files: globs of .txt, .md, .py (a file is a document), .jsonl[.gz|.xz|.zst], .parquet
    validation_paths     text_files: the same for held-out text; empty: validation_fraction of the documents
    dataset, subset, split, validation_split    hub: a dataset's name (or folder), configuration and splits
    text_field           the field or column that holds a document's text (jsonl, parquet, hub)
    clean                none, or ftfy: repair mojibake and normalise characters
    validation_fraction  share of the documents held out, chosen by a hash of their text, so that a document stays
                         on its side when the corpus grows and exact duplicates never straddle the split
    document_mask        whether attention stays within a document where several share a sequence
    shard_tokens         tokens in one shard file
    cache_dir            where prepared corpora are kept
    """

    name: str = "stdlib"
    corpus: str = "stdlib"
    paths: list[str] = field(default_factory=list)
    validation_paths: list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    text_field: str = "text"
    clean: str = "none"
    validation_fraction: float = 0.05
    document_mask: bool = False
    shard_tokens: int = 100_000_000
    cache_dir: str = "~/.cache/gptstar"

    def __post_init__(self) -> None:
        for key, allowed in (("corpus", tuple(CORPORA)), ("clean", ("none", "ftfy"))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"data.{key}={getattr(self, key)!r} is unknown: choose one of {', '.join(allowed)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")
        if self.shard_tokens < 1:
            raise ValueError(f"data.shard_tokens={self.shard_tokens} must be at least 1")
        if self.corpus == "text_files" and not self.paths:
            raise ValueError("data.paths is empty: name the files, for example data.paths=[corpus/*.txt]")
        if self.corpus == "hub" and not self.dataset:
            raise ValueError("data.dataset is not set: name one, for example data.dataset=Salesforce/wikitext")


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, and a hash that changes whenever they do.

    `validation` is None where held-out documents are still to be split off. `n_document` is None where unknown.
    """

    fingerprint: str
    documents: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]] | None = None
    n_document: int | None = None


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus a configuration names. Raises UserError for files that do not exist or cannot be read."""
    return CORPORA[config.corpus](config)


def _stdlib(config: DataConfig) -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))
    if not files:
        raise UserError(f"data.corpus=stdlib: no Python source under {root}: use data=text_files instead")
    return Corpus(_hash_files(files), partial(_read_files, files, config), n_document=len(files))


def _text_files(config: DataConfig) -> Corpus:
    files = _match("data.paths", config.paths)
    held_out = _match("data.validation_paths", config.validation_paths)
    both = set(files) & set(held_out)
    if both:
        raise UserError(
            f"{min(both)} is in data.paths and in data.validation_paths: held-out text must not be trained on"
        )
    return Corpus(
        f"{_hash_files(files)}/{_hash_files(held_out)}/{config.text_field}",
        partial(_read_files, files, config),
        partial(_read_files, held_out, config) if held_out else None,
    )


def _hub(config: DataConfig) -> Corpus:
    train = _load_hub(config, config.split)
    held_out = _load_hub(config, config.validation_split) if config.validation_split else None
    prints = "/".join(d._fingerprint for d in (train, held_out) if d is not None)
    return Corpus(
        f"{prints}/{config.text_field}",
        partial(_read_column, train, config),
        partial(_read_column, held_out, config) if held_out is not None else None,
        n_document=len(train),
    )


CORPORA: dict[str, Callable[[DataConfig], Corpus]] = {"stdlib": _stdlib, "text_files": _text_files, "hub": _hub}


def _match(key: str, patterns: list[str]) -> list[Path]:
    """The files of all globs, sorted and once each. UserError for a pattern without a file or an unknown suffix."""
    files: set[Path] = set()
    for pattern in patterns:
        found = [Path(p) for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p)]
        if not found:
            raise UserError(f"{key}: no file matches {pattern!r} (from {os.getcwd()}): check the path")
        files.update(found)
    for path in sorted(files):
        if not path.name.endswith((*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")):
            known = ", ".join((*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet"))
            raise UserError(f"{key}: {path} has an unknown suffix: use one of {known}")
    return sorted(files)


def _hash_files(files: list[Path]) -> str:
    """One hash over names and contents, whatever folder they lie in."""
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def _read_files(files: list[Path], config: DataConfig) -> Iterator[str]:
    for path in files:
        if path.name.endswith(TEXT_SUFFIXES):
            yield _read_text(path, lenient=config.corpus == "stdlib")
        else:
            yield from _read_records(path, config.text_field)


def _read_text(path: Path, lenient: bool) -> str:
    """A whole file as one document. The standard library has a few files in other encodings: lenient replaces."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace" if lenient else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error


def _read_records(path: Path, text_field: str) -> Iterator[str]:
    """The text field of every record of a jsonl or parquet file, streamed by the datasets library."""
    import datasets  # 2 s: only where it is needed

    kind = "parquet" if path.name.endswith(".parquet") else "json"
    try:
        records = datasets.load_dataset(kind, data_files=[str(path.absolute())], split="train", streaming=True)
        for number, record in enumerate(records):
            text = record.get(text_field)
            if not isinstance(text, str):
                raise UserError(
                    f"{path}, record {number}: no text in field {text_field!r} (it has {', '.join(record)}): "
                    "set data.text_field"
                )
            yield text
    except (UserError, GeneratorExit):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {kind}: {reason or type(error).__name__}") from error


def _read_column(dataset, config: DataConfig) -> Iterator[str]:
    for number, text in enumerate(dataset[config.text_field]):
        if not isinstance(text, str):
            raise UserError(
                f"data.text_field={config.text_field!r} of {config.dataset}: row {number} holds "
                f"{type(text).__name__}, not text: choose another column"
            )
        yield text


def _load_hub(config: DataConfig, split: str):
    import datasets

    try:
        dataset = datasets.load_dataset(config.dataset, config.subset, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.dataset={config.dataset!r} (subset {config.subset}, split {split!r}) cannot be loaded: {reason}"
        ) from error
    if config.text_field not in dataset.column_names:
        raise UserError(
            f"data.text_field={config.text_field!r} is no column of {config.dataset}: "
            f"choose one of {', '.join(dataset.column_names)}"
        )
    return dataset
