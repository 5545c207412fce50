"""A conversation: the text grows by what is typed and what is written; mistakes end neither it nor the program."""

from __future__ import annotations

import io

import pytest
import torch

from gptstar.errors import UserError
from gptstar.generation.engine import Engine
from gptstar.generation.generate import generate_detailed
from gptstar.generation.interactive import converse
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT
from support import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS = SamplingSettings(max_new_tokens=8, temperature=0, n=3)


@pytest.fixture(scope="module", params=["alibi", "learned"])
def model(request):
    torch.manual_seed(0)
    return GPT(tiny_model(vocab_size=400, init_std=0.3, context=24, position=request.param)).eval()


def talk(model, *lines, text=""):
    said, out, err = iter(lines), io.StringIO(), io.StringIO()

    def ask(_):
        line = next(said, None)
        if line is None:
            raise EOFError
        if line is KeyboardInterrupt:
            raise line
        return line

    converse(Engine(model, TOKENIZER, max_rows=1), SETTINGS, ask, out, err, text)
    return out.getvalue(), err.getvalue()


def follow(model, text):
    wish = SamplingSettings(max_new_tokens=8, temperature=0, truncate=True)
    return generate_detailed(model, TOKENIZER, text, wish)[0].text


def test_each_turn_goes_on_from_all_that_was_said(model):
    first = follow(model, "abc")
    second = follow(model, f"abc{first}def")
    assert talk(model, "abc", "def")[0] == f"{first}\n{second}\n"
    assert talk(model, "c", "def", text="ab")[0] == f"{first}\n{second}\n"


def test_a_text_longer_than_the_model_reads_loses_its_beginning(model):
    out, err = talk(model, *["abc def ghi"] * 6)
    assert out.count("\n") == 6 and "error" not in err


def test_commands(model):
    out, err = talk(model, "abc", "/new abc", "/set max_new_tokens=0", "x", "/quit", "never")
    first = follow(model, "abc")
    assert out == f"{first}\n{first}\n\n" and "/quit ends" in err


@pytest.mark.parametrize(
    "line",
    ["/set top_p=2", "/set nonsense=1", "/set n=2", "/set", "/set temperature=hot", '/set stop=["a', "/set top_k=["],
)
def test_a_mistake_is_one_line_and_the_text_stays(model, line):
    out, err = talk(model, "abc", line, "def")
    assert err.count("error: ") == 1
    assert out == talk(model, "abc", "def")[0]


def test_numbers_as_people_write_them(model):
    out, err = talk(model, "/set temperature=1e-9", "abc")
    assert "error" not in err and out == f"{follow(model, 'abc')}\n"


def test_a_text_that_was_refused_is_not_kept(model):
    out, err = talk(model, "/set max_new_tokens=1000", "abc", "/set max_new_tokens=8", "abc")
    assert out == f"{follow(model, 'abc')}\n" and err.count("error: ") == 1


def test_ctrl_c_ends_a_turn_and_what_was_shown_stays(model, monkeypatch):
    engine, out, err = Engine(model, TOKENIZER, max_rows=1), io.StringIO(), io.StringIO()
    step, left = engine.step, [5]

    def interrupted():
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(engine, "step", interrupted)
    said = iter(["abc", "def"])

    def ask(_):
        line = next(said, None)
        if line is None:
            raise KeyboardInterrupt  # at the prompt it ends the conversation
        return line

    converse(engine, SETTINGS, ask, out, err)
    first, second, _ = out.getvalue().split("\n")
    assert follow(model, "abc").startswith(first) and first != follow(model, "abc")
    assert second == follow(model, f"abc{first}def")


def test_a_turn_that_fails_does_not_go_on_in_the_next(model, monkeypatch):
    engine, out, err = Engine(model, TOKENIZER, max_rows=1), io.StringIO(), io.StringIO()
    step, left = engine.step, [5]

    def failing():
        left[0] -= 1
        if left[0] == 0:
            raise UserError("the disk is gone")
        return step()

    monkeypatch.setattr(engine, "step", failing)
    said = iter(["abc", "def", "/quit"])
    converse(engine, SETTINGS, lambda _: next(said), out, err)
    assert "error: the disk is gone" in err.getvalue()
    assert out.getvalue().endswith(f"{follow(model, 'def')}\n") and engine.idle
