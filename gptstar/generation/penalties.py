"""What a row has read and written so far, and what follows from it: logits (B, V) -> logits (B, V).

As in `filters`, each parameter is a number or a tensor (B,), and a row gets exactly what it would get alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.generation.filters import per_row


@dataclass(frozen=True)
class History:
    """The tokens of each row, its prompt first, filled from the left.

    tokens_BS: int64, as long as a row may get; what lies beyond length_B means nothing.
    prompt_B, length_B: how many tokens are prompt, and how many there are.
    """

    tokens_BS: Tensor
    prompt_B: Tensor
    length_B: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], n_new: int, device: torch.device | str = "cpu") -> History:
        """Rows that start with these prompts and have room for n_new tokens more."""
        capacity = max(map(len, prompts)) + n_new
        rows = [[*prompt, *[0] * (capacity - len(prompt))] for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        return cls(torch.tensor(rows, dtype=torch.int64, device=device), lengths, lengths.clone())

    def append(self, token_B: Tensor) -> None:
        """Adds a token to every row, in place."""
        self.tokens_BS.scatter_(1, self.length_B[:, None], token_B[:, None])
        self.length_B.add_(1)

    def reorder(self, rows_B: Tensor) -> None:
        """Makes row i what row rows_B[i] was, in place."""
        for tensor in (self.tokens_BS, self.prompt_B, self.length_B):
            tensor.copy_(tensor[rows_B])

    def counts(self, vocab_size: int, written_only: bool = False) -> Tensor:
        """How often each row holds each token, int64 (B, V); `written_only` leaves the prompt out."""
        slot_S = torch.arange(self.tokens_BS.shape[1], device=self.tokens_BS.device)
        counted = slot_S < self.length_B[:, None]
        if written_only:
            counted &= slot_S >= self.prompt_B[:, None]
        zeros = self.tokens_BS.new_zeros(len(self.tokens_BS), vocab_size)
        return zeros.scatter_add(1, self.tokens_BS * counted, counted.long())


def penalize_repetition(logits_BV: Tensor, count_BV: Tensor, penalty: float | Tensor) -> Tensor:
    """Divides the positive and multiplies the negative logits of tokens that occurred (CTRL, Keskar et al.,
    arXiv:1909.05858, section 4.1, with the negative logits treated as is usual since). 1 changes nothing.
    """
    penalty_B1 = per_row(penalty, logits_BV)
    penalized = torch.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
    return torch.where(count_BV > 0, penalized, logits_BV)


def penalize_presence(logits_BV: Tensor, count_BV: Tensor, penalty: float | Tensor) -> Tensor:
    """Subtracts the penalty from tokens that were written, once (OpenAI's API reference). 0 changes nothing."""
    return torch.where(count_BV > 0, logits_BV - per_row(penalty, logits_BV), logits_BV)


def penalize_frequency(logits_BV: Tensor, count_BV: Tensor, penalty: float | Tensor) -> Tensor:
    """Subtracts the penalty for every time a token was written (OpenAI's API reference). 0 changes nothing."""
    return torch.where(count_BV > 0, logits_BV - count_BV * per_row(penalty, logits_BV), logits_BV)


def forbid_repeated_ngrams(
    logits_BV: Tensor, history: History, n: int | Tensor, sizes: Collection[int] | None = None
) -> Tensor:
    """Forbids each token that would end an n-gram the row holds already (Paulus et al., arXiv:1705.04304, section 2.5).

    0 forbids nothing. sizes: the values in a tensor n, where they are known; otherwise the host waits for them.
    """
    n_B = torch.as_tensor(n, device=logits_BV.device).expand(len(logits_BV))
    if sizes is None:
        sizes = set(n_B.tolist())
    for size in sorted(set(sizes) - {0}):
        repeated = _ends_of_known_ngrams(history, size, logits_BV.shape[-1])
        logits_BV = logits_BV.masked_fill(repeated & (n_B == size)[:, None], -torch.inf)
    return logits_BV


def _ends_of_known_ngrams(history: History, n: int, vocab_size: int) -> Tensor:
    """Which tokens would complete an n-gram that the row holds: bool (B, V)."""
    tokens_BS, length_B = history.tokens_BS, history.length_B
    n_row, capacity = tokens_BS.shape
    banned = torch.zeros(n_row, vocab_size, dtype=torch.bool, device=tokens_BS.device)
    if capacity < n:
        return banned
    last = length_B[:, None] - (n - 1) + torch.arange(n - 1, device=tokens_BS.device)
    begin_BN = tokens_BS.gather(1, last.clamp(min=0))
    window_BWN = tokens_BS.unfold(1, n, 1)
    known = torch.arange(n - 1, capacity, device=tokens_BS.device) < length_B[:, None]
    matching = known & (window_BWN[..., :-1] == begin_BN[:, None]).all(-1)
    # Counts, not flags: where several windows end in one token, scattered flags would overwrite one another.
    ends = torch.zeros_like(banned, dtype=torch.int64)
    return ends.scatter_add_(1, window_BWN[..., -1] * matching, matching.long()) > 0


def forbid(logits_BV: Tensor, forbidden_BV: Tensor) -> Tensor:
    """-inf where `forbidden`, bool (B or 1, V), is true."""
    return logits_BV.masked_fill(forbidden_BV, -torch.inf)


def force(logits_BV: Tensor, token_B: Tensor) -> Tensor:
    """Leaves only token_B[i] in row i, at logit 0 whatever it was; a negative number leaves the row as it is."""
    only = torch.full_like(logits_BV, -torch.inf).scatter_(1, token_B.clamp(min=0)[:, None], 0)
    return torch.where(token_B[:, None] >= 0, only, logits_BV)
