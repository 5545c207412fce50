"""Corpora of so few documents that their ends are held out."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import BPE, corpus_of, documents
from rich.console import Console

from gptstar.data import ends
from gptstar.data import prepare as module
from gptstar.data.config import DataConfig
from gptstar.data.filters import FilterConfig
from gptstar.data.prepare import prepare
from gptstar.data.reading import Fields
from gptstar.data.worker import Recipe, cut_end
from gptstar.errors import UserError
from support import write_corpus


def few(tmp_path: Path, *texts: str, **changes) -> DataConfig:
    """A corpus of so many files."""
    (tmp_path / "few").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "few" / f"{i}.txt").write_text(text)
    where = dict(paths=[f"{tmp_path}/few/*.txt"], cache_dir=str(tmp_path / "cache"))
    return DataConfig(name="few", corpus="text_files", **where, **changes)


BOOK = "\n".join(f"line {i} of the only book there is" for i in range(400)) + "\n"


def test_of_a_single_book_the_end_is_held_out_and_the_tokenizer_does_not_see_it(tmp_path, monkeypatch):
    seen, said = [], io.StringIO()
    train = module.train_tokenizer
    monkeypatch.setattr(
        module, "train_tokenizer", lambda texts, config: train([seen.append(t) or t for t in texts], config)
    )
    data = few(tmp_path, BOOK)
    prepared = prepare(data, BPE, Console(file=said, width=200))
    (before,), (end,) = documents(prepared, "train"), documents(prepared, "validation")
    assert before + end == BOOK and end.startswith("line ") and before.endswith("\n")
    assert len(end) == pytest.approx(0.05 * len(BOOK), abs=len("line 399 of the only book there is"))
    assert seen == [before]
    assert "few: too few documents to hold some of them out, so the last 5% of each is" in said.getvalue()
    again = prepare(data, BPE)
    assert corpus_of(again).cached and documents(again, "validation") == [end]


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_of_few_documents_the_ends_are_held_out_where_all_would_be_on_one_side(tmp_path, share):
    texts = [BOOK.replace("only", word) for word in ("first", "second", "third")]
    prepared = prepare(few(tmp_path, *texts, validation_fraction=share), BPE)
    pairs = zip(documents(prepared, "train"), documents(prepared, "validation"), strict=True)
    assert [before + end for before, end in pairs] == texts


def test_ends_are_compared_as_documents_of_their_own(tmp_path):
    end = "the same end in both of them, word for word\n" * 12
    data = few(
        tmp_path, "one\n" * 2000 + end, "another\n" * 1000 + end, validation_fraction=len(end) / (8000 + len(end))
    )
    assert len(documents(prepare(data, BPE), "validation")) == 2
    prepared = prepare(dataclasses.replace(data, exact_duplicates=True), BPE)
    assert len(documents(prepared, "train")) == 2 and documents(prepared, "validation") == [end]


def test_filters_see_whole_documents(tmp_path):
    texts = [BOOK, "too short", *("much too long " * 2000 + str(i) for i in range(4))]
    data = few(tmp_path, *texts, filters=FilterConfig(min_chars=len(BOOK), max_chars=len(BOOK)))
    prepared = prepare(dataclasses.replace(data, validation_fraction=0.001), BPE)
    assert documents(prepared, "train")[0] + documents(prepared, "validation")[0] == BOOK
    card = json.loads((corpus_of(prepared).folder / "data.json").read_text())
    assert card["removed"] == {"too long": 4, "too short": 1} and card["read"]["documents"] == 6


def test_a_split_depends_on_its_corpus_alone(tmp_path):
    """So that others can join it, in a run that goes on."""
    data = few(tmp_path, BOOK)
    write_corpus(tmp_path / "more", n_file=30)
    book, more = ({"paths": [f"{tmp_path}/{name}/*.txt"]} for name in ("few", "more"))
    tokenizer = prepare(data, BPE).tokenizer
    alone, both = (
        prepare(DataConfig(name="m", corpora=corpora, cache_dir=data.cache_dir), BPE, given=tokenizer)
        for corpora in ({"book": book}, {"book": book, "more": more})
    )
    assert alone.corpora["book"].key == both.corpora["book"].key
    assert all(len(corpus.validation) for corpus in both.corpora.values())


def test_a_corpus_with_held_out_files_keeps_its_documents_whole(tmp_path):
    held_out = tmp_path / "held.txt"
    held_out.write_text("")
    with pytest.raises(UserError, match="validation split of data=few has no document"):
        prepare(few(tmp_path, BOOK, validation_paths=[str(held_out)]), BPE)


@given(st.text(st.sampled_from("ab \n")), st.floats(0, 1))
def test_cutting_an_end_off_loses_nothing(text, share):
    before, end = cut_end(text, share)
    assert before + end == text
    assert not end or (before.strip() and end.strip())


@pytest.mark.parametrize(
    ("text", "share", "end"),
    [
        ("word " * 200, 0.1, "word " * 20),
        ("a" * 1000, 0.1, "a" * 100),
        ("a" * 500 + "\n" + "b" * 499, 0.1, "b" * 100),
        (("a" * 99 + "\n") * 10, 0.1, "a" * 99 + "\n"),
        ("word " * 200 + "\n" * 2000, 0.1, "word " * 20 + "\n" * 2000),
        ("a", 0.5, ""),
        ("word " * 200, 0.0, ""),
    ],
    ids=range(7),
)
def test_an_end_is_about_its_share_and_begins_with_a_line_or_word_where_one_is_near(text, share, end):
    assert cut_end(text, share)[1] == end


def test_keys_of_corpora_whose_documents_stay_whole_have_not_changed():
    recipe = Recipe("", "", Fields(), 0.05)
    assert "ends" not in recipe.values() and dataclasses.replace(recipe, ends=True).values()["ends"] is True


def test_what_cannot_be_remembered_is_found_again(tmp_path, monkeypatch):
    """Several processes that begin at once may be in each other's way there."""

    def refused(path, text):
        raise FileNotFoundError(path)

    monkeypatch.setattr(ends, "replace_text", refused)
    assert len(documents(prepare(few(tmp_path, BOOK), BPE), "validation")) == 1
