"""How a model lies on the processes that train it: whole on one, a copy on each (DDP), in shards (FSDP), or with every
layer cut up among some (tensor parallelism)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gptstar.device import DTYPES, free_memory, pick_precision
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import empty_model
from gptstar.training.config import TrainConfig, batch_sizes
from gptstar.training.tensor_parallel import (
    ELEMENTWISE,
    build_mesh,
    check_tensor_parallel,
    clip_gradients,
    cut_blocks,
    cut_of,
)
from gptstar.training.world import World

RECOMPILED = 64  # shapes that warm-ups of batch and length may bring before torch.compile gives up


class Whole:
    """One process with the whole model.

    model: the GPT itself, whose parameters an optimizer takes. run: what computes with it, compiled if wanted.
    """

    def __init__(self, model: GPT, world: World, precision: str, compiled: bool) -> None:
        self.model, self.world = model, world
        if compiled:
            let_shapes_vary()
        self.run = cast(GPT, torch.compile(model, dynamic=False) if compiled else model)

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of a microbatch: ranks exchange gradients at the last one only."""
        return nullcontext()

    def clip(self, max_norm: float) -> Tensor:
        """Scales all gradients down where together their norm is above `max_norm`; the norm before."""
        return whole_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm))

    def gathered(self) -> GPT | None:
        """The whole model on rank 0, to sample from and to evaluate; None elsewhere. All ranks have to ask for it."""
        return self.model if self.world.main else None


class Replicated(Whole):
    """A copy on each process; gradients are averaged while the backward pass runs (Li et al., arXiv:2006.15704)."""

    def __init__(self, model: GPT, world: World, precision: str, compiled: bool) -> None:
        super().__init__(model, world, precision, compiled)
        self._copy_within(None)

    def _copy_within(self, group: dist.ProcessGroup | None) -> None:
        devices = [self.world.device.index] if self.world.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            self.run, device_ids=devices, process_group=group, gradient_as_bucket_view=True
        )
        self.run = cast(GPT, self._wrapped)

    def accumulating(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self._wrapped.no_sync()


class TensorParallel(Replicated):
    """Every block cut up among consecutive ranks (`tensor_parallel.py`); each such group has a copy of the model."""

    def __init__(self, model: GPT, world: World, precision: str, compiled: bool) -> None:
        mesh = build_mesh(world)
        self._group = mesh["tensor"]
        cut_blocks(model, self._group)
        Whole.__init__(self, model, world, precision, compiled)
        self._copies = world.n_share > 1
        if self._copies:
            self._copy_within(mesh.get_group("data"))

    def accumulating(self, last: bool) -> AbstractContextManager:
        return super().accumulating(last) if self._copies else nullcontext()

    def clip(self, max_norm: float) -> Tensor:
        return clip_gradients(self.model, max_norm, self._group)

    def gathered(self) -> GPT | None:
        return gather_model(self.model, self.world, self.world.device)


class Sharded(Whole):
    """Weights, gradients and moments in as many shards as there are processes; a block's weights are gathered while it
    computes (ZeRO-3: Rajbhandari et al., arXiv:1910.02054; torch's `fully_shard`, one group a block and one for the
    rest).

    In half precision blocks are gathered in it, and gradients are averaged in fp32. Embedding, head and the stream
    between the blocks stay as autocast has them on one device.
    """

    def __init__(self, model: GPT, world: World, precision: str, compiled: bool) -> None:
        self.model, self.run, self.world = model, model, world
        mesh = init_device_mesh(world.device.type, (world.size,))
        if compiled:
            let_shapes_vary()
        half = MixedPrecisionPolicy(DTYPES[precision], torch.float32, cast_forward_inputs=False)
        policy = MixedPrecisionPolicy() if precision == "fp32" else half
        for block in model.blocks:
            if compiled:  # a block each, because gathering happens between them
                block.compile(dynamic=False)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)

    def accumulating(self, last: bool) -> AbstractContextManager:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def gathered(self) -> GPT | None:
        self.model.reshard()  # type: ignore[operator]  # after a validation it is still gathered in part
        return gather_model(self.model, self.world, self.world.device)


def let_shapes_vary() -> None:
    """Raises torch.compile's limit on shapes, beyond which it would leave a model uncompiled."""
    torch._dynamo.config.recompile_limit = max(RECOMPILED, torch._dynamo.config.recompile_limit)


@torch.no_grad()
def gather_model(model: GPT, world: World, device: torch.device | str) -> GPT | None:
    """A whole copy, in fp32, of a model in parts, made on rank 0 (on its CPU where a GPU has no room); None elsewhere.

    All ranks have to ask for it.
    """
    n_byte = sum(4 * parameter.numel() for parameter in model.parameters())
    if torch.device(device).type == "cuda" and free_memory(torch.device(device)) < 2 * n_byte:
        device = "cpu"
    copy = empty_model(model.config, device, torch.float32, torch.float32) if world.main else None
    targets = copy.parameters() if copy is not None else iter(())
    for parameter in model.parameters():
        whole = whole_tensor(parameter)
        if copy is not None:
            next(targets).copy_(whole)
    return copy


SPREADS: dict[str, type[Whole]] = {"none": Whole, "ddp": Replicated, "fsdp": Sharded}


def pick_spread(world: World) -> type[Whole]:
    """How a model is to lie on these processes."""
    return TensorParallel if world.n_tensor > 1 else SPREADS[world.parallel]


def check_spread(config: TrainConfig, world: World) -> None:
    """Raises UserError for what cannot be trained on these ranks."""
    batch, microbatch = config.trainer.batch_size, config.trainer.microbatch
    if world.n_tensor > 1:
        check_tensor_parallel(config, world)
    n, readers = world.n_share, "ranks" if world.n_tensor == 1 else f"groups of {world.n_tensor} ranks"
    if batch % n:
        raise UserError(f"trainer.batch_size={batch} cannot be divided among {n} {readers}: choose a multiple of {n}")
    if isinstance(microbatch, int) and batch // n % microbatch:
        raise UserError(
            f"trainer.microbatch={microbatch} does not divide the {batch // n} sequences of a rank: lower it"
        )
    for _, size in batch_sizes(config.trainer).stages:
        if size % n:
            raise UserError(
                f"trainer.batch_warmup has steps of {size} sequences, which cannot be divided among {n} {readers}: let "
                f"first and increment be multiples of {n}"
            )
    if world.parallel != "fsdp":
        return
    if config.optimizer.name not in ELEMENTWISE:
        raise UserError(
            f"optimizer={config.optimizer.name} needs whole matrices, which trainer.parallel=fsdp cuts up: choose one "
            f"of {', '.join(ELEMENTWISE)}, or trainer.parallel=ddp"
        )
    if microbatch == "auto":
        raise UserError("trainer.microbatch=auto measures a whole model, not one in shards: set it to a number")
    if pick_precision(config.trainer.precision, world.device) == "fp16":
        raise UserError("trainer.precision=fp16 scales the loss, which trainer.parallel=fsdp cannot: choose bf16")


def whole_tensor(tensor: Tensor, parameter: Tensor | None = None) -> Tensor:
    """A tensor that may be in parts, put together; all ranks have to ask for it.

    parameter: what it is cut like where it has its shape, for example a moment's; None: the tensor itself.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    parameter = tensor if parameter is None else parameter
    cut = cut_of(parameter)
    return tensor if cut is None or tensor.shape != parameter.shape else cut.whole(tensor)


def like_its_parameter(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of what every rank has whole, cut as the parameter is; anything of another shape as it is."""
    cut = cut_of(parameter)
    if cut is not None:
        return cut.part(whole) if whole.ndim == parameter.ndim else whole
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    whole = whole.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
