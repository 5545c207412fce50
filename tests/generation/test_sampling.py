"""Rows with settings of their own: the composed pipeline, its order, its distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.generation.penalties import History
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings

V, EOT = 101, 0


def optional(strategy):
    return st.none() | strategy


ANY_SETTINGS = st.builds(
    SamplingSettings,
    min_new_tokens=st.integers(0, 5),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=optional(st.integers(1, 150)),
    top_p=optional(st.floats(0.05, 1)),
    min_p=optional(st.floats(0, 0.5)),
    tau=optional(st.floats(0.05, 1)),
    eta=optional(st.floats(0, 0.1)),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.3]),
    no_repeat_ngram=st.integers(0, 3),
    forbidden_tokens=st.lists(st.integers(0, V - 1), max_size=4),
    forced_tokens=st.lists(st.integers(0, V - 1), max_size=3),
    stop_tokens=st.lists(st.integers(0, V - 1), max_size=2),
)
ROW = st.tuples(
    ANY_SETTINGS,
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    optional(st.lists(st.integers(0, V - 1), min_size=1, max_size=5)),
)


def sampler(rows: list, seeds: list[int], first: list = ()) -> Sampler:
    return Sampler(rows, seeds, V, EOT, first=first)


@settings(max_examples=80)
@given(st.lists(ROW, min_size=2, max_size=5), st.integers(0, 100), st.integers(0, 3))
def test_a_row_is_chosen_as_it_would_be_alone(rows, logits_seed, step):
    wanted, seeds, prompts, first = map(list, zip(*rows, strict=True))
    logits = 2 * torch.randn(len(rows), V, generator=torch.Generator().manual_seed(logits_seed))
    steps = torch.arange(step, step + len(rows))
    together = sampler(wanted, seeds, first)(logits, steps, History.of(prompts, 2))
    for row in range(len(rows)):
        one = slice(row, row + 1)
        alone = sampler(wanted[one], seeds[one], first[one])(logits[one], steps[one], History.of(prompts[one], 0))
        assert alone.tolist() == together[one].tolist()


PIPELINES = [
    dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, tau=0.9, eta=1e-2),
    dict(temperature=1.3, top_k=50, tau=0.5),
    dict(repetition_penalty=1.4, no_repeat_ngram=2, min_new_tokens=4, top_p=0.8),
    dict(forbidden_tokens=[3, 4, 5], repetition_penalty=0.7, temperature=0.5, top_k=30, eta=0.05),
]
THEIR_NAMES = dict(
    tau="typical_p", eta="eta_cutoff", no_repeat_ngram="no_repeat_ngram_size", forbidden_tokens="suppress_tokens"
)


@pytest.mark.parametrize("wanted", PIPELINES)
def test_the_whole_pipeline_is_transformers_in_its_order(wanted):
    """The scores that transformers samples from, at each step of its own `generate`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=40, n_embd=28, n_layer=2, n_head=7, initializer_range=0.5, bos_token_id=EOT
    )
    prompt = torch.randint(1, V, (1, 8))
    theirs = transformers.GPT2LMHeadModel(config).generate(
        prompt, do_sample=True, max_new_tokens=12, eos_token_id=EOT, pad_token_id=EOT, return_dict_in_generate=True,
        output_scores=True, output_logits=True, **{"top_k": 0, **{THEIR_NAMES.get(k, k): v for k, v in wanted.items()}},
    )  # fmt: skip
    assert len(theirs.scores) > 4
    ours, history = sampler([SamplingSettings(**wanted)], [0]), History.of(prompt.tolist(), 12)
    for step, (logits, scores) in enumerate(zip(theirs.logits, theirs.scores, strict=True)):
        mine = ours.filtered(ours.processed(logits, torch.tensor([step]), history))
        torch.testing.assert_close(mine, scores, rtol=1e-6, atol=1e-6)
        history.append(theirs.sequences[:, 8 + step])


@pytest.mark.parametrize("wanted", [{}, {"temperature": 0.6, "top_k": 8}, {"top_p": 0.7, "tau": 0.8}])
def test_sampled_frequencies_are_the_filtered_probabilities(wanted):
    n, logits = 100, torch.randn(1, V, generator=torch.Generator().manual_seed(1))
    asked = SamplingSettings(**wanted)
    choose = sampler([asked] * n, list(range(n)))
    chosen = torch.cat([choose(logits.expand(n, V), torch.full((n,), step)) for step in range(60)])
    expected = len(chosen) * sampler([asked], [0]).filtered(logits)[0].softmax(-1)
    counts = torch.bincount(chosen, minlength=V)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_rounding_in_the_logits_hardly_ever_changes_a_choice():
    """Why Gumbel noise: the cumulative distribution inverted with one random number changes tens of times as often."""
    n, generator = 2000, torch.Generator().manual_seed(0)
    logits = -1.1 * torch.arange(1, 2001).float().log()[torch.randperm(2000, generator=generator)]
    rounded = logits + 1e-3 * torch.randn(2000, generator=generator)
    choose = Sampler([SamplingSettings()] * n, list(range(n)), 2000, EOT)
    steps = torch.zeros(n, dtype=torch.int64)
    changed = choose(logits.expand(n, -1), steps) != choose(rounded.expand(n, -1), steps)
    u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    by_inversion = [torch.searchsorted(x.double().softmax(-1).cumsum(-1), u) for x in (logits, rounded)]
    inverted = by_inversion[0] != by_inversion[1]
    assert changed.sum() < 5 and inverted.sum() > 50


def test_temperature_zero_is_greedy_beside_rows_that_are_not():
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    wanted = [SamplingSettings(temperature=t) for t in (0.0, 5.0, 1e-40)]
    choose = sampler(wanted, [1, 2, 3])
    assert choose.filtered(logits).isfinite().all()
    chosen = choose(logits, torch.zeros(3, dtype=torch.int64))
    assert chosen[[0, 2]].tolist() == logits.argmax(-1)[[0, 2]].tolist() and chosen[1] != logits[1].argmax()


def test_forced_forbidden_first_and_minimum_length():
    logits = torch.zeros(1, V)
    logits[0, [EOT, 7, 8]] = torch.tensor([9.0, 8.0, 7.0])
    wanted = SamplingSettings(temperature=0, forced_tokens=[55], forbidden_tokens=[7, 55], min_new_tokens=3)
    choose = sampler([wanted], [0])
    assert [int(choose(logits, torch.tensor([step]))) for step in range(4)] == [55, 8, 8, EOT]
    assert int(sampler([SamplingSettings(temperature=0)], [0], [[8, 9]])(logits, torch.tensor([0]))) == 8
    assert int(sampler([SamplingSettings(temperature=0)], [0], [[8, 9]])(logits, torch.tensor([1]))) == EOT


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_may_be_chosen_the_text_ends(temperature):
    wanted = SamplingSettings(temperature=temperature, forbidden_tokens=list(range(V)), top_p=0.9, top_k=5, tau=0.5)
    assert int(sampler([wanted], [0])(torch.randn(1, V), torch.tensor([0]))) == EOT


def test_half_precision_logits_will_do():
    logits = torch.randn(2, V).bfloat16()
    wanted = [SamplingSettings(top_p=0.9, min_p=0.01, eta=0.01, tau=0.9)] * 2
    assert sampler(wanted, [1, 2])(logits, torch.zeros(2, dtype=torch.int64)).shape == (2,)


@pytest.mark.gpu
def test_a_gpu_chooses_as_a_cpu():
    logits = 2 * torch.randn(64, 50_257)
    wanted = [SamplingSettings(temperature=0.8, top_p=0.9, top_k=200, min_p=0.01)] * 64
    chosen = [
        Sampler(wanted, list(range(64)), 50_257, EOT, device)(
            logits.to(device), torch.zeros(64, dtype=torch.int64, device=device)
        ).tolist()
        for device in ("cpu", "cuda")
    ]
    assert sum(a != b for a, b in zip(*chosen, strict=True)) <= 1
