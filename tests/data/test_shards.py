import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.shards import ShardWriter, Split, TokenStream, token_dtype, verify
from gptstar.errors import UserError


def write(folder: Path, documents, shard_tokens=10, vocab_size=300) -> Split:
    writer = ShardWriter(folder, "train", vocab_size, eot_id=0, shard_tokens=shard_tokens)
    for tokens in documents:
        writer.add(tokens, n_byte=3 * len(tokens))
    return writer.close()


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
