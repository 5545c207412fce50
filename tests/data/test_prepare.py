import dataclasses
import json
import platform
from pathlib import Path

import numpy as np
import pytest

from gptstar.data.corpora import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from support import write_corpus

BPE = TokenizerConfig(vocab_size=300)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_corpus(tmp_path / "text", n_file=30)
    return DataConfig(
        name="t",
        corpus="text_files",
        paths=[f"{tmp_path}/text/*.txt"],
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.3,
        shard_tokens=2000,
    )


def documents(corpus, split) -> list[str]:
    stream = getattr(corpus, split)
    tokens = stream.read(0, len(stream))
    ends = np.flatnonzero(tokens == corpus.tokenizer.eot_id)
    assert ends[-1] == len(tokens) - 1
    return [corpus.tokenizer.decode(part[:-1]) for part in np.split(tokens, ends + 1)[:-1]]


def test_every_document_is_there_once_closed_by_one_end_of_text(data):
    corpus = prepare(data, BPE)
    texts = sorted(p.read_text() for p in Path(data.paths[0]).parent.glob("*.txt"))
    train, held_out = documents(corpus, "train"), documents(corpus, "validation")
    assert sorted(train + held_out) == texts and train and held_out
    assert corpus.validation.split.bytes == sum(len(t.encode()) for t in held_out)
    assert len(corpus.train.split.shards) > 1


def test_the_second_time_comes_from_the_cache_and_is_the_same(data):
    first, second = prepare(data, BPE), prepare(data, BPE)
    assert (first.cached, second.cached) == (False, True) and first.folder == second.folder
    assert documents(first, "train") == documents(second, "train")


def test_the_tokenizer_never_sees_held_out_text(data, monkeypatch):
    import gptstar.data.prepare as module

    seen = []
    train = module.train_tokenizer
    monkeypatch.setattr(
        module, "train_tokenizer", lambda texts, config: train([seen.append(t) or t for t in texts], config)
    )
    corpus = prepare(data, BPE)
    assert sorted(seen) == sorted(documents(corpus, "train"))


@pytest.mark.parametrize(
    "change",
    [
        {"clean": "ftfy"},
        {"validation_fraction": 0.4},
        {"shard_tokens": 3000},
        {"tokenizer": TokenizerConfig(vocab_size=290)},
        {"content": True},
    ],
    ids=str,
)
def test_whatever_goes_in_is_in_the_key(data, change):
    before = prepare(data, BPE)
    change = dict(change)
    if change.pop("content", False):
        path = next(Path(data.paths[0]).parent.glob("*.txt"))
        path.write_text(path.read_text() + " more")
    tokenizer = change.pop("tokenizer", BPE)
    after = prepare(dataclasses.replace(data, **change), tokenizer)
    assert not after.cached and after.folder != before.folder


def test_a_document_stays_on_its_side_when_the_corpus_grows(data):
    before = set(documents(prepare(data, BPE), "validation"))
    folder = Path(data.paths[0]).parent
    (folder / "aaa.txt").write_text("something new")
    after = set(documents(prepare(data, BPE), "validation"))
    assert before <= after


def test_separate_held_out_files(data, tmp_path):
    (tmp_path / "held.txt").write_text("held out " * 50)
    corpus = prepare(dataclasses.replace(data, validation_paths=[str(tmp_path / "held.txt")]), BPE)
    assert documents(corpus, "validation") == ["held out " * 50]
    assert len(documents(corpus, "train")) == 30


def test_ftfy_repairs_text(data, tmp_path):
    (tmp_path / "text" / "moji.txt").write_text("caf\u00c3\u00a9 " * 20)
    corpus = prepare(dataclasses.replace(data, clean="ftfy"), BPE)
    assert "caf\u00e9 " * 20 in documents(corpus, "train") + documents(corpus, "validation")


def test_a_damaged_cache_is_refused_with_the_remedy(data):
    folder = prepare(data, BPE).folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{shard}.*delete {folder}"):
        prepare(data, BPE)
    (folder / "meta.json").write_text(json.dumps({"splits": {}}))
    with pytest.raises(UserError, match="damaged"):
        prepare(data, BPE)


def test_a_failure_leaves_nothing_behind(data):
    (Path(data.paths[0]).parent / "zzz.txt").write_bytes(b"\xff\xfe broken")
    with pytest.raises(UserError, match=r"zzz\.txt is not UTF-8"):
        prepare(data, BPE)
    assert list(Path(data.cache_dir).iterdir()) == []


def test_work_of_a_killed_preparation_is_removed(data):
    folder = prepare(data, BPE).folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    leftover = folder.parent / f".{folder.name}.{platform.node()}.999999999"
    leftover.mkdir()
    prepare(data, BPE)
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_an_empty_split_is_refused(data):
    with pytest.raises(UserError, match="validation split of data=t has no document"):
        prepare(dataclasses.replace(data, validation_fraction=1e-9), BPE)
