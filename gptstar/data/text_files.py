"""Many small files, a document each, as one piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptstar.data.archives import TEXT_SUFFIXES
from gptstar.data.reading import FilePiece, Piece
from gptstar.data.records import BLOCK_BYTES, Block


@dataclass(frozen=True)
class TextFiles:
    """Files without compression in their order; their sizes, as they were listed, say which share a block."""

    files: Sequence[FilePiece]

    @property
    def name(self) -> str:
        if len(self.files) == 1:
            return self.files[0].name
        return f"{os.path.commonpath([os.path.dirname(file.path) for file in self.files])} ({len(self.files)} files)"

    def blocks(self, start: int = 0) -> Iterator[Block]:
        group: list[FilePiece] = []
        first = size = number = 0
        for file in self.files:
            group.append(file)
            size += int(file.stamp.split()[0])
            if size >= BLOCK_BYTES:
                if number >= start:
                    yield _block(group, first)
                first, size, number, group = first + len(group), 0, number + 1, []
        if group and number >= start:
            yield _block(group, first)


def gathered(pieces: Sequence[FilePiece]) -> list[Piece]:
    """The pieces in their order, neighbours that are plain text files on this machine as one."""
    found: list[Piece] = []
    run: list[FilePiece] = []
    for piece in pieces:
        if piece.path.endswith(TEXT_SUFFIXES) and "://" not in piece.path:
            run.append(piece)
            continue
        found += [TextFiles(run)] if run else []
        run = []
        found.append(piece)
    return [*found, TextFiles(run)] if run else found


def name_of(piece: Piece, record: int) -> str:
    """What messages call the file that a record of a piece lies in."""
    return piece.files[record].path if isinstance(piece, TextFiles) else piece.name


def _block(files: Sequence[FilePiece], first: int) -> Block:
    """`raw` names each file, empty ones too: a record's number is its file's."""
    raw = []
    for file in files:
        blocks = list(file.blocks())
        raw.append((file.path, blocks[0].raw[0][1] if blocks else b""))
    return Block("", "members", first, raw, files[0].lenient)
