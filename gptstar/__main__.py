"""All doors of GPT* behind one command, wherever it is installed: gptstar NAME ..., or python -m gptstar NAME ...

In a checkout `gptstar train` is `python train.py`, and `gptstar perplexity` is `python -m gptstar.perplexity`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from gptstar.errors import EXIT_BAD_INPUT, complain

SCRIPTS = {
    "train": "train a model, or with -m a study of many",
    "evaluate": "measure a checkpoint on benchmarks and held-out text",
    "sample": "continue a text",
    "compare": "runs against each other, with statistics",
    "serve": "models over HTTP, and a page",
}
MODULES = {
    "plan": ("gptstar.plan", "what a run would take, on this machine or another"),
    "prepare": ("gptstar.prepare", "a corpus, ahead of training"),
    "inspect": ("gptstar.inspect", "what a model will see at a step"),
    "describe": ("gptstar.describe", "explain an architecture"),
    "check": ("gptstar.check", "ask an idea of your own what every model is asked"),
    "perplexity": ("gptstar.perplexity", "of any text, by context"),
    "report": ("gptstar.report", "runs and published models in one table"),
    "consolidate": ("gptstar.consolidate", "one file from a checkpoint in shards"),
    "coordinates": ("gptstar.lab.coordinates", "muP's coordinate check"),
    "download": ("gptstar.pretrained.download", "a published GPT*"),
    "lm_eval": ("gptstar.evaluation.lm_eval", "the evaluation harness's own command, with our models in it"),
}


def main() -> None:
    """Hands the rest of the command line to a door."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        doors = {**SCRIPTS, **{door: about for door, (_, about) in MODULES.items()}}
        print("gptstar NAME ..., and gptstar NAME --help:\n")
        print("\n".join(f"  {door:12} {about}" for door, about in doors.items()))
    elif name in SCRIPTS:
        path = str(script(name))
        sys.argv = [path, *rest]
        runpy.run_path(path, run_name="__main__")
    elif name in MODULES:
        sys.argv = [name, *rest]
        runpy.run_module(MODULES[name][0], run_name="__main__", alter_sys=True)
    else:
        complain(f"{name} is not a command: choose one of {', '.join([*SCRIPTS, *MODULES])}")
        sys.exit(EXIT_BAD_INPUT)


def script(name: str) -> Path:
    """Inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "doors" / f"{name}.py"
    return inside if inside.is_file() else package.parent / f"{name}.py"


if __name__ == "__main__":
    main()
