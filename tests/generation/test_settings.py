from dataclasses import fields, replace

import pytest

from gptstar.errors import UserError
from gptstar.generation.settings import SamplingSettings

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1.0, NAN, INF]),
        ("top_k", [0, -3, 2.5, NAN, True, 2**63]),
        ("top_p", [0.0, -0.1, 1.1, NAN]),
        ("min_p", [-0.1, 1.0, NAN]),
        ("tau", [0.0, 1.5, NAN]),
        ("eta", [-1e-9, 1.0, NAN]),
        ("repetition_penalty", [0.0, -1.0, NAN, INF]),
        ("presence_penalty", [NAN, INF]),
        ("frequency_penalty", [NAN, -INF]),
        ("no_repeat_ngram", [-1, 1.5, 2**63]),
        ("max_new_tokens", [-1, 2.0, NAN]),
        ("min_new_tokens", [-1]),
        ("n", [0, -1, 1.5]),
        ("seed", [2**63, 0.5]),
        ("logprobs", [-1]),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_name_and_value(name, values):
    for value in values:
        with pytest.raises(UserError, match=rf"^{name}={value} must ") as error:
            SamplingSettings(**{name: value}).check()
        assert "\n" not in str(error.value)


def test_what_contradicts_itself_or_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="min_new_tokens=5 exceeds max_new_tokens=4"):
        SamplingSettings(min_new_tokens=5, max_new_tokens=4).check()
    for stop in ("abc", ["abc", ""], [1]):
        with pytest.raises(UserError, match=r"stop=.* must be a list of texts"):
            SamplingSettings(stop=stop).check()
    for name in ("forbidden_tokens", "forced_tokens", "stop_tokens"):
        with pytest.raises(UserError, match=f"{name}: -1 is no token number"):
            SamplingSettings(**{name: [3, -1]}).check()
        with pytest.raises(UserError, match=f"{name}: 300 is not in the vocabulary of 300 tokens"):
            SamplingSettings(**{name: [3, 300]}).check(vocab_size=300)
        SamplingSettings(**{name: [3, 299]}).check(vocab_size=300)


def test_what_makes_sense_passes_at_its_limits():
    SamplingSettings().check()
    limits = dict(temperature=0, top_k=1, top_p=1.0, min_p=0.0, tau=1.0, eta=0.0, max_new_tokens=0, seed=-(2**63))
    for name, value in limits.items():
        replace(SamplingSettings(), **{name: value}).check()


def test_every_setting_is_explained():
    assert all(f"    {field.name} " in SamplingSettings.__doc__ for field in fields(SamplingSettings))
