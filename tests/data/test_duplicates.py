import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data import duplicates
from gptstar.data.duplicates import KEY, NEAR, NearConfig, bands, exact_key, find_exact, find_near, signature

N_PERMUTATION = 16


def split(array, cuts):
    return np.split(array, sorted(min(cut, len(array)) for cut in cuts))


def turns(n, removed, priority, decided):
    """The documents that count, in their order."""
    number = [0 if i < decided else 1 if priority[i] else 2 for i in range(n)]
    return sorted((i for i in range(n) if not removed[i]), key=lambda i: (number[i], i))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40),
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from([1, 1000, 5000, 1 << 29]),
    st.integers(0, 10),
)
def test_exact_duplicates_are_those_of_a_dictionary(documents, cuts, n_memory, decided):
    texts = [text for text, _ in documents]
    priority = np.array([prior for _, prior in documents], np.bool_)
    keys = np.frombuffer(b"".join(exact_key(f"text {text}") for text in texts), KEY)
    seen, expected = {}, []
    for i in turns(len(texts), [False] * len(texts), priority, decided):
        if seen.setdefault(texts[i], i) != i and i >= decided:
            expected.append([i, seen[texts[i]]])
    found = find_exact(split(keys, cuts), n_memory, priority, decided)
    assert found.dtype == np.int64 and found.tolist() == sorted(expected)


def test_keys_that_agree_in_one_half_alone_are_not_equal():
    keys = np.array([(1, 1), (1, 2), (2, 1), (2, 2), (1, 2)], KEY)
    assert find_exact([keys], 1).tolist() == find_exact([keys]).tolist() == [[4, 1]]
    assert find_exact([]).shape == find_exact([keys[:0], keys[:1]]).shape == (0, 2)


def brute_near(signatures, threshold, removed, priority, decided):
    """Greedy, one by one, every pair compared."""
    n_band, n_row = bands(threshold, signatures.shape[1])
    stays, found = [], []
    for i in turns(len(signatures), removed, priority, decided):
        near = []
        for j in stays if i >= decided else ():
            same = signatures[i] == signatures[j]
            if same[: n_band * n_row].reshape(n_band, n_row).all(1).any() and same.mean() >= threshold:
                near.append((not same.all(), len(near), j, same.mean()))
        if near:
            found.append((i, *min(near)[2:]))
        else:
            stays.append(i)
    return np.array(sorted(found), NEAR)


@st.composite
def signature_sets(draw):
    """Variations on a few rows, so that there are many near pairs, chains and equal rows."""
    n = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    forms = random.integers(0, 9, (draw(st.integers(1, 4)), N_PERMUTATION))
    rows = forms[random.integers(0, len(forms), n)]
    rows = np.where(random.random(rows.shape) < draw(st.sampled_from([0, 0.1, 0.2, 0.3])), 99, rows)
    flags = random.random((2, n)) < draw(st.sampled_from([0, 0.2]))
    return rows.astype(np.uint32), flags[0], flags[1], draw(st.integers(0, n))


@settings(max_examples=100)
@given(
    signature_sets(),
    st.sampled_from([0.5, 0.75, 0.9]),
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from([1500, 5000, 1 << 29]),
    st.sampled_from([7, 1 << 13]),
)
def test_near_duplicates_are_those_of_comparing_every_pair(given_set, threshold, cuts, n_memory, block):
    signatures, removed, priority, decided = given_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST", 100)
        patch.setattr(duplicates, "BLOCK", block)
        patch.setattr(duplicates, "ROWS", block)
        found = find_near(split(signatures, cuts), threshold, n_memory, removed, priority, decided)
    assert found.tolist() == brute_near(signatures, threshold, removed, priority, decided).tolist()


@settings(max_examples=50)
@given(signature_sets(), st.lists(st.integers(0, 40), max_size=3), st.sampled_from([1500, 5000]))
def test_large_buckets_give_the_same_in_any_memory_and_files(given_set, cuts, n_memory):
    signatures, removed, priority, decided = given_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST", 2)
        whole = find_near([signatures], 0.75, 1 << 29, removed, priority, decided)
        assert find_near(split(signatures, cuts), 0.75, n_memory, removed, priority, decided).tolist() == whole.tolist()
    everything = brute_near(signatures, 0.75, removed, priority, decided)
    assert len(whole) <= len(signatures) and (len(whole) > 0) <= (len(everything) > 0)


def test_what_is_near_something_that_went_stays():
    row = np.arange(16)
    second, third = row.copy(), row.copy()
    second[:3], third[:6] = 100, 100  # similarities: first-second 13/16, second-third 13/16, first-third 10/16
    chain = np.stack([row, second, third]).astype(np.uint32)
    assert find_near([chain], 0.8).tolist() == [(1, 0, 13 / 16)]
    assert find_near([chain], 0.8, priority=np.array([False, True, False])).tolist() == [
        (0, 1, 13 / 16),
        (2, 1, 13 / 16),
    ]
    assert find_near([chain], 0.8, removed=np.array([True, False, False])).tolist() == [(2, 1, 13 / 16)]
    assert find_near([chain], 0.8, decided=2).tolist() == [(2, 1, 13 / 16)]
    assert len(find_near([chain], 0.8, decided=3)) == len(find_near([], 0.8)) == 0


def test_a_form_filled_in_a_hundred_thousand_times_takes_no_quadratic_time(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    form = random.integers(0, 2**32, 32, dtype=np.uint32)
    many = np.repeat(form[None], 100_000, 0)
    many[50_000:, :3] = random.integers(0, 2**32, (50_000, 3), dtype=np.uint32)
    compared = 0

    def take(arrays, documents, original=duplicates._take):
        nonlocal compared
        compared += len(documents)
        return original(arrays, documents)

    monkeypatch.setattr(duplicates, "_take", take)
    found = find_near([many], 0.8, n_memory=10_000_000)
    assert len(found) == 99_999 and (found["original"] == 0).all()
    assert compared <= 2 * 50_001 * bands(0.8, 32)[0]  # signatures read


def test_memory_stays_within_what_is_given(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from gptstar.data.duplicates import KEY, find_exact, find_near
folder = Path(sys.argv[1])
signatures = np.load(folder / "signatures.npy", mmap_mode="r")
keys = np.memmap(folder / "keys", KEY, "r")
find_exact([keys[:1000], keys[1000:1010]]), find_near([signatures[:1000]], 0.8)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
assert len(find_exact([keys], 20_000_000)) == 100_000
exact = peak()
assert len(find_near([signatures], 0.8, 20_000_000, scratch=folder)) == 20_000
print(exact - before, peak() - before)
"""
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**64, (500_000, 2), dtype=np.uint64)
    keys[400_000:] = keys[100_000:200_000]
    keys.tofile(tmp_path / "keys")
    signatures = random.integers(0, 2**32, (200_000, 128), dtype=np.uint32)
    signatures[180_000:, 10:] = signatures[50_000:70_000, 10:]
    np.save(tmp_path / "signatures.npy", signatures)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exact, near = map(int, done.stdout.split())
    assert exact < 40_000_000 and near < 60_000_000  # 100 MB of signatures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "signatures.npy"]


TEXTS = [
    "One, two three four five six.",
    "one two THREE four\nfive six",
    "one two",
    "one; two",
    "",
    "...",
    "one two three",
]


def test_signatures_follow_words_alone_and_are_the_same_in_every_process():
    config = NearConfig(n_permutation=32)
    rows = signature(TEXTS, config)
    assert rows.shape == (7, 32) and rows.dtype == np.uint32
    assert (rows[0] == rows[1]).all() and (rows[2] == rows[3]).all()  # short texts are one shingle
    for i, j in ((1, 2), (2, 4), (4, 5), (2, 6)):
        assert (rows[i] == rows[j]).mean() < 0.2
    assert np.array_equal(rows, np.concatenate([signature([text], config) for text in TEXTS]))
    assert signature([], config).shape == (0, 32)
    code = f"from gptstar.data.duplicates import *; print(signature({TEXTS!r}, NearConfig(n_permutation=32)).tolist())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == str(rows.tolist()), done.stderr


def test_signatures_are_the_same_on_every_machine():
    text = "Signatures are kept in files: they must not change."
    assert signature([text], NearConfig(n_permutation=16))[0].tolist() == [
        2016544777,
        762794716,
        3633870496,
        3509908037,
        1897197782,
        3389449683,
        3431984313,
        1333987953,
        419764807,
        2205992490,
        3332284491,
        567115972,
        544325860,
        3270382512,
        3404873383,
        3258224306,
    ]


def shingles(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


@pytest.mark.parametrize("j", [0.2, 0.5, 0.8, 0.95])
def test_signatures_estimate_the_jaccard_similarity(j):
    n, size = 300, 400
    shared = round(2 * j * size / (1 + j))
    texts, vocabulary = [], iter(range(10**9))
    for _ in range(n):
        common = " ".join(str(next(vocabulary)) for _ in range(shared + 4))
        for _ in range(2):
            texts.append(common + " " + " ".join(str(next(vocabulary)) for _ in range(size - shared)))
    rows = signature(texts, NearConfig())
    errors = (rows[::2] == rows[1::2]).mean(1) - jaccard(*texts[:2])
    deviation = (j * (1 - j) / 128) ** 0.5
    assert abs(errors.mean()) < 4 * deviation / n**0.5 and errors.std() < 1.2 * deviation


def edited(random, words, rate, kind):
    words = list(words)
    if kind == "truncate":
        return words[: max(6, round(len(words) * (1 - rate)))]
    for i in np.flatnonzero(random.random(len(words)) < rate)[::-1]:
        word = f"new{random.integers(10**6)}"
        words[i : i + (kind == "substitute")] = [word]
    return words


def test_planted_near_duplicates_are_found_and_others_are_not():
    """Recall and precision by the true similarity, for threshold 0.8.

    The estimate of 128 numbers is off by 0.035 (one standard deviation) at 0.8, 0.027 at 0.9 and 0.043 at 0.6.
    """
    random = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    texts, copies = [], []
    for number in range(900):
        words = [vocabulary[i] for i in random.zipf(1.3, int(random.integers(60, 500))) % 3000]
        rate = float(random.choice([0, 0.002, 0.01, 0.02, 0.04, 0.08, 0.15]))
        kind = ("substitute", "insert", "truncate")[number % 3]
        texts.append(" ".join(words))
        copies.append(" ".join(edited(random, words, rate, kind)))
    dressed = [copy.upper().replace(" ", ",\n ", 7) + "!" for copy in copies]
    true = np.array([jaccard(a, b) for a, b in zip(texts, copies, strict=True)])
    found = find_near([signature(texts, NearConfig()), signature(dressed, NearConfig())], 0.8)
    assert (found["original"] == found["document"] - len(texts)).all()  # of another text there is none
    is_found = np.isin(np.arange(len(texts)), found["original"])
    for low, high in ((0.0, 0.6), (0.7, 0.8), (0.8, 0.9), (0.9, 1.1)):
        assert ((true >= low) & (true < high)).sum() >= 50
    assert is_found[true >= 0.9].mean() >= 0.99
    assert is_found[true >= 0.85].mean() >= 0.9
    assert not is_found[true < 0.6].any()
    assert (true[is_found] >= 0.7).mean() >= 0.99
    assert np.abs(found["similarity"] - true[found["original"]]).max() < 0.15


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("n_permutation", [16, 64, 128, 256])
def test_bands_are_the_longest_that_find_nine_in_ten(threshold, n_permutation):
    def found(n_row):
        return 1 - (1 - threshold**n_row) ** (n_permutation // n_row)

    n_band, n_row = bands(threshold, n_permutation)
    assert n_band * n_row <= n_permutation and found(n_row) >= 0.9
    assert n_row == n_permutation or found(n_row + 1) < 0.9


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 0.1}, "data.near_duplicates.threshold=0.1 must lie between 0.3 and 1"),
        ({"threshold": 1.1}, "data.near_duplicates.threshold=1.1 must lie between 0.3 and 1"),
        ({"n_gram": 0}, "data.near_duplicates.n_gram=0 must be at least 1"),
        ({"n_permutation": 8}, "data.near_duplicates.n_permutation=8 must be at least 16"),
    ],
)
def test_impossible_values_are_named(values, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        NearConfig(**values)
