"""Continues text with a trained model: python sample.py --help"""

from __future__ import annotations

from gptstar.allocator import keep_freed_memory
from gptstar.configuration import run_door

if __name__ == "__main__":
    keep_freed_memory()  # before torch is imported

    from gptstar.generation.command import SampleConfig, run

    run_door("sample", SampleConfig, run)
