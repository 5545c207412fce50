"""Attention of one query a row on a CPU, where rows have different numbers of keys: decoding many sequences together.

The operator is in row_attention.cpp. What torch has for it reads as many keys of each row as the longest one has, and a
mask beside them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, library

from gptstar.cpu.native import load_operators
from gptstar.model.compiling import constant
from gptstar.model.kernels import Case, Kernel, View


class RowAttention(Kernel):
    """Reads of each row what the row has: no mask, no bias in memory."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.slot_B, self.slopes, self.window = view.slot[:, 0].contiguous(), view.slopes(), view.case.window

    @staticmethod
    def obstacle(case: Case) -> str | None:
        if not case.rows or case.device != "cpu":
            return "but for one fp32 query in each row of a cache on a CPU"
        if case.gradients:
            return "where gradients are wanted"
        if case.scheme.bias_kind == "table":
            return "with positions whose bias is a table"
        return None if available() else "without a C++ compiler"

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        # The channels of a head have to lie side by side, as they do unless a rotation has gathered them otherwise.
        q_BHTD = q_BHTD if q_BHTD.stride(-1) == 1 else q_BHTD.contiguous()
        return torch.ops.gptstar.row_attention(
            q_BHTD, k_BKSD, v_BKSD, self.slot_B, self.slopes, self.scale, self.softcap, self.window
        )


@constant
def available() -> bool:
    """Whether this machine could compile it."""
    return _load()


@cache
def _load() -> bool:
    loaded = load_operators(Path(__file__).with_name("row_attention.cpp"))
    if loaded:
        library.register_fake("gptstar::row_attention", _shape)
    return loaded


def _shape(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)
