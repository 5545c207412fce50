"""Beam search: the continuations that the model finds most likely as a whole.

Lowerre, "The HARPY speech recognition system", 1976; with a length penalty (Wu et al., arXiv:1609.08144, section 7, in
the simple form that transformers uses) and transformers' conditions for an end, so that the results are its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.continuation import Prompt
from gptstar.generation.decoding import Decoder
from gptstar.generation.penalties import History
from gptstar.generation.sampling import Sampler
from gptstar.generation.settings import SamplingSettings
from gptstar.model.transformer import GPT

EARLY_STOPPING = (True, False, "never")


@dataclass(frozen=True)
class BeamSettings:
    """How wide the search is and when it ends.

    n_beam          continuations followed at a time
    length_penalty  a finished one's score is its log-probability divided by its length, end included, to this power:
                    0 favours short ones, more favours longer ones
    early_stopping  when n_beam are finished: True ends at once; False when none of those followed is better by now;
                    "never" when none can become better, had it the longest length (with length_penalty > 0)
    """

    n_beam: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def check(self) -> None:
        """Raises UserError for what makes no sense."""
        if not (isinstance(self.n_beam, int) and self.n_beam >= 2):
            raise UserError(f"n_beam={self.n_beam} must be a whole number, 2 or more")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty} must be finite")
        if self.early_stopping not in EARLY_STOPPING:
            raise UserError(f"early_stopping={self.early_stopping!r} must be True, False or 'never'")


@dataclass(frozen=True)
class Beam:
    """A finished continuation: its tokens without the one that ended it, their text, the score it was ranked by."""

    tokens: list[int]
    text: str
    score: float


@torch.inference_mode()
def beam_search(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings, beams: BeamSettings
) -> list[Beam]:
    """The best `settings.n` continuations, best first.

    Of the settings the lengths, stop tokens, penalties, repeated n-grams and forbidden tokens count; penalties act on
    log-probabilities, as in transformers. UserError for settings out of range, for those that only sampling knows, for
    more sequences than beams, and for a length beyond learned positions.
    """
    check_beams(settings, beams, tokenizer.vocab_size)
    read = Prompt(tokenizer, prompt, settings, model.longest)
    found = _Search(model, tokenizer, read, beams).run()
    after = len(read.text)
    return [Beam(new, tokenizer.decode([*read.shown, *new])[after:], score) for score, new in found[: settings.n]]


def check_beams(settings: SamplingSettings, beams: BeamSettings, vocab_size: int | None = None) -> None:
    """Raises UserError for what makes no sense together, for a vocabulary of that size where it is known."""
    settings.check(vocab_size)
    beams.check()
    if settings.n > beams.n_beam:
        raise UserError(f"n={settings.n} sequences are more than n_beam={beams.n_beam} can find: raise n_beam")
    usual = SamplingSettings()
    for name in ("temperature", "top_k", "top_p", "min_p", "tau", "eta", "stop", "forced_tokens", "logprobs"):
        if getattr(settings, name) != getattr(usual, name):
            raise UserError(f"{name}={getattr(settings, name)} has no effect in beam search: leave it out")


class _Search:
    """The state of one search: what is followed, and what is finished."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, prompt: Prompt, beams: BeamSettings) -> None:
        self.decoder, self.settings, self.beams = Decoder(model), prompt.settings, beams
        self.decoder.check(tokenizer)
        self.vocab_size = tokenizer.vocab_size
        self.ends = {tokenizer.eot_id, *self.settings.stop_tokens}
        n, device = beams.n_beam, model.device
        self.sampler = Sampler(
            [self.settings] * n, [0] * n, self.vocab_size, tokenizer.eot_id, device, [prompt.first] * n
        )
        self.history = History.of([prompt.tokens] * n, self.settings.max_new_tokens, device)
        self.prompt = torch.tensor([prompt.tokens], device=device)
        self.cache = self.decoder.new_cache(1, prompt.capacity)
        # All beams begin with the same prompt: only the first may lead on.
        self.score_N = torch.full((n,), -1e9, device=device)
        self.score_N[0] = 0.0
        self.written: list[list[int]] = [[] for _ in range(n)]
        self.finished: list[tuple[float, list[int]]] = []  # best first

    def run(self) -> list[tuple[float, list[int]]]:
        """Scores and tokens of the finished continuations, best first."""
        if not self.settings.max_new_tokens:
            return [(0.0, [])] * self.beams.n_beam
        logits_NV = self.decoder.read(self.prompt, self.cache)
        rows_N = torch.zeros(self.beams.n_beam, dtype=torch.int64, device=self.prompt.device)
        self.cache.reorder(rows_N)
        logits_NV = logits_NV[rows_N]
        for length in range(1, self.settings.max_new_tokens + 1):
            rows_N, token_N = self._advance(logits_NV[:, : self.vocab_size], length)
            if self._is_over(length):
                break
            self.cache.reorder(rows_N)
            self.history.reorder(rows_N)
            self.history.append(token_N)
            logits_NV = self.decoder(token_N, self.cache)
        return self.finished

    def _advance(self, logits_NV: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Follows the best continuations one token further: which beam each comes from, and its token."""
        n = self.beams.n_beam
        step_N = torch.full((n,), length - 1, device=logits_NV.device)
        scores_NV = self.sampler.processed(logits_NV.float().log_softmax(-1), step_N, self.history)
        scores_NV = scores_NV + self.score_N[:, None]
        # So many that n of them go on, even if all others end here.
        n_candidate = min((1 + len(self.ends)) * n, scores_NV.numel())
        best = scores_NV.flatten().topk(n_candidate)
        candidates = [
            (score, *divmod(index, self.vocab_size))
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        is_last = length == self.settings.max_new_tokens
        for score, beam, token in candidates[:n]:
            if token in self.ends or is_last:
                new = self.written[beam] + ([] if token in self.ends else [token])
                self.finished.append((score / length**self.beams.length_penalty, new))
        self.finished = sorted(self.finished, key=lambda f: -f[0])[:n]
        going = [c for c in candidates if c[2] not in self.ends][:n]
        self.written = [[*self.written[beam], token] for _, beam, token in going]
        self.score_N = self.score_N.new_tensor([score for score, _, _ in going])
        return step_N.new_tensor([beam for _, beam, _ in going]), step_N.new_tensor([token for _, _, token in going])

    def _is_over(self, length: int) -> bool:
        """Whether nothing that is followed could be among the best."""
        if len(self.finished) < self.beams.n_beam:
            return False
        if self.beams.early_stopping is True:
            return True
        penalty = self.beams.length_penalty
        if self.beams.early_stopping == "never" and penalty > 0:
            length = self.settings.max_new_tokens
        return float(self.score_N[0]) / length**penalty <= self.finished[-1][0]
