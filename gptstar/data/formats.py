"""The formats that documents come in, by the suffix of a file's name. A new one is an entry here and its two functions.

A cutter runs in the reading process and turns content into blocks without decoding it; a decoder runs in a worker and
turns a block into records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptstar.data.archives import (
    JSON_LINES_SUFFIXES,
    TEXT_SUFFIXES,
    cut_file,
    cut_tar,
    cut_warc,
    read_members,
    read_warc,
)
from gptstar.data.compression import COMPRESSIONS
from gptstar.data.lines import cut_lines, read_lines
from gptstar.data.records import Block, Fields, Record, Unreadable

Cutter = Callable[[Iterator[bytes], str], Iterator[Block]]  # (content in chunks, name of the piece)
Decoder = Callable[[Block, Fields], Iterator[Record | Unreadable]]

CUTTERS: dict[str, Cutter] = {
    **dict.fromkeys(TEXT_SUFFIXES, cut_file),
    **dict.fromkeys(JSON_LINES_SUFFIXES, cut_lines),
    ".tar": cut_tar,
    ".warc": cut_warc,
    ".wet": cut_warc,
}
PARQUET = ".parquet"  # has to be read from its end: it is neither compressed as a whole nor streamed
_SHORT = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst", ".tbz2": ".tar.bz2"}


def _columns(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    from gptstar.data.columns import read_columns  # pyarrow takes a moment: only where it is needed

    return read_columns(block, fields)


DECODERS: dict[str, Decoder] = {
    "members": read_members,
    "jsonl": read_lines,
    "warc": read_warc,
    "columns": _columns,
}


def split_suffix(name: str) -> tuple[str, str] | None:
    """(format, compression) of a file's name: one of CUTTERS or PARQUET, one of COMPRESSIONS or "". None: unknown."""
    name = name.lower()  # BOOK.TXT
    for short, long in _SHORT.items():
        if name.endswith(short):
            name = name.removesuffix(short) + long
    if name.endswith(PARQUET):
        return PARQUET, ""
    compression = next((c for c in COMPRESSIONS if name.endswith(c)), "")
    name = name.removesuffix(compression)
    return next(((suffix, compression) for suffix in CUTTERS if name.endswith(suffix)), None)


def known_suffixes() -> str:
    """For messages."""
    return f"{', '.join((*CUTTERS, PARQUET))}, all but {PARQUET} also with {', '.join(COMPRESSIONS)}"
