"""FlexAttention: Triton or FlashAttention-4 code made for a bias and a mask."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from gptstar.model.compiling import constant
from gptstar.model.kernels import Case, Kernel, View, compute_capability


def _tiles(m: int, n: int, stages: int, warps: int, *backward: int) -> dict[str, int]:
    """FlexAttention's options: tiles of m queries and n keys; for the backward pass m1, n1, m2, n2, stages, warps."""
    options = {"fwd_BLOCK_M": m, "fwd_BLOCK_N": n, "fwd_num_stages": stages, "fwd_num_warps": warps}
    names = ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps")
    return options | {f"bwd_{name}": value for name, value in zip(names, backward, strict=True)}


# For 16-bit numbers on Hopper, by head size. 64, 128 and the forward pass of 256 are what torch 2.13 takes for H100. It
# has no entry for 192, whose tiles hold 256 channels (Triton rounds up): here they fill 192 of 227 KiB shared memory.
# The backward pass beyond 128 gets 8 warps, because with torch's 4 the two accumulators of 64 x 256 alone fill all
# registers. Calculated, not measured: `benchmarks/attention.py` races them against torch's own.
HOPPER_TILES = {
    64: _tiles(128, 128, 3, 4, 64, 128, 128, 64, 3, 8),
    128: _tiles(128, 64, 3, 8, 64, 128, 128, 64, 3, 8),
    192: _tiles(128, 64, 2, 8, 64, 64, 64, 64, 2, 8),
    256: _tiles(64, 32, 3, 4, 64, 64, 64, 64, 2, 8),
}


class FlexAttention(Kernel):
    """Triton code made for this bias and mask (Dong et al., arXiv:2412.05496); blocks that nothing sees are skipped.

    On a CPU it has a forward pass only, and here runs uncompiled there: a check, not a fast kernel.
    """

    backend = "TRITON"

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.dtype, self.slopes = view.dtype, view.slopes()
        self.block_mask = _block_mask(view)
        self.options: dict[str, int | str | bool] | None = None  # a CPU takes none
        if view.slot.device.type == "cuda":
            self.options = {"BACKEND": self.backend, **self.tiles(view)}

    @staticmethod
    def tiles(view: View) -> dict[str, int | str | bool]:
        """Options for the Triton kernels; every row sees itself at least."""
        half = view.dtype in (torch.bfloat16, torch.float16)
        hopper = half and compute_capability(view.slot.device) == (9, 0)
        return {"ROWS_GUARANTEED_SAFE": True, **(HOPPER_TILES.get(view.case.config.head_size, {}) if hopper else {})}

    @staticmethod
    def obstacle(case: Case) -> str | None:
        if case.device not in ("cpu", "cuda"):
            return f"on {case.device}"
        if case.device == "cpu" and case.gradients:
            return "to train on a CPU: FlexAttention has no backward pass there"
        if case.scheme.bias_kind == "table":
            return "with a bias that is not linear in the distance (model.position)"
        if case.device == "cuda" and not 16 <= case.config.head_size <= 256:
            return "with fewer than 16 or more than 256 channels a head (model.d_head)"
        return None if case.whole else "with a cache or padding"

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention  # loads torch's compiler: slow before 2.13

        slopes_H, cap = self.slopes, self.softcap

        def biased(score: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if cap:
                score = cap * torch.tanh(score / cap)
            return score if slopes_H is None else score + slopes_H[head] * (j - i)

        uncompiled = q_BHTD.device.type == "cpu" or torch.compiler.is_compiling()  # a graph takes it in as it is
        attend = flex_attention if uncompiled else _compiled_flex_attention()
        q, k, v = (x.to(self.dtype) for x in (q_BHTD, k_BKSD, v_BKSD))  # autocast leaves normalised queries in fp32
        return attend(
            q,
            k,
            v,
            score_mod=biased if cap or slopes_H is not None else None,
            block_mask=self.block_mask,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            kernel_options=self.options,
        )


def _block_mask(view: View):
    """Which blocks of 128 x 128 scores there are, and what is seen within them: a BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    window, n_token = view.case.window, view.case.n_key
    document_BT = None if view.document_BT is None else view.document_BT.int()

    def seen(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        visible = j <= i
        if window:
            visible = visible & (j > i - window)
        if document_BT is not None:
            visible = visible & (document_BT[row, i] == document_BT[row, j])
        return visible

    n_row = None if document_BT is None else document_BT.shape[0]
    return create_block_mask(seen, n_row, None, n_token, n_token, device=str(view.slot.device))


@cache
def _compiled_flex_attention():
    """For models that run uncompiled. Lengths beyond the first share a kernel: evaluation has many."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class FlexFlashAttention(FlexAttention):
    """FlexAttention's bias and mask in FlashAttention-4's kernels, where its package (flash-attn-4) is installed."""

    backend = "FLASH"

    @staticmethod
    def tiles(view: View) -> dict[str, int | str | bool]:
        return {}  # FlashAttention has its own

    @staticmethod
    def obstacle(case: Case) -> str | None:
        if case.device != "cuda":
            return f"on {case.device}"
        if not _flash_is_installed():
            return "without the package flash-attn-4"
        if case.trains_slopes:
            return "to train the slopes themselves (model.position)"
        return FlexAttention.obstacle(case)


@constant
def _flash_is_installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:
        return False
