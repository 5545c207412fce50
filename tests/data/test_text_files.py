import pytest

from gptstar.data import text_files
from gptstar.data.reading import Fields, find_pieces, read_records
from gptstar.data.text_files import TextFiles, gathered, name_of


@pytest.fixture
def pieces(tmp_path):
    for i, text in enumerate(["one", "", "drei ü", "four" * 10, "five", ""]):
        (tmp_path / f"{i}.txt").write_text(text)
    return find_pieces("data.paths", [f"{tmp_path}/*.txt"])


def read(piece, start=0):
    return [r for block in piece.blocks(start) for r in read_records(block, Fields())]


@pytest.mark.parametrize("size", [1, 8, 30, 10**9])
def test_a_file_is_a_document_and_its_number_does_not_depend_on_blocks(pieces, monkeypatch, size):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", size)
    found = read(TextFiles(pieces))
    assert [(r.number, r.text) for r in found] == [(0, "one"), (2, "drei ü"), (3, "four" * 10), (4, "five")]
    assert [name_of(TextFiles(pieces), r.number)[-5:] for r in found] == ["0.txt", "2.txt", "3.txt", "4.txt"]


def test_reading_goes_on_at_any_block(pieces, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 8)
    blocks = list(TextFiles(pieces).blocks())
    assert len(blocks) == 3
    for start in range(len(blocks) + 1):
        assert list(TextFiles(pieces).blocks(start)) == blocks[start:]


def test_neighbours_that_are_text_become_one_piece(tmp_path, pieces):
    for name in ("1a.jsonl", "2a.txt.gz"):
        (tmp_path / name).write_bytes(b"")
    found = gathered(find_pieces("data.paths", [f"{tmp_path}/*"]))
    assert [len(piece.files) if isinstance(piece, TextFiles) else piece.name[-8:] for piece in found] == [
        2,
        "1a.jsonl",
        1,
        "a.txt.gz",
        3,
    ]
    assert found[0].name == f"{tmp_path} (2 files)" and found[2].name == f"{tmp_path}/2.txt"
    assert name_of(found[1], 5) == found[1].name
    assert gathered([]) == []
