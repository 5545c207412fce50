import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data import lines
from gptstar.data.lines import cut_lines, read_lines
from gptstar.data.records import Block, Fields, Record
from gptstar.errors import UserError
from support import strictly

BLOCK = 50


def cut(data: bytes, size: int) -> list[Block]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", BLOCK)
        return list(cut_lines((data[i : i + size] for i in range(0, len(data), size)), "a.jsonl"))


def read(data: bytes, fields: Fields | None = None, lenient: bool = False) -> list[Record]:
    return list(strictly(read_lines(Block("a.jsonl", "jsonl", 0, data, lenient), fields or Fields())))


line = st.one_of(st.binary(max_size=30), st.binary(max_size=300), st.text(max_size=20).map(str.encode))
contents = st.builds(
    lambda parts, end, last: end.join(parts) + last,
    st.lists(line),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.sampled_from([b"", b"\n"]),
)
sizes = st.sampled_from([1, 2, 7, 49, 50, 51, 1000])


@given(contents, sizes, sizes)
def test_boundaries_depend_on_the_content_alone(data, size, other):
    blocks = cut(data, size)
    assert blocks == cut(data, other)
    assert b"".join(block.raw for block in blocks) == data
    # By the definition: each line lies in the block of the range that it starts in.
    starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    of_range: dict[int, int] = {}
    for number, start in enumerate(starts):
        if start < len(data):
            of_range.setdefault(start // BLOCK, number)
    assert [block.first for block in blocks] == list(of_range.values())
    assert all(len(block.raw.rpartition(b"\n")[0].rpartition(b"\n")[0]) <= BLOCK for block in blocks)


@given(st.lists(st.one_of(st.none(), st.text(max_size=60)), max_size=20), st.sampled_from(["\n", "\r\n"]), sizes)
def test_records_come_back_with_their_line_numbers(texts, end, size):
    made = ["" if t is None else json.dumps({"text": t}, ensure_ascii=len(t) % 2 == 0) for t in texts]
    data = b"\xef\xbb\xbf" + end.join(made).encode("utf-8", "surrogatepass")
    found = [r for block in cut(data, size) for r in strictly(read_lines(block, Fields()))]
    assert found == [Record(i, t, None) for i, t in enumerate(texts) if t is not None]


def test_fields_reach_into_nested_records():
    data = json.dumps({"meta": {"body": "x", "time": {"at": 5}}, "a.b": "y"}).encode()
    assert read(data, Fields("meta.body", "meta.time.at")) == [Record(0, "x", "5")]
    assert read(data, Fields("a.b")) == [Record(0, "y", None)]
    assert read(b'{"text": "x", "date": null}', Fields(date="date")) == [Record(0, "x", None)]


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    assert read(rb'{"text": "a\ud83d b\ude00"}')[0].text == "a� b�"
    assert read(rb'{"text": "\ud83d"}')[0].text == "�"
    assert read(rb'{"text": "\ud83d\ude00"}')[0].text == "\U0001f600"


def test_lenient_replaces_what_is_not_utf8():
    assert read(b'{"text": "a\xff"}', lenient=True)[0].text == "a�"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"text": ', "is not valid JSON (Expecting value"),
        (b'{"text": "x"} {"text": "y"}', "is not valid JSON (Extra data"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"text": "a\xffb"}', "is not UTF-8 (byte 11)"),
        (b'{"body": "x", "id": 1}', "no text in field 'text' (it has body, id): set data.text_field"),
        (b"{}", "no text in field 'text' (it has none)"),
        (b'{"text": 5}', "field 'text' holds int, not text"),
        (b'{"text": null}', "field 'text' holds null, not text"),
        (b'["x"]', "is no record with fields but a list"),
        (b'"x"', "is no record with fields but a str"),
    ],
)
def test_a_bad_line_is_named(bad, words):
    with pytest.raises(UserError) as error:
        read(b'{"text": "fine"}\n\n' + bad + b"\n")
    assert str(error.value).startswith("a.jsonl, line 3 (the first is 1)") and words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"text": "x", "meta": {"at": 1}}', "no date in field 'meta.time' (it has text, meta): set data.date_field"),
        (b'{"text": "x", "meta": "now"}', "no date in field 'meta.time'"),
        (b'{"text": "x", "meta": {"time": {}}}', "field 'meta.time' holds dict, no date"),
    ],
)
def test_a_bad_date_is_named(bad, words):
    with pytest.raises(UserError) as error:
        read(bad, Fields(date="meta.time"))
    assert words in str(error.value)


def test_a_line_longer_than_memory_allows_is_refused(monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 100)
    data = b'{"text": "x"}\n' * 20
    assert b"".join(b.raw for b in cut_lines(iter([data, b"y" * 900, b"\n"]), "a.jsonl")).endswith(b"y\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 21, is longer than 1000 bytes: is it jsonl"):
        list(cut_lines((b"y" * 100 if i else data for i in range(20)), "a.jsonl"))
