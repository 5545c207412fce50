"""From JSON lines to JSON lines: the text of each is what it gets alone, in order, and mistakes name their line."""

from __future__ import annotations

import io
import json

import pytest
import torch

from gptstar.errors import UserError
from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate_detailed
from gptstar.generation.many import continue_many, read_requests, submit_many
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT
from support import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
COMMON = SamplingSettings(max_new_tokens=9, temperature=0.9, seed=3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(tiny_model(vocab_size=400, init_std=0.3, context=64)).eval()


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_each_line_gets_what_it_gets_alone_in_order(model, tmp_path):
    asked = [{"prompt": "abc", "id": 7}, {"prompt": "j", "max_new_tokens": 30, "n": 2}, {"prompt": "abc", "seed": 4}]
    path = write(tmp_path, *asked, b"")
    requests = read_requests(path, COMMON, TOKENIZER.vocab_size)
    out, told = io.StringIO(), []
    engine = Engine(model, TOKENIZER, max_rows=2)
    continue_many(engine, requests, submit_many(engine, requests), out, told.append)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == sum(told) == 4
    expected = [one for r in requests for one in generate_detailed(model, TOKENIZER, r.values["prompt"], r.wish)]
    assert [(line["text"], line["seed"], line["tokens"]) for line in lines] == [
        (one.text, one.seed, one.tokens) for one in expected
    ]
    assert lines[0]["id"] == 7 and "index" not in lines[0]
    assert [line["index"] for line in lines[1:3]] == [0, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"prompt": ', "line 2: no valid JSON"),
        (b'{"prompt": "\xff"}', "line 2: no valid JSON"),
        ([1], 'line 2: "prompt" is missing'),
        ({"text": "a"}, 'line 2: "prompt" is missing'),
        ({"prompt": ""}, 'line 2: "prompt" is missing, empty'),
        ({"prompt": "a", "top_p": 2}, "line 2: top_p=2 must lie in"),
        ({"prompt": "a", "temperature": "hot"}, "line 2: temperature=hot must be a number"),
        ({"prompt": "a", "temperature": None}, "line 2: temperature=None must be a number"),
        ({"prompt": "a", "n": None}, "line 2: n=None must be a whole number"),
        ({"prompt": "a", "no_repeat_ngram": None}, "line 2: no_repeat_ngram=None"),
        ({"prompt": "a", "presence_penalty": 10**400}, "line 2: presence_penalty=1000"),
        ({"prompt": "a", "truncate": "no"}, "line 2: truncate='no' must be true or false"),
        ({"prompt": "a", "stop_tokens": 3}, "line 2: stop_tokens=3 must be a list"),
        ({"prompt": "\ud800"}, "line 2: no valid JSON"),
        ({"prompt": "a", "id": "\ud800"}, "line 2: no valid JSON"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(line, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_requests(write(tmp_path, {"prompt": "fine"}, line), COMMON, TOKENIZER.vocab_size)


def test_an_empty_or_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_requests(write(tmp_path, b""), COMMON, TOKENIZER.vocab_size)
    with pytest.raises(UserError, match="cannot be read"):
        read_requests(tmp_path / "nothing", COMMON, TOKENIZER.vocab_size)


def test_log_probabilities_are_written_where_they_are_asked_for(model, tmp_path):
    requests = read_requests(write(tmp_path, {"prompt": "abc", "logprobs": 0}), COMMON, TOKENIZER.vocab_size)
    out = io.StringIO()
    engine = Engine(model, TOKENIZER)
    continue_many(engine, requests, submit_many(engine, requests), out, lambda _: None)
    line = json.loads(out.getvalue())
    assert len(line["logprobs"]) == len(line["tokens"]) and max(line["logprobs"]) <= 0


def test_a_prompt_that_is_too_long_is_named_before_anything_is_decoded(model, tmp_path):
    requests = read_requests(write(tmp_path, {"prompt": "a"}, {"prompt": "abc " * 40}), COMMON, TOKENIZER.vocab_size)
    with pytest.raises(UserError, match=r"line 2: .* max_new_tokens=9 exceed the 32 tokens"):
        submit_many(Engine(model, TOKENIZER, capacity=32), requests)
