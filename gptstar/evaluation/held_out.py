"""Held-out loss: nats a token and bits a byte over fixed windows of the validation stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.data.batches import document_numbers, read_windows, window_count
from gptstar.data.corpora import DataConfig
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


def loss_within_documents(model: GPT, eot_id: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """`model(inputs, targets)` whose attention stays within documents that `eot_id` ends; None: the model itself."""
    if eot_id is None:
        return model

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return model(inputs_BT, targets_BT, document_BT=document_numbers(inputs_BT, eot_id))

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
) -> HeldOutLoss:
    """The loss of `model(inputs, targets)` over disjoint windows of `length` tokens, each read from its own start.

    max_tokens: about how many tokens, in evenly spaced windows; None reads every window. `batch` windows at a time.
    rank, n_rank: which share of the windows is read here, where several processes do it; total: adds up what they find.
    All of them call the model equally often, for it may be in shards.
    """
    n_all = window_count(len(stream), length)
    n_window = n_all if max_tokens is None else min(n_all, max(1, max_tokens // length))
    windows = np.arange(n_window) * n_all // n_window
    own, nats = windows[rank::n_rank], 0.0
    for start in range(0, -(-n_window // n_rank), batch):
        some = own[start : start + batch]
        inputs, targets = (x.to(device) for x in read_windows(stream, some if len(some) else windows[:1], length))
        with autocast(precision, device):
            nats += model(inputs, targets).item() * len(some)
    loss = total(torch.tensor(nats, dtype=torch.float64)).item() / n_window
    tokens_per_byte = len(stream) / max(1, stream.split.bytes)
    return HeldOutLoss(loss, loss / math.log(2) * tokens_per_byte, n_window * length)


def open_held_out(
    checkpoint: str, model: GPT, tokenizer: Tokenizer, length: int | None
) -> tuple[TokenStream, int, Callable[[Tensor, Tensor], Tensor]]:
    """The validation split of the run that a checkpoint comes from, the length of the windows to read it in, and what
    gives their loss as in training.

    length: what is wanted; None: as in training. Raises UserError for what is no run, whose corpus or tokenizer has
    changed, and for a length that the model or the split is too short for.
    """
    folder = find_checkpoint(checkpoint)
    run = read_run_config(folder.parent.parent)
    length = context_length(model, length or run["trainer"]["sequence_length"])
    settings = TokenizerConfig(**run["tokenizer"])
    given = tokenizer if settings.source == "init_from" else None
    data = DataConfig(**run["data"])
    corpus = prepare(data, settings, given=given)
    if corpus.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"{folder} was trained with another tokenizer than its run's configuration gives today: "
            "bring back the corpus or tokenizer file it was made from"
        )
    if window_count(len(corpus.validation), length) < 1:
        raise UserError(f"max_length={length} is longer than the {len(corpus.validation)} held-out tokens: lower it")
    return corpus.validation, length, loss_within_documents(model, tokenizer.eot_id if data.document_mask else None)
