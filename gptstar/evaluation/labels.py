"""Short names for checkpoints in tables and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ENDINGS = (".pth.tar", ".bin")


def labels(checkpoints: Iterable[str]) -> dict[str, str]:
    """{checkpoint: what tells it apart}: the run's name, with the step where several of one run are there.

    Equal names get as many of their parent folders as make them differ.
    """
    names = list(dict.fromkeys(checkpoints))
    parts = {name: _parts(name) for name in names}
    short = {name: parts[name][-1] for name in names}
    for depth in range(2, 1 + max(map(len, parts.values()), default=0)):
        twins = {label for label, n in Counter(short.values()).items() if n > 1}
        short |= {name: "/".join(parts[name][-depth:]) for name in names if short[name] in twins}
    steps = Counter(short.values())
    return {name: label if steps[label] == 1 else f"{label} {Path(name).name}" for name, label in short.items()}


def _parts(checkpoint: str) -> list[str]:
    """The path without the run's own folders and without endings that say nothing."""
    path = Path(checkpoint)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return [*(part for part in path.parent.parts if part != "/"), name or str(checkpoint)]
