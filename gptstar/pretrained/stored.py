"""Tensors on disk, read one at a time: a model is filled without a second copy of it in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptstar.errors import UserError, reason

Stored = dict[str, Callable[[], Tensor]]  # {name: reads the tensor}
SAFE_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHARDS = "distributed"  # the folder of a checkpoint that holds it in shards: sharded.py
BLOCK = 2**22  # numbers that are read at a time where a whole tensor is too much


def is_sharded(checkpoint: Path) -> bool:
    """Whether every rank has written what it held."""
    return (checkpoint / SHARDS).is_dir()


def open_safetensors(path: Path) -> Stored:
    """The tensors of one file. Raises UserError for one that cannot be read or is cut off."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: InSafetensors(path, name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.name} cannot be read ({reason(error)})") from error


@dataclass(frozen=True)
class InSafetensors:
    """One tensor of a file. It is opened anew each time: the mapped pages of an open file add up to a second copy."""

    path: Path
    name: str

    def __call__(self) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name)

    def shape(self) -> torch.Size:
        """What it will be."""
        with safe_open(self.path, framework="pt") as file:
            return torch.Size(file.get_slice(self.name).get_shape())

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, some rows) until all have been read."""
        step = max(1, BLOCK // max(1, self.shape()[1:].numel()))
        for start in range(0, self.shape()[0], step):
            with safe_open(self.path, framework="pt") as file:
                yield start, file.get_slice(self.name)[start : start + step]


def open_pickle(path: Path) -> Stored:
    """The tensors of what torch.save wrote."""
    return in_memory(read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict that torch.save wrote, its tensors left on disk where the file's format allows."""
    content = read_pickle(path)
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path.name} holds no state dict")
    return content


def read_pickle(path: Path) -> dict:
    """A dictionary that torch.save wrote. Read with weights_only: no code in it runs."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):  # files older than torch 1.6
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler stumbles over a strange file in any way there is
        raise UserError(f"{path.name} cannot be read ({reason(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no state dict")
    return content


def in_memory(tensors: dict[str, Tensor]) -> Stored:
    """Tensors that are at hand already."""
    return {name: partial(_itself, tensor) for name, tensor in tensors.items()}


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def save_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A file that others may read if they may read its folder: the library itself leaves it to its owner alone."""
    save_file(tensors, path, metadata=metadata)
    path.chmod(path.parent.stat().st_mode & 0o666)


def dtype_of_folder(folder: Path) -> torch.dtype | None:
    """Of the largest tensor in a folder's first file of weights, else what its config.json says, else None."""
    for file in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(file, "pt") as stored:
            slices = [stored.get_slice(name) for name in stored.keys()]  # noqa: SIM118
            return SAFE_DTYPES.get(max(slices, key=lambda one: math.prod(one.get_shape())).get_dtype())
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    named = values.get("dtype") or values.get("torch_dtype")
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(named)
