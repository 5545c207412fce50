"""/v1/completions and /v1/models as OpenAI's own client sees them, against what the model says itself."""

from __future__ import annotations

import asyncio

import pytest
import torch

from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.openai.completions import Completion
from serving.openai_support import CONTEXT, NAME, TOKENIZER, live

VOCABULARY = range(TOKENIZER.vocab_size)
ONLY_THE_END = {str(token): -100 for token in VOCABULARY if token != TOKENIZER.eot_id}
EVER_ON = {str(TOKENIZER.eot_id): -100}


@pytest.fixture(scope="module")
def server():
    with live() as server:
        yield server


@pytest.fixture(scope="module")
def ask(server):
    with server.client() as client:

        def call(prompt, **more):
            return client.completions.create(model=NAME, prompt=prompt, **more)

        yield call


def continued(server, prompt, **more) -> list:
    return generate_detailed(server.model, TOKENIZER, prompt, SamplingSettings(**more))


def test_models(server):
    with server.client() as client:
        (model,) = client.models.list().data
        assert (model.id, model.object, model.owned_by) == (NAME, "model", "gptstar")
        assert client.models.retrieve(NAME) == model


def test_the_asynchronous_client(server):
    async def both():
        async with server.asynchronous() as client:
            whole = await client.completions.create(model=NAME, prompt="the", seed=3)
            stream = await client.completions.create(model=NAME, prompt="the", seed=3, stream=True)
            return whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    whole, streamed = asyncio.run(both())
    assert whole == streamed and whole


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"temperature": 2, "top_p": 0}, {"temperature": 0.0}),
        ({"presence_penalty": 2, "frequency_penalty": -2}, {"presence_penalty": 2.0, "frequency_penalty": -2.0}),
        ({"extra_body": {"top_k": 2}}, {"top_k": 2}),
        ({"extra_body": {"top_k": 0}}, {}),
        ({"extra_body": {"min_p": 0.3}}, {"min_p": 0.3}),
        ({"extra_body": {"typical_p": 0.4}}, {"tau": 0.4}),
        ({"extra_body": {"repetition_penalty": 1.7}}, {"repetition_penalty": 1.7}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "b", "M"]}, {"stop": ["a", "b", "M"]}),
        ({"logit_bias": {"5": -100, "9": -100, "7": 0}}, {"forbidden_tokens": [5, 9]}),
        ({"user": "somebody", "suffix": "", "stop": None}, {}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": 3.0, "logprobs": None, "temperature": 1}, {"max_new_tokens": 3}),
    ],
)
def test_settings_mean_what_the_engine_means(server, ask, theirs, ours):
    wish = {"max_tokens": 30, **theirs}
    answer = ask("the cat", seed=5, **wish)
    (expected,) = continued(server, "the cat", **{"max_new_tokens": 30, "seed": 5, **ours})
    (choice,) = answer.choices
    assert choice.text == expected.text
    assert choice.finish_reason == ("length" if expected.finish_reason == "length" else "stop")
    assert (answer.object, answer.model, choice.index, choice.logprobs) == ("text_completion", NAME, 0, None)


def test_sixteen_tokens_are_written_where_nobody_says_how_many(ask):
    assert ask("the", logit_bias=EVER_ON).usage.completion_tokens == 16


def test_a_seed_repeats_and_none_does_not(ask):
    texts = [ask("the cat", seed=seed, max_tokens=12, logit_bias=EVER_ON).choices[0].text for seed in (1, 1, 2, None)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


@pytest.mark.parametrize("prompt", ["the cat", TOKENIZER.encode("the cat"), ["the cat"], [TOKENIZER.encode("the cat")]])
def test_prompts_are_text_or_tokens(ask, prompt):
    answer = ask(prompt, seed=1)
    assert answer.choices[0].text == ask("the cat", seed=1).choices[0].text
    assert answer.usage.prompt_tokens == len(TOKENIZER.encode("the cat"))


@pytest.mark.parametrize("prompt", [None, "", [""], [[]], [TOKENIZER.eot_id]])
def test_no_prompt_is_the_beginning_of_a_document(ask, prompt):
    answer = ask(prompt, seed=1, max_tokens=6)
    assert answer.choices[0].text == ask("", seed=1, max_tokens=6).choices[0].text
    assert answer.usage.prompt_tokens == 1


def test_many_prompts_and_sequences_are_numbered_prompt_by_prompt(server, ask):
    prompts = ["the cat", "on", "mat mat"]
    answer = ask(prompts, n=2, seed=7, max_tokens=9)
    expected = [one.text for prompt in prompts for one in continued(server, prompt, n=2, seed=7, max_new_tokens=9)]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == expected


def test_usage_counts_prompts_once_and_all_that_is_written(ask):
    usage = ask(["the cat", "on"], n=3, max_tokens=5, logit_bias=EVER_ON).usage
    assert usage.prompt_tokens == len(TOKENIZER.encode("the cat")) + len(TOKENIZER.encode("on"))
    assert usage.completion_tokens == 2 * 3 * 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_white_space_at_the_end_of_a_prompt_is_its_own_and_not_the_answers(ask):
    usage = ask("the cat ", max_tokens=5, logit_bias=EVER_ON).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(TOKENIZER.encode("the cat ")), 5)


def test_the_end_of_a_text_stops_and_is_told_of_by_its_log_probability(ask):
    answer = ask("the cat", max_tokens=5, logprobs=0, logit_bias=ONLY_THE_END)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs.tokens) == ("", "stop", [TOKENIZER.eot_token])
    assert answer.usage.completion_tokens == 1


def test_log_probabilities_are_the_models_own(server, ask):
    tokens = TOKENIZER.encode("the cat sat")
    answer = ask(tokens, logprobs=3, seed=4, max_tokens=6, temperature=1.5, logit_bias=EVER_ON)
    told = answer.choices[0].logprobs
    (own,) = continued(
        server,
        "the cat sat",
        logprobs=3,
        seed=4,
        max_new_tokens=6,
        temperature=1.5,
        forbidden_tokens=[TOKENIZER.eot_id],
    )
    logprob_TV = server.model(torch.tensor([tokens + own.tokens]))[
        0, len(tokens) - 1 : -1, : len(VOCABULARY)
    ].log_softmax(-1)
    assert told.token_logprobs == pytest.approx([row[t].item() for row, t in zip(logprob_TV, own.tokens, strict=True)])
    for top, chosen, row in zip(told.top_logprobs, told.tokens, logprob_TV, strict=True):
        assert chosen in top and len(top) in (3, 4)
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(row.topk(3).values.tolist())


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [None, "M", ["x", "w"]])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_lie_where_the_offsets_say(ask, echo, stop, seed):
    choice = ask("the ☃ cat", logprobs=1, seed=seed, max_tokens=40, echo=echo, stop=stop, temperature=1.2).choices[0]
    offsets = choice.logprobs.text_offset
    assert offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] <= len(choice.text)
    for token, start in zip(choice.logprobs.tokens, offsets, strict=True):
        if not token.startswith("bytes:") and token != TOKENIZER.eot_token:
            assert choice.text[start:].startswith(token) or choice.text[start:] == token[: len(choice.text) - start]


def test_part_of_a_character_is_told_in_bytes(ask):
    snowman = [TOKENIZER.fast.token_to_id(c) for c in "âĺĥ"]  # GPT-2's signs for its three bytes
    assert None not in snowman
    choice = ask([[*snowman, *TOKENIZER.encode("a")]], echo=True, max_tokens=0, logprobs=0).choices[0]
    assert choice.text == "☃a"
    assert choice.logprobs.tokens == [r"bytes:\xe2", r"bytes:\x98", r"bytes:\x83", "a"]
    assert choice.logprobs.text_offset == [0, 0, 0, 1]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("text", ["the cat sat", "the cat ", "é ☃\n", "a"])
def test_echo_scores_a_prompt_as_the_model_does(server, ask, text, max_tokens):
    tokens = TOKENIZER.encode(text)
    choice = ask(text, echo=True, max_tokens=max_tokens, logprobs=1).choices[0]
    told = choice.logprobs
    n = len(tokens)
    assert len(told.tokens) == n + max_tokens and choice.text.startswith(text)
    assert choice.finish_reason == "length"
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    logprob_TV = server.model(torch.tensor([tokens]))[0, :-1, : len(VOCABULARY)].log_softmax(-1)
    own = [row[t].item() for row, t in zip(logprob_TV, tokens[1:], strict=True)]
    assert told.token_logprobs[1:n] == pytest.approx(own, abs=1e-6)
    best = [max(top.values()) for top in told.top_logprobs[1:n]]
    assert best == pytest.approx(logprob_TV.amax(-1).tolist(), abs=1e-6)


def test_a_scored_prompt_loses_nothing_where_the_text_ends_at_once(ask):
    choice = ask("the cat", echo=True, max_tokens=1, logprobs=1, logit_bias=ONLY_THE_END).choices[0]
    assert len(choice.logprobs.tokens) == len(TOKENIZER.encode("the cat")) + 1  # clients drop the last one


@pytest.mark.parametrize("logprobs", [None, 2])
def test_echo_with_several_sequences(ask, logprobs):
    plain = ask(["the cat", "on"], n=3, seed=2, max_tokens=6)
    echoed = ask(["the cat", "on"], n=3, seed=2, max_tokens=6, echo=True, logprobs=logprobs)
    for i, (one, other) in enumerate(zip(plain.choices, echoed.choices, strict=True)):
        assert other.text == ["the cat", "on"][i // 3] + one.text
        if logprobs is not None:
            assert other.logprobs.token_logprobs[0] is None


@pytest.mark.parametrize("stream", [False, True])
def test_sequences_that_overtake_the_one_that_scores_the_prompt_wait_for_it(stream):
    """They take over what it has read, and it has to read all of it."""
    with live(budget=3) as server, server.client() as client:
        prompt = "the cat sat on the mat the cat sat on"
        answer = client.completions.create(
            model=NAME, prompt=prompt, n=3, echo=True, logprobs=0, max_tokens=2, stream=stream, logit_bias=EVER_ON
        )
        told: dict[int, list] = {0: [], 1: [], 2: []}
        for chunk in answer if stream else [answer]:
            for choice in chunk.choices:
                told[choice.index] += choice.logprobs.token_logprobs
        n = len(TOKENIZER.encode(prompt))
        assert [len(scores) for scores in told.values()] == [n + 2] * 3
        assert told[0][:n] == told[1][:n] == told[2][:n]


def test_best_of_tells_those_of_the_highest_mean_log_probability(server, ask):
    answer = ask(["the cat", "on"], best_of=4, n=2, seed=3, max_tokens=7, logit_bias=EVER_ON)
    expected = []
    for prompt in ("the cat", "on"):
        wish = {"n": 4, "seed": 3, "max_new_tokens": 7, "logprobs": 0, "forbidden_tokens": [TOKENIZER.eot_id]}
        all_four = continued(server, prompt, **wish)
        all_four.sort(key=lambda one: -sum(said.logprob for said in one.logprobs))
        expected += [one.text for one in all_four[:2]]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in answer.choices)
    assert answer.usage.completion_tokens == 2 * 4 * 7


def test_what_is_sent_is_what_is_described(server):
    for more in ({}, {"logprobs": 2, "echo": True, "n": 2}):
        Completion.model_validate_json(server.post("completions", prompt="the", **more).content)


def test_the_operators_limits():
    with live(max_new_tokens=4, max_input_token_length=3) as server, server.client() as client:
        tokens = TOKENIZER.encode("the cat sat on the mat")

        def ask(prompt, **more):
            return client.completions.create(model=NAME, prompt=prompt, seed=1, logit_bias=EVER_ON, **more)

        answer = ask(tokens)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
        assert answer.choices[0].text == ask(tokens[-3:]).choices[0].text
        assert ask(tokens, echo=True, max_tokens=0, logprobs=0).choices[0].text == TOKENIZER.decode(tokens[-3:])
        chat = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
        assert chat.usage.prompt_tokens == 3 and chat.usage.completion_tokens <= 4
        assert server.post("completions", prompt="a", max_tokens=5).status_code == 400


def test_all_the_room_there_is_can_be_asked_for(ask):
    tokens = TOKENIZER.encode("a" * 3)
    assert ask(tokens, max_tokens=CONTEXT - len(tokens), logit_bias=EVER_ON).choices[0].finish_reason == "length"
