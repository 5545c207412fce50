"""Text that continues a prompt, one token at a time over a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.sampling import check_sampling, choose
from gptstar.model.cache import KeyValueCache
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
    """
    tokens = tokenizer.encode(prompt)
    settings = (max_new_tokens, temperature, top_k, top_p, seed)
    return tokenizer.decode([*tokens, *generate_tokens(model, tokenizer, tokens, *settings)])


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
) -> Iterator[int]:
    """Yields the tokens that follow `tokens` until end of text (not yielded) or max_new_tokens.

    Embeddings beyond the tokenizer's last token (a padded vocabulary) are never chosen.
    """
    tokens = tokens or [tokenizer.eot_id]
    check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens} must not be negative")
    capacity = len(tokens) + max_new_tokens
    if model.config.position == "learned" and capacity > model.config.context:
        raise UserError(
            f"{len(tokens)} prompt tokens and max_new_tokens={max_new_tokens} exceed the {model.config.context} "
            "learned positions: shorten the prompt or lower max_new_tokens"
        )
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    generator = torch.Generator(device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    cache = KeyValueCache(model.config, 1, capacity, device, dtype)
    current = torch.tensor([tokens], device=device)
    for _ in range(max_new_tokens):
        logits_BV = model.logits(model.hidden(current, cache)[:, -1])[:, : tokenizer.vocab_size]
        current = choose(logits_BV, temperature, top_k, top_p, generator)
        token = int(current)
        if token == tokenizer.eot_id:
            return
        yield token
