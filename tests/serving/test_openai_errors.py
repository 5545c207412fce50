"""What is refused under /v1/, with which status, in OpenAI's shape, about which field."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import openai
import pytest

from gptstar.serving.openai.errors import Failure
from serving.openai_support import CONTEXT, NAME, TOKENIZER, live

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server():
    with live(max_new_tokens=200) as server:
        yield server


def failure(answer: httpx.Response):
    return Failure.model_validate_json(answer.content).error


COMPLETIONS = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [TOKENIZER.vocab_size]}, "prompt"),
    ({"prompt": [[1], [2, 10**6]]}, "prompt"),
    ({"prompt": {"a": "b"}}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 201}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 1}, "min_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"prompt": ["a"] * 5, "n": 2}, "n"),
    ({"best_of": 9}, "n"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"logit_bias": {"5": 20}}, "logit_bias.5"),
    ({"logit_bias": {str(i): -100 for i in range(1025)}}, "logit_bias"),
    ({"prompt": [[1]] * 2049}, "prompt"),
    ({"logit_bias": {"x": -100}}, "logit_bias.x.[key]"),
    ({"logit_bias": {str(TOKENIZER.vocab_size): -100}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": "yes"}, "stream"),
    ({"suffix": "end"}, "suffix"),
    ({"echo": 1}, "echo"),
    ({"colour": "red"}, "colour"),
]
CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "b"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]},
        "messages[0].tool_calls",
    ),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 201}, "max_tokens"),
    ({"max_completion_tokens": 201}, "max_completion_tokens"),
    ({"max_completion_tokens": 2, "max_tokens": 3}, "max_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {"model": "a"}}, "moderation"),
    ({"store": True}, "store"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"best_of": 2}, "best_of"),
    ({"n": 9}, "n"),
]


@pytest.mark.parametrize(("body", "param"), COMPLETIONS)
def test_completions_that_cannot_be(server, body, param):
    answer = server.post("completions", **{"prompt": "a", **body})
    said = failure(answer)
    assert (answer.status_code, said.type, said.param, said.code) == (400, "invalid_request_error", param, None)
    assert said.message and "\n" not in said.message and len(said.message) < 500


@pytest.mark.parametrize(("body", "param"), CHATS)
def test_chats_that_cannot_be(server, body, param):
    answer = server.post("chat/completions", **{"messages": HI, **body})
    said = failure(answer)
    assert (answer.status_code, said.type, said.param, said.code) == (400, "invalid_request_error", param, None)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"5", b"\xff\xfe{}", b"[" * 9999),
        *(b'{"prompt": NaN}', b'{"temperature": Infinity}', b'{"temperature": NaN}'),
        *(b'{"prompt": "\\ud800"}', b'{"stop": "\\udc00"}', b'{"model": "\\ud800"}'),
    ],
)
def test_bodies_that_are_none(server, content):
    answer = httpx.post(
        f"{server.url}/v1/completions",
        content=content,
        headers={"Content-Type": "application/json"},
        trust_env=False,
    )
    assert answer.status_code == 400 and failure(answer).type == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "xyz " * 90, "max_tokens": 5}, "prompt"),
        ("completions", {"prompt": ["a", [1] * (CONTEXT - 4)], "max_tokens": 5}, "prompt"),
        ("completions", {"prompt": [1] * (CONTEXT - 4), "max_tokens": 5, "stream": True}, "prompt"),
        ("completions", {"prompt": [1] * (CONTEXT + 1), "max_tokens": 0, "echo": True, "logprobs": 0}, "prompt"),
        ("chat/completions", {"messages": [{"role": "user", "content": "xyz " * 90}]}, "messages"),
        ("chat/completions", {"messages": HI, "max_tokens": CONTEXT}, "messages"),
    ],
)
def test_what_is_too_long_to_read(server, path, body, param):
    answer = server.post(path, **body)
    said = failure(answer)
    if isinstance(body.get("prompt"), list) and body["prompt"][0] == "a":
        assert (answer.status_code, said.param) == (400, "prompt")  # texts and tokens do not mix
        return
    assert (answer.status_code, said.param, said.code) == (400, param, "context_length_exceeded")
    assert f"{CONTEXT} tokens" in said.message


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_long_text_is_refused_before_it_is_tokenised(server, path, monkeypatch):
    tokenizer, seen = server.models.default.tokenizer, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: seen.append(text) or encode(text))
    text = "xyz " * 100_000
    body = {"messages": [{"role": "user", "content": text}]} if path.startswith("chat") else {"prompt": text}
    more = {} if path.startswith("chat") else {"echo": True, "logprobs": 1, "max_tokens": 0}
    assert failure(server.post(path, **body, **more)).code == "context_length_exceeded" and not seen


def test_of_several_prompts_none_has_started_where_one_is_too_long(server):
    answer = server.post("completions", prompt=["a", "xyz " * 90], max_tokens=5)
    assert failure(answer).code == "context_length_exceeded"
    assert server.models.default.worker.pending == 0


@pytest.mark.parametrize("path", ["completions", "chat/completions", "models"])
def test_models_that_are_not_there(server, path):
    with server.client() as client, pytest.raises(openai.NotFoundError) as error:
        if path == "completions":
            client.completions.create(model="gpt-9", prompt="a")
        elif path == "models":
            client.models.retrieve("some/gpt-9")
        else:
            client.chat.completions.create(model="gpt-9", messages=HI)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/v1/nothing", 404), ("POST", "/v1/", 404)]
)
def test_paths_that_are_not_there(server, method, path, status):
    answer = httpx.request(method, server.url + path, trust_env=False)
    assert answer.status_code == status and failure(answer).type == "invalid_request_error"


def test_other_contracts_keep_their_own_shape(server):
    answer = httpx.post(f"{server.url}/generate", json={}, trust_env=False)
    assert answer.status_code == 422 and set(answer.json()) == {"error"} and isinstance(answer.json()["error"], str)


def test_a_model_that_is_not_ready(server):
    served = server.models.default
    served.state = "loading"
    try:
        for answer in (server.post("completions", prompt="a"), server.post("chat/completions", messages=HI)):
            assert answer.status_code == 503 and failure(answer).type == "server_error"
            assert int(answer.headers["Retry-After"]) > 0
    finally:
        served.state = "ready"


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_before_it_begins(stream):
    with live(request_timeout=0.2) as server:
        step, go = server.engine.step, threading.Event()
        server.engine.step = lambda: (go.wait(30), step())[1]
        try:
            answer = server.post("completions", prompt="a", stream=stream)
        finally:
            go.set()
        assert answer.status_code == 504 and failure(answer).code == "timeout"
        assert server.is_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_busy(stream):
    with live(rows=1, max_queue=1) as server:
        step, go = server.engine.step, threading.Event()
        server.engine.step = lambda: (go.wait(30), step())[1]
        answers = []
        first = threading.Thread(target=lambda: answers.append(server.post("completions", prompt=["a", "b"])))
        first.start()
        while server.models.default.worker.pending < 2:
            time.sleep(0.01)
        try:
            refused = server.post("completions", prompt="a", stream=stream)
        finally:
            go.set()
        first.join()
        assert answers[0].status_code == 200
        said = failure(refused)
        assert (refused.status_code, said.type, said.code) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert int(refused.headers["Retry-After"]) >= 1


def test_a_lone_request_of_several_prompts_is_served_however_small_the_queue_is():
    with live(rows=1, max_queue=0) as server:
        assert server.post("completions", prompt=["a", "b", "the"], n=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails(stream):
    with live() as server:
        server.engine.step = lambda: 1 / 0
        answer = server.post("completions", prompt="a", stream=stream)
        assert answer.status_code == 503 and failure(answer).type == "server_error"


def test_mistakes_of_ours_say_nothing_of_themselves(server, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.models.default, "ask_all", broken)
    answer = server.post("completions", prompt="a")
    assert answer.status_code == 500 and failure(answer).type == "server_error" and "secret" not in answer.text


def test_every_status_is_described(server):
    described = server.app.openapi()
    shape = {"$ref": "#/components/schemas/Failure"}
    for path in ("completions", "chat/completions"):
        responses = described["paths"][f"/v1/{path}"]["post"]["responses"]
        assert set(responses) == {"200", "401", "404", "413", "429", "500", "503", "504", "4XX"}
        for status, response in responses.items():
            assert status == "200" or response["content"]["application/json"]["schema"] == shape
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}


def test_the_clients_errors_are_of_the_right_kind(server):
    async def call():
        async with server.asynchronous() as client:
            await client.completions.create(model=NAME, prompt="a", temperature=3)

    with pytest.raises(openai.BadRequestError) as error:
        asyncio.run(call())
    assert error.value.param == "temperature"
