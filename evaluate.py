"""Measures a checkpoint on held-out text: python evaluate.py --help"""

from __future__ import annotations

from gptstar.allocator import keep_freed_memory
from gptstar.configuration import run_door

if __name__ == "__main__":
    keep_freed_memory()  # before torch is imported

    from gptstar.evaluation.command import EvaluateConfig, evaluate

    def main(config: EvaluateConfig) -> None:
        """One line."""
        result = evaluate(config)
        print(f"{result.loss:.4f} nats/token, {result.bits_per_byte:.4f} bits/byte over {result.tokens:,} tokens")

    run_door("evaluate", EvaluateConfig, main)
