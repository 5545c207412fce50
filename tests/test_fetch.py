"""A real server on loopback that can do without ranges, break off, change its file and be busy."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptstar import fetch as fetch_module
from gptstar.errors import UserError
from gptstar.fetch import fetch

CONTENT = bytes(i * i % 251 for i in range(300_000))
Usage = namedtuple("Usage", "total used free")


@dataclass
class Remote:
    """What the server has and how it behaves; `seen` collects the Range headers it got."""

    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # the next answers break off after so many bytes
    statuses: list[int] = field(default_factory=list)  # the next answers are these errors
    extra: dict[str, str] = field(default_factory=dict)
    seen: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.seen.append(wanted)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        start, size = 0, len(self.content)
        if wanted and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= size:
                request.send_error(416)
                return
        headers = {"Content-Length": str(size - start), "ETag": self.etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        request.send_response(206 if start else 200)
        for name, value in (headers | self.extra).items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        request.wfile.write(self.content[start:][: self.cuts.pop(0) if self.cuts else None])


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", (0.0, 0.0))
    served = Remote()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        served.url = f"http://127.0.0.1:{server.server_port}/file"
        yield served
        server.shutdown()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "file"


def bring(remote, target) -> list[tuple[int, int]]:
    shown: list[tuple[int, int]] = []
    fetch(remote.url, target, lambda path: None, lambda *numbers: shown.append(numbers), lambda text: None)
    assert target.read_bytes() == remote.content and [path.name for path in target.parent.iterdir()] == ["file"]
    return shown


def leave_part(remote, target, n_byte: int) -> None:
    """As an interrupted download leaves it."""
    Path(f"{target}.part").write_bytes(remote.content[:n_byte])
    Path(f"{target}.part.json").write_text(json.dumps({"etag": remote.etag, "size": len(remote.content)}))


def test_a_whole_file_comes_at_once_and_is_then_left_alone(remote, target):
    shown = bring(remote, target)
    assert remote.seen == [None] and shown[0] == (0, len(CONTENT)) and shown[-1] == (len(CONTENT), len(CONTENT))
    bring(remote, target)
    assert remote.seen == [None]


def test_a_broken_connection_goes_on_where_it_broke(remote, target):
    remote.cuts = [100_000, 50_000]
    shown = bring(remote, target)
    assert remote.seen == [None, "bytes=100000-", "bytes=150000-"]
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_an_interrupted_program_goes_on_where_it_was(remote, target):
    leave_part(remote, target, 200_000)
    assert bring(remote, target)[0] == (200_000, len(CONTENT))
    assert remote.seen == ["bytes=200000-"]


def test_killed_between_the_last_byte_and_the_rename_it_only_renames(remote, target):
    leave_part(remote, target, len(CONTENT))
    bring(remote, target)
    assert remote.seen == []


def test_a_changed_remote_file_starts_anew(remote, target):
    leave_part(remote, target, 200_000)
    remote.content, remote.etag = CONTENT[::-1], '"two"'
    bring(remote, target)
    assert remote.seen == ["bytes=200000-"]


def test_a_server_that_ignores_ranges_starts_anew(remote, target):
    leave_part(remote, target, 200_000)
    remote.ranges = False
    bring(remote, target)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_continued(remote, target, etag):
    remote.etag, remote.cuts = etag, [100_000]
    bring(remote, target)
    assert remote.seen == [None, None]


def test_a_part_of_unknown_origin_starts_anew(remote, target):
    Path(f"{target}.part").write_bytes(b"something else")
    bring(remote, target)
    leave_part(remote, target, 10)
    target.unlink()
    Path(f"{target}.part.json").write_text("{")
    bring(remote, target)
    assert remote.seen == [None, None]


@pytest.mark.parametrize("wrong", [{"Content-Range": "bytes 0-9/10"}, {"ETag": '"other"'}])
def test_another_part_than_the_one_asked_for_starts_anew(remote, target, wrong):
    leave_part(remote, target, 200_000)
    remote.extra = wrong
    bring(remote, target)
    assert remote.seen == ["bytes=200000-", None]


def test_a_busy_server_is_asked_again(remote, target):
    remote.statuses = [503, 429]
    bring(remote, target)
    assert len(remote.seen) == 3


def test_a_range_that_the_server_lacks_starts_anew(remote, target):
    leave_part(remote, target, 200_000)
    remote.statuses = [416]
    bring(remote, target)
    assert remote.seen == ["bytes=200000-", None]


def test_a_file_that_stays_truncated_is_refused_and_its_part_kept(remote, target):
    remote.cuts, remote.ranges = [1000] * 9, False
    with pytest.raises(UserError, match=r"ended after 1,000 of 300,000 bytes; .*file.part keeps 1,000 bytes, the same"):
        bring(remote, target)
    assert len(remote.seen) == 3 and not target.exists()
    assert Path(f"{target}.part").read_bytes() == CONTENT[:1000]
    remote.cuts, remote.ranges = [], True
    bring(remote, target)
    assert remote.seen[-1] == "bytes=1000-"


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden")])
def test_a_refusal_is_final_and_one_line(remote, target, status, reason):
    remote.statuses = [status]
    with pytest.raises(UserError, match=f"the server answers {status} {reason}: is it still published there") as error:
        bring(remote, target)
    assert "\n" not in str(error.value) and len(remote.seen) == 1 and not list(target.parent.iterdir())


def test_an_answer_of_unknown_length_is_refused(remote, target):
    remote.extra = {"Content-Length": ""}
    with pytest.raises(UserError, match="does not say how long the file is"):
        bring(remote, target)


def test_a_full_disk_is_seen_before_it_is_full(remote, target, monkeypatch):
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: Usage(10**6, 0, 1000))
    with pytest.raises(UserError, match=r"has 1,000 bytes free and file.part needs 300,000 more: free some, or choose"):
        bring(remote, target)


def test_a_disk_that_cannot_be_written_is_named(remote, target, monkeypatch):
    Path(f"{target}.part").mkdir()
    with pytest.raises(UserError, match=r"file.part cannot be written \(Is a directory\)"):
        bring(remote, target)


def test_a_part_that_two_downloads_write_is_never_taken_for_whole(remote, target):
    def other(done: int, total: int) -> None:
        if done == 0:
            Path(f"{target}.part").write_bytes(b"the other's beginning")

    with pytest.raises(UserError, match="is it being downloaded twice at once"):
        fetch(remote.url, target, lambda path: None, other, lambda text: None)
    assert not list(target.parent.iterdir())


def test_no_network_is_one_line_at_once(target, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch_module.time, "sleep", lambda seconds: pytest.fail("it waits for nothing"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    for url, words in (
        (f"http://127.0.0.1:{closed}/x", r"no connection \(.* refused\): check the network and the address"),
        ("ftp://127.0.0.1/x", "is no http address"),
        ("http://127.0.0.1:port/x", "is no http address"),
    ):
        with pytest.raises(UserError, match=words):
            fetch(url, target, lambda path: None, lambda *numbers: None, lambda text: None)


def test_a_wrong_file_never_gets_its_name_and_a_wrong_one_there_stays(remote, target):
    def check(path: Path) -> None:
        raise UserError(f"{path} is wrong")

    with pytest.raises(UserError, match=r"file.part is wrong: it was removed, check the address"):
        fetch(remote.url, target, check, lambda *numbers: None, lambda text: None)
    assert not list(target.parent.iterdir())
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="file is wrong: remove it to download it anew"):
        fetch(remote.url, target, check, lambda *numbers: None, lambda text: None)
    assert target.read_bytes() == b"mine"
