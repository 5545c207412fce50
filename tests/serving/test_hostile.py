"""Bodies that no friend would send, to every route that takes one: refused soon, and memory stays as it was."""

from __future__ import annotations

import gc
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.errors import UserError
from gptstar.garbage import LongLived
from gptstar.generation.engine import Engine
from gptstar.generation.settings import SamplingSettings

MEGABYTE = 2**20 - 200  # what fits into the limit, with something around it
BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "a word": b"abc",
    "not UTF-8": b'{"text": {"plain": "\xff\xfe"}}',
    "half of UTF-8": b'{"prompt": "\xe6\x97',
    "UTF-16": "abc".encode("utf-16"),
    "NUL": b'{"prompt": "a\x00"}',
    "NUL alone": b"\x00" * 1000,
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep within": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unknown": b'{"colour": "red"}',
    "many unknown": json.dumps({f"a{i}": 1 for i in range(70_000)}).encode(),
    "many unknown within": json.dumps({"text": {f"a{i}": 1 for i in range(70_000)}}).encode(),
    "a list": b"[1]",
    "a long list": b"[" + b"1," * 400_000 + b"1]",
    "null": b"null",
    "a number": b"5",
    "a long number": b"1" * 100_000,
    "long name": b'{"' + b"a" * 900_000 + b'": 1}',
    "too large": b'{"prompt": "' + b"a" * 10_000_000 + b'"}',
}


def listed(item: str, n: int) -> str:
    """A list of so many."""
    return "[" + ",".join([item] * n) + "]"


# What may be in each field of an object.
BAD_VALUES = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "huge whole number": "9" * 400,
    "longer than Python reads": "9" * 5000,
    "huge number": "1e999",
    "a list of nothing": listed("null", 2000),
    "a list of lists": listed("[null]", 2000),
    "an object": '{"a": {"b": []}}',
    "a lone surrogate": '"\\ud800"',
    "lone surrogates": '["\\udfff\\ud800", "\\ud800"]',
    "minus one": "-1",
    "true": "true",
}
LONG = {
    "one letter": "a" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "lines": "\n" * (MEGABYTE // 2),
    "NULs": "\x00" * (MEGABYTE // 6),
    "digits": "1" * MEGABYTE,
    "signs": "🙂" * (MEGABYTE // 12),
    "accents": "\u0301" * (MEGABYTE // 6),
}


def fields(app) -> list[tuple[str, str]]:
    """Each field of each JSON body the application describes: (path, field)."""
    described = app.openapi()
    found = []
    for path, item in described["paths"].items():
        body = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if body is None:
            continue
        schema = body["schema"]
        while "$ref" in schema:
            schema = described["components"]["schemas"][schema["$ref"].rsplit("/")[-1]]
        found += [(path, name) for name in schema.get("properties", {})]
    return found


def good(path: str) -> dict:
    """The least that a path takes."""
    text = {"text": {"plain": "a"}} if path in ("/", "/generate") else {"prompt": "a"}
    return {"messages": [{"role": "user", "content": "a"}]} if path.endswith("chat/completions") else text


def paths(app) -> list[str]:
    return list(dict.fromkeys(path for path, _ in fields(app)))


def post(client, path: str, body: bytes):
    return client.post(path, content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("name", BAD)
def test_bodies_that_are_none_are_4xx(client, name):
    for path in paths(client.app):
        response = post(client, path, BAD[name])
        assert 400 <= response.status_code < 500, (path, response.text[:500])
        assert response.json()["error"] and len(response.text) < 1000


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_of_every_field_that_cannot_be_are_no_5xx(client, name):
    for path, field in fields(client.app):
        body = {**good(path), field: 0}
        raw = json.dumps(body).replace(f'"{field}": 0', f'"{field}": {BAD_VALUES[name]}').encode()
        response = post(client, path, raw)
        assert response.status_code < 500, (path, field, response.text[:500])
        if name not in ("true", "minus one", "an object"):
            assert response.status_code >= 400, (path, field, response.text[:500])
            assert len(response.text) < 1000
    assert client.get("/health").status_code == 200


def test_names_that_come_twice_are_no_5xx(client):
    for path in paths(client.app):
        twice = json.dumps(good(path))[:-1] + ", " + json.dumps(good(path))[1:]
        assert post(client, path, twice.encode()).status_code == 200


@pytest.mark.parametrize("name", LONG)
def test_long_texts_are_refused_before_they_are_tokenised(client, name, monkeypatch):
    tokenizer, seen = client.app.state.models.default.tokenizer, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: seen.append(len(text)) or encode(text))
    for path in ("/", "/generate"):
        response = client.post(path, json={"text": {"plain": LONG[name]}, "max_length": 100})
        assert response.status_code in (413, 422), response.text[:300]
        assert len(response.text) < 1000
    assert not seen


def test_a_long_text_that_loses_its_beginning_is_cut_before_it_is_tokenised(serve, monkeypatch):
    client = serve(max_input_token_length=5)
    tokenizer, seen = client.app.state.models.default.tokenizer, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: seen.append(len(text)) or encode(text))
    assert client.post("/", json={"text": {"plain": "abc " * 200_000}}).status_code == 200
    assert seen and max(seen) < 10_000


@settings(max_examples=60)
@given(
    st.builds(
        SamplingSettings,
        max_new_tokens=st.integers(0, 4),
        min_new_tokens=st.integers(0, 4),
        temperature=st.sampled_from([0.0, 1e-300, 1e-5, 1e-3, 1.0, 100.0, 1e38, 1e300]),
        top_k=st.sampled_from([None, 1, 399, 400, 2**31, 2**63, 10**30]),
        top_p=st.sampled_from([None, 1e-300, 1e-9, 0.5, 1.0]),
        min_p=st.sampled_from([None, 0.0, 1e-300, 0.999999999999]),
        tau=st.sampled_from([None, 1e-300, 0.2, 1.0]),
        eta=st.sampled_from([None, 0.0, 1e-300, 0.999999999999]),
        repetition_penalty=st.sampled_from([1e-300, 1e-5, 1.0, 1e5, 1e38, 1e300]),
        presence_penalty=st.sampled_from([-1e300, -1e38, -2.0, 0.0, 2.0, 1e38, 1e300]),
        frequency_penalty=st.sampled_from([-1e300, -1e38, 0.0, 1e38, 1e300]),
        no_repeat_ngram=st.sampled_from([0, 1, 2, 10**30]),
        forbidden_tokens=st.sampled_from([[], [0], list(range(400))]),
        forced_tokens=st.sampled_from([[], [5], [5] * 9]),
        stop=st.sampled_from([[], ["a"], ["\x00", "b" * 1000]]),
        n=st.integers(1, 2),
        seed=st.sampled_from([None, 0, -1, 2**63 - 1, -(2**63)]),
        logprobs=st.sampled_from([None, 0, 5, 10**9]),
    )
)
def test_no_wish_that_passes_the_check_kills_the_engine(client, wish):
    """One that did would end the service for everybody."""
    served = client.app.state.models.default
    engine = Engine(served.model, served.tokenizer, max_rows=2)
    try:
        engine.submit("abc def", wish)
    except UserError:
        return
    assert any(event.done is not None for event in engine.run())


def memory() -> int:
    """Bytes this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def as_in_a_server():
    """What this process holds, hundreds of tests above all, is not searched for garbage at each request."""
    long_lived = LongLived()
    long_lived.set_aside()
    yield
    long_lived.release()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_of_it_takes_little_time_and_no_memory(client, as_in_a_server):
    """Processor time, so that a busy machine does not decide."""
    bodies = {name: json.dumps({"text": {"plain": text}}).encode() for name, text in LONG.items()}
    bodies |= {f"{name}, prompt": json.dumps({"prompt": text}).encode() for name, text in LONG.items()} | BAD

    asked = [(path, name, body) for path in paths(client.app) for name, body in bodies.items()]
    for path, field in fields(client.app):
        rest = json.dumps({**good(path), field: 0})
        for item in ("null", "[null]", '"a"', "-1"):
            within = rest.replace(f'"{field}": 0', f'"{field}": {listed(item, 100_000)}')
            asked.append((path, f"{field}, a list of {item}", within.encode()))

    def all_of_it() -> dict[tuple[str, str], float]:
        seconds = {}
        for path, name, body in asked:
            start = time.process_time()
            response = post(client, path, body)
            seconds[path, name] = time.process_time() - start
            cut = path == "/api/stream" and name.endswith(", prompt")  # the page reads the end of what is too long
            assert response.status_code == 200 or not cut, (path, name)
            assert 400 <= response.status_code < 500 or cut, (path, name)
        return seconds

    all_of_it()
    held, seconds = [memory()], {}
    for _ in range(3):
        seconds = all_of_it()
        held.append(memory())
    grown = [after - before for before, after in pairwise(held)]
    longest = sorted(seconds, key=seconds.__getitem__)[-5:]
    print(f"memory grew by {grown}; ", {which: round(seconds[which], 2) for which in longest})
    assert seconds[longest[-1]] < 1
    assert min(grown) < 1e6  # what is lost is lost every time


def test_what_a_server_has_is_not_searched_at_a_large_request_until_it_ends(listen, wait_until):
    before = gc.get_freeze_count()
    made = listen()
    wait_until(lambda: gc.get_freeze_count() > before)
    body = json.dumps({"prompt": "a", "top_k": [[None]] * 100_000})
    searched = []
    gc.callbacks.append(lambda phase, info: searched.append(len(gc.get_objects())) if info["generation"] == 2 else None)
    try:
        gc.collect()
        answer = made.client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
    finally:
        gc.callbacks.pop()
    assert max(searched) < 200_000  # what this process holds are more; the body has 100,000
    made.server.should_exit = True
    made.thread.join(30)
    assert gc.get_freeze_count() <= before
