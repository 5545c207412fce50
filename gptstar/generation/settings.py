"""What a request may ask of the sampler, and which wishes make no sense."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gptstar.errors import UserError

WHOLE = (
    ("max_new_tokens", 0, ""),
    ("min_new_tokens", 0, ""),
    ("top_k", 1, ", or null for no limit"),
    ("no_repeat_ngram", 0, " (0: n-grams may repeat)"),
    ("max_prompt_tokens", 1, ", or null for no such limit"),
    ("n", 1, ""),
    ("logprobs", 0, ", or null for none"),
)
NUMBERS = (
    *("temperature", "top_p", "min_p", "tau", "eta"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
OPTIONAL = ("top_k", "max_prompt_tokens", "logprobs", "top_p", "min_p", "tau", "eta")  # null leaves them out
POSITIVE_FRACTIONS = ("top_p", "tau")
FRACTIONS_BELOW_ONE = ("min_p", "eta")


@dataclass
class SamplingSettings:
    """How a prompt is continued. None leaves a filter out; `gptstar.generation.sampling` says in which order they act.

    max_new_tokens      tokens after the prompt, at most
    min_new_tokens      end of text and stop tokens are forbidden until so many tokens are chosen
    temperature         logits are divided by it; 0, or less than 1e-5, is greedy
    top_k               only the k most likely tokens
    top_p               only the most likely tokens that together reach this probability (nucleus)
    min_p               only tokens at least so likely as this share of the most likely one's probability
    tau                 only the most typical tokens that together reach this probability
    eta                 only tokens likelier than a cut-off that falls with the entropy; this is its epsilon
    repetition_penalty  divides positive and multiplies negative logits of tokens that were read or written; 1: none
    presence_penalty    subtracted from the logit of every token that was written
    frequency_penalty   subtracted from it once for every time it was written
    no_repeat_ngram     no n tokens in a row, prompt included, come twice; 0: they may
    forbidden_tokens    never chosen
    forced_tokens       the continuation begins with these, whatever else is asked
    stop                text that ends the continuation; neither it nor what follows is given out
    stop_tokens         tokens that end the continuation as end of text does
    truncate            a prompt with more tokens than there is room for loses its beginning; False: it is refused
    max_prompt_tokens   a prompt with more tokens loses its beginning, whatever room there is; None: no such limit
    n                   sequences per prompt
    seed                makes the choice repeatable; sequence i > 0 has a seed of its own; None draws one
    logprobs            how many of the likeliest tokens are reported beside each chosen one; None: nothing is
    """

    max_new_tokens: int = 100
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    tau: float | None = None
    eta: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    forbidden_tokens: list[int] = field(default_factory=list)
    forced_tokens: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    stop_tokens: list[int] = field(default_factory=list)
    truncate: bool = False
    max_prompt_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None

    def check(self, vocab_size: int | None = None) -> None:
        """Raises UserError for the first setting that makes no sense; with vocab_size for tokens beyond it too."""
        for name in NUMBERS:
            value = getattr(self, name)
            if not _number(value) and (value is not None or name not in OPTIONAL):
                raise UserError(f"{name}={str(value)[:40]} must be a number")
        if not isinstance(self.truncate, bool):
            raise UserError(f"truncate={self.truncate!r} must be true or false")
        for name, least, otherwise in WHOLE:
            value = getattr(self, name)
            if (value is not None or name not in OPTIONAL) and not (_whole(value) and least <= value < 2**63):
                shown = str(value)[:40] if not _whole(value) or abs(value) < 2**70 else "a number of more than 64 bits"
                raise UserError(f"{name}={shown} must be a whole number, {least} or more{otherwise}")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(f"min_new_tokens={self.min_new_tokens} exceeds max_new_tokens={self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or more, and finite")
        for name in POSITIVE_FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name}={value} must lie in (0, 1], or be null for no limit")
        for name in FRACTIONS_BELOW_ONE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} must lie in [0, 1), or be null for no limit")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be more than 0 and finite; 1 is none")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)} must be finite; 0 is none")
        if self.seed is not None and not (_whole(self.seed) and -(2**63) <= self.seed < 2**63):
            raise UserError(f"seed={self.seed} must be a whole number of 64 bits, or null for a new one")
        if not isinstance(self.stop, list) or not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop={self.stop!r} must be a list of texts that are not empty")
        for name in ("forbidden_tokens", "forced_tokens", "stop_tokens"):
            self._check_tokens(name, getattr(self, name), vocab_size)

    def _check_tokens(self, name: str, tokens: Iterable[int], vocab_size: int | None) -> None:
        if not isinstance(tokens, list):
            raise UserError(f"{name}={tokens!r} must be a list of token numbers")
        for token in tokens:
            if not _whole(token) or token < 0:
                raise UserError(f"{name}: {token!r} is no token number")
            if vocab_size is not None and token >= vocab_size:
                raise UserError(f"{name}: {token} is not in the vocabulary of {vocab_size} tokens")


def _number(value: object) -> bool:
    """Whether it is one that a float holds; infinite ones are refused where they make no sense."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(float(value))
    except OverflowError:
        return False


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
