"""Records that are lines of JSON, in blocks whose boundaries depend on nothing but the content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from gptstar.data.records import BLOCK_BYTES, MAX_RECORD_BYTES, Block, Fields, Record, Unreadable, attempt, decode, pick
from gptstar.errors import UserError

_BOM = b"\xef\xbb\xbf"


def cut_lines(chunks: Iterator[bytes], piece: str) -> Iterator[Block]:
    """The lines that start within bytes [BLOCK_BYTES * k, BLOCK_BYTES * (k + 1)) of the content, for every k.

    A k in which no line starts gives no block. UserError for a line longer than MAX_RECORD_BYTES.
    """
    held = bytearray()  # content from byte `start` on, the beginning of line `line`
    start = line = 0

    def take(size: int) -> Block:
        nonlocal start, line
        with memoryview(held) as view:
            block = Block(piece, "jsonl", line, bytes(view[:size]))
        del held[:size]
        start += size
        line += block.raw.count(b"\n")
        return block

    for chunk in chunks:
        searched = len(held)
        held += chunk
        while True:
            limit = (start // BLOCK_BYTES + 1) * BLOCK_BYTES - start  # where in `held` the next block's range begins
            end = held.find(b"\n", max(limit - 1, searched)) + 1
            if not end:
                break
            yield take(end)
            searched = 0
        if len(held) > limit + MAX_RECORD_BYTES:
            number = line + held.count(b"\n") + 1
            raise UserError(
                f"{piece}, line {number}, is longer than {MAX_RECORD_BYTES} bytes: is it jsonl, a record in each line?"
            )
    if held:
        yield take(len(held))


def read_lines(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    """The records of whole lines; empty lines are none but count. Messages number lines from 1, as editors do."""
    raw = block.raw.removeprefix(_BOM) if block.first == 0 else block.raw
    for number, line in enumerate(raw.split(b"\n"), block.first):
        line = line.strip()
        if line:
            where = f"{block.piece}, line {number + 1} (the first is 1)"
            yield attempt(number, partial(read_json, line, fields, block.lenient, where))


def read_json(data: bytes, fields: Fields, lenient: bool, where: str) -> tuple[str, str | None]:
    """Text and date of one JSON object. Escapes of half a surrogate pair, which no UTF-8 can hold, become U+FFFD."""
    try:
        record = json.loads(decode(data, lenient, where))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): mend or remove it") from error
    text, date = pick(record, fields, where)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, date
