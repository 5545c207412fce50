import json

import numpy as np
import pytest

from gptstar.data import parts as module
from gptstar.data.duplicates import KEY
from gptstar.data.parts import Part, part_path, sweep
from gptstar.data.worker import DOCUMENT, Chunk


def chunk(n: int, reason: str = "empty") -> Chunk:
    documents = np.zeros(n, DOCUMENT)
    documents["tokens"], documents["record"] = 2, np.arange(n)
    tokens = np.arange(2 * n, dtype="<u2").tobytes()
    keys, signatures = np.zeros(n, KEY), np.full((n, 16 if n else 0), 7, np.uint32)
    keys["low"] = np.arange(n)
    return Chunk(documents, tokens, keys, signatures, [{"record": n, "reason": reason}], [{"task": "t"}], n + 1, 10 * n)


@pytest.mark.parametrize("n", [0, 5])
def test_what_is_read_is_what_was_written(tmp_path, n):
    stem = tmp_path / "stem"
    written = Part.write(part_path(stem, 0), "piece", chunk(n), 3, last=True)
    assert Part.found(stem) == [written]
    assert (written.n_read, written.n_byte, written.documents, written.tokens) == (n + 1, 10 * n, n, 2 * n)
    assert (written.reasons, written.next_block, written.last) == ({"empty": 1}, 3, True)
    assert written.documents_table()["record"].tolist() == list(range(n))
    assert written.tokens_of_all("<u2").tolist() == list(range(2 * n))
    assert written.keys()["low"].tolist() == list(range(n)) and len(written.signatures()) == n
    assert written.removed() == ([{"record": n, "reason": "empty"}], [{"task": "t"}])


def test_tokens_are_as_wide_as_they_were(tmp_path):
    wide = chunk(2)
    wide.tokens = np.array([70_000, 1, 2, 100_000], "<u4").tobytes()
    part = Part.write(part_path(tmp_path / "stem", 0), "piece", wide, 1, last=True)
    assert part.tokens_of_all("<u4").tolist() == [70_000, 1, 2, 100_000]


def test_a_part_exists_when_its_mark_is_there(tmp_path, monkeypatch):
    """Whatever a kill leaves before that is written over."""
    stem, n_file = tmp_path / "stem", len(module.SUFFIXES)
    Part.write(part_path(stem, 0), "piece", chunk(3), 1, last=False)
    replace = module.os.replace
    for stop in range(n_file):
        left = [stop]

        def killed(*paths, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            replace(*paths)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.os, "replace", killed)
            Part.write(part_path(stem, 1), "piece", chunk(4, "half"), 2, last=True)
        assert [part.documents for part in Part.found(stem)] == [3]
    Part.write(part_path(stem, 1), "piece", chunk(5), 2, last=True)
    assert [part.documents for part in Part.found(stem)] == [3, 5] and Part.found(stem)[1].reasons == {"empty": 1}
    assert len(list(tmp_path.iterdir())) == 2 * n_file


def test_sweeping_removes_parts_of_a_piece_by_any_content_and_what_is_half_written(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for stem, piece in (("old", "mine"), ("new", "mine"), ("third", "another's")):
        for number in range(2):
            Part.write(part_path(folder / stem, number), piece, chunk(2), number + 1, last=number == 1)
    (folder / "half-00000.npz").write_bytes(b"")
    (folder / ".half-00000.npz").write_bytes(b"")
    (folder / ".third-00002.json.part").write_text("{")
    sweep(folder, {"mine"})
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"third"}
    assert len(list(folder.iterdir())) == 2 * len(module.SUFFIXES) and len(Part.found(folder / "third")) == 2
    sweep(folder, {"another's"})
    assert not folder.exists()


def test_a_mark_says_nothing_about_where_it_lies(tmp_path):
    part = Part.write(part_path(tmp_path / "stem", 0), "piece", chunk(1), 1, last=True)
    assert json.loads((tmp_path / "stem-00000.json").read_text())["path"] is None
    part.remove()
    assert list(tmp_path.iterdir()) == []
