import gzip
import json
import lzma

import pytest

from gptstar.data.config import DataConfig
from gptstar.data.corpora import open_corpus
from gptstar.errors import UserError


def text_files(*paths, **changes) -> DataConfig:
    return DataConfig(corpus="text_files", paths=[str(p) for p in paths], **changes)


def test_stdlib_is_this_pythons_source_without_tests():
    corpus = open_corpus(DataConfig())
    documents = list(corpus.texts())
    assert len(documents) > 300 and corpus.n_byte > 1_000_000
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
    assert list(open_corpus(text_files(path, text_field="body")).texts()) == texts


def test_parquet(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    assert list(open_corpus(text_files(tmp_path / "a.parquet")).texts()) == ["a", "b"]


def test_text_files_by_glob_are_whole_documents_in_order(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    corpus = open_corpus(text_files(tmp_path / "**/*.*", tmp_path / "a.txt"))
    assert list(corpus.texts()) == ["text of a.txt\n", "text of b.md\n", "text of sub/c.py\n"]


def test_a_dataset_in_a_folder_goes_the_hubs_road(tmp_path):
    write_records(tmp_path / "train.jsonl", ["x", "y"])
    config = DataConfig(corpus="hub", dataset=str(tmp_path))
    assert list(open_corpus(config).texts()) == ["x", "y"]
    with pytest.raises(UserError, match=r"no text in field 'body' .it has id, text."):
        open_corpus(DataConfig(corpus="hub", dataset=str(tmp_path), text_field="body"))


def test_the_fingerprint_follows_content_not_folders(tmp_path):
    prints = []
    for folder, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(text)
        prints.append(open_corpus(text_files(tmp_path / folder / "f.txt")).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_held_out_files_come_first_and_are_kept_apart(tmp_path):
    for name in "abc":
        write_records(tmp_path / f"{name}.jsonl", [name])
    corpus = open_corpus(text_files(tmp_path / "[ab].jsonl", validation_paths=[str(tmp_path / "c.jsonl")]))
    assert corpus.separate and [source.held_out for source in corpus.sources] == [True, False, False]
    assert (list(corpus.texts()), list(corpus.texts(held_out=True))) == (["a", "b"], ["c"])
    assert corpus.n_byte == sum(path.stat().st_size for path in tmp_path.iterdir())
    together = open_corpus(text_files(tmp_path / "*.jsonl"))
    assert not together.separate and together.fingerprint != corpus.fingerprint


def test_what_cannot_be_read_is_left_out_of_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{\n{"text": 1}\n{"text": "too"}\n')
    assert list(open_corpus(text_files(tmp_path / "a.jsonl")).texts()) == ["fine", "too"]


def test_missing_files_unknown_suffixes_and_leaks_are_refused(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"data.paths: no file matches .*none.txt"):
        open_corpus(text_files(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"a.doc has an unknown suffix: use one of .txt"):
        open_corpus(text_files(tmp_path / "a.doc"))
    with pytest.raises(UserError, match=r"a.txt is in data.paths and in data.validation_paths"):
        open_corpus(text_files(tmp_path / "a.txt", validation_paths=[str(tmp_path / "a.txt")]))
