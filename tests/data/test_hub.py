import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptstar.data import hub
from gptstar.data.hub import open_hub
from gptstar.data.reading import Fields, Record, read_records
from gptstar.errors import UserError
from support import strictly


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        rows = [{"id": i, "text": f"{part} {i} ü", "meta": {"at": f"2020-{i}"}} for i in range(25 * part)]
        (folder / f"train-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_is_read_shard_by_shard(dataset, monkeypatch):
    monkeypatch.setattr(hub, "ROWS", 20)
    monkeypatch.setattr(hub, "_ROWS_AT_A_TIME", 10)
    fields = Fields("text", "meta.at")
    pieces = open_hub(str(dataset), None, "train").pieces(fields)
    assert [piece.name for piece in pieces] == [f"{dataset}/train, shard {i} of 3" for i in range(3)]
    for part, piece in enumerate(pieces):
        blocks = [pickle.loads(pickle.dumps(block)) for block in piece.blocks()]
        assert [block.first for block in blocks] == list(range(0, 25 * part, 20))
        found = [r for block in blocks for r in strictly(read_records(block, fields))]
        assert found == [Record(i, f"{part} {i} ü", f"2020-{i}") for i in range(25 * part)]
        for start in range(4):
            assert [(b.first, b.raw) for b in piece.blocks(start)] == [(b.first, b.raw) for b in blocks[start:]]
        assert all(block.raw.schema.names == ["text", "meta"] for block in blocks)


def test_long_documents_make_short_blocks(dataset, monkeypatch):
    monkeypatch.setattr(hub, "BLOCK_BYTES", 100)
    monkeypatch.setattr(hub, "_ROWS_AT_A_TIME", 5)
    piece = open_hub(str(dataset), None, "train").pieces(Fields())[2]
    assert [len(block.raw) for block in piece.blocks()] == [10] * 5


def test_parquet_goes_the_same_road(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "other": [1, 2]}), tmp_path / "train.parquet")
    (piece,) = open_hub(str(tmp_path), None, "train").pieces(Fields())
    assert [r.text for b in piece.blocks() for r in strictly(read_records(b, Fields()))] == ["a", "b"]


def test_columns_splits_and_datasets_that_are_missing_are_named(dataset, tmp_path):
    with pytest.raises(UserError, match=r"data.dataset='.*set' .*no text in field 'body' \(it has id, text, meta\)"):
        open_hub(str(dataset), None, "train").pieces(Fields("body"))
    with pytest.raises(UserError, match=r"no date in field 'when' .*set data.date_field"):
        open_hub(str(dataset), None, "train").pieces(Fields(date="when"))
    with pytest.raises(UserError, match=r"data.dataset='.*set' \(subset None, split 'test'\) cannot be loaded: "):
        open_hub(str(dataset), None, "test").pieces(Fields())
    with pytest.raises(UserError, match=r"data.dataset='.*none' .* cannot be loaded: "):
        open_hub(str(tmp_path / "none"), None, "train")


def test_damage_on_the_way_is_named(dataset):
    piece = open_hub(str(dataset), None, "train").pieces(Fields())[2]
    (dataset / "train-2.jsonl").write_text('{"text": \n')
    with pytest.raises(UserError, match=r"set/train, shard 2 of 3 cannot be read beyond its record 0: ") as error:
        list(piece.blocks())
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_text_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n{"text": null}\n')
    (piece,) = open_hub(str(tmp_path), None, "train").pieces(Fields())
    with pytest.raises(UserError, match=r"train, shard 0 of 1, record 1: field 'text' holds null, not text"):
        [r for block in piece.blocks() for r in strictly(read_records(block, Fields()))]


def test_the_fingerprint_follows_content(dataset, tmp_path):
    def now():
        return open_hub(str(dataset), None, "train").fingerprint(tmp_path / "hashes.json")

    first = now()
    text = (dataset / "train-1.jsonl").read_text()
    (dataset / "train-1.jsonl").write_text(text)  # another time, the same content
    assert now() == first
    (dataset / "train-1.jsonl").write_text(text.replace('"1 ', '"9 '))
    assert now() != first


def test_the_fingerprint_of_the_hub_is_the_commit(dataset):
    class Files(list):
        origin_metadata = (("name/set", "commit 1"),)

    split = open_hub(str(dataset), None, "train")
    split.builder.config.data_files = {"train": Files(["hf://datasets/name/set@commit1/train.parquet"])}
    first = split.fingerprint()
    Files.origin_metadata = (("name/set", "commit 2"),)
    assert split.fingerprint() != first
