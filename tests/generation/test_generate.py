import pytest
import torch

import gptstar
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.generate import generate, generate_tokens
from support import tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["abc abd acd bcd " * 20] * 5, TokenizerConfig(vocab_size=270))


def model(**changes) -> gptstar.GPT:
    torch.manual_seed(0)
    return gptstar.GPT(tiny_model(init_std=0.5, **changes)).eval()


def slow_greedy(net, tokens, n, vocab_size):
    """The whole sequence anew for every token."""
    for _ in range(n):
        tokens = [*tokens, int(net(torch.tensor([tokens]))[0, -1, :vocab_size].argmax())]
    return tokens


def test_greedy_over_the_cache_equals_reading_everything_anew(tokenizer):
    net, prompt = model(), tokenizer.encode("abc abd")
    new = list(generate_tokens(net, tokenizer, prompt, 20, 0.0, None, None, None))
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
    new = list(generate_tokens(net, tokenizer, [], 5, 0.0, None, None, None))
    assert new == slow_greedy(net, [tokenizer.eot_id], 5, tokenizer.vocab_size)[1 : 1 + len(new)]


def test_a_prompt_that_ends_in_space_is_healed(tokenizer):
    """ "abc " and then " abd" would be two spaces: the space is taken back into the first new token."""
    net = model()
    assert tokenizer.encode("abc ") != [*tokenizer.encode("abc"), *tokenizer.encode(" abd")][:2]
    for seed in range(5):
        text = generate(net, tokenizer, "abc ", 5, temperature=1.0, seed=seed)
        assert text.startswith("abc ")
        first = tokenizer.encode("abc")
        space = tokenizer.encode(" ")[0]
        allowed = tokenizer.starting_like(space)
        new = list(generate_tokens(net, tokenizer, first, 6, 1.0, None, None, seed, first=allowed))
        assert new[0] in allowed and text == tokenizer.decode([*first, *new])
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
        new = list(generate_tokens(net, tokenizer, [1], 30, 2.0, None, None, seed))
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
    ],
)
def test_settings_out_of_range_are_refused(tokenizer, settings, words):
    with pytest.raises(UserError, match=words):
        generate(model(), tokenizer, "abc", **settings)


def test_learned_positions_are_a_limit_and_alibi_is_not(tokenizer):
    with pytest.raises(UserError, match="exceed the 32 tokens the model can read"):
        generate(model(position="learned"), tokenizer, "abc", 40)
    generate(model(), tokenizer, "abc", 40, seed=0)
