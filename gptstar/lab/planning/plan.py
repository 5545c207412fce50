"""What a training run will take, before anything runs: memory, speed, hours, money. No model is built, no data read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import torch

from gptstar.errors import UserError
from gptstar.files import replace_text
from gptstar.lab.planning.hardware import Efficiency, Hardware
from gptstar.lab.planning.memory import Setting, Weights, memory, total, weights
from gptstar.lab.planning.published import AGAINST_PUBLISHED
from gptstar.lab.planning.roofline import Part, Rates, communication, compute_parts
from gptstar.model.choices import longest
from gptstar.model.config import ModelConfig
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.model.kernel_choice import pick_kernel
from gptstar.model.kernels import Case
from gptstar.model.positions import SCHEMES
from gptstar.training.config import TrainConfig, batch_sizes
from gptstar.training.microbatch import SHARE
from gptstar.training.spread import check_spread
from gptstar.training.world import World

ROOM = 0.95  # of a device's memory that may be planned: the allocator leaves gaps


@dataclass(frozen=True)
class PlannedPart:
    """A part of a step on one device: seconds it adds, seconds that are hidden behind others; FLOPs and bytes."""

    seconds: float
    hidden: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """A planned run.

    device           cuda or cpu; devices: that train together; kernel: of attention; tokens: of the whole run
    memory           {part: bytes} of a device; available: bytes a device has; fits: whether it does; remedy: what would
    parts            of a step; empty where an MFU was assumed
    mfu              of all devices' peak, by `flops_per_token` (the causal half not deducted)
    hours            of training, without validations, checkpoints and compilation; kwh: of the devices alone
    ends             when, if it began now
    notes            assumptions
    """

    model: str
    hardware: str
    device: str
    devices: int
    precision: str
    parallel: str
    tensor_parallel: int
    kernel: str
    compiled: bool
    recompute: int
    parameters: int
    trained: int
    flops_per_token: int
    sequence_length: int
    batch_size: int
    microbatch: int
    n_microbatch: int
    steps: int
    tokens: int
    memory: dict[str, float]
    available: float
    fits: bool
    remedy: str
    parts: dict[str, PlannedPart]
    step_seconds: float
    tokens_per_second: float
    peak_flops: float
    mfu: float
    hours: float
    device_hours: float
    money: float | None
    currency: str
    kwh: float | None
    ends: str
    notes: list[str] = field(default_factory=list)

    @property
    def needed(self) -> float:
        """Bytes of a device, everything together."""
        return sum(self.memory.values())

    def write(self, path: Path) -> None:
        """As JSON."""
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")


def plan(
    config: TrainConfig,
    hardware: Hardware,
    efficiency: Efficiency | None = None,
    mfu: float | None = None,
    now: datetime | None = None,
) -> Plan:
    """What a run takes on a machine.

    efficiency: shares of the hardware's figures that kernels reach, instead of the hardware's. mfu: assumed instead of
    what the roofline says. now: when it begins. Raises UserError for what cannot be trained there.
    """
    if efficiency is not None:
        hardware = dataclasses.replace(hardware, efficiency=efficiency.over(hardware.efficiency))
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"mfu={mfu} must lie in (0, 1]: the share of the matmul peak that the run is to reach")
    hardware.check()
    config, how = setting(config, hardware)
    model, trainer, length = config.model, config.trainer, config.sequence_length
    own = weights(model, how)
    devices = how.n_share * how.n_tensor
    whole = weights(model, dataclasses.replace(how, n_tensor=1))
    per_token = flops_per_token(model, length, whole.whole - whole.trained)
    peak = hardware.peak(how.precision)
    tokens_per_step = config.tokens_per_step
    if mfu is None:
        parts = _parts(model, own, how, hardware)
        seconds = sum(part.counted for part in parts.values())
    else:
        parts, seconds = {}, tokens_per_step * per_token / (mfu * peak * devices)
    rate = tokens_per_step / seconds
    tokens = batch_sizes(trainer).position(config.total_steps) * length
    hours = tokens / rate / 3600
    held = memory(model, how)
    available = hardware.memory
    fits = sum(held.values()) <= ROOM * available
    return Plan(
        model=model.name,
        hardware=hardware.name,
        device=hardware.device,
        devices=devices,
        precision=how.precision,
        parallel=how.parallel,
        tensor_parallel=how.n_tensor,
        kernel=how.kernel,
        compiled=how.compiled,
        recompute=how.recompute,
        parameters=parameter_count(model),
        trained=whole.trained,
        flops_per_token=per_token,
        sequence_length=length,
        batch_size=trainer.batch_size,
        microbatch=how.rows,
        n_microbatch=how.n_micro,
        steps=config.total_steps,
        tokens=tokens,
        memory=held,
        available=available,
        fits=fits,
        remedy="" if fits else remedy(model, how, available),
        parts={
            name: PlannedPart(p.counted, p.seconds - p.counted, p.flops, p.bytes)
            for name, p in parts.items()
            if p.seconds
        },
        step_seconds=seconds,
        tokens_per_second=rate,
        peak_flops=peak * devices,
        mfu=rate * per_token / (peak * devices),
        hours=hours,
        device_hours=hours * devices,
        money=hours * devices * hardware.price if hardware.price else None,
        currency=hardware.currency,
        kwh=hours * devices * hardware.watts / 1000 if hardware.watts else None,
        ends=f"{(now or datetime.now()) + timedelta(hours=min(hours, 8e6)):%Y-%m-%d %H:%M}",
        notes=_notes(hardware, how, mfu, trainer.microbatch == "auto"),
    )


def setting(config: TrainConfig, hardware: Hardware) -> tuple[TrainConfig, Setting]:
    """How a configuration is trained on a machine, with what it leaves open decided as training does.

    Raises UserError for what cannot be.
    """
    trainer = config.trainer
    precision = hardware.precision(trainer.precision)
    hardware.peak(precision)
    kernel = attention_kernel(config, hardware)
    # The machine that plans need not be able to do what is planned.
    settled = dataclasses.replace(trainer, precision=precision, attention="auto", device="cpu")
    config = dataclasses.replace(config, trainer=settled)
    config.check()
    parallel = trainer.parallel
    if parallel == "auto":
        parallel = "ddp" if hardware.devices > 1 else "none"
    devices = 1 if parallel == "none" else hardware.devices
    if trainer.tensor_parallel > 1 and parallel == "none":
        raise UserError(
            f"trainer.tensor_parallel={trainer.tensor_parallel} needs several devices, and hardware={hardware.name} "
            f"has {hardware.devices}: set hardware.devices"
        )
    if devices % trainer.tensor_parallel:
        raise UserError(
            f"trainer.tensor_parallel={trainer.tensor_parallel} does not divide the {devices} devices of "
            f"hardware={hardware.name}: choose a divisor, or set hardware.devices"
        )
    world = World(torch.device(hardware.device), parallel, size=devices, n_tensor=trainer.tensor_parallel)
    if devices > 1:
        check_spread(config, world)
    elif isinstance(trainer.microbatch, int) and trainer.batch_size % trainer.microbatch:
        raise UserError(f"trainer.microbatch={trainer.microbatch} does not divide trainer.batch_size: lower it")
    share = trainer.batch_size // world.n_share
    how = Setting(
        precision=precision,
        device=hardware.device,
        kernel=kernel,
        compiled=hardware.device == "cuda" if trainer.compile is None else trainer.compile,
        recompute=trainer.recompute,
        parallel=parallel,
        n_share=world.n_share,
        n_tensor=world.n_tensor,
        rows=share,
        n_token=config.sequence_length,
        trainable=trainer.trainable,
        optimizer=config.optimizer.name,
    )
    rows = share if trainer.microbatch is None else trainer.microbatch
    if trainer.microbatch == "auto":
        # On a GPU training takes the largest that does not run out of memory, on a CPU it leaves more of it.
        room = ROOM if hardware.device == "cuda" else SHARE
        rows = largest_microbatch(config.model, how, share, hardware.memory, room) or 1
    assert isinstance(rows, int)
    return config, dataclasses.replace(how, rows=rows, n_micro=share // rows)


def attention_kernel(config: TrainConfig, hardware: Hardware) -> str:
    """The one of the first layer. Raises UserError for a choice that cannot be used there."""
    model, length = config.model, config.sequence_length
    limit = longest(model)
    if limit is not None and length > limit:
        return "sdpa"  # refused in a moment, with the reason
    compiled = hardware.device == "cuda" if config.trainer.compile is None else config.trainer.compile
    names = []
    for layer, scheme in enumerate(model.schemes):
        window = model.window(layer)
        case = Case(
            model,
            SCHEMES[scheme](model),
            window if window < length else 0,
            hardware.device,
            length,
            documents=config.data.document_mask,
            compiled=compiled,
        )
        try:
            names.append(pick_kernel(case, config.trainer.attention))
        except ValueError as error:
            raise UserError(f"trainer.attention={config.trainer.attention}: {error}") from error
    return names[0]


def largest_microbatch(
    model: ModelConfig, how: Setting, share: int, available: float, room: float = ROOM
) -> int | None:
    """The largest divisor of a device's share of the batch that fits; None where not even one sequence does.

    room: share of the available memory that it may take.
    """
    for rows in range(share, 0, -1):
        if share % rows == 0:
            n_micro = share // rows
            if total(model, dataclasses.replace(how, rows=rows, n_micro=n_micro)) <= room * available:
                return rows
    return None


def remedy(model: ModelConfig, how: Setting, available: float) -> str:
    """What would fit, the least change first."""
    share = how.rows * how.n_micro
    layers = model.n_layer
    found = []
    if rows := largest_microbatch(model, how, share, available):
        found.append(f"trainer.microbatch={rows}")
    again = dataclasses.replace(how, recompute=layers)
    if how.recompute < layers and (rows := largest_microbatch(model, again, share, available)):
        found.append(f"trainer.recompute={layers}" + (f" trainer.microbatch={rows}" if rows < how.rows else ""))
    sharded = dataclasses.replace(how, parallel="fsdp")
    copies = how.n_share > 1 and how.parallel == "ddp" and how.n_tensor == 1
    if copies and (rows := largest_microbatch(model, sharded, share, available)):
        more = f" trainer.microbatch={rows}" if rows < how.rows else ""
        precision = " trainer.precision=bf16" if how.precision == "fp16" else ""
        found.append(f"trainer.parallel=fsdp{precision}{more}")
    if found:
        return f"set {', or '.join(found)}"
    return "take more devices with trainer.parallel=fsdp, devices with more memory, or a smaller model"


def _parts(model: ModelConfig, own: Weights, how: Setting, hardware: Hardware) -> dict[str, Part]:
    rates = Rates.of(hardware, how.precision)
    parts = compute_parts(model, own, how, rates)
    # Backward passes have two thirds of the work; what the last microbatch's can hide.
    work = sum(parts[name].seconds for name in ("matrix products", "attention", "norms and elementwise"))
    return parts | communication(model, own, how, hardware, work * 2 / 3 / how.n_micro)


def _notes(hardware: Hardware, how: Setting, mfu: float | None, auto: bool) -> list[str]:
    notes = []
    if mfu is not None:
        notes.append(f"The MFU of {mfu:.1%} is assumed: nothing of the roofline is in tokens/s, hours and money.")
    else:
        shares = hardware.shares
        told = (
            f"Assumed of kernels: {shares.matmul:.0%} of the peak in matrix products, {shares.attention:.0%} in fused "
            f"attention, {shares.memory:.0%} of the memory's bandwidth"
        )
        if how.n_share * how.n_tensor > 1:
            told += f", {shares.link:.0%} of the link's; {shares.overlap:.0%} of the gradients' exchange is hidden"
        notes.append(f"{told}.")
        if hardware.device == "cuda":
            low, high = AGAINST_PUBLISHED
            notes.append(
                f"Against published costs such plans were {low} to {high} of what it took (docs/lab/plan.md): count on "
                "more."
            )
    if auto and hardware.device == "cpu":
        notes.append(
            f"trainer.microbatch=auto: on a CPU training decides it by timing. Planned is the largest that fits, "
            f"{how.rows}: it may well take less, and so less memory."
        )
    notes.append("Hours are of training alone: validations, checkpoints and compilation come on top.")
    if how.compiled:
        notes.append("Activations are those of uncompiled code: torch.compile keeps fewer.")
    if hardware.price:
        notes.append(f"{hardware.price:.2f} {hardware.currency} a device and hour: hardware.price sets yours.")
    notes.append(f"{hardware.name}: {hardware.source}.")
    return notes
