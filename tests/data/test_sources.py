import http.server
import os
import re
import threading
import time

import fsspec
import pytest

from gptstar.data import compression, sources
from gptstar.data.reading import Fields, FilePiece, find_pieces, read_records
from gptstar.data.sources import Source, find, stamp, tells_content
from gptstar.errors import UserError

DATA = b"".join(b'{"text": "document %d"}\n' % i for i in range(1000))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers HEAD and ranges of DATA, and fails as the server is told to."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        if "Range" not in self.headers or self.server.no_ranges:
            return self.answer(DATA)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        self.server.asked.append(first)
        self.answer(DATA[first : last + 1], f"bytes {first}-{min(last, len(DATA) - 1)}/{len(DATA)}")

    def answer(self, body, content_range=None):
        trouble = self.server.trouble.pop(0) if self.server.trouble and body else None
        if "none" in self.path or isinstance(trouble, int):
            self.send_error(trouble or 404)
            return
        self.send_response(206 if content_range else 200)
        self.send_header("Content-Length", str(len(body) if content_range else len(DATA)))
        for name, value in self.server.stated.items():
            self.send_header(name, value)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if trouble == "stall":
            time.sleep(1)
            return
        self.wfile.write(body[: len(body) // 2] if trouble == "truncate" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(sources, "RETRY_SECONDS", (0.01, 0.01))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.no_ranges = False
        server.trouble, server.asked, server.stated = [], [], {"ETag": '"1"', "Accept-Ranges": "bytes"}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def texts(piece):
    return [r.text for block in piece.blocks() for r in read_records(block, Fields())]


def test_a_file_behind_a_url_is_read_as_one_here(server, monkeypatch):
    monkeypatch.setattr(sources, "REMOTE_BLOCK_BYTES", 5000)
    monkeypatch.setattr(compression, "CHUNK_BYTES", 1000)
    (piece,) = find_pieces("data.paths", [f"{server.url}/a.jsonl?download=true"])
    assert texts(piece) == [f"document {i}" for i in range(1000)]
    assert len(server.asked) > 3


@pytest.mark.parametrize("trouble", [[503], ["truncate"], [500, "truncate"], ["stall"]])
def test_a_server_that_breaks_off_is_asked_again_for_the_rest(server, monkeypatch, trouble):
    monkeypatch.setattr(sources, "REMOTE_BLOCK_BYTES", 5000)
    monkeypatch.setattr(compression, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.2)
    server.trouble = [None, *trouble]
    assert texts(FilePiece(f"{server.url}/a.jsonl")) == [f"document {i}" for i in range(1000)]
    assert not server.trouble


@pytest.mark.parametrize("trouble", [[], [None, "truncate"]])
def test_a_server_that_knows_no_ranges_is_read_in_one_go(server, monkeypatch, trouble):
    monkeypatch.setattr(sources, "REMOTE_BLOCK_BYTES", 5000)
    monkeypatch.setattr(compression, "CHUNK_BYTES", 1000)
    server.no_ranges, server.trouble = True, trouble
    assert texts(FilePiece(f"{server.url}/a.jsonl")) == [f"document {i}" for i in range(1000)]
    assert not server.trouble


def test_a_server_that_goes_on_failing_is_an_error(server):
    server.trouble = [503] * 20
    with pytest.raises(UserError, match=r"http://.*/a.jsonl cannot be read beyond its byte 0: .*503") as error:
        texts(FilePiece(f"{server.url}/a.jsonl"))
    assert "\n" not in str(error.value)
    server.trouble = ["truncate"] * 20
    with pytest.raises(UserError, match=r"a.jsonl cannot be read beyond its byte 0: "):
        texts(FilePiece(f"{server.url}/a.jsonl"))


def test_what_is_not_there_and_who_does_not_answer(server):
    with pytest.raises(UserError, match=r"http://.*/none.jsonl cannot be read: HTTP 404 [^']*: check the address"):
        find_pieces("data.paths", [f"{server.url}/none.jsonl"])
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/a.jsonl cannot be read: "):
        find_pieces("data.paths", ["http://127.0.0.1:9/a.jsonl"])
    with pytest.raises(UserError, match=r"nonsense://a.jsonl cannot be read: Protocol not known"):
        find_pieces("data.paths", ["nonsense://a.jsonl"])


def test_a_remote_file_that_changed_is_refused(server):
    piece = FilePiece(f"{server.url}/a.jsonl")
    server.stated["ETag"] = '"2"'
    with pytest.raises(UserError, match=r"a.jsonl changed while it was read"):
        texts(piece)


def test_what_a_server_states_stands_for_the_content(server):
    url = f"{server.url}/a.jsonl"
    assert tells_content(stamp(url)) and '"1"' in stamp(url)
    server.stated = {"Last-Modified": "Thu, 02 Jan 2020 00:00:00 GMT"}
    assert "2020" in stamp(url)
    server.stated = {}
    assert not tells_content(stamp(url)) and texts(FilePiece(url))[0] == "document 0"


def test_globs_of_other_file_systems():
    for name in ("b", "a", "sub/c"):
        with fsspec.open(f"memory://globs/{name}.jsonl", "wb") as file:
            file.write(DATA)
    assert list(find("memory://globs/*.jsonl")) == ["memory:///globs/a.jsonl", "memory:///globs/b.jsonl"]
    assert len(find("memory://globs/**/*.jsonl")) == 3 and find("memory://globs/*.txt") == {}
    assert texts(find_pieces("data.paths", ["memory://globs/*.jsonl"])[1])[-1] == "document 999"


def test_reading_names_what_goes_wrong(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100)
    with Source(str(path), stamp(str(path))) as source:
        assert source.read(60) == b"x" * 60
        os.truncate(path, 50)
        with pytest.raises(UserError, match=r"a.txt changed while it was read: leave it alone"):
            while source.read(60):
                pass
    with pytest.raises(UserError, match=r"a.txt changed while it was read"):
        Source(str(path), "100 0 0")
    now = stamp(str(path))
    path.unlink()
    with pytest.raises(UserError, match=r"a.txt cannot be read: No such file or directory: was it moved"):
        Source(str(path), now)
