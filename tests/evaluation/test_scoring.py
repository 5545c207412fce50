"""Whatever is shared, padded or cut up: the log-likelihoods are those of each sequence by itself."""

import random

import pytest
import torch

import gptstar
from gptstar.evaluation import scoring
from gptstar.evaluation.scoring import Query, Scorer, token_scores
from support import tiny_model


def build(**changes):
    torch.manual_seed(0)
    return gptstar.GPT(tiny_model(context=64, init_std=0.3, **changes)).double().eval()


def questions(seed: int = 0, longest: int = 48) -> list[Query]:
    """Contexts with several continuations, with one-token ones, with one that begins like another."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(300) for _ in range(rng.randint(low, high))]

    found = []
    for document in range(12):
        context = tokens(1, 60)
        endings = [tokens(1, 10) for _ in range(rng.randint(1, 4))]
        if document % 3 == 0:
            endings += [[t] for t in (1, 2, 3)] + [endings[0][:1], [*endings[0], 7]]
        found += [Query.continuation(context, ending, longest) for ending in endings]
    return [*found, Query((5,), (6,)), Query((5,), (9,))]


def one_by_one(model, queries):
    found = []
    with torch.no_grad():
        for query in queries:
            logits = model(torch.tensor([query.tokens]))[0, -len(query.targets) :]
            picked = logits.log_softmax(-1)[range(len(query.targets)), list(query.targets)]
            found.append((float(picked.sum()), logits.argmax(-1).tolist() == list(query.targets)))
    return found


@pytest.mark.parametrize("position", ["alibi", "learned", "rotary", "relative"])
@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_answers_are_those_of_each_sequence_alone(position, budget):
    model, queries = build(position=position), questions()
    found = [pair for pairs in Scorer(model, budget).answers(queries) for pair in pairs]
    assert sorted(n for n, _ in found) == list(range(len(queries)))
    expected = one_by_one(model, queries)
    for n, answer in found:
        assert answer.log_likelihood == pytest.approx(expected[n][0], abs=1e-9)
        assert answer.greedy == expected[n][1]


def test_windows_grouped_heads_and_soft_caps_too():
    model = build(
        windows=[0, 5], n_head=4, n_kv_head=2, score_softcap=3.0, logit_softcap=5.0, layer_positions=["rotary", "none"]
    )
    queries = questions()
    found = dict(pair for pairs in Scorer(model, 200).answers(queries) for pair in pairs)
    assert [found[n].log_likelihood for n in range(len(queries))] == pytest.approx(
        [value for value, _ in one_by_one(model, queries)], abs=1e-9
    )


def test_greedy_means_every_target_was_the_most_likely_token():
    model = build()
    with torch.no_grad():
        first = int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
        second = int(model(torch.tensor([[1, 2, 3, first]]))[0, -1].argmax())
    other = (second + 1) % 300
    queries = [Query.continuation([1, 2, 3], rest, 60) for rest in ([first], [first, second], [first, other])]
    found = dict(pair for pairs in Scorer(model, 100).answers(queries) for pair in pairs)
    assert [found[n].greedy for n in range(3)] == [True, True, False]


def test_shared_contexts_are_read_once(monkeypatch):
    model = build()
    read = []
    plain = scoring.hidden_states
    monkeypatch.setattr(scoring, "hidden_states", lambda m, t, c=None: read.append(t.numel()) or plain(m, t, c))
    queries = [Query.continuation(range(40), [e, e], 60) for e in range(50, 54)]
    assert sum(map(len, Scorer(model, 1000).answers(queries))) == 4
    assert sum(read) == 40 + 4 * 1
    read.clear()
    single = [Query.continuation(range(40), [e], 60) for e in range(50, 54)]  # MMLU's letters
    assert sum(map(len, Scorer(model, 1000).answers(single))) == 4
    assert read == [40]


def test_what_is_finished_is_left_out_and_the_rest_is_the_same_to_the_bit():
    model, queries = build().float(), questions()
    everything = dict(pair for pairs in Scorer(model, 100).answers(queries) for pair in pairs)
    done = {n for n in everything if n % 3}
    rest = dict(pair for pairs in Scorer(model, 100).answers(queries, done) for pair in pairs)
    assert rest == {n: answer for n, answer in everything.items() if n not in done}
    assert list(Scorer(model, 100).answers(queries, range(len(queries)))) == []


def test_a_full_gpu_halves_the_budget_and_goes_on(monkeypatch):
    model, queries = build(), questions()
    plain = scoring.hidden_states

    def small_memory(model, tokens, cache=None):
        if tokens.numel() > 90:
            raise torch.OutOfMemoryError("full")
        return plain(model, tokens, cache)

    monkeypatch.setattr(scoring, "hidden_states", small_memory)
    scorer = Scorer(model, 640)
    found = dict(pair for pairs in scorer.answers(queries) for pair in pairs)
    assert scorer.budget == 80  # 640, 320, 160, 80
    assert [found[n].log_likelihood for n in range(len(queries))] == pytest.approx(
        [value for value, _ in one_by_one(model, queries)], abs=1e-9
    )


def test_memory_that_does_not_suffice_for_one_row_is_an_error(monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(scoring, "hidden_states", none)
    with pytest.raises(torch.OutOfMemoryError):
        list(Scorer(build(), 1000).answers(questions()))


def test_logits_are_made_in_chunks(monkeypatch):
    model = build()
    hidden = torch.randn(50, model.config.d_model, dtype=torch.float64)
    targets = list(range(50))
    whole = token_scores(model, hidden, targets)
    sizes = []
    plain = scoring.logits_of
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 300 * 8)
    monkeypatch.setattr(scoring, "logits_of", lambda m, h: sizes.append(len(h)) or plain(m, h))
    parts = token_scores(model, hidden, targets)
    assert max(sizes) <= 8 and sum(sizes) == 50
    assert (whole[0] == pytest.approx(parts[0], abs=1e-12)) and (whole[1] == parts[1]).all()


def test_half_precision_models_have_their_softmax_in_fp32():
    model = build().bfloat16()
    hidden = torch.randn(4, model.config.d_model, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model.logits(hidden).float().log_softmax(-1)[range(4), range(4)]
    assert token_scores(model, hidden, [0, 1, 2, 3])[0] == pytest.approx(expected.numpy(), abs=1e-6)


def test_contexts_are_cut_from_the_left_and_impossible_queries_refused():
    assert Query.continuation([1, 2, 3, 4], [5, 6], 4) == Query((2, 3, 4, 5), (5, 6))
    assert Query.continuation([1], [5, 6], 4) == Query((1, 5), (5, 6))
    for context, rest in (([], [1]), ([1], []), ([1], [1, 2, 3])):
        with pytest.raises(ValueError, match="cannot be scored"):
            Query.continuation(context, rest, 2)
