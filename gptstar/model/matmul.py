"""Products of fp32 matrices on a CPU through the faster of torch's two libraries, for code that has its own backward.

torch multiplies fp32 matrices with MKL, which on AMD processors runs code for vectors half as wide as theirs. oneDNN,
part of torch as well, generates code for the processor it finds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def one_dnn_takes(a: Tensor, b: Tensor) -> bool:
    """Whether `matmul` of two tensors goes to oneDNN."""
    if a.device.type != "cpu" or torch.compiler.is_compiling():  # inductor has ways of its own
        return False
    return a.dtype == b.dtype == torch.float32 and a.numel() > 0 and one_dnn_suits()


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b, (M, N), without a gradient. Both may be transposed views; oneDNN copies such an a first."""
    if one_dnn_takes(a_MK, b_KN):
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")  # as torch.compile calls it
    return a_MK @ b_KN


@cache
def one_dnn_suits() -> bool:
    """Whether this is an AMD processor with AVX-512. Not measured: a run that is resumed has to choose the same."""
    has_it = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return has_it and amd and torch.backends.cpu.get_cpu_capability() == "AVX512"
