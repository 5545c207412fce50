import gzip
import json
import lzma

import pytest

from gptstar.data.corpora import DataConfig, open_corpus
from gptstar.errors import UserError


def text_files(*paths, **changes) -> DataConfig:
    return DataConfig(corpus="text_files", paths=[str(p) for p in paths], **changes)


def test_stdlib_is_this_pythons_source_without_tests():
    corpus = open_corpus(DataConfig())
    documents = list(corpus.documents())
    assert len(documents) == corpus.n_document > 300
    assert any("class OrderedDict" in text for text in documents)
    assert not any("class TestOrderedDict" in text for text in documents)
    assert corpus.fingerprint == open_corpus(DataConfig()).fingerprint


def write_records(path, texts, field="text"):
    data = "".join(json.dumps({"id": i, field: t}) + "\n" for i, t in enumerate(texts)).encode()
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".xz"):
        data = lzma.compress(data)
    elif path.name.endswith(".zst"):
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst"])
def test_jsonl_in_every_compression(tmp_path, suffix):
    texts = ["one", "zwei ü", "three\nlines"]
    path = write_records(tmp_path / f"a{suffix}", texts, field="body")
    assert list(open_corpus(text_files(path, text_field="body")).documents()) == texts


def test_parquet(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    assert list(open_corpus(text_files(tmp_path / "a.parquet")).documents()) == ["a", "b"]


def test_text_files_by_glob_are_whole_documents_in_order(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    corpus = open_corpus(text_files(tmp_path / "**/*.*", tmp_path / "a.txt"))
    assert list(corpus.documents()) == ["text of a.txt\n", "text of b.md\n", "text of sub/c.py\n"]


def test_a_dataset_in_a_folder_goes_the_hubs_road(tmp_path):
    write_records(tmp_path / "train.jsonl", ["x", "y"])
    config = DataConfig(corpus="hub", dataset=str(tmp_path))
    assert list(open_corpus(config).documents()) == ["x", "y"]
    with pytest.raises(UserError, match=r"data.text_field='body' is no column.*id, text"):
        open_corpus(DataConfig(corpus="hub", dataset=str(tmp_path), text_field="body"))


def test_a_column_that_is_not_text_is_named(tmp_path):
    write_records(tmp_path / "train.jsonl", ["x", None])
    with pytest.raises(UserError, match=r"data.text_field='text' of .*: row 1 holds NoneType, not text"):
        list(open_corpus(DataConfig(corpus="hub", dataset=str(tmp_path))).documents())


def test_the_fingerprint_follows_content_not_folders(tmp_path):
    prints = []
    for folder, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(text)
        prints.append(open_corpus(text_files(tmp_path / folder / "f.txt")).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def broken_utf8(folder):
    (folder / "a.txt").write_bytes(b"fine \xff not")
    return folder / "a.txt"


def broken_json(folder):
    (folder / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    return folder / "a.jsonl"


def broken_gzip(folder):
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 1000)[:-20])
    return folder / "a.jsonl.gz"


def missing_field(folder):
    return write_records(folder / "a.jsonl", ["x"], field="body")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_utf8, "not UTF-8 (byte 5)"),
        (broken_json, "cannot be read as json"),
        (broken_gzip, "cannot be read as json"),
        (missing_field, "no text in field 'text' (it has id, body)"),
    ],
)
def test_broken_input_names_its_file(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        list(open_corpus(text_files(path)).documents())
    assert str(path) in str(error.value) and words in str(error.value)


def test_missing_files_unknown_suffixes_and_leaks_are_refused(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"data.paths: no file matches .*none.txt"):
        open_corpus(text_files(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"a.doc has an unknown suffix: use one of .txt"):
        open_corpus(text_files(tmp_path / "a.doc"))
    with pytest.raises(UserError, match=r"a.txt is in data.paths and in data.validation_paths"):
        open_corpus(text_files(tmp_path / "a.txt", validation_paths=[str(tmp_path / "a.txt")]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": "stdlob"}, "data.corpus='stdlob' is unknown: choose one of stdlib"),
        ({"clean": "yes"}, "data.clean='yes' is unknown"),
        ({"corpus": "text_files"}, "data.paths is empty"),
        ({"corpus": "hub"}, "data.dataset is not set"),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        DataConfig(**changes)
    assert words in str(error.value)
