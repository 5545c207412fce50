"""A real server on loopback that stalls, truncates, resets, spoils bytes, knows no ranges and answers with errors."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gptstar import fetch as fetch_module
from gptstar.data import remote as remote_module
from gptstar.data.remote import ShardCache
from gptstar.data.shards import Split, TokenStream
from gptstar.errors import UserError
from gptstar.files import locked
from support import write_split

Usage = namedtuple("Usage", "total used free")
STALL = 0.2  # seconds
N_SHARD, SHARD_BYTES = 6, 40_000
ONE = SHARD_BYTES + remote_module.SIDE_BYTES


@dataclass
class Corpus:
    """A prepared one, as it lies at its source."""

    folder: Path
    split: Split
    tokens: np.ndarray

    @property
    def shards(self):
        return self.split.shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 300, SHARD_BYTES // 40 - 1).tolist() for _ in range(N_SHARD * 20)]
    split = write_split(folder, documents, SHARD_BYTES // 2)
    assert [shard.tokens * 2 for shard in split.shards] == [SHARD_BYTES] * N_SHARD
    (folder / "meta.json").write_text('{"splits": {}}')
    return Corpus(folder, split, TokenStream(folder, split, 300).read(0, split.tokens))


@dataclass
class Server:
    """`faults` says how the next requests are answered, each by one of the names in `answer` or by a status."""

    folder: Path
    url: str = ""
    faults: list[str | int | None] = field(default_factory=list)
    random_faults: random.Random | None = None
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # file, Range
    pause: float = 0.0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.removeprefix("/corpus/").partition("?")[0], request.headers.get("Range")
        self.seen.append((name, wanted))
        fault = self.faults.pop(0) if self.faults else None
        if self.random_faults and self.random_faults.random() < 0.5:
            fault = self.random_faults.choice(["cut", "reset", "spoilt", "no range", "longer", 500, 503, 429, 404])
        if isinstance(fault, int) or not (self.folder / name).is_file():
            request.send_error(fault or 404)
            return
        content = (self.folder / name).read_bytes()
        if fault == "longer":
            content += b"more"
        start = 0 if fault == "no range" or not wanted else int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start and start >= len(content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = bytearray(content[start:])
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        half = len(body) // 2
        if fault == "spoilt":
            body[half] ^= 1
        request.wfile.write(body[:half])
        if fault == "stall":
            request.wfile.flush()
            time.sleep(STALL * 3)
        if fault == "reset":
            request.wfile.flush()
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(request.connection.detach())
        elif fault not in ("cut", "stall"):
            time.sleep(self.pause)
            request.wfile.write(body[half:])


@pytest.fixture
def server(corpus, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    served = Server(corpus.folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *_):
            pass

        def finish(self):
            if self.connection.fileno() >= 0:
                super().finish()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass  # the other side may have gone

        def shutdown_request(self, request):
            if request.fileno() >= 0:
                super().shutdown_request(request)

    with Quiet(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        served.url = f"http://127.0.0.1:{http.server_port}/corpus"
        yield served
        http.shutdown()


@pytest.fixture
def make(server, tmp_path):
    """Caches of one folder; their notes are in `.notes`."""
    made = []

    def get(n_shard: float = 10, url: str | None = None, folder: Path | None = None, waits=(0.0, 0.0)) -> ShardCache:
        notes: list[str] = []
        where = folder or tmp_path / "cache"
        cache = ShardCache(url or server.url, where, int(n_shard * ONE), timeout=STALL, waits=waits, note=notes.append)
        cache.notes = notes
        made.append(cache)
        return cache

    yield get
    for cache in made:
        cache.close()


def size(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem[-5:]) for path in folder.glob("*.bin"))


def until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def test_a_stream_reads_what_was_written_and_the_folder_stays_small(make, corpus, server):
    cache = make(2.5)
    stream = cache.stream(corpus.split, 300)
    assert cache.text("meta.json") == b'{"splits": {}}' == cache.text("meta.json") and len(server.seen) == 1
    rng = random.Random(0)
    for start in [0, *(rng.randrange(len(stream) - 30_000) for _ in range(20))]:
        n = rng.randrange(30_000)
        assert np.array_equal(stream.read(start, n), corpus.tokens[start : start + n])
        assert size(cache.folder) <= cache.n_byte
    assert len(kept(cache.folder)) == 2


def test_what_is_there_is_not_fetched_again(make, corpus, server):
    first = [make().path(shard).read_bytes() for shard in corpus.shards]
    assert len(server.seen) == N_SHARD
    assert [make().path(shard).read_bytes() for shard in corpus.shards] == first and len(server.seen) == N_SHARD
    offsets = make().offsets(corpus.shards[0])
    assert np.load(offsets).tolist() == [1000 * i for i in range(20)]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([503, 500], "answers 503"),
        ([429], "429"),
        (["stall"], "timed out"),
        (["cut", "cut"], "ended after 20,000 of 40,000"),
        (["reset"], "broke|ended"),
        (["spoilt", "spoilt"], "expected sha256"),
        (["cut", "no range"], "ended after"),
        (["cut", "spoilt", None], "expected sha256"),
        (["longer"], "40,004 bytes instead of 40,000"),
    ],
    ids=str,
)
def test_what_passes_is_tried_again(make, corpus, server, faults, words):
    server.faults = list(faults)
    cache = make()
    assert cache.path(corpus.shards[1]).read_bytes() == (corpus.folder / "train-00001.bin").read_bytes()
    assert not server.faults and any(re.search(words, note) for note in cache.notes), cache.notes
    assert all("train-00001.bin" in note for note in cache.notes)
    if faults[0] == "cut":
        assert server.seen[1][1] == "bytes=20000-"


@pytest.mark.parametrize(
    ("faults", "n_request", "words"),
    [
        ([404], 1, "404 Not Found"),
        ([403], 1, "403 Forbidden"),
        ([503] * 9, 3, "503"),
        (["spoilt"] * 9, 3, r"expected sha256 {sha}, found [0-9a-f]{{64}}: put the right file there"),
        (["longer"] * 9, 3, "40,004 bytes instead of 40,000"),
    ],
    ids=str,
)
def test_what_stays_is_one_line_that_names_the_shard(make, corpus, server, faults, n_request, words):
    server.faults = list(faults)
    cache, shard = make(), corpus.shards[1]
    with pytest.raises(UserError, match=words.format(sha=shard.sha256)) as error:
        cache.path(shard)
    assert "/corpus/train-00001.bin" in str(error.value) and "\n" not in str(error.value)
    assert len(server.seen) == n_request and not kept(cache.folder) + list(cache.folder.glob("*.part*"))
    server.faults = []
    assert cache.path(shard).read_bytes() == (corpus.folder / shard.file).read_bytes()


def test_a_server_that_is_not_there_is_waited_for(make, corpus):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/corpus"
    cache = make(url=url)
    with pytest.raises(UserError, match=r"train-00000.bin: no connection \(.*refused"):
        cache.path(corpus.shards[0])
    assert len(cache.notes) == 2


def test_a_folder_that_cannot_be_and_a_full_disk_are_named(make, corpus, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache cannot be used \(Not a directory\): make room"):
        make(folder=tmp_path / "file" / "cache")
    cache = make()
    with monkeypatch.context() as patch:
        patch.setattr(fetch_module.shutil, "disk_usage", lambda path: Usage(10**6, 0, 1000))
        with pytest.raises(UserError, match=rf"{cache.folder} has 1,000 bytes free"):
            cache.path(corpus.shards[0])

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetch_module.os, "fsync", full)
        with pytest.raises(UserError, match=rf"{cache.folder}.*No space left"):
            cache.path(corpus.shards[0])
    assert kept(cache.folder) == [] and cache.path(corpus.shards[0]).stat().st_size == SHARD_BYTES


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 100), Path.unlink])
def test_a_shard_that_changed_on_disk_is_fetched_again(make, corpus, server, damage):
    path = make().path(corpus.shards[0])
    assert time.time() - path.stat().st_mtime > 1  # so that a change at once shows too
    damage(path)
    cache = make()
    assert cache.path(corpus.shards[0]).read_bytes() == (corpus.folder / path.name).read_bytes()
    assert len(server.seen) == 2 and (damage is Path.unlink or "was changed" in cache.notes[0])


@pytest.mark.parametrize("record", [None, "{", "[]", '{"size": 1}'])
def test_a_shard_without_a_good_record_is_read_again_not_fetched(make, corpus, server, record, monkeypatch):
    path = make().path(corpus.shards[0])
    ok = path.with_name(f"{path.name}.ok")
    good = ok.read_text()
    ok.unlink() if record is None else ok.write_text(record)
    make().path(corpus.shards[0])
    assert len(server.seen) == 1 and json.loads(ok.read_text())["content"] == json.loads(good)["content"]
    monkeypatch.setattr(remote_module, "file_checksum", lambda path: pytest.fail("it reads once more"))
    make().path(corpus.shards[0])


def test_the_same_name_of_another_corpus_is_another_shard(make, corpus, server, tmp_path):
    make().text("meta.json")
    make().path(corpus.shards[0])
    other = tmp_path / "other"
    other.mkdir()
    (other / "meta.json").write_text("[1]")
    split = write_split(other, [[7] * (SHARD_BYTES // 2 - 1)], 100)
    cache = make(url=f"file://{other}")
    assert cache.text("meta.json") == b"[1]"
    assert cache.path(split.shards[0]).read_bytes() == (other / "train-00000.bin").read_bytes()


def test_a_text_that_is_no_json_is_not_kept(make, server, tmp_path):
    (tmp_path / "meta.json").write_text("<html>log in</html>")
    cache = make(url=f"file://{tmp_path}")
    with pytest.raises(UserError, match=r"meta.json is wrong, 3 times: it is no JSON"):
        cache.text("meta.json")


def test_no_name_leads_out_of_the_folder(make, corpus):
    for name in ("../x.bin", "/etc/passwd", ".hidden", "a/b.bin", ""):
        with pytest.raises(UserError, match="is no name of a shard"):
            make().path(remote_module.Shard(name, 1, 1, "", ""))


def test_a_limit_below_two_shards_says_what_it_needs(make, corpus):
    for ask in (
        lambda cache: cache.path(corpus.shards[0]),
        lambda cache: cache.ahead(corpus.shards),
        lambda cache: cache.stream(corpus.split, 300),
    ):
        with pytest.raises(UserError, match=f"alone has 40,000: it needs room for two, give it at least {2 * ONE:,}"):
            ask(make(1.9))
    cache = make(2)
    cache.path(corpus.shards[0])
    cache.path(corpus.shards[1])


def test_the_one_used_longest_ago_goes(make, corpus):
    cache = make(3)
    for number in (0, 1, 2, 0, 3):
        cache.path(corpus.shards[number])
        time.sleep(0.01)  # the disk's clock
    assert kept(cache.folder) == [0, 2, 3]


def test_an_abandoned_part_goes_on_or_makes_room(make, corpus, server):
    server.faults = ["cut", 404, "cut", 404]
    cache = make(2)
    for number in (0, 1):
        with pytest.raises(UserError, match="404"):
            cache.path(corpus.shards[number])
    assert sorted(path.name for path in cache.folder.glob("*.part")) == ["train-00000.bin.part", "train-00001.bin.part"]
    cache.path(corpus.shards[1])
    assert server.seen[-1] == ("train-00001.bin", "bytes=20000-")
    cache.path(corpus.shards[2])
    assert kept(cache.folder) == [1, 2] and not list(cache.folder.glob("*.part"))


def test_ahead_comes_in_order_as_far_as_there_is_room(make, corpus, server):
    cache = make(3)
    stream = cache.stream(corpus.split, 300)
    stream.read(0, 1)
    cache.ahead([corpus.shards[i] for i in (4, 2, 5)])
    until(lambda: kept(cache.folder) == [0, 2, 4])
    time.sleep(0.05)
    assert [name for name, _ in server.seen] == [f"train-0000{i}.bin" for i in (0, 4, 2)]
    for number in (4, 2):  # the stream holds two: the first is let go, and its room is for the third
        stream.read(number * SHARD_BYTES // 2, 1)
    until(lambda: kept(cache.folder) == [2, 4, 5])
    cache.ahead(corpus.shards[3:4])
    until(lambda: kept(cache.folder) == [2, 3, 4])  # in use, and what is asked for now
    stream.read(0, 1)
    assert 0 in kept(cache.folder) and size(cache.folder) <= cache.n_byte


def test_what_comes_later_does_not_take_the_room_of_what_comes_first(make, corpus, server):
    small = write_split(corpus.folder, [[1] * 99], 100, name="small")
    cache = make(2.5)
    stream = cache.stream(corpus.split, 300)
    stream.read(0, 1)
    cache.ahead([*corpus.shards[1:3], *small.shards])
    until(lambda: kept(cache.folder) == [0, 1] and not cache._to_do)
    time.sleep(0.05)
    assert [name for name, _ in server.seen] == ["train-00000.bin", "train-00001.bin"]


def test_what_goes_wrong_ahead_is_noted_and_tried_again_when_needed(make, corpus, server):
    server.faults = [404, None]
    cache = make()
    cache.ahead(corpus.shards[:2])
    until(lambda: kept(cache.folder) == [1])
    assert len(cache.notes) == 1 and re.search(r"ahead: .*train-00000.bin: the server answers 404", cache.notes[0])
    cache.path(corpus.shards[0])


def test_closing_ends_a_download(make, corpus, server):
    server.pause = 0.1
    cache = make()
    cache.ahead(corpus.shards)
    until(lambda: server.seen)
    cache.close()
    assert kept(cache.folder) == [] and not cache._thread.is_alive()
    assert [path.name for path in cache.folder.glob("*.part")] == ["train-00000.bin.part"]
    assert make().path(corpus.shards[0]).is_file() and {name for name, _ in server.seen} == {"train-00000.bin"}


def test_many_that_share_a_folder_fetch_each_shard_once(make, corpus, server):
    server.pause = 0.02
    caches = [make() for _ in range(4)]
    order = [random.Random(i).sample(corpus.shards, N_SHARD) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(lambda c, s: [c.path(x) for x in s], *pair) for pair in zip(caches, order, strict=True)
        ]:
            done.result()
    assert Counter(name for name, _ in server.seen) == Counter(shard.file for shard in corpus.shards)


def test_a_shard_that_goes_before_it_is_opened_is_asked_for_again(make, corpus, server):
    cache, n = make(), iter(range(3))
    path = cache.path

    def taken_away(shard):
        found = path(shard)
        if next(n, None) is not None:
            found.unlink()
        return found

    cache.path = taken_away
    stream = cache.stream(corpus.split, 300)
    assert np.array_equal(stream.read(5, 100), corpus.tokens[5:105]) and len(server.seen) == 4
    found = path(corpus.shards[0])
    found.unlink()
    assert np.array_equal(stream.read(5, 100), corpus.tokens[5:105])  # what is mapped lives on


def test_a_killed_process_leaves_a_part_that_the_next_one_continues(make, corpus, server, tmp_path):
    server.faults, server.pause = [None, "stall"], 0.0
    program = f"""
import sys, json
from pathlib import Path
from gptstar.data.remote import ShardCache
from gptstar.data.shards import Shard
cache = ShardCache({server.url!r}, Path({str(tmp_path / "cache")!r}), {3 * ONE}, timeout=60)
for shard in json.loads(sys.argv[1]):
    cache.path(Shard(**shard))
"""
    shards = json.dumps(corpus.split.as_dict()["shards"])
    part = tmp_path / "cache" / "train-00001.bin.part"
    process = subprocess.Popen([sys.executable, "-c", program, shards], env=os.environ | {"no_proxy": "*"})
    try:
        end = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    left = {path.name for path in part.parent.iterdir() if path.name.startswith("train-00001")}
    assert left == {"train-00001.bin.part", "train-00001.bin.part.json", "train-00001.bin.lock"}
    cache = make(3)
    for number in (2, 3, 1):
        assert (
            cache.path(corpus.shards[number]).read_bytes()[:99]
            == corpus.tokens.astype("<u2").tobytes()[number * SHARD_BYTES : number * SHARD_BYTES + 99]
        )
    assert size(cache.folder) <= cache.n_byte


@pytest.fixture
def memory(corpus):
    """memory://corpus, which fails as told."""
    system = fsspec.filesystem("memory")
    for path in corpus.folder.iterdir():
        system.pipe_file(f"/corpus/{path.name}", path.read_bytes())
    yield system
    system.rm("/corpus", recursive=True)


class Moody(MemoryFileSystem):
    """memory:// under another name: opening fails or stalls as `moods` says."""

    protocol = "moody"
    moods: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("moody://", "memory://"))

    def _open(self, path, mode="rb", **options):
        mood = self.moods.pop(0) if self.moods else None
        if isinstance(mood, Exception):
            raise mood
        if mood == "stall":
            time.sleep(STALL * 2)
        return super()._open(path, mode, **options)


def test_any_path_of_fsspec(make, corpus, memory, tmp_path):
    urls = ["memory://corpus", f"file://{corpus.folder}", str(corpus.folder), f"file://{corpus.folder}/"]
    for i, url in enumerate(urls):
        stream = make(3, url=url, folder=tmp_path / str(i)).stream(corpus.split, 300)
        assert np.array_equal(stream.read(0, len(stream)), corpus.tokens)


def test_parts_and_wrong_files_of_other_protocols(make, corpus, memory):
    cache, shard = make(url="memory://corpus"), corpus.shards[0]
    part = cache.folder / "train-00000.bin.part"
    for left in (memory.cat("/corpus/train-00000.bin")[:777], b"something else", bytes(SHARD_BYTES + 1)):
        part.write_bytes(left)
        assert cache.path(shard).read_bytes() == memory.cat("/corpus/train-00000.bin")
        cache.path(shard).unlink()
    memory.pipe_file("/corpus/train-00000.bin", bytes(SHARD_BYTES))
    with pytest.raises(UserError, match=f"memory://corpus/train-00000.bin is wrong.*expected sha256 {shard.sha256}"):
        cache.path(shard)
    memory.pipe_file("/corpus/train-00000.bin", bytes(SHARD_BYTES - 1))
    with pytest.raises(UserError, match="39,999 bytes instead of 40,000"):
        cache.path(shard)
    memory.rm("/corpus/train-00000.bin")
    with pytest.raises(UserError, match=r"train-00000.bin: FileNotFoundError.*check the address"):
        cache.path(shard)


def test_other_protocols_fail_as_http_does(make, corpus, memory, monkeypatch):
    fsspec.register_implementation("moody", Moody, clobber=True)
    cache, shard = make(url="moody://corpus"), corpus.shards[0]
    Moody.moods = ["stall", OSError("reset"), TimeoutError()]
    with pytest.raises(UserError, match="the connection broke"):
        cache.path(shard)
    assert "nothing came for 0.2 s" in cache.notes[0] and "reset" in cache.notes[1]
    Moody.moods = [PermissionError(13, "Permission denied")]
    with pytest.raises(UserError, match="Permission denied: check the address and who may read it"):
        cache.path(shard)
    assert cache.path(shard).stat().st_size == SHARD_BYTES
    with pytest.raises(UserError, match=r"nonsense://x/train-00000.bin: .*nonsense"):
        make(url="nonsense://x", folder=cache.folder / "n").path(shard)


def test_a_signature_stays_at_the_end(make, corpus, server):
    assert make(url=f"{server.url}/?sig=a/b").path(corpus.shards[0]).stat().st_size == SHARD_BYTES


@pytest.mark.parametrize(("n_cache", "limit"), [(1, 2), (1, 3.5), (3, 2), (3, 2.5), (3, 5), (5, 3)])
def test_whatever_happens_the_tokens_are_true_and_the_folder_is_small(make, corpus, server, n_cache, limit):
    server.random_faults = random.Random(f"{n_cache} {limit}")
    caches = [make(limit) for _ in range(n_cache)]
    sizes, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            with locked(caches[0].folder / ".room"):  # nothing may go while it is counted
                sizes.append(size(caches[0].folder))

    def read(number: int) -> int:
        rng, cache, right = random.Random(number), caches[number], 0
        stream = cache.stream(corpus.split, 300)
        for _ in range(100 // n_cache):
            if rng.random() < 0.3:
                cache.ahead(rng.sample(corpus.shards, 2))
            if n_cache == 1 and rng.random() < 0.2 and (there := kept(cache.folder)):
                with contextlib.suppress(FileNotFoundError):
                    flip(cache.folder / f"train-{rng.choice(there):05d}.bin")
                stream = cache.stream(corpus.split, 300)  # what is mapped shows the flip
            start = rng.randrange(len(stream) - 100)
            with contextlib.suppress(UserError):
                assert np.array_equal(stream.read(start, 100), corpus.tokens[start : start + 100])
                right += 1
        return right

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(n_cache) as pool:
            right = sum(pool.map(read, range(n_cache)))
    finally:
        over.set()
        watcher.join()
    assert max(sizes) <= caches[0].n_byte
    assert right > 50
