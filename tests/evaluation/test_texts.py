"""Texts: what is read from which files, the published splits, and their download from a server on loopback."""

from __future__ import annotations

import functools
import gzip
import json
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptstar import fetch as fetch_module
from gptstar.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from gptstar.errors import UserError
from gptstar.evaluation import texts as texts_module
from gptstar.evaluation.texts import Text, download_text, read_files, read_preset

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
CONTENT = "<page>ä</page>" + "é" * 20 + "end"  # 43 + 14 characters; the split below cuts two of them


@pytest.fixture
def small_split(monkeypatch):
    """enwik8 and text8 as files of some sixty bytes, their split cutting a character at either end."""
    content = CONTENT.encode()
    monkeypatch.setattr(texts_module, "N_BYTE", len(content))
    monkeypatch.setattr(texts_module, "TEST_SPLIT", (16, 38))
    assert content[16:38].decode(errors="ignore") == "é" * 10 and content[16] & 0xC0 == content[38] & 0xC0 == 0x80
    return content


def test_any_file_is_a_document_and_records_are_one_each(tmp_path):
    (tmp_path / "b.raw").write_text("two  words\n", encoding="utf-8")
    (tmp_path / "a[1].txt").write_text("é", encoding="utf-8")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"page": page}) + "\n" for page in ("x y", ""))
    text = read_files([f"{tmp_path}/[a-b]*", f"{tmp_path}/*.jsonl.gz", f"{tmp_path}/b*"], text_field="page")
    assert text.documents == ["é", "two  words\n", "x y", ""] and len(text.files) == 3
    assert text.counts() == {"documents": 4, "bytes": 2 + 11 + 3, "characters": 1 + 11 + 3, "words": 1 + 2 + 2}
    assert read_files([f"{tmp_path}/b.raw"]).name == "b"


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "cut.txt").write_bytes("aé".encode()[:-1])
    for call, words in (
        (lambda: read_files(["nowhere/*"]), "text: no file matches 'nowhere/"),
        (lambda: read_files([f"{tmp_path}/latin.txt"]), r"latin.txt is not UTF-8 \(byte 0\)"),
        (lambda: read_files([f"{tmp_path}/cut.txt"]), r"cut.txt is not UTF-8 \(byte 1\)"),
        (
            lambda: read_preset("wikitext", [], ""),
            "preset='wikitext' is unknown: choose one of wikitext2, enwik8, text8",
        ),
        (lambda: read_preset("wikitext2", [], ""), "preset=wikitext2 is one file, 0 are given"),
        (lambda: read_preset("enwik8", ["a", "b"], ""), "preset=enwik8 is one file, 2 are given"),
        (lambda: read_preset("wikitext2", ["nowhere"], ""), "nowhere cannot be read: No such file"),
        (lambda: read_preset("enwik8", ["nowhere"], ""), "nowhere cannot be read as enwik8"),
        (lambda: read_preset("enwik8", [f"{tmp_path}/cut.txt"], ""), "cut.txt has 2 bytes and enwik8 has 100,000,000"),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_end_of_text_stands_before_every_document():
    text = Text("x", ["ab", "", "c"], {})
    tokens, of_text = text.stream(TOKENIZER)
    eot, a, b, c = TOKENIZER.eot_id, *TOKENIZER.encode("abc")
    assert tokens.tolist() == [eot, a, b, eot, eot, c]
    assert of_text.tolist() == [False, True, True, False, False, True]
    spelt, of_text = Text("x", ["<|endoftext|>"], {}).stream(TOKENIZER)
    assert of_text.sum() == len(spelt) - 1 > 1


def test_the_beginning_ends_with_a_whole_character():
    text = Text("x", ["aé", "b", "cd"], {}, preset="enwik8")
    assert text.beginning(2).documents == ["a"] and text.beginning(2).preset is None
    assert text.beginning(5).documents == ["aé", "b", "c"]
    assert text.beginning(None) is text and text.beginning(6) is text
    assert text.beginning(5).sha256() != text.sha256() != Text("x", ["aéb", "cd"], {}).sha256()


def test_wikitext2_is_joined_with_blank_lines(tmp_path):
    (tmp_path / "raw").write_text(" \n = Title = \n \n Text \n", encoding="utf-8")
    text = read_preset("wikitext2", [str(tmp_path / "raw")], "")
    assert text.documents == ["\n\n = Title = \n\n\n\n\n Text \n"] and text.preset == "wikitext2"


def test_wikitext2_has_as_many_tokens_as_everybody_counts(shared):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "gpt2"), "<|endoftext|>")
    text = read_preset("wikitext2", [str(shared / "eval" / "wikitext2.test.raw")], "")
    tokens, of_text = text.stream(tokenizer)
    assert of_text.sum() == len(tokens) - 1 == 287_644


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_the_published_split_is_read_from_the_file_or_its_zip(tmp_path, small_split, name):
    (tmp_path / "plain").write_bytes(small_split)
    with zipfile.ZipFile(tmp_path / "zipped", "w") as archive:
        archive.writestr(name, small_split)
    for path in ("plain", "zipped"):
        text = read_preset(name, [str(tmp_path / path)], "")
        assert text.documents == ["é" * 10] and text.name == text.preset == name
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("enwik9", small_split)
    with pytest.raises(UserError, match=f"other cannot be read as {name}"):
        read_preset(name, [str(tmp_path / "other")], "")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(its address, its folder, what was asked for)."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", ())
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", folder, asked
        http.shutdown()


def test_a_text_is_downloaded_unzipped_and_then_left_alone(server, tmp_path, small_split):
    url, folder, asked = server
    with zipfile.ZipFile(folder / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", small_split)
    for _ in range(2):
        text = read_preset("enwik8", [], str(tmp_path / "cache"), url)
        assert text.documents == ["é" * 10] and asked == ["/enwik8.zip"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["enwik8"]


def test_what_cannot_be_downloaded_is_one_line_with_a_way_out(server, tmp_path):
    url, folder, _ = server
    (folder / "text8.zip").write_text("<html>moved</html>")
    for name, words in (
        ("enwik8", "the server answers 404"),
        ("text8", "text8.zip.part is no zip file with text8 in it"),
    ):
        with pytest.raises(UserError, match=words) as error:
            download_text(name, tmp_path / "cache", url)
        assert str(error.value).endswith(f"; or name a file that you have: text=[{name}]")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_zip_leaves_nothing_that_looks_like_the_text(server, tmp_path, small_split):
    url, folder, _ = server
    with zipfile.ZipFile(folder / "text8.zip", "w") as archive:
        archive.writestr("text8", small_split)
    content = bytearray((folder / "text8.zip").read_bytes())
    content[content.index(b"end")] ^= 1
    (folder / "text8.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"text8.zip cannot be unpacked: Bad CRC"):
        download_text("text8", tmp_path / "cache", url)
    assert not (tmp_path / "cache" / "text8").exists()
