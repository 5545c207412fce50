import gzip
import io
import json
import tarfile

import pytest
import zstandard

from gptstar.data import archives
from gptstar.data.archives import cut_tar, cut_warc
from gptstar.data.formats import DECODERS
from gptstar.data.records import Fields, Record
from gptstar.errors import UserError
from support import strictly


def chunks(data: bytes, size: int = 1000):
    return (data[i : i + size] for i in range(0, len(data), size))


def read(blocks, fields=None) -> list[Record]:
    return [record for block in blocks for record in strictly(DECODERS[block.kind](block, fields or Fields()))]


def make_tar(members: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


MEMBERS = {
    "a/1.txt": b"one",
    "a/1.jpg": b"no text",
    "a/._2.txt": b"what macOS adds",
    "b/" + "long" * 40 + ".json": json.dumps({"text": "zwei ü"}).encode(),
    "c.jsonl": jsonl("three", "four"),
    "empty.txt": b"",
    "d.jsonl.zst": zstandard.compress(jsonl("five")) + zstandard.compress(jsonl("six")),
    "e.md": b"seven",
    "f.jsonl.gz": gzip.compress(jsonl("eight")),
}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("size", [100, 10_000_000])
def test_a_tar_of_everything_is_read_in_order(kind, size):
    blocks = list(cut_tar(chunks(make_tar(MEMBERS, format=kind), size), "a.tar"))
    texts = [record.text for record in read(blocks)]
    assert texts == ["one", "zwei ü", "three", "four", "five", "six", "seven", "eight"]
    assert [(b.piece, b.kind, b.first) for b in blocks] == [
        ("a.tar", "members", 0),
        ("a.tar:c.jsonl", "jsonl", 0),
        ("a.tar", "members", 2),
        ("a.tar:d.jsonl.zst", "jsonl", 0),
        ("a.tar", "members", 3),
        ("a.tar:f.jsonl.gz", "jsonl", 0),
    ]


def test_documents_of_a_tar_are_gathered_into_blocks_and_members_forgotten(monkeypatch):
    monkeypatch.setattr(archives, "BLOCK_BYTES", 1000)
    data = make_tar({f"{i}.txt": b"x" * 50 for i in range(100)})
    blocks = list(cut_tar(chunks(data), "a.tar"))
    assert [block.first for block in blocks] == list(range(0, 100, 7)) and len(blocks[0].raw) == 7
    assert [record.number for record in read(blocks)] == list(range(100))


def test_damage_in_a_tar_is_never_taken_for_its_end():
    data = make_tar({f"{i}.txt": b"x" * 600 for i in range(5)})
    size = 512 + 1024  # of a member with its header
    assert len(read(cut_tar(chunks(data), "a.tar"))) == 5
    assert list(cut_tar(chunks(b""), "a.tar")) == []
    damaged = bytearray(data)
    damaged[2 * size + 10] ^= 1
    for bad in (data[: 3 * size], data[: 3 * size + 100], data[: 3 * size + 700], data[: 3 * size + 1100], damaged):
        with pytest.raises(UserError, match=r"a.tar: broken tar after \d members"):
            list(cut_tar(chunks(bytes(bad)), "a.tar"))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.jpg": b"x"}, "a.tar: none of its 1 members is a .txt"),
        ({"a.txt": b"fine", "b.txt": b"\xff"}, "a.tar:b.txt is not UTF-8 (byte 0)"),
        ({"b.json": b"[]"}, "a.tar:b.json is no record with fields but a list"),
        ({"b.jsonl": b'{"text": "x"}\n{'}, "a.tar:b.jsonl, line 2 (the first is 1) is not valid JSON"),
        ({"b.jsonl.gz": gzip.compress(b"x" * 100)[:-3]}, "a.tar:b.jsonl.gz: broken gz compression after 100 bytes"),
        ({"b.txt": b"x" * 3000}, "a.tar:b.txt is one document of more than 2000 bytes"),
    ],
)
def test_a_bad_member_is_named(monkeypatch, members, words):
    monkeypatch.setattr(archives, "MAX_RECORD_BYTES", 2000)
    with pytest.raises(UserError) as error:
        read(cut_tar(chunks(make_tar(members)), "a.tar"))
    assert words in str(error.value)


def test_a_date_cannot_be_asked_of_plain_text():
    with pytest.raises(UserError, match=r"a.tar:a.txt is text without fields, it has no 'time'"):
        read(cut_tar(chunks(make_tar({"a.txt": b"x"})), "a.tar"), Fields(date="time"))


def make_warc(*records) -> bytes:
    """records: (type, content type, body)."""
    data = b""
    for i, (kind, content_type, body) in enumerate(records):
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2020-01-0{i + 1}T00:00:00Z\r\n"
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        data += head.encode() + body + b"\r\n\r\n"
    return data


def http(content_type: str, body: bytes) -> tuple[str, str, bytes]:
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
    return "response", "application/http; msgtype=response", answer


WARC = (
    ("warcinfo", "application/warc-fields", b"software: x\r\n"),
    ("conversion", "text/plain", "eins ü\n\nzwei".encode()),
    http("text/plain; charset=utf-8", b"plain"),
    http("text/html", b"<p>markup</p>"),
    http('text/plain; charset="ISO-8859-1"', b"gr\xfcn"),
    ("resource", "text/plain", b""),
    ("resource", "text/plain; charset=made-up", b"last"),
    ("request", "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"),
)


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_the_plain_text_of_a_warc_is_read_with_its_date(size):
    found = read(cut_warc(chunks(make_warc(*WARC), size), "a.warc"), Fields(date="date"))
    assert [(r.text, r.date) for r in found] == [
        ("eins ü\n\nzwei", "2020-01-02T00:00:00Z"),
        ("plain", "2020-01-03T00:00:00Z"),
        ("grün", "2020-01-05T00:00:00Z"),
        ("", "2020-01-06T00:00:00Z"),
        ("last", "2020-01-07T00:00:00Z"),
    ]
    assert [r.number for r in found] == list(range(5))
    assert read(cut_warc(chunks(make_warc(*WARC)), "a.warc"))[0].date is None


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", "; charset=made-up", "; charset=hex"])
def test_a_web_servers_bytes_that_are_no_text_are_replaced(charset):
    data = make_warc(http(f"text/plain{charset}", b"a\xff"))
    assert [r.text for r in read(cut_warc(chunks(data), "a.warc"))] == ["a�"]


def test_half_a_warc_record_is_never_handed_on(monkeypatch):
    monkeypatch.setattr(archives, "BLOCK_BYTES", 1)
    data = make_warc(("conversion", "text/plain", b"one"), ("conversion", "text/plain", b"two and more"))
    blocks = cut_warc(chunks(data[:-10]), "a.warc")
    assert next(blocks).raw[0][1] == b"one"
    with pytest.raises(UserError, match=r"a.warc, WARC record 1 is cut off"):
        next(blocks)


def test_a_warc_cut_off_anywhere_within_a_record_is_an_error():
    data = make_warc(*WARC[1:3])
    second = data.index(b"WARC/1", 10)
    for size in (second - 8, data.index(b"plain", second) + 2, data.index(b"HTTP/1.1"), data.index(b"HTTP/1.1") + 12):
        with pytest.raises(UserError, match=r"a.warc, WARC record \d is cut off"):
            list(cut_warc(chunks(data[:size]), "a.warc"))
    with pytest.raises(UserError, match=r"a.warc"):
        list(cut_warc(chunks(data[: second + 30]), "a.warc"))


def test_what_is_no_warc_is_an_error():
    with pytest.raises(UserError, match=r"a.warc: broken WARC after 0 records"):
        list(cut_warc(chunks(b"nothing of the kind\n" * 10), "a.warc"))
    wrong = make_warc(WARC[1], WARC[1]).replace(b"Content-Length: 13", b"Content-Length: 10")
    with pytest.raises(UserError, match=r"a.warc: (broken WARC|a WARC record is longer)"):
        list(cut_warc(chunks(wrong), "a.warc"))
    assert list(cut_warc(chunks(b""), "a.warc")) == []


def test_a_warc_record_that_is_not_utf8_is_named():
    data = make_warc(("conversion", "text/plain", b"fine"), ("conversion", "text/plain", b"a\xff"))
    with pytest.raises(UserError, match=r"a.warc, text record 1 is not UTF-8 \(byte 1\)"):
        read(cut_warc(chunks(data), "a.warc"))
