"""Which bytes of which files make each layer of a model, whatever layout the files have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.device import dtype_name
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta
from gptstar.model.transformer import GPT
from gptstar.offload.places import Place, in_pickle, in_safetensors
from gptstar.offload.reading import Disk, Extent, new_buffer
from gptstar.pretrained import native, neox_slim, transformers_folder
from gptstar.pretrained.family import Entry, all_finite, refuse
from gptstar.pretrained.load import NATIVE, NEOX_SLIM, TRANSFORMERS, find_layout
from gptstar.pretrained.stored import Stored


@dataclass(frozen=True)
class Piece:
    """Tensors of theirs that together make some of ours.

    name: theirs, for messages. merge: their tensors, in the order of `places` -> ours, in the order of `ours`.
    """

    name: str
    places: tuple[Place, ...]
    ours: tuple[str, ...]
    merge: Callable[[list[Tensor]], Iterable[Tensor]]

    def fill(self, tensors: list[Tensor], targets: dict[str, Tensor], check: bool = True) -> None:
        """Copies into our state dict. check: first."""
        if check:
            self.check(tensors)
        for name, part in zip(self.ours, self.merge(tensors), strict=True):
            targets[name].copy_(part)

    def check(self, tensors: list[Tensor]) -> None:
        """Raises UserError for what is not finite."""
        if not all(all_finite(tensor) for tensor in tensors):
            files = ", ".join(sorted({place.file.name for place in self.places}))
            raise UserError(f"{self.name} in {files} is not finite: the file is damaged, fetch it again")


def fill_from_disk(pieces: list[Piece], targets: dict[str, Tensor], disk: Disk) -> None:
    """Our state dict from files, a piece at a time, so that little of them is there besides."""
    for piece in pieces:
        extent = Extent(piece.places)
        buffer = new_buffer(extent.n_byte)
        disk.read(extent, buffer)
        piece.fill([extent.tensor(place, buffer) for place in piece.places], targets)


def state_of_files(pieces: Iterable[Piece]) -> list[tuple[str, int, int]]:
    """Which files these are in, how long and of when."""
    files = sorted({place.file.resolve() for piece in pieces for place in piece.places})
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@dataclass
class OnDisk:
    """A model in its files. outside: what is in no layer; layers: of each."""

    config: ModelConfig
    tokenizer: Tokenizer
    outside: list[Piece]
    layers: list[list[Piece]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the largest tensor."""
        pieces = [*self.outside, *(piece for layer in self.layers for piece in layer)]
        return max((place for piece in pieces for place in piece.places), key=lambda place: place.n_byte).dtype


def find_layers(source: str | Path) -> OnDisk:
    """What `gptstar.load` would read. Raises UserError for what is missing, too many or mis-shaped, by headers alone,
    and for layouts that cannot be read in place.
    """
    layout, path = find_layout(source)
    if layout is TRANSFORMERS:
        return _transformers(path)
    if layout is NEOX_SLIM:
        return _slim(path)
    if layout is NATIVE:
        return _native(native.find_checkpoint(path))
    raise UserError(f"{source}: files of this kind cannot be read in place: gptstar.export them first")


def _transformers(folder: Path) -> OnDisk:
    family, config = transformers_folder.read_family(folder)
    try:
        places = cast(dict[str, Place], family.named(cast(Stored, _of_folder(folder))))
        tied = ("lm_head.weight", "embed_out.weight") if config.tie_head else ()
        pieces = _paired(config, family.entries(config), places, (*family.ignored, *tied))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return _sorted(config, transformers_folder.tokenizer_of(folder, family), pieces)


def _of_folder(folder: Path) -> dict[str, Place]:
    for name, read in (("model.safetensors", in_safetensors), ("pytorch_model.bin", in_pickle)):
        files = transformers_folder.files_of(folder, name)
        if files:
            return {tensor: place for file in files for tensor, place in read(folder / file).items()}
    raise UserError("no model.safetensors and no pytorch_model.bin")


def _native(folder: Path) -> OnDisk:
    config = native.read_config(folder)
    with on_meta():
        names = GPT(config).state_dict()
    try:
        pieces = _paired(config, [Entry(name, (name,)) for name in names], in_safetensors(folder / "model.safetensors"))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return _sorted(config, load_tokenizer(str(folder / "tokenizer.json"), native.eot_token(folder)), pieces)


def _slim(path: Path) -> OnDisk:
    folder = neox_slim.shard_folder(path)
    tokenizer = neox_slim.tokenizer_of(path, folder)
    try:
        shards, config, plan = neox_slim.examine(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    del shards
    places = {key: in_pickle(folder / neox_slim.file_name(*key)) for key in neox_slim.keys_of(config.n_layer)}
    pieces = []
    for number, entries in plan.items():
        for name, entry in entries.items():
            halves = tuple(places[number, half][name] for half in (0, 1))
            pieces.append(Piece(name, halves, entry.ours, partial(_put_together, name, entry)))
    return _sorted(config, tokenizer, pieces)


def _put_together(name: str, entry: Entry, halves: list[Tensor]) -> Iterable[Tensor]:
    if neox_slim.are_apart(name, halves):
        raise UserError(f"norms that differ between the halves: {name}: the files are not of one model")
    return neox_slim.merged(name, entry, halves)


def _paired(config: ModelConfig, entries: list[Entry], places: dict[str, Place], ignored: tuple = ()) -> list[Piece]:
    with on_meta():
        targets = GPT(config).state_dict()
    wanted = {entry.theirs for entry in entries}
    found = {
        "missing tensors": sorted(wanted - places.keys()),
        "unknown tensors": sorted(name for name in places.keys() - wanted if not name.endswith(ignored or ("\0",))),
    }
    shapes = {e.theirs: e.join([targets[name] for name in e.ours]).shape for e in entries}
    found["mis-shaped tensors"] = sorted(
        f"{name} is {tuple(places[name].shape)}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in places and places[name].shape != shape
    )
    integer = {name: places[name].dtype for name in wanted & places.keys() if not places[name].dtype.is_floating_point}
    found["not floating-point tensors"] = sorted(f"{name} is {dtype_name(dtype)}" for name, dtype in integer.items())
    refuse(found)
    return [Piece(e.theirs, (places[e.theirs],), e.ours, partial(_split, e)) for e in entries]


def _split(entry: Entry, tensors: list[Tensor]) -> Iterable[Tensor]:
    return entry.split(tensors[0])


def _sorted(config: ModelConfig, tokenizer: Tokenizer, pieces: list[Piece]) -> OnDisk:
    outside: list[Piece] = []
    layers: list[list[Piece]] = [[] for _ in range(config.n_layer)]
    for piece in pieces:
        _, dot, rest = piece.ours[0].partition("blocks.")
        if not dot or piece.ours[0].partition("blocks.")[0]:
            outside.append(piece)
            continue
        number, _, _ = rest.partition(".")
        ours = tuple(name.removeprefix(f"blocks.{number}.") for name in piece.ours)
        layers[int(number)].append(replace(piece, ours=ours))
    for layer in layers:  # as they lie on disk, so that reading goes forward
        layer.sort(key=lambda piece: (str(piece.places[0].file), piece.places[0].offset))
    return OnDisk(config, tokenizer, outside, layers)
