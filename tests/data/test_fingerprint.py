import json
import os

import fsspec
import pytest

from gptstar.data import fingerprint as module
from gptstar.data.fingerprint import fingerprint
from gptstar.errors import UserError


def write(path, text, age=100):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    then = path.stat().st_mtime_ns - age * 10**9
    os.utime(path, ns=(then, then))
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose content was read."""
    names = []
    real = module.hashlib.file_digest

    def digest(file, kind):
        names.append(os.path.basename(file.name))
        return real(file, kind)

    monkeypatch.setattr(module.hashlib, "file_digest", digest)
    return names


def test_it_follows_names_content_and_order_but_not_folders(tmp_path):
    a, b = write(tmp_path / "1/a", "x"), write(tmp_path / "1/b", "y")
    same = [write(tmp_path / "2/a", "x"), write(tmp_path / "2/b", "y")]
    assert fingerprint([a, b]) == fingerprint(same) == fingerprint(map(str, same))
    others = [[b, a], [a], [], [write(tmp_path / "3/a", "z"), b], [write(tmp_path / "3/c", "x"), b]]
    assert len({fingerprint(files) for files in ([a, b], *others)}) == 6


def test_what_was_hashed_is_remembered_until_the_file_changes(tmp_path, hashed):
    files = [write(tmp_path / f"{i}.txt", "same") for i in range(3)]
    memory = tmp_path / "cache" / "hashes.json"
    first = fingerprint(files, memory)
    assert fingerprint(files, memory) == first == fingerprint(files) and hashed == 2 * ["0.txt", "1.txt", "2.txt"]
    del hashed[:]
    write(files[1], "else", age=50)  # as long as before
    assert fingerprint(files, memory) != first and hashed == ["1.txt"]
    write(tmp_path / "new", "that", age=100)
    os.utime(tmp_path / "new", ns=(os.stat(files[2]).st_atime_ns, os.stat(files[2]).st_mtime_ns))
    os.replace(tmp_path / "new", files[2])  # the same size and time, another inode
    fingerprint(files, memory)
    assert hashed == ["1.txt", "2.txt"]
    fingerprint(files[:1], memory)
    assert len(json.loads(memory.read_text())) == 3  # another corpus's files are not forgotten


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"x": 3}', '{"x": ["a"]}', "\0\xff"])
def test_a_damaged_memory_is_made_anew(tmp_path, hashed, damage):
    file, memory = write(tmp_path / "a", "x"), tmp_path / "hashes.json"
    memory.write_text(damage, encoding="latin-1")
    assert fingerprint([file], memory) == fingerprint([file])
    del hashed[:]
    fingerprint([file], memory)
    assert not hashed


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "folder").mkdir()
    assert fingerprint([write(tmp_path / "a", "x")], tmp_path / "folder")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, hashed):
    """It could change again within the file system's clock tick."""
    file = write(tmp_path / "a", "x", age=0)
    fingerprint([file], tmp_path / "m.json")
    fingerprint([file], tmp_path / "m.json")
    assert hashed == ["a", "a"]


def test_hashes_are_written_down_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_BYTES", 10)
    files = [write(tmp_path / f"{i}", "x" * 20) for i in range(2)]
    with pytest.raises(UserError, match="gone cannot be read"):
        fingerprint([*files, tmp_path / "gone"], tmp_path / "m.json")
    assert len(json.loads((tmp_path / "m.json").read_text())) == 2


def test_remote_files_count_with_what_their_server_states(monkeypatch):
    with fsspec.open("memory://prints/a.jsonl", "wb") as file:
        file.write(b"x")
    first = fingerprint(["memory://prints/a.jsonl"])
    assert fingerprint(["memory://prints/a.jsonl"]) == first
    with fsspec.open("memory://prints/a.jsonl", "wb") as file:
        file.write(b"y")
    assert fingerprint(["memory://prints/a.jsonl"]) != first
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: {"name": path, "size": 1, "type": "file"})
    with pytest.raises(UserError, match=r"a.jsonl: its server states neither checksum nor time of change"):
        fingerprint(["memory://prints/a.jsonl"])
