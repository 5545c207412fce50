"""What README quotes of results/bench_cpu.json: the table under "Measured", and the seconds of its first commands.

    python -m benchmarks.readme

`python -m benchmarks` does it at its end. Whatever else README says stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import rows_of

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
WITHOUT_TARGET = ("loss", "load", "quantization")  # whose rows without a target are quoted too
HEADER = "| what | here | peer or limit | ratio (spread) | target | met |\n|---|---|---|---|---|---|"
WALK = (  # rows of README's first table
    "a sample",
    "held-out loss",
    "beside published models",
    "perplexity of your text",
    "two architectures, two seeds each",
    "which is better, and how sure",
    "a page, REST, OpenAI's API",
    "what a run will cost",
)


def measured(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Hardware and commits of what README quotes, and a row for each figure that has a target."""
    lines, sources = [], []
    for name, entry in entries.items():
        if entry["found"] is None:
            continue
        walk = name == "walk"  # its seconds stand in the first table
        rows = [] if walk else [r for r in rows_of(name, entry["found"]) if r.target or name in WITHOUT_TARGET]
        if rows or walk:
            sources.append(entry)
        for row in rows:
            what, here, peer, limit, ratio, target, met, *_ = row.cells("")
            lines.append(f"| {' | '.join([what, here, f'{peer} {limit}'.strip(), ratio, target, met])} |")
    hardware, commits = (sorted({str(entry[key]) for entry in sources}) for key in ("hardware", "commit"))
    head = f"`make bench`, {'; '.join(hardware)}, commit {', '.join(commits)}; short runs, median (range); "
    head += "every row and command: [bench_cpu.md](benchmarks/results/bench_cpu.md)."
    return "\n".join([head, "", HEADER, *lines])


def quoted(readme: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """README as it should be."""
    table = re.compile(r"(?<=\n## Measured\n\n).*?(?=\n\n)(?:\n\n\|.*?(?=\n\n))", re.S)
    readme, n = table.subn(lambda _: measured(entries), readme)
    assert n == 1, "README has no table under Measured"
    walked = (entries["walk"]["found"] or {}).get("seconds", {}) if "walk" in entries else {}
    for name in WALK:
        if name in walked:
            row = re.compile(rf"^(\| {re.escape(name)} \|.*\| )\d+ s \|$", re.M)
            readme, n = row.subn(rf"\g<1>{walked[name]:.0f} s |", readme)
            assert n == 1, f"README has no row {name!r} with its seconds"
    return readme


def main() -> None:
    """Writes it."""
    entries = json.loads((HERE / "results" / "bench_cpu.json").read_text())
    README.write_text(quoted(README.read_text(), entries))


if __name__ == "__main__":
    main()
