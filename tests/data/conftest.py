"""Fixtures of preparation."""

from pathlib import Path

import pytest
from preparing import made_up

from gptstar.data import lines, text_files, tokenise
from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from support import write_corpus


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(made_up(5, n_word=300), TokenizerConfig(vocab_size=300))


@pytest.fixture
def small_parts(monkeypatch):
    """Blocks of some lines, parts of some blocks."""
    monkeypatch.setattr(tokenise, "PART_BYTES", 800)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 400)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 4000)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Thirty small files."""
    write_corpus(tmp_path / "text", n_file=30)
    return DataConfig(
        name="t",
        corpus="text_files",
        paths=[f"{tmp_path}/text/*.txt"],
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.3,
        shard_tokens=2000,
    )
