from gptstar.data.cache import key_of


def test_a_whole_number_is_the_same_setting_however_it_is_written():
    assert key_of({"threshold": 0, "of": [1, 2.5]}) == key_of({"threshold": 0.0, "of": [1.0, 2.5]})
    assert key_of({"exact": True}) != key_of({"exact": 1})
