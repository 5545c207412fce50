import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data.contamination import TASKS, Contamination, evaluation_texts
from gptstar.errors import UserError


def plain_words(text):
    return re.findall(r"[^\W_]+", text.lower())


def ngrams(text, n):
    words = plain_words(text)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


SENTENCES = st.lists(st.sampled_from(["a", "b", "B,", "c -"]), max_size=25).map(" ".join)


@given(
    st.lists(st.lists(SENTENCES, max_size=3), min_size=1, max_size=3),
    st.lists(SENTENCES, max_size=5),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_the_same_is_found_as_by_sets_of_words(sets, documents, n, shortest):
    shortest = min(n, shortest)
    known: dict[str, set] = {f"set {number}": set() for number in range(len(sets))}
    for number, texts in enumerate(sets):
        for text in texts:
            length = min(n, len(plain_words(text)))
            known[f"set {number}"].update(ngrams(text, length) if length >= shortest else [])
    contamination = Contamination({f"set {number}": texts for number, texts in enumerate(sets)}, n, shortest)
    found = contamination.find_all(documents)
    for document, matches in zip(documents, found, strict=True):
        every = [gram for length in range(shortest, n + 1) for gram in ngrams(document, length)]
        expected = {name: sum(gram in grams for gram in every) for name, grams in known.items()}
        assert {match.task: match.n_match for match in matches} == {name: k for name, k in expected.items() if k}
        assert matches == contamination.find(document)
        for match in matches:
            assert any(gram in ngrams(match.passage, len(gram)) for gram in known[match.task])
            assert 0 < match.share <= 1


def texts_of_words(random, n, length, prefix):
    return [" ".join(f"{prefix}{i}" for i in random.integers(0, 10_000, length)) for _ in range(n)]


DRESSES = {
    "verbatim": lambda text: text,
    "case": str.upper,
    "punctuation": lambda text: "“" + text.replace(" ", " -- ", 5).replace(" ", ", ", 3) + "…”",
    "lines": lambda text: text.replace(" ", "\n\n  "),
    "underscores": lambda text: text.replace(" ", "_"),
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("place", ["start", "middle", "end", "alone"])
@pytest.mark.parametrize("length", [8, 12, 13, 40])
def test_every_planted_passage_is_found_and_nothing_else(dress, place, length):
    random = np.random.default_rng(0)
    passages = texts_of_words(random, 20, length, "w")
    contamination = Contamination({"other": texts_of_words(random, 20, 30, "w"), "ours": passages})
    clean = texts_of_words(random, 20, 400, "w")
    assert contamination.find_all(clean) == [[]] * 20
    before = place in ("middle", "end")
    after = place in ("start", "middle")
    documents = [
        f"{text if before else ''}. {DRESSES[dress](passage)}\n{text[::-1] if after else ''}"
        for text, passage in zip(clean, passages, strict=True)
    ]
    for passage, matches in zip(passages, contamination.find_all(documents), strict=True):
        assert [(match.task, match.n_match) for match in matches] == [("ours", max(1, length - 12))]
        assert " ".join(plain_words(matches[0].passage)).startswith(" ".join(plain_words(passage)[:8]))
        assert len(matches[0].passage) <= 300


def test_texts_too_short_count_for_nothing():
    contamination = Contamination({"a": ["one two three four five six seven"]})
    assert contamination.find("one two three four five six seven " * 3) == [] and len(contamination.hashes) == 0
    assert Contamination({}).find("anything") == [] and contamination.find_all([]) == []


def test_a_passage_does_not_reach_from_one_document_into_the_next():
    contamination = Contamination({"a": ["1 2 3 4"]}, n=4, shortest=4)
    assert contamination.find_all(["1 2", "3 4", "0 1 2 3 4"])[:2] == [[], []]


def test_few_matches_can_be_passed_over():
    text = "1 2 3 4 5 6 7 8"
    contamination = Contamination({"a": [text], "short": ["6 7 8"]}, n=4, shortest=3, min_matches=3)
    assert contamination.find("0 1 2 3 4 5") == []
    assert [match.task for match in contamination.find("0 1 2 3 4 5 6")] == ["a"]
    assert [match.task for match in contamination.find("0 6 7 8")] == ["short"]


def test_a_passage_is_told_as_it_stands():
    contamination = Contamination({"a": ["the quick brown fox jumps"]}, n=3, shortest=3)
    (match,) = contamination.find("See: “The Quick,\nBROWN fox” and not jumps; brown fox jumps.")
    assert match.passage == "The Quick,\nBROWN fox" and match.n_match == 3 and match.share == 3 / 9


def test_it_travels_and_is_kept(tmp_path):
    made = Contamination({"a": ["one two three four", "x"], "ü": ["one two three five"]}, 3, 2, 1)
    made.save(tmp_path / "known.npz")
    text = "zero one two three five"
    assert [match.task for match in made.find(text)] == ["a", "ü"]
    for other in (pickle.loads(pickle.dumps(made)), Contamination.load(tmp_path / "known.npz")):
        assert other.find(text) == made.find(text) and other.find("none of it") == []
    assert len(pickle.dumps(made)) < 2000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 5, "shortest": 8}, "data.contamination.shortest=8 must lie between 1 and n=5"),
        ({"min_matches": 0}, "data.contamination.min_matches=0 must be at least 1"),
        ({"texts": {str(i): [] for i in range(300)}}, "300 evaluation sets"),
    ],
)
def test_impossible_values_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Contamination(**{"texts": {}, **arguments})


RECORDS = {
    "lambada_openai": ({"text": "All of it."}, {"1": "All of it."}),
    "wikitext": ({"page": " = Title = \n"}, {"1": " = Title = \n"}),
    "piqa": (
        {"goal": "To see", "sol1": "look.", "sol2": "hear.", "label": 0},
        {"1.0": "To see look.", "1.1": "To see hear."},
    ),
    "hellaswag": (
        {
            "activity_label": "R",
            "ctx_a": "[header] A man",
            "ctx_b": "he",
            "endings": ["runs.", "[step] sits."],
            "label": "0",
        },
        {"1.0": "  A man he runs.", "1.1": "  A man he   sits."},
    ),
    "winogrande": (
        {"sentence": "Ann met Eve, but _ left.", "option1": "Ann", "option2": "Eve", "answer": "1"},
        {"1.0": "Ann met Eve, but Ann left.", "1.1": "Ann met Eve, but Eve left."},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_texts_of_each_task(task, tmp_path):
    record, texts = RECORDS[task]
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(record) + "\n\n" + json.dumps(record))
    found = list(evaluation_texts(task, tmp_path))
    assert dict(found[: len(texts)]) == texts and len(found) == 2 * len(texts) and found[-1][0][0] == "3"
    (tmp_path / f"{task}.jsonl").write_text('{"other": 1}')
    with pytest.raises(UserError, match=rf"{task}.jsonl, record 1: .* is missing or not as in {task}"):
        list(evaluation_texts(task, tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_the_hubs_names_are_the_harnesss(task):
    yaml, tasks = pytest.importorskip("yaml"), pytest.importorskip("lm_eval.tasks")
    files = Path(tasks.__file__).parent.glob("*/*.yaml")
    (path,) = [file for file in files if re.search(rf"(?m)^task: {task}$", file.read_text())]
    stock = yaml.load(re.sub(r"!function \S+", "null", path.read_text()), yaml.SafeLoader)
    ours = TASKS[task]
    assert (ours.dataset, ours.subset) == (stock["dataset_path"], stock["dataset_name"])
    assert ours.split == (stock.get("test_split") or stock["validation_split"])


def test_files_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_text("whole\nfile")
    (tmp_path / "b.jsonl").write_text('{"q": "why", "n": 1, "choices": ["this", {"x": "that"}]}\n"bare"\n')
    assert list(evaluation_texts(str(tmp_path / "a.txt"))) == [("1", "whole\nfile")]
    assert [text for _, text in evaluation_texts(str(tmp_path / "b.jsonl"))] == ["why", "this", "that", "bare"]


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'piqqa' is unknown: choose one of lambada_openai, wikitext"):
        list(evaluation_texts("piqqa"))
    with pytest.raises(UserError, match=r"piqa.jsonl cannot be read \(.*\): check the path, and that it is UTF-8"):
        list(evaluation_texts("piqa", tmp_path))
    (tmp_path / "piqa.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"record 1: 'goal' is missing"):
        list(evaluation_texts("piqa", tmp_path))
    (tmp_path / "x.jsonl").write_text('{"a": "b"}\n{')
    with pytest.raises(UserError, match=r"x.jsonl, line 2: no valid JSON"):
        list(evaluation_texts(str(tmp_path / "x.jsonl")))
    import datasets

    def no_network(*arguments, **more):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(UserError, match=r"piqa \(baber/piqa\) cannot be had from the hub: no network: connect, or"):
        list(evaluation_texts("piqa"))


def test_real_sets_find_themselves(shared):
    """A sample of each set's texts of 13 words and more, in a row in one document."""
    texts = {task: [text for _, text in evaluation_texts(task, shared / "eval")][::50] for task in TASKS}
    contamination = Contamination(texts)
    for task, some in texts.items():
        for matches, text in zip(contamination.find_all(some), some, strict=True):
            assert task in [match.task for match in matches] or len(plain_words(text)) < 8
