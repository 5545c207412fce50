"""Speculative decoding: cheap guesses at the next tokens, checked by the model in one pass (Leviathan et al.,
arXiv:2211.17192; Chen et al., arXiv:2302.01318).

The papers accept a guess at random, so that the distribution is right and the text another one. Here the model's own
choice is a function of its logits, the seed and the step (Gumbel noise from a counter, `randomness.py`), so a guess is
accepted where it is that choice, and the text is the one without speculation. Guesses at random are made with the same
noise: two distributions that are near then choose alike nearly always (Daliri et al., arXiv:2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.decoding import Decoder
from gptstar.generation.draft import N_DRAFT, Draft
from gptstar.generation.penalties import History
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings


class DraftModel(Draft):
    """A smaller model with the same tokenizer, which writes ahead with the same settings and the same noise."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, n_draft: int = N_DRAFT) -> None:
        super().__init__(n_draft)
        decoder.check(tokenizer)
        self.decoder, self.tokenizer = decoder, tokenizer
        self.read: list[int] = []  # the tokens that the cache holds
        self.cache = decoder.new_cache(1, 0)

    def guess(self, tokens: Sequence[int], step: int, n: int, settings: SamplingSettings, seed: int) -> list[int]:
        longest, device = self.decoder.model.longest, self.decoder.model.device
        if longest is not None:
            n = min(n, longest - len(tokens))
        if n < 1:
            return []
        self._make_room(len(tokens) + n)
        sampler = Sampler([settings], [seed], self.tokenizer.vocab_size, self.tokenizer.eot_id, device)
        history = None
        if sampler.needs_history:
            history = History.of([list(tokens)], n, device)
            history = History(history.tokens_BS, history.length_B - step, history.length_B)
        self._forget(tokens)
        new = list(tokens[len(self.read) :])
        logits_BV = self.decoder.read(torch.tensor([new], device=device), self.cache)
        self.read += new
        guesses: list[int] = []
        for place in range(n):
            step_B = torch.tensor([step + place], device=device)
            token_B = sampler(logits_BV[:, : self.tokenizer.vocab_size], step_B, history)
            guesses.append(int(token_B))
            if len(guesses) == n or guesses[-1] == self.tokenizer.eot_id:
                break
            if history is not None:
                history.append(token_B)
            logits_BV = self.decoder(token_B, self.cache)
            self.read.append(guesses[-1])
        return guesses

    def _forget(self, tokens: Sequence[int]) -> None:
        """Goes back to what the cache has in common with a sequence, of which at least one token is to be read."""
        same = 0
        while same < min(len(self.read), len(tokens) - 1) and self.read[same] == tokens[same]:
            same += 1
        if not self.cache.can_go_back(same):
            self._start_over()
            same = 0
        self.read = self.read[:same]
        self.cache.length = same

    def _start_over(self) -> None:
        self.cache = self.decoder.new_cache(1, self.cache.capacity)

    def _make_room(self, n_token: int) -> None:
        if n_token > self.cache.capacity:
            capacity = 2 * n_token
            if self.decoder.model.longest is not None:
                capacity = min(capacity, self.decoder.model.longest)
            self.cache, self.read = self.decoder.new_cache(1, capacity), []


def same_tokenizer(a: Tokenizer, b: Tokenizer) -> None:
    """Raises UserError for two tokenizers that differ: guesses of one model mean nothing to the other."""
    if a.fingerprint() != b.fingerprint():
        raise UserError(
            f"the draft model's tokenizer ({b.vocab_size} tokens) is not the model's ({a.vocab_size} tokens): "
            "choose a draft model that was trained with the same one"
        )
