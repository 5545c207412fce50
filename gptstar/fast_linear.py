"""Linear layers on a CPU, without gradients, through whatever is the fastest there.

One row goes to our own loop (matvec.py). For more, torch multiplies fp32 matrices with MKL, which on AMD processors
runs code for vectors half as wide as theirs. oneDNN, part of torch as well, generates code for the processor it finds:
on an EPYC with AVX-512 twice as fast.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptstar import matvec


def fast_linear(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """While entered, without gradients, F.linear uses what is fastest for tensors of this kind."""
    known = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return _Fastest() if known and not torch.is_grad_enabled() else nullcontext()


class _Fastest(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if matvec.takes(input, weight, bias):
        return torch.ops.gptstar.matvec(input, weight, bias)
    one_dnn = input.dtype == torch.float32 and one_dnn_is_faster()
    return (_one_dnn_linear if one_dnn else F.linear)(input, weight, bias)


def _one_dnn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dtype != torch.float32 or weight.dtype != torch.float32 or input.dim() < 2 or not input.numel():
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")  # as torch.compile calls it


@cache
def one_dnn_is_faster() -> bool:
    """Measured once a process, in about 50 ms: by more than a tenth, and equal but for rounding."""
    generator = torch.Generator().manual_seed(0)  # leaves the program's own random state alone
    x, w = (torch.randn(size, 1024, generator=generator) for size in (256, 1024))
    b = torch.zeros(1024)
    seconds = {F.linear: float("inf"), _one_dnn_linear: float("inf")}
    try:
        for _ in range(5):
            for function in seconds:
                start = time.perf_counter()
                function(x, w, b)
                seconds[function] = min(seconds[function], time.perf_counter() - start)
        same = torch.allclose(F.linear(x, w, b), _one_dnn_linear(x, w, b), rtol=1e-3, atol=1e-3)
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False
    return same and seconds[_one_dnn_linear] < 0.9 * seconds[F.linear]
