import itertools
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data import shards as shards_module
from gptstar.data.shards import ShardWriter, Split, TokenStream, token_dtype, verify
from gptstar.errors import UserError


def write(folder: Path, documents, shard_tokens=10, vocab_size=300, at_once=10**9, writer=None) -> Split:
    """`at_once`: documents that are added together."""
    writer = writer or ShardWriter(folder, "train", vocab_size, shard_tokens)
    for start in range(0, len(documents), at_once):
        some = documents[start : start + at_once]
        tokens = np.array([t for d in some for t in (*d, 0)], token_dtype(vocab_size))
        lengths = np.array([len(d) + 1 for d in some], np.int64)
        writer.add(tokens, lengths, 3 * (lengths - 1))
    return writer.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    st.lists(st.lists(st.integers(1, 299), max_size=12), min_size=1, max_size=20),
    st.integers(1, 30),
    st.integers(1, 20),
)
@settings(max_examples=30)
def test_shards_depend_on_no_grouping_and_writing_goes_on_after_any_shard(documents, shard_tokens, at_once):
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(3)]
        for folder in folders:
            folder.mkdir()
        split = write(folders[0], documents, shard_tokens)
        assert write(folders[1], documents, shard_tokens, at_once=at_once) == split
        assert all(shard.tokens >= shard_tokens for shard in split.shards[:-1])
        states: list[dict] = []
        writer = ShardWriter(
            folders[2], "train", 300, shard_tokens, closed=lambda: states.append(writer.split.as_dict())
        )
        writer.add(
            np.array([t for d in documents[:at_once] for t in (*d, 0)], "<u2"),
            *(np.array([len(d) + more for d in documents[:at_once]]) * times for more, times in ((1, 1), (0, 3))),
        )
        writer.abandon()
        finished = Split.from_dict(states[-1]) if states else Split()
        rest = documents[finished.documents :]
        writer = ShardWriter(folders[2], "train", 300, shard_tokens, finished)
        assert write(folders[2], rest, writer=writer) == split
        assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 299), max_size=12), min_size=1, max_size=20),
    st.integers(1, 30),
    st.data(),
)
def test_what_is_read_is_what_was_written(documents, shard_tokens, data):
    expected = [t for d in documents for t in (*d, 0)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = Split.from_dict(json.loads(json.dumps(write(folder, documents, shard_tokens).as_dict())))
        assert (split.tokens, split.documents) == (len(expected), len(documents))
        assert split.bytes == 3 * sum(map(len, documents))
        verify(folder, split.shards, 300)
        stream = TokenStream(folder, split, 300)
        start = data.draw(st.integers(0, len(expected)))
        n = data.draw(st.integers(0, len(expected) - start))
        assert stream.read(start, n).tolist() == expected[start : start + n]
        rebuilt = []
        for shard in split.shards:
            tokens = np.fromfile(folder / shard.file, token_dtype(300)).tolist()
            offsets = [*np.load(folder / shard.offsets_file).tolist(), len(tokens)]
            rebuilt += [tokens[a : b - 1] for a, b in itertools.pairwise(offsets)]
        assert rebuilt == documents


def test_types_are_as_narrow_as_the_vocabulary_allows(tmp_path):
    assert (token_dtype(65_536), token_dtype(65_537)) == ("<u2", "<u4")
    split = write(tmp_path, [[70_000, 1]], vocab_size=100_000)
    assert TokenStream(tmp_path, split, 100_000).read(0, 3).tolist() == [70_000, 1, 0]


def test_reading_outside_is_an_error(tmp_path):
    stream = TokenStream(tmp_path, write(tmp_path, [[1, 2]]), 300)
    with pytest.raises(IndexError):
        stream.read(1, 3)


def test_maps_are_opened_when_they_are_read_and_those_read_last_stay(tmp_path):
    split = write(tmp_path, [[1, 2, 3]] * 9)  # three shards of twelve tokens
    asked, dropped = [], []

    def locate(shard):
        asked.append(shard.file[10])
        return tmp_path / shard.file

    stream = TokenStream(tmp_path / "elsewhere", split, 300, locate, 2, lambda shard: dropped.append(shard.file[10]))
    assert len(stream) == 36 and asked == []
    for start in (0, 12, 0, 24, 0, 12):
        assert stream.read(start, 4).tolist() == [1, 2, 3, 0]
    assert ("".join(asked), "".join(dropped)) == ("0121", "12")
    assert stream.read(0, 36).tolist() == [1, 2, 3, 0] * 9


def test_a_local_stream_keeps_every_map(tmp_path):
    split = write(tmp_path, [[1, 2, 3]] * 9)
    stream = TokenStream(tmp_path, split, 300)
    stream.read(0, 36)
    for shard in split.shards:
        (tmp_path / shard.file).unlink()
    assert stream.read(0, 36).tolist() == [1, 2, 3, 0] * 9
    with pytest.raises(UserError, match=r"train-00000.bin is missing"):
        TokenStream(tmp_path, split, 300).read(0, 1)


def test_threads_read_on_while_a_shard_is_on_its_way(tmp_path):
    split = write(tmp_path, [[1, 2, 3]] * 9)
    there = threading.Event()

    def locate(shard):
        assert shard.file != "train-00001.bin" or there.wait(10)
        return tmp_path / shard.file

    stream = TokenStream(tmp_path, split, 300, locate, 2)
    with ThreadPoolExecutor(8) as pool:
        waiting = pool.submit(stream.read, 10, 4)
        assert stream.read(24, 4).tolist() == stream.read(0, 4).tolist() == [1, 2, 3, 0] and not waiting.done()
        there.set()
        assert waiting.result().tolist() == [3, 0, 1, 2]
        starts = [7 * i % 33 for i in range(500)]
        expected = np.tile([1, 2, 3, 0], 9)
        for start, found in zip(starts, pool.map(lambda start: stream.read(start, 3), starts), strict=True):
            assert np.array_equal(found, expected[start : start + 3])


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("train-00001.bin", damage_truncate, "has 22 bytes instead of 24"),
        ("train-00001.bin", damage_flip, "altered"),
        ("train-00001.bin", Path.unlink, "missing"),
        ("train-00000.offsets.npy", damage_flip, "altered"),
        ("train-00000.offsets.npy", Path.unlink, "missing"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, file, damage, words):
    split = write(tmp_path, [[1, 2, 3]] * 9)
    damage(tmp_path / file)
    with pytest.raises(UserError) as error:
        verify(tmp_path, split.shards, 300)
    assert file in str(error.value) and words in str(error.value) and "delete" in str(error.value)


@pytest.fixture
def verified(tmp_path) -> Split:
    """A corpus that was written long ago."""
    split = write(tmp_path, [[1, 2, 3]] * 9)
    for file in tmp_path.iterdir():
        os.utime(file, (10**9, 10**9))
    verify(tmp_path, split.shards[:1], 300)
    verify(tmp_path, split.shards[1:], 300)
    return split


@pytest.fixture
def read(monkeypatch) -> list[str]:
    names: list[str] = []
    checksum = shards_module.file_checksum
    monkeypatch.setattr(shards_module, "file_checksum", lambda path: names.append(path.name) or checksum(path))
    return names


def test_what_was_verified_is_not_read_again(tmp_path, verified, read):
    verify(tmp_path, verified.shards, 300)
    assert read == []
    (tmp_path / "train-00001.bin").touch()
    verify(tmp_path, verified.shards, 300)
    assert read == ["train-00001.bin"]


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"train-00000.bin": 1}', None])
def test_a_broken_stamp_is_ignored_and_made_anew(tmp_path, verified, read, stamp):
    path = tmp_path / "verified.json"
    good = json.loads(path.read_text())
    assert set(good) == {name for s in verified.shards for name in (s.file, s.offsets_file)}
    assert set(good["train-00000.bin"]) == {"size", "mtime_ns", "sha256"}
    path.unlink() if stamp is None else path.write_text(stamp)
    verify(tmp_path, verified.shards, 300)
    assert len(read) == 6 and json.loads(path.read_text()) == good


@pytest.mark.parametrize(
    ("damage", "words"),
    [(damage_flip, "altered"), (damage_truncate, "has 22 bytes"), (Path.unlink, "missing")],
)
def test_damage_after_verification_is_found(tmp_path, verified, damage, words):
    damage(tmp_path / "train-00002.bin")
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            verify(tmp_path, verified.shards, 300)


def test_a_stamp_of_another_content_does_not_count(tmp_path, verified):
    verified.shards[0].sha256 = "0" * 64
    with pytest.raises(UserError, match="altered"):
        verify(tmp_path, verified.shards, 300)


def test_what_was_written_a_moment_ago_is_read_again(tmp_path, read):
    split = write(tmp_path, [[1, 2, 3]])
    read.clear()
    verify(tmp_path, split.shards, 300)
    verify(tmp_path, split.shards, 300)
    assert len(read) == 4 and not (tmp_path / "verified.json").exists()


def test_a_folder_that_cannot_be_written_is_verified_each_time(tmp_path, verified, read):
    (tmp_path / "verified.json").unlink()
    (tmp_path / "verified.json").mkdir()
    for _ in range(2):
        verify(tmp_path, verified.shards, 300)
    assert len(read) == 12
