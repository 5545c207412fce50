"""Files that people made: a mistake is named with its file and line."""

import hashlib

import pytest

from gptstar.errors import UserError
from gptstar.evaluation.jsonl import check_jsonl


def test_a_good_file_gives_its_sha256(tmp_path):
    content = b'{"a": 1, "b": 2}\n{"b": 3, "a": 4, "c": 5}\n'
    (tmp_path / "x.jsonl").write_bytes(content)
    assert check_jsonl(tmp_path / "x.jsonl") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: no valid JSON"),
        ('{"a": 1}\n\n{"a": 2}\n', r"x\.jsonl, line 2: no valid JSON"),
        ('{"a": 1}\n[1]\n', r"x\.jsonl, line 2: a list where a JSON object is needed"),
        ('{"a": 1, "b": 2}\n{"a": 1, "b": 2}\n{"b": 1}\n', r"x\.jsonl, line 3: the field 'a' of line 1 is missing"),
        ("", r"x\.jsonl is empty"),
        (b"\xff\xfe\n", r"x\.jsonl, line 1: no valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, words):
    (tmp_path / "x.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        check_jsonl(tmp_path / "x.jsonl")
