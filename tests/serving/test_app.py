"""What is true of all routes: methods, unknown paths, other sites, time, and clients that leave or read slowly."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

BODY = {"text": {"plain": "abc"}}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("PUT", "/", 405),
        ("DELETE", "/talk", 405),
        ("OPTIONS", "/generate", 405),
        ("POST", "/health", 405),
        ("HEAD", "/health", 200),
        ("GET", "/nowhere", 404),
        ("POST", "/generate/", 404),
        ("GET", "/talk/", 404),
        ("BREW", "/", 405),
    ],
)
def test_methods_and_paths(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    if status == 405:
        assert response.headers["allow"]
    if method != "HEAD":
        assert list(response.json()) == ["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_that_does_not_call_itself_json(client, kind):
    response = client.post("/", content=b'{"text": {"plain": "a"}}', headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 422 and "Content-Type: application/json" in response.json()["error"]


def test_other_sites_are_off_by_default(client):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert client.options("/generate", headers=headers).status_code == 405
    for response in (client.post("/", json=BODY, headers=headers), client.options("/generate", headers=headers)):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_other_sites_where_the_operator_allows_them(serve, monkeypatch):
    client = serve(cors_origins="https://example.org", api_keys="sesame", max_body_bytes=100)
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    told = client.options("/generate", headers={**asked, "Access-Control-Request-Headers": "authorization"})
    assert told.status_code == 200 and told.headers["access-control-allow-origin"] == "https://example.org"
    assert "authorization" in told.headers["access-control-allow-headers"]
    key = {"X-API-Key": "sesame"}

    async def broken(*arguments):
        raise ZeroDivisionError

    for expected, response in (
        (200, client.post("/", json=BODY, headers={**asked, **key})),
        (401, client.post("/", json=BODY, headers=asked)),
        (422, client.post("/", json={}, headers={**asked, **key})),
        (413, client.post("/", content="a" * 101, headers={**asked, **key})),
        (404, client.get("/nowhere", headers={**asked, **key})),
    ):
        assert response.status_code == expected
        assert response.headers["access-control-allow-origin"] == "https://example.org"
    monkeypatch.setattr(client.app.state.models.default, "ask", broken)
    response = client.post("/", json=BODY, headers={**asked, **key})
    assert response.status_code == 500 and response.headers["access-control-allow-origin"] == "https://example.org"
    others = client.post("/", json=BODY, headers={**key, "Origin": "https://example.com"})
    assert "access-control-allow-origin" not in others.headers


def test_what_is_not_answered_in_time_is_504_and_gives_its_row_back(listen, gate, wait_until):
    server = listen(request_timeout=0.3)
    rounds = gate(server.app)
    response = server.client.post("/", json=BODY)
    assert response.status_code == 504 and "0.3 s" in response.json()["error"]
    worker = server.app.state.models.default.worker
    assert worker.pending == 0
    rounds.open()
    wait_until(lambda: worker.engine.idle)


def test_a_full_queue_is_429_with_retry_after(listen, gate, wait_until):
    server = listen(max_rows=1, max_queue=0)
    rounds = gate(server.app)
    worker = server.app.state.models.default.worker
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.client.post, "/", json=BODY)
        wait_until(lambda: worker.pending == 1)
        second = server.client.post("/", json=BODY)
        assert second.status_code == 429 and int(second.headers["retry-after"]) >= 1
        assert "busy" in second.json()["error"]
        rounds.open()
        assert first.result().status_code == 200


def request(port: int, path: str = "/", length: int = 120) -> bytes:
    body = b'{"text": {"plain": "abc"}, "max_length": %d}' % length
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        len(body),
        body,
    )


def test_whoever_hangs_up_frees_the_row_and_others_go_on(listen, gate, wait_until):
    server = listen(max_rows=2)
    worker = server.app.state.models.default.worker
    expected = server.client.post("/", json=BODY).json()["sentences"]
    rounds = gate(server.app)
    with ThreadPoolExecutor() as pool:
        leaving = socket.create_connection(("127.0.0.1", server.port))
        leaving.sendall(request(server.port))
        wait_until(lambda: worker.pending == 1)
        stays = pool.submit(server.client.post, "/", json=BODY)
        wait_until(lambda: worker.pending == 2)
        leaving.close()
        wait_until(lambda: worker.pending == 1)  # although no round has ended yet
        rounds.open()
        assert stays.result().json()["sentences"] == expected
    wait_until(lambda: worker.engine.idle)
    assert rounds.rounds < 60  # the one who left wanted more than 100 tokens


def test_whoever_does_not_read_delays_nobody(listen):
    server = listen()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        # 3,000 answers of some hundred bytes each, none of which is read
        slow.settimeout(1)
        try:
            for _ in range(3000):
                slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        except TimeoutError:
            pass
        for _ in range(3):
            assert server.client.post("/", json=BODY).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ],
)
def test_other_protocols_are_not_spoken(listen, headers):
    server = listen()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"GET /nowhere HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: [\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=\xff\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_4xx(listen, sent):
    server = listen()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(sent + (b"" if sent.endswith(b"\n") else b"\r\n\r\n"))
        answer = connection.recv(100)
    assert answer.startswith(b"HTTP/1.1 4") or (answer == b"" and sent.startswith(b"\x16"))
    assert server.client.get("/health").status_code == 200
