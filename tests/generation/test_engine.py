"""Requests decoded together give what each gives alone, however they come and go."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.decoding import PIECE
from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate_detailed
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c d e f " * 20], TokenizerConfig(vocab_size=280))
PROMPTS = ["", "a b", "a b c d", "a b c d e f a b c d e f", "f", "c d ", "a b c d e", "xyz " * 5]


def model_of(**changes) -> GPT:
    """Float64: rounding in a batch must not decide between two tokens."""
    torch.manual_seed(0)
    config = tiny_model(**{"vocab_size": 280, "context": 64, "init_std": 0.4, "n_head": 4, **changes})
    return GPT(config).double().eval()


MODELS = {
    "alibi": model_of(),
    "learned": model_of(position="learned", block="sequential"),
    "rotary, shared heads, window": model_of(position="rotary", n_kv_head=2, windows=[0, 4], block="parallel"),
    "gmlp": model_of(block="gmlp", position="none"),
}
WISHES = [
    SamplingSettings(max_new_tokens=7, temperature=0),
    SamplingSettings(max_new_tokens=12, temperature=0.9, seed=3),
    SamplingSettings(max_new_tokens=9, temperature=1.1, top_k=5, top_p=0.9, seed=4, n=2),
    SamplingSettings(max_new_tokens=11, temperature=0, repetition_penalty=1.3, no_repeat_ngram=2),
    SamplingSettings(max_new_tokens=8, temperature=1.0, seed=9, stop=["b"], presence_penalty=0.5, logprobs=2),
    SamplingSettings(max_new_tokens=0),
]


def alone(model, prompt, wish):
    return generate_detailed(model, TOKENIZER, prompt, wish)


def collect(engine, events, done):
    for event in events:
        if event.done is not None:
            done[event.request, event.index] = event.done


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shared", [False, True])
@settings(max_examples=12)
@given(data=st.data())
def test_arrivals_and_cancellations_change_no_text(name, shared, data):
    model = MODELS[name]
    engine = Engine(
        model, TOKENIZER, max_rows=data.draw(st.integers(1, 4)), budget=data.draw(st.sampled_from([1, 5, 64]))
    )
    engine.decoder.shared = shared  # as where layers come from disk
    asked, done, cancelled = {}, {}, set()
    streamed: dict[tuple[int, int], str] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        prompt, wish = data.draw(st.sampled_from(PROMPTS)), data.draw(st.sampled_from(WISHES))
        asked[engine.submit(prompt, wish)] = prompt, wish
        for _ in range(data.draw(st.integers(0, 6))):
            for event in engine.step():
                streamed[event.request, event.index] = streamed.get((event.request, event.index), "") + event.text
                collect(engine, [event], done)
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            victim = data.draw(st.sampled_from(sorted(asked)))
            engine.cancel(victim)
            cancelled.add(victim)
    for event in engine.run():
        assert event.request not in cancelled
        streamed[event.request, event.index] = streamed.get((event.request, event.index), "") + event.text
        collect(engine, [event], done)
    assert engine.idle and not engine.step()
    for request, (prompt, wish) in asked.items():
        for index, expected in enumerate(alone(model, prompt, wish)):
            if request in cancelled and (request, index) not in done:
                continue
            actual = done[request, index]
            plain = {"logprobs": None, "seed": 0}
            assert dataclasses.replace(actual, **plain) == dataclasses.replace(expected, **plain)
            assert streamed[request, index] == expected.text
            if wish.seed is not None:
                assert actual.seed == expected.seed
            if wish.logprobs is not None:
                assert [t.token for t in actual.logprobs] == [t.token for t in expected.logprobs]


def counting(model, monkeypatch) -> list[int]:
    """The tokens of each forward pass."""
    passes: list[int] = []
    hidden = model.hidden

    def counted(tokens, *rest):
        passes.append(tokens.numel())
        return hidden(tokens, *rest)

    monkeypatch.setattr(model, "hidden", counted)
    return passes


def test_shared_beginnings_are_read_once(monkeypatch):
    model = model_of(context=400)
    passes = counting(model, monkeypatch)
    engine = Engine(model, TOKENIZER, max_rows=3, budget=600)
    wish = SamplingSettings(max_new_tokens=2, temperature=0)
    long = "a b c d e f " * 30
    n_token = len(TOKENIZER.encode(long + "a"))
    engine.submit(long + "a", wish)
    list(engine.run())
    assert sum(passes) == n_token + 1
    passes.clear()
    for end in ("b", "c", "a"):  # beside what ended, beside each other, and once more the same
        engine.submit(long + end, wish)
    list(engine.run())
    assert sum(passes) < 20


def test_n_sequences_read_their_prompt_once(monkeypatch):
    model = model_of(context=400)
    passes = counting(model, monkeypatch)
    engine = Engine(model, TOKENIZER, max_rows=4, budget=600)
    prompt = "a b c d e f " * 30 + "a"
    engine.submit(prompt, SamplingSettings(max_new_tokens=3, temperature=1.0, seed=1, n=4))
    list(engine.run())
    assert sum(passes) <= len(TOKENIZER.encode(prompt)) + 3 + 2 * 4


def test_a_long_prompt_stops_neither_those_who_write_nor_a_short_one_behind_it():
    model = model_of(context=4 * PIECE)
    engine = Engine(model, TOKENIZER, max_rows=3, budget=PIECE + 8, capacity=4 * PIECE)
    writing = engine.submit(
        "a", SamplingSettings(max_new_tokens=40, temperature=0, forbidden_tokens=[TOKENIZER.eot_id])
    )
    engine.step()
    long = engine.submit("xyz " * 120, SamplingSettings(max_new_tokens=1, temperature=0))
    short = engine.submit("b", SamplingSettings(max_new_tokens=1, temperature=0))
    seen = []
    while long not in seen:
        events = engine.step()
        assert writing in [event.request for event in events]
        seen += [event.request for event in events if event.done is not None]
    assert seen.index(short) < seen.index(long)


def test_a_cancelled_request_frees_its_row_at_once():
    engine = Engine(MODELS["alibi"], TOKENIZER, max_rows=1)
    wish = SamplingSettings(max_new_tokens=30, temperature=0, forbidden_tokens=[TOKENIZER.eot_id])
    first = engine.submit("a", wish)
    engine.step()
    second = engine.submit("b", wish)
    assert {event.request for event in engine.step()} == {first}
    engine.cancel(first)
    assert {event.request for event in engine.step()} == {second}


def test_a_round_reads_no_more_than_its_budget(monkeypatch):
    model = model_of(context=300)
    passes = counting(model, monkeypatch)
    engine = Engine(model, TOKENIZER, max_rows=4, budget=10)
    for _ in range(4):
        engine.submit("a b c d e f " * 9, SamplingSettings(max_new_tokens=5, temperature=0))
    while not engine.idle:
        passes.clear()
        engine.step()
        assert sum(passes) <= 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.submit("a " * 100, SamplingSettings(max_new_tokens=5)), "exceed the 64 tokens"),
        (lambda e: e.submit("a", SamplingSettings(temperature=-1)), "temperature=-1"),
        (lambda e: Engine(e.model, TOKENIZER, max_rows=0), "max_rows=0"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(UserError, match=words):
        call(Engine(MODELS["learned"], TOKENIZER))


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_scored_as_the_model_scores_it(name):
    """Longer than a piece, beside others, after its beginning was read already, and with nothing written."""
    model = MODELS[name] if name != "alibi" else model_of(context=400)
    long = "a b c d e f " * (20 if model.longest is None else 4) + "a"
    tokens = TOKENIZER.encode(long)
    with torch.inference_mode():
        logits_TV = model.logits(model.hidden(torch.tensor([tokens])))[0, :, : TOKENIZER.vocab_size]
    expected = logits_TV.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]]
    engine = Engine(model, TOKENIZER, max_rows=3, budget=160)
    nothing, some = SamplingSettings(max_new_tokens=0), SamplingSettings(max_new_tokens=3, temperature=0, n=2)
    engine.submit(long, some)
    list(engine.run())
    engine.submit("a b", some)
    scored = {engine.submit(long, nothing, 2), engine.submit(tokens, some, 0)}
    found = {}
    for event in engine.run():
        if event.prompt_logprobs is not None:
            assert event.index == 0 and event.request not in found
            found[event.request] = event.prompt_logprobs
    assert found.keys() == scored
    for score in found.values():
        assert [s.token for s in score] == tokens[1:]
        torch.testing.assert_close(
            torch.tensor([s.logprob for s in score], dtype=torch.float64), expected.double(), atol=2e-6, rtol=0
        )
    assert [len(found[r][0].top) for r in sorted(found)] == [2, 0]


def test_events_carry_every_token_that_was_chosen():
    engine = Engine(MODELS["alibi"], TOKENIZER)
    wish = SamplingSettings(max_new_tokens=9, temperature=1.5, seed=1, n=3)
    engine.submit("a b", wish)
    chosen, done = {0: [], 1: [], 2: []}, {}
    for event in engine.run():
        chosen[event.index] += event.tokens
        if event.done:
            done[event.index] = event.done
    for index, tokens in chosen.items():
        assert tokens[: len(done[index].tokens)] == done[index].tokens
        assert len(tokens) - len(done[index].tokens) == (done[index].finish_reason == "end_of_text")


def test_where_a_pass_is_expensive_a_round_is_one(monkeypatch):
    engine, passes = Engine(MODELS["alibi"], TOKENIZER, max_rows=4), []
    engine.decoder.shared = True
    read_many = engine.decoder.read_many
    monkeypatch.setattr(engine.decoder, "read_many", lambda parts: passes.append(len(parts)) or read_many(parts))
    for prompt in PROMPTS[1:4]:
        engine.submit(prompt, SamplingSettings(max_new_tokens=3, temperature=0))
    engine.step()
    engine.submit(PROMPTS[4], SamplingSettings(max_new_tokens=1, temperature=0))
    list(engine.run())
    assert passes == [3, 2, 1]  # three prompts; those who write, together, and a fourth prompt; those who write
