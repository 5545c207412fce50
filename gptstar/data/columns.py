"""Records that are rows of columns: parquet files, and what the datasets library streams."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptstar.data.records import BLOCK_BYTES, Block, Fields, Record, Unreadable, as_date, attempt, decode, missing
from gptstar.data.sources import Source, root_reason
from gptstar.errors import UserError

ROWS = 1000  # in a block at most


def cut_parquet(source: Source, piece: str, fields: Fields | None, start: int) -> Iterator[Block]:
    """Rows in blocks of about BLOCK_BYTES that end with their row group, the first `start` blocks left out.

    fields: read only their columns; None reads all. How many rows make a block is taken from the file's own index, so
    that row groups before `start` need not be read. UserError for a missing column or a damaged file.
    """
    row = 0
    try:
        # Column by column in small pieces: a whole row group may be larger than memory.
        table = pq.ParquetFile(source.file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        schema = table.schema_arrow
        names = None if fields is None else columns_of(fields, schema.names, piece)
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            # A list's column is called list.item.element or so: all that a name begins.
            columns = [about.column(i) for i in range(about.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if names is None or _top(c, names))
            rows = max(1, min(ROWS, BLOCK_BYTES * about.num_rows // max(1, size)))
            blocks = -(-about.num_rows // rows)
            if start < blocks:
                for batch in table.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                    if start:
                        start -= 1
                    else:
                        yield Block(piece, "columns", row, compact(batch))
                    row += len(batch)
            else:
                start -= blocks
                row += about.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{piece} cannot be read as parquet beyond its row {row} ({root_reason(error)}): get it anew"
        ) from error


def columns_of(fields: Fields, names: list[str], where: str) -> list[str]:
    """The columns that the fields lie in. UserError for one that is not among `names`."""
    found = [_column(fields.text, names, where, "data.text_field")]
    if fields.date is not None:
        found.append(_column(fields.date, names, where, "data.date_field"))
    return list(dict.fromkeys(found))


def compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows without the memory that they are a slice of, which pickle would send along."""
    if batch.get_total_buffer_size() <= 1.1 * batch.nbytes + 1024:
        return batch
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


def read_columns(block: Block, fields: Fields) -> Iterator[Record | Unreadable]:
    """The rows of a RecordBatch. Text may be stored as strings or as bytes."""
    texts = _values(block.raw, fields.text, block, "data.text_field")
    if not (pa.types.is_null(texts.type) or _is_text(texts.type)):
        where = f"{block.piece}, record {block.first}"
        raise UserError(f"{where}: field {fields.text!r} holds {texts.type}, not text: set data.text_field")
    dates = [None] * len(texts)
    if fields.date is not None:
        dates = _values(block.raw, fields.date, block, "data.date_field").to_pylist()
    # Bytes, because strings of a file are not checked when they are read and an error should name its record.
    for number, (data, date) in enumerate(
        zip(texts.cast(pa.large_binary()).to_pylist(), dates, strict=True), block.first
    ):
        yield attempt(number, partial(_row, data, date, fields, block.lenient, f"{block.piece}, record {number}"))


def _row(data: bytes | None, date: Any, fields: Fields, lenient: bool, where: str) -> tuple[str, str | None]:
    if data is None:
        raise UserError(f"{where}: field {fields.text!r} holds null, not text: set data.text_field")
    return decode(data, lenient, where), None if fields.date is None else as_date(date, fields.date, where)


def _column(path: str, names: list[str], where: str, key: str) -> str:
    name = path if path in names else path.partition(".")[0]
    if name not in names:
        raise missing(path, names, where, key)
    return name


def _top(column: Any, names: list[str]) -> bool:
    path = column.path_in_schema
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _values(batch: pa.RecordBatch, path: str, block: Block, key: str) -> pa.Array:
    """One column, or a field within a column of nested records; null where any of them is."""
    import pyarrow.compute as pc

    where = f"{block.piece}, record {block.first}"
    name = _column(path, batch.schema.names, where, key)
    values = batch.column(name)
    rest = path[len(name) + 1 :]
    for part in rest.split(".") if rest else []:
        if not pa.types.is_struct(values.type) or values.type.get_field_index(part) < 0:
            raise missing(path, batch.schema.names, where, key)
        values = pc.struct_field(values, part)
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _is_text(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
        )
    )
