"""What several tests need: made-up corpora and task files, tiny models and tokenizers, transformers in float64."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from gptstar.cpu.fast_linear import fast_linear
from gptstar.data.records import Record, Unreadable
from gptstar.data.shards import ShardWriter, Split
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT


def write_corpus(folder: Path, n_file: int = 40, seed: int = 0) -> Path:
    """Files of made-up sentences."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_file):
        lines = [" ".join(rng.choices(words, k=8)) + "." for _ in range(30)]
        (folder / f"{i:03d}.txt").write_text("\n".join(lines))
    return folder


def write_split(
    folder: Path,
    documents: list[list[int]],
    shard_tokens: int,
    vocab_size: int = 300,
    eot_id: int = 0,
    name: str = "train",
) -> Split:
    """Shards of a split with these documents, of three bytes a token."""
    writer = ShardWriter(folder, name, vocab_size, shard_tokens)
    for tokens in documents:
        writer.add(np.array([*tokens, eot_id]), np.array([len(tokens) + 1]), np.array([3 * len(tokens)]))
    return writer.close()


def strictly(records: Iterable[Record | Unreadable]) -> Iterator[Record]:
    """The records, or a UserError for the first that is none."""
    for record in records:
        if isinstance(record, Unreadable):
            raise UserError(record.reason)
        yield record


def tiny_model(**changes) -> ModelConfig:
    values = dict(
        name="tiny",
        vocab_size=300,
        n_layer=2,
        d_model=32,
        n_head=3,
        d_head=8,
        d_ff=48,
        context=32,
        block="parallel_shared",
        position="alibi",
    )
    return ModelConfig(**{**values, **changes})


@torch.inference_mode()
def as_sampled(model: GPT, tokens: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
    """Scores through the products of sampling and evaluation: those of torch's libraries differ in their last bits."""
    with fast_linear(model.device, model.dtype):
        return model(tokens, cache=cache)


def exact_logits(theirs, tokens, monkeypatch, **options):
    """The reference wholly in float64: parts of transformers compute in fp32 whatever the model's dtype is."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            model = type(theirs)(theirs.config).double().eval()
            model.load_state_dict(theirs.state_dict())
            with torch.no_grad():
                return model(tokens, **options).logits
        finally:
            patch.undo()
            torch.set_default_dtype(torch.float32)


def sentence(rng: random.Random, n_word: int) -> str:
    """Made-up words, some of them with spaces, line ends and signs around them."""
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(n_word)]
    return " ".join(word + rng.choice(["", "", "", ",", ".", "\n", " 's"]) for word in words).strip()


def write_tasks(folder: Path, n_document: int = 5, seed: int = 0) -> Path:
    """A made-up file for each of the five default tasks, with the fields that the stock tasks read."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> str:
        return sentence(rng, rng.randint(low, high))

    def winogrande() -> dict:
        return {"sentence": f"{some(3, 6)} _ {some(2, 5)}", "option1": some(1, 2), "option2": some(1, 2), "answer": "2"}

    documents = {
        "lambada_openai": lambda: {"text": f"{some(5, 40)} end"},
        "wikitext": lambda: {"page": f" = {some(2, 3)} = \n {some(10, 90)}"},
        "piqa": lambda: {"goal": some(2, 9), "sol1": some(1, 12), "sol2": some(1, 12), "label": rng.randint(0, 1)},
        "hellaswag": lambda: {
            "activity_label": some(1, 3),
            "ctx_a": some(4, 20),
            "ctx_b": some(0, 2),
            "endings": [some(1, 9) for _ in range(4)],
            "label": str(rng.randint(0, 3)),
        },
        "winogrande": winogrande,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in documents.items():
        lines = [json.dumps(make()) for _ in range(n_document)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tiny_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Learnt from made-up sentences."""
    rng = random.Random(1)
    return train_tokenizer([sentence(rng, 500)], TokenizerConfig(vocab_size=vocab_size))


def save_transformers(model, tokenizer: Tokenizer, folder: Path) -> Path:
    """A model and its tokenizer as transformers and `gptstar.load` both read them."""
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    special = {"eos_token": tokenizer.eot_token, "bos_token": tokenizer.eot_token}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | kind))
    return folder
