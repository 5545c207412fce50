"""The sentence a reader takes away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptstar.lab.statistics.differences import Difference
from gptstar.lab.statistics.verdict import verdict, word
from gptstar.lab.study import Interval


def difference(value: float, low: float | None, high: float | None, p: float | None, remark: str = "") -> Difference:
    return Difference(Interval(value, low, high), p, 0.01, 12.0, "Dunnett's test", remark)


@pytest.mark.parametrize(
    ("found", "more", "expected"),
    [
        (
            difference(-3.1, -3.8, -2.4, 0.0004),
            0,
            "Better than gpt2: 3.1% lower loss (95% interval 2.4% to 3.8%), p = 0.0004, Dunnett's test. "
            "These seeds would show a difference of 0.5% four times in five.",
        ),
        (
            difference(1.234, 1.2, 1.268, 1e-7),
            None,
            "Worse than gpt2: 1.23% higher loss (95% interval 1.20% to 1.27%), p < 0.0001, Dunnett's test.",
        ),
        (
            difference(-0.2, -0.9, 0.5, 0.411),
            1,
            "No difference from gpt2 seen: -0.2% loss (95% interval -0.9% to +0.5%), p = 0.41, Dunnett's test; it is "
            "hardly larger than 0.9% either way. To see a difference of 0.5% four times in five, star and gpt2 need "
            "1 more seed each.",
        ),
        (
            difference(0.2, -0.5, 0.9, 1.0, "one seed only of star: its scatter is taken to be that of the others"),
            1001,
            "No difference from gpt2 seen: +0.2% loss (95% interval -0.5% to +0.9%), p = 1, Dunnett's test; it is "
            "hardly larger than 0.9% either way. One seed only of star: its scatter is taken to be that of the others. "
            "To see a difference of 0.5% four times in five, star and gpt2 need more than 1000 more seeds each.",
        ),
        (
            difference(-2.0, None, None, None, "no variant has two seeds, so nothing tells chance from effect"),
            None,
            "Cannot say: -2.0% loss against gpt2, but no variant has two seeds, so nothing tells chance from effect.",
        ),
    ],
)
def test_sentences(found, more, expected):
    assert verdict("star", "gpt2", found, more) == expected


def test_words():
    assert word(difference(-1, -2, -0.1, 0.04)) == "better"
    assert word(difference(1, 0.1, 2, 0.04)) == "worse"
    assert word(difference(-1, -2, 0.0, 0.05)) == "no difference seen"
    assert word(difference(-1, None, None, None)) == "cannot say"


def test_another_unit_and_size():
    said = verdict("star", "gpt2", difference(-3.1, -3.8, -2.4, 0.01), 2, percent=0.25, unit="bits per byte")
    assert "3.1% lower bits per byte (95%" in said
    assert said.endswith("a difference of 0.25% four times in five, star and gpt2 need 2 more seeds each.")


def test_the_documentation_says_what_comes_out(capsys):
    text = (Path(__file__).parents[3] / "docs/lab/statistics.md").read_text()
    code, output = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "text"))
    exec(code, {})
    assert capsys.readouterr().out == output
