"""The REST contract: one test a clause of what its server promised."""

from __future__ import annotations

import base64
import re

import pytest


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("path", ["/", "/generate"])
def test_both_addresses_answer_alike(client, path):
    answers = [client.post(path, json={"text": {"plain": "abc def"}}).json() for _ in range(2)]
    assert answers[0]["sentences"] == answers[1]["sentences"]
    assert answers[0]["sentences"] == client.post("/", json={"text": {"plain": "abc def"}}).json()["sentences"]


def test_the_answer_has_these_fields_and_no_others(client):
    answer = client.post("/generate", json={"text": {"plain": "abc"}}).json()
    assert set(answer) == {"model", "s_elapsed", "sentences"}
    assert answer["model"] == "tiny"  # and not where it lies
    assert re.fullmatch(r"\d+\.\d\d", answer["s_elapsed"])
    assert [set(sentence) for sentence in answer["sentences"]] == [{"generated_text"}]


def test_what_is_too_long_is_said_in_no_other_contracts_words(client):
    answer = client.post("/", json={"text": {"plain": "abc def"}, "max_length": 2400})
    assert answer.status_code == 422
    assert "the model reads 128" in answer.json()["error"] and "max_new_tokens" not in answer.text


def test_a_sentence_begins_with_the_prompt(client):
    for prompt in ("abc def", "abc ", "ä 🙂", ""):
        answer = client.post("/", json={"text": {"plain": prompt}}).json()
        text = answer["sentences"][0]["generated_text"]
        assert text.startswith(prompt) and len(text) > len(prompt)


def test_the_text_may_come_in_base64(client):
    plain = client.post("/", json={"text": {"plain": "abc ä"}}).json()["sentences"]
    assert client.post("/", json={"text": {"in_64": b64("abc ä")}}).json()["sentences"] == plain


def test_plain_counts_where_both_are_there(client):
    plain = client.post("/", json={"text": {"plain": "abc"}}).json()["sentences"]
    assert client.post("/", json={"text": {"plain": "abc", "in_64": b64("other")}}).json()["sentences"] == plain
    assert client.post("/", json={"text": {"plain": "abc", "in_64": "no base64!"}}).status_code == 200


def test_max_length_counts_the_prompt(client, tokenizer, jobs):
    prompt = "abc def gh"
    n_prompt = len(tokenizer.encode(prompt))
    client.post("/", json={"text": {"plain": prompt}, "max_length": n_prompt + 3})
    client.post("/", json={"text": {"plain": prompt}})
    assert jobs[0].settings.max_new_tokens == 3
    assert jobs[1].settings.max_new_tokens == 20 - n_prompt  # the default
    response = client.post("/", json={"text": {"plain": prompt}, "max_length": n_prompt})
    assert response.status_code == 422 and "max_length" in response.json()["error"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [({}, None), ({"top_p": 100}, None), ({"top_p": 90}, 0.9), ({"top_p": 0.9}, 0.9), ({"top_p": 1}, None)],
)
def test_top_p_is_a_percentage_or_a_fraction(client, monkeypatch, wanted, expected):
    served = client.app.state.models.default
    seen = []
    ask = served.ask

    async def noted(prompt, settings):
        seen.append(settings)
        return await ask(prompt, settings)

    monkeypatch.setattr(served, "ask", noted)
    body = {"text": {"plain": "abc"}, "do_sample": True, **wanted}
    assert client.post("/", json=body).status_code == 200
    assert seen[0].top_p == expected and seen[0].top_k == 50 and seen[0].temperature == 1.0


def test_without_sampling_it_is_greedy(client, monkeypatch):
    texts = {client.post("/", json={"text": {"plain": "abc"}}).text.split("sentences")[1] for _ in range(3)}
    assert len(texts) == 1


def test_several_sequences(client):
    body = {"text": {"plain": "abc"}, "do_sample": True, "num_return_sequences": 3, "max_length": 40}
    sentences = client.post("/", json=body).json()["sentences"]
    assert len(sentences) == 3 and len({s["generated_text"] for s in sentences}) > 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": {"in_64": "no base64!"}}, "in_64"),
        ({"text": {"in_64": "////"}}, "in_64"),  # no UTF-8
        ({"text": {"in_64": "YQ"}}, "in_64"),  # without its end
        ({"text": {}}, "either plain or in_64"),
        ({}, "text"),
        ({"text": "abc"}, "text"),
        ({"text": {"plain": 5}}, "plain"),
        ({"text": {"plain": "a", "html": "b"}}, "html"),
        ({"text": {"plain": "a"}, "num_return_sequences": 2}, "do_sample"),
        ({"text": {"plain": "a"}, "num_return_sequences": 0, "do_sample": True}, "num_return_sequences"),
        ({"text": {"plain": "a"}, "num_return_sequences": 999, "do_sample": True}, "num_return_sequences"),
        ({"text": {"plain": "a"}, "top_p": 0}, "top_p"),
        ({"text": {"plain": "a"}, "top_p": 101}, "top_p"),
        ({"text": {"plain": "a"}, "top_k": -1}, "top_k"),
        ({"text": {"plain": "a"}, "top_k": 1.5}, "top_k"),
        ({"text": {"plain": "a"}, "temperature": 0, "do_sample": True}, "temperature"),
        ({"text": {"plain": "a"}, "temperature": "hot"}, "temperature"),
        ({"text": {"plain": "a"}, "do_sample": "yes"}, "do_sample"),
        ({"text": {"plain": "a"}, "max_length": 0}, "max_length"),
        ({"text": {"plain": "a"}, "max_length": 10**6}, "tokens"),
        ({"text": {"plain": "a"}, "stream": True}, "stream"),
        ([], "object"),
        (None, "null"),
    ],
)
def test_what_cannot_be_is_422_with_a_reason(client, body, said):
    response = client.post("/generate", json=body)
    assert response.status_code == 422
    reason = response.json()["error"]
    assert said in reason
    assert "\n" not in reason and len(reason) <= 300


def test_the_operators_limits_hold(serve):
    client = serve(max_input_token_length=5, max_new_tokens=6, max_sequences=2)
    long = {"plain": "abc def gh ij " * 30}
    body = {"text": long, "max_length": 11}
    assert client.post("/", json=body).status_code == 200  # it has lost its beginning
    assert "6" in client.post("/", json={**body, "max_length": 12}).json()["error"]
    assert client.post("/", json={**body, "do_sample": True, "num_return_sequences": 3}).status_code == 422
