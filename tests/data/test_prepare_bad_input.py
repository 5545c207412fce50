import dataclasses
import gzip
import json
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from preparing import BPE, contents, corpus_of, left_in, listed, made_up, marks, records, write_jsonl

from gptstar.data import prepare as module
from gptstar.data import tokenise
from gptstar.data.config import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.reading import FilePiece
from gptstar.errors import UserError


def test_what_was_finished_stays_and_the_same_command_goes_on(tmp_path, tokenizer, small_parts, monkeypatch):
    data = records(tmp_path, bad_records="stop", workers=1)
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", made_up(60, number, 12))
    expected = contents(corpus_of(prepare(data, BPE, given=tokenizer)).folder)
    data = dataclasses.replace(data, cache_dir=str(tmp_path / "again"))
    broken = tmp_path / "in" / "2.jsonl"
    whole = broken.read_bytes()
    broken.write_bytes(whole.replace(b'{"text"', b'{"test"', 1))
    with pytest.raises(UserError, match=rf"{broken}, line 1 .*no text in field 'text' \(it has test\)"):
        prepare(data, BPE, given=tokenizer)
    before = marks(Path(data.cache_dir))
    assert len(before) > 5 and not list(Path(data.cache_dir).glob("r-*"))
    broken.write_bytes(whole)
    written = []
    write = tokenise.Part.write
    monkeypatch.setattr(tokenise.Part, "write", lambda path, *rest: written.append(str(path)) or write(path, *rest))
    folder = corpus_of(prepare(data, BPE, given=tokenizer)).folder
    assert contents(folder) == expected and left_in(Path(data.cache_dir)) == []
    assert written and not {f"{path}.json" for path in written} & before.keys()


def test_parts_of_files_that_were_mended_go_with_the_others(tmp_path, tokenizer, small_parts):
    data = records(tmp_path, bad_records="stop")
    path = write_jsonl(tmp_path / "in" / "1.jsonl", made_up(60, 1, 12))
    for number in (0, 2, 3):
        (tmp_path / "in" / f"{number}.jsonl").unlink()
    whole = path.read_text()
    path.write_text(whole + "{\n")
    with pytest.raises(UserError, match="not valid JSON"):
        prepare(data, BPE, given=tokenizer)
    assert marks(Path(data.cache_dir))
    path.write_text(whole)
    prepare(data, BPE, given=tokenizer)
    assert left_in(Path(data.cache_dir)) == []


def broken_gzip(folder: Path) -> Path:
    raw = "".join(json.dumps({"text": t}) + "\n" for t in made_up(300)).encode()
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(raw)[:-20])
    return folder / "0.jsonl.gz"


def broken_utf8(folder: Path) -> Path:
    (folder / "0.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    return folder / "0.jsonl"


def missing_field(folder: Path) -> Path:
    (folder / "0.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    return folder / "0.jsonl"


def broken_text(folder: Path) -> Path:
    (folder / "0.txt").write_bytes(b"fine \xff not")
    return folder / "0.txt"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_gzip, ["0.jsonl.gz"]),
        (broken_utf8, ["line 2", "not UTF-8"]),
        (missing_field, ["line 2", "no text in field 'text' (it has body)"]),
        (broken_text, ["not UTF-8 (byte 5)"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_broken_input_is_named_in_one_line(tmp_path, tokenizer, monkeypatch, make, words, workers):
    monkeypatch.setattr(module, "SMALL", 0 if workers else 10**9)
    path = make(tmp_path)
    data = records(tmp_path, bad_records="stop", workers=max(1, workers), paths=[str(path), f"{tmp_path}/in/1.jsonl"])
    write_jsonl(tmp_path / "in" / "1.jsonl", made_up(30))
    with pytest.raises(UserError) as error:
        prepare(data, BPE, given=tokenizer)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
    assert not list(Path(data.cache_dir).glob("r-*"))


def test_an_error_is_told_while_earlier_pieces_are_still_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    data = records(tmp_path, bad_records="stop")
    (tmp_path / "in" / "3.jsonl").write_text("{\n")
    for number in (0, 1, 2):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", ["some text"])
    blocks, told = FilePiece.blocks, threading.Event()

    def slow(self, start=0):
        first = next(blocks(self, start))
        yield first
        if not self.path.endswith("3.jsonl"):
            while not told.is_set():  # an endless file
                time.sleep(0.02)
                yield first

    monkeypatch.setattr(FilePiece, "blocks", slow)
    watch = threading.Timer(20, told.set)
    watch.start()
    with pytest.raises(UserError, match=r"3\.jsonl"):
        prepare(dataclasses.replace(data, workers=4), BPE, given=tokenizer)
    assert not told.is_set()
    watch.cancel()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, tokenizer, small_parts, monkeypatch, workers):
    monkeypatch.setattr(module, "SMALL", 0 if workers else 10**9)
    data = records(tmp_path, workers=max(1, workers))
    path = tmp_path / "in" / "1.jsonl"
    whole = path.read_bytes()
    write = tokenise.Part.write

    def write_and_change(target, piece, *rest):
        if piece == str(path) and target.name.endswith("-00001"):
            path.write_bytes(whole + b'{"text": "a late one"}\n')
        return write(target, piece, *rest)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"{path} changed while it was read"):
        patch.setattr(tokenise.Part, "write", write_and_change)
        prepare(data, BPE, given=tokenizer)
    path.write_bytes(whole)
    folder = corpus_of(prepare(data, BPE, given=tokenizer)).folder
    fresh = dataclasses.replace(data, cache_dir=str(tmp_path / "fresh"))
    assert contents(folder) == contents(corpus_of(prepare(fresh, BPE, given=tokenizer)).folder)


def test_a_full_disk_is_one_line_and_the_next_start_goes_on(tmp_path, tokenizer, small_parts):
    """A limit on the size of files, at every size that stops it somewhere else."""
    data = records(tmp_path)
    fresh = dataclasses.replace(data, cache_dir=str(tmp_path / "fresh"))
    expected = contents(corpus_of(prepare(fresh, BPE, given=tokenizer)).folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    stopped = []
    try:
        for limit in (100, 1000, 2000, 2800, 4000, 8000, 20_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                prepare(data, BPE, given=tokenizer)
                break
            except UserError as error:
                stopped.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert not list(Path(data.cache_dir).glob("r-*"))
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert len(stopped) >= 3
    for text in stopped:
        assert f"data.cache_dir={data.cache_dir} cannot be written" in text and "\n" not in text
    assert contents(corpus_of(prepare(data, BPE, given=tokenizer)).folder) == expected
    assert left_in(Path(data.cache_dir)) == []


def test_unreadable_records_are_skipped_counted_and_listed(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    bad = [b"{", b'{"text": 3}', b'{"text": "\xff"}', b'{"body": "x"}']
    (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join([b'{"text": "first one"}', *bad, b'{"text": "last one"}']))
    write_jsonl(tmp_path / "in" / "b.jsonl", made_up(30))
    data = DataConfig(
        corpus="text_files", paths=[f"{tmp_path}/in/*"], cache_dir=str(tmp_path / "c"), bad_records="skip",
        validation_fraction=0.3,
    )  # fmt: skip
    prepared = prepare(data, BPE, given=tokenizer)
    folder = corpus_of(prepared).folder
    assert [(e["record"], e["reason"]) for e in listed(folder)] == [(i, "unreadable") for i in (1, 2, 3, 4)]
    assert "field 'text' holds int" in listed(folder)[1]["detail"]
    card = json.loads((folder / "data.json").read_text())
    assert card["removed"] == {"unreadable": 4} and card["read"]["documents"] == 36
    assert sum(s["documents"] for s in card["splits"].values()) == 32


def test_a_cache_that_is_no_folder_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir=.*file.* cannot be written"):
        prepare(dataclasses.replace(data, cache_dir=str(tmp_path / "file" / "cache")), BPE)
