"""ALiBi folded into queries and keys, for fused kernels that know no bias."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptstar.model.kernels import Case, Kernel, View, compute_capability

STEP = 128  # positions are STEP * a + b
N_FOLDED = 4  # channels of queries and keys that hold the bias
FOLDED_LONGEST = 2 * 256 * STEP  # bf16 holds whole numbers up to 256: -256 <= a < 256


class FoldedAttention(Kernel):
    """A bias of slope * (j - i) written into channels of queries and keys, so that SDPA is plain causal attention.

    Softmax is blind to what a whole row shares, so slope * j is enough, and j is counted from the middle, which halves
    the numbers. One channel would round j to 8 bits in bf16. Here j = 128 a + b, and keys hold the whole numbers
    [a, b, a, b], queries [128 h, h, 128 l, l] with slope / scale = h + l, h and l in bf16: products and factors of 128
    are exact, the bias stays linear in j, and the slope is right to 2^-17. It is not for training the slopes: their
    gradient is a small sum of terms as large as j, each rounded to bf16, and was 13% to 43% wrong at 150 and 1024
    tokens (norm of the difference to float64; SDPA with a bias: below 1%).
    """

    allow_cudnn = True

    def __init__(self, view: View) -> None:
        super().__init__(view)
        slopes_H = view.slopes()
        self.bias: tuple[Tensor, Tensor] | None = None
        if slopes_H is None:
            return
        size, device = view.case.config.head_size, view.slot.device
        half = view.dtype in (torch.bfloat16, torch.float16)
        fit = half and compute_capability(device) >= (9, 0) and torch.backends.cuda.cudnn_sdp_enabled()
        self.width, self.value_width = folded_widths(size, fit and self.allow_cudnn)
        # Beyond 128 channels cuDNN has no backward pass for equal widths, and on Hopper SDPA would try it first.
        unfit = not self.allow_cudnn or self.width == self.value_width > 128
        self.avoid_cudnn = device.type == "cuda" and unfit
        query_HE, key_SE = fold(slopes_H / self.scale, view.case.n_key)
        rest = (0, self.width - size - N_FOLDED)
        self.bias = F.pad(query_HE, rest).to(view.dtype)[None, :, None], F.pad(key_SE, rest).to(view.dtype)

    @staticmethod
    def obstacle(case: Case) -> str | None:
        if case.scheme.bias_kind == "table":
            return "with a bias that is not linear in the distance (model.position)"
        if case.trains_slopes:
            return "to train the slopes themselves (model.position), whose gradient it rounds away"
        if case.config.head_size + N_FOLDED > 256:
            return f"with more than {256 - N_FOLDED} channels a head (model.d_head)"
        if case.n_key > FOLDED_LONGEST:
            return f"with more than {FOLDED_LONGEST} tokens"
        if case.window:
            return "with windows shorter than the sequence (model.windows)"
        if case.documents:
            return "with document masks (data.document_mask)"
        if case.config.score_softcap:
            return "with a soft-cap (model.score_softcap)"
        return None if case.whole else "with a cache or padding"

    def __call__(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        grouped, size = q_BHTD.shape[1] != k_BKSD.shape[1], q_BHTD.shape[-1]
        if self.bias is None:
            return F.scaled_dot_product_attention(
                q_BHTD, k_BKSD, v_BKSD, is_causal=True, scale=self.scale, enable_gqa=grouped
            )
        q, k = (
            torch.cat((x, more.to(x.dtype).expand(*x.shape[:-1], -1)), -1)
            for x, more in zip((q_BHTD, k_BKSD), self.bias, strict=True)
        )
        v = F.pad(v_BKSD, (0, self.value_width - size))
        backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(backends) if self.avoid_cudnn else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return y[..., :size]


def fold(slopes_H: Tensor, n_token: int) -> tuple[Tensor, Tensor]:
    """Query (H, 4) and key (S, 4) channels whose products are slope * (j - n_token // 2), in the slopes' dtype.

    Rounded to bf16 the keys are exact and the sum of the two halves of a slope is right to 2^-17 of it.
    """
    high_H = slopes_H.to(torch.bfloat16).to(slopes_H.dtype)
    low_H = slopes_H - high_H
    query_HE = torch.stack((STEP * high_H, high_H, STEP * low_H, low_H), -1)
    position_S = torch.arange(n_token, device=slopes_H.device) - n_token // 2
    a_S = position_S.div(STEP, rounding_mode="floor")
    b_S = position_S - STEP * a_S
    return query_HE, torch.stack((a_S, b_S, a_S, b_S), -1).to(slopes_H.dtype)


def folded_widths(head_size: int, cudnn: bool) -> tuple[int, int]:
    """Channels of queries and keys, and of values, that fused kernels want for heads of `head_size` with a folded bias.

    A multiple of 8, the same for all: FlashAttention takes nothing else. cudnn: whether it can be used, as on Hopper,
    where it is faster; its backward pass ends at 128 channels, but for 192 beside values of 128.
    """
    width = -(-(head_size + N_FOLDED) // 8) * 8
    if cudnn and head_size <= 128 < width:
        return 192, 128
    return width, width
