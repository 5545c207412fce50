"""Beam search against transformers' on random weights, ends of text and penalties included."""

import itertools

import pytest
import torch

import gptstar
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.beam import BeamSettings, beam_search
from gptstar.generation.settings import SamplingSettings
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=259))
N_NEW = 10


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A random GPT-2, as transformers has it and as we have it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=TOKENIZER.vocab_size, n_positions=40, n_embd=28, n_layer=2, n_head=7, initializer_range=0.3,
        bos_token_id=TOKENIZER.eot_id, eos_token_id=TOKENIZER.eot_id,
    )  # fmt: skip
    theirs, folder = transformers.GPT2LMHeadModel(config).eval(), tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    TOKENIZER.save(folder / "tokenizer.json")
    return theirs, gptstar.load(folder)[0]


def searched_by_transformers(model, prompt: str, beams: BeamSettings, ends: list[int], **options):
    tokens = torch.tensor([TOKENIZER.encode(prompt)])
    out = model.generate(
        tokens, num_beams=beams.n_beam, num_return_sequences=beams.n_beam, length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping, do_sample=False, max_new_tokens=N_NEW, eos_token_id=ends,
        pad_token_id=TOKENIZER.eot_id, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    found = []
    for row in out.sequences[:, tokens.shape[1] :].tolist():
        found.append(list(itertools.takewhile(lambda token: token not in ends, row)))
    return found, out.sequences_scores.tolist()


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ({}, {}),
        ({"stop_tokens": list(range(0, 259, 3))}, {}),
        ({"stop_tokens": list(range(0, 259, 4)), "min_new_tokens": 3}, {"min_new_tokens": 3}),
        ({"no_repeat_ngram": 2, "repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3}),
    ],
)
def test_it_finds_what_transformers_finds(both, early_stopping, length_penalty, wanted, options):
    theirs, ours = both
    beams = BeamSettings(3, length_penalty, early_stopping)
    settings = SamplingSettings(max_new_tokens=N_NEW, n=3, **wanted)
    ends = [TOKENIZER.eot_id, *settings.stop_tokens]
    tokens, scores = searched_by_transformers(theirs, "abc", beams, ends, **options)
    found = beam_search(ours, TOKENIZER, "abc", settings, beams)
    assert [beam.tokens for beam in found] == tokens
    assert [beam.score for beam in found] == pytest.approx(scores, rel=1e-4)
    assert found[0].text == TOKENIZER.decode([*TOKENIZER.encode("abc"), *tokens[0]])[3:]


def test_the_cases_above_tell_the_ways_to_stop_apart(both):
    settings = SamplingSettings(max_new_tokens=N_NEW, n=3, stop_tokens=list(range(0, 259, 3)))
    results = [
        tuple(
            tuple(beam.tokens) for beam in beam_search(both[1], TOKENIZER, "abc", settings, BeamSettings(3, 1.0, how))
        )
        for how in (True, False, "never")
    ]
    assert len(set(results)) == 3 and len({len(tokens) for tokens in results[2]}) > 1


@pytest.mark.parametrize("block", ["parallel_shared", "amlp"])
def test_it_is_at_least_as_likely_as_greedy(block):
    torch.manual_seed(0)
    net = gptstar.GPT(tiny_model(init_std=0.3, block=block)).eval()
    settings = SamplingSettings(max_new_tokens=6, min_new_tokens=6)
    best = beam_search(net, TOKENIZER, "abc ", settings, BeamSettings(8, length_penalty=0.0))[0]
    greedy = gptstar.generate_detailed(
        net, TOKENIZER, "abc ", SamplingSettings(max_new_tokens=6, min_new_tokens=6, temperature=0, logprobs=0)
    )[0]
    assert len(best.tokens) == len(greedy.tokens) == 7  # the healed space is one of them
    assert best.score >= sum(token.logprob for token in greedy.logprobs) - 1e-4


def test_no_new_tokens_is_nothing_to_search(both):
    found = beam_search(both[1], TOKENIZER, "abc", SamplingSettings(max_new_tokens=0, n=2), BeamSettings(2))
    assert [(beam.tokens, beam.text) for beam in found] == [([], "")] * 2


@pytest.mark.parametrize(
    ("wanted", "beams", "words"),
    [
        ({}, {"n_beam": 1}, "n_beam=1 must be"),
        ({}, {"length_penalty": float("nan")}, "length_penalty=nan must be finite"),
        ({}, {"early_stopping": "soon"}, "early_stopping='soon' must be"),
        ({"n": 5}, {}, "n=5 sequences are more than n_beam=4"),
        ({"temperature": 0.5}, {}, "temperature=0.5 has no effect in beam search"),
        ({"stop": ["a"]}, {}, "stop=.* has no effect"),
        ({"max_new_tokens": 99}, {}, "exceed the 40 tokens the model can read"),
    ],
)
def test_what_makes_no_sense_is_refused(both, wanted, beams, words):
    with pytest.raises(UserError, match=words):
        beam_search(both[1], TOKENIZER, "abc", SamplingSettings(**wanted), BeamSettings(**beams))
