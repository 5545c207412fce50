"""/v1/chat/completions as OpenAI's own client sees it."""

from __future__ import annotations

import pytest

from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.openai.chat import ChatCompletion, Message, written_down
from serving.openai_support import CONTEXT, NAME, TOKENIZER, live

HI = [{"role": "user", "content": "hi"}]
WRITTEN = "User: hi\nAssistant:"
EVER_ON = {str(TOKENIZER.eot_id): -100}


@pytest.fixture(scope="module")
def server():
    with live() as server:
        yield server


@pytest.fixture(scope="module")
def ask(server):
    with server.client() as client:

        def call(messages=HI, **more):
            return client.chat.completions.create(model=NAME, messages=messages, **more)

        yield call


def test_a_conversation_is_written_down_turn_by_turn():
    said = [
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("developer", "Be brief."),
        ("user", [{"type": "text", "text": "who "}, {"type": "text", "text": "are you?"}]),
    ]
    assert written_down([Message(role=role, content=content) for role, content in said]) == (
        "Be kind.\n\nUser: hi\nAssistant: hello\nBe brief.\n\nUser: who are you?\nAssistant:"
    )


def test_the_answer_is_what_follows(server, ask):
    answer = ask(seed=3, max_completion_tokens=9)
    (own,) = generate_detailed(
        server.model, TOKENIZER, WRITTEN, SamplingSettings(max_new_tokens=9, seed=3, stop=["\nUser:"])
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", own.text.lstrip())
    assert choice.finish_reason == "length" and answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == len(TOKENIZER.encode(WRITTEN))
    assert answer.usage.completion_tokens == 9


def test_settings_are_those_of_completions(ask):
    wish = {"seed": 5, "temperature": 0.8, "top_p": 0.9, "presence_penalty": 1, "stop": ["w"], "n": 2}
    chat = ask(max_tokens=20, **wish).choices
    with_text = ask.__closure__[0].cell_contents.completions.create(
        model=NAME, prompt=TOKENIZER.encode(WRITTEN), max_tokens=20, **{**wish, "stop": ["w", "\nUser:"]}
    )
    assert [c.message.content for c in chat] == [c.text.lstrip() for c in with_text.choices]
    assert [c.index for c in chat] == [0, 1]


def test_the_next_turn_ends_the_answer(server, ask):
    forced = TOKENIZER.encode("so\nUser: hi")
    start = server.models.default.ask_all

    async def saying(prompts, settings, scored=None):
        settings.forced_tokens = forced
        return await start(prompts, settings, scored)

    server.models.default.ask_all = saying
    try:
        answer = ask()
        streamed = list(ask(stream=True))
    finally:
        del server.models.default.ask_all
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("so", "stop")
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == "so"


def test_default_lengths(ask):
    assert ask(seed=1, logit_bias=EVER_ON).usage.total_tokens == CONTEXT  # less than 256 are left
    messages = [{"role": "user", "content": "hi " * 20}]
    assert ask(messages, seed=1, logit_bias=EVER_ON).usage.total_tokens == CONTEXT


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_length(ask, name):
    assert ask(logit_bias=EVER_ON, **{name: 3}).usage.completion_tokens == 3


def test_log_probabilities(ask):
    choice = ask(logprobs=True, top_logprobs=2, seed=1, max_tokens=6, logit_bias=EVER_ON).choices[0]
    content = choice.logprobs.content
    assert len(content) == 6 and choice.logprobs.refusal is None
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace").lstrip() == choice.message.content
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.token.startswith("bytes:") or bytes(token.bytes).decode() == token.token
    assert ask(logprobs=True, max_tokens=2).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(max_tokens=2).choices[0].logprobs is None


def test_neutral_values_are_taken(ask):
    answer = ask(
        max_tokens=2,
        tools=[],
        tool_choice="none",
        functions=[],
        function_call="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        metadata={"a": "b"},
        user="me",
        safety_identifier="me",
        prompt_cache_key="k",
        service_tier="auto",
        store=False,
        reasoning_effort="none",
        verbosity="medium",
        prediction=None,
        audio=None,
    )
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_a_stream_begins_with_the_role_and_adds_up(ask):
    wish = {"seed": 4, "n": 2, "logprobs": True, "top_logprobs": 1, "max_tokens": 12, "logit_bias": EVER_ON}
    whole = ask(**wish)
    content, logprobs, reasons, roles = {0: "", 1: ""}, {0: [], 1: []}, {}, {}
    *chunks, last = list(ask(stream=True, stream_options={"include_usage": True}, **wish))
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk" and chunk.id == last.id and chunk.usage is None
        (choice,) = chunk.choices
        assert choice.index not in reasons
        if choice.index not in roles:
            roles[choice.index] = choice.delta.role
            assert choice.delta.content == ""
            continue
        assert choice.delta.role is None
        content[choice.index] += choice.delta.content or ""
        logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert roles == {0: "assistant", 1: "assistant"}
    assert last.choices == [] and last.usage == whole.usage
    for choice in whole.choices:
        assert content[choice.index] == choice.message.content
        assert logprobs[choice.index] == choice.logprobs.content
        assert reasons[choice.index] == choice.finish_reason


def test_what_is_sent_is_what_is_described(server):
    for more in ({}, {"logprobs": True, "top_logprobs": 2}):
        ChatCompletion.model_validate_json(server.post("chat/completions", messages=HI, max_tokens=3, **more).content)
