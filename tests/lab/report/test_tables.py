"""Tables say what the study says, in the same words wherever they are printed."""

from __future__ import annotations

import pytest

from gptstar.lab.report.tables import Table, interval_text, tables
from gptstar.lab.study import Interval, Study
from lab.studies import ablation, alone, drawn_from, five, many, one_seed


def table(study: Study, title: str) -> Table:
    return next(each for each in tables(study) if each.title == title)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(-3.14159, -3.8, -2.4), "-3.14 (-3.80 to -2.40)"),
        (Interval(1234.5, 1000, 2000), "+1,234.50 (+1,000.00 to +2,000.00)"),
        (Interval(0.5), "+0.50"),
        (Interval(-0.001, -0.004, 0.004), "0.00 (0.00 to 0.00)"),
        (Interval(0.9, 0.8), "+0.90 (+0.80 or more)"),
        (Interval(0.9, None, 1.0), "+0.90 (+1.00 or less)"),
        (Interval(0.9, float("-inf"), float("nan")), "+0.90"),
        (Interval(float("nan"), 1, 2), "-"),
        (None, "-"),
    ],
)
def test_intervals_in_words(interval, text):
    assert interval_text(interval, 2, sign=True) == text


def test_verdicts_hold_every_figure():
    assert table(five(), "Final loss").rows[:3] == [
        ["gpt2", "3", "6,000,000", "3.0771 (3.0651 to 3.0891)", "-", "-", "-", "baseline"],
        [
            *("gpt2 block=parallel", "3", "6,000,000", "3.0433 (3.0313 to 3.0553)", "-1.10 (-1.80 to -0.40)"),
            *("0.43", "4", "better"),
        ],
        ["star_3m", "3", "6,000,000", "2.9817 (2.9697 to 2.9937)", "-3.10 (-3.80 to -2.40)", "< 0.0001", "0", "better"],
    ]
    assert table(one_seed(), "Final loss").header[3] == "final loss (bits/byte)"
    assert table(one_seed(), "Final loss").rows[1][3:] == ["3.0156", "-2.00", "-", "cannot say", "cannot say"]
    assert table(many(), "Final loss").rows[-1][3:6] == ["-", "-", "-"]
    assert table(many(), "Final loss").rows[-2][6] == "more than 1,000"


def test_what_reaches_the_baseline_and_what_does_not():
    rows = table(five(), "To reach the baseline's final loss").rows
    assert rows[1] == ["star_3m", "0.752 (0.722 to 0.782)", "0.702 (0.652 or more)", "0.752"]
    assert rows[-1] == ["no biases", "not reached", "not reached", "not reached"]


def test_speeds_and_parts():
    assert table(five(), "Speed and size").rows[1] == [
        "gpt2 block=parallel",
        *("2,036 (2,001 to 2,068)", "1.100 (0.990 to 1.200)", "61.3", "1.25", "2,969,857", "21.2", "in turns"),
    ]
    assert table(one_seed(), "Speed and size").rows[0][-1] == "as each run saw it"
    parts = table(ablation(), "Parts of the speed-up").rows
    assert parts[1] == ["+ wide heads, half depth", "1.130 (1.100 to 1.160)", "60", "1.200", "75", "10-15%"]
    assert parts[2][1:] == ["-"] * 5


def test_configurations_key_by_key():
    found = table(five(), "Configuration of star_3m")
    assert found.detail and found.header == ["key", "gpt2", "star_3m"]
    assert found.rows == [["model.position", "learned", "alibi"], ["optimizer.betas", "[0.9, 0.95]", "-"]]
    assert not any(each.title == "Configuration of gpt2" for each in tables(five()))


def test_a_table_without_content_is_left_out():
    assert [each.title for each in tables(alone())] == ["Final loss", "Loss at equal cost", "Speed and size", "Runs"]


@pytest.mark.parametrize("name", drawn_from())
def test_rows_are_as_long_as_their_header(name):
    for each in tables(drawn_from()[name]):
        assert {len(row) for row in each.rows} == {len(each.header)} == {len(each.numeric)}
        assert all(isinstance(cell, str) for row in each.rows for cell in row)


def test_figures_stand_on_the_right_and_words_on_the_left():
    assert table(five(), "Final loss").numeric == [False, True, True, True, True, True, True, False]
    assert table(ablation(), "Parts of the speed-up").numeric == [False, True, True, True, True, False]
    assert not any(table(five(), "Configuration of star_3m").numeric)
