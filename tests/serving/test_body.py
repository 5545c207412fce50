from __future__ import annotations

import contextlib
import json
import logging
import re
import socket

import pytest

from gptstar.serving import body


def raw(port: int, *pieces: bytes) -> bytes:
    """What the server answers to these bytes, whole: it may come in any number of pieces.

    Who answers and closes before he has read everything resets the connection, perhaps while more is being sent; what
    he had answered is there to be read all the same.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while not whole(answer) and (got := connection.recv(65536)):
                answer += got
    return answer


def whole(answer: bytes) -> bool:
    """An answer without a length is whole when the connection ends."""
    head, _, text = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return length is not None and len(text) >= int(length[1])


def head(port: int, *headers: str, path: str = "/", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_declared_length_beyond_the_limit_is_refused_at_once(listen):
    server = listen(max_body_bytes=1000)
    answer = raw(server.port, head(server.port, "Content-Length: 1000000000000"))  # nothing of it was sent
    assert answer.startswith(b"HTTP/1.1 413") and b"1000 bytes" in answer


def test_chunks_beyond_the_limit_are_refused_when_they_are(listen):
    server = listen(max_body_bytes=1000)
    chunk = b"258\r\n" + b" " * 600 + b"\r\n"  # 600 bytes
    answer = raw(server.port, head(server.port, "Transfer-Encoding: chunked"), chunk, chunk)  # without an end
    assert answer.startswith(b"HTTP/1.1 413")


def test_the_limit_itself_is_allowed(serve):
    text = json.dumps({"text": {"plain": "a"}})
    client = serve(max_body_bytes=len(text))
    headers = {"Content-Type": "application/json"}
    assert client.post("/", content=text, headers=headers).status_code == 200
    assert client.post("/", content=text + " ", headers=headers).status_code == 413


def test_a_body_that_does_not_come_is_408_and_delays_nobody(listen, monkeypatch):
    monkeypatch.setattr(body.Body.__init__, "__defaults__", (1.0,))
    server = listen()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(head(server.port, "Content-Length: 100") + b"{")
        assert server.client.post("/", json={"text": {"plain": "a"}}).status_code == 200
        answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()
        while slow.recv(65536):
            pass  # to its end


def test_somebody_who_leaves_within_his_body_is_no_fault(listen, caplog, wait_until):
    caplog.set_level(logging.INFO)
    server = listen()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(server.port, "Content-Length: 100") + b"{")
    wait_until(lambda: [r for r in caplog.records if r.name == "gptstar.requests"])  # he has gone
    assert server.client.post("/", json={"text": {"plain": "a"}}).status_code == 200
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.parametrize("what", ["address", "header", "headers"])
def test_long_addresses_and_headers_are_4xx(listen, what):
    server = listen()
    sent = {
        "address": head(server.port, path="/talk?input=" + "a" * 200_000, method="GET"),
        "header": head(server.port, "X-Long: " + "a" * 200_000),
        "headers": head(server.port, *(f"X-{i}: {i}" for i in range(20_000))),
    }[what]
    assert raw(server.port, sent).startswith(b"HTTP/1.1 4")
