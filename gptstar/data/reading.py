"""Documents from files of any size: pieces give blocks in the reading process, blocks give records in a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePath
from typing import Protocol
from urllib.parse import urlsplit

from gptstar.data.compression import decompress
from gptstar.data.formats import CUTTERS, DECODERS, PARQUET, known_suffixes, split_suffix
from gptstar.data.records import Block, Fields, Record, Unreadable
from gptstar.data.sources import Source, find, is_remote, stamp
from gptstar.errors import UserError

__all__ = ["Block", "Fields", "FilePiece", "Piece", "Record", "Unreadable", "find_pieces", "read_records", "read_texts"]


class Piece(Protocol):
    """A part of a corpus that is read from front to back: a file, or a shard of a dataset."""

    @property
    def name(self) -> str:
        """What messages and the card call it."""

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Its blocks from number `start` on. Block k is the same whenever and wherever reading began."""


@dataclass(frozen=True)
class FilePiece:
    """A file of one of the known formats, on this machine or behind an fsspec URL.

    fields   parquet: read only the columns of these; None: all
    lenient  bytes that are no UTF-8 become U+FFFD instead of an error
    stamp    what tells whether it is still the file that was listed; "": taken now

    Raises UserError for a file that is not there. Its blocks raise UserError, naming the file, for damaged content and
    for a file that changes or vanishes while it is read.
    """

    path: str
    fields: Fields | None = None
    lenient: bool = False
    stamp: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        if _format(self.path) is None:
            raise UserError(f"{self.path} has an unknown suffix: use one of {known_suffixes()}")
        if not self.stamp:
            object.__setattr__(self, "stamp", stamp(self.path))

    @property
    def name(self) -> str:
        return self.path

    def blocks(self, start: int = 0) -> Iterator[Block]:
        kind, compression = _format(self.path) or ("", "")
        with Source(self.path, self.stamp) as source:
            try:
                if kind == PARQUET:
                    from gptstar.data.columns import cut_parquet  # pyarrow takes a moment: only where it is needed

                    blocks = cut_parquet(source, self.name, self.fields, start)
                else:
                    content = decompress(source.read, compression, self.name)
                    blocks = islice(CUTTERS[kind](content, self.name), start, None)
                for block in blocks:
                    if not is_remote(self.path):
                        source.check()
                    yield replace(block, lenient=self.lenient)
            except UserError:
                source.check()  # damage in a file that changed is no damage
                raise
            source.check()


def read_records(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    """The records of a block. UserError for a whole block that has no such fields."""
    return DECODERS[block.kind](block, fields)


def read_texts(piece: Piece, fields: Fields) -> Iterator[str]:
    """All documents of a piece. UserError for the first that cannot be read."""
    for block in piece.blocks():
        for record in read_records(block, fields):
            if isinstance(record, Unreadable):
                raise UserError(record.reason)
            yield record.text


def find_pieces(key: str, patterns: list[str], fields: Fields | None = None) -> list[FilePiece]:
    """The files of all paths, URLs and globs, sorted and once each; those of this machine come first.

    key: what the configuration calls the patterns. A file whose very name a pattern is comes before a glob: a[1].jsonl.
    Raises UserError for a pattern without a file, an unknown suffix, or a server that does not answer.
    """
    files: dict[str, str] = {}
    for pattern in patterns:
        found = find(pattern)
        if not found and os.path.isdir(os.path.expanduser(pattern)):
            raise UserError(f"{key}: {pattern} is a folder: name its files, for example {pattern.rstrip('/')}/*.txt")
        if not found:
            raise UserError(f"{key}: no file matches {pattern!r} (from {os.getcwd()}): check the path")
        files |= found
    order = sorted(files, key=lambda path: (is_remote(path), (path,) if is_remote(path) else PurePath(path).parts))
    for path in order:
        if _format(path) is None:
            raise UserError(f"{key}: {path} has an unknown suffix: use one of {known_suffixes()}")
    return [FilePiece(path, fields, stamp=files[path]) for path in order]


def _format(path: str) -> tuple[str, str] | None:
    """Format and compression; the query of a web address is no part of the file's name."""
    return split_suffix(urlsplit(path).path if path.startswith(("http://", "https://")) else path)
