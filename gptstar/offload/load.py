"""`gptstar.load` under a memory budget."""

from __future__ import annotations

import math
import os
import re
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from gptstar.allocator import give_back_memory
from gptstar.data.tokenizer import Tokenizer
from gptstar.device import dtype_name, free_memory
from gptstar.errors import UserError
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta, unsaved, with_storage
from gptstar.model.transformer import GPT
from gptstar.offload.binding import StoredBinding
from gptstar.offload.layers import OnDisk, fill_from_disk, find_layers
from gptstar.offload.matrix import StoredTable, prepare_stored
from gptstar.offload.plan import BUFFERS, SLACK, Plan, Room, make_plan, memory_in_use, needs, whole_bytes
from gptstar.offload.quantized import (
    QuantizedBinding,
    QuantizedOnDisk,
    Track,
    default_folder,
    quantized_copy,
    silent,
    without_blocks,
)
from gptstar.offload.reading import Disk
from gptstar.offload.staging import Copier, StagedLayers
from gptstar.offload.stream import Layers, StreamedBlock
from gptstar.pretrained.empty import pick_dtype
from gptstar.pretrained.load import load
from gptstar.quantization.quantize import prepare_quantized
from gptstar.sizes import at_least, parse_bytes, say_bytes

Say = Callable[[str], object]
DEFAULT_ROOM = Room(512)


@dataclass(frozen=True)
class Limits:
    """What a model may take, in bytes or in words, as 16GiB. memory: of the whole process. gpu: of the GPU's memory.

    quantized_dir: where quantised copies are kept; None: ~/.cache/gptstar/quantized.
    """

    memory: str | int | None = None
    gpu: str | int | None = None
    quantized_dir: str | None = None

    def __bool__(self) -> bool:
        return self.memory is not None or self.gpu is not None

    def check(self, device: torch.device) -> tuple[int | None, int | None]:
        """Bytes of both. Raises UserError for what is no amount, and for a GPU's where there is none."""
        found: list[int | None] = []
        for name, text in (("memory_budget", self.memory), ("gpu_memory_budget", self.gpu)):
            try:
                found.append(None if text is None else parse_bytes(str(text)))
            except UserError as error:
                raise UserError(f"{name}={text} {error}") from None
        memory, gpu = found
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if memory is not None and memory > total:
            raise UserError(f"memory_budget={self.memory} is more than this machine has ({say_bytes(total)}): lower it")
        if gpu is not None and device.type != "cuda":
            raise UserError(f"gpu_memory_budget={self.gpu} needs a GPU and the device is {device}: leave it out")
        if gpu is None and device.type == "cuda" and memory is not None:
            gpu = int(0.95 * free_memory(device))
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"a memory budget is kept on a CPU or an NVIDIA GPU, not on {device}: add device=cpu")
        return memory, gpu


@dataclass
class Offloaded:
    """A model that reads layers from disk; `close` ends its threads, as does the end of the model."""

    model: GPT
    tokenizer: Tokenizer
    plan: Plan
    disk: Disk
    layers: Layers

    def close(self) -> None:
        """The model cannot be used any more."""
        self.disk.close()


def load_within(
    source: str | Path,
    device: torch.device,
    dtype: str | None,
    limits: Limits,
    room: Callable[[Tokenizer, ModelConfig], Room],
    say: Say,
    track: Track = silent,
) -> tuple[GPT, Tokenizer]:
    """What `gptstar.load` gives, within so much memory: whole where that fits, else layers stay on disk.

    room: for how many tokens. say: is told the plan before anything is read. track: shows progress. Raises UserError as
    `load_under_budget` does, and for what cannot be had under a budget.
    """
    memory, gpu = limits.check(device)
    kept = pick_dtype(dtype)
    check_dtype(device, kept)
    found = find_layers(source)
    wanted = room(found.tokenizer, found.config)
    if not isinstance(kept, str):
        computed = kept or (torch.float32 if device.type == "cpu" else found.dtype)
        needed = whole_bytes(found, computed, wanted)
        if gpu is None:
            fits = memory is None or needed <= memory
        else:
            fits = needed <= gpu and (memory is None or memory_in_use() + needed <= memory)
        if fits:
            takes = f"{dtype_name(computed)}, {say_bytes(needed)}"
            say(f"memory_budget={limits.memory or limits.gpu}: all of it fits in {takes}")
            return load(source, device, computed)
    made = load_under_budget(source, memory, kept, wanted, True, say, device, gpu, limits.quantized_dir, track)
    return made.model, made.tokenizer


@torch.inference_mode(False)  # what is bound to a block later must not be an inference tensor
def load_under_budget(
    source: str | Path,
    budget: int | str | None,
    dtype: torch.dtype | str | None = None,
    room: Room = DEFAULT_ROOM,
    direct: bool = True,
    say: Say = lambda text: None,
    device: torch.device | str = "cpu",
    gpu_budget: int | None = None,
    quantized_dir: str | Path | None = None,
    track: Track = silent,
) -> Offloaded:
    """A model of which as many layers stay in memory as `budget` bytes allow, in evaluation mode.

    source: as `gptstar.load` takes it. dtype: int8 or int4, whose copies are kept in `quantized_dir`; on a GPU what is
    computed in (None: as stored). On a CPU that is fp32, whatever the weights are stored in, and the numbers are those
    of the model loaded whole in fp32. room: for how many tokens. direct: disk reads go past the system's page cache.
    say: is told the plan before weights are read. track: shows progress.
    Raises UserError for what cannot be read, and for a budget that is too small for a layer at a time.
    """
    device, dtype = torch.device(device), pick_dtype(dtype)
    if isinstance(budget, str):
        budget, _ = Limits(budget).check(device)
    check_dtype(device, dtype)
    if gpu_budget is not None and device.type != "cuda":
        raise UserError(f"gpu_budget={gpu_budget} needs a GPU and the device is {device}: leave it out")
    found = find_layers(source)
    try:
        alike(found.config)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    with ExitStack() as undo:
        disk = undo.enter_context(Disk(direct))
        if isinstance(dtype, str):
            folder = Path(quantized_dir).expanduser() if quantized_dir else default_folder()
            check = partial(_check_room, found, dtype, budget, room)
            found = quantized_copy(found, _name(source), dtype, folder, disk, say, track, check)
        computed = dtype if isinstance(dtype, torch.dtype) else torch.float32
        if device.type != "cpu" and not isinstance(dtype, torch.dtype):
            computed = torch.bfloat16 if isinstance(dtype, str) else found.dtype
        give_back_memory()
        copier = Copier(device) if device.type == "cuda" else None
        link = copier.speed if copier else lambda: math.inf
        plan = make_plan(found, computed, budget, room, disk, gpu_budget, link, device)
        say(str(plan))
        with on_meta():
            model = without_blocks(found.config)
            block: nn.Module = BLOCKS[found.config.block](found.config, 0)
        _fill_outside(model, found, computed, device, disk)
        if isinstance(found, QuantizedOnDisk):
            block = with_storage(prepare_quantized(block.to(computed), found.kind), device).eval()
            block.requires_grad_(False)
            bind = QuantizedBinding(block, found).bind
        else:
            block = with_storage(prepare_stored(block.to(computed)), device).eval()
            block.requires_grad_(False)
            bind = StoredBinding(block, found.layers[0]).bind
        give_back_memory()  # what putting tables together has taken
        resident = set(plan.resident)
        if copier is None:
            layers = Layers(found.layers, block, bind, resident, disk, BUFFERS)
        else:
            layers = StagedLayers(found.layers, block, bind, resident, disk, BUFFERS + 1, set(plan.on_gpu), copier)
        layers.limit, layers.room = plan.seconds, room
        total = sum(layers.extents[n].n_byte for n in (*plan.on_gpu, *plan.resident))
        with track("reading weights", total) as advance:
            layers.fill(advance)
        model.blocks = nn.ModuleList(StreamedBlock(n, layers) for n in range(found.config.n_layer))
        model.requires_grad_(False)  # there are no gradients through layers that come and go
        undo.pop_all()
    weakref.finalize(model, disk.close)
    return Offloaded(model.eval(), found.tokenizer, plan, disk, layers)


def check_dtype(device: torch.device, dtype: torch.dtype | str | None) -> None:
    """Raises UserError for arithmetic that there is not."""
    if device.type == "cpu" and isinstance(dtype, torch.dtype) and dtype != torch.float32:
        raise UserError(
            f"dtype={dtype_name(dtype)} under a memory_budget on a CPU: weights stay as they are saved "
            "and products are in fp32, so leave dtype out (or int8, int4)"
        )


def alike(config: ModelConfig) -> None:
    """Raises UserError for a model whose layers have different weights: a block here is one layer after another."""
    with on_meta():
        if lost := [f"{name}.{key}" for name, key in unsaved(GPT(config))]:
            raise UserError(
                f"{lost[0]} is not in the checkpoint (it is no parameter, and no buffer that is saved), so this model "
                "cannot be streamed: register_buffer(NAME, TENSOR) it, or leave the budget out"
            )
        blocks = [BLOCKS[config.block](config, layer).state_dict() for layer in range(config.n_layer)]
    if any({k: v.shape for k, v in b.items()} != {k: v.shape for k, v in blocks[0].items()} for b in blocks):
        raise UserError(
            "layers that differ in their weights (model.value_residual) cannot be streamed: leave the budget out"
        )


def _name(source: str | Path) -> str:
    """What a quantised copy is called, beside a hash."""
    path = Path(source).expanduser()
    return re.sub(r"[^\w.-]+", "_", (path.resolve() if path.exists() else path).name) or "model"


def _check_room(found: OnDisk, kind: str, budget: int | None, room: Room, layer: int, outside: int) -> None:
    """Raises UserError for a budget too small to quantise, which takes the largest tensor, stored and put together, and
    a layer or what is in none of them, or to run it then. layer, outside: quantised, bytes.
    """
    if budget is None:
        return
    pieces = [piece for part in (found.outside, *found.layers) for piece in part]
    largest = max(len(piece.places) * sum(place.n_byte for place in piece.places) for piece in pieces)
    need = needs(found, torch.float32, room)
    running = outside + need.small + need.working + BUFFERS * layer
    least = memory_in_use() + SLACK + max(largest + max(layer, outside), running)
    if budget < least:
        raise UserError(
            f"memory_budget={say_bytes(budget)} is too small to quantise a layer at a time to {kind} and to run it: "
            f"{at_least(least)} is the least"
        )


@torch.no_grad()
def _fill_outside(model: GPT, found: OnDisk, computed: torch.dtype, device: torch.device, disk: Disk) -> None:
    """Tables as they are stored, all else in what is computed in."""
    if isinstance(found, QuantizedOnDisk):
        with_storage(prepare_quantized(model.to(computed), found.kind), device)
        found.fill_outside(model, disk)
        return
    model.to(computed)
    places = {name: piece.places[0] for piece in found.outside for name in piece.ours}
    for name in ("embedding", "head"):
        table = getattr(model, name)
        if table is not None:
            stored = places[f"{name}.weight"].dtype
            with on_meta():
                setattr(model, name, StoredTable(table.num_embeddings, table.embedding_dim, stored, computed))
    with_storage(model, device)
    fill_from_disk(found.outside, model.state_dict(), disk)
