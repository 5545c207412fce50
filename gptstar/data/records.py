"""What passes from the reading process to the workers: blocks of undecoded records, and the records in them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gptstar.errors import UserError

BLOCK_BYTES = 4_000_000  # text in a block, about
MAX_RECORD_BYTES = 256_000_000  # one line, or one file that is a document: it must fit in memory several times over


@dataclass(frozen=True)
class Block:
    """Consecutive records of one piece, undecoded: cheap to make in the reading process, cheap to send to a worker.

    piece    file or dataset shard, as messages call it
    kind     which decoder of gptstar/data/formats.py reads `raw`
    first    number of its first record, from 0; for jsonl of its first line
    raw      bytes (jsonl: whole lines), a pyarrow RecordBatch (columns), or a list of (name, bytes)
    lenient  bytes that are no UTF-8 become U+FFFD instead of an error
    """

    piece: str
    kind: str
    first: int
    raw: Any
    lenient: bool = False


@dataclass(frozen=True)
class Record:
    """One document. number: from 0 in its piece, for jsonl its line. date: as the corpus spells it, where asked for."""

    number: int
    text: str
    date: str | None


@dataclass(frozen=True)
class Unreadable:
    """A record that is no document, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Fields:
    """Where a record keeps its text and its date. Dots reach into nested records: meta.timestamp."""

    text: str = "text"
    date: str | None = None


def attempt(number: int, read: Callable[[], tuple[str, str | None]]) -> Record | Unreadable:
    """The record whose text and date `read` gives."""
    try:
        return Record(number, *read())
    except UserError as error:
        return Unreadable(number, str(error))


def pick(record: Any, fields: Fields, where: str) -> tuple[str, str | None]:
    """Text and date of a nested record. UserError naming the record for a field that is missing or holds no text."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is no record with fields but a {type(record).__name__}: one JSON object is wanted")
    text = _look_up(record, fields.text, where, "data.text_field")
    if not isinstance(text, str):
        raise UserError(f"{where}: field {fields.text!r} holds {_kind(text)}, not text: set data.text_field")
    return text, None if fields.date is None else as_date(
        _look_up(record, fields.date, where, "data.date_field"), fields.date, where
    )


def as_date(value: Any, path: str, where: str) -> str | None:
    """A date as text; None where the record has none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime.date):  # and its subclass datetime
        return value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: field {path!r} holds {_kind(value)}, no date: set data.date_field")


def no_date(fields: Fields, where: str) -> None:
    """UserError where a date is asked of a text that has no fields."""
    if fields.date is not None:
        raise UserError(f"{where} is text without fields, it has no {fields.date!r}: leave out data.date_field")


def decode(data: bytes, lenient: bool, where: str) -> str:
    """UTF-8 to text. UserError naming the first byte that is none, unless `lenient`."""
    try:
        return data.decode("utf-8", errors="replace" if lenient else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error


def missing(path: str, has: Iterable[str], where: str, key: str) -> UserError:
    """The error for a field that is not there."""
    what = "text" if key == "data.text_field" else "date"
    return UserError(f"{where}: no {what} in field {path!r} (it has {', '.join(has) or 'none'}): set {key}")


def _look_up(record: dict, path: str, where: str, key: str) -> Any:
    if path in record:  # a name that itself has dots
        return record[path]
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise missing(path, record, where, key)
        value = value[name]
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
