"""Plans read every sequence once, share what can be shared, and keep to the budget."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gptstar.evaluation.planning import MIN_SHARED, Group, common_prefix, plan_batches, share_prefixes

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30).map(tuple), unique=True, max_size=30)


def tokens_read(groups: list[Group], texts: list[tuple]) -> int:
    return sum(g.prefix + sum(len(texts[i]) - g.prefix for i in g.members) for g in groups)


def test_endings_of_one_context_are_one_group():
    contexts = [tuple(range(10 * d, 10 * d + 20)) for d in (1, 5, 9)]
    texts = [(*context, e, d) for d, context in enumerate(contexts) for e in range(4)]
    random.Random(0).shuffle(texts)
    groups = share_prefixes(texts)
    assert sorted((g.prefix, len(g.members)) for g in groups) == [(20, 4)] * 3
    assert tokens_read(groups, texts) == 3 * 20 + 12 * 2


def test_examples_in_front_of_all_questions_are_read_once_unless_contexts_save_more():
    header = tuple(range(100, 160))
    few = [header + (d,) * 10 + (e,) for d in range(5) for e in range(2)]
    assert [(g.prefix, len(g.members)) for g in share_prefixes(few)] == [(60, 10)]
    many = [header[:20] + (d,) * 60 + (e,) for d in range(5) for e in range(4)]
    assert sorted((g.prefix, len(g.members)) for g in share_prefixes(many)) == [(80, 4)] * 5


def test_a_short_common_beginning_is_not_shared():
    texts = [(1,) * (MIN_SHARED - 1) + (e,) * 3 for e in range(2, 9)]
    assert all(g.prefix == 0 for g in share_prefixes(texts))


def test_a_sequence_may_be_the_beginning_of_another():
    texts = [(1,) * 20, (1,) * 20 + (2,), (1,) * 20 + (3, 4)]
    assert share_prefixes(texts) == [Group(20, [0, 1, 2])]
    (batch,) = plan_batches(texts, 100, 5)
    assert sorted((chunk.width, len(chunk.rows)) for chunk in batch.chunks) == [(0, 1), (2, 2)]


@given(sequences)
def test_groups_are_a_partition_with_true_common_beginnings(texts):
    groups = share_prefixes(texts)
    assert sorted(i for g in groups for i in g.members) == list(range(len(texts)))
    for g in groups:
        assert len(g.members) > 1 if g.prefix else len(g.members) == 1
        assert all(texts[i][: g.prefix] == texts[g.members[0]][: g.prefix] for i in g.members)
        assert all(common_prefix(texts[a], texts[b]) >= g.prefix for a, b in pairwise(g.members))


def best_by_trying(texts: list[tuple]) -> int:
    """Fewest tokens over all ways to cut the sorted sequences into runs."""
    texts = sorted(texts)
    best = [0]
    for end in range(1, len(texts) + 1):
        ways = []
        for start in range(end):
            run = texts[start:end]
            shared = common_prefix(run[0], run[-1]) if len(run) > 1 else 0
            shared = shared if shared >= MIN_SHARED else 0
            ways.append(best[start] + sum(map(len, run)) - (len(run) - 1) * shared)
        best.append(min(ways))
    return best[-1]


@given(sequences)
def test_no_partition_reads_fewer_tokens(texts):
    assert tokens_read(share_prefixes(texts), texts) == best_by_trying(texts)


def test_rows_of_unlike_length_are_read_apart_unless_a_pass_costs_more():
    texts = [(n,) * 100 for n in range(3)] + [(n,) * 10 for n in range(3, 9)]

    def shapes(pass_cost: int) -> list[tuple[int, int]]:
        (batch,) = plan_batches(texts, 1000, pass_cost)
        return [(chunk.width, len(chunk.rows)) for chunk in batch.chunks]

    assert shapes(10) == [(100, 3), (10, 6)]
    assert shapes(1000) == [(100, 9)]


def test_beginnings_are_cut_to_one_length_where_that_saves_passes():
    texts = [(d,) * length + (100 + e, e) for d, length in enumerate((40, 39, 20)) for e in range(3)]
    assert [(b.prefix, len(b.heads)) for b in plan_batches(texts, 1000, 10)] == [(39, 2), (20, 1)]
    assert [(b.prefix, len(b.heads)) for b in plan_batches(texts, 1000, 0)] == [(40, 1), (39, 1), (20, 1)]
    assert [(b.prefix, len(b.heads)) for b in plan_batches(texts, 1000, 100)] == [(20, 3)]


@given(sequences, st.integers(1, 80), st.integers(0, 30))
def test_plans_hold_every_sequence_once_within_the_budget(texts, budget, pass_cost):
    batches = plan_batches(texts, budget, pass_cost)
    rows = [(batch, chunk, head, i) for batch in batches for chunk in batch.chunks for head, i in chunk.rows]
    assert sorted(i for *_, i in rows) == list(range(len(texts)))
    for batch, chunk, head, i in rows:
        assert 0 <= len(texts[i]) - batch.prefix <= chunk.width
        if batch.prefix:
            assert texts[i][: batch.prefix] == texts[batch.heads[head]][: batch.prefix]
    for batch in batches:
        assert len(batch.heads) * batch.prefix <= budget or len(batch.heads) == 1
        for chunk in batch.chunks:
            assert chunk.width * len(chunk.rows) <= budget or len(chunk.rows) == 1
