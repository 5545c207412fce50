"""Short names for checkpoints in tables and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from gptstar.pretrained.native import STEP_PREFIX

ENDINGS = (".pth.tar", ".bin")


def labels(checkpoints: Iterable[str]) -> dict[str, str]:
    """{checkpoint: what tells it apart}: the run's name, with the step where several of one run are there.

    Equal names get as many of their parent folders as make them differ.
    """
    runs = {name: _run(name) for name in dict.fromkeys(checkpoints)}
    short = {run: run[-1] for run in runs.values()}
    for depth in range(2, 1 + max(map(len, short), default=0)):
        twins = {label for label, n in Counter(short.values()).items() if n > 1}
        short |= {run: "/".join(run[-depth:]) for run, label in short.items() if label in twins}
    n_checkpoint = Counter(runs.values())
    return {
        name: short[run] if n_checkpoint[run] == 1 else f"{short[run]} {Path(name).name}" for name, run in runs.items()
    }


def markdown(text: str) -> str:
    """The same text in markdown, where GPT-127* would begin an emphasis and | a column."""
    return text.replace("*", "\\*").replace("|", "\\|")


def _run(checkpoint: str) -> tuple[str, ...]:
    """The parts of a run's path, or of another checkpoint's, without endings that say nothing."""
    path = Path(checkpoint)
    if path.parent.name == "checkpoints" and path.name.startswith(STEP_PREFIX):
        path = path.parent.parent
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return (*(part for part in path.parent.parts if part != "/"), name or str(checkpoint))
