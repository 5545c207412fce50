import pytest

from gptstar.sizes import say_bytes


@pytest.mark.parametrize(
    ("n_byte", "said"),
    [
        (0, "0 MiB"),
        (2**14 - 1, "16383 bytes"),
        (3 * 2**14, "48 KiB"),
        (2**20, "1 MiB"),
        (100 * 2**20, "100 MiB"),
        (2**27, "0.12 GiB"),
        (20 * 10**9, "18.63 GiB"),
    ],
)
def test_an_amount_is_said_in_the_unit_that_suits_it(n_byte, said):
    assert say_bytes(n_byte) == said
