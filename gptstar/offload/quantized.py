"""A model in 8 or 4 bits, kept on disk for the next start:

    FOLDER/NAME-int4-HASH/
        quantized.json        kind, configuration, and the SHA-256 of each file's numbers
        tokenizer.json
        outside.safetensors   what is in no layer
        layer-0000.safetensors ...

The hash is of the original's files (names, sizes, times), so a file that has changed is quantised again. A folder gets
its name when all of it is written; nothing without that name is ever read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gptstar.data.cache import only_one
from gptstar.data.tokenizer import load_tokenizer
from gptstar.errors import UserError
from gptstar.files import cache_folder
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta, with_storage
from gptstar.model.transformer import GPT
from gptstar.offload.layers import OnDisk, Piece, fill_from_disk, state_of_files
from gptstar.offload.places import Place, in_safetensors
from gptstar.offload.reading import Disk, Extent, new_buffer
from gptstar.pretrained.stored import save_safetensors
from gptstar.quantization.int4 import GROUP, Int4Matrix
from gptstar.quantization.int8 import Int8Matrix
from gptstar.quantization.quantize import prepare_quantized
from gptstar.sizes import say_bytes

FORMAT = 1
ROOM = 2**30  # bytes that stay free on the disk
# (what is done, how much there is of it) -> a context whose function is told how much more of it is done
Track = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
MATRICES = (Int8Matrix, Int4Matrix)


def silent(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows no progress."""
    return nullcontext(lambda amount: None)


def default_folder() -> Path:
    """Where copies are kept unless another folder is named."""
    return cache_folder() / "quantized"


def quantized_copy(
    found: OnDisk,
    name: str,
    kind: str,
    folder: Path,
    disk: Disk,
    say: Callable[[str], object] = lambda text: None,
    track: Track = silent,
    check: Callable[[int, int], object] = lambda layer, outside: None,
) -> QuantizedOnDisk:
    """The model in so many bits, read from its copy, which is made first where there is none.

    found: the exact one. name: what the copy is called, beside a hash. check: told, before one is made, how many bytes
    a layer takes and what is in no layer; it may raise.
    Memory: one layer as it is stored and quantised.
    Raises UserError for weights that are damaged, and for a disk that has no room; then nothing is left behind.
    """
    path = folder / f"{name[:100]}-{kind}-{_identity(found, kind)}"
    try:
        if not path.is_dir():
            check(*map(_n_byte, _empty(found.config, kind)))
            folder.mkdir(parents=True, exist_ok=True)
            with only_one(folder / f".{path.name}.lock", path.name, say):
                if not path.is_dir():
                    _make(found, kind, path, disk, say, track)
    except OSError as error:
        remedy = "name another folder with quantized_dir"
        raise UserError(f"{folder} cannot be written to ({error.strerror or error}): {remedy}") from error
    return _open(path, found, kind)


@dataclass
class QuantizedOnDisk(OnDisk):
    """Read from a copy: a piece is a buffer or a parameter of a quantised block.

    digests: of each layer's numbers. outside_digest: of those in no layer.
    """

    kind: str
    path: Path
    digests: list[str]
    outside_digest: str

    def check(self, layer: int, tensors: list[list[Tensor]]) -> None:
        """Raises UserError where a layer's numbers are not those that were written."""
        self._compare(self.digests[layer], [one for some in tensors for one in some], _layer_file(layer))

    def fill_outside(self, model: GPT, disk: Disk) -> None:
        """Puts what is in no layer into a model prepared by `prepare_quantized`, which has no blocks."""
        extent = Extent(place for piece in self.outside for place in piece.places)
        buffer = new_buffer(extent.n_byte)
        disk.read(extent, buffer)
        tensors = [extent.tensor(piece.places[0], buffer) for piece in self.outside]
        self._compare(self.outside_digest, tensors, "outside.safetensors")
        targets = contents(model)
        for piece, tensor in zip(self.outside, tensors, strict=True):
            targets[piece.name].copy_(tensor)
        _filled(model)

    def _compare(self, wanted: str, tensors: list[Tensor], file: str) -> None:
        if digest(tensors) != wanted:
            raise UserError(f"{self.path / file} is damaged: delete {self.path}, and it is made again")


class QuantizedBinding:
    """Of the layers of a copy to a quantised block: matrices are given views, the rest is copied."""

    def __init__(self, block: nn.Module, found: QuantizedOnDisk) -> None:
        self.found = found
        self._small = {name: tensor for name, tensor in contents(block).items() if not _matrix(block, name)}
        self._large = {name: _matrix(block, name) for name in contents(block) if name not in self._small}

    @torch.no_grad()
    def bind(self, layer: int, pieces: list[Piece], tensors: list[list[Tensor]], first: bool) -> None:
        """As `Layers` wants it."""
        if first:
            self.found.check(layer, tensors)
        for piece, (tensor,) in zip(pieces, tensors, strict=True):
            if piece.name in self._small:
                self._small[piece.name].copy_(tensor)
            else:
                setattr(self._large[piece.name], piece.name.rpartition(".")[2], tensor)


def contents(module: nn.Module) -> dict[str, Tensor]:
    """All that makes a quantised module what it is, by name: parameters, and what its matrices consist of."""
    found: dict[str, Tensor] = dict(module.named_parameters())
    for path, child in module.named_modules():
        if isinstance(child, MATRICES):
            found |= {f"{path}.{name}": tensor for name, tensor in child.named_buffers() if tensor.numel()}
    return found


def digest(tensors: list[Tensor]) -> str:
    """SHA-256 of the numbers of tensors, one after another."""
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def _matrix(module: nn.Module, name: str) -> nn.Module | None:
    parent = module.get_submodule(name.rpartition(".")[0])
    return parent if isinstance(parent, MATRICES) else None


def _filled(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, Int4Matrix):
            child.filled()


def _identity(found: OnDisk, kind: str) -> str:
    pieces = [*found.outside, *(piece for layer in found.layers for piece in layer)]
    made_of = [FORMAT, GROUP, kind, asdict(found.config), found.tokenizer.fingerprint(), state_of_files(pieces)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def _make(found: OnDisk, kind: str, path: Path, disk: Disk, say: Callable[[str], object], track: Track) -> None:
    block, outside = _empty(found.config, kind)
    needed = len(found.layers) * _n_byte(block) + _n_byte(outside)
    free = shutil.disk_usage(path.parent).free
    if needed + ROOM > free:
        raise UserError(
            f"the {kind} copy takes {say_bytes(needed)}, {say_bytes(ROOM)} more is to stay free, and {path.parent} has "
            f"{say_bytes(free)} free: make room, or name another folder with quantized_dir"
        )
    say(f"quantising to {kind} once, {say_bytes(needed)} into {path}")
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        digests = {}
        with track(f"quantising to {kind}", len(found.layers) + 1) as advance:
            for name, pieces, module in (
                ("outside", found.outside, outside),
                *((f"layer-{n:04d}", layer, block) for n, layer in enumerate(found.layers)),
            ):
                with_storage(module, "cpu")
                fill_from_disk(pieces, module.state_dict(), disk)
                digests[name] = _write(part / f"{name}.safetensors", contents(module))
                advance(1)
        found.tokenizer.save(part / "tokenizer.json")
        manifest = {"format": FORMAT, "kind": kind, "model": asdict(found.config), "digests": digests}
        (part / "quantized.json").write_text(json.dumps({**manifest, "eot_token": found.tokenizer.eot_token}, indent=1))
        _sync(part / "quantized.json")
        _sync(part / "tokenizer.json")
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        remedy = "make room, or name another folder with quantized_dir" if full else str(error)
        raise UserError(f"the {kind} copy could not be written to {path.parent}: {remedy}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _empty(config: ModelConfig, kind: str) -> tuple[nn.Module, nn.Module]:
    """A layer, and what is in none, without contents."""
    with on_meta():
        block: nn.Module = BLOCKS[config.block](config, 0)
        return prepare_quantized(block, kind), prepare_quantized(without_blocks(config), kind)


def _n_byte(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in contents(module).values())


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    save_safetensors(tensors, path)
    _sync(path)
    places = in_safetensors(path)
    return digest([tensors[name] for name in sorted(places, key=lambda name: places[name].offset)])


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _open(path: Path, exact: OnDisk, kind: str) -> QuantizedOnDisk:
    try:
        manifest = json.loads((path / "quantized.json").read_text())
        digests = manifest["digests"]
        if manifest["kind"] != kind:
            raise ValueError(f"it is in {manifest['kind']}")
        tokenizer = load_tokenizer(str(path / "tokenizer.json"), manifest["eot_token"])
        outside = _pieces(in_safetensors(path / "outside.safetensors"))
        layers = [_pieces(in_safetensors(path / _layer_file(n))) for n in range(exact.config.n_layer)]
        each = [digests[_layer_file(n).removesuffix(".safetensors")] for n in range(len(layers))]
        opened = QuantizedOnDisk(exact.config, tokenizer, outside, layers, kind, path, each, digests["outside"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    wanted = [{n: (t.shape, t.dtype) for n, t in contents(part).items()} for part in _empty(exact.config, kind)]
    for expected, pieces in ((wanted[1], outside), *((wanted[0], layer) for layer in layers)):
        if expected != {piece.name: (piece.places[0].shape, piece.places[0].dtype) for piece in pieces}:
            raise UserError(f"{path} is damaged (tensors of other shapes): delete it, and it is made again")
    return opened


def _pieces(places: dict[str, Place]) -> list[Piece]:
    ordered = sorted(places.items(), key=lambda item: item[1].offset)
    return [Piece(name, (place,), (name,), list) for name, place in ordered]


def _layer_file(layer: int) -> str:
    return f"layer-{layer:04d}.safetensors"


def without_blocks(config: ModelConfig) -> GPT:
    """All of a model but its layers."""
    model = GPT(config)
    model.blocks = nn.ModuleList()
    return model
