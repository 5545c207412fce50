import datetime
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptstar.data import columns
from gptstar.data.columns import compact
from gptstar.data.reading import Block, Fields, FilePiece, Record, read_records
from gptstar.errors import UserError
from support import strictly


def write(path, table, **options):
    pq.write_table(pa.table(table), path, **options)
    return FilePiece(path, Fields())


def read(piece, fields=None) -> list[Record]:
    return [r for block in piece.blocks() for r in strictly(read_records(block, fields or Fields()))]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_parquet_round_trip_in_blocks_that_end_with_row_groups(tmp_path, monkeypatch, compression, version):
    monkeypatch.setattr(columns, "ROWS", 10)
    texts = [f"document {i} ü" * (i % 7) for i in range(103)]
    options = dict(row_group_size=25, compression=compression, data_page_version=version)
    piece = write(tmp_path / "a.parquet", {"id": list(range(103)), "text": texts}, **options)
    blocks = list(piece.blocks())
    assert read(piece) == [Record(i, text, None) for i, text in enumerate(texts)]
    assert [b.first for b in blocks] == [0, 10, 20, 25, 35, 45, 50, 60, 70, 75, 85, 95, 100]
    assert blocks[0].raw.schema.names == ["text"]  # other columns are not read
    for start in range(len(blocks) + 2):
        rest = list(piece.blocks(start))
        assert [b.first for b in rest] == [b.first for b in blocks[start:]]
        assert all(a.raw.equals(b.raw) for a, b in zip(rest, blocks[start:], strict=True))


def test_row_groups_before_the_start_are_not_read(tmp_path, monkeypatch):
    piece = write(tmp_path / "a.parquet", {"text": [str(i) for i in range(100)]}, row_group_size=10)
    asked = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(self, *args, **options):
        asked.extend(options["row_groups"])
        return real(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    assert [b.first for b in piece.blocks(8)] == [80, 90] and asked == [8, 9]


def test_long_documents_make_short_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK_BYTES", 10_000)
    texts = [f"{i:04d}" * 250 for i in range(50)]
    piece = write(tmp_path / "a.parquet", {"text": texts}, use_dictionary=False)
    assert max(len(block.raw) for block in piece.blocks()) in (9, 10) and [r.text for r in read(piece)] == texts


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_every_way_to_store_text(tmp_path, kind):
    texts = (
        pa.array(["a", "ü", "a"]) if pa.types.is_dictionary(kind) else pa.array([b"a", "ü".encode(), b"a"]).cast(kind)
    )
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts
    batch = pa.record_batch({"text": texts})
    assert [r.text for r in strictly(read_records(Block("a", "columns", 0, batch), Fields()))] == ["a", "ü", "a"]


def test_nested_fields_and_dates(tmp_path):
    when = datetime.datetime(2020, 1, 2, 3, 4)
    rows = [{"meta": {"body": "x", "at": when}, "a.b": "dots"}, {"meta": {"body": "y", "at": None}, "a.b": "dots"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    fields = Fields("meta.body", "meta.at")
    piece = FilePiece(tmp_path / "a.parquet", fields)
    assert read(piece, fields) == [Record(0, "x", "2020-01-02T03:04:00"), Record(1, "y", None)]
    assert [b.raw.schema.names for b in piece.blocks()] == [["meta"]]
    assert [r.text for r in read(FilePiece(tmp_path / "a.parquet", Fields("a.b")), Fields("a.b"))] == ["dots", "dots"]


def test_a_slice_travels_without_the_rest():
    batch = pa.record_batch({"text": ["x" * 1000] * 1000})
    small = compact(batch.slice(10, 5))
    assert small.equals(batch.slice(10, 5)) and len(pickle.dumps(small)) < 10_000 < len(
        pickle.dumps(batch.slice(10, 5))
    )
    assert compact(batch) is batch


def test_bytes_that_are_no_utf8_are_named_or_replaced(tmp_path):
    texts = pa.array([b"fine", b"a\xff"], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, texts.buffers())}), tmp_path / "a.parquet")
    piece = FilePiece(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, record 1 is not UTF-8 \(byte 1\)"):
        read(piece)
    assert [r.text for r in read(FilePiece(piece.path, lenient=True))] == ["fine", "a�"]


@pytest.mark.parametrize(
    ("table", "fields", "words"),
    [
        ({"body": ["x"]}, Fields(), "no text in field 'text' (it has body): set data.text_field"),
        ({"text": ["x"]}, Fields(date="when"), "no date in field 'when' (it has text): set data.date_field"),
        ({"text": [{"a": "x"}]}, Fields("text.b"), "no text in field 'text.b'"),
        ({"text": [1]}, Fields(), "record 0: field 'text' holds int64, not text"),
        ({"text": ["x", None]}, Fields(), "record 1: field 'text' holds null, not text"),
        ({"text": ["x"], "when": [[1]]}, Fields(date="when"), "record 0: field 'when' holds list, no date"),
    ],
)
def test_a_bad_column_is_named(tmp_path, table, fields, words):
    write(tmp_path / "a.parquet", table)
    for piece in (FilePiece(tmp_path / "a.parquet", fields), FilePiece(tmp_path / "a.parquet")):
        with pytest.raises(UserError) as error:
            read(piece, fields)
        assert "a.parquet" in str(error.value) and words in str(error.value)


def test_a_damaged_parquet_file_is_named(tmp_path):
    texts = [str(i) * 50 for i in range(1000)]
    path = tmp_path / "a.parquet"
    write(path, {"text": texts}, write_page_checksum=True, row_group_size=500, compression="none", use_dictionary=False)
    data = path.read_bytes()
    for bad in (data[:-10], data[:1000], b"", data[:100_000] + b"#" + data[100_001:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"a.parquet cannot be read as parquet beyond its row (0|500) "):
            read(FilePiece(path))


def test_an_empty_table_gives_no_block(tmp_path):
    piece = write(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert list(piece.blocks()) == []
