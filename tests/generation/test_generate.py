import pytest
import torch

import gptstar
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.generate import generate, generate_detailed, generate_stream
from gptstar.generation.settings import SamplingSettings
from support import tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["abc abd acd bcd " * 20] * 5, TokenizerConfig(vocab_size=270))


def model(**changes) -> gptstar.GPT:
    torch.manual_seed(0)
    return gptstar.GPT(tiny_model(init_std=0.5, **changes)).eval()


def detailed(net, tokenizer, prompt, **wanted):
    return generate_detailed(net, tokenizer, prompt, SamplingSettings(**wanted))


def slow_greedy(net, tokens, n, vocab_size):
    """The whole sequence anew for every token."""
    for _ in range(n):
        tokens = [*tokens, int(net(torch.tensor([tokens]))[0, -1, :vocab_size].argmax())]
    return tokens


def test_greedy_over_the_cache_equals_reading_everything_anew(tokenizer):
    net, prompt = model(), tokenizer.encode("abc abd")
    new = detailed(net, tokenizer, "abc abd", max_new_tokens=20, temperature=0.0)[0].tokens
    expected = slow_greedy(net, prompt, 20, tokenizer.vocab_size)[len(prompt) :]
    assert new == expected[: len(new)]
    assert len(new) == 20 or expected[len(new)] == tokenizer.eot_id


def test_a_seed_repeats_and_other_seeds_differ(tokenizer):
    net = model()
    texts = [generate(net, tokenizer, "abc", 30, temperature=1.5, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("abc") for text in texts)


def test_an_empty_prompt_starts_a_document(tokenizer):
    net = model()
    new = detailed(net, tokenizer, "", max_new_tokens=5, temperature=0.0)[0].tokens
    assert new == slow_greedy(net, [tokenizer.eot_id], 5, tokenizer.vocab_size)[1 : 1 + len(new)]


def test_a_prompt_that_ends_in_space_is_healed(tokenizer):
    """ "abc " and then " abd" would be two spaces: the space is taken back into the first new token."""
    net = model()
    assert tokenizer.encode("abc ") != [*tokenizer.encode("abc"), *tokenizer.encode(" abd")][:2]
    space = tokenizer.encode(" ")[0]
    for seed in range(5):
        [one] = detailed(net, tokenizer, "abc ", max_new_tokens=5, seed=seed)
        assert one.tokens[0] in tokenizer.starting_like(space)
        assert one.prompt + one.text == tokenizer.decode([*tokenizer.encode("abc"), *one.tokens])
        assert one.prompt == "abc " and generate(net, tokenizer, "abc ", 5, seed=seed) == one.prompt + one.text
    assert len(tokenizer.starting_like(space)) > 3
    assert all(tokenizer.decode([t]).startswith(" ") for t in tokenizer.starting_like(space))


def test_it_stops_at_end_of_text(tokenizer, monkeypatch):
    net = model()
    logits = net.logits

    def always_eot(hidden):
        out = logits(hidden)
        out[..., tokenizer.eot_id] = 1e9
        return out

    monkeypatch.setattr(net, "logits", always_eot)
    assert generate(net, tokenizer, "abc", 30) == "abc"


def test_padding_of_the_vocabulary_is_never_chosen(tokenizer):
    net = model(vocab_size=400)
    with torch.no_grad():
        net.embedding.weight[tokenizer.vocab_size :] *= 50
    for seed in range(3):
        new = detailed(net, tokenizer, "a", max_new_tokens=30, temperature=2.0, seed=seed)[0].tokens
        assert max(new) < tokenizer.vocab_size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"min_p": 1.0}, "min_p=1.0"),
        ({"stop_tokens": [999]}, "stop_tokens: 999 is not in the vocabulary"),
        ({"n": 2}, "n=2 sequences do not fit into one text"),
    ],
)
def test_settings_out_of_range_are_refused(tokenizer, settings, words):
    with pytest.raises(UserError, match=words):
        generate(model(), tokenizer, "abc", **settings)


def test_learned_positions_are_a_limit_and_alibi_is_not(tokenizer):
    with pytest.raises(UserError, match="exceed the 32 tokens the model can read"):
        generate(model(position="learned"), tokenizer, "abc", 40)
    generate(model(), tokenizer, "abc", 40, seed=0)


def test_several_sequences_have_seeds_that_make_them_alone(tokenizer):
    net = model()
    many = detailed(net, tokenizer, "abc", max_new_tokens=20, temperature=1.5, seed=3, n=3)
    assert len({one.text for one in many}) == 3 and many[0].seed == 3
    for one in many:
        assert detailed(net, tokenizer, "abc", max_new_tokens=20, temperature=1.5, seed=one.seed) == [one]
    drawn = detailed(net, tokenizer, "abc", max_new_tokens=20, temperature=1.5, n=2)
    assert detailed(net, tokenizer, "abc", max_new_tokens=20, temperature=1.5, seed=drawn[0].seed, n=2) == drawn


def test_log_probabilities_are_the_models_own(tokenizer):
    net, wanted = model(), dict(max_new_tokens=10, temperature=0.5, top_k=5, repetition_penalty=2.0, seed=1)
    [one] = detailed(net, tokenizer, "abc", **wanted, logprobs=3)
    tokens = [*tokenizer.encode("abc"), *one.tokens]
    with torch.no_grad():
        logits = net(torch.tensor([tokens]))[0, -len(one.tokens) - 1 : -1, : tokenizer.vocab_size]
    expected = logits.log_softmax(-1)
    assert len(one.logprobs) == len(one.tokens) > 3
    for row, token, reported in zip(expected, one.tokens, one.logprobs, strict=True):
        assert reported.token == token and reported.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [t for t, _ in reported.top] == row.topk(3).indices.tolist()
    assert detailed(net, tokenizer, "abc", **wanted)[0].logprobs is None


@pytest.mark.parametrize("prompt", ["abc", "abc ", ""])
def test_a_stream_is_the_text_in_pieces(tokenizer, prompt):
    net, wanted = model(), SamplingSettings(max_new_tokens=25, temperature=1.5, seed=4, stop=["b"])
    pieces = list(generate_stream(net, tokenizer, prompt, wanted))
    [one] = generate_detailed(net, tokenizer, prompt, wanted)
    assert "".join(pieces) == one.text and all(pieces)
    with pytest.raises(UserError, match="top_k=0"):
        generate_stream(net, tokenizer, prompt, SamplingSettings(top_k=0))


def test_a_stop_string_ends_the_text_before_it(tokenizer):
    net = model()
    whole = generate(net, tokenizer, "abc", 40, temperature=1.5, seed=0).removeprefix("abc")
    stop = whole[7:10]
    [one] = detailed(net, tokenizer, "abc", max_new_tokens=40, temperature=1.5, seed=0, stop=[stop])
    assert one.text == whole[: whole.index(stop)]
    assert (one.finish_reason, one.stopped_by) == ("stop", stop)


def test_minimum_length_and_penalties_reach_the_model(tokenizer, monkeypatch):
    net = model()
    logits = net.logits

    def likes_eot(hidden):
        out = logits(hidden)
        out[..., tokenizer.eot_id] += 1e3
        return out

    monkeypatch.setattr(net, "logits", likes_eot)
    [one] = detailed(net, tokenizer, "abc", max_new_tokens=9, min_new_tokens=4, no_repeat_ngram=1, seed=0)
    assert (len(one.tokens), one.finish_reason) == (4, "end_of_text")
    assert len(set(one.tokens) - set(tokenizer.encode("abc"))) == 4
