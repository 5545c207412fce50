import dataclasses
import json
from pathlib import Path

import pytest
from preparing import BPE, corpus_of, documents, listed, made_up, write_jsonl

from gptstar.data import prepare as module
from gptstar.data.config import ContaminationConfig, DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.duplicates import NearConfig
from gptstar.data.prepare import prepare


def mixture(tmp_path: Path, names: str, **changes) -> DataConfig:
    corpora = {name: CorpusConfig(paths=[f"{tmp_path}/{name}.jsonl"]) for name in names}
    values = dict(
        name="mix",
        corpora=corpora,
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.2,
        exact_duplicates=True,
        near_duplicates=NearConfig(threshold=0.5, n_gram=2),
    )
    return DataConfig(**(values | changes))


@pytest.fixture
def three(tmp_path) -> dict[str, list[str]]:
    texts = {name: made_up(40, seed) for seed, name in enumerate("abc")}
    texts["b"][7] = texts["a"][3]
    texts["c"][5], texts["c"][6] = texts["a"][4], texts["b"][9]
    texts["c"][8] = texts["b"][10] + " more"
    texts["c"][9] = texts["b"][7]
    for name, some in texts.items():
        write_jsonl(tmp_path / f"{name}.jsonl", some)
    return texts


def test_what_an_earlier_corpus_has_goes_from_the_later(tmp_path, three, tokenizer):
    prepared = prepare(mixture(tmp_path, "abc"), BPE, given=tokenizer)
    gone = {name: [(e["record"], e["reason"]) for e in listed(c.folder)] for name, c in prepared.corpora.items()}
    exact, near = "duplicate", "near duplicate"
    assert gone == {"a": [], "b": [(7, exact)], "c": [(5, exact), (6, exact), (8, near), (9, exact)]}
    assert all(e["of"] == "an earlier corpus" for e in listed(prepared.corpora["c"].folder))
    for name, texts in three.items():
        left = [t for i, t in enumerate(texts) if i not in dict(gone[name])]
        assert sorted(documents(prepared, "train", name) + documents(prepared, "validation", name)) == sorted(left)


def test_adding_a_corpus_prepares_only_the_new_one(tmp_path, three, tokenizer):
    before = prepare(mixture(tmp_path, "ab"), BPE, given=tokenizer).corpora
    after = prepare(mixture(tmp_path, "abc"), BPE, given=tokenizer).corpora
    assert {name: c.cached for name, c in after.items()} == {"a": True, "b": True, "c": False}
    assert [after[n].folder for n in "ab"] == [before[n].folder for n in "ab"] and list(after) == ["a", "b", "c"]
    alone = prepare(mixture(tmp_path, "c"), BPE, given=tokenizer).corpora
    assert not alone["c"].cached and alone["c"].folder != after["c"].folder  # nothing comes before it


@pytest.mark.parametrize("near", [0, 0.5])
@pytest.mark.parametrize("empty", [[], ["", ""]], ids=["no record", "no text"])
def test_a_corpus_with_nothing_in_it_does_no_harm(tmp_path, three, tokenizer, near, empty):
    write_jsonl(tmp_path / "b.jsonl", empty)
    data = mixture(tmp_path, "bac", near_duplicates=NearConfig(threshold=near, n_gram=2))
    prepared = prepare(data, BPE, given=tokenizer)
    assert len(prepared.corpora["b"].train) == len(prepared.corpora["b"].validation) == 0
    assert len(documents(prepared, "train", "a")) + len(documents(prepared, "validation", "a")) == 40
    assert [e["record"] for e in listed(prepared.corpora["c"].folder)] == [5, 9]


def test_held_out_documents_win_within_a_corpus(tmp_path, tokenizer):
    texts = made_up(30)
    write_jsonl(tmp_path / "train.jsonl", [*texts, texts[0]])
    write_jsonl(tmp_path / "held.jsonl", [texts[4], texts[5] + " more", "something else altogether " * 5])
    data = mixture(tmp_path, "", name="one", corpus="text_files", paths=[f"{tmp_path}/train.jsonl"])
    data = dataclasses.replace(data, validation_paths=[f"{tmp_path}/held.jsonl"])
    prepared = prepare(data, BPE, given=tokenizer)
    assert len(documents(prepared, "validation")) == 3
    gone = {e["record"]: (e["of"], e["of_record"]) for e in listed(corpus_of(prepared).folder)}
    held, train = f"{tmp_path}/held.jsonl", f"{tmp_path}/train.jsonl"
    assert gone == {4: (held, 0), 5: (held, 1), 30: (train, 0)}


def test_held_out_near_duplicates_win_where_a_hash_chooses(tmp_path, tokenizer):
    texts = made_up(60)
    write_jsonl(tmp_path / "a.jsonl", [text + tail for text in texts for tail in ("", " one", " two")])
    data = mixture(tmp_path, "a", exact_duplicates=False)
    prepared = prepare(data, BPE, given=tokenizer)
    train, held_out = documents(prepared, "train"), documents(prepared, "validation")
    assert len(train) + len(held_out) == 60
    groups = {text: [module.hash_share(text + tail) < 0.2 for tail in ("", " one", " two")] for text in texts}
    for text, sides in groups.items():
        stayed = next(i for i, side in enumerate(sides) if side) if any(sides) else 0
        assert text + ("", " one", " two")[stayed] in (held_out if any(sides) else train)
    assert len(held_out) == sum(map(any, groups.values()))


@pytest.mark.parametrize("exact", [False, True])
def test_the_same_file_twice_is_read_twice(tmp_path, tokenizer, small_parts, monkeypatch, exact):
    monkeypatch.setattr(module, "SMALL", 0)
    texts = made_up(40)
    for folder in "ab":
        write_jsonl(tmp_path / folder / "same.jsonl", texts)
    values = dict(exact_duplicates=exact, near_duplicates=NearConfig(threshold=0), workers=2)
    data = mixture(tmp_path, "", name="twice", corpus="text_files", paths=[f"{tmp_path}/[ab]/same.jsonl"], **values)
    prepared = prepare(data, BPE, given=tokenizer)
    found = documents(prepared, "train") + documents(prepared, "validation")
    assert sorted(found) == sorted(texts if exact else texts * 2)
    gone = [(e["piece"], e["record"], e["of"]) for e in listed(corpus_of(prepared).folder)]
    files = [f"{tmp_path}/{folder}/same.jsonl" for folder in "ab"]
    assert gone == ([(files[1], i, files[0]) for i in range(40)] if exact else [])


@pytest.mark.parametrize("remove", [True, False])
def test_evaluation_texts_are_removed_or_listed(tmp_path, tokenizer, remove):
    texts = made_up(40)
    write_jsonl(tmp_path / "task.jsonl", [texts[3], texts[9]])
    write_jsonl(tmp_path / "a.jsonl", texts)
    config = ContaminationConfig(tasks=[f"{tmp_path}/task.jsonl"], remove=remove)
    data = mixture(tmp_path, "a", contamination=config)
    prepared = prepare(data, BPE, given=tokenizer)
    folder = corpus_of(prepared).folder
    card = json.loads((folder / "data.json").read_text())
    assert [e["record"] for e in listed(folder, "removed.jsonl" if remove else "contaminated.jsonl")] == [3, 9]
    assert sum(s["documents"] for s in card["splits"].values()) == (38 if remove else 40)
    assert card["removed"] == ({"contaminated": 2} if remove else {})
    assert list(card["contaminated_but_kept"].values()) == ([] if remove else [2])


def test_half_of_the_evaluation_ngrams_is_never_used(tmp_path, tokenizer, monkeypatch):
    texts = made_up(40)
    write_jsonl(tmp_path / "task.jsonl", [texts[3]])
    write_jsonl(tmp_path / "a.jsonl", texts)
    data = mixture(tmp_path, "a", contamination=ContaminationConfig(tasks=[f"{tmp_path}/task.jsonl"], remove=True))
    save = module.Contamination.save

    def cut(self, path):
        save(self, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.Contamination, "save", cut)
        prepare(data, BPE, given=tokenizer)
    assert [e["record"] for e in listed(corpus_of(prepare(data, BPE, given=tokenizer)).folder)] == [3]
