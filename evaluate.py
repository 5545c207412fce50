"""Measures a checkpoint on lm-evaluation-harness tasks and on held-out text: python evaluate.py --help"""

from __future__ import annotations

import os
import sys

from gptstar.allocator import keep_freed_memory
from gptstar.configuration import run_door

if __name__ == "__main__":
    keep_freed_memory()  # before torch is imported
    for variable in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")  # one bar shows the whole of a task

    from rich.console import Console

    from gptstar.evaluation.command import EvaluateConfig, evaluate

    def main(config: EvaluateConfig) -> None:
        """A line a task, and one for each that failed."""
        result = evaluate(config, Console())
        for name, reason in result.failed.items():
            print(f"error: task {name} failed: {reason}", file=sys.stderr)
        if result.failed:
            sys.exit(1)

    run_door("evaluate", EvaluateConfig, main, continues=True)
