"""The GPT* project's published checkpoints: torch pickles, `*_weights.pth.tar` and `*_complete_state.pth.tar`.

A weights file is the state dict, or {"state_dict": ...}; a complete state also holds optimizer, step and scaler. The
shapes say everything but the number of heads: that stands in the ALiBi slopes, and models without them (the reference
in GPT-2 Medium's shape) have heads of 64 channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.positions import alibi_slopes
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import Dtype, empty_model
from gptstar.pretrained.family import Entry, all_finite, fill, same
from gptstar.pretrained.stored import in_memory, read_pickle

IGNORED = (".attn.slopes", ".attn.mask", "lm_head.weight")  # buffers, and the tied head


def is_star_archive(path: Path) -> bool:
    """Whether a path looks like one, by its name."""
    return path.is_file() and path.name.endswith(".pth.tar")


def load_star_archive(path: Path, device: torch.device | str = "cpu", dtype: Dtype = None) -> tuple[GPT, Tokenizer]:
    """A published GPT*, in evaluation mode, and GPT-2's tokenizer: from the archive's folder, else from the hub.

    Raises UserError for what cannot be read or lists the tensors that do not fit.
    """
    theirs = read_state_dict(path)
    config = _shape(path, theirs)
    model = empty_model(config, device, dtype, theirs["wte.weight"].dtype)
    try:
        fill(model, _entries(model.config), in_memory(theirs), IGNORED)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    local = any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return model.eval(), load_tokenizer(str(path.parent) if local else "gpt2", "<|endoftext|>")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of either kind of archive."""
    content = _read(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict")
    return state


def _read(path: Path) -> dict:
    try:
        return read_pickle(path)
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from error


def star_archive_config(path: Path) -> ModelConfig:
    """The shape of what an archive holds."""
    return _shape(path, read_state_dict(path))


def read_moments(path: Path) -> dict[str, dict[str, Tensor]] | None:
    """AdamW's state for every tensor of ours, {name: {"step", "exp_avg", "exp_avg_sq"}}; None for weights only.

    The original gave its optimizer one group a parameter, in the order in which the modules name them; that is also
    the order of the state dict, less its buffers and the head, which is the embedding. Raises UserError for a state
    that is not AdamW's or does not fit the weights.
    """
    content = _read(path)
    if not isinstance(content.get("optimizer"), dict):
        return None
    theirs = read_state_dict(path)
    entries = {entry.theirs: entry for entry in _entries(_shape(path, theirs))}
    names = [name for name in theirs if not name.endswith(IGNORED)]
    groups = content["optimizer"].get("param_groups", [])
    numbers = [number for group in groups for number in group["params"]]
    state = content["optimizer"].get("state", {})
    if len(numbers) != len(names):
        raise UserError(f"{path}: its optimizer has {len(numbers)} parameters, its model {len(names)}")
    moments: dict[str, dict[str, Tensor]] = {}
    for name, number in zip(names, numbers, strict=True):
        found = state.get(number, {})
        parts = {kind: found.get(kind) for kind in ("exp_avg", "exp_avg_sq")}
        if "step" not in found or any(t is None or t.shape != theirs[name].shape for t in parts.values()):
            raise UserError(f"{path}: its optimizer state for {name} is not AdamW's (it holds {', '.join(found)})")
        if not all(all_finite(t) for t in parts.values()):
            raise UserError(f"{path}: its optimizer state for {name} is not finite")
        step = torch.as_tensor(found["step"], dtype=torch.float32)
        moments[entries[name].ours[0]] = {"step": step, **parts}
    return moments


def _shape(path: Path, theirs: dict[str, Tensor]) -> ModelConfig:
    try:
        return _inferred(path, theirs)
    except KeyError as error:
        raise UserError(f"{path} is no GPT* checkpoint: it has no {error}") from error
    except (ValueError, ZeroDivisionError, IndexError) as error:
        raise UserError(
            f"{path} is no GPT* checkpoint: its tensors have impossible names or shapes ({error})"
        ) from error


def _inferred(path: Path, theirs: dict[str, Tensor]) -> ModelConfig:
    vocab_size, d_model = theirs["wte.weight"].shape
    layers = {int(name.split(".")[1]) for name in theirs if name.startswith("blocks.")}
    slopes = theirs.get("blocks.0.attn.slopes")
    learned = "wpe.weight" in theirs
    without = d_model // 64 if learned else 8  # both published GPT* have 8 heads
    n_head = without if slopes is None else slopes.numel()
    if slopes is not None and not torch.allclose(slopes.flatten().float(), torch.tensor(alibi_slopes(n_head))):
        raise UserError(f"{path}: blocks.0.attn.slopes are not the ALiBi slopes of {n_head} heads")
    return ModelConfig(
        name=path.name.partition(".")[0],
        vocab_size=vocab_size,
        n_layer=max(layers, default=-1) + 1,
        d_model=d_model,
        n_head=n_head,
        d_head=theirs["blocks.0.attn.query.weight"].shape[0] // n_head,
        d_ff=theirs["blocks.0.mlp.fc1.weight"].shape[0],
        context=len(theirs["wpe.weight"]) if learned else 512,
        block="sequential" if "blocks.0.ln2.weight" in theirs else "parallel_shared",
        position="learned" if learned else "alibi",
        activation="gelu",
    )


def _entries(config: ModelConfig) -> list[Entry]:
    entries = [Entry("wte.weight", ("embedding.weight",)), *same("norm", "norm")]
    entries += [Entry("wpe.weight", ("position.learned.weight",))] if config.position == "learned" else []
    for n in range(config.n_layer):
        block = f"blocks.{n}"
        if config.block == "sequential":
            entries += same(f"{block}.ln1", f"{block}.norm1") + same(f"{block}.ln2", f"{block}.norm2")
        else:
            entries += same(f"{block}.ln1", f"{block}.norm")
        for part in ("query", "key", "value"):
            entries += same(f"{block}.attn.{part}", f"{block}.attention.{part}")
        entries += same(f"{block}.attn.fc_resid", f"{block}.attention.output")
        entries += same(f"{block}.mlp.fc1", f"{block}.feedforward.up")
        entries += same(f"{block}.mlp.fc_resid", f"{block}.feedforward.down")
    return entries
