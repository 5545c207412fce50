"""What a training run needs to know of a machine: how fast it multiplies, reads and talks, how much it holds and costs.

configs/hardware/*.yaml are such machines; `this` is the one that asks, measured when it is asked for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch

from gptstar.device import DTYPES
from gptstar.environment import cpu_name
from gptstar.errors import UserError
from gptstar.training.throughput import CUDA_PEAKS, chip_of, measure_bandwidth, measure_matmul_peak


@dataclass
class Efficiency:
    """Shares of the hardware's figures that real kernels reach; null: the default of the kind of device.

    matmul     of the peak, matrix products
    attention  of the peak, a fused attention kernel (its FLOPs as it runs them: backward it makes the scores again)
    memory     of the bandwidth, kernels that only move numbers
    link       of the link's bandwidth, collective communication
    overlap    of the gradients' communication that hides behind the backward pass
    """

    matmul: float | None = None
    attention: float | None = None
    memory: float | None = None
    link: float | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0.0 if each.name == "overlap" else 1e-6
            if value is not None and not least <= value <= 1:
                raise ValueError(f"hardware.efficiency.{each.name}={value} must lie in (0, 1]")

    def over(self, usual: Efficiency) -> Efficiency:
        """These, and the usual ones where they say nothing."""
        return Efficiency(
            **{
                each.name: getattr(usual, each.name) if getattr(self, each.name) is None else getattr(self, each.name)
                for each in fields(self)
            }
        )


# One set for every GPU, for physical reasons. A data sheet's peak is at boost clock without a power limit, and matrices
# about 1000 wide leave part of the last wave of tiles idle: 0.6. Fused attention waits for its exponentials and has
# tiles the mask cuts through: 0.35 (FlashAttention-2 forward and backward at 512 to 1024 tokens, arXiv:2307.08691,
# figure 5). A kernel that only moves numbers reaches 0.85 of the memory's bandwidth. Rings between GPUs reach 0.6 of a
# link's rate, and the last bucket of gradients, with the first layer's, has no backward pass to hide behind: 0.8.
GPU = Efficiency(matmul=0.6, attention=0.35, memory=0.85, link=0.6, overlap=0.8)
# A GPU without a data sheet here is measured: clock and power limit are in its peak already, and a copy is what moving
# numbers is like. What is left is shape, a CPU's share; attention by the same step from 0.35 of a data sheet's.
MEASURED_GPU = Efficiency(matmul=0.85, attention=0.5, memory=1.0, link=0.6, overlap=0.8)
# A CPU's peak and bandwidth are measured. The peak is of a product whose operands lie in the caches, in a step they
# come from memory: 0.85. Attention: 0.33 to 0.41 of the peak, forward and backward, for heads of 48 to 128 channels,
# with a bias or without (one core of an EPYC with AVX-512, 2026-11-21). A copy is what moving numbers is like.
CPU = Efficiency(matmul=0.85, attention=0.35, memory=1.0, link=0.6, overlap=0.8)


# Of the figures that are above 0, or null where they may be unknown.
UNITS = {
    "devices": "GPUs or other devices",
    "memory_gib": "GiB",
    "bandwidth": "bytes a second",
    "functions": "exponentials a second",
    "price": "money a device and hour (null: unknown)",
    "watts": "watts a device (null: unknown)",
}


@dataclass
class Hardware:
    """A machine, or several alike.

    device       cuda or cpu
    devices      how many train together
    chip         its name in `gptstar.training.throughput.CUDA_PEAKS`, which has the peak of the precisions in `half`
    half         16-bit precisions it has matrix units for
    peaks        FLOP/s of matrix products in other precisions (fp32: as TF32 where there is that), or measured
    memory_gib   of a device; bandwidth: bytes a second that are read and written
    link         bytes a second that a device sends to another (and receives at the same time)
    functions    exponentials a second, where they can be the limit; null: they are not
    price        of a device an hour, in `currency`; null: unknown. watts: of a device under load
    efficiency   shares of these figures that kernels reach
    source       where the figures are from
    """

    name: str = "this"
    device: str = "cuda"
    devices: int = 1
    chip: str = ""
    half: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    memory_gib: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    functions: float | None = None
    price: float | None = None
    currency: str = "USD"
    watts: float | None = None
    efficiency: Efficiency = field(default_factory=Efficiency)
    source: str = ""

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"hardware.device={self.device!r} is unknown: choose cuda or cpu")
        if self.chip and self.chip not in CUDA_PEAKS:
            raise ValueError(f"hardware.chip={self.chip!r} is unknown: choose one of {', '.join(CUDA_PEAKS)}")

    def check(self) -> None:
        """Raises UserError for a figure that no machine has, once what was to be measured is."""
        figures = {key: (getattr(self, key), unit) for key, unit in UNITS.items()}
        figures |= {f"peaks.{precision}": (peak, "FLOP/s") for precision, peak in self.peaks.items()}
        for key, (value, unit) in figures.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"hardware.{key}={value:g} must be above 0: set hardware.{key} in {unit}")
        if not 0 <= self.link < math.inf:
            raise UserError(f"hardware.link={self.link:g} must not be below 0: set hardware.link in bytes a second")

    def peak(self, precision: str) -> float:
        """FLOP/s of a device's matrix products. Raises UserError for a precision it has none of."""
        if precision in self.peaks:
            return self.peaks[precision]
        if precision in self.half and self.chip:
            return CUDA_PEAKS[self.chip]
        known = ", ".join([*self.peaks, *self.half])
        raise UserError(
            f"trainer.precision={precision}: hardware={self.name} has no peak for it: choose one of {known}, or set "
            f"+hardware.peaks.{precision}=..."
        )

    def precision(self, wanted: str) -> str:
        """What trainer.precision=auto is there (`gptstar.device.pick_precision`)."""
        if wanted != "auto":
            return wanted
        if self.device == "cpu":
            return "fp32"
        return "bf16" if "bf16" in self.half else "fp16"

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return self.memory_gib * 2**30

    @property
    def shares(self) -> Efficiency:
        """The efficiencies, none of them null."""
        return self.efficiency.over(GPU if self.device == "cuda" else CPU)


def measured(
    hardware: Hardware, precision: str = "auto", optimizer: str = "adamw", sheets: Iterable[Hardware] = ()
) -> Hardware:
    """`this`, with what it lacks measured now, in a few seconds; any other machine as it is.

    precision, optimizer: of the run, as they decide which peaks are wanted. sheets: machines whose figures serve
    instead where this one has the same GPU.
    """
    if hardware.name != "this":
        return hardware
    cuda = torch.cuda.is_available()
    if cuda and (sheet := _sheet(sheets)):
        return replace(
            sheet,
            name="this",
            devices=hardware.devices,
            peaks={**sheet.peaks, **hardware.peaks},
            memory_gib=hardware.memory_gib or sheet.memory_gib,
            bandwidth=hardware.bandwidth or sheet.bandwidth,
            link=hardware.link or sheet.link,
            price=hardware.price,
            currency=hardware.currency,
            watts=hardware.watts or sheet.watts,
            efficiency=hardware.efficiency,
            source=f"{torch.cuda.get_device_name()}, {sheet.source}",
        )
    device = torch.device("cuda" if cuda else "cpu")
    both = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    half = ["fp16", "bf16"] if both else ["fp16"] if cuda else []
    found = replace(hardware, device=device.type, half=half)
    wanted = {found.precision(precision)}
    if optimizer == "muon":  # which computes in bf16
        wanted |= {"fp32" if cuda and not both else "bf16"}
    size, repeats = (8192, 10) if cuda else (1536, 4)
    peaks = {
        each: measure_matmul_peak(device, size, repeats, DTYPES[each])
        for each in sorted(wanted)
        if each not in hardware.peaks
    }
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else _main_memory()
    return replace(
        found,
        peaks={**peaks, **hardware.peaks},
        memory_gib=hardware.memory_gib or memory / 2**30,
        bandwidth=hardware.bandwidth or measure_bandwidth(device, n_byte=2**27),
        functions=hardware.functions or (None if cuda else measure_functions()),
        efficiency=hardware.efficiency.over(MEASURED_GPU) if cuda else hardware.efficiency,
        source=f"measured on {torch.cuda.get_device_name(device) if cuda else cpu_name()}",
    )


def _sheet(sheets: Iterable[Hardware]) -> Hardware | None:
    """The one of this machine's GPU: its name, and its memory too, as there are A100 of two sizes, and laptops."""
    chip, memory = chip_of(torch.cuda.get_device_name()), torch.cuda.get_device_properties(0).total_memory
    same = (each for each in sheets if chip and each.chip == chip and each.devices == 1)
    return next((each for each in same if abs(each.memory / memory - 1) < 0.1), None)


def measure_functions(rows: int = 1024, width: int = 4096, repeats: int = 5) -> float:
    """Exponentials a second on this CPU: softmax of rows that stay in a core's cache."""
    x, best = torch.randn(rows, width), float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        x.softmax(-1)
        best = min(best, time.perf_counter() - start)
    return x.numel() / best


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
