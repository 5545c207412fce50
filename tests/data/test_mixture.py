import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.mixture import History, Mixture, Source, epochs_from_weights

EPOCHS = st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, Fraction(1, 3), Fraction(7, 5)])


@st.composite
def sources(draw, most=5, names="abcdefgh"):
    """Small sources that give at least one window a pass."""
    n = draw(st.integers(1, most))
    out = []
    for name in names[:n]:
        groups = np.array(draw(st.lists(st.integers(0, 30), min_size=1, max_size=6)))
        epochs = draw(EPOCHS)
        groups[0] += max(1, math.ceil(1 / epochs))
        out.append(Source(name, groups, epochs, f"key {name}"))
    return out


def pairs(mixture, first, count):
    which, numbers = mixture.windows(first, count)
    return [(mixture.sources[c].name, w) for c, w in zip(which.tolist(), numbers.tolist(), strict=True)]


def often(mixture, until):
    """How often each window of each source comes."""
    seen = Counter(pairs(mixture, 0, until))
    return {s.name: [seen[s.name, w] for w in range(s.n_window)] for s in mixture.sources}


@settings(deadline=None, max_examples=40)
@given(sources(), st.integers(0, 2**40), st.integers(0, 2))
def test_a_pass_takes_of_each_source_what_its_epochs_say(some, seed, locality):
    mixture = Mixture(some, seed, locality=locality)
    begin = 0
    for n_pass in range(3):
        counts = {
            s.name: math.floor((n_pass + 1) * s.per_pass) - math.floor(n_pass * s.per_pass) for s in mixture.sources
        }
        length = sum(counts.values())
        if n_pass == 0:
            assert mixture.n_pass == length
        assert Counter(name for name, _ in pairs(mixture, begin, length)) == counts
        assert mixture.passes(begin) == n_pass
        begin += length
    in_one, in_three = often(mixture, mixture.n_pass), often(mixture, begin)
    for s in mixture.sources:
        epochs = s.per_pass / s.n_window
        assert {*in_one[s.name]} <= {math.floor(epochs), math.ceil(epochs)}
        assert {*in_three[s.name]} <= {math.floor(3 * epochs), math.ceil(3 * epochs)}


@settings(deadline=None)
@given(sources(), st.integers(0, 1000), st.data())
def test_what_was_taken_is_what_came_and_batches_do_not_matter(some, seed, data):
    mixture = Mixture(some, seed, locality=data.draw(st.integers(0, 2)))
    until = data.draw(st.integers(1, 3 * mixture.n_pass))
    whole = pairs(mixture, 0, until)
    cuts = sorted({0, until, *data.draw(st.lists(st.integers(0, until), max_size=4))})
    again = Mixture(some, seed, locality=mixture.locality)
    pieces = [pair for a, b in itertools.pairwise(cuts) for pair in pairs(again, a, b - a)]
    assert pieces == whole
    for cut in cuts:
        names = Counter(name for name, _ in whole[:cut])
        assert mixture.taken(cut) == {s.name: names[s.name] for s in some}


@settings(deadline=None)
@given(sources(), st.integers(0, 1000))
def test_every_prefix_is_in_proportion(some, seed):
    mixture = Mixture(some, seed)
    which, _ = mixture.windows(0, mixture.n_pass)
    place = np.arange(1, mixture.n_pass + 1)
    for c, s in enumerate(some):
        due = place * math.floor(s.per_pass) / mixture.n_pass
        assert np.abs(np.cumsum(which == c) - due).max() <= mixture.n_pass.bit_length()


def test_a_large_pass_is_in_proportion_everywhere():
    shares = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    mixture = Mixture([Source(name, np.array([int(share * 10**7)])) for name, share in shares.items()], 3)
    for first in (0, 1_234_567, 9_990_000):
        came = Counter(name for name, _ in pairs(mixture, first, 10_000))
        for name, share in shares.items():
            assert abs(came[name] - share * 10_000) < 25
    names = [name for name, _ in pairs(mixture, 0, 1000)]
    assert len(set(itertools.pairwise(names))) == 15  # not in turns: all pairs but (d, d) at 5 %


def test_the_windows_of_one_source_with_one_epoch_are_one_permutation():
    mixture = Mixture([Source("only", np.array([40, 0, 60]))], 7)
    _, numbers = mixture.windows(0, 200)
    assert sorted(numbers[:100]) == sorted(numbers[100:]) == list(range(100))
    assert (numbers[:100] != numbers[100:]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**13), st.integers(0, 100), st.integers(0, 5))
def test_huge_mixtures_cost_no_table(position, seed, locality):
    some = [
        Source("a", np.full(100, 10**10), 1),
        Source("b", np.full(50, 2 * 10**10 + 1), 0.5),
        Source("c", np.array([3]), 2),
    ]
    mixture = Mixture(some, seed, locality=locality)
    assert mixture.n_pass == 10**12 + 5 * 10**11 + 25 + 6
    which, numbers = mixture.windows(position, 64)
    sizes = np.array([s.n_window for s in some])
    assert (numbers >= 0).all() and (numbers < sizes[which]).all()
    before, after = mixture.taken(position), mixture.taken(position + 64)
    assert sum(before.values()) == position
    assert {n: after[n] - before[n] for n in "abc"} == dict(zip("abc", np.bincount(which, minlength=3), strict=True))


def test_seeds_and_sources_have_orders_of_their_own_and_listing_order_does_not_matter():
    a, b = Source("a", np.array([500])), Source("b", np.array([500]))
    first, second = (pairs(Mixture([a, b], seed), 0, 1000) for seed in (0, 1))
    assert sum(x == y for x, y in zip(first, second, strict=True)) < 20
    of_a, of_b = ([w for name, w in first if name == wanted] for wanted in "ab")
    assert sum(x == y for x, y in zip(of_a, of_b, strict=True)) < 20
    assert pairs(Mixture([b, a], 0), 0, 1000) == first


@settings(deadline=None, max_examples=30)
@given(sources(most=3), sources(most=2, names="xy"), st.integers(0, 100), st.data())
def test_an_added_source_continues_the_order(old, new, seed, data):
    locality = data.draw(st.integers(0, 2))
    before = Mixture(old, seed, locality=locality)
    begin = data.draw(st.integers(1, 2 * before.n_pass))
    history = History([before]).changed([*old, *new], begin)
    after = history.at(begin)
    assert (
        history.at(begin - 1) is before
        and after.begin == begin
        and after.taken(begin).items() >= before.taken(begin).items()
    )
    until = min(300, 2 * after.n_pass)
    seen = pairs(before, 0, begin) + pairs(after, begin, until)
    for s in [*old, *new]:  # each goes on in its own order: none comes again before all others have
        order = [w for name, w in seen if name == s.name]
        assert order == [w for _, w in pairs(Mixture([s], seed, locality=locality), 0, len(order))]
        assert len(set(order[: s.n_window])) == min(len(order), s.n_window)
    # The first pass completes the one each source was in; none exceeds its epochs.
    in_pass = after.taken(begin + after.n_pass)
    for s in old:
        passes = next(k for k in range(10**6) if math.floor((k + 1) * s.per_pass) > before.taken(begin)[s.name])
        assert in_pass[s.name] == math.floor((passes + 1) * s.per_pass)
    assert all(in_pass[s.name] == math.floor(s.per_pass) for s in new)
    taken = Counter(name for name, _ in seen)
    assert history.taken(begin + until) == {s.name: taken[s.name] for s in [*old, *new]}


def test_a_source_is_added_between_two_passes_that_round_differently():
    a, b = Source("a", np.array([21]), 0.5), Source("b", np.array([8]))
    added = History([Mixture([a], 0)]).changed([a, b], 10)  # of ten windows and a half ten came
    assert added.taken(10 + added.at(10).n_pass) == {"a": 21, "b": 8}


@settings(deadline=None, max_examples=20)
@given(sources(), st.integers(0, 100), st.data())
def test_at_most_so_many_shards_are_in_use(some, seed, data):
    locality = data.draw(st.integers(1, 3))
    mixture = Mixture(some, seed, locality=locality)
    until = min(200, 2 * mixture.n_pass)
    ends = {s.name: np.cumsum(s.groups) for s in some}
    now, announced = {}, {}
    for position, (name, window) in enumerate(pairs(mixture, 0, until)):
        shard = int(np.searchsorted(ends[name], window, side="right"))
        shards, ahead = mixture.shards_ahead(position)[name]
        assert shard in shards and len(shards) <= locality and len(ahead) <= locality
        if name in now and shards != now[name]:
            assert shards == announced[name]
        now[name], announced[name] = shards, ahead


def test_without_locality_all_shards_are_in_use():
    assert Mixture([Source("a", np.array([3, 4]))], 0).shards_ahead(2) == {"a": ([0, 1], [])}


def test_locality_goes_through_all_windows_once_an_epoch_in_other_orders():
    mixture = Mixture([Source("a", np.array([5, 0, 8, 3, 9, 1]))], 1, locality=2)
    first, second = (mixture.windows(begin, 26)[1].tolist() for begin in (0, 26))
    assert sorted(first) == sorted(second) == list(range(26)) and first != second


def history():
    begun = History([Mixture([Source("a", np.array([50, 50]), 0.5, "k"), Source("b", np.array([30]), 2, "l")], 5)])
    return begun.changed([*begun.mixtures[0].sources, Source("c", np.array([40]), Fraction(1, 3), "m")], 60)


def test_a_history_goes_through_json():
    before = history()
    after = History.from_dict(json.loads(json.dumps(before.as_dict())))
    assert after.as_dict() == before.as_dict() and len(after.mixtures) == 2
    for position in (0, 59, 60, 500):
        assert after.taken(position) == before.taken(position)
        sources, which, numbers = after.windows(position, 1)
        expected, which_expected, numbers_expected = before.windows(position, 1)
        assert [s.name for s in sources] == [s.name for s in expected]
        assert (which, numbers) == (which_expected, numbers_expected)


def test_a_history_is_the_same_until_sources_change():
    before = history()
    now = before.mixtures[-1].sources
    assert before.changed(now, 60) is before and before.changed(now, 777) is before
    assert before.changed(before.mixtures[0].sources, 10).mixtures == before.mixtures[:1]  # what came later is dropped
    assert [m.begin for m in before.changed(before.mixtures[0].sources, 60).mixtures] == [0]
    with pytest.raises(IndexError, match="changes in between"):
        before.windows(55, 10)


def test_a_source_left_out_comes_back_where_it_was():
    before = history()
    a, b, c = before.mixtures[-1].sources
    without = before.changed([a, c], 100)
    assert without.taken(150)["b"] == before.taken(100)["b"] and sum(without.taken(150).values()) == 150
    back = without.changed([a, b, c], 150)
    order = [
        w
        for m, first, n in ((back.at(0), 0, 60), (back.at(60), 60, 40), (back.at(150), 150, 100))
        for name, w in pairs(m, first, n)
        if name == "b"
    ]
    alone = pairs(Mixture([b], 5), 0, len(order))
    assert order == [w for _, w in alone]


def test_other_epochs_count_what_was_taken():
    a = Source("a", np.array([100]), 1.0)
    changed = History([Mixture([a], 0)]).changed([Source("a", np.array([100]), 0.25)], 60)
    assert changed.at(60).n_pass == 15  # two quarters are behind, of the third ten are
    assert changed.at(60).passes(75) == 1 and changed.at(60).passes(100) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "other"}, "its content has changed since"),
        ({"groups": np.array([50, 51])}, "the number of its windows"),
    ],
)
def test_a_changed_source_is_refused_once_it_was_read(changes, words):
    begun = history()
    a, b, c = begun.mixtures[-1].sources
    other = Source(**{"name": "a", "groups": a.groups, "epochs": a.epochs, "key": a.key, **changes})
    with pytest.raises(ValueError, match=f"corpus 'a' cannot be gone on with: {words}"):
        begun.changed([other, b, c], 70)
    with pytest.raises(ValueError, match="corpus 'a'"):  # also when it was left out in between
        begun.changed([b, c], 70).changed([other, b, c], 80)
    assert begun.changed([other, b], 0).taken(0) == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("some", "words"),
    [
        ([], "names of their own"),
        ([Source("a", np.array([1])), Source("a", np.array([1]))], "names of their own"),
        ([Source("a", np.array([0, 0]))], "'a' is shorter than one window"),
        ([Source("a", np.array([3]), -1.0)], "epochs=-1.0: it must be above 0"),
        ([Source("a", np.array([3]), math.nan)], "epochs=nan"),
        ([Source("a", np.array([3]), 0.25)], "'a' of 3 windows gives less than one"),
    ],
)
def test_what_cannot_be_mixed_is_named(some, words):
    with pytest.raises(ValueError, match=words):
        Mixture(some, 0)


def test_positions_before_the_mixture_are_refused():
    with pytest.raises(IndexError, match="before 10"):
        Mixture([Source("a", np.array([30]))], 0, {"a": 10}, begin=10).windows(9, 3)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 10**9), st.integers(1, 100)), min_size=1),
    st.floats(0.1, 5),
)
def test_weights_become_epochs(values, limit):
    n_windows = {name: n for name, (n, _) in values.items()}
    weights = {name: w / 10 for name, (_, w) in values.items()}
    first = min(values)
    epochs = epochs_from_weights(n_windows, weights, {first: limit})
    length = sum(epochs[name] * n for name, n in n_windows.items())
    for name, n in n_windows.items():
        assert epochs[name] * n / length == Fraction(values[name][1], sum(w for _, w in values.values()))
    limits = {name: Fraction(str(limit)) if name == first else 1 for name in n_windows}
    assert all(epochs[name] <= limits[name] for name in epochs)
    assert any(epochs[name] == limits[name] for name in epochs)


@pytest.mark.parametrize(
    ("weights", "most", "words"),
    [
        ({"a": 1}, {}, "'b' has no weight"),
        ({"a": 1, "b": 0}, {}, "weight of 'b' is 0: it must be above 0"),
        ({"a": 1, "b": 1, "z": 1}, {}, "weight is given for 'z': choose one of a, b"),
        ({"a": 1, "b": 1}, {"b": -1}, "limit of epochs of 'b' is -1"),
        ({"a": 1, "b": math.inf}, {}, "weight of 'b' is inf"),
    ],
)
def test_weights_that_cannot_be_are_named(weights, most, words):
    with pytest.raises(ValueError, match=words):
        epochs_from_weights({"a": 10, "b": 20}, weights, most)


def test_the_order_stays_what_it_was():
    """A run that is resumed by a later version goes on in the same order."""
    mixture = Mixture([Source("a", np.array([20, 21]), 1), Source("b", np.array([30]), 0.5)], 0, locality=1)
    which, numbers = mixture.windows(0, 12)
    assert which.tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0] and numbers.tolist() == [
        7,
        19,
        15,
        10,
        6,
        16,
        13,
        9,
        2,
        4,
        15,
        17,
    ]
