"""Shows what a model will see: python -m gptstar.inspect data=stdlib step=100 window=3 output_dir=look"""

from __future__ import annotations

import sys

from gptstar.configuration import run_door

WIDTH = 120  # characters, at least: tables in a narrower terminal, or in a file, would lose numbers

if __name__ == "__main__":
    from rich.console import Console

    from gptstar.training.inspection import InspectConfig, inspect
    from gptstar.training.inspection_files import write_inspection
    from gptstar.training.inspection_text import show_inspection

    def main(config: InspectConfig) -> None:
        """Text, and files where a folder is named."""
        console = Console()
        console = Console(width=max(console.width, WIDTH))
        found = inspect(config, console)
        show_inspection(found, console, config.tokens)
        if config.output_dir is not None:
            for path in write_inspection(found, config.output_dir):
                print(path)

    # A run to look at is a run to go on with: the same settings may be changed, the same are refused.
    sys.argv[1:] = ["resume=" + a.removeprefix("run=") if a.startswith("run=") else a for a in sys.argv[1:]]
    run_door("inspect", InspectConfig, main, continues=True)
