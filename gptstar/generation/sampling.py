"""Choosing the next token of many rows together, each with settings of its own.

The order is transformers': repetition penalty, then OpenAI's frequency and presence penalties (unknown there, here as
in vLLM), repeated n-grams, end of text before the minimum length, forbidden tokens, forced tokens; then, unless the
row is greedy, temperature, top-k, top-p, min-p, typical, eta, each acting on what those before it left.

What is left is sampled by the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv:1411.0030, section 2): the most
likely token after adding noise that is a pure function of (seed, step, token). Inverting the cumulative distribution
would need one random number instead of V, but there rounding moves every boundary at once: noise of 1e-3 in the logits
of a Zipf distribution over 50,257 tokens changes 21% of its choices, and 0.1% here. Logits of a batch
differ from those of a row alone by such rounding (some 1e-6), and a request should give its text in any batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gptstar.generation.filters import (
    keep_eta,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    scale_by_temperature,
)
from gptstar.generation.penalties import (
    History,
    forbid,
    forbid_repeated_ngrams,
    force,
    penalize_frequency,
    penalize_presence,
    penalize_repetition,
)
from gptstar.generation.randomness import gumbel_noise
from gptstar.generation.settings import SamplingSettings

GREEDY_BELOW = 1e-5  # divided by less, logits overflow, and no token but the likeliest has a chance


class Sampler:
    """Chooses tokens for rows that each have their settings and seed; a row's choice does not depend on the others.

    first: for each row the only tokens that its first choice is made from, or None for all.
    Settings are taken as they are: `SamplingSettings.check` is the caller's to call. What no row asks for costs
    nothing, and nothing makes the host wait for a GPU.
    """

    def __init__(
        self,
        settings: Sequence[SamplingSettings],
        seeds: Sequence[int],
        vocab_size: int,
        eot_id: int,
        device: torch.device | str = "cpu",
        first: Sequence[Sequence[int] | None] = (),
    ) -> None:
        self.settings, self.vocab_size, self.eot_id = settings, vocab_size, eot_id
        self.device = torch.device(device)
        self.seed_B = torch.tensor(seeds, dtype=torch.int64, device=device)

        self.repetition_B = self._column("repetition_penalty", 1.0)
        self.frequency_B = self._column("frequency_penalty", 0.0)
        self.presence_B = self._column("presence_penalty", 0.0)
        self.ngram_B = self._column("no_repeat_ngram", 0)
        self.needs_history = any(
            x is not None for x in (self.repetition_B, self.frequency_B, self.presence_B, self.ngram_B)
        )

        self.min_new_B = self._column("min_new_tokens", 0)
        self.ends_BV = None
        if self.min_new_B is not None:
            self.ends_BV = self._mask([[eot_id, *s.stop_tokens] for s in settings])
        self.forbidden_BV = self._mask([s.forbidden_tokens for s in settings])
        self.first_BV = self._mask([allowed or () for allowed in first])
        self.forced_BF = self._forced()

        greedy = [s.temperature < GREEDY_BELOW for s in settings]
        self.greedy_B, self.all_greedy = torch.tensor(greedy, device=device), all(greedy)
        self.temperature_B = self._column("temperature", 1.0)
        self.top_k_B = self._column("top_k", 0)
        self.top_p_B = self._column("top_p", 1.0)
        self.min_p_B = self._column("min_p", 0.0)
        self.tau_B = self._column("tau", 1.0)
        self.eta_B = self._column("eta", 0.0)

    def __call__(self, logits_BV: Tensor, step_B: Tensor, history: History | None = None) -> Tensor:
        """The next token of each row, int64 (B,).

        step_B: how many tokens each row has written. history: read if `needs_history`. A row in which nothing may be
        chosen (every token forbidden) gets end of text.
        """
        logits_BV = self.processed(logits_BV, step_B, history)
        best = logits_BV.max(-1)
        chosen_B = best.indices
        if not self.all_greedy:
            noise_BV = gumbel_noise(self.seed_B, step_B, self.vocab_size)
            chosen_B = torch.where(self.greedy_B, chosen_B, noise_BV.add_(self.filtered(logits_BV)).argmax(-1))
        return chosen_B.masked_fill(best.values == -torch.inf, self.eot_id)

    def processed(self, logits_BV: Tensor, step_B: Tensor, history: History | None = None) -> Tensor:
        """Logits after penalties and constraints, fp32: what a greedy row takes the largest of."""
        logits_BV = logits_BV.float()
        if self.needs_history:
            assert history is not None
            logits_BV = self._penalized(logits_BV, history)
        if self.min_new_B is not None and self.ends_BV is not None:
            logits_BV = forbid(logits_BV, self.ends_BV & (step_B < self.min_new_B)[:, None])
        if self.forbidden_BV is not None:
            logits_BV = forbid(logits_BV, self.forbidden_BV)
        if self.first_BV is not None:
            restricted_B1 = (step_B == 0)[:, None] & self.first_BV.any(-1, keepdim=True)
            logits_BV = forbid(logits_BV, ~self.first_BV & restricted_B1)
        if self.forced_BF is not None:
            last = self.forced_BF.shape[1] - 1  # the last column forces nothing
            logits_BV = force(logits_BV, self.forced_BF.gather(1, step_B.clamp(max=last)[:, None])[:, 0])
        return logits_BV

    def _penalized(self, logits_BV: Tensor, history: History) -> Tensor:
        if self.repetition_B is not None:
            logits_BV = penalize_repetition(logits_BV, history.counts(self.vocab_size), self.repetition_B)
        if self.frequency_B is not None or self.presence_B is not None:
            count_BV = history.counts(self.vocab_size, written_only=True)
            if self.frequency_B is not None:
                logits_BV = penalize_frequency(logits_BV, count_BV, self.frequency_B)
            if self.presence_B is not None:
                logits_BV = penalize_presence(logits_BV, count_BV, self.presence_B)
        if self.ngram_B is not None:
            sizes = [s.no_repeat_ngram for s in self.settings]
            logits_BV = forbid_repeated_ngrams(logits_BV, history, self.ngram_B, sizes)
        return logits_BV

    def filtered(self, logits_BV: Tensor) -> Tensor:
        """Processed logits after temperature and filters: what a row that is not greedy samples from."""
        if self.temperature_B is not None:
            logits_BV = scale_by_temperature(logits_BV, self.temperature_B.masked_fill(self.greedy_B, 1.0))
        if self.top_k_B is not None:
            logits_BV = keep_top_k(logits_BV, self.top_k_B, max(s.top_k or 0 for s in self.settings))
        if self.top_p_B is not None:
            logits_BV = keep_top_p(logits_BV, self.top_p_B)
        if self.min_p_B is not None:
            logits_BV = keep_min_p(logits_BV, self.min_p_B)
        if self.tau_B is not None:
            logits_BV = keep_typical(logits_BV, self.tau_B)
        if self.eta_B is not None:
            logits_BV = keep_eta(logits_BV, self.eta_B)
        return logits_BV

    def _column(self, name: str, neutral: float) -> Tensor | None:
        """One setting of all rows, (B,), `neutral` for None; None where it is neutral in every row."""
        values = [neutral if getattr(s, name) is None else getattr(s, name) for s in self.settings]
        if all(value == neutral for value in values):
            return None
        return torch.tensor(values, dtype=torch.int64 if isinstance(neutral, int) else torch.float64).to(self.device)

    def _mask(self, rows: Sequence[Iterable[int]]) -> Tensor | None:
        """True at the tokens of each row, (B, V); None where there are none."""
        flat = [(row, token) for row, tokens in enumerate(rows) for token in tokens]
        if not flat:
            return None
        mask_BV = torch.zeros(len(rows), self.vocab_size, dtype=torch.bool)
        mask_BV[tuple(torch.tensor(flat).T)] = True
        return mask_BV.to(self.device)

    def _forced(self) -> Tensor | None:
        """The token each row must choose at each step, (B, F + 1); -1: any."""
        longest = max(len(s.forced_tokens) for s in self.settings)
        if not longest:
            return None
        rows = [[*s.forced_tokens, *[-1] * (longest + 1 - len(s.forced_tokens))] for s in self.settings]
        return torch.tensor(rows, device=self.device)
