from __future__ import annotations

import sys

from gptstar.serving import rate
from gptstar.serving.rate import Buckets, _client


def test_so_many_at_once_and_so_many_a_minute():
    now = [0.0]
    buckets = Buckets(6, lambda: now[0])
    assert [buckets.take("a") for _ in range(6)] == [0] * 6
    assert buckets.take("a") == 10
    assert buckets.take("b") == 0  # another client
    now[0] = 9
    assert round(buckets.take("a"), 6) == 1
    now[0] = 10
    assert buckets.take("a") == 0 and buckets.take("a") > 0
    now[0] = 10_000
    assert [buckets.take("a") for _ in range(7)][:6] == [0] * 6


def test_memory_is_bounded_whatever_addresses_come(monkeypatch):
    monkeypatch.setattr(rate, "MOST_CLIENTS", 100)
    buckets = Buckets(1)
    for i in range(1000):
        buckets.take(i)
    assert len(buckets._left) == 100 and sys.getsizeof(buckets._left) < 100_000


def test_addresses():
    assert _client({"client": ("192.0.2.1", 5)}) == "192.0.2.1"
    assert _client({"client": ("2001:db8::1", 5)}) == _client({"client": ("2001:db8::ffff", 9)})
    assert _client({"client": ("2001:db8::1", 5)}) != _client({"client": ("2001:db8:0:1::1", 5)})
    assert _client({"client": None}) == "" and _client({"client": ("testclient", 1)}) == "testclient"


def test_too_many_are_429_with_retry_after(serve):
    client = serve(rate_limit=2)
    statuses = [client.post("/", json={"text": {"plain": "a"}}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    told = client.get("/talk", params={"input": "a"})
    assert told.status_code == 429 and 1 <= int(told.headers["retry-after"]) <= 30
    assert "2 requests a minute" in told.json()["error"]
    assert client.get("/health").status_code == 200 and client.get("/metrics").status_code == 200


def test_each_key_has_its_own(serve):
    client = serve(rate_limit=1, api_keys="one,two")

    def ask(key):
        return client.post("/", json={"text": {"plain": "a"}}, headers={"X-API-Key": key}).status_code

    assert [ask("one"), ask("one"), ask("two"), ask("two")] == [200, 429, 200, 429]
