"""Where in a file each tensor lies, so that it can be read without any library in between, and without a copy of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptstar.errors import UserError, reason
from gptstar.pretrained.stored import SAFE_DTYPES

# Integers are quantised weights of ours, and masks that old files carry.
DTYPES = SAFE_DTYPES | {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8}
DTYPES |= {"I16": torch.int16, "I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class Place:
    """A tensor's numbers on disk, row after row, without gaps."""

    file: Path
    offset: int  # bytes
    dtype: torch.dtype
    shape: torch.Size

    @property
    def n_byte(self) -> int:
        """How long it is."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.n_byte

    def view(self, raw: Tensor) -> Tensor:
        """The tensor, where raw (uint8) begins with its bytes; they must lie as the dtype wants them aligned."""
        return raw[: self.n_byte].view(self.dtype).view(self.shape)


def in_safetensors(path: Path) -> dict[str, Place]:
    """Of one file. Raises UserError for one that is none, cut off, or holds numbers of kinds that are not known."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if not 0 < n_header <= size - 8:
                raise UserError(f"{path.name} is no safetensors file, or cut off: fetch it again")
            header = json.loads(file.read(n_header))
        start, places = 8 + n_header, {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            if about["dtype"] not in DTYPES:
                raise UserError(f"{path.name}: {name} is in {about['dtype']}: {', '.join(DTYPES)} can be read in place")
            first, last = about["data_offsets"]
            place = Place(path, start + first, DTYPES[about["dtype"]], torch.Size(about["shape"]))
            if place.end != start + last:
                raise UserError(f"{path.name}: {name} has {last - first} bytes and its shape {place.n_byte}: damaged")
            places[name] = place
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name} cannot be read ({reason(error)})") from error
    return _whole(path, size, places)


def in_pickle(path: Path) -> dict[str, Place]:
    """Of what torch.save wrote (torch 1.6 or later): a zip archive that compresses nothing. No code in it runs."""
    try:
        size = path.stat().st_size
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # an unpickler stumbles over a strange file in any way there is
        raise UserError(f"{path.name} cannot be read ({reason(error)})") from error
    places = {}
    for name, tensor in content.items() if isinstance(content, dict) else ():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path.name} holds no state dict: {name} is no tensor")
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None or not tensor.is_contiguous():
            raise UserError(
                f"{path.name}: {name} does not lie in one piece (a file of torch before 1.6?): "
                "save it again with torch.save, or leave memory_budget out"
            )
        offset = start + tensor.storage_offset() * tensor.element_size()
        places[name] = Place(path, offset, tensor.dtype, tensor.shape)
    if not places:
        raise UserError(f"{path.name} holds no state dict")
    return _whole(path, size, places)


def _whole(path: Path, size: int, places: dict[str, Place]) -> dict[str, Place]:
    beyond = [name for name, place in places.items() if place.offset < 0 or place.end > size]
    if beyond:
        raise UserError(f"{path.name} is cut off: {beyond[0]} ends beyond its {size} bytes: fetch it again")
    return places
