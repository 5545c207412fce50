"""Prepares a corpus ahead of training: python -m gptstar.prepare data=text_files data.paths=[DUMP.jsonl.zst]"""

from __future__ import annotations

from dataclasses import dataclass, field

from gptstar.configuration import run_door
from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import TokenizerConfig


@dataclass
class PrepareConfig:
    """What to prepare: data and tokenizer with the same keys as in training, so that training finds it."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


if __name__ == "__main__":
    from rich.console import Console

    from gptstar.data.prepare import prepare

    def main(config: PrepareConfig) -> None:
        """Says where everything is."""
        prepared = prepare(config.data, config.tokenizer, Console())
        for name, corpus in prepared.corpora.items():
            print(f"{name}: {len(corpus.train):,} training and {len(corpus.validation):,} held-out tokens")
            print(f"  {corpus.folder}/DATA.md says what is in it")

    run_door("prepare", PrepareConfig, main, continues=True)
