"""Streams: they add up to the whole answer, and how they end when something comes between."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.serving.worker import Closed
from serving.openai_support import NAME, TOKENIZER, live

EVER_ON = {str(TOKENIZER.eot_id): -100}
FIELDS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@pytest.fixture(scope="module")
def server():
    with live() as server:
        yield server


def after(rounds: int, server, other: Callable[[], object]) -> None:
    """Something happens before each round of the engine but so many: begun before a request, whatever is the faster."""
    step, n_round = server.engine.step, itertools.count()

    def next_step():
        if next(n_round) >= rounds:
            other()
        return step()

    server.engine.step = next_step


def held(server, rounds: int = 0) -> threading.Event:
    """The engine waits, after so many rounds, until the event is set."""
    go = threading.Event()
    after(rounds, server, lambda: go.wait(30))
    return go


def added_up(chunks: list) -> dict:
    """All choices of a stream, by index."""
    whole: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            so_far = whole.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            assert so_far["finish_reason"] is None
            so_far["text"] += choice["text"]
            so_far["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                so_far["logprobs"] = so_far["logprobs"] or {field: [] for field in FIELDS}
                for field in FIELDS:
                    so_far["logprobs"][field] += choice["logprobs"][field]
    return whole


def events(body: str) -> list:
    """The chunks of a whole stream, which ends as it should."""
    *lines, end, nothing = body.split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


PROMPTS = ["", "the cat", "the cat ", "é ☃ ", [5, 200, 201], ["the", "on the mat "], [[200], [201, 3], []]]


@settings(max_examples=25)
@given(
    prompt=st.sampled_from(PROMPTS),
    wish=st.fixed_dictionaries(
        {"seed": st.integers(0, 9), "max_tokens": st.sampled_from([1, 2, 9, 25])},
        optional={
            "n": st.integers(1, 2),
            "echo": st.booleans(),
            "logprobs": st.integers(0, 2),
            "stop": st.sampled_from(["a", ["t", "M"], "the", "\ufffd\ufffd", ["cat s", "w\ufffd"]]),
            "temperature": st.sampled_from([0, 1.3]),
            "top_k": st.sampled_from([3]),
            "presence_penalty": st.just(1.5),
            "logit_bias": st.just(EVER_ON),
        },
    ),
    usage=st.booleans(),
)
def test_pieces_add_up_to_the_whole(server, prompt, wish, usage):
    whole = server.post("completions", prompt=prompt, **wish).json()
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = server.post("completions", prompt=prompt, stream=True, **wish, **options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk.get("usage", 0) == (None if usage else 0) for chunk in chunks)
    streamed = added_up(chunks)
    assert sorted(streamed) == [choice["index"] for choice in whole["choices"]]
    for choice in whole["choices"]:
        piece = streamed[choice["index"]]
        assert (piece["text"], piece["finish_reason"]) == (choice["text"], choice["finish_reason"])
        if choice["logprobs"] is None:
            assert piece["logprobs"] is None
            continue
        for field in ("tokens", "text_offset"):
            assert piece["logprobs"][field] == choice["logprobs"][field]
        for ours, theirs in zip(piece["logprobs"]["token_logprobs"], choice["logprobs"]["token_logprobs"], strict=True):
            assert ours == pytest.approx(theirs)
        for ours, theirs in zip(piece["logprobs"]["top_logprobs"], choice["logprobs"]["top_logprobs"], strict=True):
            assert ours == pytest.approx(theirs)


def test_a_stream_comes_in_pieces_and_is_not_buffered(server):
    with server.client() as client:
        with client.completions.with_streaming_response.create(
            model=NAME, prompt="the", max_tokens=9, stream=True, logit_bias=EVER_ON
        ) as answer:
            assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
        chunks = list(
            client.completions.create(model=NAME, prompt="the", max_tokens=9, stream=True, logit_bias=EVER_ON)
        )
    assert len(chunks) > 3


def test_a_scored_prompt_comes_first_in_its_stream(server):
    body = {"prompt": "the cat", "echo": True, "max_tokens": 0, "logprobs": 1, "n": 3}
    chunks = events(server.post("completions", stream=True, **body).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["the cat"] * 3


@pytest.mark.parametrize("n", [1, 3])
def test_who_leaves_ends_the_request(n):
    with live() as server:
        body = {"prompt": ["the", "on"], "n": n, "max_tokens": 100, "stream": True, "logit_bias": EVER_ON}
        rounds, go = server.engine.rounds, held(server, 9)  # nothing ends by itself
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, trust_env=False, timeout=30) as answer:
            next(answer.iter_lines())
        end = server.models.default.worker
        for _ in range(2000):
            if not end.pending:
                break
            threading.Event().wait(0.01)
        assert end.pending == 0 and server.engine.rounds < rounds + 100
        go.set()


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_it_begins_ends_the_request(stream):
    with live() as server:
        go = held(server)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/completions", json={"prompt": "a", "stream": stream}, timeout=0.5, trust_env=False
            )
        worker = server.models.default.worker
        for _ in range(2000):
            if not worker.pending:
                break
            threading.Event().wait(0.01)
        assert worker.pending == 0
        go.set()
        assert server.is_idle()


def test_what_goes_wrong_within_a_stream_is_its_last_event():
    with live() as server, server.client() as client:
        after(9, server, lambda: 1 / 0)
        stream = client.completions.create(model=NAME, prompt="the", max_tokens=100, stream=True, logit_bias=EVER_ON)
        next(stream)
        with pytest.raises(openai.APIError, match="decoding has failed"):
            list(stream)


def test_a_stream_ends_with_an_error_when_its_time_is_over():
    with live(request_timeout=1.0) as server:
        go = held(server, 9)
        body = {"prompt": "the", "max_tokens": 100, "stream": True, "logit_bias": EVER_ON}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, trust_env=False, timeout=30) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            lines = [line for line in lines if line]
        go.set()
        assert json.loads(first.removeprefix("data: "))["choices"]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert server.is_idle()


def test_a_server_that_ends_says_so_in_its_streams():
    with live() as server, server.client() as client:
        go = held(server, 9)
        stream = client.completions.create(model=NAME, prompt="the", max_tokens=100, stream=True, logit_bias=EVER_ON)
        next(stream)
        worker = server.models.default.worker
        worker._loop.call_soon_threadsafe(worker._fail, Closed("the server is shutting down"))
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        go.set()


def test_a_slow_reader_delays_nobody(server):
    body = {"prompt": "the", "max_tokens": 100, "stream": True, "logit_bias": EVER_ON}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, trust_env=False, timeout=30) as slow:
        assert server.post("completions", prompt="on", max_tokens=20).status_code == 200
        assert server.is_idle()  # all of it is written while nothing is read
        slow.read()
        assert len(events(slow.text)) > 50
