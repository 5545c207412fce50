"""`gptstar.load` under a memory budget."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.projections import TokenTable
from gptstar.model.transformer import GPT
from gptstar.offload.layers import OnDisk, find_layers
from gptstar.offload.plan import BUFFERS, Plan, make_plan, whole_bytes
from gptstar.offload.reading import Disk, Extent, new_buffer
from gptstar.offload.stream import SLOTS, Layers, StreamedBlock
from gptstar.pretrained.empty import pick_dtype
from gptstar.pretrained.load import load
from gptstar.quantization.quantize import KINDS
from gptstar.sizes import parse_bytes, say_bytes

ROWS = 1 << 12  # rows of a table that are turned into computed numbers at a time


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
        _end(self.layers, self.disk)


class StoredTable(TokenTable):
    """The table of tokens as it is stored, turned into other numbers where it is read."""

    def __init__(self, n_row: int, n_column: int, stored: torch.dtype, computed: torch.dtype) -> None:
        super().__init__(n_row, n_column, dtype=stored)
        self.computed = computed

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).to(self.computed)

    def scores(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        parts = [F.linear(hidden, rows.to(self.computed)) for rows in self.weight.split(ROWS)]
        scores = torch.cat(parts, -1)
        return scores if bias is None else scores + bias


def load_within(
    source: str | Path,
    device: torch.device,
    dtype: str,
    memory_budget: str,
    n_token: Callable[[Tokenizer], int],
    say: Callable[[str], object],
) -> tuple[GPT, Tokenizer]:
    """What `gptstar.load` gives, within so much memory for the whole process: whole where that fits, else layers stay
    on disk.

    n_token: tokens of all sequences that are to be read and written. say: is told the plan before anything is read.
    Raises UserError as `load_under_budget` does, and for what cannot be had under a budget.
    """
    try:
        budget = parse_bytes(memory_budget)
    except UserError as error:
        raise UserError(f"memory_budget={memory_budget} {error}") from None
    if device.type != "cpu":
        raise UserError(f"memory_budget={memory_budget} is kept on a CPU only so far: add device=cpu")
    if dtype in KINDS:
        raise UserError(f"dtype={dtype} under a memory_budget is not possible yet: leave one of them out")
    found = find_layers(source)
    kept = pick_dtype(dtype)
    computed = kept if isinstance(kept, torch.dtype) else torch.float32
    needed = whole_bytes(found, computed, n_token(found.tokenizer))
    if needed <= budget:
        say(f"memory_budget={say_bytes(budget)}: all of it fits, {say_bytes(needed)}")
        return load(source, device, computed)
    made = load_under_budget(source, budget, computed, n_token(found.tokenizer), say=say)
    return made.model, made.tokenizer


@torch.inference_mode(False)  # another thread writes into the blocks
def load_under_budget(
    source: str | Path,
    budget: int,
    dtype: torch.dtype = torch.float32,
    n_token: int = 512,
    direct: bool = True,
    say: Callable[[str], object] = lambda plan: None,
) -> Offloaded:
    """A model of which as many layers stay in memory as `budget` bytes allow, on the CPU, in evaluation mode.

    source: as `gptstar.load` takes it. dtype: what is computed in, whatever the weights are stored in; in it the
    numbers are those of the model loaded whole. n_token: tokens of all sequences that its cache is to hold.
    direct: disk reads go past the system's page cache. say: is told the plan before weights are read.
    Raises UserError for what cannot be read, and for a budget that is too small for a layer at a time.
    """
    found = find_layers(source)
    alike(found.config)
    disk = Disk(direct)
    try:
        plan = make_plan(found, dtype, budget, n_token, disk)
        say(str(plan))
        with torch.device("meta"):
            model = GPT(found.config)
            blocks = [BLOCKS[found.config.block](found.config, 0) for _ in range(SLOTS)]
        model.blocks = nn.ModuleList()
        _fill_outside(model.to(dtype), found, dtype, disk)
        blocks = [block.to(dtype).to_empty(device="cpu").eval() for block in blocks]
        layers = Layers(found.layers, cast(list[nn.Module], blocks), set(plan.resident), disk, BUFFERS)
        model.blocks = nn.ModuleList(StreamedBlock(n, layers) for n in range(found.config.n_layer))
    except BaseException:
        disk.close()
        raise
    weakref.finalize(model, _end, layers, disk)
    return Offloaded(model.eval(), found.tokenizer, plan, disk, layers)


def _end(layers: Layers, disk: Disk) -> None:
    layers.close()
    disk.close()


def alike(config: ModelConfig) -> None:
    """Raises UserError for a model whose layers have different weights: a block here is one layer after another."""
    with torch.device("meta"):
        blocks = [BLOCKS[config.block](config, layer).state_dict() for layer in range(config.n_layer)]
    if any({k: v.shape for k, v in b.items()} != {k: v.shape for k, v in blocks[0].items()} for b in blocks):
        raise UserError("layers that differ in their weights (model.value_residual) cannot be read one after another")


@torch.no_grad()
def _fill_outside(model: GPT, found: OnDisk, dtype: torch.dtype, disk: Disk) -> None:
    """Tables as they are stored, all else in what is computed in."""
    places = {name: piece.places[0] for piece in found.outside for name in piece.ours}
    for name in ("embedding", "head"):
        table = getattr(model, name)
        if table is not None:
            stored = places[f"{name}.weight"].dtype
            with torch.device("meta"):
                setattr(model, name, StoredTable(table.num_embeddings, table.embedding_dim, stored, dtype))
    model.to_empty(device="cpu")
    targets = model.state_dict()
    for piece in found.outside:
        extent = Extent(piece.places)
        buffer = new_buffer(extent.n_byte)
        disk.read(extent, buffer)
        piece.fill([extent.tensor(place, buffer) for place in piece.places], targets)
