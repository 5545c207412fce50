"""Products of fp32 matrices on a CPU through the faster of torch's two libraries.

torch multiplies fp32 matrices with MKL, which on AMD processors runs code for vectors half as wide as theirs. oneDNN,
part of torch as well, generates code for the processor it finds: on an EPYC with AVX-512 about twice as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

_training = False


@contextmanager
def fast_gradients() -> Iterator[None]:
    """While entered, on any thread, `linear` uses `matmul` in training too: forward and backward, once differentiable.

    Around both passes, for a checkpointed layer is computed again in the backward one.
    """
    global _training
    before, _training = _training, True
    try:
        yield
    finally:
        _training = before


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """F.linear: x @ weight.T + bias, (..., I) -> (..., O)."""
    wanted = _training and torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
    if not wanted or x.dim() < 2 or not one_dnn_takes(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    if has_torch_function_variadic(x, weight_OI):  # something watches
        return handle_torch_function(linear, (x, weight_OI), x, weight_OI, bias_O)
    return _Linear.apply(x, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return one_dnn_linear(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight_OI = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = matmul(grad_NO, weight_OI).view_as(x) if wants_x else None
        grad_weight = transposed_matmul(grad_NO, x_NI) if wants_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if wants_bias else None


def one_dnn_takes(a: Tensor, b: Tensor) -> bool:
    """Whether `matmul` of two tensors goes to oneDNN."""
    if a.device.type != "cpu" or torch.compiler.is_compiling():  # inductor has ways of its own
        return False
    return a.dtype == b.dtype == torch.float32 and a.numel() > 0 and one_dnn_suits()


def one_dnn_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """F.linear of fp32 tensors, x of at least two dimensions, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")  # as torch.compile calls it


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b, (M, N), without a gradient. Both may be transposed views; oneDNN copies such an a first."""
    return one_dnn_linear(a_MK, b_KN.t()) if one_dnn_takes(a_MK, b_KN) else a_MK @ b_KN


def transposed_matmul(a_KM: Tensor, b_KN: Tensor) -> Tensor:
    """a.T @ b, (M, N), without a gradient; of the two the smaller is copied."""
    if a_KM.shape[1] > b_KN.shape[1]:
        return matmul(b_KN.t(), a_KM).t()
    return matmul(a_KM.t(), b_KN)


@cache
def one_dnn_suits() -> bool:
    """Whether this is an AMD processor with AVX-512. Not measured: a run that is resumed has to choose the same."""
    has_it = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return has_it and amd and torch.backends.cpu.get_cpu_capability() == "AVX512"
