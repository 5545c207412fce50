"""Rows of the table: what a target is compared with, and how numbers are said."""

import pytest

from benchmarks.table import Row, markdown, number, ratios, said


def test_a_target_is_the_ratios_where_there_is_one():
    row = Row("x", "s", [9, 10, 11], peer=[20, 20, 22], ratio=[2.2, 2.0, 2.0], peer_is="other", at_least=2.5)
    assert row.target == "≥ 2.5" and row.met == "NO: 80% of it"
    assert row.cells("abc")[:5] == ("x", "10 (9 - 11) s", "other 20 (20 - 22)", "", "2 (2 - 2.2)")
    assert Row("x", "s", [9, 10, 11], at_most=10).met == "yes"
    assert Row("x", "s", [9, 11, 11], at_most=10).met == "NO: 110% of it"
    assert Row("x", "s", [9]).met == "" and Row("x", "s", [9]).target == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (1.0, "1"), (12.34, "12.3"), (123.4, "123"), (4567.8, "4,568"), (1.06e6, "1.06M")],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


def test_a_range_is_said_where_there_is_one():
    assert said([1.0, 1.0001]) == "1" and said([1, 2, 4]) == "2 (1 - 4)" and said([]) == ""


def test_ratios_are_of_the_same_repeat():
    assert ratios([2, 6], [1, 2]) == [2, 3]
    with pytest.raises(ValueError, match="zip"):
        ratios([1], [1, 2])


def test_bars_do_not_break_the_table():
    assert markdown([["a|b", *[""] * 7]]).splitlines()[-1].count(" | ") == 7
