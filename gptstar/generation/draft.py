"""Guesses at the next tokens, for speculative decoding (`speculation.py`): what a guess is, and the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from gptstar.errors import UserError
from gptstar.generation.settings import SamplingSettings

N_DRAFT = 6  # tokens guessed at a time


class Draft(ABC):
    """Guesses. `proposed` counts those that the model judged, up to the first wrong one, `accepted` the right ones.

    n_draft: how many tokens are guessed at a time, at most.
    """

    def __init__(self, n_draft: int = N_DRAFT) -> None:
        if n_draft < 1:
            raise UserError(f"n_draft={n_draft} must be at least 1")
        self.n_draft, self.proposed, self.accepted = n_draft, 0, 0

    @abstractmethod
    def guess(self, tokens: Sequence[int], step: int, n: int, settings: SamplingSettings, seed: int) -> list[int]:
        """Up to n tokens after `tokens`, the prompt and what is written; the first of them is step `step`."""

    @property
    def acceptance(self) -> float:
        """The share of judged guesses that were right."""
        return self.accepted / max(1, self.proposed)


class PromptLookup(Draft):
    """What followed the last time the same few tokens were there (Saxena, "Prompt lookup decoding", 2023).

    n_gram: how many tokens have to be the same; where no place is found, one less is tried, down to one.
    """

    def __init__(self, n_draft: int = N_DRAFT, n_gram: int = 3) -> None:
        super().__init__(n_draft)
        self.n_gram = n_gram

    def guess(self, tokens: Sequence[int], step: int, n: int, settings: SamplingSettings, seed: int) -> list[int]:
        for size in range(min(self.n_gram, len(tokens) - 1), 0, -1):
            last = list(tokens[-size:])
            for start in range(len(tokens) - size - 1, -1, -1):
                if list(tokens[start : start + size]) == last:
                    return list(tokens[start + size : start + size + n])
        return []
