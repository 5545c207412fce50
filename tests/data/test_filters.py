import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.data.filters import FilterConfig, first_failure, is_newer, read_date
from gptstar.data.words import hash_words


def test_nothing_is_refused_by_default():
    for text in ("", " ", "a", "a\n" * 1000, "\ud800"):
        assert first_failure(text, FilterConfig()) is None


@pytest.mark.parametrize(
    ("text", "config", "reason"),
    [
        ("abc", FilterConfig(min_chars=3), None),
        ("ab", FilterConfig(min_chars=3), "too short"),
        ("abc", FilterConfig(max_chars=3), None),
        ("abcd", FilterConfig(max_chars=3), "too long"),
        ("ab 1\n2", FilterConfig(min_letters=0.5), None),
        ("ab 12 3", FilterConfig(min_letters=0.5), "too few letters"),
        ("   ", FilterConfig(min_letters=0.5), "too few letters"),
        ("жук ab", FilterConfig(min_letters=0.9), None),
        ("жук ab", FilterConfig(min_letters=0.5, script="latin"), "too few letters"),
        ("жук ab", FilterConfig(min_letters=0.6, script="cyrillic"), None),
        ("ⅷﬀé", FilterConfig(min_letters=0.6, script="Latin"), None),  # Ⅷ is a number of the Latin script
        ("one\ntwo\none\n", FilterConfig(max_repeated_lines=0.33), "repeated lines"),
        ("one\ntwo\n one \n", FilterConfig(max_repeated_lines=0.34), None),
        ("a\n\n\n\n\nb", FilterConfig(max_repeated_lines=0.01), None),
        ("a b c d e f. A b, c d e", FilterConfig(max_repeated_ngrams=0.45), "repeated n-grams"),
        ("a b c d e f. A b, c d e", FilterConfig(max_repeated_ngrams=0.46), None),
        ("a b c d f a b c d", FilterConfig(max_repeated_ngrams=0.01), None),
        ("a", FilterConfig(max_repeated_ngrams=0.01), None),
    ],
)
def test_each_rule_at_its_border(text, config, reason):
    assert first_failure(text, config) == reason
    assert first_failure(text, config, words=hash_words([text])[0]) == reason


@given(st.lists(st.sampled_from("ab"), max_size=30), st.floats(0.01, 1))
def test_repeated_words_are_those_in_an_earlier_run_of_five(words, most):
    covered, seen = set(), set()
    for i in range(len(words) - 4):
        gram = tuple(words[i : i + 5])
        if gram in seen:
            covered.update(range(i, i + 5))
        seen.add(gram)
    too_many = bool(words) and len(covered) / len(words) > most
    failure = first_failure(" ".join(words), FilterConfig(max_repeated_ngrams=most))
    assert failure == ("repeated n-grams" if too_many else None)


@given(st.text(max_size=30), st.floats(0.01, 1))
def test_letters_are_counted_as_python_knows_them(text, least):
    solid = [char for char in text if not re.match(r"\s", char) or char in "\x1c\x1d\x1e\x1f"]
    share = sum(char.isalpha() for char in solid) / max(1, len(solid))
    assert (first_failure(text, FilterConfig(min_letters=least)) is None) == (share >= least)


@pytest.mark.parametrize(
    "date",
    [
        "2019-01-03T10:00:00Z",
        "2019-01-03 10:00:00",
        "2019-01-03T12:00:00+02:00",
        "2019-01-03 10:00:00 UTC",
        "2019/01/03 10:00",
        "Thu, 03 Jan 2019 10:00:00 GMT",
        "Thu, 03 Jan 2019 11:00:00 +0100",
        "3 Jan 2019 10:00:00",
        "20190103100000",
        "1546509600",
        "1546509600.0",
        "1546509600000",
        " 2019-01-03T10:00:00.000Z\n",
    ],
)
def test_dates_as_crawls_write_them(date):
    assert read_date(date) == datetime(2019, 1, 3, 10, tzinfo=UTC)


def test_days_months_and_years_are_their_first_moment():
    for date in ("2019-01-01", "20190101", "2019-01", "2019", "2019/01/01", "2019/01"):
        assert read_date(date) == datetime(2019, 1, 1, tzinfo=UTC), date
    assert is_newer("2019-01-01T00:00:01Z", "2019-01-01") and is_newer("2019-01-01", "2019-01-01") is False


def test_dates_that_are_missing_or_no_dates():
    config = FilterConfig(newer_than="2018-12-31")
    assert first_failure("x", config, "2019-01-01") is None
    assert first_failure("x", config, "2018-12-30T23:00:00Z") == "too old"
    for date in (None, "", "soon", "nan", "inf", "1e300", "2019-13-01", "99999999999999", "-", "2019--", "00//", "\0"):
        assert first_failure("x", config, date) == "no date", date


@given(st.text(max_size=20) | st.text("0123456789-/:TZ +.e", max_size=20))
def test_no_date_breaks_the_reader(date):
    assert is_newer(date, "2000") in (None, True, False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_chars": -1}, "data.filters.min_chars=-1 must not be negative"),
        ({"max_chars": -1}, "data.filters.max_chars=-1 must not be negative"),
        ({"min_letters": 1.5}, "data.filters.min_letters=1.5 must lie between 0 and 1"),
        ({"max_repeated_lines": -0.1}, "data.filters.max_repeated_lines=-0.1 must lie"),
        ({"max_repeated_ngrams": float("nan")}, "data.filters.max_repeated_ngrams=nan must lie"),
        ({"min_chars": 10, "max_chars": 5}, "data.filters.max_chars=5 must be at least min_chars=10"),
        ({"script": "latin"}, "must come with data.filters.min_letters"),
        ({"script": "klingon", "min_letters": 0.5}, "data.filters.script='klingon' must be a script"),
        ({"newer_than": "soon"}, "data.filters.newer_than='soon' must be a date"),
    ],
)
def test_impossible_values_are_named(values, words):
    with pytest.raises(ValueError) as error:
        FilterConfig(**values)
    assert words in str(error.value)
