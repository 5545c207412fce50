"""Text that continues a prompt, one token at a time over a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.continuation import Continuation, Prompt
from gptstar.generation.decoding import Decoder
from gptstar.generation.logprobs import TokenLogprob, token_logprobs
from gptstar.generation.penalties import History
from gptstar.generation.randomness import fresh_seed, sequence_seed
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings
from gptstar.model.cache import KeyValueCache
from gptstar.model.transformer import GPT


@dataclass(frozen=True)
class Generation:
    """One continuation of a prompt.

    prompt          the prompt as the tokenizer gives it back
    text            what follows it, without a stop string
    tokens          what was chosen, without the end of text or stop token that ended it; a stop string's tokens stay
    finish_reason   length, end_of_text or stop
    stopped_by      the stop string or stop token, if one was the reason
    seed            that makes this sequence again, alone
    logprobs        one for each of `tokens`, if they were asked for; of the model's own distribution, before penalties,
                    temperature and filters
    """

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str
    stopped_by: str | int | None
    seed: int
    logprobs: list[TokenLogprob] | None


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    decoder: Decoder | None = None,
    **more: Any,
) -> str:
    """The prompt and its continuation, up to the model's end of text.

    An empty prompt starts a document of its own. temperature 0 is greedy; `seed` makes the choice repeatable, None
    draws a new one. decoder: a `Decoder` of this model, compiled or with a draft, is faster. more: any other field of
    `SamplingSettings`. Raises UserError for settings out of range and for a length beyond learned positions.

    A prompt that ends in white space is healed (see `gptstar.generation.continuation.Prompt`).
    """
    settings = SamplingSettings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, **more
    )
    run = _only_run(decoder or Decoder(model), tokenizer, prompt, settings)
    return run.prompt.text + "".join(piece for piece, _ in run.steps())


def generate_detailed(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings, decoder: Decoder | None = None
) -> list[Generation]:
    """`settings.n` continuations of a prompt with all that is known of them. UserError as for `generate`."""
    settings.check(tokenizer.vocab_size)
    seed = fresh_seed() if settings.seed is None else settings.seed
    seeds = [sequence_seed(seed, i) for i in range(settings.n)]
    decoder = decoder or Decoder(model)
    return [_finished(_Run(decoder, tokenizer, prompt, settings, seed)) for seed in seeds]


def generate_stream(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings, decoder: Decoder | None = None
) -> Iterator[str]:
    """Pieces of one continuation's text as they are decided: none splits a character, none is taken back.

    Together they are `Generation.text`. UserError as for `generate`, raised by the call itself.
    """
    run = _only_run(decoder or Decoder(model), tokenizer, prompt, settings)
    return (piece for piece, _ in run.steps() if piece)


def _only_run(decoder: Decoder, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings) -> _Run:
    settings.check(tokenizer.vocab_size)
    if settings.n != 1:
        raise UserError(f"n={settings.n} sequences do not fit into one text: call gptstar.generate_detailed")
    return _Run(decoder, tokenizer, prompt, settings, fresh_seed() if settings.seed is None else settings.seed)


def _finished(run: _Run) -> Generation:
    pieces, logprobs = [], []
    for piece, logprob in run.steps():
        pieces.append(piece)
        logprobs += logprob
    done = run.continuation
    assert done.finish_reason is not None
    return Generation(
        prompt=run.prompt.text,
        text="".join(pieces),
        tokens=done.tokens,
        finish_reason=done.finish_reason,
        stopped_by=done.stopped_by,
        seed=run.seed,
        logprobs=None if run.prompt.settings.logprobs is None else logprobs[: len(done.tokens)],
    )


class _Run:
    """One sequence, ready to be decoded."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings, seed: int
    ) -> None:
        decoder.check(tokenizer)
        self.decoder, self.model, self.seed = decoder, decoder.model, seed
        self.vocab_size, self.eot_id = tokenizer.vocab_size, tokenizer.eot_id
        self.prompt = Prompt(tokenizer, prompt, settings, self.model.longest)
        self.continuation = Continuation(tokenizer, self.prompt)

    @torch.inference_mode()
    def steps(self) -> Iterator[tuple[str, list[TokenLogprob]]]:
        """For each token chosen the text that is decided now, and its log-probability if that was asked for.

        Embeddings beyond the tokenizer's last token (a padded vocabulary) are never chosen.
        """
        prompt, settings, device = self.prompt, self.prompt.settings, self.model.device
        sampler = Sampler([settings], [self.seed], self.vocab_size, self.eot_id, device, [prompt.first])
        history = History.of([prompt.tokens], settings.max_new_tokens, device) if sampler.needs_history else None
        cache = self.decoder.new_cache(1, prompt.capacity)
        tokens, step = list(prompt.tokens), 0
        guesses: list[int] = []
        logits_TV = self.decoder.read(torch.tensor([tokens], device=device), cache)
        while self.continuation.finish_reason is None:
            for place, logits_BV in enumerate(logits_TV[:, : self.vocab_size].split(1)):
                token_B = sampler(logits_BV, torch.tensor([step], device=device), history)
                logprobs = [] if settings.logprobs is None else token_logprobs(logits_BV, token_B, settings.logprobs)
                token, step = int(token_B), step + 1
                right = self._judge(guesses, place, token)
                yield self.continuation.feed(token), logprobs
                if self.continuation.finish_reason is not None:
                    return
                tokens.append(token)
                if history is not None:
                    history.append(token_B)
                if not right:
                    break  # what follows a wrong guess means nothing
            cache.length = len(tokens) - 1  # what was guessed wrong is forgotten
            guesses = self._guess(tokens, step)
            logits_TV = self.decoder.extend([token, *guesses], cache) if guesses else self.decoder(token_B, cache)

    def _guess(self, tokens: list[int], step: int) -> list[int]:
        draft, settings = self.decoder.draft, self.prompt.settings
        if draft is None or step + 1 >= settings.max_new_tokens:
            return []
        # Layers with a window can go back over no more than they take at once.
        n = min(draft.n_draft, settings.max_new_tokens - step - 1, KeyValueCache.slack - 1)
        return draft.guess(tokens, step, n, settings, self.seed)

    def _judge(self, guesses: list[int], place: int, token: int) -> bool:
        """Whether there is a guess for this place and it is right."""
        draft = self.decoder.draft
        if draft is None or place == len(guesses):
            return False
        right = guesses[place] == token
        draft.proposed += 1
        draft.accepted += right
        return right
