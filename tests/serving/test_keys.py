from __future__ import annotations

import hmac
import logging

import pytest

BODY = {"text": {"plain": "a"}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sesame"},
        {"authorization": "bearer  sesame"},
        {"X-API-Key": "open"},
        {"X-API-Key": "schlüssel".encode()},
    ],
)
def test_either_key_in_either_header_opens(serve, headers):
    client = serve(api_keys="sesame, open, schlüssel")
    assert client.post("/", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer Sesame"},
        {"Authorization": "Basic sesame"},
        {"Authorization": "sesame"},
        {"X-API-Key": ""},
        {"X-API-Key": "sesam"},
        {"X-API-Key": "sesame,open"},
        {"X-API-Key": b"\xff\xfe"},
    ],
)
def test_nothing_else_does(serve, headers):
    client = serve(api_keys="sesame,open")
    for response in (
        client.post("/", json=BODY, headers=headers),
        client.get("/talk", params={"input": "a"}, headers=headers),
        client.get("/metrics", headers=headers),
        client.get("/openapi.json", headers=headers),
        client.get("/nowhere", headers=headers),
        client.post("/health", headers=headers),
    ):
        assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Bearer")
        assert "API key" in response.json()["error"]


def test_health_needs_none(serve):
    client = serve(api_keys="sesame")
    assert client.get("/health").status_code == 200
    assert client.get("/page/nothing.js").status_code == 404
    assert client.get("/metrics", headers={"X-API-Key": "sesame"}).status_code == 200


def test_all_keys_are_compared_always(serve, monkeypatch):
    client = serve(api_keys="one,two,three")
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    assert client.post("/", json=BODY, headers={"X-API-Key": "one"}).status_code == 200
    assert len(compared) == 3 and {len(a) for pair in compared for a in pair} == {32}


def test_keys_never_reach_the_log(serve, caplog):
    client = serve(api_keys="sesame,open")
    with caplog.at_level(logging.DEBUG):
        client.post("/", json=BODY, headers={"X-API-Key": "open"})
        client.post("/", json=BODY, headers={"X-API-Key": "wrong-key"})
    lines = [r for r in caplog.records if r.name == "gptstar.requests"]
    assert [line.fields["client"] for line in lines] == [1, None]
    said = " ".join(str(vars(r)) for r in lines)
    assert "sesame" not in said and "wrong-key" not in said
