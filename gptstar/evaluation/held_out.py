"""Held-out loss: nats a token and bits a byte over fixed windows of the validation stream."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptstar.cpu.fast_linear import fast_linear
from gptstar.data.batches import document_numbers, read_windows, window_count
from gptstar.data.config import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.shards import TokenStream
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig
from gptstar.device import autocast
from gptstar.errors import UserError
from gptstar.evaluation.checkpoint import context_length
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import find_checkpoint, read_run_config


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy over `tokens` tokens.

    bits_per_byte: loss / ln 2 * tokens / bytes of the whole split, so that tokenizers can be compared. Byte counts
    leave out end-of-text tokens, losses include them.
    """

    loss: float
    bits_per_byte: float
    tokens: int


def loss_within_documents(model: GPT, eot_id: int | None) -> Callable[..., Tensor]:
    """`model(inputs, targets)` whose attention stays within documents: those numbered by a third argument, or those
    that `eot_id` ends. None: the model alone.
    """

    def loss(inputs_BT: Tensor, targets_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
        if eot_id is None:
            return model(inputs_BT, targets_BT)
        numbers = document_numbers(inputs_BT, eot_id) if document_BT is None else document_BT
        return model(inputs_BT, targets_BT, document_BT=numbers)

    return loss


@torch.no_grad()
def held_out_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    stream: TokenStream,
    length: int,
    batch: int,
    device: torch.device,
    precision: str = "fp32",
    max_tokens: int | None = None,
    rank: int = 0,
    n_rank: int = 1,
    total: Callable[[Tensor], Tensor] = torch.clone,
    compiled: bool = False,
) -> HeldOutLoss:
    """The loss of `model(inputs, targets)` over disjoint windows of `length` tokens, each read from its own start.

    max_tokens: about how many tokens, in evenly spaced windows; None reads every window. `batch` windows at a time.
    rank, n_rank: which share of the windows is read here, where several processes do it; total: adds up what they find.
    All of them call the model equally often, for it may be in shards.
    compiled: by torch.compile, whose products are left as they are; otherwise they are the fastest the device has.
    """
    n_all = window_count(len(stream), length)
    n_window = n_all if max_tokens is None else min(n_all, max(1, max_tokens // length))
    starts = np.arange(n_window) * n_all // n_window * length
    own, nats = starts[rank::n_rank], 0.0
    for start in range(0, -(-n_window // n_rank), batch):
        some = own[start : start + batch]
        inputs, targets = (x.to(device) for x in read_windows(stream, some if len(some) else starts[:1], length))
        with autocast(precision, device), nullcontext() if compiled else fast_linear(device, torch.float32):
            nats += model(inputs, targets).item() * len(some)
    loss = total(torch.tensor(nats, dtype=torch.float64)).item() / n_window
    tokens_per_byte = len(stream) / max(1, stream.split.bytes)
    return HeldOutLoss(loss, loss / math.log(2) * tokens_per_byte, n_window * length)


def held_out_losses(
    model: Callable[[Tensor, Tensor], Tensor],
    streams: dict[str, TokenStream],
    length: int,
    batch: int,
    device: torch.device,
    precision: str = "fp32",
    max_tokens: int | None = None,
    **others,
) -> tuple[HeldOutLoss, dict[str, HeldOutLoss]]:
    """The loss on the held-out text of all corpora, each counted by its size, and on that of each.

    max_tokens: of all together. others: as for `held_out_loss`.
    """
    sizes = {name: len(stream) for name, stream in streams.items()}
    total = sum(sizes.values())
    each = {}
    for name, stream in streams.items():
        share = None if max_tokens is None else max(1, max_tokens * sizes[name] // total)
        each[name] = held_out_loss(model, stream, length, batch, device, precision, share, **others)
    if len(each) == 1:
        return next(iter(each.values())), each
    nats = sum(found.loss * sizes[name] for name, found in each.items())
    n_byte = sum(stream.split.bytes for stream in streams.values())
    n_token = sum(found.tokens for found in each.values())
    return HeldOutLoss(nats / total, nats / math.log(2) / max(1, n_byte), n_token), each


def checkpoint_of_run(checkpoint: str) -> Path:
    """The checkpoint folder that is meant. Raises UserError for one that is in no run, and for other people's."""
    try:
        folder = find_checkpoint(checkpoint)
        if (folder.parent.parent / "config.yaml").is_file():
            return folder
    except UserError:
        pass
    raise UserError(
        f"checkpoint={checkpoint}: held_out needs a checkpoint inside a run folder, which says what it was trained on: "
        "name one, or leave held_out out of tasks"
    )


def open_held_out(
    checkpoint: str, model: GPT, tokenizer: Tokenizer, length: int | None
) -> tuple[dict[str, TokenStream], int, Callable[..., Tensor]]:
    """The held-out text of the run that a checkpoint comes from, by corpus, the length of the windows to read it in,
    and what gives their loss as in training.

    length: what is wanted; None: as in training. Raises UserError for what is no run, whose corpus or tokenizer has
    changed, and for a length that the model or the split is too short for.
    """
    folder = checkpoint_of_run(checkpoint)
    run = read_run_config(folder.parent.parent)
    length = context_length(model, length or run["trainer"].get("eval_length") or run["trainer"]["sequence_length"])
    data = DataConfig.from_dict(run["data"])
    known, settings = _trained_on(folder), TokenizerConfig(**run["tokenizer"])
    # A checkpoint that does not know its corpora: what is learned from them would tell that they are others.
    given = tokenizer if known or settings.source == "init_from" else None
    prepared = prepare(data, settings, given=given)
    if prepared.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"{folder} was trained with another tokenizer than its run's configuration gives today: bring back the "
            "corpus or tokenizer file it was made from"
        )
    for name, source in known.items():
        corpus = prepared.corpora.get(name)
        if corpus is None or source["key"].split()[0] != corpus.key:
            raise UserError(
                f"{folder} was trained on other text than data={data.name} ({name}) holds today, or with another "
                "tokenizer: bring back the files it was made from"
            )
    streams = prepared.held_out(length)
    if not streams:
        longest = max(len(corpus.validation) for corpus in prepared.corpora.values())
        raise UserError(f"max_length={length} is longer than the {longest} held-out tokens: lower it")
    return streams, length, loss_within_documents(model, tokenizer.eot_id if data.document_mask else None)


def _trained_on(folder: Path) -> dict[str, dict]:
    """The corpora that a checkpoint was trained on last; none where it does not say."""
    try:
        progress = json.loads((folder / "training" / "progress.json").read_text())
        return progress["data"]["history"]["mixtures"][-1]["sources"]
    except (OSError, ValueError, LookupError):
        return {}
