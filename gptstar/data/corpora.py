"""Named corpora: which pieces their documents lie in, and a fingerprint of every piece.

A new kind of corpus is a function here and an entry in `CORPORA`.
"""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from gptstar.data.filters import read_date
from gptstar.data.fingerprint import fingerprint
from gptstar.data.hub import open_hub
from gptstar.data.reading import Fields, FilePiece, Piece, Unreadable, find_pieces, read_records
from gptstar.data.sources import is_remote
from gptstar.data.text_files import TextFiles, gathered
from gptstar.errors import UserError


@dataclass
class CorpusConfig:
    """Where documents come from, and how much of them a pass over a mixture takes.

    corpus             stdlib (the Python standard library's source), text_files, hub, or prepared
    paths              text_files: globs or URLs of .txt, .md, .py (a file is a document), .jsonl, .parquet, .warc, .wet
                       and .tar files, all but parquet also in .gz, .xz, .zst, .bz2
    validation_paths   text_files: the same for held-out text; empty: validation_fraction of the documents
    dataset, subset, split, validation_split    hub: a dataset's name (or folder), configuration and splits
    revision           hub: the commit or tag to take; null: the newest, whose every change makes another corpus of it
    url                prepared: a folder that `python -m gptstar.prepare` has made, anywhere fsspec reaches
    text_field         the field or column that holds a document's text; a.b is field b of field a
    date_field         the one with its date, for newer_than
    newer_than         only documents of a later date than this one, e.g. 2018-10-31
    licence            goes into the card of the prepared corpus
    epochs             how often a pass over the mixture goes through this corpus
    weight             instead: its share of a pass, relative to the other corpora's weights; none goes through a corpus
                       more often than its epochs
    """

    corpus: str = "text_files"
    paths: list[str] = field(default_factory=list)
    validation_paths: list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = None
    revision: str | None = None
    url: str | None = None
    text_field: str = "text"
    date_field: str | None = None
    newer_than: str | None = None
    licence: str | None = None
    epochs: float = 1.0
    weight: float | None = None

    def check(self, name: str) -> None:
        """Raises ValueError, with `name` for the keys, for what is no corpus."""
        for each in fields(CorpusConfig):
            value = getattr(self, each.name)
            if not _fits(value, str(each.type)):
                wanted = {"list[str]": "a list of texts, [...]", "float": "a number"}.get(str(each.type), "a text")
                raise ValueError(f"{name}.{each.name}={value!r} must be {wanted}")
        if self.corpus not in (*CORPORA, "prepared"):
            known = ", ".join((*CORPORA, "prepared"))
            raise ValueError(f"{name}.corpus={self.corpus!r} is unknown: choose one of {known}")
        if self.corpus == "text_files" and not self.paths:
            raise ValueError(f"{name}.paths is empty: name the files, for example {name}.paths=[corpus/*.txt]")
        if self.corpus == "hub" and not self.dataset:
            raise ValueError(f"{name}.dataset is not set: name one, for example {name}.dataset=Salesforce/wikitext")
        if self.corpus == "prepared" and not self.url:
            raise ValueError(f"{name}.url is not set: name the folder of a prepared corpus")
        if self.newer_than is not None and not self.date_field:
            raise ValueError(f"{name}.newer_than={self.newer_than} needs {name}.date_field, which holds the date")
        if self.newer_than is not None and read_date(str(self.newer_than)) is None:
            raise ValueError(f"{name}.newer_than={self.newer_than} must be a date, such as 2018-12-31")
        for key in ("epochs", "weight"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}.{key}={value} must be above 0")

    @property
    def fields(self) -> Fields:
        """Which fields of a record are read."""
        return Fields(self.text_field, self.date_field)


@dataclass(frozen=True)
class Source:
    """A piece, what identifies its content, and whether it is held out as a whole."""

    piece: Piece
    fingerprint: str
    held_out: bool = False


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, held-out ones first where they have pieces of their own.

    separate: whether held-out documents have pieces of their own; otherwise they are still to be split off;
    ends: for they are few, the end of each (ends.py).
    """

    sources: list[Source]
    fields: Fields
    separate: bool = False
    ends: bool = False

    @property
    def n_byte(self) -> int | None:
        """Size of all files as they lie; None where some are not on this machine."""
        files = [file for source in self.sources for file in _files(source.piece)]
        return None if not files or any(map(is_remote, files)) else sum(map(os.path.getsize, files))

    @property
    def fingerprint(self) -> str:
        """Changes whenever a document does."""
        return _together([f"{s.held_out:d} {s.fingerprint}" for s in self.sources])

    def texts(self, held_out: bool = False) -> Iterator[str]:
        """The training or the held-out pieces' documents as they are; what cannot be read is left out."""
        for source in self.sources:
            if source.held_out == held_out:
                for block in source.piece.blocks():
                    for record in read_records(block, self.fields):
                        if not isinstance(record, Unreadable):
                            yield record.text


def open_corpus(config: CorpusConfig, name: str = "data", memory: Path | None = None) -> Corpus:
    """The corpus a configuration names; `name` is what messages call it.

    memory: a file that remembers what large files contain. Raises UserError for files that do not exist or cannot be
    read.
    """
    return CORPORA[config.corpus](config, name, memory)


def _stdlib(config: CorpusConfig, name: str, memory: Path | None) -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))
    if not files:
        raise UserError(f"{name}.corpus=stdlib: no Python source under {root}: use data=text_files instead")
    piece = TextFiles([FilePiece(str(path), lenient=True) for path in files])
    return Corpus([Source(piece, fingerprint(_files(piece), memory))], config.fields)


def _text_files(config: CorpusConfig, name: str, memory: Path | None) -> Corpus:
    train = find_pieces(f"{name}.paths", config.paths, config.fields)
    held_out = find_pieces(f"{name}.validation_paths", config.validation_paths, config.fields)
    both = {piece.path for piece in train} & {piece.path for piece in held_out}
    if both:
        raise UserError(
            f"{min(both)} is in {name}.paths and in {name}.validation_paths: held-out text must not be trained on"
        )
    sources = [
        Source(piece, fingerprint(_files(piece), memory), are_held_out)
        for files, are_held_out in ((held_out, True), (train, False))
        for piece in gathered(files)
    ]
    return Corpus(sources, config.fields, separate=bool(held_out))


def _hub(config: CorpusConfig, name: str, memory: Path | None) -> Corpus:
    assert config.dataset is not None
    splits = [(config.split, False)]
    if config.validation_split:
        splits.insert(0, (config.validation_split, True))
    sources = []
    for split, held_out in splits:
        opened = open_hub(config.dataset, config.subset, split, config.revision)
        pieces, identity = opened.pieces(config.fields), opened.fingerprint(memory)
        sources += [Source(piece, f"{identity} {i}/{len(pieces)}", held_out) for i, piece in enumerate(pieces)]
    return Corpus(sources, config.fields, separate=len(splits) > 1)


def _fits(value: object, kind: str) -> bool:
    if kind == "list[str]":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if value is None:
        return kind.endswith("| None")
    if kind.startswith("float"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)


CORPORA: dict[str, Callable[[CorpusConfig, str, Path | None], Corpus]] = {
    "stdlib": _stdlib,
    "text_files": _text_files,
    "hub": _hub,
}


def _files(piece: Piece) -> list[str]:
    if isinstance(piece, TextFiles):
        return [file.path for file in piece.files]
    return [piece.path] if isinstance(piece, FilePiece) else []


def _together(fingerprints: list[str]) -> str:
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
