"""Attention kernels: what they are told, the definition, and torch's fused one. More: `folded.py`, `flex.py`.

A kernel is made once a forward pass, for all layers with the same position and window, and turns queries, keys and
values into attention. Each says what it cannot do (`obstacle`); all equal `DenseAttention`. A dense bias of (H, T, S)
numbers is made by those kernels only that read one. `kernel_choice.py` picks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptstar.model.compiling import constant
from gptstar.model.config import ModelConfig
from gptstar.model.positions import NoPosition


@dataclass(frozen=True)
class Case:
    """What decides which kernels can be used; no tensors, so that it is known before a model is built.

    window: how many positions are seen, 0 where that is all n_key. documents: whether attention stays within them.
    whole: the queries are all the keys there are, without padding (no cache). compiled: in a graph of torch.compile.
    rows: one fp32 query in each row of a cache whose rows are not equally long.
    """

    config: ModelConfig
    scheme: NoPosition
    window: int
    device: str
    n_key: int
    documents: bool = False
    whole: bool = True
    gradients: bool = True
    compiled: bool = False
    rows: bool = False

    @property
    def trains_slopes(self) -> bool:
        """Whether a gradient is wanted for the slopes of a linear bias."""
        trained = any(parameter.requires_grad for parameter in self.scheme.parameters())
        return self.gradients and self.scheme.bias_kind == "linear" and trained


@dataclass(frozen=True)
class View:
    """What the queries of one forward pass see and how their scores are biased, in no kernel's own form yet.

    slot: where they stand among the n_key keys, (T,) where they are the last of them, (B, T) where rows differ. first:
    the first key that is still there, where a window has left others behind. padding_B: how many tokens at the left of
    each row are padding. document_BT: a number for each token's document. dtype: of queries, keys and values.
    """

    case: Case
    slot: Tensor
    dtype: torch.dtype
    first: int = 0
    padding_B: Tensor | None = None
    document_BT: Tensor | None = None

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self.case.config.attention_scale

    def slopes(self) -> Tensor | None:
        """The scheme's, (H,), in fp32 even for a bf16 model, or None where it has none."""
        return self.case.scheme.slopes(self.slot.device, torch.promote_types(self.dtype, torch.float32))

    def dense_bias(self) -> Tensor | None:
        """What is added to the scores, -inf where a key may not be seen, (B or 1, H or 1, T, S); None: plain causal.

        It holds the mask, because SDPA takes a bias or a causal flag. Padding sees itself, so that no row of scores is
        empty, and nothing else sees padding.
        """
        slot, padding_B, document_BT, window = self.slot, self.padding_B, self.document_BT, self.case.window
        key_S = torch.arange(self.first, self.case.n_key, device=slot.device)
        bias = self.case.scheme.score_bias(slot, key_S, self.dtype)
        if bias is None and not window and padding_B is None and document_BT is None and slot.ndim == 1:
            return None
        seen = visible(slot, key_S, window)
        if padding_B is not None:
            seen = seen & ((key_S >= padding_B[:, None, None]) | (key_S == slot[..., None]))
        if document_BT is not None:
            seen = seen & (document_BT[:, :, None] == document_BT[:, None, :])
        if bias is None:
            bias = torch.zeros((), device=slot.device, dtype=self.dtype)
        bias = torch.where(seen.unsqueeze(-3), bias, -torch.inf)
        return bias if bias.ndim == 4 else bias[None]


def visible(slot: Tensor, key_S: Tensor, window: int) -> Tensor:
    """(..., S) bool, True where keys that stand at key_S may be seen by queries that stand at `slot` (...).

    window: how many positions are seen, the query's own included (Beltagy et al., arXiv:2004.05150); 0: all.
    """
    seen = key_S <= slot[..., None]
    return seen & (key_S > slot[..., None] - window) if window else seen


@constant
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU: (9, 0) is Hopper. (0, 0) for what is none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


class Kernel:
    """Attention of queries over keys and values, the H query heads sharing K key/value heads in order."""

    def __init__(self, view: View) -> None:
        self.scale, self.softcap = view.scale, view.case.config.score_softcap

    @staticmethod
    def obstacle(case: Case) -> str | None:
        """Why the kernel cannot be used, to be read after "cannot be used ", or None."""
        return None

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        """(B, H, T, D)."""
        raise NotImplementedError


class DenseAttention(Kernel):
    """The definition, written out: every other kernel is tested against it."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.bias = view.dense_bias()

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        n_query, n_key, group = q_BHTD.shape[2], k_BKSD.shape[2], q_BHTD.shape[1] // k_BKSD.shape[1]
        k_BHSD, v_BHSD = k_BKSD.repeat_interleave(group, 1), v_BKSD.repeat_interleave(group, 1)
        scores = q_BHTD @ k_BHSD.transpose(-1, -2) * self.scale
        if self.softcap:
            scores = self.softcap * (scores / self.softcap).tanh()
        if self.bias is None:
            scores = scores.masked_fill(~_causal(n_query, n_key, scores.device), -torch.inf)
        else:
            scores = scores + self.bias
        return scores.softmax(-1) @ v_BHSD


class SDPAttention(Kernel):
    """torch's fused attention, which never writes the (T, S) probabilities to memory. It knows no soft-cap.

    On CUDA a dense bias rules out its fast kernels (FlashAttention takes none) and the skipping of
    what causality hides.
    """

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.bias = view.dense_bias()

    @staticmethod
    def obstacle(case: Case) -> str | None:
        return "with a soft-cap (model.score_softcap)" if case.config.score_softcap else None

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        n_query, n_key = q_BHTD.shape[2], k_BKSD.shape[2]
        grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
        square = n_query == n_key  # is_causal aligns to the top left, so it is right for square scores only
        if self.bias is not None:
            mask, causal = self.bias, False
        elif square or n_query == 1:
            mask, causal = None, square
        else:
            mask, causal = _causal(n_query, n_key, q_BHTD.device), False
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )


def _causal(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """What the last n_query of n_key tokens see."""
    key_S = torch.arange(n_key, device=device)
    return visible(key_S[n_key - n_query :], key_S, 0)
