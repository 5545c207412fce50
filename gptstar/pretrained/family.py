"""What a family of published models is: its configuration and its tensor names, mapped both ways.

Each family is one file beside this one: a `Family` whose `entries` pair every tensor of theirs with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.stored import InSafetensors, Stored
from gptstar.pretrained.telling import tell
from gptstar.quantization.layers import Home

ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATION_NAMES |= {"relu": "relu"}
MOST_LISTED = 20  # names of each fault


def _alone(tensor: Tensor) -> Iterable[Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs and the tensors of ours it holds, with the way there and back."""

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], Iterable[Tensor]] = _alone
    join: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]


@dataclass(frozen=True)
class Family:
    """`model_type` is transformers' name. `ignored`: ends of names of buffers that old files carry. `files`: what an
    exported folder holds besides, {name: text}.
    """

    model_type: str
    eot_token: str
    read_config: Callable[[dict], ModelConfig]
    write_config: Callable[[ModelConfig], dict]
    entries: Callable[[ModelConfig], list[Entry]]
    prefix: str
    aliases: dict[str, str] = field(default_factory=dict)  # other spellings of a name: {seen: canonical}
    ignored: tuple[str, ...] = (".attn.bias", ".masked_bias", "rotary_emb.inv_freq", ".attention.bias")
    files: Callable[[ModelConfig], dict[str, str]] = lambda config: {}

    def fill(self, model: GPT, theirs: Stored) -> None:
        """Puts their tensors into a model of this family's shape. Raises UserError as `fill` does."""
        tied = ("lm_head.weight", "embed_out.weight") if model.config.tie_head else ()
        fill(model, self.entries(model.config), self.named(theirs), ignored=(*self.ignored, *tied))

    def dtype(self, theirs: Stored, config: ModelConfig) -> torch.dtype:
        """Of the stored weights: that of the first one the model has (old files carry buffers of other types)."""
        named = self.named(theirs)
        return next((named[e.theirs]().dtype for e in self.entries(config) if e.theirs in named), torch.float32)

    def named(self, theirs: Stored) -> Stored:
        """Their tensors under the names that `entries` has."""
        theirs = {self.aliases.get(name, name): read for name, read in theirs.items()}
        if not any(name.startswith(self.prefix) for name in theirs):  # saved from the model without its head
            heads = ("lm_head", "embed_out")
            theirs = {n if n.startswith(heads) else self.prefix + n: read for n, read in theirs.items()}
        return theirs

    def export_weights(self, ours: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Their state dict; importing it again gives the same bits."""
        return {
            entry.theirs: entry.join([ours[name] for name in entry.ours]).contiguous() for entry in self.entries(config)
        }


@torch.no_grad()
def fill(model: GPT, entries: list[Entry], theirs: Stored, ignored: tuple[str, ...] = ()) -> None:
    """Copies their tensors into a model, one at a time. Names that end in one of `ignored` may be there or not.

    Raises UserError that lists missing and unknown tensors, or, after reading, mis-shaped and not finite ones.
    """
    targets = model.state_dict()
    wanted = {entry.theirs: entry for entry in entries}
    covered = {name for entry in entries for name in entry.ours}
    refuse(
        {
            "missing tensors": sorted(wanted.keys() - theirs.keys()) + sorted(targets.keys() - covered),
            "unknown tensors": sorted(name for name in theirs.keys() - wanted.keys() if not name.endswith(ignored)),
        }
    )
    # The largest first: while it is held beside its copy, most of the model's memory has not been touched yet.
    order = sorted(wanted.values(), key=lambda entry: -sum(targets[name].numel() for name in entry.ours))
    misshapen: list[str] = []
    broken: list[str] = []
    for number, entry in enumerate(order):
        tell(number / len(order))
        read = theirs[entry.theirs]
        homes = [targets[name] for name in entry.ours]
        if isinstance(homes[0], Home) and isinstance(read, InSafetensors) and entry.split is _alone:
            _fill_by_blocks(homes[0], read, misshapen, broken)
            continue
        tensor = read()
        shape = entry.join([home.to("meta") for home in homes]).shape
        if tensor.shape != shape:
            misshapen.append(f"{entry.theirs} is {tuple(tensor.shape)}, not {tuple(shape)}")
            continue
        if not all_finite(tensor):
            broken.append(entry.theirs)
            continue
        for home, part in zip(homes, entry.split(tensor), strict=True):
            home.copy_(part)
    refuse({"mis-shaped tensors": sorted(misshapen), "not finite tensors": sorted(broken)})


def _fill_by_blocks(home: Home, read: InSafetensors, misshapen: list[str], broken: list[str]) -> None:
    """A table of tokens is a third of a small model: quantising it should not take as much memory again."""
    shape = read.shape()
    if shape != home.shape:
        misshapen.append(f"{read.name} is {tuple(shape)}, not {tuple(home.shape)}")
        return
    for start, rows in read.blocks():
        if not all_finite(rows):
            broken.append(read.name)
            return
        home.copy_from(start, rows)


def refuse(found: dict[str, list[str]]) -> None:
    """Raises UserError that lists what was found, {kind of fault: names}, if anything was; of many the first."""
    listed = []
    for what, names in found.items():
        more = [f"and {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []
        if names:
            listed.append(f"{what}: {', '.join(names[:MOST_LISTED] + more)}")
    if listed:
        raise UserError("; ".join(listed))


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN; `aminmax` passes NaN on and is many times faster than `isfinite`."""
    if not tensor.numel():
        return True
    least, greatest = tensor.aminmax()
    return bool(least.isfinite() and greatest.isfinite())


def same(theirs: str, ours: str, kinds: tuple[str, ...] = ("weight", "bias")) -> list[Entry]:
    """A module that is laid out alike: THEIRS.weight is OURS.weight, and so on."""
    return [Entry(f"{theirs}.{kind}", (f"{ours}.{kind}",)) for kind in kinds]


def transposed(theirs: str, *ours: str) -> list[Entry]:
    """A Conv1D of GPT-2, weights (in, out), that holds the Linear layers `ours` side by side."""
    n = len(ours)
    return [
        Entry(
            f"{theirs}.weight",
            tuple(f"{name}.weight" for name in ours),
            lambda t: [part.t() for part in t.chunk(n, -1)],
            lambda parts: torch.cat([part.t() for part in parts], -1),
        ),
        Entry(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours), lambda t: t.chunk(n, -1), torch.cat),
    ]


def activation(config: dict, key: str) -> str:
    """Our name of their activation function."""
    name = config.get(key, "gelu_new")
    if name not in ACTIVATION_NAMES:
        raise UserError(f"{key}={name!r} is not supported: {', '.join(ACTIVATION_NAMES)} are")
    return ACTIVATION_NAMES[name]


def their_activation(config: ModelConfig) -> str:
    """transformers' name of our activation function."""
    return {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}[config.activation]


def rotary_settings(config: dict, fraction: float) -> dict:
    """Base and fraction, from the newer `rope_parameters` or the older keys. UserError for a scaled rotary encoding."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope_type={kind!r} is not supported: default is")
    base = rope.get("rope_theta") or config.get("rope_theta") or config.get("rotary_emb_base") or 10_000.0
    share = (
        rope.get("partial_rotary_factor") or config.get("rotary_pct") or config.get("partial_rotary_factor") or fraction
    )
    return {"rotary_base": float(base), "rotary_fraction": float(share)}


def even_rotary(config: ModelConfig) -> ModelConfig:
    """The configuration, unless the turning channels of a head do not make pairs: transformers then turns one more."""
    turning = int(config.head_size * config.rotary_fraction)
    if turning % 2:
        raise UserError(
            f"{turning} rotary channels in heads of {config.head_size} are not supported: an even number is"
        )
    return config
