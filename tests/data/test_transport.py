from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gptstar.data.transport import _read_on, advance, within
from gptstar.errors import UserError
from gptstar.fetch import Dropped


def test_addresses_of_files_in_a_folder():
    assert within("http://h:1/a/?sig=b/c", "x.bin") == "http://h:1/a/x.bin?sig=b/c"
    assert within("https://h", "x.bin") == "https://h/x.bin"
    assert within("s3://bucket/a/", "x.bin") == "s3://bucket/a/x.bin"
    assert within("/a/b", "x.bin") == "/a/b/x.bin"


def test_the_end_of_a_file_is_added_to_its_beginning(tmp_path: Path):
    (tmp_path / "x").write_bytes(bytes(range(200)))
    part, shown = tmp_path / "part", []
    part.write_bytes(b"abc")
    advance(f"file://{tmp_path}/x", 1.0)(part, lambda *numbers: shown.append(numbers))
    assert part.read_bytes() == b"abc" + bytes(range(3, 200)) and shown == [(3, 200), (200, 200)]


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (None, UserError, "does not say how long"),
        (5, Dropped, "ended after 4 of 5"),
        (3, Dropped, "went on after 3"),
        (1, Dropped, "has 1 bytes and 2 were here"),
    ],
)
def test_a_size_that_does_not_fit_what_comes(tmp_path: Path, size, error, words):
    class Odd(MemoryFileSystem):
        store = {"/x": None}  # noqa: RUF012

        def size(self, path):
            return size

    system = Odd(skip_instance_cache=True)
    system.pipe_file("/x", b"abcd")
    part = tmp_path / "part"
    part.write_bytes(b"ab")
    with pytest.raises(error, match=words):
        _read_on("odd://x", system, "/x", 1.0, part, lambda *numbers: None)
