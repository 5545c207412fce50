import re
import unicodedata

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from gptstar.data import words
from gptstar.data.words import hash_ngrams, hash_ngrams_at, hash_words

TEXTS = st.text(st.sampled_from("aAbBcß9é_Éσςİ漢٣ .,'\n\t\u2019\u0301") | st.characters(codec="utf-8"), max_size=40)


def plain_words(text: str) -> list[str]:
    return ["".join(char.casefold()[0] for char in word) for word in re.findall(r"[^\W_]+", text)]


@given(st.lists(TEXTS, max_size=8))
def test_equal_words_and_no_others_have_equal_hashes(texts):
    known: dict[str, int] = {}
    hashed = hash_words(texts)
    assert len(hashed) == len(texts)
    for text, hashes in zip(texts, hashed, strict=True):
        assert len(hashes) == len(plain_words(text))
        for word, number in zip(plain_words(text), hashes.tolist(), strict=True):
            assert known.setdefault(word, number) == number
    assert len(set(known.values())) == len(known)


@given(TEXTS, st.integers(1, 9))
@example("0" * 40, 1)  # the longest word that is never cut
def test_a_text_has_the_same_words_however_it_is_cut(text, size):
    whole, several = hash_words([text])[0], " ".join([text] * 6)
    short, words.PIECE = words.PIECE, size * 40
    try:
        pieces = hash_words([several])[0]
    finally:
        words.PIECE = short
    assert np.array_equal(pieces, hash_words([several])[0])
    assert np.array_equal(pieces[len(pieces) - len(whole) :], whole)


def test_hashes_are_the_same_on_every_machine():
    assert [hex(number) for number in hash_words(["It's 1 Straße"])[0].tolist()] == [
        "0x6c3d788b5c4a426a",
        "0x82a4b7f33f23f4e3",
        "0x6252804ae0340521",
        "0xe7fe50b73996622d",
    ]


def test_anagrams_prefixes_and_zeros_differ():
    some = ["ab", "ba", "aab", "aba", "baa", "a", "aa", "aaa", "0", "00", "000", "10", "01", "001", "100"]
    assert len(set(hash_words([" ".join(some)])[0].tolist())) == len(some)


def test_a_word_longer_than_a_piece_needs_no_more_memory_and_ends_nowhere(monkeypatch):
    monkeypatch.setattr(words, "PIECE", 100)
    assert len(hash_words(["x" * 1000 + " y"])[0]) == 6  # five cuts of 200 at most


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(numbers, n):
    grams = hash_ngrams(np.array(numbers, np.uint64), n)
    plain = [tuple(numbers[i : i + n]) for i in range(len(numbers) - n + 1)]
    assert len(grams) == len(plain)
    pairs = set(zip(plain, grams.tolist(), strict=True))
    assert len(pairs) == len(set(plain)) == len(set(grams.tolist()))
    assert np.array_equal(grams[::2], hash_ngrams_at(np.array(numbers, np.uint64), np.arange(0, len(grams), 2), n))


def test_ngrams_of_different_lengths_differ():
    zeros = np.zeros(9, np.uint64)
    assert len({int(hash_ngrams(zeros, n)[0]) for n in range(1, 10)}) == 9


def test_what_joins_letters_in_writing_only_separates_here():
    assert unicodedata.category("\u0301") == "Mn" and len(hash_words(["e\u0301a"])[0]) == 2
