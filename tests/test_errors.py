import pytest

from gptstar.errors import LONGEST_REASON, reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\n  two"), "one two"),
        (ValueError(), "ValueError"),
        (ValueError("a" * 999), "a" * LONGEST_REASON),
        ("text", "text"),
    ],
)
def test_a_reason_is_one_short_line(error, said):
    assert reason(error) == said
