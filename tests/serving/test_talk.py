"""The demo's contract: one test a clause of what its server promised."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from gptstar.generation.settings import SamplingSettings


@pytest.fixture
def asked(monkeypatch, client):
    """What the model is asked."""
    calls: list[tuple[str, SamplingSettings]] = []
    served = client.app.state.models.default
    ask = served.ask

    async def noted(prompt, settings, prompt_logprobs=None):
        calls.append((prompt, settings))
        return await ask(prompt, settings, prompt_logprobs)

    monkeypatch.setattr(served, "ask", noted)
    return calls


def test_talk_answers_output(client):
    response = client.get("/talk", params={"input": "abc def"})
    assert response.status_code == 200
    assert list(response.json()) == ["output"] and isinstance(response.json()["output"], str)


def test_it_samples_at_temperature_0_9(client, asked):
    client.get("/talk", params={"input": "abc"})
    ((_, how),) = asked
    assert how.temperature == 0.9 and how.top_k is None and how.top_p is None and how.seed is None


def test_input_has_13_tokens_and_output_11_where_nothing_else_is_set(client, asked):
    client.get("/talk", params={"input": "abc"})
    ((_, how),) = asked
    assert how.max_prompt_tokens == 13 and how.max_new_tokens == 11


def test_the_last_tokens_of_a_long_input_stay(client, tokenizer):
    text = " ".join("abcdefghij" * 20)
    served = client.app.state.models.default
    engine = served.worker.engine
    prompt = engine.prepare(text, SamplingSettings(max_new_tokens=11, max_prompt_tokens=13, truncate=True))
    assert prompt.tokens == tokenizer.encode(text)[-13:]
    assert client.get("/talk", params={"input": text}).status_code == 200


def test_limits_are_the_operators(serve, jobs):
    client = serve(max_input_token_length=4, max_new_tokens=3)
    assert client.get("/talk", params={"input": "abc def gh ij " * 9}).status_code == 200
    assert len(jobs[0].prompt.shown) <= 4 and jobs[0].n_written <= 4


def test_a_limit_beyond_the_model_is_the_models(serve, jobs):
    client = serve(max_new_tokens=4000)
    assert client.get("/talk", params={"input": "abc def gh ij " * 9}).status_code == 200
    assert jobs[0].settings.max_new_tokens == 128 - 13


def test_the_prompt_is_not_in_the_output(client, tokenizer, jobs):
    output = client.get("/talk", params={"input": "abc def"}).json()["output"]
    assert output == tokenizer.decode(jobs[0].ended[0].tokens)


@pytest.mark.parametrize("text", ["a & b", "# heading", "1 + 1", "a=b?c", "100%", "ä ö 日本 🙂", "a\nb\tc", "", " "])
def test_any_text_arrives_whole(client, asked, text):
    response = client.get(f"/talk?input={quote(text)}")
    assert response.status_code == 200
    assert asked[0][0] == text


def test_a_plus_is_a_space_as_forms_have_it(client, asked):
    client.get("/talk?input=a+b")
    assert asked[0][0] == "a b"


def test_no_input_is_an_error_with_its_own_status(client):
    response = client.get("/talk")
    assert response.status_code == 422
    assert list(response.json()) == ["error"] and "input" in response.json()["error"]


def test_half_a_character_is_an_error_or_a_replacement(client):
    assert client.get("/talk?input=%ED%A0%80").status_code in (200, 422)
    assert client.get("/talk?input=%FF%FE").status_code in (200, 422)
    assert client.get("/talk?input=%00").status_code == 200


def test_talk_is_read_only(client):
    response = client.post("/talk", json={"input": "a"})
    assert response.status_code == 405 and response.headers["allow"] == "GET" and "error" in response.json()
