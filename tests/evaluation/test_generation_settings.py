"""What tasks say about generation, read by the harness's rules."""

import pytest

from gptstar.errors import UserError
from gptstar.evaluation.generation_settings import GenerationSettings


def read(**wanted) -> GenerationSettings:
    return GenerationSettings.of(wanted, "<end>", 500, 256)


def test_greedy_unless_sampling_is_asked_for():
    assert read(until="Q:") == GenerationSettings(256, ["Q:", "<end>"], 0.0, None, None)
    assert read(until=["a", "b"], do_sample=False, temperature=0.7, max_new_tokens=9).temperature == 0.0
    drawn = read(do_sample=True, temperature=0.7, top_p=0.9, top_k=0, max_gen_toks=9)
    assert (drawn.n_new, drawn.temperature, drawn.top_k, drawn.top_p) == (9, 0.7, None, 0.9)
    assert read(temperature=0.5).temperature == 0.5
    assert read(num_beams=1).n_new == 256


def test_text_ends_before_the_first_stop_string_and_the_tail_can_hold_any():
    settings = read(until=["ab", "é\n"])
    assert settings.cut("x é\n ab y") == "x "
    assert settings.tail >= max(len(b"<end>"), len("é\n".encode()))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not supported"),
        ({"max_gen_toks": 500}, "generates up to 500 tokens.* max_length=500"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 3.0}, "top_p=3.0"),
    ],
)
def test_what_cannot_be_done_is_refused(wanted, words):
    with pytest.raises(UserError, match=words):
        read(**wanted)
