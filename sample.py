"""Continues a prompt with a trained model: python sample.py --help"""

from __future__ import annotations

from gptstar.configuration import run_door

if __name__ == "__main__":
    from gptstar.generation.command import SampleConfig, sample

    run_door("sample", SampleConfig, lambda config: print(sample(config)))
