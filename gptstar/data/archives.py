"""Archives of many documents: tar shards and WARC/WET files, read as a stream and never unpacked to disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Self

from gptstar.data.compression import CHUNK_BYTES, COMPRESSIONS, Content, decompress
from gptstar.data.lines import cut_lines, read_json
from gptstar.data.records import (
    BLOCK_BYTES,
    MAX_RECORD_BYTES,
    Block,
    Fields,
    Record,
    Unreadable,
    attempt,
    decode,
    no_date,
)
from gptstar.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSON_LINES_SUFFIXES = (".jsonl", ".json-lines", ".ndjson")


class _Strict(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive: here only the end mark is the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} instead of a file or the archive's end") from error


def cut_tar(chunks: Iterator[bytes], piece: str) -> Iterator[Block]:
    """Text members as documents, .json members as one record each, .jsonl members (also compressed) as records.

    Other members are passed over; those of macOS's own (._*) too. Records of a .jsonl member count from 0 within it
    and its blocks are named PIECE:MEMBER; all the others count through the archive.
    """
    content = Content(chunks)
    group = _Group(piece, "members")
    members = 0
    seen: list[str] = []
    try:
        with tarfile.open(fileobj=content, mode="r|", bufsize=CHUNK_BYTES, tarinfo=_Strict) as tar:  # type: ignore[call-overload]
            for member in tar:
                tar.members = []  # otherwise it remembers all of them
                members += 1
                name = member.name
                if not member.isfile() or name.rpartition("/")[2].startswith("._"):
                    continue
                lines, compression = _is_lines(name)
                if lines:
                    seen.append(name)
                    yield from group.flush()
                    read = tar.extractfile(member).read  # type: ignore[union-attr]
                    title = f"{piece}:{name}"
                    yield from cut_lines(decompress(read, compression, title), title)
                elif name.endswith((*TEXT_SUFFIXES, ".json")):
                    seen.append(name)
                    _check_size(member.size, f"{piece}:{name}")
                    yield from group.add(name, tar.extractfile(member).read())  # type: ignore[union-attr]
                del seen[1:]
    except tarfile.TarError as error:
        if content.position:
            raise UserError(f"{piece}: broken tar after {members} members ({error}): get it anew") from error
    while content.read(CHUNK_BYTES):  # what follows the end mark, so that its compression is checked as well
        pass
    yield from group.flush()
    if members and not seen:
        raise UserError(f"{piece}: none of its {members} members is a .txt, .md, .py, .json or .jsonl file")


def read_members(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    """Documents that are files, or a record in a .json file."""
    for number, (name, data) in enumerate(block.raw, block.first):
        where = ":".join(part for part in (block.piece, name) if part)
        if name.endswith(".json"):
            yield attempt(number, partial(read_json, data, fields, block.lenient, where))
        elif data:
            no_date(fields, where)
            yield attempt(number, partial(_text, data, None, block.lenient, where))


def cut_file(chunks: Iterator[bytes], piece: str) -> Iterator[Block]:
    """A whole file as one document."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        _check_size(len(data), piece)
    if data:
        yield Block(piece, "members", 0, [("", bytes(data))])


def cut_warc(chunks: Iterator[bytes], piece: str) -> Iterator[Block]:
    """The plain text in a WARC or WET file: conversion records, and text/plain in resource and response records.

    Each is (WARC-Date, bytes); text in another character set than UTF-8 is converted. What a web server called text is
    not always any: in responses bytes that do not fit become U+FFFD.
    """
    from warcio.archiveiterator import WARCIterator
    from warcio.exceptions import ArchiveLoadFailed

    group = _Group(piece, "warc")
    records = 0
    try:
        # It would pass over a record that is cut off before its HTTP headers: they are read here instead. And it loses
        # the end of a line that lies in three of its reads: they are large.
        archive = WARCIterator(Content(chunks), no_record_parse=True, block_size=CHUNK_BYTES)
        for record in archive:
            records += 1
            where = f"{piece}, WARC record {records - 1}"
            if record.length is None or not hasattr(record.raw_stream, "limit"):
                raise UserError(f"{where}: no Content-Length: get it anew")
            data = None
            if record.rec_type in ("conversion", "resource", "response"):
                _check_size(record.length, where)
                data = _plain_text(record, where)
            while record.raw_stream.read(CHUNK_BYTES):
                pass
            if record.raw_stream.limit:
                raise UserError(f"{where} is cut off, {record.raw_stream.limit} bytes are missing: get it anew")
            if data is not None:
                yield from group.add(record.rec_headers.get_header("WARC-Date") or "", data)
        if archive.err_count:
            raise UserError(f"{piece}: a WARC record is longer than its Content-Length: get it anew")
    except ArchiveLoadFailed as error:
        raise UserError(f"{piece}: broken WARC after {records} records ({error}): get it anew") from error
    yield from group.flush()


def read_warc(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    """One document a record; its date is the WARC-Date, whatever data.date_field calls it."""
    for number, (date, data) in enumerate(block.raw, block.first):
        where, known = f"{block.piece}, text record {number}", date or None if fields.date is not None else None
        yield attempt(number, partial(_text, data, known, block.lenient, where))


def _text(data: bytes, date: str | None, lenient: bool, where: str) -> tuple[str, str | None]:
    return decode(data, lenient, where), date


class _Group:
    """Gathers documents into blocks."""

    def __init__(self, piece: str, kind: str) -> None:
        self.piece, self.kind, self.first, self.size = piece, kind, 0, 0
        self.raw: list[tuple[str, bytes]] = []

    def add(self, name: str, data: bytes) -> Iterator[Block]:
        self.raw.append((name, data))
        self.size += len(data) + 100
        if self.size >= BLOCK_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        if self.raw:
            yield Block(self.piece, self.kind, self.first, self.raw)
            self.first, self.size, self.raw = self.first + len(self.raw), 0, []


def _is_lines(name: str) -> tuple[bool, str]:
    """Whether a member holds a record in each line, and how it is compressed."""
    compression = next((c for c in COMPRESSIONS if name.endswith(c)), "")
    return name.removesuffix(compression).endswith(JSON_LINES_SUFFIXES), compression


def _plain_text(record, where: str) -> bytes | None:
    """What a WARC record holds as UTF-8, where it is plain text."""
    from warcio.statusandheaders import StatusAndHeadersParser

    kind = record.rec_headers.get_header("Content-Type") or ""
    if record.rec_type == "conversion" and not kind:
        kind = "text/plain"
    if kind.startswith("application/http") and record.rec_type == "response" and record.length:
        try:
            record.http_headers = StatusAndHeadersParser(["HTTP/1.0", "HTTP/1.1"], verify=False).parse(
                record.raw_stream
            )
        except EOFError as error:
            raise UserError(f"{where} is cut off: get it anew") from error
        kind = record.http_headers.get_header("Content-Type") or ""
    if not kind.lower().startswith("text/plain"):
        return None
    data = record.content_stream().read(MAX_RECORD_BYTES + 1)
    _check_size(len(data), where)
    _, _, charset = kind.lower().partition("charset=")
    charset = charset.partition(";")[0].strip(" '\"") or "utf-8"
    if charset == "utf-8" and record.rec_type != "response":
        return data
    try:
        text = data.decode(charset, "replace")
    except (LookupError, UnicodeError):  # a name that someone made up, or one of no character set
        text = data.decode("utf-8", "replace")
    return text.encode("utf-8", "replace")


def _check_size(size: int, where: str) -> None:
    if size > MAX_RECORD_BYTES:
        raise UserError(f"{where} is one document of more than {MAX_RECORD_BYTES} bytes: split it, or make it jsonl")
