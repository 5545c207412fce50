"""GPT-NeoX-20B's published "slim weights" (Black et al., arXiv:2204.06745), as two GPUs a layer left them:

    20B_tokenizer.json
    global_step150000/layer_XX-model_{00,01}-model_states.pt

XX      its tensors, N being the number of transformer layers
00      word_embeddings.weight
i + 2   transformer layer i
N + 3   norm.{weight,bias}
N + 4   final_linear.weight

The two files of an XX are the halves of tensor parallelism (Shoeybi et al., arXiv:1909.08053). The whole is

tensor                                                                  the halves
------------------------------------------------------------------------------------------------------
word_embeddings, final_linear, query_key_value, dense_h_to_4h           one below the other (dim 0)
attention.dense.weight, mlp.dense_4h_to_h.weight                        side by side (dim 1)
attention.dense.bias, mlp.dense_4h_to_h.bias                            summed: each GPU added its own
input_layernorm, post_attention_layernorm, norm                         averaged: each GPU had the whole
attention.rotary_emb.inv_freq                                           not needed
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import Dtype, empty_model
from gptstar.pretrained.family import Entry, all_finite, refuse
from gptstar.pretrained.neox import NEOX
from gptstar.pretrained.stored import read_tensors

TOKENIZER = "20B_tokenizer.json"
FILES = "layer_*-model_*-model_states.pt"
ALONG = {  # tensor: the dimension along which each half has its part
    "word_embeddings.weight": 0,
    "final_linear.weight": 0,
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_h_to_4h.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_4h_to_h.weight": 1,
}
SUMMED = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")
INV_FREQ = "attention.rotary_emb.inv_freq"
HEAD_SIZE = 96  # of the 20B
ROTARY_FRACTION = 0.25
# The published halves' norms drifted apart somewhat (EleutherAI/gpt-neox issue 615). Relative to their mean, equal
# norms differ by 0 and unrelated ones by 2.
MOST_APART = 0.5

Shards = dict[tuple[int, int], dict[str, Tensor]]  # {(XX, half): its tensors}
Plan = dict[int, dict[str, Entry]]  # {XX: {tensor: how ours come out of a half of it}}


def is_neox_slim(path: Path) -> bool:
    """Whether this is such a folder: the one with the tokenizer, or the global_step folder in it."""
    return bool(_shard_folders(path)) or (path / TOKENIZER).is_file()


def load_neox_slim(path: Path, device: torch.device | str = "cpu", dtype: Dtype = None) -> tuple[GPT, Tokenizer]:
    """The model of a slim-weights folder, in evaluation mode, and its tokenizer.

    path: the folder that holds 20B_tokenizer.json and global_step*/, or the global_step folder itself.
    Memory: the model once, and one layer's files while they are merged into it.
    Raises UserError that lists missing, unreadable and unknown files; then missing, unknown and mis-shaped tensors;
    then, while reading the weights, tensors that are not finite and norms of which the halves differ.
    """
    folder = shard_folder(path)
    tokenizer = tokenizer_of(path, folder)
    try:
        shards, config, plan = examine(folder)
        model = empty_model(config, device, dtype, shards[0, 0]["word_embeddings.weight"].dtype)
        _fill(model.state_dict(), shards, plan)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return model.eval(), tokenizer


def examine(folder: Path) -> tuple[Shards, ModelConfig, Plan]:
    """The files of a global_step folder, opened, and what they are, names and shapes checked; raises UserError."""
    shards = _open_shards(folder)
    config = infer_config(shards)
    plan = _plan(config)
    with on_meta():
        _check_tensors(shards, plan, GPT(config).state_dict())
    return shards, config, plan


def neox_slim_config(path: Path) -> ModelConfig:
    """The shape of the model in such a folder."""
    return infer_config(_open_shards(shard_folder(path)))


def infer_config(shards: Shards) -> ModelConfig:
    """The 20B's architecture in the size of these tensors.

    Heads: a quarter of a head's channels turn, two to a frequency, so d_head is 8 times the length of inv_freq; where
    no layer has inv_freq, it is the 20B's 96. Layers: the final norm is file N + 3, the head file N + 4.
    Raises UserError where the sizes cannot be told or are impossible.
    """
    embedding, up = _any(shards, "word_embeddings.weight"), _any(shards, "mlp.dense_h_to_4h.weight")
    if embedding is None or up is None or embedding.ndim != 2 or up.ndim != 2:
        raise UserError("no file has a matrix word_embeddings.weight, or none has a matrix mlp.dense_h_to_4h.weight")
    inv_freq = _any(shards, INV_FREQ)
    d_model, d_head = embedding.shape[1], HEAD_SIZE if inv_freq is None else 8 * inv_freq.numel()
    if not d_head or d_model % (2 * d_head):
        source = "as in the 20B" if inv_freq is None else f"8 times the length of {INV_FREQ}"
        raise UserError(f"{d_model} channels cannot be two halves of whole heads of {d_head} channels ({source})")
    try:
        return ModelConfig(
            name="neox_slim",
            vocab_size=2 * embedding.shape[0],
            n_layer=_count_layers(shards),
            d_model=d_model,
            n_head=d_model // d_head,
            d_ff=2 * up.shape[0],
            context=2048,
            block="parallel",
            position="rotary",
            rotary_fraction=ROTARY_FRACTION,
            activation="gelu_tanh",
            tie_head=False,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _shard_folders(path: Path) -> list[Path]:
    return [f for f in (path, *sorted(path.glob("global_step*"))) if any(f.glob(FILES))]


def shard_folder(path: Path) -> Path:
    """The global_step folder. Raises UserError where there is none, or several."""
    folders = _shard_folders(path)
    if not folders:
        raise UserError(f"{path}: no global_step*/ with files like {file_name(0, 0)} in that folder: is it all there?")
    if len(folders) > 1:
        raise UserError(f"{path} holds several models: name one of {', '.join(map(str, folders))}")
    return folders[0]


def file_name(number: int, half: int) -> str:
    """Of a half of XX."""
    return f"layer_{number:02d}-model_{half:02d}-model_states.pt"


def tokenizer_of(path: Path, folder: Path) -> Tokenizer:
    """That of the folder above, or of the one named."""
    for place in (path, folder, folder.absolute().parent):
        if (place / TOKENIZER).is_file():
            return load_tokenizer(str(place / TOKENIZER), NEOX.eot_token)
    raise UserError(f"{path}: its tokenizer is missing: put {TOKENIZER} into {folder.absolute().parent}")


def _open_shards(folder: Path) -> Shards:
    """All files, their tensors left on disk."""
    shards: Shards = {}
    unreadable, unknown = [], []
    for file in sorted(folder.glob(FILES)):
        numbers = re.fullmatch(r"layer_(\d+)-model_(\d+)-model_states\.pt", file.name)
        if not numbers or file.name != file_name(int(numbers[1]), int(numbers[2])):
            unknown.append(file.name)
            continue
        try:
            shards[int(numbers[1]), int(numbers[2])] = read_tensors(file)
        except UserError as error:
            shards[int(numbers[1]), int(numbers[2])] = {}
            unreadable.append(str(error))
    n_layer = _count_layers(shards)
    wanted = set(keys_of(n_layer))
    refuse(
        {
            "missing files": [file_name(*key) for key in sorted(wanted - shards.keys())],
            "unreadable files": unreadable,
            "unknown files": unknown + [file_name(*key) for key in sorted(shards.keys() - wanted)],
        }
    )
    return shards


def keys_of(n_layer: int) -> list[tuple[int, int]]:
    """(XX, half) of all files of a model of so many layers."""
    return [(number, half) for number in (0, *range(2, n_layer + 2), n_layer + 3, n_layer + 4) for half in (0, 1)]


def _count_layers(shards: Shards) -> int:
    for last, after in (("final_linear.weight", 4), ("norm.weight", 3)):
        for (number, _), tensors in shards.items():
            if last in tensors:
                return number - after
    return max((number for number, _ in shards), default=0) - 1


def _any(shards: Shards, name: str) -> Tensor | None:
    return next((tensors[name] for tensors in shards.values() if name in tensors), None)


def _plan(config: ModelConfig) -> Plan:
    """From the NeoX family's own mapping, for half of the heads."""
    plan: Plan = {}
    outside = {
        "gpt_neox.embed_in": (0, "word_embeddings"),
        "gpt_neox.final_layer_norm": (config.n_layer + 3, "norm"),
        "embed_out": (config.n_layer + 4, "final_linear"),
    }
    for entry in NEOX.entries(replace(config, n_head=config.n_head // 2, d_head=config.head_size)):
        module, _, kind = entry.theirs.rpartition(".")
        if module in outside:
            number, name = outside[module]
        else:
            layer, _, name = module.removeprefix("gpt_neox.layers.").partition(".")
            number = int(layer) + 2
        plan.setdefault(number, {})[f"{name}.{kind}"] = entry
    return plan


def _check_tensors(shards: Shards, plan: Plan, targets: dict[str, Tensor]) -> None:
    """By names and shapes alone. `targets`: our state dict."""
    missing, unknown, misshapen = [], [], []
    for (number, half), tensors in shards.items():
        place = f"in {file_name(number, half)}"
        entries = plan[number]
        missing += [f"{name} {place}" for name in entries if name not in tensors]
        unknown += [f"{name} {place}" for name in tensors if name not in entries and name != INV_FREQ]
        for name, entry in entries.items():
            shape = entry.join([_part(name, targets[ours], half) for ours in entry.ours]).shape
            if name in tensors and tensors[name].shape != shape:
                misshapen.append(f"{name} {place} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
    refuse({"missing tensors": missing, "unknown tensors": unknown, "mis-shaped tensors": misshapen})


@torch.no_grad()
def _fill(targets: dict[str, Tensor], shards: Shards, plan: Plan) -> None:
    """Merges layer by layer into `targets`, our state dict; empties `shards`, so that a merged file's memory goes."""
    broken, apart = [], []
    for number, entries in plan.items():
        halves = [shards.pop((number, half)) for half in (0, 1)]
        for name, entry in entries.items():
            parts = [half[name] for half in halves]
            broken += [f"{name} in {file_name(number, half)}" for half in (0, 1) if not all_finite(parts[half])]
            if are_apart(name, parts):
                apart.append(f"{name} in {file_name(number, 0)} and {file_name(number, 1)}")
            for ours, part in zip(entry.ours, merged(name, entry, parts), strict=True):
                targets[ours].copy_(part)
    refuse({"not finite tensors": broken, "norms that differ between the halves": apart})


def are_apart(name: str, halves: list[Tensor]) -> bool:
    """Whether halves that should be equal are not."""
    if name in ALONG or name in SUMMED:
        return False
    mean = _total(halves) / 2
    return bool((halves[0] - mean).norm() > MOST_APART / 2 * mean.norm())


def merged(name: str, entry: Entry, halves: list[Tensor]) -> list[Tensor]:
    """Ours, from both halves of a tensor of theirs."""
    if name in ALONG:
        return [torch.cat(pieces, ALONG[name]) for pieces in zip(*map(entry.split, halves), strict=True)]
    total = _total(halves)
    return list(entry.split(total if name in SUMMED else total / 2))


def _total(halves: list[Tensor]) -> Tensor:
    exact = torch.promote_types(halves[0].dtype, torch.float32)
    return halves[0].to(exact) + halves[1].to(exact)


def _part(name: str, target: Tensor, half: int) -> Tensor:
    """What of ours a half of theirs fills."""
    return target.chunk(2, ALONG[name])[half] if name in ALONG else target
