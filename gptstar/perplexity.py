"""Perplexity of any text at any context: python -m gptstar.perplexity checkpoints=[RUN] text=[FILE]"""

from __future__ import annotations

from gptstar.allocator import keep_freed_memory
from gptstar.configuration import run_door

if __name__ == "__main__":
    keep_freed_memory()  # before torch is imported

    from rich.console import Console

    from gptstar.evaluation.perplexity import PerplexityConfig, perplexity
    from gptstar.evaluation.report import write_markdown

    def main(config: PerplexityConfig) -> None:
        """A line for each model and context, a table and a plot."""
        outcome = perplexity(config, Console())
        print(f"table and plot: {write_markdown(outcome.folder / 'perplexity.json')}")

    run_door("perplexity", PerplexityConfig, main, continues=True)
