"""What speed is measured against: the device's matmul peak and bandwidth, and the memory a run has used."""

from __future__ import annotations

import re
import sys
import time

import torch

from gptstar.model.matmul import matmul, one_dnn_takes

# Dense bf16/fp16 tensor-core peaks, FLOP/s, from NVIDIA's data sheets (no sparsity). Longest match wins.
CUDA_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX A5000": 111e12,
    "RTX A6000": 155e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float | None:
    """What MFU divides by, FLOP/s: the data sheet's bf16 peak on CUDA, a measured one on a CPU, None if unknown."""
    if device.type == "cpu":
        return measure_matmul_peak(device, size=1536, repeats=4)
    if device.type == "cuda":
        chip = chip_of(torch.cuda.get_device_name(device))
        return None if chip is None else CUDA_PEAKS[chip]
    return None


def chip_of(device_name: str) -> str | None:
    """The key of CUDA_PEAKS that a GPU's own name stands for, None if unknown."""
    words = set(re.split(r"[\s-]+", device_name))
    return next((key for key in sorted(CUDA_PEAKS, key=len, reverse=True) if set(key.split()) <= words), None)


def measure_matmul_peak(
    device: torch.device, size: int = 2048, repeats: int = 5, dtype: torch.dtype = torch.float32
) -> float:
    """FLOP/s of the fastest of several square matrix products, through the faster of a CPU's two libraries."""
    generator = torch.Generator(device).manual_seed(0)  # leaves the run's own random state alone
    a, b = torch.randn(2, size, size, device=device, dtype=dtype, generator=generator)
    out = torch.empty(size, size, device=device, dtype=dtype)
    best = float("inf")
    ways = [lambda: torch.mm(a, b, out=out)]
    if one_dnn_takes(a, b):
        ways.append(lambda: matmul(a, b))
    for way in ways:
        for _ in range(repeats + 1):  # the first warms up
            start = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def measure_bandwidth(device: torch.device, n_byte: int = 2**28, repeats: int = 5) -> float:
    """Bytes a second, read and written, of the fastest of several copies."""
    source = torch.zeros(n_byte // 4, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def peak_gib(device: torch.device) -> float:
    """Memory, at its highest so far, in GiB: of CUDA tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
