"""Text that continues a prompt, one token at a time over a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.sampling import check_sampling, choose
from gptstar.model.transformer import GPT


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> str:
    """The prompt and its continuation, up to the model's end of text.

    An empty prompt starts a document of its own. temperature 0 is greedy; `seed` makes the choice repeatable, None
    draws a new one. Raises UserError for settings out of range and for a length beyond learned positions.

    A prompt that ends in white space is healed: byte-pair encodings keep a space in the token of the word that
    follows, so a space by itself is something the model has hardly seen. The last token is taken back, and the first
    one chosen must begin with its text.
    """
    tokens = tokenizer.encode(prompt)
    first = tokenizer.starting_like(tokens.pop()) if len(tokens) > 1 and prompt[-1].isspace() else None
    settings = (max_new_tokens + (first is not None), temperature, top_k, top_p, seed)
    return tokenizer.decode([*tokens, *generate_tokens(model, tokenizer, tokens, *settings, first=first)])


@torch.inference_mode()
def generate_tokens(
    model: GPT,
    tokenizer: Tokenizer,
    tokens: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    first: list[int] | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow `tokens` until end of text (not yielded) or max_new_tokens.

    Embeddings beyond the tokenizer's last token (a padded vocabulary) are never chosen. `first`: the only tokens the
    first choice is made from; None allows all.
    """
    tokens = tokens or [tokenizer.eot_id]
    check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens} must not be negative")
    capacity = len(tokens) + max_new_tokens
    longest = model.longest
    if longest is not None and capacity > longest:
        raise UserError(
            f"{len(tokens)} prompt tokens and max_new_tokens={max_new_tokens} exceed the {longest} tokens "
            "the model can read: shorten the prompt or lower max_new_tokens"
        )
    device = model.embedding.weight.device
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    cache = model.new_cache(1, capacity)
    current = torch.tensor([tokens], device=device)
    for position in range(max_new_tokens):
        logits_BV = model.logits(model.hidden(current, cache)[:, -1])[:, : tokenizer.vocab_size]
        if first is not None and position == 0:
            allowed = torch.full_like(logits_BV, -torch.inf)
            allowed[:, first] = logits_BV[:, first]
            logits_BV = allowed
        current = choose(logits_BV, temperature, top_k, top_p, generator)
        token = int(current)
        if token == tokenizer.eot_id:
            return
        yield token
