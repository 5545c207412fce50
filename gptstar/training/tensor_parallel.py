"""Tensor parallelism: ranks that compute every layer together (Megatron-LM: Shoeybi et al., arXiv:1909.08053).

             ┌── column-parallel ──── heads, channels ──── row-parallel ──┐
    x ───────┤   each rank has some rows of     and as many columns of    (+)── y
             └── query, key, value, gate, up       output, down ──────────┘

Forward the terms of y are summed over ranks, backward the gradients of x: two all-reduces of (B, T, C) a sublayer. All
else (embedding, norms, head, biases of y) every rank has whole, with the same gradients. Ranks of such a group read the
same batch.

Weights are plain tensors; a parameter of which a rank has a part says so (`Cut`), so that optimizers need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.overrides import handle_torch_function, has_torch_function_unary

from gptstar.device import pick_precision
from gptstar.errors import UserError
from gptstar.model.attention import AttentionCore
from gptstar.model.block import SharedParallelBlock
from gptstar.model.choices import attends_only
from gptstar.model.matmul import linear
from gptstar.model.meta import on_meta
from gptstar.model.positions import SCHEMES, ALiBi
from gptstar.model.projections import FusedLinear, Linear
from gptstar.model.transformer import GPT
from gptstar.training.config import TrainConfig
from gptstar.training.world import World

ELEMENTWISE = ("adamw", "lion")  # optimizers that move every weight by itself


@dataclass(frozen=True)
class Cut:
    """Which part of a tensor the ranks of `mesh` have: of each of the pieces side by side along `dim`, of these whole
    widths, an equal share.
    """

    mesh: DeviceMesh
    dim: int
    widths: Sequence[int]

    def part(self, whole: Tensor) -> Tensor:
        """This rank's, a copy."""
        pieces = whole.split(list(self.widths), self.dim)
        return torch.cat([p.chunk(self.mesh.size(), self.dim)[self.mesh.get_local_rank()] for p in pieces], self.dim)

    @torch.no_grad()
    def whole(self, part: Tensor) -> Tensor:
        """The inverse of `part`; all ranks have to ask for it."""
        pieces = part.split([width // self.mesh.size() for width in self.widths], self.dim)
        return torch.cat([self._joined(piece) for piece in pieces], self.dim)

    def _joined(self, piece: Tensor) -> Tensor:
        return DTensor.from_local(piece.contiguous(), self.mesh, [Shard(self.dim)]).full_tensor()


def cut_of(parameter: Tensor) -> Cut | None:
    """How a parameter is cut; None: it is not."""
    return getattr(parameter, "cut", None)


def _cut(parameter: Tensor, cut: Cut) -> nn.Parameter:
    part = nn.Parameter(cut.part(parameter.detach()), parameter.requires_grad)
    part.cut = cut  # type: ignore[attr-defined]
    return part


def summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over ranks; the gradient of each term is that of the sum."""
    if has_torch_function_unary(x):  # something watches
        return handle_torch_function(summed, (x,), x, mesh)
    return DTensor.from_local(x, mesh, [Partial()]).redistribute(placements=[Replicate()]).to_local()


def read(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """x, which all ranks have; its gradient is the sum of theirs."""
    if has_torch_function_unary(x):
        return handle_torch_function(read, (x,), x, mesh)
    device = x.device.type
    if torch.is_autocast_enabled(device):  # what reads it would do so, but then fp32 gradients were sent
        x = x.to(torch.get_autocast_dtype(device))
    return DTensor.from_local(x, mesh, [Replicate()]).to_local(grad_placements=[Partial()])


class ColumnParallel(FusedLinear):
    """This rank's rows of layers that share their input: (..., d) -> (..., total / N)."""

    def __init__(self, whole: FusedLinear, mesh: DeviceMesh) -> None:
        parts = {name: width // mesh.size() for name, width in whole.parts.items()}
        with on_meta():
            super().__init__(parts, whole.weight.shape[1], bias=whole.biased)
        self.mesh = mesh
        self.weight = _cut(whole.weight, Cut(mesh, 0, [*whole.parts.values()]))
        if whole.bias is not None:
            self.bias = _cut(whole.bias, Cut(mesh, 0, [whole.parts[name] for name in whole.biased]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(read(x, self.mesh))


class RowParallelSum(FusedLinear):
    """This rank's columns of layers whose sum is the output: (..., total / N) -> (..., d), summed over ranks."""

    def __init__(self, whole: FusedLinear, mesh: DeviceMesh) -> None:
        parts = {name: width // mesh.size() for name, width in whole.parts.items()}
        with on_meta():
            super().__init__(parts, whole.weight.shape[0], join="inputs", bias=whole.biased)
        self.mesh, self.bias = mesh, whole.bias
        self.weight = _cut(whole.weight, Cut(mesh, 1, [*whole.parts.values()]))

    def forward(self, x: Tensor) -> Tensor:
        return _row_parallel(x, self.weight, self._whole_bias(), self.mesh)


class RowParallel(Linear):
    """This rank's columns of one layer: (..., d_in / N) -> (..., d_out), summed over ranks."""

    def __init__(self, whole: Linear, mesh: DeviceMesh) -> None:
        super().__init__(whole.in_features // mesh.size(), whole.out_features, whole.bias is not None, "meta")
        self.mesh, self.bias = mesh, whole.bias
        self.weight = _cut(whole.weight, Cut(mesh, 1, [whole.in_features]))

    def forward(self, x: Tensor) -> Tensor:
        return _row_parallel(x, self.weight, self.bias, self.mesh)


def _row_parallel(x: Tensor, weight: Tensor, bias: Tensor | None, mesh: DeviceMesh) -> Tensor:
    y = summed(linear(x, weight), mesh)
    return y if bias is None else y + bias.to(y.dtype)  # once, after the sum


def cut_blocks(model: GPT, mesh: DeviceMesh) -> None:
    """Leaves to this rank of a one-dimensional mesh its share of every block, in place; no communication.

    The model is whole and the same on all ranks, and one that `check_tensor_parallel` lets pass.
    """
    n = mesh.size()
    for block in model.blocks:
        for path, module in list(block.named_modules()):
            if isinstance(module, FusedLinear):
                kind = ColumnParallel if module.join == "outputs" else RowParallelSum
                block.set_submodule(path, kind(module, mesh))
            elif isinstance(module, Linear):
                block.set_submodule(path, RowParallel(module, mesh))
            elif isinstance(module, AttentionCore):
                module.widths = [width // n for width in module.widths]
                for shared in (module.query_norm, module.key_norm, module.value_mix):
                    for parameter in shared.parameters() if shared is not None else ():
                        # All heads share it, and each rank has seen its own only.
                        parameter.register_hook(lambda gradient: summed(gradient, mesh))
        if isinstance(block, SharedParallelBlock):
            reads, writes = block.widths
            block.widths = (reads // n, writes // n)
    share, first = model.config.n_head // n, mesh.get_local_rank()
    for scheme in model.position.values():
        if isinstance(scheme, ALiBi):
            scheme.heads = slice(first * share, (first + 1) * share)


def build_mesh(world: World) -> DeviceMesh:
    """Dimensions data and tensor; consecutive ranks, which share a machine, have neighbouring places in the latter."""
    ranks = torch.arange(world.size).view(world.n_share, world.n_tensor)
    # Groups that torch makes for a mesh would wait for its own time, not for the configured one.
    groups = [_own_group(lists, world) for lists in (ranks.t().tolist(), ranks.tolist())]
    return DeviceMesh.from_group(groups, world.device.type, ranks, mesh_dim_names=("data", "tensor"))


def _own_group(lists: list[list[int]], world: World) -> dist.ProcessGroup:
    """Of groups that all ranks make together, the one that this rank is in."""
    made = [dist.new_group(ranks, timeout=world.timeout) for ranks in lists]
    return next(group for ranks, group in zip(lists, made, strict=True) if world.rank in ranks)


@torch.no_grad()
def clip_gradients(model: GPT, max_norm: float, mesh: DeviceMesh) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` for the whole model: the same norm, 0-dimensional, on all ranks of the mesh."""
    trained = [p for p in model.parameters() if p.grad is not None]
    cut = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in trained if cut_of(p)])
    common = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in trained if not cut_of(p)])
    norm = (summed(cut.square(), mesh) + common.square()).sqrt()
    torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


def check_tensor_parallel(config: TrainConfig, world: World) -> None:
    """Raises UserError for what tensor_parallel ranks cannot compute together."""
    n, model = world.n_tensor, config.model
    setting = f"trainer.tensor_parallel={n}"
    if world.size % n:
        started = f"{world.size} process was" if world.size == 1 else f"{world.size} processes were"
        raise UserError(f"{setting}, but {started} started: start a multiple of {n} (torchrun --nproc-per-node={n})")
    if world.parallel == "fsdp":
        raise UserError(f"{setting} goes with copies, not with trainer.parallel=fsdp: choose trainer.parallel=ddp")
    if not attends_only(model):
        raise UserError(
            f"{setting} needs a block in which only attention mixes tokens, not model.block={model.block}: choose "
            "sequential, parallel or parallel_shared, or trainer.tensor_parallel=1"
        )
    widths = {"n_head": model.n_head, "n_kv_head": model.n_key_value, "d_ff": model.d_feedforward}
    for key, width in widths.items():
        if width % n:
            raise UserError(
                f"model.{key}={width} cannot be divided among {setting} ranks: choose a multiple of {n}, "
                "or a tensor_parallel that divides it"
            )
    for name in model.schemes:
        if SCHEMES[name].bias_kind != "none" and SCHEMES[name] is not ALiBi:
            raise UserError(
                f"model.position={name} learns a bias for each head, which {setting} does not divide: choose another "
                "one, e.g. alibi, or trainer.tensor_parallel=1"
            )
    if model.adapter_width:
        raise UserError(f"model.adapter_width={model.adapter_width}: adapters need trainer.tensor_parallel=1, not {n}")
    if config.optimizer.name not in ELEMENTWISE:
        raise UserError(
            f"optimizer={config.optimizer.name} needs whole matrices, which {setting} cuts up: choose one of "
            f"{', '.join(ELEMENTWISE)}, or trainer.tensor_parallel=1"
        )
    if pick_precision(config.trainer.precision, world.device) == "fp16":
        raise UserError(f"trainer.precision=fp16 scales the loss, which {setting} cannot: choose bf16")
