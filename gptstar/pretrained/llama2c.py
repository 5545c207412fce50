"""llama2.c's files (Karpathy, 2023): MODEL.bin, version 0, and its tokenizer, tok512.bin or tokenizer.bin beside it.

MODEL.bin   7 int32: dim, hidden, layers, heads, key/value heads, vocabulary (negative: untied head), sequence
            length; then fp32: token embedding, attention norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3,
            final norm, two rotary tables, and the head if it is untied; layers stacked in each
tok*.bin    int32 longest token, then for each token float32 score, int32 length, bytes
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import Dtype, empty_model
from gptstar.pretrained.family import Entry, fill
from gptstar.pretrained.stored import in_memory


def load_llama2c(path: Path, device: torch.device | str = "cpu", dtype: Dtype = None) -> tuple[GPT, Tokenizer]:
    """The model of a MODEL.bin, in evaluation mode, and the tokenizer beside it. UserError for a damaged file."""
    config = llama2c_config(path)
    weights = _read_weights(path, config)
    model = empty_model(config, device, dtype, torch.float32)
    fill(model, [Entry(name, (name,)) for name in weights], in_memory(weights))
    return model.eval(), _read_tokenizer(path, config.vocab_size)


def llama2c_config(path: Path) -> ModelConfig:
    """The shape in the file's header."""
    with path.open("rb") as file:
        header = file.read(28)
    if len(header) < 28:
        raise UserError(f"{path} is too short for a llama2.c model")
    dim, hidden, n_layer, n_head, n_kv_head, vocab, context = struct.unpack("7i", header)
    if min(dim, hidden, n_layer, n_head, n_kv_head, abs(vocab), context) < 1 or dim % n_head or n_head % n_kv_head:
        raise UserError(f"{path} has no llama2.c header of version 0: its shape would be {struct.unpack('7i', header)}")
    return ModelConfig(
        name=path.stem,
        vocab_size=abs(vocab),
        n_layer=n_layer,
        d_model=dim,
        n_head=n_head,
        n_kv_head=n_kv_head,
        d_ff=hidden,
        context=context,
        block="sequential",
        position="rotary",
        rotary_interleaved=True,
        norm="rmsnorm",
        activation="swiglu",
        query_key_value_bias=False,
        attention_output_bias=False,
        feedforward_bias=False,
        tie_head=vocab > 0,
    )


def _read_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    c, f, n = config.d_model, config.d_feedforward, config.n_layer
    kv, half = config.n_key_value * config.head_size, config.head_size // 2
    stacks = {
        "norm1.weight": (n, c),
        "attention.query.weight": (n, c, c),
        "attention.key.weight": (n, kv, c),
        "attention.value.weight": (n, kv, c),
        "attention.output.weight": (n, c, c),
        "norm2.weight": (n, c),
        "feedforward.gate.weight": (n, f, c),
        "feedforward.down.weight": (n, c, f),
        "feedforward.up.weight": (n, f, c),
    }
    order = {"embedding.weight": (config.vocab_size, c), **stacks, "norm.weight": (c,)}
    order |= {"rotary cos": (config.context, half), "rotary sin": (config.context, half)}
    if not config.tie_head:
        order["head.weight"] = (config.vocab_size, c)
    numbers = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=28))
    sizes = [int(np.prod(shape)) for shape in order.values()]
    if len(numbers) != sum(sizes):
        raise UserError(f"{path} holds {len(numbers)} numbers where its header asks for {sum(sizes)}: is it truncated?")
    if not torch.isfinite(numbers).all():
        raise UserError(f"{path} holds numbers that are not finite: it is damaged")
    read = {name: part.view(order[name]) for name, part in zip(order, numbers.split(sizes), strict=True)}
    weights = {name: read[name] for name in order if name not in stacks and not name.startswith("rotary")}
    return weights | {f"blocks.{i}.{name}": read[name][i] for name in stacks for i in range(n)}


def _read_tokenizer(path: Path, n_token: int) -> Tokenizer:
    names = (f"tok{n_token}.bin", "tokenizer.bin")
    file = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if file is None:
        raise UserError(f"{path}: its tokenizer is missing: put {' or '.join(names)} beside it")
    data, at, pieces, scores = file.read_bytes(), 4, [], []
    try:
        for _ in range(n_token):
            score, length = struct.unpack_from("fi", data, at)
            pieces.append(data[at + 8 : at + 8 + length].decode())
            scores.append(score)
            at += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no llama2.c tokenizer of {n_token} tokens: {error}") from error
    pieces[1:3] = ["<s>", "</s>"]  # written there as they are printed
    vocab = {piece: number for number, piece in enumerate(pieces)}
    # A sentencepiece model has scores, a BPE has merges: every way to make a piece of two, best score first.
    merges = [
        (scores[number], vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
        for piece, number in vocab.items()
        if number > 258  # unknown, begin, end and the 256 bytes are made of nothing
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda m: (-m[0], m[1], m[2]))
    fast = FastTokenizer(models.BPE(vocab, [m[3:] for m in merges], unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Prepend(" ")
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(fast, "<s>")  # what separates stories in training
