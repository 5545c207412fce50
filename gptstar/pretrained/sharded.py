"""Checkpoints of a model in shards, through torch.distributed.checkpoint: every rank writes what it holds, and any
number of ranks, one included, reads it back.

    distributed/              weights ("model.NAME") and moments ("optimizer.NAME.KEY"), NAME as in named_parameters()
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule

from gptstar.pretrained.stored import SHARDS

# What torch raises for a folder that is damaged.
DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, CheckpointException)


def write_shards(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup | None
) -> Future:
    """Copies what this rank holds and writes it while the caller goes on; done when all ranks have written theirs.

    group: of its own, for a thread uses it meanwhile. All ranks have to call this.
    """
    if isinstance(model, FSDPModule):
        model.reshard()  # after a forward pass without a backward one it is still gathered in part
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    with _quiet():
        written = dcp.async_save(tensors, checkpoint_id=checkpoint / SHARDS, process_group=group)
    assert isinstance(written, Future)
    return written


def read_shards(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Fills a model, whole or in shards, and an optimizer of its. All ranks of `group` have to call this; None: this
    process alone.

    Raises one of `DAMAGE` for a damaged folder.
    """
    reader = dcp.FileSystemReader(checkpoint / SHARDS)
    tensors: dict[str, Any] = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    if optimizer is not None:
        stored = reader.read_metadata().state_dict_metadata
        for name, parameter in model.named_parameters():
            for full, key in _keys(stored, f"optimizer.{name}."):
                value = _room(stored[full], parameter)
                optimizer.state[parameter][key] = tensors[full] = value
    with _quiet():
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)


def _keys(stored: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    """What is stored below a name, and what remains of its key; names may begin alike, keys have no dots."""
    found = [(full, full.removeprefix(prefix)) for full in stored if full.startswith(prefix)]
    return [(full, key) for full, key in found if "." not in key]


def _room(stored: Any, parameter: Tensor) -> Tensor:
    """Where a moment is to be read: cut as its parameter is, if it has its shape."""
    if not isinstance(stored, TensorStorageMetadata):
        raise ValueError("a moment is not a tensor")
    if stored.size == parameter.shape:
        return torch.zeros_like(parameter.detach(), dtype=stored.properties.dtype)
    return torch.zeros(stored.size, dtype=stored.properties.dtype, device=parameter.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks about its own interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
