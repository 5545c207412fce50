"""Next-token cross-entropy straight from hidden states: the logits of a whole batch never exist at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gptstar.model.matmul import matmul, one_dnn_takes, transposed_matmul

# Logits alive at a time: 128 MB in fp32. Each chunk reads and writes the whole gradient of the weights, which a GPU, so
# much faster at products, has to do less often; and torch.compile unrolls the loop over chunks.
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**25, 2**28
GPU_ROWS = 128  # on a GPU the vocabulary is padded to a multiple: tensor cores want aligned rows


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap): bounded logits (Gemma 2, arXiv:2408.00118); 0 leaves them as they are."""
    return cap * (logits / cap).tanh() if cap else logits


def _missing_rows(weight_VC: Tensor) -> int:
    return -len(weight_VC) % GPU_ROWS if weight_VC.device.type == "cuda" else 0


def _plus_product(grad_VC: Tensor | None, d_logits_NV: Tensor, h_NC: Tensor, dtype: torch.dtype) -> Tensor:
    """grad + d_logits.T @ h, in `dtype`; grad, None at first, is changed in place."""
    if one_dnn_takes(h_NC, d_logits_NV):  # always laid out alike, so that adding reads memory in order
        product = transposed_matmul(d_logits_NV, h_NC)
    elif grad_VC is not None and d_logits_NV.dtype == dtype:
        return grad_VC.addmm_(d_logits_NV.t(), h_NC)
    else:
        product = d_logits_NV.t() @ h_NC
    return product.to(dtype) if grad_VC is None else grad_VC.add_(product)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(logits)[target], chunk by chunk; logits = softcap(hidden @ weight.T + bias).

    The gradient of a chunk is computed while its logits are at hand (as in Liger Kernel, arXiv:2410.10989), so the
    head's three matmuls are all there is: nothing is recomputed. softmax - onehot stays unscaled until the end,
    because divided by the number of tokens it would underflow in fp16.
    """

    @staticmethod
    def forward(
        ctx,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        target_N: Tensor,
        bias_V: Tensor | None,
        softcap: float,
        n_valid: int,
    ) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        w_VC, n_row = weight_VC.to(_compute_dtype(weight_VC)), len(weight_VC)
        known_N1, target_N = (target_N >= 0)[:, None], target_N.clamp(min=0)
        if (missing := _missing_rows(weight_VC)) > 0:
            w_VC = F.pad(w_VC, (0, 0, 0, missing))
            bias_V = None if bias_V is None else F.pad(bias_V, (0, missing))
        h_NC = hidden_NC.to(w_VC.dtype)
        wide = torch.float32 if w_VC.dtype in (torch.float16, torch.bfloat16) else w_VC.dtype
        total = torch.zeros((), device=h_NC.device, dtype=wide)
        grad_h = torch.empty_like(h_NC) if needs_grad else None
        grad_w = None
        grad_b = torch.zeros_like(bias_V, dtype=wide) if needs_grad and bias_V is not None else None
        elements = CHUNK_ELEMENTS if h_NC.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        n_chunk = max(1, round(len(h_NC) * len(w_VC) / elements))
        rows = max(1, -(-len(h_NC) // n_chunk))  # chunks alike
        for start in range(0, len(h_NC), rows):
            h, target = h_NC[start : start + rows], target_N[start : start + rows, None]
            known = known_N1[start : start + rows]
            logits = matmul(h, w_VC.t()).to(wide)
            if bias_V is not None:
                logits += bias_V
            slope = None
            if softcap:
                logits = softcapped(logits, softcap)
                slope = 1 - (logits / softcap).square() if needs_grad else None
            logits[:, n_valid:] = -torch.inf  # rows that only pad the vocabulary
            # The largest probability is exp(largest logit - logsumexp): with softmax at hand, one pass over the
            # numbers, it gives logsumexp for another that only reads.
            largest, own = logits.amax(-1, keepdim=True), logits.gather(-1, target)
            logits = logits.softmax(-1)
            total += ((largest - logits.amax(-1, keepdim=True).log() - own) * known).sum()
            if grad_h is not None:
                logits.scatter_add_(-1, target, logits.new_full(target.shape, -1.0))  # softmax - onehot
                if slope is not None:
                    logits *= slope
                # What is not to be predicted is left out here, where rows are C wide and not V.
                if grad_b is not None:
                    grad_b += known.to(wide).t().mm(logits)[0]
                d_logits = logits.to(w_VC.dtype)
                grad_h[start : start + rows] = matmul(d_logits, w_VC) * known
                if ctx.needs_input_grad[1]:  # not a frozen head
                    grad_w = _plus_product(grad_w, d_logits, h * known, wide)
        if needs_grad:
            ctx.save_for_backward(grad_h, grad_w, grad_b)
            ctx.dtypes, ctx.n_row = (hidden_NC.dtype, weight_VC.dtype), n_row
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_h, grad_w, grad_b = ctx.saved_tensors
        grad_b = None if grad_b is None else grad_b[: ctx.n_row] * grad_output
        hidden, weight = ctx.dtypes
        # In the order of the weights, as autograd adds to it fastest what a tied embedding got.
        grad_w = None if grad_w is None else (grad_w[: ctx.n_row].contiguous() * grad_output).to(weight)
        return (grad_h * grad_output).to(hidden), grad_w, None, grad_b, None, None


def linear_cross_entropy(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    target_N: Tensor,
    bias_V: Tensor | None = None,
    softcap: float = 0.0,
    n_valid: int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of logits against `target_N` (int64), a scalar in fp32 or fp64. A target below 0 is
    not to be predicted and does not count.

    logits = softcap * tanh((hidden_NC @ weight_VC.T + bias_V) / softcap), of which the first n_valid count (None: all).
    Follows autocast. Equal to F.cross_entropy of those logits.
    """
    if len(hidden_NC) != len(target_N):
        raise ValueError(f"{len(hidden_NC)} hidden states and {len(target_N)} targets: one of each a token is wanted")
    if not torch.is_grad_enabled():  # a parameter still asks for gradients then
        hidden_NC, weight_VC = hidden_NC.detach(), weight_VC.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    n_valid = len(weight_VC) if n_valid is None else n_valid
    n_known = (target_N >= 0).sum().clamp(min=1)
    return _LinearCrossEntropy.apply(hidden_NC, weight_VC, target_N, bias_V, softcap, n_valid) / n_known
