import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.generation.stopping import StopStrings

TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def fed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops)
    given_out = [matcher.feed(piece) for piece in pieces]
    return [*given_out, matcher.finish()], matcher.found


def by_definition(stops: list[str], text: str) -> tuple[str, str | None]:
    """Letter by letter: the first to be complete, and of those the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(STOPS, st.lists(TEXT, max_size=8))
def test_what_is_found_does_not_depend_on_the_pieces(stops, pieces):
    given_out, found = fed(stops, pieces)
    assert ("".join(given_out), found) == by_definition(stops, "".join(pieces))


@given(STOPS, TEXT)
def test_no_more_is_held_back_than_may_begin_a_stop_string(stops, text):
    matcher = StopStrings(stops)
    out = ""
    for i, letter in enumerate(text):
        out += matcher.feed(letter)
        if matcher.found is None:
            held = text[len(out) : i + 1]
            assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "found"),
    [
        (["STOP"], ["abcS", "TO", "P and on"], ["abc", "", "", ""], "STOP"),
        (["STOP"], ["abcS", "TO", "Q"], ["abc", "", "STOQ", ""], None),
        (["STOP"], ["STO"], ["", "STO"], None),
        (["ab", "b"], ["xab"], ["x", ""], "ab"),
        (["abcd", "bc"], ["abcd"], ["a", ""], "bc"),
        ([], ["abc", ""], ["abc", "", ""], None),
        (["aab"], ["aaab"], ["a", ""], "aab"),
    ],
)
def test_examples(stops, pieces, out, found):
    assert fed(stops, pieces) == (out, found)


def test_after_the_end_nothing_comes_out():
    matcher = StopStrings(["."])
    assert [matcher.feed("a."), matcher.feed("b"), matcher.finish()] == ["a", "", ""]
