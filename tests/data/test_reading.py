import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data import archives, lines
from gptstar.data.compression import COMPRESSIONS
from gptstar.data.formats import CUTTERS
from gptstar.data.reading import Fields, FilePiece, find_pieces, read_records
from gptstar.errors import UserError
from support import strictly

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}
TEXTS = ["one", "zwei ü", "three\nlines", "\U0001f600"]


def jsonl(texts) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def tar(texts) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for i, text in enumerate(texts):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = len(text.encode())
            file.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def warc(texts) -> bytes:
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {}\r\n\r\n"
    return b"".join(head.format(len(t.encode())).encode() + t.encode() + b"\r\n\r\n" for t in texts)


def warc_members(texts) -> bytes:
    """As the crawls are published: each record compressed by itself."""
    return b"".join(gzip.compress(warc([t])) for t in texts)


MAKE = {
    **dict.fromkeys((".jsonl", ".json-lines", ".ndjson"), jsonl),
    ".tar": tar,
    **dict.fromkeys((".warc", ".wet"), warc),
    **dict.fromkeys((".txt", ".md", ".py"), lambda texts: "\n\n".join(texts).encode()),
}


def read(piece, fields=None):
    return [r for block in piece.blocks() for r in strictly(read_records(block, fields or Fields()))]


def test_every_format_and_compression_is_tested():
    assert set(MAKE) == set(CUTTERS) and set(COMPRESS) - {""} == set(COMPRESSIONS)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", MAKE)
def test_every_format_in_every_compression(tmp_path, suffix, compression):
    path = tmp_path / f"a{suffix}{compression}"
    data = MAKE[suffix](TEXTS)
    half = len(data) // 2  # two streams
    path.write_bytes(COMPRESS[compression](data[:half]) + COMPRESS[compression](data[half:]))
    whole = MAKE[suffix] is MAKE[".txt"]
    (piece,) = find_pieces("data.paths", [str(path)])
    assert [r.text for r in read(piece)] == (["\n\n".join(TEXTS)] if whole else TEXTS)
    assert piece.name == str(path)
    for block in piece.blocks():
        assert pickle.loads(pickle.dumps(block)) == block and block.piece == str(path)


@pytest.mark.parametrize(
    ("short", "compression"), [(".tgz", ".gz"), (".txz", ".xz"), (".tzst", ".zst"), (".tbz2", ".bz2")]
)
def test_short_names_of_compressed_tars(tmp_path, short, compression):
    (tmp_path / f"a{short}").write_bytes(COMPRESS[compression](tar(TEXTS)))
    assert [r.text for r in read(FilePiece(tmp_path / f"a{short}"))] == TEXTS


@pytest.mark.parametrize("name", ["A.TXT", "a.Txt.GZ", "A.JSONL.XZ"])
def test_suffixes_may_be_in_capitals(tmp_path, name):
    suffix, compression = next((s, c) for s in MAKE for c in COMPRESS if name.lower().endswith(f"a{s}{c}"))
    (tmp_path / name).write_bytes(COMPRESS[compression](MAKE[suffix](["abc"])))
    (piece,) = find_pieces("data.paths", [str(tmp_path / name)])
    assert [r.text for r in read(piece)] == ["abc"]


def test_a_crawls_members_are_read_one_after_the_other(tmp_path):
    (tmp_path / "a.warc.wet.gz").write_bytes(warc_members(TEXTS))
    assert [r.text for r in read(FilePiece(tmp_path / "a.warc.wet.gz"))] == TEXTS


@given(
    texts=st.lists(st.text(max_size=80), max_size=30),
    block=st.sampled_from([1, 30, 100, 10_000]),
    suffix=st.sampled_from([".jsonl", ".jsonl.xz", ".tar", ".wet.zst", ".ndjson.gz"]),
)
def test_blocks_from_a_start_are_the_rest_of_all_blocks(tmp_path_factory, texts, block, suffix):
    path = tmp_path_factory.mktemp("blocks") / f"a{suffix}"
    kind, _, compression = suffix[1:].partition(".")
    path.write_bytes(COMPRESS[f".{compression}" if compression else ""](MAKE[f".{kind}"](texts)))
    with pytest.MonkeyPatch.context() as patch:
        for module in (lines, archives):
            patch.setattr(module, "BLOCK_BYTES", block)
        piece = FilePiece(path)
        blocks = list(piece.blocks())
        for start in range(len(blocks) + 2):
            assert list(piece.blocks(start)) == blocks[start:]
        expected = [t for t in texts if t] if kind == "tar" else texts
        assert [r.text for b in blocks for r in strictly(read_records(b, Fields()))] == expected


@pytest.mark.parametrize("suffix", [*MAKE, ".jsonl.gz", ".tar.zst"])
def test_an_empty_file_gives_no_block(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert list(FilePiece(tmp_path / f"a{suffix}").blocks()) == []


def test_files_are_found_sorted_and_once(tmp_path, monkeypatch):
    for name in ("b.md", "a.txt", "sub/c.py", "a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)

    def found(*patterns):
        return [piece.name for piece in find_pieces("data.paths", list(patterns))]

    assert found("**/*.??", "./a.txt", "a.txt") == ["a.txt", "b.md", "sub/c.py"]
    assert found("a[1].jsonl") == ["a[1].jsonl"]  # the file of this very name, not the glob
    assert found("a[[]1].jsonl", "a[12].jsonl") == ["a1.jsonl", "a[1].jsonl"]
    assert found(f"file://{tmp_path}/a.txt") == [f"{tmp_path}/a.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/b.md") == [f"{tmp_path}/b.md"]


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path):
    for name in ("a.doc", "a.parquet.gz", "a.gz"):
        (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=rf"data.paths: .*{name} has an unknown suffix: use one of .txt, .md"):
            find_pieces("data.paths", [str(tmp_path / name)])
        with pytest.raises(UserError, match="unknown suffix"):
            FilePiece(tmp_path / name)
    with pytest.raises(UserError, match=r"data.paths: no file matches .*none.txt"):
        find_pieces("data.paths", [str(tmp_path / "none.txt")])
    with pytest.raises(UserError, match=r"none.txt cannot be read: No such file"):
        FilePiece(tmp_path / "none.txt")


def test_lenient_pieces_replace_what_is_no_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine \xff not")
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 \(byte 5\): convert it"):
        read(FilePiece(tmp_path / "a.txt"))
    assert [r.text for r in read(FilePiece(tmp_path / "a.txt", lenient=True))] == ["fine � not"]


def test_a_text_file_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_RECORD_BYTES", 1000)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"x" * 1001))
    with pytest.raises(UserError, match=r"a.txt.xz is one document of more than 1000 bytes: split it"):
        read(FilePiece(tmp_path / "a.txt.xz"))


def test_broken_compression_names_file_and_place(tmp_path):
    data = jsonl(f"document {i}" for i in range(100_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data)[:-20])
    with pytest.raises(UserError, match=r"a.jsonl.gz: broken gz compression after \d{7} bytes of content \(it ends"):
        read(FilePiece(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".tar", ".parquet"])
def test_a_file_that_changes_or_vanishes_while_it_is_read_is_named(tmp_path, monkeypatch, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for module in (lines, archives):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    path = tmp_path / f"a{suffix}"
    texts = [f"document {i}" for i in range(3000)]
    for change, words in ((lambda: os.utime(path, ns=(0, 0)), "changed while it was read"), (path.unlink, "moved")):
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
        else:
            kind, _, compression = suffix[1:].partition(".")
            path.write_bytes(COMPRESS[f".{compression}" if compression else ""](MAKE[f".{kind}"](texts)))
        blocks = FilePiece(path).blocks()
        next(blocks)
        change()
        with pytest.raises(UserError, match=f"a{suffix}.*{words}"):
            list(blocks)


def test_a_file_that_shrinks_counts_as_changed_and_not_as_damaged(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(TEXTS)))
    piece = FilePiece(path)
    os.truncate(path, 30)
    with pytest.raises(UserError, match=r"a.jsonl.gz changed while it was read"):
        read(piece)


def test_memory_stays_small_whatever_the_size(tmp_path):
    """300 MB that shrink to almost nothing, read in a process of its own."""
    line = json.dumps({"text": "the same document again and again " * 30}).encode() + b"\n"
    part = line * (10_000_000 // len(line))
    for suffix in (".gz", ".zst"):
        (tmp_path / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](part) * 30)
    code = """
import resource, sys
from gptstar.data.reading import FilePiece
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(len(block.raw) for block in FilePiece(sys.argv[1]).blocks())
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024)
"""
    for suffix in (".gz", ".zst"):
        command = [sys.executable, "-c", code, str(tmp_path / f"a.jsonl{suffix}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, memory = map(int, done.stdout.split())
        assert size == len(part) * 30 and memory < 60_000_000


def test_members_of_a_tar_are_forgotten_as_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(tar(["x"] * 100))
    known = []
    real = tarfile.TarFile.next

    def following(self):
        known.append(len(self.members))
        return real(self)

    monkeypatch.setattr(tarfile.TarFile, "next", following)
    assert len(read(FilePiece(tmp_path / "a.tar"))) == 100
    assert len(known) > 100 and max(known) <= 1


def test_the_corpora_at_hand_are_read(shared):
    piece = FilePiece(shared / "corpora" / "enwiki" / "validation.jsonl.xz")
    blocks = list(piece.blocks())
    found = [r for block in blocks for r in strictly(read_records(block, Fields()))]
    assert len(found) == 2000 and [r.number for r in found] == list(range(2000)) and len(blocks) == 1
