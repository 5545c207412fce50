"""What several tests need: a made-up corpus, a tiny model, transformers' logits in float64."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from gptstar.model.config import ModelConfig


def write_corpus(folder: Path, n_file: int = 40, seed: int = 0) -> Path:
    """Files of made-up sentences."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_file):
        lines = [" ".join(rng.choices(words, k=8)) + "." for _ in range(30)]
        (folder / f"{i:03d}.txt").write_text("\n".join(lines))
    return folder


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
