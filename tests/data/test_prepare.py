import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from preparing import BPE, contents, corpus_of, documents, left_in, listed, records

from gptstar.data import lines, text_files, tokenise
from gptstar.data import prepare as module
from gptstar.data.duplicates import NearConfig
from gptstar.data.filters import FilterConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig
from gptstar.errors import UserError
from support import write_corpus


def test_every_document_is_there_once_closed_by_one_end_of_text(data):
    prepared = prepare(data, BPE)
    texts = sorted(p.read_text() for p in Path(data.paths[0]).parent.glob("*.txt"))
    train, held_out = documents(prepared, "train"), documents(prepared, "validation")
    assert sorted(train + held_out) == texts and train and held_out
    assert corpus_of(prepared).validation.split.bytes == sum(len(t.encode()) for t in held_out)
    assert len(corpus_of(prepared).train.split.shards) > 1
    assert left_in(Path(data.cache_dir)) == []


def test_the_second_time_comes_from_the_cache_and_is_the_same(data):
    first, second = prepare(data, BPE), prepare(data, BPE)
    a, b = corpus_of(first), corpus_of(second)
    assert (a.cached, b.cached) == (False, True) and a.folder == b.folder and a.key == b.key
    assert documents(first, "train") == documents(second, "train")


def test_the_tokenizer_never_sees_held_out_text(data, monkeypatch):
    seen = []
    train = module.train_tokenizer
    monkeypatch.setattr(
        module, "train_tokenizer", lambda texts, config: train([seen.append(t) or t for t in texts], config)
    )
    prepared = prepare(data, BPE)
    assert sorted(seen) == sorted(documents(prepared, "train"))


@pytest.mark.parametrize(
    "change",
    [
        {"clean": "ftfy"},
        {"bad_records": "skip"},
        {"filters": FilterConfig(min_chars=1)},
        {"exact_duplicates": True},
        {"near_duplicates": NearConfig(threshold=0.9)},
        {"validation_fraction": 0.4},
        {"shard_tokens": 3000},
        {"tokenizer": TokenizerConfig(vocab_size=290)},
        {"content": True},
    ],
    ids=str,
)
def test_whatever_goes_in_is_in_the_key(data, change):
    before = corpus_of(prepare(data, BPE))
    change = dict(change)
    if change.pop("content", False):
        path = next(Path(data.paths[0]).parent.glob("*.txt"))
        path.write_text(path.read_text() + " more")
    tokenizer = change.pop("tokenizer", BPE)
    after = corpus_of(prepare(dataclasses.replace(data, **change), tokenizer))
    assert not after.cached and after.folder != before.folder


def test_a_document_stays_on_its_side_when_the_corpus_grows(data):
    before = set(documents(prepare(data, BPE), "validation"))
    folder = Path(data.paths[0]).parent
    (folder / "aaa.txt").write_text("something new")
    after = set(documents(prepare(data, BPE), "validation"))
    assert before <= after


def test_separate_held_out_files(data, tmp_path):
    (tmp_path / "held.txt").write_text("held out " * 50)
    prepared = prepare(dataclasses.replace(data, validation_paths=[str(tmp_path / "held.txt")]), BPE)
    assert documents(prepared, "validation") == ["held out " * 50]
    assert len(documents(prepared, "train")) == 30


def test_ftfy_repairs_text(data, tmp_path):
    (tmp_path / "text" / "moji.txt").write_text("caf\u00c3\u00a9 " * 20)
    prepared = prepare(dataclasses.replace(data, clean="ftfy"), BPE)
    assert "caf\u00e9 " * 20 in documents(prepared, "train") + documents(prepared, "validation")


def test_a_damaged_cache_is_refused_with_the_remedy(data):
    folder = corpus_of(prepare(data, BPE)).folder
    shard = folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{shard}.*delete {folder}"):
        prepare(data, BPE)
    (folder / "meta.json").write_text(json.dumps({"splits": {}}))
    with pytest.raises(UserError, match="damaged"):
        prepare(data, BPE)


def test_a_folder_without_its_mark_is_made_again(data):
    folder = corpus_of(prepare(data, BPE)).folder
    before = contents(folder)
    (folder / "meta.json").unlink()
    (folder / "train-00001.bin").unlink()
    assert not corpus_of(prepare(data, BPE)).cached
    assert contents(folder) == before


def test_an_empty_split_is_refused(data):
    with pytest.raises(UserError, match="validation split of data=t has no document"):
        prepare(dataclasses.replace(data, validation_fraction=1e-9), BPE)
    with pytest.raises(UserError, match=r"data\.validation_fraction=0"):
        prepare(dataclasses.replace(data, validation_fraction=0), BPE)


def test_no_document_at_all_is_one_line(tmp_path, tokenizer):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.txt").write_text("")
    for name in ("empty.jsonl", "empty.txt"):
        data = records(tmp_path, name="e", paths=[f"{tmp_path}/{name}"])
        with pytest.raises(UserError, match="train split of data=e has no document"):
            prepare(data, BPE, given=tokenizer)


def test_large_vocabularies_keep_their_numbers(data, tokenizer):
    more = [f"<extra {i}>" for i in range(66_000)]
    large = Tokenizer(type(tokenizer.fast).from_str(tokenizer.fast.to_str()), tokenizer.eot_token)
    large.fast.add_tokens(more)
    large = Tokenizer(large.fast, tokenizer.eot_token)
    last = dataclasses.replace(data, paths=[*data.paths, f"{Path(data.paths[0]).parent}/last.txt"])
    Path(last.paths[1]).write_text("a <extra 65999> b")
    prepared = prepare(last, BPE, given=large)
    assert corpus_of(prepared).train.read(0, 1).dtype == np.int64
    found = [text for split in ("train", "validation") for text in raw_documents(prepared, split)]
    assert large.fast.encode("a <extra 65999> b").ids in found and max(map(max, found)) > 65_536


def raw_documents(prepared, split) -> list[list[int]]:
    stream, eot = getattr(corpus_of(prepared), split), prepared.tokenizer.eot_id
    tokens = stream.read(0, len(stream))
    return [part[:-1].tolist() for part in np.split(tokens, np.flatnonzero(tokens == eot) + 1)[:-1]]


def test_counts_add_up_and_order_stays(tmp_path, tokenizer, small_parts):
    data = records(tmp_path)
    prepared = prepare(data, BPE, given=tokenizer)
    folder = corpus_of(prepared).folder
    card, meta = json.loads((folder / "data.json").read_text()), json.loads((folder / "meta.json").read_text())
    removed = listed(folder)
    texts = {}
    for path in sorted((tmp_path / "in").iterdir()):
        for number, line in enumerate(path.read_text().splitlines()):
            texts[str(path), number] = json.loads(line)["text"]
    gone = [(entry["piece"], entry["record"]) for entry in removed]
    assert gone == sorted(gone) and len(set(gone)) == len(gone)
    stay = [text for place, text in texts.items() if place not in set(gone)]
    found = documents(prepared, "train"), documents(prepared, "validation")
    for split in found:
        places = [stay.index(text) for text in split]
        assert places == sorted(places)
    assert sorted(found[0] + found[1]) == sorted(stay)
    counts = {reason: sum(e["reason"] == reason for e in removed) for reason in {e["reason"] for e in removed}}
    assert card["removed"] == counts
    assert counts == {"unreadable": 4, "too short": 4, "empty": 4, "duplicate": 12, "near duplicate": 4}
    kept = {name: split["documents"] for name, split in card["splits"].items()}
    assert card["read"]["documents"] == len(texts) == sum(kept.values()) + sum(counts.values())
    assert card["read"]["bytes"] == sum(len(t.encode()) for t in texts.values() if isinstance(t, str))
    for number, name in enumerate(("train", "validation")):
        split = meta["splits"][name]
        assert (split["documents"], split["bytes"]) == (len(found[number]), sum(len(t.encode()) for t in found[number]))
        assert split["tokens"] == len(getattr(corpus_of(prepared), name)) == card["splits"][name]["tokens"]
    for entry in removed:
        if entry["reason"] in ("duplicate", "near duplicate"):
            original = texts[entry["of"], entry["of_record"]]
            assert (original == texts[entry["piece"], entry["record"]]) == (entry["reason"] == "duplicate")


def test_the_result_depends_on_no_size_and_no_worker(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    found = []
    for number, (part, block, workers) in enumerate([(10**9, 10**9, 1), (2000, 700, 3), (1, 1, 2)]):
        monkeypatch.setattr(tokenise, "PART_BYTES", part)
        monkeypatch.setattr(lines, "BLOCK_BYTES", block)
        data = records(tmp_path, cache_dir=str(tmp_path / f"cache{number}"), workers=workers)
        found.append(contents(corpus_of(prepare(data, BPE, given=tokenizer)).folder))
    assert found[0] == found[1] == found[2]


def test_many_text_files_depend_on_no_size_either_and_are_named_each(tmp_path, tokenizer, monkeypatch):
    write_corpus(tmp_path / "in", n_file=20)
    (tmp_path / "in" / "005.txt").write_text("")
    (tmp_path / "in" / "006.txt").write_text("short")
    (tmp_path / "in" / "011.txt").write_text((tmp_path / "in" / "002.txt").read_text())
    found = []
    for number, block in enumerate((10**9, 5000, 1)):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
        data = records(tmp_path, paths=[f"{tmp_path}/in/*.txt"], cache_dir=str(tmp_path / f"cache{number}"))
        data = dataclasses.replace(data, validation_fraction=0.4)
        found.append(corpus_of(prepare(data, BPE, given=tokenizer)).folder)
    assert contents(found[0]) == contents(found[1]) == contents(found[2])
    short, repeated = listed(found[0])
    assert (short["piece"], short["reason"]) == (f"{tmp_path}/in/006.txt", "too short")
    assert (repeated["piece"], repeated["of"]) == (f"{tmp_path}/in/011.txt", f"{tmp_path}/in/002.txt")
