"""Compares runs: python compare.py --help"""

from __future__ import annotations

import sys

from gptstar.configuration import run_door, with_list

if __name__ == "__main__":
    sys.argv[1:] = with_list(sys.argv[1:], "runs", options=("log",))

    from rich.console import Console

    from gptstar.lab.command import CompareConfig, compare_runs

    def main(config: CompareConfig) -> None:
        """The report and its verdicts."""
        compare_runs(config, Console())

    run_door("compare", CompareConfig, main)
