"""Devices and precisions, said one way everywhere."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from gptstar.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # torch's own names


def dtype_name(dtype: torch.dtype) -> str:
    """As settings name it: fp32, bf16 or fp16; torch's own name for any other."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def pick_device(name: str) -> torch.device:
    """auto (cuda if there is one, else cpu) or a torch device. Raises UserError for one this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} cannot be used here ({reason}): try device=auto") from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Auto is bf16 where the GPU computes in it, fp16 on older GPUs, and fp32 elsewhere."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
